from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle, product
from pathlib import Path
from typing import Any

import pytest
from conftest import case
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from scalesearch import budget
from scalesearch.budget import METRICS, Limits, Profiler
from scalesearch.cli import main
from scalesearch.cost import cost
from scalesearch.fitting import ENOUGH, Fit, fit
from scalesearch.latency import Latency
from scalesearch.model import trust
from scalesearch.network import Factory, Network, load
from scalesearch.scaling import Coefficients, Rounding, resize, scale, uneven_channels
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
                said = str(refusal.value)
                assert said.startswith(f"phi {phi:g}: ")
                assert len(said) < 250


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
    meter = Profiler(batch_size=8)
    (variant,) = measured(family(baselines["preresnet20"], PAPER, [1], rounding=roundings["nearest"]), meter)
    (row,) = family_rows([variant], PAPER, Path())
    assert sorted(row) == sorted([*COLUMNS, "memory", "training_memory", "latency_ms"])
    assert {name: row[name] for name in METRICS} == {
        name: metric(variant.network, meter) for name, metric in METRICS.items()
    }


# Budgets

COUNTED = ("macs", "params")
METER = Profiler(batch_size=16)
# Whose channels come in small steps compared with them; tables of few channels, or of one patch, have coarse grains.
FINE = [
    "mobilenetv2",
    "efficientnet_b0",
    "resnet50",
    "resnext50",
    "mobilenetv3_large",
    "efficientnetv2_s",
    "preresnet164",
]


def fitted(network: Any, rounding: Rounding, coefficients: Coefficients = PAPER, **limits: float) -> Fit:
    return fit(network, coefficients, Limits(**limits), rounding=rounding, meter=METER)


@pytest.mark.parametrize("examples", [15, pytest.param(60, marks=pytest.mark.slow)])
def test_whatever_the_budget_the_network_meets_all_of_it_or_none_does(
    examples: int, baselines: dict[str, Network], roundings: dict[str, Rounding]
) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(
        name=st.sampled_from([*FINE, "vit_tiny", "preresnet20", "mobilenetv1"]),
        rule=st.sampled_from(["released", "nearest", "lite", "tinynet", "mobilenet"]),
        triple=st.sampled_from(
            [(1.2, 1.1, 1.15), (1.0, 1.3, 1.1), (1.9, 1.0, 1.0), (1.0, 1.0, 1.4), (1.02, 1.01, 1.01)]
        ),
        octaves=st.dictionaries(st.sampled_from(COUNTED), st.floats(-4, 4), min_size=1),
    )
    def holds(name: str, rule: str, triple: tuple[float, float, float], octaves: dict[str, float]) -> None:
        base, rounding = baselines[name], roundings[rule]
        limits = {metric: METRICS[metric](base, METER) * 2**octave for metric, octave in octaves.items()}
        found = fitted(base, rounding, Coefficients(*triple), **limits)
        network = found.variant.network
        assert found.use == {metric: METRICS[metric](network, METER) / limit for metric, limit in limits.items()}
        assert found.share == max(found.use.values()) == found.use[found.binding]
        assert found.variant.cost == cost(network)
        ruled = scale(base, Coefficients(*triple), found.variant.phi, rounding=rounding)
        if found.share > 1:  # then no phi below has a network that is smaller
            assert network == ruled
            for less in (0.01, 0.3, 2, 8):
                try:
                    smaller = scale(base, Coefficients(*triple), found.variant.phi - less, rounding=rounding)
                except ValueError:
                    continue
                assert any(METRICS[metric](smaller, METER) > limit for metric, limit in limits.items())
        elif not found.variant.moves:
            assert network == ruled
        else:
            assert len(found.variant.moves) <= 3
            assert found.share > max(METRICS[metric](ruled, METER) / limit for metric, limit in limits.items())

    holds()


@pytest.mark.parametrize("examples", [10, pytest.param(40, marks=pytest.mark.slow)])
def test_a_budget_is_used_to_98_percent_where_the_grain_is_fine(
    examples: int, baselines: dict[str, Network], roundings: dict[str, Rounding]
) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(name=st.sampled_from(FINE), metric=st.sampled_from(COUNTED), octave=st.floats(-1.5, 4))
    def holds(name: str, metric: str, octave: float) -> None:
        for rule in ("released", "nearest"):
            limit = METRICS[metric](baselines[name], METER) * 2**octave
            assert ENOUGH <= fitted(baselines[name], roundings[rule], **{metric: limit}).share <= 1

    holds()


