"""`scalesearch reproduce NAME`: every experiment, really run at its smallest, and what it says of planted trainings."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest

from scalesearch.cli import main
from scalesearch.config import from_yaml
from scalesearch.cost import cost
from scalesearch.data import DataSpec
from scalesearch.executor import EXECUTORS, LocalExecutor
from scalesearch.network import from_table
from scalesearch.scaling import Coefficients, Rounding
from scalesearch.studies import EXPERIMENTS
from scalesearch.studies.dimensions import COMPOUND, MIXES, SINGLE, matched_points
from scalesearch.studies.experiment import draw, read_summary
from scalesearch.studies.figure3 import Figure3, saturation
from scalesearch.studies.figure4 import Figure4
from scalesearch.studies.figure8 import Figure8
from scalesearch.studies.phi_check import CENTRE, PhiCheck
from scalesearch.studies.points import MATCHED, Setting, coefficients_of
from scalesearch.studies.summaries import Paired, summarised
from scalesearch.studies.table3 import Table3
from scalesearch.training import Recipe

ROOT = Path(__file__).resolve().parent.parent
YAMLS = sorted(path for path in (ROOT / "experiments").glob("*.yaml") if "\nexperiment:" in path.read_text())
RECORDED = sorted(path.parent for path in (ROOT / "experiments").glob("*/summary.csv"))
THIRDS = Coefficients(1.26, 1.122, 1.122)
TINY = ("data.num_train=384", "data.num_val=128", "recipe.epochs=1", "recipe.seeds=2", "recipe.batch_size=64")
SMALLEST = {
    "figure3": ("experiment.widths=[1,1.4]", "experiment.depths=[1,2]", "experiment.resolutions=[1,1.3]"),
    "figure4": ("experiment.widths=[1,1.4]", "experiment.curves=[[1,1],[2,1]]"),
    "figure8": ("experiment.costs=[2]",),
    "phi_check": ("experiment.phis=[1,2]", "experiment.steps=[1]"),
    "table3": ("experiment.cost=2", "proxy.resolution=16", "recipe.seeds=1"),
}


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def network(name: str = "preresnet_tiny") -> Any:
    table = from_yaml(ROOT / "conf" / "baseline" / f"{name}.yaml")
    table.pop("name")
    return from_table(table, name=name)


def rounding(name: str = "fine") -> Rounding:
    return Rounding(**from_yaml(ROOT / "conf" / "rounding" / f"{name}.yaml"))


def setting(*names: str, rule: str = "fine") -> Setting:
    recipe = {key: value for key, value in from_yaml(ROOT / "conf/recipe/scenes.yaml").items() if key != "seeds"}
    return Setting(
        baselines={name: network(name) for name in names or ("preresnet_tiny",)},
        rounding=rounding(rule),
        recipe=Recipe(**recipe),
        seeds=3,
        data=DataSpec("fashion_scenes", None, 10_000),
        target=None,
        init={},
    )


# --- plans ----------------------------------------------------------------------------------------------------------


def test_every_experiment_has_a_yaml_of_its_name() -> None:
    assert set(EXPERIMENTS) <= {path.stem for path in YAMLS}
    assert {from_yaml(path)["experiment"]["name"] for path in YAMLS} == set(EXPERIMENTS)


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_every_experiment_says_beforehand_what_it_costs(
    path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = path.read_text().splitlines()
    assert words[1].startswith("# Question: ")
    assert words[2].startswith(f"# Command: scalesearch reproduce {path.stem}")
    assert call("plan", path.stem, f"workspace={tmp_path}", "--json") == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["experiment"] == path.stem
    if planned["points"]:
        assert planned["trainings"] > 0
        assert planned["estimated_seconds"] > 0
    assert not list(tmp_path.glob("evaluations/*/*.json")), "nothing is trained"


# --- equal counted cost ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [2.0, 4.0, 8.0, 16.0])
def test_all_ways_cost_the_same_and_scale_what_they_say(ratio: float) -> None:
    base = network()
    points = matched_points(setting(), (ratio,), THIRDS)
    assert [point.curve for point in points] == ["baseline", *SINGLE, *MIXES, COMPOUND]
    for point in points[1:]:
        counted = cost(point.network).macs / cost(base).macs
        assert abs(counted / ratio - 1) <= MATCHED
        scaled = {name for name in SINGLE if getattr(point, name) > 1.0}
        assert scaled == (set(SINGLE) if point.curve == COMPOUND else set(point.curve.split(" + ")))
        if "depth" not in scaled:
            assert point.network.depth == base.depth
        if "resolution" not in scaled:
            assert point.network.resolution == base.resolution or "resolution" in " ".join(point.moves)


@pytest.mark.parametrize("name", ["mobilenetv2", "efficientnet_b0", "resnet50"])
def test_published_baselines_can_be_matched_too(name: str) -> None:
    points = matched_points(setting(name, rule="nearest"), (4.0,), THIRDS, mixes=False)
    ratios = [cost(point.network).macs / cost(point.base).macs for point in points[1:]]
    assert ratios == pytest.approx([4.0] * 4, rel=MATCHED)


def test_what_cannot_be_matched_is_refused_with_the_nearest() -> None:
    coarse = replace(setting(), rounding=replace(rounding(), divisor=128, resolution_multiple=32))
    with pytest.raises(ValueError, match=r"the nearest network has .* times, more than 3 % off"):
        coarse.matched("width", 1.3, network(), coefficients_of("width"))


def test_each_of_several_dimensions_gets_the_same_share() -> None:
    for names in (SINGLE[:1], SINGLE[:2], SINGLE):
        coefficients = coefficients_of(*names)
        assert coefficients.product == pytest.approx(2)
        shares = {coefficients.alpha, coefficients.beta**2, coefficients.gamma**2} - {1}
        assert max(shares) == pytest.approx(min(shares))


def test_the_star_has_its_centre_and_its_tips() -> None:
    splits = PhiCheck(coefficients=THIRDS, phis=[1, 2], steps=[0.5, 1]).splits()
    assert len(splits) == 7
    assert all(one.product == pytest.approx(2) for one in splits.values())
    assert splits["depth +1"].alpha == pytest.approx(2)
    assert (splits["width +1"].alpha, splits["width +1"].gamma) == pytest.approx((1, 1))
    assert splits["resolution +0.5"].gamma > splits[CENTRE].gamma > splits["depth +0.5"].gamma


# --- the smallest real runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALLEST)
def test_the_smallest_run_of_each(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = (name, *TINY, *SMALLEST[name], f"workspace={tmp_path}", "--json")
    assert call("reproduce", *words) == 0
    answer = json.loads(capsys.readouterr().out)
    directory = tmp_path / "experiments" / name
    results, summary = pd.read_csv(directory / "results.csv"), read_summary(directory)
    assert (results["state"] == "finished").all()
    assert answer["evaluations"]["trained"] == results["key"].nunique()
    said = json.loads((directory / "finding.json").read_text())
    assert said["finding"] == answer["finding"]
    page = (directory / "README.md").read_text()
    assert answer["finding"] in page
    for figure in said["figures"]:
        assert f"figures/{figure}" in page
        assert (directory / "figures" / figure).stat().st_size > 5000
        assert "</svg>" in (directory / "figures" / figure).with_suffix(".svg").read_text()
    means = results.groupby(["curve", "label", "at"], sort=False)["val_accuracy"].mean()
    assert means.tolist() == pytest.approx(summary["val_accuracy_mean"].tolist())
    # The same command again trains nothing and says the same, from other tables and figures that it makes anew.
    if name == "figure8":
        (directory / "results.csv").unlink()
        (directory / "finding.json").unlink()
        assert call("reproduce", *words) == 0
        again = json.loads(capsys.readouterr().out)
        assert again["evaluations"]["trained"] == 0
        assert again["summary"] == answer["summary"]
        assert pd.read_csv(directory / "results.csv").equals(results)


class Failing:
    """An executor of which every training fails, but for those of networks that `good` names."""

    slots = 1
    good: ClassVar[str] = "nothing"

    def __init__(self, *, workers: int | None = None, threads: int = 1, devices: Sequence[str] = ()) -> None:
        self._real = LocalExecutor(workers=1)

    def __enter__(self) -> Failing:
        return self

    def __exit__(self, *error: object) -> None:
        self._real.shutdown()

    def submit(self, function: Any, specification: dict[str, Any]) -> Future[dict[str, Any]]:
        if specification["name"].endswith(self.good):
            return self._real.submit(function, specification)
        future: Future[dict[str, Any]] = Future()
        future.set_exception(RuntimeError("planted"))
        return future


@pytest.mark.parametrize(("good", "code", "count"), [("nothing", 4, 16), ("_2x", 3, 2)])
def test_what_fails_is_said_and_can_be_run_again(
    good: str,
    code: int,
    count: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setitem(EXECUTORS, "local", Failing)
    monkeypatch.setattr(Failing, "good", good)
    words = ("figure8", *TINY, "experiment.costs=[2]", f"workspace={tmp_path}", "test=false", "--json")
    assert call("reproduce", *words) == code
    said = capsys.readouterr()
    assert "planted" in said.err
    assert "with retry=true" in said.err
    answer = json.loads(said.out)
    assert answer["evaluations"]["failed"] == count
    assert (answer["finding"] is None) == (code == 4)
    results = pd.read_csv(tmp_path / "experiments" / "figure8" / "results.csv")
    assert (results["state"] == "failed").sum() == count
    assert call("reproduce", *words, "retry=true") == code
    assert f"{count} failed trainings are run again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("figure8 experiment.costs=[]", "experiment.costs is []; it must be a list of numbers from 1.05 to 100"),
        ("figure8 experiment.costs=[0.5]", "experiment.costs is [0.5]"),
        ("figure8 experiment.costs=[.nan]", "experiment.costs is"),
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
        ("figure4 experiment.curves=[[1,1,1]]", "it must be a list of [depth, resolution]"),
        ("figure3 experiment.widths=[0]", "experiment.widths is [0]"),
        ("phi_check experiment.phis=[1]", "it needs two at least"),
        ("phi_check experiment.steps=[2]", "a step is a share, 1 at most"),
        ("first_search", "first_search is a search: scalesearch run experiments=first_search"),
    ],
)
def test_what_is_refused_is_refused_in_a_line(
    words: str, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call("reproduce", *words.split(), f"workspace={tmp_path}") == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir()), "nothing was written"


def test_run_and_plan_take_an_experiment_to_where_it_belongs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call("run", "experiments=figure8", f"workspace={tmp_path}") == 2
    assert "figure8 is no search: scalesearch reproduce figure8" in capsys.readouterr().err
    assert call("plan", "experiments=figure8", "experiment.costs=[2]", f"workspace={tmp_path}", "--json") == 0
    assert json.loads(capsys.readouterr().out)["experiment"] == "figure8"
    assert call("plan", "first_search", f"workspace={tmp_path}", "--json") == 0
    assert json.loads(capsys.readouterr().out)["candidates"]


# --- what is said of planted trainings ------------------------------------------------------------------------------


def planted(
    points: list[Any], accuracy: dict[tuple[str, float], float], *, seeds: int = 3, images: int = 4000
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """results.csv and what is right, as if each (curve, at) had that accuracy on images equally hard for all."""
    from scalesearch.studies.points import point_values

    hardness = np.random.default_rng(0).permutation(images) / images
    rows, right = [], {}
    for point in points:
        for seed in range(seeds):
            noise = 0.004 * (seed - (seeds - 1) / 2) * (1 if len(rows) % 2 else -1)
            key = f"{len(rows):064x}"
            right[key] = hardness < accuracy[point.curve, point.at] + noise
            rows.append(
                point_values(point)
                | {"seed": seed, "state": "finished", "val_accuracy": float(right[key].mean()), "key": key}
                | {"train_seconds": 1.0, "reason": ""}
            )
    return pd.DataFrame(rows), right


@pytest.mark.parametrize(("gain", "verdict"), [(0.05, "better"), (-0.05, "worse"), (0.0, "tied")])
def test_figure8_says_which_way_it_fell(gain: float, verdict: str, tmp_path: Path) -> None:
    experiment = Figure8(costs=[2, 4], coefficients=THIRDS)
    points = experiment.points(setting())
    level = {"width": 0.6, "depth": 0.55, COMPOUND: 0.6 + gain}
    accuracy = {(point.curve, point.at): level.get(point.curve, 0.5) for point in points}
    summary = experiment.summary(*planted(points, accuracy))
    compound = summary[summary["curve"] == COMPOUND]
    assert set(compound["best_single"]) == {"width"}
    assert compound["less_single_value"].tolist() == pytest.approx([gain, gain], abs=1e-3)
    said = experiment.finding(summary)
    assert {
        "better": "compound scaling beats the best single dimension at 2 and 4 times the cost:",
        "worse": "beats the best single dimension at no cost and loses to it at 2 and 4 times:",
        "tied": "compound scaling beats the best single dimension at no cost: at 2",
    }[verdict] in said
    assert f"{100 * float(compound['less_single_value'].iloc[0]):+.2f} points" in said


def test_an_interval_of_a_mean_holds_it_as_often_as_it_says() -> None:
    chance, held = np.random.default_rng(1), []
    for _ in range(300):
        values = chance.normal(0.6, 0.01, (8, 3))
        table = pd.DataFrame(
            [
                {"curve": f"c{row}", "label": "", "at": 1.0, "state": "finished", "val_accuracy": value}
                | dict.fromkeys(("depth", "width", "resolution", "pixels", "blocks", "macs", "macs_ratio", "params"), 1)
                | {"moves": "", "data": "made", "epochs": 1, "train_seconds": 1.0, "key": f"{row} {seed}"}
                for row, group in enumerate(values)
                for seed, value in enumerate(group)
            ]
        )
        summary = summarised(table)
        held += ((summary["val_accuracy_low"] <= 0.6) & (summary["val_accuracy_high"] >= 0.6)).tolist()
    assert np.mean(held) == pytest.approx(0.95, abs=0.02)


def test_paired_differences_are_the_selection_s_own() -> None:
    points = matched_points(setting(), (2.0,), THIRDS, mixes=False)
    results, right = planted(points, {(point.curve, point.at): 0.6 + 0.01 * i for i, point in enumerate(points)})
    difference = Paired(results, right).difference((COMPOUND, 2.0), ("depth", 2.0))
    assert difference.value == pytest.approx(0.03, abs=1e-3)
    assert difference.low < difference.value < difference.high


def test_the_saturation_that_was_planted_is_found() -> None:
    ratio = np.array([1.0, 2, 4, 8, 16, 32])
    found = saturation(ratio, 0.8 - 0.3 * ratio**-0.5)
    assert found == pytest.approx((0.8, 0.3, 0.5), abs=1e-3)
    assert saturation(ratio[:3], ratio[:3]) is None


def test_figure3_and_4_find_what_was_planted() -> None:
    three = Figure3(widths=[1, 2, 3, 4], depths=[1, 2, 3, 4], resolutions=[1, 1.5])
    points = three.points(setting())
    accuracy = {(point.curve, point.at): 0.7 - (0.2 if point.curve == "width" else 0.1) / point.at for point in points}
    summary = three.summary(*planted(points, accuracy, images=40_000))
    ceilings = summary.groupby("curve")["ceiling"].first()
    assert ceilings["width"] == pytest.approx(0.7, abs=0.03)
    assert math.isnan(ceilings["resolution"]), "two points fit no law of three parameters"
    assert "width takes accuracy from 50.0 % to 65.0 %" in three.finding(summary)
    four = Figure4(widths=[1, 2], curves=[[1, 1], [2, 1]])
    points = four.points(setting())
    lift = {"d=1.0, r=1.0": 0.5, "d=2.0, r=1.0": 0.55}
    summary = four.summary(*planted(points, {(point.curve, point.at): lift[point.curve] for point in points}))
    assert "d=2.0, r=1.0 lies +5.00 points from d=1.0, r=1.0" in four.finding(summary)


def test_phi_check_notices_a_winner_that_loses_later() -> None:
    experiment = PhiCheck(coefficients=THIRDS, phis=[1, 2], steps=[1])
    points = experiment.points(setting())
    order = ["width +1", "depth +1", CENTRE, "resolution +1"]
    accuracy = {
        (point.curve, point.at): 0.5
        + 0.03 * (order.index(point.curve) if point.at == 4 else 3 - order.index(point.curve))
        for point in points
    }
    summary = experiment.summary(*planted(points, accuracy))
    said = experiment.finding(summary)
    assert said.startswith("the best split at phi = 1 is width +1; at phi = 2 rank 4 of 4, 9.0")
    assert "behind resolution +1" in said
    assert "Kendall's tau -1.00" in said
    assert summary.loc[(summary["curve"] == "width +1") & (summary["phi"] == 2), "behind_low"].item() > 0


def test_table3_stands_beside_the_paper_s() -> None:
    experiment = Table3(cost=4, coefficients=Coefficients(1.4, 1.2, 1.3))
    points = experiment.points(setting("mobilenetv1", "mobilenetv2", rule="nearest"))
    accuracy = {(point.curve, point.at): 0.6 if COMPOUND in point.curve else 0.55 for point in points}
    summary = experiment.summary(*planted(points, accuracy, images=2000))
    rows = summary.set_index(["baseline", "method"])
    assert rows.loc[("mobilenetv1", "compound"), "paper_top1"] == 75.6
    assert rows.loc[("mobilenetv2", "depth"), "paper_top1"] == 76.8
    assert math.isnan(rows.loc[("mobilenetv1", "depth"), "paper_top1"]), "the paper has no such row"
    said = experiment.finding(summary)
    assert "on mobilenetv1 +5.00 points" in said
    assert "better (the paper's: +1.4)" in said


# --- what is recorded -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name)
def test_every_recorded_figure_is_drawn_again_from_its_table(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / path.name
    copy.mkdir()
    for file in path.iterdir():
        if file.suffix in (".csv", ".npz"):
            (copy / file.name).write_bytes(file.read_bytes())
    experiment = recorded_experiment(path)
    title = json.loads((path / "finding.json").read_text())["title"]
    drawn = draw(experiment, copy, title=title)
    assert {file.name for file in drawn} == {file.name for file in (path / "figures").iterdir()}
    for file in drawn:
        if file.suffix == ".svg":
            assert file.read_text() == (path / "figures" / file.name).read_text()


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name)
def test_every_recorded_finding_is_that_of_its_table(path: Path) -> None:
    said = json.loads((path / "finding.json").read_text())
    assert recorded_experiment(path).finding(read_summary(path)) == said["finding"]
    assert said["finding"] in (path / "README.md").read_text()
    if said["trainings"]:
        results = pd.read_csv(path / "results.csv")
        assert results["key"].nunique() == said["trainings"]
        assert results["seed"].nunique() == said["seeds"]
        means = results.groupby(["curve", "label", "at"], sort=False)["val_accuracy"].mean()
        assert means.tolist() == pytest.approx(read_summary(path)["val_accuracy_mean"].tolist())


def recorded_experiment(path: Path) -> Any:
    options = from_yaml(path.with_suffix(".yaml"))["experiment"]
    cls = EXPERIMENTS[options.pop("name")]
    if "coefficients" in options:
        options["coefficients"] = Coefficients(*options["coefficients"])
    return cls(**options)
