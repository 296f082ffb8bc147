"""`scalesearch run` as a user has it: real processes, really trained, really killed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import pandas as pd
import pytest
import yaml

from scalesearch import model
from scalesearch.cli import main
from scalesearch.cost import cost
from scalesearch.executor.pool import TRIES
from scalesearch.ledger import Ledger
from scalesearch.network import load

# MLflow's own: it leaves sqlite connections to the garbage collector, and uses what its database library gives up.
pytestmark = [
    pytest.mark.xdist_group("run"),  # the searches that all of them look at are made once
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]

SCALESEARCH = str(Path(sys.executable).with_name("scalesearch"))
STUDY = "digits"
# Five candidates and the 1x network with two seeds: twelve trainings of about half a second.
OVERRIDES = (
    *("baseline=mobilenetv2", "proxy.width=0.25", "proxy.depth=0.5", "proxy.resolution=8", "proxy.total_stride=4"),
    *(
        "data=digits",
        "data.num_train=640",
        "recipe=quick",
        "recipe.autocast=off",
        "recipe.seeds=2",
        "recipe.batch_size=16",
    ),
    *("recipe.epochs=2", "recipe.learning_rate=0.2", "recipe.flip=false", "grid.alpha={start:1,stop:1.9,step:0.45}"),
    *("grid.beta={start:1,stop:1.4,step:0.1}", "grid.gamma={start:1,stop:1.4,step:0.1}"),
    *("grid.product_tolerance=0.15", "budget.tolerance=0.12", "phis=[1,2]", "executor.workers=2", "search=grid"),
)
PLANNED = 12
TABLES = ("candidates.csv", "comparisons.csv", "family.csv", "coefficients.yaml")
MEASURED = {"train_seconds", "latency_ms", "file"}  # what two workspaces need not share


class Ended(NamedTuple):
    code: int
    answer: dict[str, Any]
    error: str


class Driver:
    """A `scalesearch` that runs; what it says goes to files, so that no pipe keeps a dead one waiting."""

    def __init__(self, command: str, workspace: Path, *overrides: str, cwd: Path | None = None) -> None:
        place = workspace.parent / f"said-{time.monotonic_ns()}"
        place.mkdir(parents=True)
        self._out, self._err = place / "out", place / "err"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [SCALESEARCH, command, *overrides, f"workspace={workspace}"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=environment,
                cwd=cwd or place,
                start_new_session=True,
            )

    def ended(self, timeout: float = 300) -> Ended:
        try:
            code = self.process.wait(timeout)
        finally:
            self.stop()
        out, err = self._out.read_text(), self._err.read_text()
        assert "Traceback" not in err, err
        answer = json.loads(out) if "--json" in self.process.args and out else {}  # type: ignore[operator]
        return Ended(code, answer, err)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def drive() -> Iterator[Callable[..., Driver]]:
    """Start a driver; whatever happens, none of them survives the tests."""
    started: list[Driver] = []

    def start(command: str, workspace: Path, *overrides: str, cwd: Path | None = None) -> Driver:
        started.append(Driver(command, workspace, *overrides, cwd=cwd))
        return started[-1]

    yield start
    for driver in started:
        driver.stop()


def in_process(command: str, workspace: Path, *overrides: str) -> Ended:
    """The command in this process: for what is not about processes, and needs no start of one."""
    return in_process_anywhere(command, *overrides, f"workspace={workspace}")


def in_process_anywhere(*words: str) -> Ended:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main(list(words))
    assert "Traceback" not in err.getvalue(), err.getvalue()
    assert isinstance(ended.value.code, int)
    answer = json.loads(out.getvalue()) if "--json" in words and out.getvalue() else {}
    return Ended(ended.value.code, answer, err.getvalue())


def search(*more: str, study: str = STUDY) -> tuple[str, ...]:
    return (*OVERRIDES, f"study={study}", "--json", *more)


def records(workspace: Path) -> dict[Path, dict[str, Any]]:
    """The trainings that are recorded; the scores on the test split are left out."""
    read = {path: json.loads(path.read_bytes()) for path in (workspace / "evaluations").glob("??/*.json")}
    return {path: record for path, record in read.items() if "test_of" not in record["specification"]}


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 120) -> Any:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError(f"after {seconds} s still not: {what}")


def wait_for_records(driver: Driver, workspace: Path, number: int) -> None:
    def there() -> bool:
        assert driver.process.poll() is None, "it ended before that many evaluations were recorded"
        return len(records(workspace)) >= number

    wait_for(there, f"{number} records")


def processes() -> dict[int, tuple[int, str, str]]:
    """pid -> (parent, when it was started, command) of all that live; zombies do not."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has just gone
            continue
        if fields[0] not in "ZX":
            found[int(path.name)] = (int(fields[1]), fields[19], command)
    return found


