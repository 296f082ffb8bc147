from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from scalesearch import tracking
from scalesearch.tracking import Tracker
from scalesearch.tracking.replay import Replay

# MLflow's own: it leaves sqlite connections and sockets to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.xdist_group("tracking"),  # they share a database
    pytest.mark.usefixtures("unsynced_sqlite"),
]

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


def seen(uri: str, study: str) -> dict[str, Any]:
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
        return {"uri": self.uri, "workspace": self.workspace, "study": study, "directory": self.directory(study)}

    def directory(self, study: str) -> Path:
        return self.workspace / "studies" / study

    def tracker(self, study: str, **more: Any) -> Tracker:
        return Tracker(**self.settings(study), **more)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def told(place: Place) -> dict[str, Any]:
    """The small study in sqlite, as MLflow shows it."""
    tracker = place.tracker("small")
    record(tracker)
    assert tracker.close() is None
    return seen(place.uri, "small")


def test_a_command_has_candidates_and_these_have_seeds(told: dict[str, Any]) -> None:
    parents = {run_id: run["parent"] for run_id, run in told.items()}
    expected: dict[str, str | None] = {"run:1": None}
    for number in range(CANDIDATES):
        expected[f"run:1:c{number:02d}"] = "run:1"
        expected |= {f"run:1:c{number:02d}:seed{seed}": f"run:1:c{number:02d}" for seed in range(SEEDS)}
    assert parents == expected


def test_each_candidate_has_the_same_params_as_numbers(told: dict[str, Any]) -> None:
    candidates = [run["params"] for run_id, run in told.items() if run_id.count(":") == 2]
    assert {tuple(sorted(params)) for params in candidates} == {("alpha", "beta", "gamma")}
    assert all(float(value) >= 1 for params in candidates for value in params.values())


def test_metrics_curves_names_and_states_arrive(told: dict[str, Any]) -> None:
    run = told["run:1:c01:seed1"]
    assert [(key, step, value) for key, step, value, _ in run["points"]] == [
        *[("loss", epoch, repr(1 / (epoch + 1))) for epoch in range(5)],
        ("val_accuracy", 0, repr(0.511)),
    ]
    assert run["name"] == "seed 1"
    assert told["run:1:c02"]["status"] == "FAILED"
    assert told["run:1"]["status"] == "FINISHED"
    assert [value for key, _, value, _ in told["run:1:c00"]["points"] if key == "val_accuracy_std"] == ["nan"]


def test_note_and_tags_are_on_the_command(place: Place, told: dict[str, Any]) -> None:
    tags = run_of(place.uri, "small", "run:1").data.tags
    assert tags["mlflow.note.content"] == "**chosen** so far"
    assert tags["git"] == "abc"
    assert tags["mlflow.source.name"] == "scalesearch"


def test_replaying_all_again_changes_nothing(place: Place, told: dict[str, Any]) -> None:
    spool = place.directory("small") / "tracking.jsonl"
    events = len(spool.read_text().splitlines())
    assert tracking.sync(**place.settings("small")) == 0
    assert tracking.sync(**place.settings("small"), rebuild=True) == events
    (place.directory("small") / "tracking.position").unlink()
    assert tracking.sync(**place.settings("small")) == events
    assert seen(place.uri, "small") == told


def test_links_are_complete(place: Place, told: dict[str, Any]) -> None:
    found = tracking.links(uri=place.uri, workspace=place.workspace, study="small", base="http://127.0.0.1:5000")
    experiment = client_of(place.uri).get_experiment_by_name("small").experiment_id
    runs = f"http://127.0.0.1:5000/#/experiments/{experiment}/runs"
    assert found["runs"] == f"{runs}?workflowType=machine_learning"
    assert found["parent"] == f"{runs}/{run_of(place.uri, 'small', 'run:1').info.run_id}"
    query = urllib.parse.unquote(found["compare"].split("?")[1])
    compared = json.loads(query.split("&")[0].removeprefix("runs="))
    assert compared == [run_of(place.uri, "small", f"run:1:c{n:02d}").info.run_id for n in range(CANDIDATES)]
    with pytest.raises(ValueError, match=r"knows no study 'other'; known: .*small"):
        tracking.links(uri=place.uri, workspace=place.workspace, study="other")


