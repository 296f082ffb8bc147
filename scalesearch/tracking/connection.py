"""Where MLflow is and how it is reached: quietly, without telemetry, and without global state."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scalesearch.text import one_line

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


@dataclass(frozen=True)
class Address:
    """An MLflow: the server or database of a URI, or where that is None the workspace's own database."""

    uri: str | None
    workspace: Path

    @property
    def resolved(self) -> str:
        return self.uri if self.uri is not None else f"sqlite:///{self.workspace.absolute() / 'mlflow.db'}"

    @property
    def server(self) -> str | None:
        """The URI where it is that of a server."""
        return self.uri if self.uri is not None and self.uri.startswith(("http://", "https://")) else None

    @property
    def artifacts(self) -> str:
        return (self.workspace.absolute() / "mlartifacts").as_uri()

    @property
    def database(self) -> Path | None:
        """The file of a sqlite database."""
        prefix = "sqlite:///"
        return Path(self.resolved.removeprefix(prefix).split("?")[0]) if self.resolved.startswith(prefix) else None

    def __str__(self) -> str:
        return hide_password(self.resolved)

    def refuse_empty(self) -> None:
        """Raises: ValueError where it is a database that nothing was logged to."""
        if self.database is not None and not self.database.exists():
            raise ValueError(f"nothing is logged yet ({self.database} is missing); first: scalesearch run")

    @contextlib.contextmanager
    def client(self) -> Iterator[MlflowClient]:
        """A client of its own: the global state of `mlflow` stays the user's.

        Raises:
            OSError: instead of whatever MLflow raises, with the place where it was looked for.
        """
        try:
            yield self._connected()
        except (OSError, ValueError):
            raise
        except Exception as error:
            raise OSError(f"MLflow at {self} cannot be reached: {reason(error)}") from error

    def _connected(self) -> MlflowClient:
        os.environ.update(QUIET)  # before the import: telemetry and loggers are set up there
        warnings.filterwarnings("ignore", module=r"(mlflow|alembic|sqlalchemy)\b")
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)

        def opened(uri: str) -> MlflowClient:
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            client.search_experiments(max_results=1)
            client.search_registered_models(max_results=1)
            return client

        database = self.database
        if database is None:
            return MlflowClient(tracking_uri=self.resolved, registry_uri=self.resolved)
        database.parent.mkdir(parents=True, exist_ok=True)
        # The tables are made on first use. Two processes doing so at once crash each other, and one that is killed
        # meanwhile leaves a database that MLflow never opens again: so they are made elsewhere and moved into place.
        with lock(database.with_name(f"{database.name}.lock"), wait=True):
            if not database.exists():
                for leftover in database.parent.glob(f".{database.name}.*.new*"):
                    leftover.unlink()
                unfinished = database.with_name(f".{database.name}.{os.getpid()}.new")
                opened(f"sqlite:///{unfinished}")
                unfinished.replace(database)
            return opened(self.resolved)


@contextlib.contextmanager
def lock(path: Path, *, wait: bool) -> Iterator[None]:
    """Locked until the end, or until the process ends however it ends; BlockingIOError where another has it."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def reason(error: BaseException) -> str:
    """What went wrong, in one line without passwords."""
    text = one_line(error) or type(error).__name__
    if "Connection refused" in text and not isinstance(error, OSError):
        text = "connection refused"
    return hide_password(text if len(text) <= 300 else f"{text[:297]}...")


def hide_password(text: str) -> str:
    return re.sub(r"://[^@/\s]*@", "://***@", text)