def descendants(pid: int) -> dict[int, tuple[str, str]]:
    """pid -> (when it was started, command) of everything that a process has started."""
    everything, family = processes(), {pid}
    while more := {child for child, (parent, _, _) in everything.items() if parent in family} - family:
        family |= more
    return {child: everything[child][1:] for child in family - {pid} if child in everything}


def workers_of(driver: Driver) -> list[int]:
    return [pid for pid, (_, command) in descendants(driver.process.pid).items() if "scalesearch.executor" in command]


def gone(family: dict[int, tuple[str, str]]) -> bool:
    now = processes()
    return not any(pid in now and now[pid][1] == started for pid, (started, _) in family.items())


def directory(workspace: Path, study: str = STUDY) -> Path:
    return workspace / "studies" / study


def assert_equal_answers(one: Path, other: Path, study: str = STUDY) -> None:
    """Everything that two workspaces say of the study is the same; how long it took, where it lies and the latency,
    which each has measured for itself, may differ."""
    first, second = directory(one), directory(other, study)
    for name in ("trials.csv", *TABLES[:3]):
        tables = [pd.read_csv(place / name, dtype=str) for place in (first, second)]
        others = [table.drop(columns=MEASURED & set(table)) for table in tables]
        pd.testing.assert_frame_equal(*others, obj=name)
    answers = [json.loads((place / "result.json").read_text()) for place in (first, second)]
    for key in ("chosen", "test_accuracy", "baseline"):
        message = [{name: value for name, value in answer[key].items() if name not in MEASURED} for answer in answers]
        assert message[0] == message[1], key


def copy_ledger(source: Path, workspace: Path, *, without: Sequence[tuple[str, int]] = ()) -> dict[str, Path]:
    """A new workspace with the evaluations of another but some (candidate, seed), as if they had not been done."""
    shutil.copytree(source / "evaluations", workspace / "evaluations", ignore=shutil.ignore_patterns("*.lock"))
    keys = keys_of(source)
    for pair in without:
        for path in (workspace / "evaluations").glob(f"??/{keys[pair]}*"):
            path.unlink()
    return {name: workspace / "evaluations" / key[:2] / f"{key}.json" for (name, _), key in keys.items()}


def keys_of(workspace: Path, study: str = STUDY) -> dict[tuple[str, int], str]:
    planned = json.loads((directory(workspace, study) / "evaluations.json").read_text())["evaluations"]
    return {(row["candidate"], row["seed"]): row["key"] for row in planned}


def mlflow_runs(uri: str, study: str = STUDY) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiment = client.get_experiment_by_name(study)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], max_results=5000))


def uri_of(workspace: Path) -> str:
    return f"sqlite:///{workspace / 'mlflow.db'}"


def level(runs: Sequence[Any], name: str) -> list[Any]:
    return [run for run in runs if run.data.tags["scalesearch.level"] == name]


