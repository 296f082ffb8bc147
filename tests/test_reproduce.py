"""`scalesearch reproduce NAME`: plans, every experiment really run at its smallest, failures and refusals."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
import torch
from conftest import InThisProcess
from paper_setting import setting

from scalesearch.cli import main
from scalesearch.executor import EXECUTORS
from scalesearch.paper.experiment import read_summary
from scalesearch.paper.page import caveats
from scalesearch.training.worker import run_specification
from scalesearch.workspace import DONE, NOTHING_LEARNT

ROOT = Path(__file__).resolve().parent.parent
YAMLS = sorted(path for path in (ROOT / "conf" / "experiment").glob("*.yaml") if "\nexperiment:" in path.read_text())
TINY = (
    *("data.num_train=192", "data.num_val=128", "recipe.epochs=1", "recipe.seeds=2", "recipe.batch_size=64"),
    "recipe.autocast=off",
)
SMALLEST = {
    "figure3": ("experiment.widths=[1,1.4]", "experiment.depths=[1,2]", "experiment.resolutions=[1,1.3]"),
    "figure4": ("experiment.widths=[1,1.4]", "experiment.curves=[[1,1],[2,1]]"),
    "figure8": ("experiment.costs=[2]", "test=false"),  # 10,000 images for each of 16
    "phi_check": ("experiment.phis=[1,2]", "experiment.steps=[1]"),
    "table3": ("experiment.cost=2", "proxy.resolution=16", "recipe.seeds=1"),
    "table7": ("experiment.cost=2", "experiment.images=100"),
    "transfer": ("experiment.cost=2", "experiment.epochs=[1,2]", "target.num_train=256", "target.num_val=100"),
    "latency": ("experiment.costs=[2]", "experiment.rounds=2"),
    "proxy_study": ("proxy.depth=0.2",),
}


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*words, *(["tracking=none"] if words[0] == "reproduce" else [])])
    assert isinstance(ended.value.code, int)
    return ended.value.code


# --- plans ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_every_experiment_says_beforehand_what_it_costs(
    path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call("plan", path.stem, f"workspace={tmp_path}", "--json") == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["experiment"] == path.stem
    if planned["points"]:
        assert planned["trainings"] > 0
        assert planned["estimated_seconds"] > 0
    assert not list(tmp_path.glob("evaluations/*/*.json")), "nothing is trained"


# --- the smallest real runs -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("name", SMALLEST)
def test_the_smallest_run_of_each(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = (name, *TINY, *SMALLEST[name], f"workspace={tmp_path}", "--json")
    code = call("reproduce", *words)
    answer = json.loads(capsys.readouterr().out)
    assert code == (DONE if answer["nothing_learnt"] is None else NOTHING_LEARNT)
    directory = tmp_path / "experiments" / name
    results, summary = pd.read_csv(directory / "results.csv"), read_summary(directory)
    assert (results["state"] == "finished").all()
    assert answer["evaluations"]["trained"] == results["key"].nunique()
    message = json.loads((directory / "finding.json").read_text())
    assert message["finding"] == answer["finding"]
    page = (directory / "README.md").read_text()
    assert answer["finding"] in page
    for figure in message["figures"]:
        assert f"figures/{figure}" in page
        assert (directory / "figures" / figure).stat().st_size > 5000
        assert "</svg>" in (directory / "figures" / figure).with_suffix(".svg").read_text()
    means = results.groupby(["curve", "at"])["val_accuracy"].mean()
    assert means.tolist() == pytest.approx(summary.sort_values(["curve", "at"])["val_accuracy_mean"].tolist())
    if name in ("figure3", "phi_check"):  # of which several points are one network
        assert call("plan", *words) == 0
        assert json.loads(capsys.readouterr().out)["trainings"] == answer["evaluations"]["trained"]
    # The same command again trains nothing and says the same, from other tables and figures that it makes anew.
    if name == "figure8":
        (directory / "results.csv").unlink()
        (directory / "finding.json").unlink()
        assert code == NOTHING_LEARNT, "three steps"
        assert answer["finding"] == answer["nothing_learnt"]
        assert "A training takes 3 optimiser steps" in page
        assert "validation images" in page
        assert call("reproduce", *words) == code
        again = json.loads(capsys.readouterr().out)
        assert again["evaluations"]["trained"] == 0
        assert again["summary"] == answer["summary"]
        assert pd.read_csv(directory / "results.csv").equals(results)


@pytest.mark.usefixtures("in_this_process")
def test_tuned_networks_start_from_what_the_same_seed_left(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Tuned at a vanishing rate they are what was pretrained: as accurate on the first set's own images."""
    words = ("transfer", *TINY, "experiment.cost=2", "experiment.epochs=[0.1]", "experiment.learning_rate=1e-7")
    words = (*words, "data@target=fashion_scenes", "target.num_train=384", "target.num_val=128", "recipe.epochs=16")
    words = (*words, "data.num_train=384")
    assert call("reproduce", *words, "experiment.batch_size=384", f"workspace={tmp_path}", "--json") == 0
    table = pd.read_csv(tmp_path / "experiments" / "transfer" / "results.csv").set_index(["curve", "seed"])
    for size in ("baseline", "compound"):
        for seed in (0, 1):
            first, tuned, scratch = (
                table.loc[(f"{size}, {how}", seed), "val_loss"] for how in ("pretrained", "tuned", "from scratch")
            )
            assert abs(tuned - first) < 0.5 * abs(scratch - first)