@pytest.mark.parametrize("examples", [10, pytest.param(30, marks=pytest.mark.slow)])
def test_more_budget_is_never_a_smaller_phi(
    examples: int, baselines: dict[str, Network], roundings: dict[str, Rounding]
) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(name=st.sampled_from(FINE), metric=st.sampled_from(COUNTED), octave=st.floats(-2, 3), more=st.floats(1, 2))
    def holds(name: str, metric: str, octave: float, more: float) -> None:
        limit = METRICS[metric](baselines[name], METER) * 2**octave
        less, larger = (fitted(baselines[name], roundings["nearest"], **{metric: limit * k}) for k in (1, more))
        assume(less.share <= 1)
        assert larger.variant.phi >= less.variant.phi

    holds()


def test_budgets_that_people_give_are_used_to_98_percent(
    baselines: dict[str, Network], roundings: dict[str, Rounding]
) -> None:
    cases = [
        ("mobilenetv2", {"macs": 150e6}),
        ("mobilenetv2", {"macs": 1e9}),
        ("resnet50", {"macs": 2e9}),
        ("efficientnet_b0", {"params": 4e6}),
        ("vit_small", {"params": 30e6}),
        ("mobilenetv2", {"memory": 20 * 2**20}),
        ("resnet50", {"training_memory": 2 * 2**30}),
        ("mobilenetv2", {"macs": 300e6, "params": 5e6, "memory": 20 * 2**20}),
    ]
    for name, limits in cases:
        with case(name, limits):
            found = fitted(baselines[name], roundings["released"], **limits)
            assert ENOUGH <= found.share <= 1


def test_the_phi_is_the_largest_whose_network_fits(
    baselines: dict[str, Network], roundings: dict[str, Rounding]
) -> None:
    """Counted on a fine scale of phi, though the cost after rounding steps down here and there."""
    base, rounding = baselines["resnext50"], roundings["nearest"]
    counted = {k: cost(scale(base, PAPER, k / 1000, rounding=rounding)).macs for k in range(-2000, 1000)}
    steps_down = [k for k in range(-1999, 1000) if counted[k] < counted[k - 1]]
    assert steps_down
    for k in steps_down:
        found = fitted(base, rounding, macs=counted[k])
        assert found.variant.phi >= k / 1000
        assert all(counted[j] > counted[k] for j in range(k, 1000) if j / 1000 > found.variant.phi)


def test_a_network_of_exactly_the_budget_is_taken_as_the_rule_gives_it(
    baselines: dict[str, Network], roundings: dict[str, Rounding]
) -> None:
    for exact in [-1.5, 0.0, 1.0, 2.0]:
        with case(exact):
            base = baselines["efficientnet_b0"]
            wanted = scale(base, PAPER, exact, rounding=roundings["released"])
            found = fitted(base, roundings["released"], macs=cost(wanted).macs)
            assert found.variant.phi >= exact  # more where another pixel costs nothing
            assert found.variant.moves == ()
            assert found.share == 1


def test_the_resolution_is_turned_first_and_by_its_grain(
    baselines: dict[str, Network], roundings: dict[str, Rounding]
) -> None:
    coarse = replace(roundings["released"], resolution_multiple=16)
    for rounding, grain in ((roundings["released"], 1), (coarse, 16)):
        for limit in (200e6, 350e6, 500e6, 900e6, 1.3e9, 2.2e9):
            network = fitted(baselines["efficientnet_b0"], rounding, macs=limit).variant.network
            assert network.resolution % grain == 0
    (move,) = fitted(baselines["mobilenetv2"], roundings["released"], macs=1e9).variant.moves
    assert move.what == "resolution"
    for limit in (600e6, 1.5e9, 4e9):
        assert fitted(baselines["vit_tiny"], roundings["released"], macs=limit).variant.network.resolution % 16 == 0


