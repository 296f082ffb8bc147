"""What MLflow shows of a study, and the pages and models that it serves."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tracked import CANDIDATES, SEEDS, Place, client_of, free_port, logged, record, run_of

from scalesearch import tracking

# MLflow's own: it leaves sqlite connections and sockets to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.xdist_group("tracking"),  # they share a database
    pytest.mark.usefixtures("unsynced_sqlite"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def tracked(place: Place) -> dict[str, Any]:
    """The small study in sqlite, as MLflow shows it."""
    tracker = place.tracker("small")
    record(tracker)
    assert tracker.close() is None
    return logged(place.uri, "small")


def test_a_command_has_candidates_and_these_have_seeds(tracked: dict[str, Any]) -> None:
    parents = {run_id: run["parent"] for run_id, run in tracked.items()}
    expected: dict[str, str | None] = {"run:1": None}
    for number in range(CANDIDATES):
        expected[f"run:1:c{number:02d}"] = "run:1"
        expected |= {f"run:1:c{number:02d}:seed{seed}": f"run:1:c{number:02d}" for seed in range(SEEDS)}
    assert parents == expected


def test_each_candidate_has_the_same_params_as_numbers(tracked: dict[str, Any]) -> None:
    candidates = [run["params"] for run_id, run in tracked.items() if run_id.count(":") == 2]
    assert {tuple(sorted(params)) for params in candidates} == {("alpha", "beta", "gamma")}
    assert all(float(value) >= 1 for params in candidates for value in params.values())


def test_metrics_curves_names_and_states_arrive(tracked: dict[str, Any]) -> None:
    run = tracked["run:1:c01:seed1"]
    assert [(key, step, value) for key, step, value, _ in run["points"]] == [
        *[("loss", epoch, repr(1 / (epoch + 1))) for epoch in range(5)],
        ("val_accuracy", 0, repr(0.511)),
    ]
    assert run["name"] == "seed 1"
    assert tracked["run:1:c02"]["status"] == "FAILED"
    assert tracked["run:1"]["status"] == "FINISHED"
    assert [value for key, _, value, _ in tracked["run:1:c00"]["points"] if key == "val_accuracy_std"] == ["nan"]


def test_note_and_tags_are_on_the_command(place: Place, tracked: dict[str, Any]) -> None:
    tags = run_of(place.uri, "small", "run:1").data.tags
    assert tags["mlflow.note.content"] == "**chosen** so far"
    assert tags["git"] == "abc"
    assert tags["mlflow.source.name"] == "scalesearch"


def test_links_are_complete(place: Place, tracked: dict[str, Any]) -> None:
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
    run = logged(place.uri, "long")["run:1"]
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


def in_directory(place: Place, study: str, files: Sequence[Path]) -> list[Path]:
    """Copies in the study's own directory: a spool sends no others."""
    place.directory(study).mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copy(file, place.directory(study))) for file in files]


@contextlib.contextmanager
def ended_on_failure(process: subprocess.Popen[str]) -> Iterator[None]:
    """Else leaving `Popen` waits for a server that nobody ends, and the failure is never seen."""
    try:
        yield
    except BaseException:
        process.terminate()
        raise


def test_dataset_artifacts_and_model_arrive(
    place: Place, variant: tuple[Path, Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    import torch

    yaml_file, weights, module = variant
    yaml_file, weights = in_directory(place, "model", (yaml_file, weights))
    figures = place.directory("model") / "figures"
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


def test_ui_shows_links_takes_what_waited_and_models_and_ends_with_all_its_processes(
    place: Place, tracked: dict[str, Any], variant: tuple[Path, Path, Any], tmp_path: Path
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
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, ended_on_failure(process):
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert [line.split(": ")[0] for line in lines] == [
            "small, all runs",
            "small, newest command",
            "small, its candidates compared",
        ]
        assert all(f": http://127.0.0.1:{port}/#/" in line for line in lines)
        assert logged(served.uri, "small") == tracked
        yaml_file, weights = in_directory(served, "served", variant[:2])
        shapes = {"input_shape": (1, 8, 8), "output_shape": (5,)}
        tracker.start_run("run:2", name="run")
        tracker.log_model("run:2", name="served", variant=yaml_file, weights=weights, **shapes)
        assert tracker.close() is None
        (version,) = client_of(served.uri).search_model_versions("name = 'served'")
        assert version.run_id == run_of(served.uri, "served", "run:2").info.run_id
        assert logged(served.uri, "served").keys() == tracked.keys() | {"run:2"}
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
