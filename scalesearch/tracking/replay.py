"""The other end of the spool: a client of MLflow that replays it in order, from where the last one came to."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import tempfile
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalesearch.tracking.connection import (
    artifacts,
    connected,
    hide_password,
    is_http,
    lock,
    reachable,
    reason,
    resolved,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

Event = dict[str, Any]


def sync(*, uri: str | None, workspace: Path, study: str, directory: Path, rebuild: bool = False) -> int:
    """How many events were replayed: those that wait, or with `rebuild` all of the study's spool.

    Raises:
        ValueError: the study has no spool.
        OSError: MLflow cannot be reached, or another process replays this study just now.
    """
    replay = Replay(uri, workspace, study, directory)
    if not replay.spool.exists():
        raise ValueError(f"nothing was recorded for study '{study}' ({replay.spool} is missing); run it first")
    with replay:
        replayed = 0
        try:
            replay.connect()
            if rebuild:
                replay.position = 0
            while passed := replay.step():
                replayed += passed
        except Exception as error:
            waiting = count(replay.waiting())
            raise OSError(f"{reason(error)}; it still lacks {waiting} of study '{study}'") from error
    if replay.refused:
        logging.getLogger(__name__).warning(refusals(replay.refused))
    return replayed - len(replay.refused)


class Replay:
    """The other end of the spool: `step` brings the next events into MLflow and keeps the position.

    As a context manager it gives up its claim on the study at the end: one process at a time replays a study, since
    looking for a run and creating it are two steps.
    """

    def __init__(self, uri: str | None, workspace: Path, study: str, directory: Path) -> None:
        self.study = study
        self.spool = directory / "tracking.jsonl"
        self.position = 0
        self.refused: list[str] = []
        self._uri, self._workspace, self._directory = uri, workspace, directory
        self._kept = directory / "tracking.position"
        self._client: MlflowClient | None = None
        self._experiment = ""
        self._target: list[object] = []
        self._runs: dict[str, str] = {}  # the caller's id -> MLflow's
        self._claim = contextlib.ExitStack()
        self._claimed = False

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()
        self._claim.close()
        self._claimed = False

    def waiting(self) -> int:
        return sum(line.endswith(b"\n") and line != b"\n" for line in spooled(self.spool, self._read_position()))

    def connect(self) -> None:
        if not self._claimed:
            try:
                self._claim.enter_context(lock(self._directory / "tracking.lock", wait=False))
            except BlockingIOError:
                raise OSError(f"another process is sending study '{self.study}' to MLflow") from None
            self._claimed = True
        with reachable(self._uri, self._workspace):
            client = connected(self._uri, self._workspace)
            experiment = client.get_experiment_by_name(self.study)
            if experiment is None:
                served = self._uri is not None and is_http(self._uri)
                location = None if served else f"{artifacts(self._workspace)}/{urllib.parse.quote(self.study)}"
                note = f"Compound scaling search of scalesearch, study `{self.study}`."
                created = client.create_experiment(self.study, location, {"mlflow.note.content": note})
                experiment = client.get_experiment(created)
            if experiment.lifecycle_stage == "deleted":
                raise OSError(
                    f"experiment '{self.study}' was deleted in MLflow; restore it there: "
                    f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
                )
        self._client, self._experiment, self._runs = client, experiment.experiment_id, {}
        # A database that was deleted counts its experiments from 1 again: the time tells the new one from the old one.
        shown = hide_password(resolved(self._uri, self._workspace))
        self._target = [shown, experiment.experiment_id, experiment.creation_time]
        self.position = self._read_position()

    def disconnect(self) -> None:
        self._client = None

    def step(self) -> int:
        """How many events were passed on, 0 when none waits; a transient failure is raised, and nothing was passed."""
        group, end = self._next()
        if end == self.position:
            return 0
        if self._client is None:
            self.connect()
            group, end = self._next()
        try:
            if group:
                self._apply(group)
        except Exception as error:
            code = getattr(error, "error_code", "")
            if code == "RESOURCE_DOES_NOT_EXIST" and self._replaced():
                raise OSError("the MLflow database was replaced by another") from error
            if not _is_final(error):
                raise
            if len(group) > 1:  # find the one that MLflow does not take
                for event in group:
                    self._apply_alone(event)
            else:
                self._refuse(group[0], error)
        self.position = end
        self._write_position()
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
                size += len(event.get("points", [])) + 1
                together = event["event"] in _BATCHED and (
                    not group or (group[0]["event"] in _BATCHED and group[0]["run"] == event["run"] and size <= 100)
                )
                if group and not together:
                    break
                group.append(event)
            position += len(line)
            if group and group[0]["event"] not in _BATCHED:
                break
        return group, position

    def _apply_alone(self, event: Event) -> None:
        try:
            self._apply([event])
        except Exception as error:
            if not _is_final(error):
                raise
            self._refuse(event, error)

    def _refuse(self, event: Event, error: Exception) -> None:
        self.refused.append(f"{event['event']} of {event['run']}: {reason(error)}")

    def _replaced(self) -> bool:
        before = self._target
        self.connect()
        return self._target != before

    def _apply(self, group: Sequence[Event]) -> None:
        event, *_ = group
        match event["event"]:
            case "start":
                self._start(event)
            case "metrics" | "params" | "tags":
                self._log_batch(group)
            case "dataset":
                self._log_dataset(event)
            case "artifact":
                self._log_artifact(event["run"], event["path"], event["folder"])
            case "model":
                self._log_model(event)
            case "end":
                self._connected.set_terminated(self._run(event["run"]), event["status"], event["time"])
            case other:
                raise ValueError(f"the event '{other}' is unknown to this version of scalesearch")

    @property
    def _connected(self) -> MlflowClient:
        assert self._client is not None
        return self._client

    def _start(self, event: Event) -> None:
        from mlflow.entities import Param

        if self._find(event["run"]) is None:
            tags = {**event["tags"], "scalesearch.id": event["run"]}
            if event["parent"] is not None:
                tags["mlflow.parentRunId"] = self._run(event["parent"])
            run = self._connected.create_run(self._experiment, event["time"], tags, event["name"])
            self._runs[event["run"]] = run.info.run_id
        params = [Param(key, value) for key, value in event["params"].items()]
        self._connected.log_batch(self._run(event["run"]), params=params)

    def _run(self, run_id: str) -> str:
        found = self._find(run_id)
        if found is None:
            raise ValueError(f"MLflow has no run '{run_id}'")
        return found

    def _find(self, run_id: str) -> str | None:
        from mlflow.entities import ViewType

        if run_id not in self._runs:
            # Those that the user deleted as well: they are not brought back.
            found = self._connected.search_runs(
                [self._experiment],
                f"tags.`scalesearch.id` = '{run_id}'",
                run_view_type=ViewType.ALL,
                max_results=1,
                order_by=["attributes.start_time ASC"],
            )
            if not found:
                return None
            self._runs[run_id] = found[0].info.run_id
        return self._runs[run_id]

    def _log_batch(self, group: Sequence[Event]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        metrics = [
            Metric(key, value, event["time"], step)
            for event in group
            for step, values in event.get("points", [])
            for key, value in values.items()
        ]
        params = {key: value for event in group for key, value in event.get("params", {}).items()}
        tags = {key: value for event in group for key, value in event.get("tags", {}).items()}
        # The client cuts this into requests of the size that MLflow allows.
        self._connected.log_batch(
            self._run(group[0]["run"]),
            metrics,
            [Param(key, value) for key, value in params.items()],
            [RunTag(key, value) for key, value in tags.items()],
        )

    def _log_dataset(self, event: Event) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        # Through the client: `mlflow.log_input` works on the global active run.
        dataset = Dataset(
            name=event["name"],
            digest=event["digest"][:36],
            source_type="local",
            source=json.dumps({"uri": event["source"]}),
            profile=json.dumps(event["profile"]),
        )
        used = DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])
        self._connected.log_inputs(self._run(event["run"]), [used])

    def _log_artifact(self, run_id: str, path: str, folder: str) -> None:
        self._connected.log_artifact(self._run(run_id), str(self._existing(path)), folder or None)

    def _existing(self, path: str) -> Path:
        found = self._workspace / path  # an absolute path stays as it is
        if not found.exists():
            raise ValueError(f"{found} is gone")
        return found

    def _log_model(self, event: Event) -> None:
        import numpy as np
        from mlflow import pyfunc
        from mlflow.models import Model, ModelSignature
        from mlflow.types import Schema, TensorSpec

        client, run = self._connected, self._run(event["run"])
        files = [self._existing(path) for path in event["files"]]
        digest = _digest(files)
        float32 = np.dtype(np.float32)
        signature = ModelSignature(
            inputs=Schema([TensorSpec(float32, (-1, *event["input"]))]),
            outputs=Schema([TensorSpec(float32, (-1, *event["output"]))]),
        )
        model = Model(artifact_path="model", run_id=run, signature=signature, metadata={"scalesearch.digest": digest})
        pyfunc.add_to_model(model, loader_module="scalesearch.tracking", data=digest[:16])
        with tempfile.TemporaryDirectory() as folder:
            model.save(str(Path(folder) / "MLmodel"))
            client.log_artifact(run, str(Path(folder) / "MLmodel"), "model")
        for file in files:
            client.log_artifact(run, str(file), f"model/{digest[:16]}")

        name = event["name"]
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name, description=f"The chosen variant of study `{self.study}`.")
        versions = client.search_model_versions(f"name = '{name}'")
        if not any(version.tags.get("scalesearch.digest") == digest for version in versions):
            source = f"{client.get_run(run).info.artifact_uri}/model"
            tags = {"scalesearch.digest": digest, "scalesearch.run": event["run"]}
            client.create_model_version(name, source, run, tags, await_creation_for=0)

    def _read_position(self) -> int:
        """0 for another server, database or experiment than the one that the position was kept for."""
        try:
            kept = json.loads(self._kept.read_text())
            position = int(kept["position"])
            fits = (not self._target or kept["target"] == self._target) and position <= self.spool.stat().st_size
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        return position if fits else 0

    def _write_position(self) -> None:
        temporary = self._kept.with_suffix(".position.new")
        temporary.write_text(json.dumps({"target": self._target, "position": self.position}))
        temporary.replace(self._kept)  # no fsync: after a power cut an older position only means replaying more


_BATCHED = ("metrics", "params", "tags")
# What MLflow answers when the request can never succeed; everything else may pass, and waits. BAD_REQUEST is not among
# them: MLflow says so of most troubles with its database too.
_FINAL = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE", "MALFORMED_REQUEST")


def _is_final(error: Exception) -> bool:
    code = getattr(error, "error_code", None)
    if code is not None:
        return code in _FINAL
    # A JSONDecodeError is a proxy's page instead of MLflow's answer.
    return isinstance(error, (ValueError, TypeError, KeyError)) and not isinstance(
        error, (OSError, json.JSONDecodeError)
    )


def spooled(path: Path, position: int) -> Iterator[bytes]:
    """The lines from a position, each with its end; the last one lacks it while it is written."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(position)
        yield from file


def parsed(line: bytes) -> Event | None:
    """None for what a killed driver left of a line."""
    with contextlib.suppress(ValueError):
        event = json.loads(line)
        if isinstance(event, dict) and {"event", "run", "time"} <= event.keys():
            return event
    return None


def count(events: int) -> str:
    return f"{events} event{'' if events == 1 else 's'}"


def refusals(refused: Sequence[str]) -> str:
    return f"MLflow did not take {count(len(refused))}, the first: {refused[0]}"


def _digest(files: Sequence[Path]) -> str:
    """SHA-256 over the SHA-256 of each file: names do not count."""
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            whole.update(hashlib.file_digest(content, "sha256").digest())
    return whole.hexdigest()