def test_long_curves_arrive_whole(place: Place) -> None:
    tracker = place.tracker("long")
    tracker.start_run("run:1", name="run", params={f"p{n}": n for n in range(230)})
    tracker.log_curve("run:1", [{"loss": float(n), "accuracy": 0.5} for n in range(1200)])
    assert tracker.close() is None
    run = seen(place.uri, "long")["run:1"]
    assert len(run["points"]) == 2400
    assert len(run["params"]) == 230


NETWORK = {
    "stem": {"block": "conv_norm", "channels": 8, "kernel": 3, "stride": 2},
    "stages": [{"block": "mbconv", "channels": 8, "expand": 2}],
    "head": {"block": "conv_norm", "channels": 16, "kernel": 1},
    "resolution": 8,
    "num_classes": 5,
    "in_channels": 1,
    "activation": "relu",
}


@pytest.fixture(scope="module")
def variant(place: Place) -> tuple[Path, Path, Any]:
    """A variant's YAML, its weights, and the module with them."""
    import torch
    from safetensors.torch import save_model

    from scalesearch import model, network

    folder = place.directory("model") / "variants"
    folder.mkdir(parents=True)
    (folder / "chosen.yaml").write_text(yaml.safe_dump(NETWORK))
    torch.manual_seed(0)
    module = model.build(network.load(folder / "chosen.yaml")).eval()
    save_model(module, str(folder / "chosen.safetensors"))
    return folder / "chosen.yaml", folder / "chosen.safetensors", module


