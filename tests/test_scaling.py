from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from conftest import case
from hypothesis import given
from hypothesis import strategies as st

from scalesearch import scaling
from scalesearch.cost import cost
from scalesearch.network import Network, Stage
from scalesearch.scaling import (
    Coefficients,
    Proxy,
    Rounding,
    resize,
    scale,
    uneven_channels,
)

RELEASED = Rounding(name="released", depth="ceil", divisor=8, limit=0.9, resolution="floor")
NEAREST = Rounding(name="nearest", depth="nearest", divisor=8, limit=0.9, resolution="nearest")
PAPER = Coefficients(1.2, 1.1, 1.15)

multipliers = st.floats(0.1, 4)
coefficients = st.builds(Coefficients, *[st.floats(0.5, 2)] * 3)
rules = st.builds(
    Rounding,
    name=st.just("any"),
    depth=st.sampled_from(["ceil", "nearest", "round", "floor"]),
    divisor=st.sampled_from([1, 2, 8]),
    limit=st.sampled_from([0.0, 0.9]),
    resolution=st.sampled_from(["floor", "nearest", "ceil"]),
    resolution_multiple=st.sampled_from([1, 8]),
    stem=st.sampled_from(["scaled", "kept"]),
    head=st.sampled_from(["scaled", "kept", "grown"]),
    ends=st.sampled_from(["scaled", "kept"]),
)


def rows(repeats: st.SearchStrategy[int]) -> st.SearchStrategy[Stage]:
    return st.builds(
        Stage,
        block=st.just("mbconv"),
        channels=st.integers(1, 64).map(lambda count: 8 * count),
        repeats=repeats,
        expand=st.sampled_from([1, 6]),
    )


ends = st.lists(rows(st.just(1)), min_size=1, max_size=2).map(tuple)
networks = st.builds(
    Network,
    name=st.just("net"),
    resolution=st.integers(32, 256),
    stem=ends,
    stages=st.lists(rows(st.integers(1, 8)), min_size=1, max_size=8).map(tuple),
    head=ends | st.just(()),
    activation=st.just("relu"),
)


def channels(network: Network) -> list[int]:
    """Of the rows that have channels of their own."""
    return [row.channels for _, row in network.rows() if row.channels is not None]


def repeats(network: Network) -> list[int]:
    return [stage.repeats for stage in network.stages]


# Scaling as a function


@given(networks, coefficients, st.floats(-1, 2), rules)
def test_equal_inputs_give_equal_networks(network: Network, triple: Coefficients, phi: float, rule: Rounding) -> None:
    one = scale(network, triple, phi, rounding=rule)
    other = scale(replace(network, name="other"), replace(triple), phi, rounding=replace(rule))
    assert one == other
    assert hash(one) == hash(other)


@given(networks, coefficients, rules)
def test_phi_of_zero_is_the_baseline(network: Network, triple: Coefficients, rule: Rounding) -> None:
    assert scale(network, triple, 0, rounding=rule) == network


def test_phi_of_zero_leaves_every_baseline(baselines: dict[str, Network], roundings: dict[str, Rounding]) -> None:
    for baseline in baselines.values():
        with case(baseline.name):
            for rounding in roundings.values():
                assert scale(baseline, PAPER, 0, rounding=rounding) == baseline


@given(networks, st.tuples(multipliers, multipliers), rules)
def test_depth_grows_with_its_multiplier(network: Network, two: tuple[float, float], rule: Rounding) -> None:
    less, more = (resize(network, depth=depth, rounding=rule) for depth in sorted(two))
    assert less.depth <= more.depth
    assert channels(less) == channels(more) == channels(network)
    assert less.resolution == more.resolution == network.resolution


@given(networks, st.tuples(multipliers, multipliers), rules)
def test_width_grows_with_its_multiplier(network: Network, two: tuple[float, float], rule: Rounding) -> None:
    less, more = (resize(network, width=width, rounding=rule) for width in sorted(two))
    assert all(a <= b for a, b in zip(channels(less), channels(more), strict=True))
    assert repeats(less) == repeats(more) == repeats(network)
    assert less.resolution == more.resolution == network.resolution


