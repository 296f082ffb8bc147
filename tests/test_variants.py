from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import cycle, product
from pathlib import Path
from typing import Any

import pytest
from conftest import case

from scalesearch.budget import METRICS, Profiler
from scalesearch.cli import main
from scalesearch.cost import cost
from scalesearch.fitting import ENOUGH
from scalesearch.network import Network, load
from scalesearch.scaling import Coefficients, Rounding, scale, uneven_channels
from scalesearch.variants import family, family_rows, measured, write

PAPER = Coefficients(1.2, 1.1, 1.15)
SIZES = ("macs", "params", "activations")
COLUMNS = ["name", "phi", "nominal_ratio", "product_ratio", *SIZES, "macs_ratio", "depth", "resolution", "file"]


def test_every_variant_is_the_scaled_baseline_at_its_counted_cost(
    baselines: dict[str, Network], roundings: dict[str, Rounding]
) -> None:
    for baseline in baselines.values():
        with case(baseline.name):
            for rounding in roundings.values():
                variants = family(baseline, PAPER, [1, 2.5, 4], rounding=rounding)
                assert [variant.phi for variant in variants] == [1, 2.5, 4]
                for variant in variants:
                    assert variant.network == scale(baseline, PAPER, variant.phi, rounding=rounding)
                    assert variant.cost == cost(variant.network)
                    assert variant.macs_ratio == cost(variant.network).macs / cost(baseline).macs


def test_every_phi_is_there_once_and_phi_0_is_the_baseline(
    baselines: dict[str, Network], roundings: dict[str, Rounding]
) -> None:
    for phis in [[0], [0.0, -0.0, 0], [1, 0, 1.0, 1]]:
        with case(phis):
            base = baselines["mobilenetv2"]
            variants = family(base, PAPER, phis, rounding=roundings["nearest"])
            assert [variant.phi for variant in variants] == sorted({float(phi) for phi in phis})
            assert variants[0].network == base
            assert variants[0].network.name == base.name
            assert variants[0].macs_ratio == 1


def test_a_negative_phi_makes_the_baseline_smaller(
    baselines: dict[str, Network], roundings: dict[str, Rounding]
) -> None:
    for baseline in baselines.values():
        with case(baseline.name):
            even = "fine" if uneven_channels(baseline, roundings["nearest"]) else "nearest"
            smaller, same = family(baseline, PAPER, [-1, 0], rounding=roundings[even])
            assert (smaller.phi, same.phi) == (-1, 0)
            assert smaller.macs_ratio < 1 == same.macs_ratio
            assert smaller.network.resolution < baseline.resolution


def test_an_absurd_phi_is_refused_by_its_name(baselines: dict[str, Network], roundings: dict[str, Rounding]) -> None:
    for baseline, phi in product(baselines.values(), [20, 300, 1e6, 1e308, math.inf, -math.inf, math.nan, -40, -5000]):
        with case(baseline.name, phi):
            if phi == -40 and baseline.stem[0].block == "patch_embed":
                continue  # a resolution of one patch is the smallest, and has a network
            for rounding in roundings.values():
                with pytest.raises(ValueError, match=r"must be|are the most|raise the resolution") as refusal:
                    family(baseline, Coefficients(2, 2, 2), [1, phi], rounding=rounding)
                message = str(refusal.value)
                assert message.startswith(f"phi {phi:g}: ")
                assert len(message) < 250


def test_every_file_loads_again_as_an_equal_network(
    baselines: dict[str, Network], roundings: dict[str, Rounding], tmp_path: Path
) -> None:
    """Scaled by the roundings in turn."""
    for baseline, rounding in zip(baselines.values(), cycle(roundings.values()), strict=False):
        with case(baseline.name, rounding):
            directory = tmp_path / baseline.name / "deep"
            variants = family(baseline, PAPER, [-0.5, 1, 3], rounding=rounding)
            write(variants, PAPER, directory, rounding=rounding)
            files = [str(row["file"]) for row in family_rows(variants, PAPER, directory)]
            assert sorted(files) == sorted(map(str, (directory / "baseline").iterdir()))
            for variant, file in zip(variants, files, strict=True):
                again = load(Path(file))
                assert again == variant.network
                assert again.name == variant.network.name == Path(file).stem
                assert cost(again) == variant.cost