def test_a_move_changes_what_it_says_and_nothing_else(
    baselines: dict[str, Network], roundings: dict[str, Rounding]
) -> None:
    seen = set()
    for name, limits in (
        ("efficientnet_b0", {"params": 4e6}),
        ("mobilenetv2", {"macs": 1e9}),
        ("mobilenetv2", {"macs": 1e6}),
        ("preresnet20", {"params": 500e3}),
        ("vit_tiny", {"macs": 1.1e9}),
        ("vit_tiny", {"params": 9e6}),
        ("resnext50", {"params": 12e6}),
    ):
        variant = fitted(baselines[name], roundings["nearest"], **limits).variant
        ruled = scale(baselines[name], PAPER, variant.phi, rounding=roundings["nearest"])
        before, after = numbers(ruled), numbers(variant.network)
        changed = {key: (before[key], after[key]) for key in before if before[key] != after[key]}
        moved = {
            f"{row}.{field}" if field else row: (move.before, move.after)
            for move in variant.moves
            for rows, _, field in [move.what.rpartition(".")]
            for row in (rows.split(", ") if field in ("channels", "repeats") else [move.what])
            for field in [field if field in ("channels", "repeats") else ""]
        }
        assert moved == changed
        seen |= {what.rpartition(".")[2] for what in moved}
    assert seen == {"resolution", "channels", "repeats"}


def numbers(network: Network) -> dict[str, int]:
    """What a move may change, by the names that moves have."""
    named = {"resolution": network.resolution}
    for name, row in network.rows():
        where = name.replace(".", "[") + "]" if "." in name else name
        named |= {f"{where}.repeats": row.repeats}
        if row.channels is not None:
            named |= {f"{where}.channels": row.channels}
    return named


def test_what_the_rule_keeps_is_not_turned(baselines: dict[str, Network], roundings: dict[str, Rounding]) -> None:
    """EfficientNet-Lite keeps stem, head, and the repeats of the first and last stage."""
    base, moved = baselines["efficientnet_lite0"], set()
    for octave in range(-4, 16, 3):
        for metric in COUNTED:
            limit = METRICS[metric](base, METER) * 2 ** (octave / 4)
            variant = fitted(base, roundings["lite"], **{metric: limit}).variant
            assert (variant.network.stem, variant.network.head) == (base.stem, base.head)
            assert [variant.network.stages[end].repeats for end in (0, -1)] == [1, 1]
            moved |= {move.what for move in variant.moves}
    assert any("channels" in what for what in moved)


@pytest.mark.parametrize("metric", ["memory", "training_memory"])
def test_memory_is_met_as_it_is_computed(
    metric: str, baselines: dict[str, Network], roundings: dict[str, Rounding]
) -> None:
    for name in ("mobilenetv2", "vit_tiny"):
        base = baselines[name]  # with few blocks: each of many networks has its memory computed block by block
        base = replace(base, stages=tuple(replace(stage, repeats=min(stage.repeats, 2)) for stage in base.stages[:3]))
        limit = 1.7 * METRICS[metric](base, METER)
        with case(name):
            found = fitted(base, roundings["released"], **{metric: limit})
            assert 0.9 < METRICS[metric](found.variant.network, METER) / limit <= 1
            assert found.variant.phi > 0


