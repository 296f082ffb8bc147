"""What `train`, `reproduce` and `fidelity` record in MLflow, in a real database, read back with its client."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import planted
import pytest
from planted import STUDY, Place, of_table
from tracked import client_of, logged

# MLflow's own: it leaves sqlite connections to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.xdist_group("studies"),  # they share what was searched
    pytest.mark.usefixtures("unsynced_sqlite"),
]
call, searched, place = planted.call, planted.searched, planted.place
TRAIN = (
    *("train", "baseline=mobilenetv2", "proxy=small", "data=digits", "data.num_train=64", "data.num_val=64"),
    *("recipe.epochs=1", "recipe.seeds=2", "recipe.batch_size=32", "recipe.autocast=off", "--json"),
)
FIGURE4 = (
    *("reproduce", "figure4", "experiment.widths=[1,1.4]", "experiment.curves=[[1,1],[2,1]]", "data.num_train=128"),
    *("data.num_val=128", "recipe.epochs=1", "recipe.seeds=1", "recipe.batch_size=64", "recipe.autocast=off", "--json"),
)


def uri(workspace: Path) -> str:
    return f"sqlite:///{workspace / 'mlflow.db'}"


def artifacts(workspace: Path, name: str, prefix: str) -> set[str]:
    """Names of the files attached to the run whose id begins with `prefix`."""
    client = client_of(uri(workspace))
    experiment = client.get_experiment_by_name(name)
    (run,) = [
        run
        for run in client.search_runs([experiment.experiment_id])
        if run.data.tags["scalesearch.id"].startswith(prefix) and "mlflow.parentRunId" not in run.data.tags
    ]
    return {file.path for file in client.list_artifacts(run.info.run_id)}


def by_level(runs: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """(the command's only run, its networks', their seeds')."""
    ((parent, command),) = [(name, run) for name, run in runs.items() if run["parent"] is None]
    networks = {name: run for name, run in runs.items() if run["parent"] == parent}
    return command, list(networks.values()), [run for run in runs.values() if run["parent"] in networks]


def points(run: dict[str, Any], name: str) -> list[float]:
    return [float(value) for key, _, value, _ in run["points"] if key == name]


@pytest.mark.usefixtures("in_this_process")
def test_a_training_is_a_run_with_its_seeds(command: Callable[..., Any], tmp_path: Path) -> None:
    ended = command(*TRAIN, f"workspace={tmp_path}")
    assert ended.code == 8, ended.output  # in two steps nothing is learnt
    parent, networks, seeds = by_level(logged(uri(tmp_path), "trainings"))
    assert parent["status"] == "FINISHED"
    assert {key: parent["params"][key] for key in ("network", "seeds", "recipe.epochs")} == {
        "network": ended.answer["name"],
        "seeds": "2",
        "recipe.epochs": "1",
    }
    assert points(parent, "val_accuracy_mean") == [ended.answer["val_accuracy_mean"]]
    assert [run["status"] for run in (*networks, *seeds)] == ["FINISHED"] * 3
    assert points(networks[0], "macs") == [ended.answer["macs"]]
    found = sorted(points(run, "val_accuracy")[-1] for run in seeds)
    assert found == sorted(row["val_accuracy"] for row in ended.answer["seeds"])
    assert artifacts(tmp_path, "trainings", "train:") == {"environment-train.json"}

    again = command(*TRAIN, f"workspace={tmp_path}", "test=true")
    assert again.answer["evaluations"]["trained"] == 0
    parents = [run for run in logged(uri(tmp_path), "trainings").values() if run["parent"] is None]
    assert sorted(points(run, "test_accuracy") for run in parents) == [[], [again.answer["test_accuracy"]["mean"]]]


@pytest.mark.usefixtures("in_this_process")
def test_an_experiment_is_a_run_with_its_points_and_what_waits_is_sent_by_name(
    command: Callable[..., Any], tmp_path: Path
) -> None:
    ended = command(*FIGURE4, f"workspace={tmp_path}", "tracking=none")
    assert ended.code in (0, 8), ended.output  # two steps need not have learnt anything
    assert not (tmp_path / "mlflow.db").exists()
    assert command("sync", f"workspace={tmp_path}").code == 0, "the only one that has records"
    parent, networks, seeds = by_level(logged(uri(tmp_path), "figure4"))
    assert (parent["name"], parent["status"]) == ("reproduce figure4", "FINISHED")
    assert len(networks) == len(seeds) == 4
    assert {run["params"]["curve"] for run in networks} == {row["curve"] for row in ended.answer["summary"]}
    assert all(points(run, "val_accuracy") for run in seeds)
    attached = artifacts(tmp_path, "figure4", "reproduce:")
    assert attached >= {"results.csv", "summary.csv", "finding.json", "README.md", "figure4.png", "figure4.svg"}


def test_an_experiment_that_trains_nothing_is_a_run_too(command: Callable[..., Any], tmp_path: Path) -> None:
    assert command("reproduce", "b_series", f"workspace={tmp_path}").code == 0
    parent, networks, seeds = by_level(logged(uri(tmp_path), "b_series"))
    assert (parent["status"], networks, seeds) == ("FINISHED", [], [])
    assert "summary.csv" in artifacts(tmp_path, "b_series", "reproduce:")


def test_fidelity_is_a_run_of_the_study(place: Place) -> None:
    before = (place.study / "environment.json").read_bytes()
    ended = place.gives("reproduce", "fidelity", "candidates=3", "seeds=2", "tracking=mlflow")
    assert ended.code == 0, ended.output
    runs = logged(uri(place.workspace), STUDY)
    (parent,) = [name for name in runs if name.startswith("fidelity:") and runs[name]["parent"] is None]
    networks = {name: run for name, run in runs.items() if run["parent"] == parent}
    assert {run["name"] for run in networks.values()} == set(of_table(ended.answer["fidelity"]).index)
    assert runs[parent]["status"] == "FINISHED"
    attached = artifacts(place.workspace, STUDY, "fidelity:")
    assert attached == {"environment-fidelity.json", "fidelity.json", "fidelity-epochs-4.csv"}
    assert (place.study / "environment.json").read_bytes() == before, "that of the study's own trainings"


@pytest.mark.usefixtures("in_this_process")
def test_the_same_training_has_one_driver_at_a_time(command: Callable[..., Any], tmp_path: Path) -> None:
    from scalesearch.ledger import lock_study

    assert command(*TRAIN, f"workspace={tmp_path}", "tracking=none").code == 8
    (directory,) = (tmp_path / "trainings").iterdir()
    with lock_study(directory):
        assert command(*TRAIN, f"workspace={tmp_path}", "tracking=none").code == 6


def test_a_training_that_is_ended_is_killed_in_mlflow_too(tmp_path: Path) -> None:
    words = [word for word in TRAIN if "epochs" not in word and word != "--json"]
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("scalesearch")), *words, "recipe.epochs=500", f"workspace={tmp_path}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "multiply-adds" in line:
            process.send_signal(signal.SIGTERM)
            break
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143, output
    command = [str(Path(sys.executable).with_name("scalesearch")), "sync", f"workspace={tmp_path}"]
    subprocess.run(command, check=True, capture_output=True)
    parent, networks, _ = by_level(logged(uri(tmp_path), "trainings"))
    assert parent["status"] == "KILLED"
    assert networks == []
