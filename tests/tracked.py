"""A small study, the workspaces that it is told to, and a real MLflow server: for the tests of tracking."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from scalesearch.tracking import Tracker

CANDIDATES, SEEDS = 3, 2


def record(tracker: Tracker, command: str = "run:1", *, candidates: int = CANDIDATES) -> None:
    """A small study: a command, its candidates, their seeds."""
    tracker.start_run(command, name="run", params={"search": "grid"}, tags={"git": "abc"}, note="**chosen** so far")
    for number in range(candidates):
        candidate = f"{command}:c{number:02d}"
        params = {"alpha": 1.0 + number / 10, "beta": 1.1, "gamma": 1}
        tracker.start_run(candidate, name=f"c{number:02d}", parent=command, params=params)
        for seed in range(SEEDS):
            name = f"{candidate}:seed{seed}"
            tracker.start_run(name, name=f"seed {seed}", parent=candidate, params={"seed": seed})
            tracker.log_curve(name, [{"epoch": epoch, "loss": 1 / (epoch + 1)} for epoch in range(5)])
            tracker.log_metrics(name, {"val_accuracy": 0.5 + number / 100 + seed / 1000})
            tracker.end_run(name, "FINISHED")
        tracker.log_metrics(candidate, {"val_accuracy": 0.5 + number / 100, "val_accuracy_std": float("nan")})
        tracker.end_run(candidate, "FAILED" if number == 2 else "FINISHED")
    tracker.end_run(command, "FINISHED")


def client_of(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def logged(uri: str, study: str) -> dict[str, Any]:
    """Everything that MLflow shows of a study, by our ids; fails on a run that is there twice."""
    client = client_of(uri)
    experiment = client.get_experiment_by_name(study)
    runs = client.search_runs([experiment.experiment_id], max_results=5000)
    names = {run.info.run_id: run.data.tags["scalesearch.id"] for run in runs}
    assert len(set(names.values())) == len(names), "a run is there twice"
    return {
        names[run.info.run_id]: {
            "name": run.info.run_name,
            "status": run.info.status,
            "parent": names.get(run.data.tags.get("mlflow.parentRunId")),
            "params": run.data.params,
            "points": sorted(
                (key, point.step, repr(point.value), point.timestamp)
                for key in run.data.metrics
                for point in client.get_metric_history(run.info.run_id, key)
            ),
        }
        for run in runs
    }


def run_of(uri: str, study: str, run_id: str) -> Any:
    client = client_of(uri)
    experiment = client.get_experiment_by_name(study)
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`scalesearch.id` = '{run_id}'")
    return run


class Place:
    """A workspace, and where its MLflow is."""

    def __init__(self, workspace: Path, uri: str | None = None) -> None:
        self.workspace = workspace
        self.uri = uri if uri is not None else f"sqlite:///{workspace / 'mlflow.db'}"

    def settings(self, study: str) -> dict[str, Any]:
        return {"uri": self.uri, "workspace": self.workspace, "directory": self.directory(study)}

    def directory(self, study: str) -> Path:
        return self.workspace / "studies" / study

    def tracker(self, study: str, **more: Any) -> Tracker:
        return Tracker(**self.settings(study), **more)


class Server:
    """A real tracking server of MLflow on 127.0.0.1, that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        wait_for(self.healthy)

    def healthy(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5):
            return True
        return False

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def wait_for(condition: Any, timeout: float = 60.0) -> None:
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


def position(directory: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return int(json.loads((directory / "tracking.position").read_text())["position"])
    return 0


def without_times(shown: dict[str, Any]) -> dict[str, Any]:
    return {name: {**run, "points": [point[:3] for point in run["points"]]} for name, run in shown.items()}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