@given(networks, st.tuples(multipliers, multipliers), rules)
def test_resolution_grows_with_its_multiplier(network: Network, two: tuple[float, float], rule: Rounding) -> None:
    less, more = (resize(network, resolution=resolution, rounding=rule) for resolution in sorted(two))
    assert less.resolution <= more.resolution
    assert (repeats(less), channels(less)) == (repeats(more), channels(more)) == (repeats(network), channels(network))


def test_every_row_is_widened_and_only_stages_are_deepened(
    baselines: dict[str, Network], roundings: dict[str, Rounding]
) -> None:
    for baseline in baselines.values():
        with case(baseline.name):
            even = "fine" if uneven_channels(baseline, roundings["released"]) else "released"
            doubled = resize(baseline, depth=2, width=2, rounding=roundings[even])
            assert channels(doubled) == [2 * count for count in channels(baseline)]
            assert repeats(doubled) == [2 * count for count in repeats(baseline)]
            assert {row.repeats for row in (*doubled.stem, *doubled.head)} == {1}
            for (_, wide), (_, row) in zip(doubled.rows(), baseline.rows(), strict=True):
                assert wide.heads == 2 * row.heads
                assert wide.groups == (2 * row.groups if row.groups > 1 else 1)


def test_a_baselines_own_channels_stay_where_the_width_is_one(baselines: dict[str, Network]) -> None:
    base = baselines["mobilenetv2"]
    odd = replace(base, stem=(replace(base.stem[0], channels=13),))
    assert resize(odd, depth=2, resolution=2, rounding=NEAREST).stem[0].channels == 13


# What a rule keeps


def rule(**changes: str) -> Rounding:
    return replace(RELEASED, **changes)


def test_a_kept_stem_is_the_baselines(baselines: dict[str, Network]) -> None:
    for baseline, width in product(baselines.values(), [0.3, 0.5, 1.1, 2.0]):
        with case(baseline.name, width):
            kept, scaled = (resize(baseline, width=width, rounding=rule(stem=stem)) for stem in ("kept", "scaled"))
            if any(row.block == "patch_embed" for row in baseline.stem):  # a transformer has the width of its patches
                assert kept.stem == scaled.stem
            else:
                assert kept.stem == baseline.stem
            assert (kept.stages, kept.head) == (scaled.stages, scaled.head)


def test_a_kept_head_keeps_what_the_classifier_gets(baselines: dict[str, Network]) -> None:
    for baseline, width in product(baselines.values(), [0.3, 0.5, 1.1, 2.0]):
        with case(baseline.name, width):
            kept, scaled = (resize(baseline, width=width, rounding=rule(head=head)) for head in ("kept", "scaled"))
            assert kept.head[-1:] == baseline.head[-1:]
            assert (kept.stem, kept.stages, kept.head[:-1]) == (scaled.stem, scaled.stages, scaled.head[:-1])


@given(networks, multipliers)
def test_a_grown_head_is_the_wider_of_the_scaled_and_the_baselines(network: Network, width: float) -> None:
    grown, scaled = (resize(network, width=width, rounding=rule(head=head)) for head in ("grown", "scaled"))
    for got, row, base in zip(grown.head[-1:], scaled.head[-1:], network.head[-1:], strict=True):
        assert got.channels == max(row.channels, base.channels)
    assert (grown.stem, grown.stages, grown.head[:-1]) == (scaled.stem, scaled.stages, scaled.head[:-1])


def test_mobilenets_head_is_grown_as_published(baselines: dict[str, Network], roundings: dict[str, Rounding]) -> None:
    """arXiv:1801.04381, section 6.1: below 1 the multiplier leaves the last convolution alone."""
    for width, features in [(0.5, 1280), (1.0, 1280), (1.4, 1792)]:
        with case(width, features):
            network = resize(baselines["mobilenetv2"], width=width, rounding=roundings["mobilenet"])
            assert network.features == features


@given(networks, multipliers, st.sampled_from(["ceil", "nearest", "round", "floor"]))
def test_kept_ends_keep_their_repeats(network: Network, depth: float, depth_rule: str) -> None:
    kept, scaled = (resize(network, depth=depth, rounding=rule(depth=depth_rule, ends=e)) for e in ("kept", "scaled"))
    assert repeats(kept)[0] == repeats(network)[0]
    assert repeats(kept)[-1] == repeats(network)[-1]
    assert repeats(kept)[1:-1] == repeats(scaled)[1:-1]
    assert channels(kept) == channels(scaled)


