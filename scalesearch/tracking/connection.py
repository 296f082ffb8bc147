"""Where MLflow is and how it is reached: quietly, without telemetry, and without global state."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import urllib.parse
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scalesearch.text import hide_password, one_line
from scalesearch.workspace import locked, make_aside, sqlite_file, sqlite_url

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


# Where MLflow's tables have the places of artifacts.
_LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("logged_models", "artifact_location"),
)


@dataclass(frozen=True)
class Address:
    """An MLflow: the server or database of a URI, or where that is None the workspace's own database."""

    uri: str | None
    workspace: Path

    @property
    def resolved(self) -> str:
        return self.uri if self.uri is not None else sqlite_url(self.workspace / "mlflow.db")

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
        if self.uri is None:
            return self.workspace.absolute() / "mlflow.db"
        return sqlite_file(self.uri)

    def __str__(self) -> str:
        return hide_password(self.uri) if self.uri is not None else f"sqlite:///{self.database}"

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
        with locked(database.with_name(f"{database.name}.lock"), wait=True):
            if not database.exists():
                make_aside(database, lambda unfinished: opened(sqlite_url(unfinished)))
            if database == self.workspace.absolute() / "mlflow.db":
                _relocate(database, self.artifacts)
            return opened(self.resolved)


def _relocate(path: Path, artifacts: str) -> None:
    """Where a workspace was moved or copied, its database has artifacts in the old place: put it right."""
    with contextlib.closing(sqlite3.connect(path, timeout=20)) as database, database:
        places = database.execute("SELECT name, artifact_location FROM experiments").fetchall()
        ends = {name: f"/{urllib.parse.quote(name)}" for name, _ in places}
        olds = {place.removesuffix(ends[name]) for name, place in places if place and place.endswith(ends[name])}
        for old in sorted(one for one in olds - {artifacts} if one.endswith("/mlartifacts")):
            for table, column in _LOCATIONS:
                if column in {row[1] for row in database.execute(f"PRAGMA table_info({table})")}:
                    database.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                        (artifacts, len(old) + 1, len(old) + 1, f"{old}/"),
                    )


def reason(error: BaseException) -> str:
    """What went wrong, in one line without passwords."""
    text = one_line(error) or type(error).__name__
    if not isinstance(error, OSError) or isinstance(error.__cause__, OSError):
        if "Connection refused" in text:
            text = "connection refused"
        elif "timed out" in text:
            text = f"no answer within {QUIET['MLFLOW_HTTP_REQUEST_TIMEOUT']} s"
    return hide_password(text if len(text) <= 300 else f"{text[:297]}...")