def test_a_file_says_how_it_was_made(
    baselines: dict[str, Network], roundings: dict[str, Rounding], tmp_path: Path
) -> None:
    variants = family(baselines["mobilenetv2"], PAPER, [2], rounding=roundings["nearest"])
    write(variants, PAPER, tmp_path, rounding=roundings["nearest"])
    text = (tmp_path / "baseline" / "mobilenetv2_phi2.yaml").read_text()
    head = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    assert "phi = 2, alpha (depth) = 1.2, beta (width) = 1.1, gamma (resolution) = 1.15" in head
    assert "depth 1.44, width 1.21, resolution 1.322; rounding: nearest" in head
    assert f"{variants[0].cost.macs:,} multiply-adds" in head
    assert f"{variants[0].cost.params:,} params" in head


def test_phis_that_differ_little_do_not_share_a_file(
    baselines: dict[str, Network], roundings: dict[str, Rounding], tmp_path: Path
) -> None:
    phis = [0, 1, 1.0000001, 0.1, 0.1 + 0.2, 0.3]
    variants = family(baselines["mobilenetv2"], PAPER, phis, rounding=roundings["nearest"])
    table = family_rows(variants, PAPER, tmp_path)
    assert len({row["file"] for row in table}) == len({row["name"] for row in table}) == 6
    assert {"mobilenetv2", "mobilenetv2_phi1", "mobilenetv2_phi0.3"} <= {row["name"] for row in table}
    write(variants, PAPER, tmp_path, rounding=roundings["nearest"])
    assert {str(path) for path in (tmp_path / "baseline").iterdir()} == {row["file"] for row in table}


def test_the_table_has_nominal_and_counted_ratios(
    baselines: dict[str, Network], roundings: dict[str, Rounding], tmp_path: Path
) -> None:
    variants = family(baselines["efficientnet_b0"], PAPER, [0, 1, 2, 3], rounding=roundings["nearest"])
    table = family_rows(variants, PAPER, tmp_path)
    for phi, (row, variant) in enumerate(zip(table, variants, strict=True)):
        assert sorted(row) == sorted(COLUMNS)
        assert row["nominal_ratio"] == 2**phi
        assert row["product_ratio"] == pytest.approx((1.2 * 1.1**2 * 1.15**2) ** phi)
        assert {name: row[name] for name in SIZES} == {name: getattr(variant.cost, name) for name in SIZES}
        assert row["macs_ratio"] == variant.cost.macs / variants[0].cost.macs
        assert row["depth"] == variant.network.depth
    assert [row["resolution"] for row in table] == [224, 258, 296, 341]
    assert [row["depth"] for row in table] == [16, 19, 23, 28]  # 16 * 1.2^phi, to the nearest


def test_writing_again_replaces_the_files(
    baselines: dict[str, Network], roundings: dict[str, Rounding], tmp_path: Path
) -> None:
    variants = family(baselines["mobilenetv2"], PAPER, [1], rounding=roundings["nearest"])
    (tmp_path / "baseline").mkdir()
    (tmp_path / "baseline" / "mobilenetv2_phi1.yaml").write_text("half a fi")
    for _ in range(2):
        write(variants, PAPER, tmp_path, rounding=roundings["nearest"])
        assert load(tmp_path / "baseline" / "mobilenetv2_phi1.yaml") == variants[0].network
        assert len(list((tmp_path / "baseline").iterdir())) == 1


def test_needs_are_columns_once_they_are_measured(
    baselines: dict[str, Network], roundings: dict[str, Rounding]
) -> None:
    profiler = Profiler(batch_size=8)
    (variant,) = measured(family(baselines["preresnet20"], PAPER, [1], rounding=roundings["nearest"]), profiler)
    (row,) = family_rows([variant], PAPER, Path())
    assert sorted(row) == sorted([*COLUMNS, "memory", "training_memory", "latency_ms"])
    assert {name: row[name] for name in METRICS} == {
        name: metric(variant.network, profiler) for name, metric in METRICS.items()
    }


# The command


@pytest.fixture
def command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], brief_latencies: None
) -> Callable[..., tuple[int, Any, str]]:
    """The exit code, the JSON object and the words of `scalesearch variants` with these overrides."""

    def run(*overrides: str, name: str = "variants") -> tuple[int, Any, str]:
        with pytest.raises(SystemExit) as ended:
            main([name, f"workspace={tmp_path}", *overrides, "--json"])
        out, words = capsys.readouterr()
        return int(ended.value.code or 0), json.loads(out) if out else None, words

    return run