def test_stages_of_every_baseline_are_multiplied_by_every_rule(
    baselines: dict[str, Network], roundings: dict[str, Rounding]
) -> None:
    for baseline in baselines.values():
        with case(baseline.name):
            for rounding in roundings.values():
                big = resize(baseline, depth=2, width=2, rounding=rounding)
                kept = {0, len(baseline.stages) - 1} if rounding.ends == "kept" else set()
                for index, (more, row) in enumerate(zip(big.stages, baseline.stages, strict=True)):
                    assert more.repeats == row.repeats * (1 if index in kept else 2), rounding.name
                    if 2 * row.channels % rounding.divisor:
                        assert 0 < more.channels - 2 * row.channels < rounding.divisor, rounding.name
                    else:
                        assert more.channels == 2 * row.channels, rounding.name
                assert cost(big).params > cost(baseline).params


# Groups and heads


def residual_network(stages: list[tuple[int, int, float]]) -> Network:
    """As ResNeXt: stages of (channels a group, groups, expand)."""
    return Network(
        name="grouped",
        resolution=64,
        stem=(
            Stage(block="conv_norm", channels=64, kernel=7, stride=2),
            Stage(block="max_pool", stride=2),
        ),
        stages=tuple(
            Stage(block="bottleneck", channels=round(size * groups / expand), groups=groups, expand=expand, repeats=2)
            for size, groups, expand in stages
        ),
        activation="relu",
    )


def vision_transformer(size: int, heads: int, patch: int, side: int) -> Network:
    """`heads` of `size` channels; an image of `side` x `side` patches."""
    return Network(
        name="vit",
        resolution=side * patch,
        stem=(Stage(block="patch_embed", channels=size * heads, stride=patch),),
        stages=(Stage(block="transformer", channels=size * heads, heads=heads, expand=4, repeats=2),),
        head=(Stage(block="class_token"),),
        activation="gelu",
    )


grouped = st.lists(
    st.tuples(st.integers(1, 32), st.integers(1, 64), st.sampled_from([0.25, 0.5, 1.0])), min_size=1, max_size=4
).map(residual_network)
transformers = st.builds(
    vision_transformer, st.integers(8, 96), st.integers(1, 16), st.sampled_from([4, 14, 16]), st.integers(1, 24)
)


@given(grouped | transformers, multipliers, rules)
def test_groups_and_heads_divide_whatever_the_width(network: Network, width: float, rule: Rounding) -> None:
    wide = resize(network, width=width, resolution=width, depth=width, rounding=rule)
    cost(wide)  # refuses groups and heads that do not divide, and a resolution that the patch does not divide
    for stage, base in zip(wide.stages, network.stages, strict=True):
        assert base.groups > 1 or stage.groups == 1
        assert (stage.heads > 0) == (base.heads > 0)
        parted = stage.channels if base.heads else max(1, round(stage.channels * stage.expand))
        for count, wanted in ((stage.groups, base.groups * width), (stage.heads, base.heads * width)):
            if count > 1 and width != 1:
                divisors = [number for number in range(1, parted + 1) if parted % number == 0]
                off = [abs(math.log(number / wanted)) for number in divisors]
                assert abs(math.log(count / wanted)) == min(off)


def test_groups_and_heads_follow_the_width(baselines: dict[str, Network]) -> None:
    cases = [
        ("resnext50", 0.5, "groups", [16, 16, 16, 16]),
        ("resnext50", 2.0, "groups", [64, 64, 64, 64]),
        ("resnext50", 1.1, "groups", [35, 35, 35, 35]),  # of 4, 8, 16 and 32 channels, as at 1
        ("resnext101", 0.25, "groups", [16, 16, 16, 16]),
        ("resnet50", 3.0, "groups", [1, 1, 1, 1]),
        ("resnet50", 0.25, "groups", [1, 1, 1, 1]),
        ("vit_tiny", 2.0, "heads", [6]),
        ("vit_tiny", 4.0, "heads", [12]),
        ("vit_small", 0.5, "heads", [3]),
        ("vit_base", 0.1, "heads", [1]),
        ("mobilenetv2", 2.0, "heads", [0] * 7),
    ]
    for name, width, field, expected in cases:
        with case(name, width, field, expected):
            wide = resize(baselines[name], width=width, rounding=NEAREST)
            assert [getattr(stage, field) for stage in wide.stages] == expected