def test_dataset_artifacts_and_model_arrive(
    place: Place, variant: tuple[Path, Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    import torch

    yaml_file, weights, module = variant
    figures = tmp_path / "figures"
    figures.mkdir()
    (figures / "one.svg").write_text("<svg/>")
    for command in ("run:1", "run:2", "run:3"):
        if command == "run:3":
            yaml_file.write_text(yaml_file.read_text() + "# changed\n")
        tracker = place.tracker("model")
        tracker.start_run(command, name="run")
        profile = {"num_train": 100}
        tracker.log_dataset(command, name="digits", digest="d" * 64, source="sklearn", profile=profile)
        tracker.log_artifact(command, yaml_file, "variants")
        tracker.log_artifact(command, figures)
        shapes = {"input_shape": (1, 8, 8), "output_shape": (5,)}
        tracker.log_model(command, name="model", variant=yaml_file, weights=weights, **shapes)
        tracker.end_run(command)
        assert tracker.close() is None

    run = run_of(place.uri, "model", "run:1")
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("digits", "d" * 36)
    client = client_of(place.uri)
    assert [file.path for file in client.list_artifacts(run.info.run_id, "variants")] == ["variants/chosen.yaml"]
    assert [file.path for file in client.list_artifacts(run.info.run_id, "figures")] == ["figures/one.svg"]
    versions = client.search_model_versions("name = 'model'")
    third = run_of(place.uri, "model", "run:3").info.run_id
    found = sorted((version.version, version.run_id) for version in versions)
    assert found == [(1, run.info.run_id), (2, third)], "a new version only for new files"

    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.uri)
    signature = mlflow.models.get_model_info("models:/model/1").signature.to_dict()
    assert [json.loads(signature[side])[0]["tensor-spec"] for side in ("inputs", "outputs")] == [
        {"dtype": "float32", "shape": [-1, 1, 8, 8]},
        {"dtype": "float32", "shape": [-1, 5]},
    ]
    logits = mlflow.pyfunc.load_model("models:/model/1").predict(np.ones((2, 1, 8, 8), np.float32))
    with torch.inference_mode():
        np.testing.assert_allclose(logits, module(torch.ones(2, 1, 8, 8)).numpy(), rtol=1e-5)
    stored = place.workspace / "mlartifacts" / "model" / run.info.run_id / "artifacts" / "model"
    assert not [file for file in stored.rglob("*") if file.suffix in (".pkl", ".pickle", ".pth")]


def test_runs_of_a_killed_command_are_ended(place: Place) -> None:
    first = place.tracker("interrupted")
    first.start_run("run:1", name="run")
    first.start_run("run:1:c00", name="c00", parent="run:1")
    first.start_run("run:1:c01", name="c01", parent="run:1")
    first.end_run("run:1:c01")
    assert first.close() is None
    assert {run["status"] for run in seen(place.uri, "interrupted").values()} == {"RUNNING", "FINISHED"}

    second = place.tracker("interrupted")
    second.start_run("run:2", name="run")
    assert second.close() is None
    states = {run_id: run["status"] for run_id, run in seen(place.uri, "interrupted").items()}
    assert states == {"run:1": "KILLED", "run:1:c00": "KILLED", "run:1:c01": "FINISHED", "run:2": "RUNNING"}


def test_a_line_torn_by_a_kill_harms_no_other(place: Place) -> None:
    first = place.tracker("torn", replay=False)
    first.start_run("run:1", name="run")
    first.close()
    with (place.directory("torn") / "tracking.jsonl").open("ab") as spool:
        spool.write(b'{"event": "metrics", "run": "run:1", "ti')
    second = place.tracker("torn")
    second.start_run("run:2", name="run")
    assert second.close() is None
    assert set(seen(place.uri, "torn")) == {"run:1", "run:2"}


def test_what_mlflow_does_not_take_is_told_and_the_rest_arrives(place: Place, tmp_path: Path) -> None:
    tracker = place.tracker("refused")
    tracker.start_run("run:1", name="run", params={"a": 1})
    tracker.log_params("run:1", {"a": 2})
    tracker.log_metrics("run:1", {"right": 1.0})
    tracker.log_metrics("run:1", {"wrong=": 1.0})
    tracker.log_metrics("run:1", {"right": 2.0}, step=1)
    tracker.log_artifact("run:1", tmp_path / "never_written")
    tracker.end_run("run:1")
    sentence = tracker.close()
    assert sentence is not None
    assert sentence.startswith("MLflow did not take 3 events, the first: params of run:1: ")
    run = seen(place.uri, "refused")["run:1"]
    assert [value for _, _, value, _ in run["points"]] == ["1.0", "2.0"]
    assert run["status"] == "FINISHED"


def test_without_replay_mlflow_learns_of_it_by_sync(place: Place) -> None:
    tracker = place.tracker("later", replay=False)
    record(tracker)
    assert tracker.close() is None
    assert client_of(place.uri).get_experiment_by_name("later") is None
    assert tracking.sync(**place.settings("later")) > 0
    assert len(seen(place.uri, "later")) == 1 + CANDIDATES * (1 + SEEDS)
    with pytest.raises(ValueError, match="nothing was recorded for study 'never'"):
        tracking.sync(**place.settings("never"))


def test_one_process_at_a_time_replays_a_study(place: Place) -> None:
    tracker = place.tracker("shared")
    tracker.start_run("run:1", name="run")
    wait_for(lambda: position(place.directory("shared")) > 0)
    with pytest.raises(OSError, match="another process is sending study 'shared'"):
        tracking.sync(**place.settings("shared"))
    assert tracker.close() is None
    assert tracking.sync(**place.settings("shared")) == 0


def test_a_deleted_experiment_is_named(place: Place) -> None:
    tracker = place.tracker("deleted")
    tracker.start_run("run:1", name="run")
    assert tracker.close() is None
    client = client_of(place.uri)
    client.delete_experiment(client.get_experiment_by_name("deleted").experiment_id)
    again = place.tracker("deleted")
    again.end_run("run:1")
    sentence = again.close()
    assert sentence is not None
    assert "experiment 'deleted' was deleted in MLflow; restore it there" in sentence


def test_a_new_database_gets_everything_and_two_studies_may_create_it_at_once(place: Place, tmp_path: Path) -> None:
    """Also that a command's screen stays clean, and that nothing is left to say."""
    code = """if True:
        import sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[3])
        from test_tracking import Place, record
        tracker = Place(Path(sys.argv[1])).tracker(sys.argv[2])
        record(tracker)
        raise SystemExit(tracker.close())
    """
    command = [sys.executable, "-c", code, str(tmp_path), "one", str(Path(__file__).parent)]
    new = Place(tmp_path)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: list(tmp_path.glob(".mlflow.db.*.new")) or process.poll() is not None)
        tracker = new.tracker("two")
        record(tracker)
        assert tracker.close() is None
        assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0
    for study in ("one", "two"):
        assert len(seen(new.uri, study)) == 1 + CANDIDATES * (1 + SEEDS)
    # Another database that lacks the study: the kept position no longer counts.
    moved = Place(tmp_path, place.uri)
    assert tracking.sync(**moved.settings("one")) > 0
    assert seen(moved.uri, "one") == seen(new.uri, "one")


