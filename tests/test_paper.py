"""`scalesearch reproduce NAME`: every experiment, really run at its smallest, and what it says of planted trainings."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import InThisProcess

from scalesearch.cli import main
from scalesearch.config import from_yaml
from scalesearch.cost import cost
from scalesearch.data import DataSpec, load
from scalesearch.executor import EXECUTORS
from scalesearch.model import build
from scalesearch.network import from_table
from scalesearch.paper import EXPERIMENTS
from scalesearch.paper.b_series import BSeries
from scalesearch.paper.dimensions import COMPOUND, MIXES, SINGLE, matched_points
from scalesearch.paper.experiment import draw, read_summary
from scalesearch.paper.figure3 import Figure3, saturation
from scalesearch.paper.figure4 import Figure4
from scalesearch.paper.figure8 import Figure8
from scalesearch.paper.latency_study import LatencyStudy
from scalesearch.paper.phi_check import CENTRE, PhiCheck
from scalesearch.paper.points import MATCHED, Setting, coefficients_of
from scalesearch.paper.proxy_study import ProxyStudy
from scalesearch.paper.summaries import Paired, published, summarised
from scalesearch.paper.table3 import Table3
from scalesearch.paper.table7 import Table7, class_maps, first_of_each_class, in_boxes, map_side, num_maps, scores
from scalesearch.scaling import Coefficients, Rounding
from scalesearch.training import Recipe, resized, run_specification

ROOT = Path(__file__).resolve().parent.parent
YAMLS = sorted(path for path in (ROOT / "experiments").glob("*.yaml") if "\nexperiment:" in path.read_text())
RECORDED = sorted(path.parent for path in (ROOT / "experiments").glob("*/summary.csv"))
THIRDS = Coefficients(1.26, 1.122, 1.122)
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


@pytest.mark.usefixtures("in_this_process")
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


@pytest.mark.usefixtures("in_this_process")
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
    means = results.groupby(["curve", "at"])["val_accuracy"].mean()
    assert means.tolist() == pytest.approx(summary.sort_values(["curve", "at"])["val_accuracy_mean"].tolist())
    if name in ("figure3", "phi_check"):  # of which several points are one network
        assert call("plan", *words) == 0
        assert json.loads(capsys.readouterr().out)["trainings"] == answer["evaluations"]["trained"]
    # The same command again trains nothing and says the same, from other tables and figures that it makes anew.
    if name == "figure8":
        (directory / "results.csv").unlink()
        (directory / "finding.json").unlink()
        assert call("reproduce", *words) == 0
        again = json.loads(capsys.readouterr().out)
        assert again["evaluations"]["trained"] == 0
        assert again["summary"] == answer["summary"]
        assert pd.read_csv(directory / "results.csv").equals(results)


@pytest.mark.usefixtures("in_this_process")
def test_the_test_split_is_scored_where_it_is_asked_for(tmp_path: Path) -> None:
    words = ("figure8", *TINY, "recipe.seeds=1", "experiment.costs=[2]", f"workspace={tmp_path}")
    assert call("reproduce", *words, "test=true") == 0
    directory = tmp_path / "experiments" / "figure8"
    assert pd.read_csv(directory / "results.csv")["test_accuracy"].between(0, 1).all()
    assert "test accuracy (%)" in (directory / "README.md").read_text()


def test_a_killed_experiment_goes_on_where_it_was(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ("figure4", *TINY, *SMALLEST["figure4"], "executor.workers=1", f"workspace={tmp_path}")
    command = [str(Path(sys.executable).with_name("scalesearch")), "reproduce", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("[2/8]"):
                process.kill()
                break
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "experiments" / "figure4" / "results.csv").exists()
    assert call("reproduce", *words, "--json") == 0
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
        ("figure8 experiment.costs=abc", "experiment.costs is 'abc'; it must be a list"),
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


@pytest.mark.usefixtures("in_this_process")
def test_run_and_plan_take_an_experiment_to_where_it_belongs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call("run", "experiments=figure8", f"workspace={tmp_path}") == 2
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
    monkeypatch.setattr("scalesearch.paper.experiment.instructions", lambda: frozenset(found))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    overrides = (f"recipe.autocast={autocast}", "experiment.costs=[2]", f"workspace={tmp_path}")
    assert call("plan", "figure8", *overrides) == 0
    said = capsys.readouterr()
    assert ("this CPU emulates bfloat16" in said.out + said.err) == warned


# --- what is said of planted trainings ------------------------------------------------------------------------------


def planted(
    points: list[Any], accuracy: dict[tuple[str, float], float], *, seeds: int = 3, images: int = 4000
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """results.csv and what is right, as if each (curve, at) had that accuracy on images equally hard for all."""
    from scalesearch.paper.points import point_values

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


# --- maps, times and weights ----------------------------------------------------------------------------------------


def test_energy_of_a_map_is_the_share_that_lies_in_the_box() -> None:
    boxes = torch.tensor([[10, 20, 60, 50], [0, 0, 96, 48]])
    inside = in_boxes(boxes, 96)
    shares = (50 * 30 / 96**2, 0.5)
    assert inside.float().mean((1, 2)).tolist() == pytest.approx(shares)
    assert scores(torch.ones(2, 96, 96), inside)["energy"] == pytest.approx(sum(shares) / 2)
    assert scores(inside.float(), inside) == {"energy": 1.0, "hit": 1.0, "no_map": 0.0}
    assert scores((~inside).float(), inside) == {"energy": 0.0, "hit": 0.0, "no_map": 0.0}
    half_black = torch.stack([inside[0].float(), torch.zeros(96, 96)])
    assert scores(half_black, inside) == {"energy": 1.0, "hit": 1.0, "no_map": 1.0}
    assert math.isnan(scores(torch.zeros(2, 96, 96), inside)["energy"])


@pytest.mark.parametrize("name", ["preresnet_tiny", "mobilenetv2", "mobilenetv3_small"])
def test_maps_are_the_paper_s_class_activation_maps(name: str) -> None:
    """By hand: the weights of a class times the last maps (arXiv:1512.04150), where nothing but pooling comes after."""
    torch.manual_seed(0)
    small = replace(network(name), resolution=64, in_channels=1, num_classes=10)
    model = build(small).eval()
    data = load(DataSpec("fashion_scenes", 300, 200))
    maps = class_maps(model, small, data, 20)
    assert maps.shape == (20, map_side(small), map_side(small))
    assert maps.min() >= 0
    if name == "mobilenetv3_small":  # pools before its last layer, so its maps are Grad-CAM's alone
        return
    x = resized(data, "val", 64)[:20].float()
    mean, std = (torch.tensor(v).mul(255).view(1, -1, 1, 1) for v in (data.mean, data.std))
    with torch.no_grad():
        features = model.get_submodule("blocks")((x - mean) / std)
        weights = model.get_submodule("classifier").weight[data.val_labels[:20]]  # (20, C)
        by_hand = torch.relu(torch.einsum("nchw,nc->nhw", features, weights)) / features.shape[-1] ** 2
    assert torch.allclose(maps, by_hand, rtol=1e-3, atol=1e-6)


def test_networks_without_maps_are_refused() -> None:
    with pytest.raises(ValueError, match="gives no maps before it pools"):
        num_maps(network("vit_tiny"))


def test_pictures_are_of_different_classes_and_not_picked() -> None:
    labels = torch.tensor([3, 3, 1, 3, 0, 1])
    assert first_of_each_class(labels, 3).tolist() == [0, 2, 4]
    assert first_of_each_class(labels, 5).tolist() == [0, 2, 4, 1, 5]


def test_table7_says_which_way_it_fell() -> None:
    experiment = Table7(cost=4, coefficients=THIRDS, images=10, pictures=1)
    points = experiment.points(setting())
    results, right = planted(points, {(point.curve, point.at): 0.6 for point in points})
    level = {"resolution": 0.8, COMPOUND: 0.7}
    results["energy"] = [
        level.get(name, 0.5) + 0.01 * seed for name, seed in zip(results["curve"], results["seed"], strict=True)
    ]
    results["coarse"] = [
        0.6 + 0.02 * (seed - 1) * (name == COMPOUND)
        for name, seed in zip(results["curve"], results["seed"], strict=True)
    ]
    results[["hit", "no_map", "box_share"]] = 0.5, 0.0, 0.55
    summary = experiment.summary(results, right)
    assert summary.set_index("curve")["paper_top1"].to_dict() == {
        **{"baseline": 77.3, "depth": 79.0, "width": 78.9, "resolution": 79.1, "compound": 81.1}
    }
    said = experiment.finding(summary)
    assert said.startswith("compound looks at the object less than resolution, -10.00 points")
    assert "and +0.00 points (-4.97 to +4.97) where all maps" in said


def test_b_series_counts_what_is_published_and_what_was_counted_before() -> None:
    experiment = BSeries(coefficients=Coefficients(1.2, 1.1, 1.15), phis=[0, 1, 2, 3, 4, 5, 6, 7])
    table = experiment.computed({"efficientnet_b0": network("efficientnet_b0")}, rounding("released"))
    ours = table[table["series"] == "B0 to B7 as released"]
    known = pd.read_csv(ROOT / "tests" / "reference" / "derived_b_series.csv")
    assert ours["params"].tolist() == known["params"].tolist()
    assert ours["macs"].tolist() == known["macs"].tolist()
    for name, column in (("width", "width_1.1"), ("depth", "depth_1.2"), ("resolution", "resolution_1.15")):
        implied = known[f"phi_implied_by_{column}"].fillna(0)
        assert ours[f"phi_by_{name}"].round(2).tolist() == pytest.approx(implied.tolist(), abs=0.011)
    raw = table[table["series"] == "raw phi"].set_index("phi")
    before = pd.read_csv(ROOT / "tests" / "reference" / "derived_raw_phi.csv").set_index("phi")
    for phi in range(8):
        assert raw.loc[phi, "params"] == before.loc[phi, "params_ceil"]
        # counted there at a resolution that was not yet rounded to whole px, or rounded up
        assert raw.loc[phi, "macs_ratio"] == pytest.approx(before.loc[phi, "macs_ratio_ceil"], rel=5e-3)
    assert set(table[table["series"] == "the paper's Table 2"]["network"]) >= {"GPipe", "ResNet-50"}
    other = experiment.computed({"mobilenetv2": network("mobilenetv2")}, rounding("released"))
    assert set(other["series"]) == {"raw phi"}, "the paper's networks are no scaled MobileNetV2"


def test_latency_compares_with_what_is_as_accurate_and_as_dear() -> None:
    experiment = LatencyStudy(costs=[2, 4], coefficients=THIRDS, rounds=1)
    points = experiment.points(setting())
    accuracy = {("baseline", 1.0): 0.4, ("width", 2.0): 0.55, ("width", 4.0): 0.6, (COMPOUND, 2.0): 0.56}
    accuracy |= {(COMPOUND, 4.0): 0.58, ("depth", 2.0): 0.39, ("depth", 4.0): 0.5}
    accuracy |= {("resolution", 2.0): 0.5, ("resolution", 4.0): 0.5}
    results, right = planted(points, accuracy)
    times = {"baseline": 1.0, COMPOUND: 3.0, "width": 1.5, "depth": 6.0, "resolution": 2.0}
    for name in ("latency_ms", "latency_low", "latency_high"):
        results[name] = [
            times[one] * (at if one == COMPOUND else 1) for one, at in zip(results["curve"], results["at"], strict=True)
        ]
    rows = experiment.summary(results, right).set_index(["curve", "at"])
    assert rows.loc[("width", 2.0), "over_same_cost"] == pytest.approx(1.5 / 6)
    assert rows.loc[("width", 2.0), "over_as_accurate"] == pytest.approx(1.5 / 6)
    assert math.isnan(rows.loc[("width", 4.0), "over_as_accurate"]), "no compound network is as accurate"
    assert rows.loc[("depth", 2.0), "over_as_accurate"] == pytest.approx(6 / 1), "the baseline itself is"
    said = experiment.finding(rows.reset_index())
    assert "1 of 6 single networks are more accurate" in said
    printed = published("latency_table4")["speedup_printed"].dropna()
    assert all(f"{value:g} times" in LatencyStudy.paper for value in printed)


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


def test_the_published_proxy_study_has_a_perfect_rank_correlation() -> None:
    experiment = ProxyStudy(mixup=1.0)
    names = ("preresnet29", "se_preresnet29", "preresnet164", "se_preresnet164")
    shrunk = replace(setting(*names), baselines={name: network(name) for name in names})
    points = experiment.points(shrunk)
    assert [(point.curve, point.label) for point in points][:4] == [
        ("small", name) for name in ("plain", "SE", "mixup", "SE + mixup")
    ]
    accuracy = {("small", at): 0.5 + 0.02 * at for at in range(4)} | {("large", at): 0.7 - 0.02 * at for at in range(4)}
    summary = experiment.summary(*planted(points, accuracy))
    said = experiment.finding(summary)
    assert "SE against plain: +2.00 points" in said
    assert "better on the small network; -2.00 points" in said
    assert "Spearman's rho of the variants -1.00" in said
    assert "in the published study 1.00" in said


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
        means = results.groupby(["curve", "at"])["val_accuracy"].mean()
        said_means = read_summary(path).sort_values(["curve", "at"])["val_accuracy_mean"]
        assert means.tolist() == pytest.approx(said_means.tolist())


def recorded_experiment(path: Path) -> Any:
    options = from_yaml(path.with_suffix(".yaml"))["experiment"]
    cls = EXPERIMENTS[options.pop("name")]
    if "coefficients" in options:
        options["coefficients"] = Coefficients(*options["coefficients"])
    return cls(**options)
