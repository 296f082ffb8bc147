"""Reading the spool: a client of MLflow that replays it in order, from where the last one came to."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from scalesearch.text import plural
from scalesearch.tracking.connection import Address, reason
from scalesearch.tracking.events import BATCHED, Writer, experiment_of, is_final, mlflow_experiment
from scalesearch.tracking.spool import Event, parsed, spooled
from scalesearch.workspace import locked


def sync(*, uri: str | None, workspace: Path, directory: Path, rebuild: bool = False) -> int:
    """How many events were replayed: those that wait in a command's directory, or with `rebuild` all of them.

    Raises:
        ValueError: there is no spool.
        OSError: MLflow cannot be reached, or another process replays this spool just now.
    """
    replay = Replay(uri, workspace, directory)
    if not replay.spool.exists():
        raise ValueError(f"nothing was recorded for '{replay.name}' ({replay.spool} is missing); run it first")
    with replay:
        replayed = 0
        try:
            replay.connect()
            if rebuild:
                replay.position = 0
            while passed := replay.step():
                replayed += passed
        except Exception as error:
            waiting = plural(replay.waiting(), "event")
            raise OSError(f"{reason(error)}; it still lacks {waiting} of '{replay.name}'") from error
    if replay.refused:
        logging.getLogger(__name__).warning(refusals(replay.refused))
    return replayed - len(replay.refused)


class Replay:
    """Brings the events of a study's spool into MLflow, a `step` at a time, and keeps how far it is.

    As a context manager it gives up its claim on the study at the end: one process at a time replays a study, since
    looking for a run and creating it are two steps.
    """

    def __init__(self, uri: str | None, workspace: Path, directory: Path) -> None:
        self.name = directory.name
        self.spool = directory / "tracking.jsonl"
        self.position = 0
        self.refused: list[str] = []
        self._address, self._directory = Address(uri, workspace), directory
        self._kept = directory / "tracking.position"
        self._writer: Writer | None = None
        self._target: list[object] = []
        self._claim = contextlib.ExitStack()
        self._claimed = False

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()
        self._claim.close()
        self._claimed = False

    @property
    def is_remote(self) -> bool:
        """Whether it is a server that is sent to, and no file."""
        return self._address.server is not None

    def waiting(self) -> int:
        return sum(line.endswith(b"\n") and line != b"\n" for line in spooled(self.spool, self._read_position()))

    def connect(self) -> Writer:
        if not self._claimed:
            try:
                self._claim.enter_context(locked(self._directory / "tracking.lock", wait=False))
            except BlockingIOError:
                raise OSError(f"another process is sending '{self.name}' to MLflow") from None
            self._claimed = True
        with self._address.client() as client:
            experiment = experiment_of(mlflow_experiment(self._directory), client, self._address)
        self._writer = Writer(client, experiment, self._address.workspace, self._directory)
        # A database that was deleted counts its experiments from 1 again: the time tells the new one from the old one.
        self._target = [str(self._address), experiment.experiment_id, experiment.creation_time]
        self.position = self._read_position()
        return self._writer

    def disconnect(self) -> None:
        self._writer = None

    def step(self) -> int:
        """How many events were passed on, 0 when none waits; a transient failure is raised, and nothing was passed."""
        group, end = self._next()
        if end == self.position:
            return 0
        writer = self._writer
        if writer is None:
            writer = self.connect()
            group, end = self._next()
        try:
            if group:
                writer.write(group)
        except Exception as error:
            before = self._target
            if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
                writer = self.connect()
                if self._target != before:
                    raise OSError("the MLflow database was replaced by another") from error
            if not is_final(error):
                raise
            for event in group:  # find the one that MLflow does not take
                self._write_alone(writer, event)
        self.position = end
        temporary = self._kept.with_suffix(".position.new")
        temporary.write_text(json.dumps({"target": self._target, "position": self.position}))
        temporary.replace(self._kept)  # no fsync: after a power cut an older position only means replaying more
        return len(group)

    def _next(self) -> tuple[list[Event], int]:
        """The next events that go in one request, and the position after them."""
        group: list[Event] = []
        size, position = 0, self.position
        for line in spooled(self.spool, position):
            if not line.endswith(b"\n"):
                break  # still being written
            event = parsed(line)
            if event is not None:
                points = event.get("points")
                size += 1 + (len(points) if isinstance(points, list) else 0)
                batched = all(one["event"] in BATCHED and one["run"] == event["run"] for one in (*group[:1], event))
                if group and not (batched and size <= 100):
                    break
                group.append(event)
            position += len(line)
        return group, position

    def _write_alone(self, writer: Writer, event: Event) -> None:
        try:
            writer.write([event])
        except Exception as error:
            if not is_final(error):
                raise
            self.refused.append(f"{event['event']} of {event['run']}: {reason(error)}")

    def _read_position(self) -> int:
        """0 for another server, database or experiment than the one that the position was kept for."""
        try:
            kept = json.loads(self._kept.read_text())
            position = int(kept["position"])
            fits = (not self._target or kept["target"] == self._target) and position <= self.spool.stat().st_size
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        return position if fits else 0


def refusals(refused: Sequence[str]) -> str:
    return f"MLflow did not take {plural(len(refused), 'event')}, the first: {refused[0]}"