def test_the_command_writes_the_variant_that_meets_a_budget(command: Callable[..., Any], tmp_path: Path) -> None:
    code, answer, message = command("baseline=mobilenetv2", "budget.macs=150M", "budget.params=5M")
    assert code == 0
    (row,) = answer["variants"]
    assert row["name"] == "mobilenetv2_macs150M_params5M"
    assert 147e6 <= row["macs"] <= 150e6
    budget = answer["budget"]
    assert budget["limits"] == {"macs": 150e6, "params": 5e6}
    assert budget["binding"] == "macs"
    assert budget["use"] == {"macs": row["macs"] / 150e6, "params": row["params"] / 5e6}
    assert budget["used_up"]
    assert budget["phi"] == row["phi"] < 0
    assert "coefficients of the EfficientNet paper, found for EfficientNet-B0 on ImageNet" in message
    assert "of budget.macs=150M, which binds; " in message
    text = Path(row["file"]).read_text()
    for move in budget["moves"]:
        assert f"{move['what']} {move['before']} -> {move['after']}" in text
        assert f"{move['what']} {move['before']} -> {move['after']}" in message
    assert f"{100 * row['macs'] / 150e6:.2f} % of budget.macs=150M" in text
    again, counted, _ = command("--config-dir", str(tmp_path / "variants"), f"baseline={row['name']}", "phis=[0]")
    assert again == 0
    assert counted["variants"][0]["macs"] == row["macs"]


def test_a_budget_below_the_smallest_network_is_code_5_with_the_nearest(command: Callable[..., Any]) -> None:
    code, answer, message = command("baseline=mobilenetv2", "budget.params=100k")
    assert code == 5
    assert answer is None
    assert "no network meets budget.params=100k: the smallest that the rule gives (phi = -13.9" in message
    assert "32 px) needs 423 k, 4.23 x as much" in message


def test_a_grain_that_is_too_coarse_is_said(command: Callable[..., Any]) -> None:
    code, answer, message = command("baseline=vit_tiny", "rounding=lite", "budget.params=5M")
    assert code == 0
    assert not answer["budget"]["used_up"]
    assert answer["budget"]["use"]["params"] < ENOUGH
    assert "the grain allows no more" in message


def test_what_cannot_be_is_refused_before_anything_is_written(command: Callable[..., Any], tmp_path: Path) -> None:
    cases = [
        (
            ["budget.macs=1M", "phis=[1]"],
            "phis is [1], and budget.macs needs the phi that meets it; give one of them",
        ),
        (["budget.macs=foo"], "budget.macs is 'foo'; it must be a number such as 300M or 1.5G"),
        (["budget.memory=512M"], "budget.memory is '512M'; it must be bytes such as 512MiB or 2GB"),
        (["budget.latency_ms=-1"], "budget.latency_ms is -1; it must be milliseconds"),
        (["+budget.parms=5M"], "budget.parms is not a known key; did you mean 'params'?"),
        (["coefficients.alpha=1.2"], "coefficients.beta is missing"),
        (["phis=[]"], "phis is []"),
        (["batch_size=0"], "batch_size is 0; it must be null or a whole number from 1 to"),
        (["budget.params=5M", "coefficients={alpha: 1, beta: 1, gamma: 1}"], "to meet a budget each must be 1 or more"),
    ]
    for overrides, words in cases:
        with case(overrides, words):
            code, answer, message = command(*overrides)
            assert code == 2
            assert answer is None
            assert words in message
            assert message.count("\n") == 1
            assert list(tmp_path.iterdir()) == []


def test_without_phis_or_a_budget_the_family_is_1_2_and_3(command: Callable[..., Any]) -> None:
    _, answer, _ = command("baseline=preresnet20", "batch_size=4")
    assert [row["phi"] for row in answer["variants"]] == [1, 2, 3]
    assert answer["coefficients"] == {"alpha": 1.2, "beta": 1.1, "gamma": 1.15, "product": 1.92027}
    assert "budget" not in answer
    _, again, _ = command("baseline=preresnet20", "batch_size=4")
    assert again == answer  # latencies and all: what was measured is kept
    _, other, _ = command("baseline=preresnet20", "batch_size=8")
    for one, two in zip(answer["variants"], other["variants"], strict=True):
        assert one["training_memory"] < two["training_memory"]
        assert one["memory"] == two["memory"]