def test_groups_keep_about_their_channels_at_every_width(baselines: dict[str, Network]) -> None:
    for name in ["resnext50", "resnext101"]:
        with case(name):
            network = baselines[name]
            for width in np.arange(0.2, 4, 0.01):
                wide = resize(network, width=float(width), rounding=NEAREST)
                for stage, base in zip(wide.stages, network.stages, strict=True):
                    assert stage.groups == pytest.approx(base.groups * width, rel=0.08)
                    assert stage.channels == pytest.approx(base.channels * width, rel=0.08)


def test_the_three_vision_transformers_are_one_another_scaled(baselines: dict[str, Network]) -> None:
    """arXiv:2012.12877, table 1: Ti, S and B differ in width alone, at 64 channels a head."""
    for name, width in (("vit_small", 2), ("vit_base", 4)):
        assert resize(baselines["vit_tiny"], width=width, rounding=RELEASED) == baselines[name]


def test_a_width_beyond_all_tables_is_refused_before_divisors_are_sought(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan scales hundreds of networks; the divisors of the widest, which no table holds, would take long."""
    network, sought = residual_network([(32, 64, 1.0)]), []

    def divisor(of: int, wanted: float) -> int:
        sought.append(of)
        return 1

    monkeypatch.setattr(scaling, "_divisor", divisor)
    for width in (1.01, 3.7, 31):
        resize(network, width=width, rounding=NEAREST)
    assert len(sought) == 3
    for width in (100, 1000):
        with pytest.raises(ValueError, match=r"channels is .* whole number from 1 to 65536"):
            resize(network, width=width, rounding=NEAREST)
    assert len(sought) == 3


# Refusals


def test_a_coefficient_out_of_range_is_named() -> None:
    for value, name in product([0, -1, 11, math.nan, math.inf, True, "1.2", None], ["alpha", "beta", "gamma"]):
        with (
            case(value, name),
            pytest.raises(ValueError, match=rf"coefficients\.{name} is .*; it must be a number from 0\.1 to 10"),
        ):
            replace(PAPER, **{name: value})


def test_a_rule_that_is_not_known_is_named() -> None:
    cases = [
        *(("depth", "up"), ("resolution", "round"), ("divisor", 0), ("divisor", 257), ("resolution_multiple", 0)),
        *(("limit", 1), ("limit", -0.1), ("limit", math.nan)),
        *(("stem", "grown"), ("stem", None), ("head", "fixed"), ("ends", "grown"), ("ends", True)),
    ]
    for field, value in cases:
        with case(field, value), pytest.raises(ValueError, match=rf"rounding\.{field}"):
            replace(NEAREST, **{field: value})


def test_a_proxy_out_of_range_is_named() -> None:
    for field, value in [
        ("depth", 0),
        ("width", math.nan),
        ("width", 11),
        ("resolution", 0),
        ("total_stride", 0),
        ("total_stride", 5000),
    ]:
        with case(field, value):
            good = Proxy(depth=0.5, width=0.25, resolution=15, total_stride=8)
            with pytest.raises(ValueError, match=rf"proxy\.{field} is"):
                replace(good, **{field: value})


def test_a_phi_that_no_network_can_have_is_refused_in_few_words(baselines: dict[str, Network]) -> None:
    for baseline, rule, phi in product(
        baselines.values(), [RELEASED, NEAREST], [math.inf, -math.inf, math.nan, 1e6, 5000, 300, -5000, 60]
    ):
        with case(baseline.name, rule, phi):
            with pytest.raises(ValueError, match=r"must be|are the most") as refusal:
                scale(baseline, PAPER, phi, rounding=rule)
            assert len(str(refusal.value)) < 200


def test_what_cannot_be_scaled_is_refused(baselines: dict[str, Network]) -> None:
    cases = [
        ({"width": 1000}, "channels is .* whole number from 1 to 65536"),
        ({"depth": 1000}, "repeats of a stage"),
        ({"resolution": 1000}, "resolution is .* whole number from 1 to 16384"),
        ({"resolution": 1e-3}, "resolution is 1 px, smaller than the total stride 32"),
        ({"width": 0}, "width 0"),
        ({"depth": -1}, "depth -1"),
    ]
    for factors, message in cases:
        with case(factors, message), pytest.raises(ValueError, match=message):
            resize(baselines["mobilenetv2"], rounding=NEAREST, **factors)
