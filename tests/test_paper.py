"""The paper's experiments: networks of equal cost, what comes out of planted trainings, maps, times and weights."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from paper_setting import ROOT, THIRDS, network, planted, rounding, setting

from scalesearch.config import from_yaml
from scalesearch.cost import cost
from scalesearch.data import DataSpec, load
from scalesearch.model import build
from scalesearch.paper.experiments import (
    b_series,
    figure3,
    figure4,
    figure8,
    latency,
    phi_check,
    proxy_study,
    table3,
    table7,
)
from scalesearch.paper.experiments.figure3 import saturation
from scalesearch.paper.experiments.phi_check import CENTRE
from scalesearch.paper.experiments.table7 import class_maps, first_of_each_class, in_boxes, map_side, num_maps, scores
from scalesearch.paper.points import COMPOUND, MATCHED, MIXES, SINGLE, coefficients_of
from scalesearch.paper.tables import Paired, published, summarised
from scalesearch.scaling import Coefficients
from scalesearch.training import resized

# --- equal counted cost ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [2.0, 4.0, 8.0, 16.0])
def test_all_ways_cost_the_same_and_scale_what_they_say(ratio: float) -> None:
    base = network()
    points = setting().ways([ratio], THIRDS)
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
    points = setting(name, rule="nearest").ways([4.0], THIRDS, mixes=False)
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
    splits = phi_check.Experiment(coefficients=THIRDS, phis=[1, 2], steps=[0.5, 1]).splits()
    assert len(splits) == 7
    assert all(one.product == pytest.approx(2) for one in splits.values())
    assert splits["depth +1"].alpha == pytest.approx(2)
    assert (splits["width +1"].alpha, splits["width +1"].gamma) == pytest.approx((1, 1))
    assert splits["resolution +0.5"].gamma > splits[CENTRE].gamma > splits["depth +0.5"].gamma


# --- what is said of planted trainings ------------------------------------------------------------------------------


@pytest.mark.parametrize(("gain", "verdict"), [(0.05, "better"), (-0.05, "worse"), (0.0, "tied")])
def test_figure8_says_which_way_it_fell(gain: float, verdict: str, tmp_path: Path) -> None:
    experiment = figure8.Experiment(costs=[2, 4], coefficients=THIRDS)
    points = experiment.points(setting())
    level = {"width": 0.6, "depth": 0.55, COMPOUND: 0.6 + gain}
    accuracy = {(point.curve, point.at): level.get(point.curve, 0.5) for point in points}
    summary = experiment.summary(*planted(points, accuracy))
    compound = summary[summary["curve"] == COMPOUND]
    assert set(compound["best_single"]) == {"width"}
    assert compound["less_single_value"].tolist() == pytest.approx([gain, gain], abs=1e-3)
    message = experiment.finding(summary)
    assert {
        "better": "compound scaling beats the best single dimension at 2 and 4 times the cost:",
        "worse": "beats the best single dimension at no cost and loses to it at 2 and 4 times:",
        "tied": "compound scaling beats the best single dimension at no cost: at 2",
    }[verdict] in message
    assert f"{100 * float(compound['less_single_value'].iloc[0]):+.2f} points" in message


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
    points = setting().ways([2.0], THIRDS, mixes=False)
    results, right = planted(points, {(point.curve, point.at): 0.6 + 0.01 * i for i, point in enumerate(points)})
    difference = Paired(results, right).difference({"curve": COMPOUND, "at": 2.0}, {"curve": "depth", "at": 2.0})
    assert difference.value == pytest.approx(0.03, abs=1e-3)
    assert difference.low < difference.value < difference.high


def test_the_saturation_that_was_planted_is_found() -> None:
    ratio = np.array([1.0, 2, 4, 8, 16, 32])
    found = saturation(ratio, 0.8 - 0.3 * ratio**-0.5)
    assert found == pytest.approx((0.8, 0.3, 0.5), abs=1e-3)
    assert saturation(ratio[:3], ratio[:3]) is None


def test_figure3_and_4_find_what_was_planted() -> None:
    three = figure3.Experiment(widths=[1, 2, 3, 4], depths=[1, 2, 3, 4], resolutions=[1, 1.5])
    points = three.points(setting())
    accuracy = {(point.curve, point.at): 0.7 - (0.2 if point.curve == "width" else 0.1) / point.at for point in points}
    summary = three.summary(*planted(points, accuracy, images=40_000))
    ceilings = summary.groupby("curve")["ceiling"].first()
    assert ceilings["width"] == pytest.approx(0.7, abs=0.03)
    assert math.isnan(ceilings["resolution"]), "two points fit no law of three parameters"
    assert "width takes accuracy from 50.0 % to 65.0 %" in three.finding(summary)
    four = figure4.Experiment(widths=[1, 2], curves=[[1, 1], [2, 1]])
    points = four.points(setting())
    lift = {"d=1.0, r=1.0": 0.5, "d=2.0, r=1.0": 0.55}
    summary = four.summary(*planted(points, {(point.curve, point.at): lift[point.curve] for point in points}))
    assert "d=2.0, r=1.0 lies +5.00 points from d=1.0, r=1.0" in four.finding(summary)


def test_phi_check_notices_a_winner_that_loses_later() -> None:
    experiment = phi_check.Experiment(coefficients=THIRDS, phis=[1, 2], steps=[1])
    points = experiment.points(setting())
    order = ["width +1", "depth +1", CENTRE, "resolution +1"]
    accuracy = {
        (point.curve, point.at): 0.5
        + 0.03 * (order.index(point.curve) if point.at == 4 else 3 - order.index(point.curve))
        for point in points
    }
    summary = experiment.summary(*planted(points, accuracy))
    message = experiment.finding(summary)
    assert message.startswith("the best split at phi = 1 is width +1; at phi = 2 rank 4 of 4, 9.0")
    assert "behind resolution +1" in message
    assert "Kendall's tau -1.00" in message
    assert summary.loc[(summary["curve"] == "width +1") & (summary["phi"] == 2), "behind_low"].item() > 0


def test_table3_stands_beside_the_paper_s() -> None:
    experiment = table3.Experiment(cost=4, coefficients=Coefficients(1.4, 1.2, 1.3))
    points = experiment.points(setting("mobilenetv1", "mobilenetv2", rule="nearest"))
    accuracy = {(point.curve, point.at): 0.6 if COMPOUND in point.curve else 0.55 for point in points}
    summary = experiment.summary(*planted(points, accuracy, images=2000))
    rows = summary.set_index(["baseline", "method"])
    assert rows.loc[("mobilenetv1", "compound"), "paper_top1"] == 75.6
    assert rows.loc[("mobilenetv2", "depth"), "paper_top1"] == 76.8
    assert math.isnan(rows.loc[("mobilenetv1", "depth"), "paper_top1"]), "the paper has no such row"
    message = experiment.finding(summary)
    assert "on mobilenetv1 +5.00 points" in message
    assert "better (the paper's: +1.4)" in message


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
    experiment = table7.Experiment(cost=4, coefficients=THIRDS, images=10, pictures=1)
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
    message = experiment.finding(summary)
    assert message.startswith("compound looks at the object less than resolution, -10.00 points")
    assert "and +0.00 points (-4.97 to +4.97) where all maps" in message


def test_b_series_counts_what_is_published_and_what_was_counted_before() -> None:
    experiment = b_series.Experiment(coefficients=Coefficients(1.2, 1.1, 1.15), phis=[0, 1, 2, 3, 4, 5, 6, 7])
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
    experiment = latency.Experiment(costs=[2, 4], coefficients=THIRDS, rounds=1)
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
    message = experiment.finding(rows.reset_index())
    assert "1 of 6 single networks are more accurate" in message
    printed = published("latency_table4")["speedup_printed"].dropna()
    assert all(
        f"{value:g} times" in from_yaml(ROOT / "conf/experiment/latency.yaml")["experiment"]["paper"]
        for value in printed
    )


def test_the_published_proxy_study_has_a_perfect_rank_correlation() -> None:
    experiment = proxy_study.Experiment(mixup=1.0)
    names = ("preresnet29", "se_preresnet29", "preresnet164", "se_preresnet164")
    shrunk = replace(setting(*names), baselines={name: network(name) for name in names})
    points = experiment.points(shrunk)
    assert [(point.curve, point.label) for point in points][:4] == [
        ("small", name) for name in ("plain", "SE", "mixup", "SE + mixup")
    ]
    accuracy = {("small", at): 0.5 + 0.02 * at for at in range(4)} | {("large", at): 0.7 - 0.02 * at for at in range(4)}
    summary = experiment.summary(*planted(points, accuracy))
    message = experiment.finding(summary)
    assert "SE against plain: +2.00 points" in message
    assert "better on the small network; -2.00 points" in message
    assert "Spearman's rho of the variants -1.00" in message
    assert "in the published study 1.00" in message
