"""What each event of the spool is in MLflow. An event may come twice, and counts once."""

from __future__ import annotations

import hashlib
import json
import tempfile
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scalesearch.tracking.connection import Address
from scalesearch.tracking.spool import Event, check, inside
from scalesearch.workspace import TRAININGS

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

BATCHED = ("metrics", "params", "tags")  # kinds of which several of one run go in one request


def mlflow_experiment(directory: Path) -> str:
    """The experiment that a directory's records go to: one for each study, and one for all that `train` trains."""
    return TRAININGS if directory.parent.name == TRAININGS else directory.name


def experiment_of(name: str, client: MlflowClient, address: Address) -> Experiment:
    """The experiment of that name, made where there is none. Raises: OSError where it was deleted."""
    found = client.get_experiment_by_name(name)
    if found is None:
        location = None if address.server else f"{address.artifacts}/{urllib.parse.quote(name)}"
        note = f"Compound scaling search of scalesearch: `{name}`."
        found = client.get_experiment(client.create_experiment(name, location, {"mlflow.note.content": note}))
    if found.lifecycle_stage == "deleted":
        raise OSError(
            f"experiment '{name}' was deleted in MLflow; restore it there: "
            f"mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    return found


class Writer:
    """Writes events into one experiment; their runs are found again by the tag `scalesearch.id`."""

    def __init__(self, client: MlflowClient, experiment: Experiment, workspace: Path, directory: Path) -> None:
        self._client, self._experiment, self._workspace, self._directory = client, experiment, workspace, directory
        self._runs: dict[str, str] = {}  # the caller's id -> MLflow's

    def write(self, group: Sequence[Event]) -> None:
        """Several events of `BATCHED` of one run, or one of another kind. Raises: what MLflow raises."""
        for event in group:
            check(event)
        event, *_ = group
        match event["event"]:
            case "start":
                self._start(event)
            case "metrics" | "params" | "tags":
                self._log_batch(group)
            case "dataset":
                self._log_dataset(event)
            case "artifact":
                path = str(self._existing(event["path"]))
                self._client.log_artifact(self._run(event["run"]), path, event["folder"] or None)
            case "model":
                self._log_model(event)
            case "end":
                self._client.set_terminated(self._run(event["run"]), event["status"], event["time"])

    def _start(self, event: Event) -> None:
        if self._find(event["run"]) is None:
            tags = {**event["tags"], "scalesearch.id": event["run"]}
            if event["parent"] is not None:
                tags["mlflow.parentRunId"] = self._run(event["parent"])
            run = self._client.create_run(self._experiment.experiment_id, event["time"], tags, event["name"])
            self._runs[event["run"]] = run.info.run_id
        self._log_batch([{"run": event["run"], "params": event["params"]}])

    def _run(self, run_id: str) -> str:
        found = self._find(run_id)
        if found is None:
            raise ValueError(f"MLflow has no run '{run_id}'")
        return found

    def _find(self, run_id: str) -> str | None:
        from mlflow.entities import ViewType

        if run_id not in self._runs:
            found = self._client.search_runs(
                [self._experiment.experiment_id],
                f"tags.`scalesearch.id` = '{run_id}'",
                run_view_type=ViewType.ALL,  # those that the user deleted as well: they are not brought back
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
        self._client.log_batch(
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
        self._client.log_inputs(self._run(event["run"]), [used])

    def _existing(self, path: str) -> Path:
        return inside(path, self._workspace, self._directory)

    def _log_model(self, event: Event) -> None:
        import numpy as np
        from mlflow import pyfunc
        from mlflow.models import Model, ModelSignature
        from mlflow.types import Schema, TensorSpec

        client, run, name = self._client, self._run(event["run"]), event["name"]
        files = [self._existing(path) for path in event["files"]]
        digest = _digest(files)
        inputs, outputs = (
            Schema([TensorSpec(np.dtype(np.float32), (-1, *event[side]))]) for side in ("input", "output")
        )
        signature = ModelSignature(inputs=inputs, outputs=outputs)
        model = Model(artifact_path="model", run_id=run, signature=signature, metadata={"scalesearch.digest": digest})
        pyfunc.add_to_model(model, loader_module="scalesearch.tracking", data=digest[:16])
        with tempfile.TemporaryDirectory() as folder:
            model.save(str(Path(folder) / "MLmodel"))
            client.log_artifact(run, str(Path(folder) / "MLmodel"), "model")
        for file in files:
            client.log_artifact(run, str(file), f"model/{digest[:16]}")

        if not client.search_registered_models(f"name = '{name}'"):
            study = self._experiment.name
            client.create_registered_model(name, description=f"The chosen variant of study `{study}`.")
        versions = client.search_model_versions(f"name = '{name}'")
        if not any(version.tags.get("scalesearch.digest") == digest for version in versions):
            source = f"{client.get_run(run).info.artifact_uri}/model"
            tags = {"scalesearch.digest": digest, "scalesearch.run": event["run"]}
            client.create_model_version(name, source, run, tags, await_creation_for=0)


def is_final(error: Exception) -> bool:
    """Whether the request can never succeed; everything else may pass, and waits."""
    code = getattr(error, "error_code", None)
    if code is not None:  # BAD_REQUEST is not among them: MLflow answers it to most troubles with its database too
        return code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE", "MALFORMED_REQUEST")
    # A JSONDecodeError is a proxy's page instead of MLflow's answer; some of requests' errors are two of these at once.
    passing = isinstance(error, OSError | json.JSONDecodeError)
    return isinstance(error, ValueError | TypeError | KeyError) and not passing


def _digest(files: Sequence[Path]) -> str:
    """SHA-256 over the SHA-256 of each file: names do not count."""
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            whole.update(hashlib.file_digest(content, "sha256").digest())
    return whole.hexdigest()