def test_latency_is_met_as_it_is_measured(
    baselines: dict[str, Network], roundings: dict[str, Rounding], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that takes a millisecond for ten million multiply-adds, and one more."""

    def latency(network: Network, *, budget_seconds: float) -> Latency:
        milliseconds = 1 + cost(network).macs / 1e7
        return Latency(milliseconds, milliseconds, milliseconds, 3, "cpu", 1, 1)

    monkeypatch.setattr(budget, "latency", latency)
    small = resize(replace(baselines["mobilenetv2"], resolution=96), width=0.5, rounding=roundings["released"])
    meter = Profiler(batch_size=16)
    limit = 1.5 * meter.latency_ms(small)
    found = fit(small, PAPER, Limits(latency_ms=limit), rounding=roundings["released"], meter=meter)
    assert meter.latency_ms(found.variant.network) == pytest.approx(found.share * limit)
    assert 0.5 < found.share <= 1
    assert {move.what for move in found.variant.moves} <= {"resolution"}


def test_a_factory_is_fitted_by_its_resolution_depth_and_width(roundings: dict[str, Rounding]) -> None:
    made = Factory(name="mine", function="mine_of_test_variants:make", resolution=32)
    trust(made.function, make)
    for metric in COUNTED:
        for octave in (-1.5, 0, 2.3):
            limit = METRICS[metric](made, METER) * 2**octave
            found = fitted(made, roundings["nearest"], **{metric: limit})
            assert ENOUGH <= METRICS[metric](found.variant.network, METER) / limit <= 1
            assert {move.what for move in found.variant.moves} <= {"resolution", "depth", "width"}


def make(depth: float, width: float, resolution: int, num_classes: int, in_channels: int) -> Any:
    from torch import nn

    channels = max(1, round(128 * width))
    layers: list[nn.Module] = [nn.Conv2d(in_channels, channels, 3, padding=1)]
    layers += [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(max(1, round(4 * depth)))]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


def test_coefficients_that_do_not_make_it_larger_are_refused(
    baselines: dict[str, Network], roundings: dict[str, Rounding]
) -> None:
    for triple in [(0.9, 1.2, 1.2), (1.2, 0.9, 1.2), (1.2, 1.2, 0.99), (1, 1, 1)]:
        with case(triple), pytest.raises(ValueError, match="to meet a budget each must be 1 or more, and one above 1"):
            fitted(baselines["mobilenetv2"], roundings["released"], Coefficients(*triple), macs=1e9)


def test_a_budget_beyond_all_tables_ends_at_the_largest(
    baselines: dict[str, Network], roundings: dict[str, Rounding]
) -> None:
    for limits in [{"macs": 1e30}, {"params": 1e30}]:
        with case(limits):
            found = fitted(baselines["mobilenetv2"], roundings["released"], **limits)
            assert found.share < 1e-6
            with pytest.raises(ValueError, match=r"are the most|must be"):
                scale(baselines["mobilenetv2"], PAPER, found.variant.phi + 0.1, rounding=roundings["released"])


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
    code, answer, said = command("baseline=mobilenetv2", "budget.macs=150M", "budget.params=5M")
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
    assert "coefficients of the EfficientNet paper, found for EfficientNet-B0 on ImageNet" in said
    assert "of budget.macs=150M, which binds; " in said
    text = Path(row["file"]).read_text()
    for move in budget["moves"]:
        assert f"{move['what']} {move['before']} -> {move['after']}" in text
        assert f"{move['what']} {move['before']} -> {move['after']}" in said
    assert f"{100 * row['macs'] / 150e6:.2f} % of budget.macs=150M" in text
    again, counted, _ = command("--config-dir", str(tmp_path / "variants"), f"baseline={row['name']}", "phis=[0]")
    assert again == 0
    assert counted["variants"][0]["macs"] == row["macs"]


def test_a_budget_below_the_smallest_network_is_code_5_with_the_nearest(command: Callable[..., Any]) -> None:
    code, answer, said = command("baseline=mobilenetv2", "budget.params=100k")
    assert code == 5
    assert answer is None
    assert "no network meets budget.params=100k: the smallest that the rule gives (phi = -13.9" in said
    assert "32 px) needs 423 k, 4.23 x as much" in said


def test_a_grain_that_is_too_coarse_is_said(command: Callable[..., Any]) -> None:
    code, answer, said = command("baseline=vit_tiny", "rounding=lite", "budget.params=5M")
    assert code == 0
    assert not answer["budget"]["used_up"]
    assert answer["budget"]["use"]["params"] < ENOUGH
    assert "the grain allows no more" in said


def test_what_cannot_be_is_refused_before_anything_is_written(command: Callable[..., Any], tmp_path: Path) -> None:
    cases = [
        (
            ["budget.macs=1M", "phis=[1]"],
            "phis is [1], and budget.macs asks for the phi that meets it; give one of them",
        ),
        (["budget.macs=foo"], "budget.macs is 'foo'; it must be a number such as 300M or 1.5G"),
        (["budget.memory=512M"], "budget.memory is '512M'; it must be bytes such as 512MiB or 2GB"),
        (["budget.latency_ms=-1"], "budget.latency_ms is -1; it must be milliseconds"),
        (["+budget.parms=5M"], "budget.parms is not a known key; did you mean 'params'?"),
        (["coefficients.alpha=1.2"], "coefficients.beta is missing"),
        (["phis=[]"], "phis is []"),
        (["batch_size=0"], "batch_size is 0; it must be a whole number from 1 to"),
        (["budget.params=5M", "coefficients={alpha: 1, beta: 1, gamma: 1}"], "to meet a budget each must be 1 or more"),
    ]
    for overrides, words in cases:
        with case(overrides, words):
            code, answer, said = command(*overrides)
            assert code == 2
            assert answer is None
            assert words in said
            assert said.count("\n") == 1
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