@pytest.mark.parametrize(("candidates", "parts"), [(5, [0.3]), pytest.param(12, [0.02, 0.5], marks=pytest.mark.slow)])
def test_a_replay_that_is_killed_gives_each_run_once(place: Place, candidates: int, parts: list[float]) -> None:
    study = f"killed{candidates}"
    tracker = place.tracker(study, replay=False)
    record(tracker, candidates=candidates)
    tracker.close()
    directory = place.directory(study)
    code = """if True:
        import sys
        from pathlib import Path
        from scalesearch import tracking
        uri, workspace, directory, study = sys.argv[1:]
        tracking.sync(uri=uri, workspace=Path(workspace), study=study, directory=Path(directory))
    """
    total = (directory / "tracking.jsonl").stat().st_size
    for part in parts:
        command = [sys.executable, "-c", code, place.uri, str(place.workspace), str(directory), study]
        process = subprocess.Popen(command)
        wait_for(lambda part=part: position(directory) > part * total)
        process.kill()
        process.wait()
    assert position(directory) < total
    assert tracking.sync(**place.settings(study)) > 0
    killed = seen(place.uri, study)
    whole = place.tracker(f"whole{candidates}")
    record(whole, candidates=candidates)
    assert whole.close() is None
    assert without_times(killed) == without_times(seen(place.uri, f"whole{candidates}"))


def test_a_server_that_never_answers_leaves_all_to_be_sent_later(tmp_path: Path) -> None:
    place = Place(tmp_path, f"http://127.0.0.1:{free_port()}")
    tracker = place.tracker("lonely")
    tracker.start_run("run:1", name="run")
    for step in range(999):
        tracker.log_metrics("run:1", {"loss": 1.0}, step=step)
    sentence = tracker.close(timeout=8)
    assert sentence is not None
    assert sentence.startswith("MLflow still lacks 1000 events (MLflow at http://127.0.0.1:")
    assert sentence.endswith("'scalesearch sync study=lonely' sends what waits")
    with pytest.raises(
        OSError, match="cannot be reached: connection refused; it still lacks 1000 events of study 'lonely'"
    ):
        tracking.sync(**place.settings("lonely"))


def test_a_connection_that_breaks_in_mid_run_loses_and_repeats_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = place.tracker("broken", replay=False)
    record(tracker)
    tracker.close()
    apply, calls, breaks = Replay._apply, 0, 0

    def breaking(replay: Replay, group: Any) -> None:
        """Every third time MLflow is not reached, and every fifth time its answer is lost."""
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise ConnectionError("refused")
        apply(replay, group)
        if calls % 5 == 0:
            raise ConnectionError("no answer")

    monkeypatch.setattr(Replay, "_apply", breaking)
    for _ in range(100):
        try:
            tracking.sync(**place.settings("broken"))
        except OSError:
            breaks += 1
        else:
            break
    assert 3 < breaks < 100
    monkeypatch.undo()
    whole = place.tracker("unbroken")
    record(whole)
    assert whole.close() is None
    assert without_times(seen(place.uri, "broken")) == without_times(seen(place.uri, "unbroken"))


