"""Where MLflow is and how it is reached: quietly, without telemetry, and without global state."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

# stdout belongs to the command's own output, and nobody asked for telemetry. No retries of MLflow's own: it would
# repeat the creation of a run without looking whether the first request had arrived.
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # at ERROR a database that is locked for a moment is a traceback on the screen
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


def connected(uri: str | None, workspace: Path) -> MlflowClient:
    """A client of its own: the global state of `mlflow` stays the user's."""
    os.environ.update(QUIET)  # before the import: telemetry and loggers are set up there
    warnings.filterwarnings("ignore", module=r"(mlflow|alembic|sqlalchemy)\b")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    found = resolved(uri, workspace)
    database = sqlite_file(found)
    if database is None:
        return MlflowClient(tracking_uri=found, registry_uri=found)
    database.parent.mkdir(parents=True, exist_ok=True)
    # The tables are made on first use. Two processes doing so at once crash each other, and one that is killed while
    # it does leaves a database that MLflow never opens again: so they are made elsewhere and moved into place.
    with lock(database.with_name(f"{database.name}.lock"), wait=True):
        if not database.exists():
            for leftover in database.parent.glob(f".{database.name}.*.new*"):
                leftover.unlink()
            unfinished = database.with_name(f".{database.name}.{os.getpid()}.new")
            _open(MlflowClient, f"sqlite:///{unfinished}")
            unfinished.replace(database)
        return _open(MlflowClient, found)


def _open(client_class: type[MlflowClient], uri: str) -> MlflowClient:
    client = client_class(tracking_uri=uri, registry_uri=uri)
    client.search_experiments(max_results=1)
    client.search_registered_models(max_results=1)
    return client


def studies(client: MlflowClient) -> list[str]:
    return sorted(experiment.name for experiment in client.search_experiments() if experiment.name != "Default")


@contextlib.contextmanager
def reachable(uri: str | None, workspace: Path) -> Iterator[None]:
    """Whatever MLflow raises comes out as an OSError that says where it was looked for."""
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as error:
        shown = hide_password(resolved(uri, workspace))
        raise OSError(f"MLflow at {shown} cannot be reached: {reason(error)}") from error


def resolved(uri: str | None, workspace: Path) -> str:
    return uri if uri is not None else f"sqlite:///{workspace.absolute() / 'mlflow.db'}"


def artifacts(workspace: Path) -> str:
    return (workspace.absolute() / "mlartifacts").as_uri()


def sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///").split("?")[0]) if uri.startswith("sqlite:///") else None


def is_http(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


@contextlib.contextmanager
def lock(path: Path, *, wait: bool) -> Iterator[None]:
    """Held until the end, or until the process ends however it ends; BlockingIOError where another has it."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if "Connection refused" in text and not isinstance(error, OSError):
        text = "connection refused"
    return hide_password(text if len(text) <= 300 else f"{text[:297]}...")


def hide_password(text: str) -> str:
    return re.sub(r"://[^@/\s]*@", "://***@", text)
