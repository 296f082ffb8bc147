"""From limits to a variant: the largest phi that meets them, and what is trimmed to use them up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from conftest import case
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from scalesearch import budget
from scalesearch.budget import METRICS, Limits, Profiler
from scalesearch.cost import cost
from scalesearch.fitting import ENOUGH, Fit, fit
from scalesearch.latency import Latency
from scalesearch.model import trust
from scalesearch.network import Factory, Network
from scalesearch.scaling import Coefficients, Rounding, resize, scale

PAPER = Coefficients(1.2, 1.1, 1.15)
COUNTED = ("macs", "params")
PROFILER = Profiler(batch_size=16)
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
    return fit(network, coefficients, Limits(**limits), rounding=rounding, profiler=PROFILER)


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
        limits = {metric: METRICS[metric](base, PROFILER) * 2**octave for metric, octave in octaves.items()}
        found = fitted(base, rounding, Coefficients(*triple), **limits)
        network = found.variant.network
        assert found.use == {metric: METRICS[metric](network, PROFILER) / limit for metric, limit in limits.items()}
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
                assert any(METRICS[metric](smaller, PROFILER) > limit for metric, limit in limits.items())
        elif not found.variant.moves:
            assert network == ruled
        else:
            assert len(found.variant.moves) <= 3
            assert found.share > max(METRICS[metric](ruled, PROFILER) / limit for metric, limit in limits.items())

    holds()


@pytest.mark.parametrize("examples", [10, pytest.param(40, marks=pytest.mark.slow)])
def test_a_budget_is_used_to_98_percent_where_the_grain_is_fine(
    examples: int, baselines: dict[str, Network], roundings: dict[str, Rounding]
) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(name=st.sampled_from(FINE), metric=st.sampled_from(COUNTED), octave=st.floats(-1.5, 4))
    def holds(name: str, metric: str, octave: float) -> None:
        for rule in ("released", "nearest"):
            limit = METRICS[metric](baselines[name], PROFILER) * 2**octave
            assert ENOUGH <= fitted(baselines[name], roundings[rule], **{metric: limit}).share <= 1

    holds()


@pytest.mark.parametrize("examples", [10, pytest.param(30, marks=pytest.mark.slow)])
def test_more_budget_is_never_a_smaller_phi(
    examples: int, baselines: dict[str, Network], roundings: dict[str, Rounding]
) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(name=st.sampled_from(FINE), metric=st.sampled_from(COUNTED), octave=st.floats(-2, 3), more=st.floats(1, 2))
    def holds(name: str, metric: str, octave: float, more: float) -> None:
        limit = METRICS[metric](baselines[name], PROFILER) * 2**octave
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
            limit = METRICS[metric](base, PROFILER) * 2 ** (octave / 4)
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
        limit = 1.7 * METRICS[metric](base, PROFILER)
        with case(name):
            found = fitted(base, roundings["released"], **{metric: limit})
            assert 0.9 < METRICS[metric](found.variant.network, PROFILER) / limit <= 1
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
    profiler = Profiler(batch_size=16)
    limit = 1.5 * profiler.latency_ms(small)
    found = fit(small, PAPER, Limits(latency_ms=limit), rounding=roundings["released"], profiler=profiler)
    assert profiler.latency_ms(found.variant.network) == pytest.approx(found.share * limit)
    assert 0.5 < found.share <= 1
    assert {move.what for move in found.variant.moves} <= {"resolution"}


def test_a_factory_is_fitted_by_its_resolution_depth_and_width(roundings: dict[str, Rounding]) -> None:
    made = Factory(name="mine", function="mine_of_test_variants:make", resolution=32)
    trust(made.function, make)
    for metric in COUNTED:
        for octave in (-1.5, 0, 2.3):
            limit = METRICS[metric](made, PROFILER) * 2**octave
            found = fitted(made, roundings["nearest"], **{metric: limit})
            assert ENOUGH <= METRICS[metric](found.variant.network, PROFILER) / limit <= 1
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