def git(place: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@localhost", "-C", str(place), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


class Unbroken(NamedTuple):
    workspace: Path
    ended: Ended
    commit: str


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    """A search that nobody disturbs, given in a directory that is under git."""
    place = tmp_path_factory.mktemp("unbroken")
    project = place / "project"
    project.mkdir()
    git(project, "init", "--quiet")
    git(project, "commit", "--quiet", "--allow-empty", "--message", "begin")
    with contextlib.chdir(project):
        ended = in_process("run", place / "workspace", *search())
    assert ended.code == 0, ended.error
    return Unbroken(place / "workspace", ended, git(project, "rev-parse", "HEAD"))


# The answer.


def test_the_answer_has_the_keys_of_its_contract(unbroken: Unbroken) -> None:
    answer = unbroken.ended.answer
    assert answer["study"] == STUDY
    chosen = {"alpha", "beta", "gamma", "product", "macs_ratio", "val_accuracy_mean", "val_accuracy_std", "seeds"}
    assert chosen | {"tied_with"} <= answer["chosen"].keys()
    assert answer["evaluations"] == {"trained": PLANNED, "reused": 0, "failed": 0}
    assert {"chosen", "baseline"} <= answer["test_accuracy"].keys()
    assert [row["phi"] for row in answer["variants"]] == [1, 2]
    assert answer == json.loads((directory(unbroken.workspace) / "result.json").read_text())


def test_the_chosen_is_expected_to_be_the_best_of_the_candidates(unbroken: Unbroken) -> None:
    table = pd.read_csv(directory(unbroken.workspace) / "candidates.csv").set_index("candidate")
    decision = pd.read_csv(directory(unbroken.workspace) / "decision.csv").set_index("candidate")
    chosen, answer = decision["accuracy"].idxmax(), unbroken.ended.answer
    assert answer["decision"]["chosen"] == answer["chosen"]["id"] == chosen
    assert decision["expected_regret"].idxmin() == chosen
    assert list(table.index[table["chosen"]]) == list(decision.index[decision["chosen"]]) == [chosen]
    assert answer["best"]["id"] == table.drop(index="baseline")["val_accuracy_mean"].idxmax()
    # Forty steps teach little, and how little is as another processor adds up: chance is 0.1.
    assert table.loc[chosen, "val_accuracy_mean"] > 0.15, "nothing was learnt"


def test_the_tables_agree_with_the_ledger(unbroken: Unbroken) -> None:
    trials = pd.read_csv(directory(unbroken.workspace) / "trials.csv")
    recorded = {record["key"]: record["result"] for record in records(unbroken.workspace).values()}
    assert len(trials) == PLANNED
    assert set(trials["key"]) == set(recorded)
    for row in trials.to_dict("records"):
        assert row["val_accuracy"] == recorded[row["key"]]["val_accuracy"]
    means = trials.groupby("candidate")["val_accuracy"].mean()
    table = pd.read_csv(directory(unbroken.workspace) / "candidates.csv").set_index("candidate")
    pd.testing.assert_series_equal(means, table["val_accuracy_mean"], check_names=False)


def test_only_the_chosen_and_the_1x_network_saw_the_test_split(unbroken: Unbroken) -> None:
    everything = [json.loads(path.read_bytes()) for path in (unbroken.workspace / "evaluations").glob("??/*.json")]
    tested = {record["specification"]["test_of"] for record in everything if "test_of" in record["specification"]}
    chosen = unbroken.ended.answer["chosen"]["id"]
    assert tested == {key for (name, _), key in keys_of(unbroken.workspace).items() if name in ("baseline", chosen)}


def test_the_variants_are_files_that_cost_what_the_table_says(unbroken: Unbroken) -> None:
    for row in unbroken.ended.answer["variants"]:
        network = load(Path(row["file"]))
        counted = cost(network)
        assert (network.name, network.resolution) == (row["name"], row["resolution"])
        assert (counted.macs, counted.params, counted.activations) == (row["macs"], row["params"], row["activations"])


def test_every_network_has_its_memory_and_latency(unbroken: Unbroken) -> None:
    place = directory(unbroken.workspace)
    (kept,) = json.loads((unbroken.workspace / "latency.json").read_text()).values()
    for name in ("trials.csv", "candidates.csv", "family.csv"):
        table = pd.read_csv(place / name)
        assert (table["training_memory"] > table["memory"]).all()
        assert (table["memory"] > 4 * table["params"]).all()
        assert set(table["latency_ms"]) <= set(kept.values()), name


def test_a_variant_is_a_baseline(unbroken: Unbroken) -> None:
    row = unbroken.ended.answer["variants"][0]
    variants = Path(row["file"]).parent.parent
    words = (f"baseline={row['name']}", "--config-dir", str(variants), "--json")
    message = in_process_anywhere("cost", *words).answer
    assert {key: message[key] for key in ("macs", "params")} == {key: row[key] for key in ("macs", "params")}


def test_the_figures_are_pictures(unbroken: Unbroken) -> None:
    figures = sorted((directory(unbroken.workspace) / "figures").iterdir())
    assert {path.suffix for path in figures} == {".png", ".svg"}
    for path in figures:
        start = path.read_bytes()[:500]
        assert start.startswith(b"\x89PNG") if path.suffix == ".png" else b"<svg" in start or b"<?xml" in start
        assert path.stat().st_size > 5_000, path


def test_status_and_variants_speak_of_the_finished_study(unbroken: Unbroken, tmp_path: Path) -> None:
    status = in_process("status", unbroken.workspace, "--json")
    assert status.code == 0
    assert status.answer["state"] == "finished"
    assert status.answer["evaluations"] == {"total": PLANNED, "done": PLANNED, "failed": 0, "left": 0}
    workspace = tmp_path / "workspace"
    shutil.copytree(directory(unbroken.workspace), directory(workspace))
    variants = in_process("variants", workspace, f"study={STUDY}", "phis=[3]", "--json")
    assert variants.code == 0, variants.error
    chosen = unbroken.ended.answer["chosen"]
    assert {key: variants.answer["coefficients"][key] for key in ("alpha", "beta", "gamma")} == {
        key: chosen[key] for key in ("alpha", "beta", "gamma")
    }
    assert [row["phi"] for row in variants.answer["variants"]] == [3]
    assert all(Path(row["file"]).exists() for row in variants.answer["variants"])


# What MLflow shows of it.


@pytest.fixture(scope="module")
def runs(unbroken: Unbroken) -> list[Any]:
    return mlflow_runs(uri_of(unbroken.workspace))


def test_mlflow_has_a_run_for_the_command_with_the_choice_and_the_commit(unbroken: Unbroken, runs: list[Any]) -> None:
    (parent,) = level(runs, "command")
    chosen, tags = unbroken.ended.answer["chosen"], parent.data.tags
    assert parent.info.status == "FINISHED"
    assert tags["chosen"] == chosen["id"]
    assert [float(tags[key]) for key in ("alpha", "beta", "gamma")] == [chosen[k] for k in ("alpha", "beta", "gamma")]
    assert tags["mlflow.source.git.commit"] == unbroken.commit
    assert parent.data.metrics["val_accuracy"] == chosen["val_accuracy_mean"]
    (used,) = parent.inputs.dataset_inputs
    assert used.dataset.name == "digits"


def test_mlflow_has_a_child_for_each_candidate_and_the_1x_network(unbroken: Unbroken, runs: list[Any]) -> None:
    (parent,) = level(runs, "command")
    table = pd.read_csv(directory(unbroken.workspace) / "candidates.csv").set_index("candidate")
    children = {run.info.run_name: run for run in level(runs, "candidate")}
    assert set(children) == set(table.index)
    for name, run in children.items():
        row, params, metrics = table.loc[name], run.data.params, run.data.metrics
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert [float(params[key]) for key in ("alpha", "beta", "gamma")] == list(row[["alpha", "beta", "gamma"]])
        assert float(params["phi"]) == (0 if name == "baseline" else 1)
        assert metrics["val_accuracy"] == pytest.approx(row["val_accuracy_mean"])
        assert metrics["val_accuracy_std"] == pytest.approx(row["val_accuracy_std"])
        for key in ("macs", "macs_ratio", "params", "activations", "memory", "training_memory", "latency_ms"):
            assert metrics[key] == row[key]
        assert metrics["train_seconds"] > 0
        tested = {"baseline": "baseline", unbroken.ended.answer["chosen"]["id"]: "chosen"}.get(name)
        expected = unbroken.ended.answer["test_accuracy"][tested]["mean"] if tested else None
        assert metrics.get("test_accuracy") == expected


def test_mlflow_has_a_grandchild_for_each_seed_with_its_curve(unbroken: Unbroken, runs: list[Any]) -> None:
    from mlflow import MlflowClient

    children = {run.info.run_id: run.info.run_name for run in level(runs, "candidate")}
    trials = pd.read_csv(directory(unbroken.workspace) / "trials.csv").set_index(["candidate", "seed"])
    seeds = level(runs, "seed")
    assert len(seeds) == PLANNED
    client = MlflowClient(tracking_uri=uri_of(unbroken.workspace))
    for run in seeds:
        row = trials.loc[(children[run.data.tags["mlflow.parentRunId"]], int(run.data.params["seed"]))]
        assert run.data.tags["key"] == row["key"]
        assert run.data.metrics["val_accuracy"] == row["val_accuracy"]
    curves = {key for run in seeds for key in run.data.metrics if "train" in key and key != "train_seconds"}
    assert curves, "no curve of the training"
    assert len(client.get_metric_history(seeds[0].info.run_id, min(curves))) == 2  # an epoch each


def test_mlflow_has_the_files_and_the_model(unbroken: Unbroken, runs: list[Any]) -> None:
    from mlflow import MlflowClient

    uri = uri_of(unbroken.workspace)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    (parent,) = level(runs, "command")

    def names(path: str = "") -> Iterator[str]:
        for found in client.list_artifacts(parent.info.run_id, path):
            if found.is_dir:
                yield from names(found.path)
            else:
                yield found.path

    logged = set(names())
    assert {"settings.yaml", "environment.json", "result.json", "trials.csv", *TABLES} <= logged
    drawn = {f"figures/{path.name}" for path in (directory(unbroken.workspace) / "figures").iterdir()}
    baselines = directory(unbroken.workspace) / "variants" / "baseline"
    written = {f"variants/baseline/{path.name}" for path in baselines.iterdir()}
    assert drawn
    assert written
    assert drawn | written <= logged
    assert [version.run_id for version in client.search_model_versions(f"name='{STUDY}'")] == [parent.info.run_id]


PREDICT = """
import json, sys, warnings
warnings.simplefilter("ignore")
import mlflow, numpy as np
uri, study, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
mlflow.set_tracking_uri(uri)
loaded = mlflow.pyfunc.load_model(f"models:/{study}/1")
images = np.random.default_rng(0).normal(size=(3, 1, size, size)).astype(np.float32)
print(json.dumps([loaded.predict(images).tolist(), loaded.metadata.signature.inputs.to_dict()[0]["tensor-spec"]]))
"""


def test_the_registered_model_gives_the_logits_of_the_trained_network(unbroken: Unbroken) -> None:
    import numpy as np
    import torch
    from safetensors.torch import load_model

    network = load(directory(unbroken.workspace) / "model" / "network.yaml")
    words = [sys.executable, "-c", PREDICT, uri_of(unbroken.workspace), STUDY, str(network.resolution)]
    message = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    predicted, signature = json.loads(message.stdout.splitlines()[-1])
    assert signature == {"dtype": "float32", "shape": [-1, 1, network.resolution, network.resolution]}
    images = np.random.default_rng(0).normal(size=(3, 1, network.resolution, network.resolution)).astype(np.float32)
    keys = keys_of(unbroken.workspace)
    logits = []
    for seed in (0, 1):
        module = model.build(network).eval()
        load_model(module, Ledger(unbroken.workspace).weights_path(keys[unbroken.ended.answer["chosen"]["id"], seed]))
        with torch.inference_mode():
            logits.append(module(torch.from_numpy(images)).numpy())
    assert any(np.allclose(predicted, ours, rtol=1e-4, atol=1e-5) for ours in logits)


# Killed, at any moment.


def identity(path: Path) -> tuple[int, int]:
    return path.stat().st_ino, path.stat().st_mtime_ns


class Stopped(NamedTuple):
    """A search that a signal has ended: what it said, whether a worker outlived it, and which records it left."""

    workspace: Path
    ended: Ended
    survived: bool
    kept: dict[Path, tuple[int, int]]


def stopped_by(number: signal.Signals, *, after: int, drive: Callable[..., Driver], workspace: Path) -> Stopped:
    driver = drive("run", workspace, *search())
    wait_for_records(driver, workspace, after)
    family = descendants(driver.process.pid)
    assert len(family) >= 2, "the workers were not at work"
    driver.process.send_signal(number)
    ended = driver.ended(timeout=60)
    until = time.monotonic() + 5
    while not gone(family) and time.monotonic() < until:
        time.sleep(0.05)
    return Stopped(workspace, ended, not gone(family), {path: identity(path) for path in records(workspace)})


# One search is ended by Ctrl-C, then killed, then ended as a batch job is, and then goes on to its end.


@pytest.fixture(scope="module")
def interrupted(drive: Callable[..., Driver], tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    workspace = tmp_path_factory.mktemp("broken") / "workspace"
    return stopped_by(signal.SIGINT, after=2, drive=drive, workspace=workspace)


@pytest.fixture(scope="module")
def killed(interrupted: Stopped, drive: Callable[..., Driver]) -> Stopped:
    return stopped_by(signal.SIGKILL, after=5, drive=drive, workspace=interrupted.workspace)


@pytest.fixture(scope="module")
def terminated(killed: Stopped, drive: Callable[..., Driver]) -> Stopped:
    return stopped_by(signal.SIGTERM, after=8, drive=drive, workspace=killed.workspace)


@pytest.fixture(scope="module")
def broken(terminated: Stopped) -> tuple[Path, Ended]:
    ended = in_process("run", terminated.workspace, *search())
    assert ended.code == 0, ended.error
    return terminated.workspace, ended


def test_an_interrupted_search_says_how_to_go_on(interrupted: Stopped) -> None:
    assert_stopped_politely(interrupted, 130)


def test_no_worker_outlives_a_killed_driver(killed: Stopped) -> None:
    assert killed.ended.code == -signal.SIGKILL
    assert not killed.survived


def test_a_search_whose_batch_job_ends_says_how_to_go_on(terminated: Stopped) -> None:
    assert_stopped_politely(terminated, 143)


def assert_stopped_politely(stop: Stopped, code: int) -> None:
    assert stop.ended.code == code
    assert "the same command goes on from there" in stop.ended.error.splitlines()[-1]
    assert not stop.ended.answer
    assert not stop.survived


def test_a_broken_search_comes_to_the_answer_of_an_unbroken_one(unbroken: Unbroken, broken: tuple[Path, Ended]) -> None:
    assert_equal_answers(unbroken.workspace, broken[0])


def test_the_same_evaluation_leaves_the_same_weights(unbroken: Unbroken, broken: tuple[Path, Ended]) -> None:
    for key in keys_of(unbroken.workspace).values():
        ours, theirs = (Ledger(place).weights_path(key).read_bytes() for place in (unbroken.workspace, broken[0]))
        assert ours == theirs


def test_what_was_finished_before_a_stop_is_not_done_again(
    interrupted: Stopped, killed: Stopped, terminated: Stopped, broken: tuple[Path, Ended]
) -> None:
    for stop in (interrupted, killed, terminated):
        assert stop.kept == {path: identity(path) for path in stop.kept}
    before = len(terminated.kept)
    assert before >= 8
    assert broken[1].answer["evaluations"] == {"trained": PLANNED - before, "reused": before, "failed": 0}
    assert len(records(broken[0])) == PLANNED


def test_a_broken_search_leaves_no_lock_and_no_half_file(broken: tuple[Path, Ended]) -> None:
    left = [path.name for path in broken[0].rglob("*") if "evaluations" in path.parts]
    assert not [name for name in left if name.endswith(".lock") or ".checkpoint." in name]
    assert not (directory(broken[0]) / "lock").exists()


def test_optuna_shows_each_candidate_complete_once(broken: tuple[Path, Ended]) -> None:
    table = pd.read_csv(directory(broken[0]) / "candidates.csv").set_index("candidate").drop(index="baseline")
    study = optuna.load_study(study_name=STUDY, storage=f"sqlite:///{broken[0] / 'optuna.db'}")
    states = {trial.state.name for trial in study.trials}
    assert states <= {"COMPLETE", "FAIL"}
    complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    assert sorted(trial.user_attrs["candidate"] for trial in complete) == sorted(table.index)
    for trial in complete:
        row = table.loc[trial.user_attrs["candidate"]]
        assert trial.value == pytest.approx(row["val_accuracy_mean"], abs=1e-12)
        assert trial.params == pytest.approx(row[["alpha", "beta", "gamma"]].to_dict())


def test_mlflow_has_ended_the_runs_of_stopped_commands(broken: tuple[Path, Ended]) -> None:
    runs = mlflow_runs(uri_of(broken[0]))
    assert not [run.info.run_name for run in runs if run.info.status == "RUNNING"]
    parents = sorted(level(runs, "command"), key=lambda run: run.info.start_time)
    assert [run.info.status for run in parents] == ["KILLED", "KILLED", "KILLED", "FINISHED"]


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "lookahead"), [("race", 4), ("halving", 1)])
def test_a_killed_search_of_another_strategy_asks_for_the_same_and_comes_to_the_same(
    strategy: str, lookahead: int, drive: Callable[..., Driver], tmp_path: Path
) -> None:
    """What such a strategy trains depends on what it has seen, which must not depend on when the driver died."""
    overrides = (*search(), f"search={strategy}", "recipe.seeds=3", "tracking=none", f"search.lookahead={lookahead}")
    places = tmp_path / "unbroken" / "workspace", tmp_path / "killed" / "workspace"
    ends = [drive("run", places[0], *overrides).ended()]
    driver = drive("run", places[1], *overrides, "executor.workers=1")
    wait_for_records(driver, places[1], 5)
    driver.process.kill()
    driver.process.wait()
    kept = {path: identity(path) for path in records(places[1])}
    ends.append(drive("run", places[1], *overrides).ended())
    assert [end.code for end in ends] == [0, 0], ends
    assert ("search.lookahead=3 would keep all busy" in ends[0].error) == (lookahead < 2)
    assert_equal_answers(*places)
    assert (directory(places[0]) / "stopped.json").read_text() == (directory(places[1]) / "stopped.json").read_text()
    assert kept == {path: identity(path) for path in kept}
    assert ends[1].answer["evaluations"]["reused"] == len(kept)