@pytest.mark.usefixtures("in_this_process")
def test_the_test_split_is_scored_where_it_is_asked_for_and_by_the_metric(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("figure8", *TINY, "recipe.seeds=1", "experiment.costs=[2]", f"workspace={tmp_path}")
    assert call("reproduce", *words, "test=true", "metric=auroc", "--json") == DONE
    directory = tmp_path / "experiments" / "figure8"
    results, answer = pd.read_csv(directory / "results.csv"), json.loads(capsys.readouterr().out)
    assert results["test_auroc"].between(0, 1).all()
    assert read_summary(directory, "auroc")["val_accuracy_mean"].max() == max(
        row["val_auroc_mean"] for row in answer["summary"]
    )
    assert "nan" not in answer["finding"]
    assert "test AUROC (%)" in (directory / "README.md").read_text()
    for figure in (directory / "figures").glob("*.svg"):
        assert "validation AUROC (%)" in figure.read_text()
    for path in (directory / "results.csv", directory / "summary.csv", *(directory / "figures").glob("*.svg")):
        assert "accuracy" not in path.read_text()


def test_a_killed_experiment_goes_on_where_it_was(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ("figure4", *TINY, *SMALLEST["figure4"], "executor.workers=1", f"workspace={tmp_path}")
    command = [str(Path(sys.executable).with_name("scalesearch")), "reproduce", *words, "tracking=none"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("[2/8]"):
                process.kill()
                break
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "experiments" / "figure4" / "results.csv").exists()
    assert call("reproduce", *words, "--json") in (DONE, NOTHING_LEARNT)
    counts = json.loads(capsys.readouterr().out)["evaluations"]
    assert counts["reused"] >= 2
    assert counts["trained"] + counts["reused"] == 8


class Failing(InThisProcess):
    """An executor of which every training fails, but for those of networks that `good` names."""

    good: ClassVar[str] = "nothing"

    def submit(self, function: Any, specification: dict[str, Any]) -> Future[dict[str, Any]]:
        if function is not run_specification or specification["name"].endswith(self.good):
            return super().submit(function, specification)
        future: Future[dict[str, Any]] = Future()
        future.set_exception(RuntimeError("planted"))
        return future


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(("good", "code", "count"), [("nothing", 4, 16), ("_2x", 8, 2)])
def test_what_fails_is_said_and_can_be_run_again(
    good: str,
    code: int,
    count: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setitem(EXECUTORS._loaded, "local", Failing)
    monkeypatch.setattr(Failing, "good", good)
    words = ("figure8", *TINY, "experiment.costs=[2]", f"workspace={tmp_path}", "test=false", "--json")
    assert call("reproduce", *words) == code
    message = capsys.readouterr()
    assert "planted" in message.err
    assert "with retry=true" in message.err
    answer = json.loads(message.out)
    assert answer["evaluations"]["failed"] == count
    assert (answer["finding"] is None) == (code == 4)
    results = pd.read_csv(tmp_path / "experiments" / "figure8" / "results.csv")
    assert (results["state"] == "failed").sum() == count
    assert call("reproduce", *words, "retry=true") == code
    assert f"{count} failed trainings are run again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("figure8 experiment.costs=abc", "experiment.costs is 'abc'; it must be a list"),
        ("figure8 experiment.costs=[]", "experiment.costs is []; it must be a list of numbers from 1.05 to 100"),
        ("figure8 experiment.costs=[0.5]", "experiment.costs[0] is 0.5; it must be a number from 1.05 to 100"),
        ("figure8 experiment.costs=[nan]", "experiment.costs[0] is nan; it must be a number"),
        ("figure8 experiment.cost=[2]", "'experiment.cost' is not a known key; did you mean 'experiment.costs'?"),
        ("figure8 experiment.name=figure9", "experiment.name is 'figure9'; did you mean 'figure8'?"),
        ("figure8 experiment.coefficients=[1,1,1]", "each must be 1 or more, and one above 1"),
        ("figure8 experiment.coefficients=[1,2]", "it must be [alpha, beta, gamma] (depth, width, resolution)"),
        ("figure8 experiment.coefficients=nix", "there is no study"),
        ("figure8 data@target=digits", "target is 'digits', which figure8 does not read"),
        (
            "figure8 rounding.divisor=128 rounding.resolution_multiple=32",
            "more than 3 % off. A finer rounding, such as rounding=fine",
        ),
        ("figure4 experiment.curves=[[1,1,1]]", "experiment.curves[0] is [1, 1, 1]; it must be [depth, resolution]"),
        ("figure3 experiment.widths=[0]", "experiment.widths[0] is 0; it must be a number from 0.1 to 100"),
        ("phi_check experiment.phis=[1]", "experiment.phis is [1.0]; it needs two at least"),
        ("phi_check experiment.steps=[2]", "experiment.steps[0] is 2; it must be a number from 0.01 to 1"),
        ("first_search", "first_search is a search: scalesearch run experiment=first_search"),
    ],
)
def test_what_is_refused_is_refused_in_a_line(
    words: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call("reproduce", *words.split(), f"workspace={tmp_path}") == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir()), "nothing was written"


def test_an_experiment_of_your_own_needs_no_words(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    own = tmp_path / "conf" / "experiment" / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text(
        "# @package _global_\ndefaults:\n  - override /baseline: preresnet_tiny\n"
        "experiment:\n  name: b_series\n  coefficients: [1.2, 1.1, 1.15]\n  phis: [0, 1]\n"
    )
    assert call("reproduce", "mine", "--config-dir", str(own.parents[1]), f"workspace={tmp_path}", "--json") == 0
    kept = json.loads((tmp_path / "experiments" / "mine" / "finding.json").read_text())
    assert (kept["question"], kept["paper"], kept["caveats"]) == ("", "", [])
    page = (tmp_path / "experiments" / "mine" / "README.md").read_text()
    assert "**Question.**" not in page
    assert json.loads(capsys.readouterr().out)["finding"] in page


def test_caveats_follow_from_the_recipe_that_is_used() -> None:
    recipe = setting().recipe
    assert caveats(["known"], None) == caveats(["known"], replace(recipe, epochs=160)) == ["known"]
    assert caveats(["known"], replace(recipe, epochs=1))[1].startswith("the recipe trains for 1 epoch, which trains")


@pytest.mark.usefixtures("in_this_process")
def test_run_and_plan_take_an_experiment_to_where_it_belongs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call("run", "experiment=figure8", f"workspace={tmp_path}") == 2
    assert "figure8 is no search: scalesearch reproduce figure8" in capsys.readouterr().err
    assert call("plan", "experiments=figure8", "experiment.costs=[2]", f"workspace={tmp_path}", "--json") == 0
    assert json.loads(capsys.readouterr().out)["experiment"] == "figure8"
    assert call("plan", "first_search", f"workspace={tmp_path}", "--json") == 0
    assert json.loads(capsys.readouterr().out)["candidates"]


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(
    ("found", "autocast", "warned"),
    [((), "bfloat16", True), (("AVX-512", "bfloat16"), "bfloat16", False), ((), "auto", False)],
)
def test_a_plan_warns_of_a_cpu_that_emulates_bfloat16(
    found: tuple[str, ...],
    autocast: str,
    warned: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("scalesearch.machine.instructions", lambda: frozenset(found))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    overrides = (f"recipe.autocast={autocast}", "experiment.costs=[2]", f"workspace={tmp_path}")
    assert call("plan", "figure8", *overrides) == 0
    message = capsys.readouterr()
    assert ("this CPU emulates bfloat16" in message.out + message.err) == warned