@pytest.mark.slow
def test_a_server_killed_in_mid_run_loses_and_repeats_nothing(server: Server, tmp_path: Path) -> None:
    place = Place(tmp_path, server.uri)
    tracker = place.tracker("server")
    record(tracker, "run:1")
    wait_for(lambda: position(place.directory("server")) > 1500)
    server.kill()
    record(tracker, "run:2")
    server.start()
    wait_for(lambda: position(place.directory("server")) > 1500)
    tracker.start_run("run:3", name="run")
    file = tmp_path / "result.json"
    file.write_text("{}")
    tracker.log_artifact("run:3", file)
    assert tracker.close() is None
    shown = seen(server.uri, "server")
    assert len(shown) == 1 + 2 * (1 + CANDIDATES * (1 + SEEDS))
    assert all(len(run["points"]) == 6 for run_id, run in shown.items() if "seed" in run_id)
    artifacts = client_of(server.uri).list_artifacts(run_of(server.uri, "server", "run:3").info.run_id)
    assert [artifact.path for artifact in artifacts] == ["result.json"]
    assert tracking.sync(**place.settings("server"), rebuild=True) > 0
    assert seen(server.uri, "server") == shown


def test_ui_shows_links_takes_what_waited_and_models_and_ends_with_all_its_processes(
    place: Place, told: dict[str, Any], variant: tuple[Path, Path, Any], tmp_path: Path
) -> None:
    port = free_port()
    served = Place(tmp_path, f"http://127.0.0.1:{port}")
    tracker = served.tracker("served")
    record(tracker)  # before the server is there
    code = """if True:
        import sys
        from pathlib import Path
        from scalesearch import tracking
        def show(line):
            print(line, flush=True)
        where = {"workspace": Path(sys.argv[1]), "uri": None, "port": int(sys.argv[2])}
        raise SystemExit(tracking.serve(**where, study="small", show=show))
    """
    command = [sys.executable, "-c", code, str(place.workspace), str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert [line.split(": ")[0] for line in lines] == [
            "small, all runs",
            "small, newest command",
            "small, its candidates compared",
        ]
        assert all(f": http://127.0.0.1:{port}/#/" in line for line in lines)
        assert seen(served.uri, "small") == told
        yaml_file, weights, _ = variant
        shapes = {"input_shape": (1, 8, 8), "output_shape": (5,)}
        tracker.start_run("run:2", name="run")
        tracker.log_model("run:2", name="served", variant=yaml_file, weights=weights, **shapes)
        assert tracker.close() is None
        (version,) = client_of(served.uri).search_model_versions("name = 'served'")
        assert version.run_id == run_of(served.uri, "served", "run:2").info.run_id
        assert seen(served.uri, "served").keys() == told.keys() | {"run:2"}
        with pytest.raises(OSError, match=f"port {port} cannot be used; port [0-9]+ is free"):
            tracking.serve(workspace=place.workspace, uri=None, port=port)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=15) == 130
    assert children
    assert not [child for child in children if Path(f"/proc/{child}").exists()]
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_ui_without_a_database_asks_for_a_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing is logged yet .*scalesearch run"):
        tracking.serve(workspace=tmp_path, uri=None, port=free_port())
    with pytest.raises(ValueError, match=r"nothing is logged yet .*scalesearch run"):
        tracking.links(uri=None, workspace=tmp_path, study="any")


def test_passwords_are_not_shown(tmp_path: Path) -> None:
    place = Place(tmp_path, f"http://me:secret@127.0.0.1:{free_port()}")
    tracker = place.tracker("private")
    tracker.start_run("run:1", name="run")
    sentence = tracker.close(timeout=8)
    assert sentence is not None
    assert "secret" not in sentence


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


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = Server(tmp_path_factory.mktemp("server"))
    found.start()
    yield found
    found.kill()


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


def test_a_kill_while_the_database_is_made_leaves_none_that_cannot_be_opened(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from scalesearch.tracking.connection import connected; "
        f"connected(None, Path({str(tmp_path)!r}))"
    )
    maker = subprocess.Popen([sys.executable, "-c", code])
    while not list(tmp_path.glob(".mlflow.db.*.new")):
        assert maker.poll() is None, "the database was made before it could be killed"
        time.sleep(0.001)
    time.sleep(0.05)
    maker.kill()
    maker.wait()
    assert not (tmp_path / "mlflow.db").exists()

    tracker = Tracker(uri=None, workspace=tmp_path, study="study", directory=tmp_path / "studies" / "study")
    tracker.start_run("run:1", name="one")
    tracker.end_run("run:1")
    assert tracker.close() is None
    assert not list(tmp_path.glob(".mlflow.db.*.new*"))