# Once more, and others like it.


def test_the_same_command_again_trains_nothing(unbroken: Unbroken, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    shutil.copytree(unbroken.workspace, workspace, ignore=shutil.ignore_patterns("*.lock"))
    again = in_process("run", workspace, *search())
    assert again.code == 0, again.error
    assert again.answer["evaluations"] == {"trained": 0, "reused": PLANNED, "failed": 0}
    assert_equal_answers(unbroken.workspace, workspace)
    runs = mlflow_runs(uri_of(workspace))
    assert [run.info.status for run in level(runs, "command")] == ["FINISHED", "FINISHED"]


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(
    ("override", "study", "added"),
    [("budget.tolerance=0.15", "wider", 2), ("recipe.seeds=3", STUDY, 6)],
    ids=["a wider budget", "more seeds"],
)
def test_only_what_is_new_is_trained(unbroken: Unbroken, tmp_path: Path, override: str, study: str, added: int) -> None:
    workspace = tmp_path / "workspace"
    copy_ledger(unbroken.workspace, workspace)
    shutil.copytree(directory(unbroken.workspace), directory(workspace))
    ended = in_process("run", workspace, *search(override, "tracking=none", study=study))
    assert ended.code == 0, ended.error
    assert ended.answer["evaluations"] == {"trained": added, "reused": PLANNED, "failed": 0}


def test_a_study_is_not_continued_with_other_settings(unbroken: Unbroken, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    shutil.copytree(directory(unbroken.workspace), directory(workspace))
    settings = (directory(workspace) / "settings.yaml").read_text()
    ended = in_process("run", workspace, *search("recipe.learning_rate=0.3", "tracking=none"))
    assert ended.code == 2
    assert "recipe" in ended.error
    assert "study=" in ended.error
    assert (directory(workspace) / "settings.yaml").read_text() == settings
    assert not (workspace / "evaluations").exists()


# Two at once.


@pytest.mark.slow
def test_two_drivers_at_once(unbroken: Unbroken, drive: Callable[..., Driver], tmp_path: Path) -> None:
    """The same study is refused with the owner's name; another study with the same evaluations shares them."""
    workspace = tmp_path / "workspace"
    copy_ledger(unbroken.workspace, workspace, without=[("c01", 0), ("c01", 1), ("c02", 0), ("c02", 1)])
    before = len(records(workspace))
    first = drive("run", workspace, *search("tracking=none", "executor.workers=1"))
    wait_for(lambda: workers_of(first), "a worker")
    other = drive("run", workspace, *search("tracking=none", "executor.workers=1", study="other"))
    refused = drive("run", workspace, *search("tracking=none"))
    status = drive("status", workspace, f"study={STUDY}", "--json")
    refused_ended, status_ended = refused.ended(), status.ended()
    assert first.process.poll() is None, "the first was done before the second came"
    assert refused_ended.code == 6
    assert str(first.process.pid) in refused_ended.error
    assert socket.gethostname() in refused_ended.error
    assert status_ended.answer["state"] == "running"
    assert status_ended.answer["evaluations"]["total"] == PLANNED
    ends = [first.ended(), other.ended()]
    assert [ended.code for ended in ends] == [0, 0]
    assert sum(ended.answer["evaluations"]["trained"] for ended in ends) == PLANNED - before
    assert sum(ended.answer["evaluations"]["reused"] for ended in ends) == PLANNED + before
    assert_equal_answers(unbroken.workspace, workspace)
    assert_equal_answers(unbroken.workspace, workspace, study="other")


# Failures.


@pytest.fixture(scope="module")
def failed(
    unbroken: Unbroken, drive: Callable[..., Driver], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Ended]:
    """A search of which one worker after another was killed in the midst of a training, until it counts as failed."""
    workspace = tmp_path_factory.mktemp("failed") / "workspace"
    copy_ledger(unbroken.workspace, workspace, without=[("c02", 0), ("c02", 1)])
    driver = drive("run", workspace, *search("tracking=none", "executor.workers=1"))
    wait_for_records(driver, workspace, PLANNED - 1)
    killed: set[int] = set()
    while len(records(workspace)) < PLANNED:  # the other one counts as failed
        for worker in set(workers_of(driver)) - killed:
            killed.add(worker)
            os.kill(worker, signal.SIGKILL)
        time.sleep(0.02)
    assert len(killed) >= TRIES
    return workspace, driver.ended()


def test_a_training_whose_workers_were_killed_has_failed_alone(failed: tuple[Path, Ended]) -> None:
    workspace, ended = failed
    assert ended.code == 3, ended.error
    assert ended.answer["evaluations"] == {"trained": 1, "reused": PLANNED - 2, "failed": 1}
    status = in_process("status", workspace, "--json").answer
    assert status["evaluations"] == {"total": PLANNED, "done": PLANNED - 1, "failed": 1, "left": 0}
    (failure,) = status["failures"]
    assert failure["candidate"] == "c02"
    assert "SIGKILL" in failure["reason"]


@pytest.mark.parametrize(
    ("command", "more", "code", "trained"), [("run", (), 3, 0), ("retry", (), 0, 1), ("run", ("retry=true",), 0, 1)]
)
def test_a_failed_training_is_retried_alone_and_not_by_run(
    failed: tuple[Path, Ended],
    unbroken: Unbroken,
    tmp_path: Path,
    command: str,
    more: tuple[str, ...],
    code: int,
    trained: int,
) -> None:
    workspace = tmp_path / "workspace"
    shutil.copytree(failed[0], workspace)
    kept = {path: identity(path) for path, record in records(workspace).items() if record["state"] == "finished"}
    ended = in_process(command, workspace, *search("tracking=none"), *more)
    assert ended.code == code, ended.error
    assert ended.answer["evaluations"] == {"trained": trained, "reused": PLANNED - 1, "failed": 1 - trained}
    assert kept == {path: identity(path) for path in kept}
    if trained:
        assert_equal_answers(unbroken.workspace, workspace)


@pytest.mark.parametrize("name", ["baseline", "c01"])
def test_a_network_of_which_nothing_finished_is_left_out(unbroken: Unbroken, tmp_path: Path, name: str) -> None:
    workspace = tmp_path / "workspace"
    copy_ledger(unbroken.workspace, workspace)
    ledger = Ledger(workspace)
    for (candidate, _), key in keys_of(unbroken.workspace).items():
        if candidate == name:
            failed = {"state": "failed", "result": None, "reason": "ValueError: the loss is nan"}
            ledger.put(key, {**(ledger.get(key) or {}), **failed})
    ended = in_process("run", workspace, *search("tracking=none"))
    assert ended.code == 3, ended.error
    assert ended.answer["evaluations"] == {"trained": 0, "reused": PLANNED - 2, "failed": 2}
    assert ended.answer["chosen"]["id"] not in ("baseline", name)
    assert ended.answer["chosen"]["seeds"] == 2
    assert (ended.answer["test_accuracy"]["baseline"]["mean"] is None) == (name == "baseline")


@pytest.mark.usefixtures("in_this_process")
def test_a_search_in_which_all_fails_says_why(tmp_path: Path) -> None:
    diverging = ("recipe.learning_rate=100", "recipe.weight_decay=1", "recipe.seeds=1", "grid.alpha.stop=1")
    workspace = tmp_path / "workspace"
    ended = in_process("run", workspace, *search(*diverging))
    assert ended.code == 4, ended.error
    assert re.search("nan|inf|finite|diverged", ended.error)
    assert "scalesearch retry" in ended.error
    assert {record["state"] for record in records(workspace).values()} == {"failed"}
    assert in_process("sync", workspace, f"study={STUDY}").code == 0  # what a slow disk has left in the spool
    runs = mlflow_runs(uri_of(workspace))
    assert {run.info.status for run in runs} == {"FAILED"}


def test_an_mlflow_that_is_dead_stops_nothing(unbroken: Unbroken, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    copy_ledger(unbroken.workspace, workspace)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = f"tracking.uri=http://127.0.0.1:{free.getsockname()[1]}"
    ended = in_process("run", workspace, *search(dead))
    assert ended.code == 0, ended.error
    assert ended.answer["evaluations"]["reused"] == PLANNED
    assert re.search(rf"MLflow still lacks .*scalesearch sync study={STUDY}", ended.error)
    assert in_process("sync", workspace, f"study={STUDY}", dead).code == 7
    synced = in_process("sync", workspace, f"study={STUDY}")
    assert synced.code == 0, synced.error
    runs = mlflow_runs(uri_of(workspace))
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert [len(level(runs, name)) for name in ("command", "candidate", "seed")] == [1, PLANNED // 2, PLANNED]


# A place that cannot be written.


@pytest.mark.parametrize(("kind", "code"), [("below a file", 2), ("in the kernel's", 7)])
def test_a_workspace_that_cannot_be_made_is_one_message(tmp_path: Path, kind: str, code: int) -> None:
    (tmp_path / "file").write_text("")
    workspace = tmp_path / "file" / "workspace" if kind == "below a file" else Path("/proc/scalesearch")
    message = in_process("run", workspace, *search("tracking=none"))
    assert message.code == code, message.error
    assert not message.answer
    (line,) = message.error.splitlines()
    assert line.startswith("scalesearch: ")
    assert str(workspace) in line


def test_the_settings_are_kept_as_they_were_composed(unbroken: Unbroken) -> None:
    settings = yaml.safe_load((directory(unbroken.workspace) / "settings.yaml").read_text())
    assert settings["recipe"]["batch_size"] == 16
    assert settings["baseline"]["stages"]
