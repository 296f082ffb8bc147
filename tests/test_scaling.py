from __future__ import annotations

import math
from collections.abc import Callable
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
    round_channels,
    round_depth,
    round_resolution,
    scale,
    shrink,
    uneven_channels,
)
from scalesearch.screen import grain_words

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


# The published code's rounding


@pytest.mark.parametrize("index", range(8), ids=lambda index: f"B{index}")
def test_released_rounding_gives_the_published_b_series(
    index: int, baselines: dict[str, Network], roundings: dict[str, Rounding], reference: Callable[[str], list]
) -> None:
    counted, published = reference("derived_b_series")[index], reference("efficientnet_family")[index]
    assert counted["model"] == published["model"] == f"EfficientNet-B{index}"
    network = resize(
        baselines["efficientnet_b0"],
        depth=float(published["depth_coefficient"]),
        width=float(published["width_coefficient"]),
        resolution=int(published["resolution"]) / 224,
        rounding=roundings["released"],
    )
    found = cost(network)
    assert network.resolution == int(published["resolution"])
    assert network.depth == int(counted["mbconv_blocks"])
    assert found.params == int(published["params_exact_torchvision"])
    assert found.macs == int(counted["macs"])
    assert found.activations == int(counted["conv_output_activations"]) + 1000  # and the classifier's outputs
    if published["activations_exact_pycls"]:
        assert found.activations == int(published["activations_exact_pycls"])
        assert found.macs == pytest.approx(int(published["flops_exact_pycls"]), rel=3e-5)


def test_released_rounding_of_channels_and_depth_is_the_counted_one_at_every_phi(
    baselines: dict[str, Network], roundings: dict[str, Rounding], reference: Callable[[str], list]
) -> None:
    rounding = replace(roundings["released"], resolution="nearest")  # as that table was counted
    base = baselines["efficientnet_b0"]
    for row in reference("derived_raw_phi"):
        network = scale(base, PAPER, float(row["phi"]), rounding=rounding)
        assert network.depth == int(row["blocks_ceil"]), row
        assert cost(network).params == int(row["params_ceil"]), row
        assert cost(network).macs == int(row["macs_ceil"]), row


def test_released_resolution_is_truncated(baselines: dict[str, Network], roundings: dict[str, Rounding]) -> None:
    network = scale(baselines["efficientnet_b0"], PAPER, 1, rounding=roundings["released"])
    assert network.resolution == 257  # of 257.6


def test_roundings_are_named_as_their_files(roundings: dict[str, Rounding]) -> None:
    assert {stem: rounding.name for stem, rounding in roundings.items()} == {stem: stem for stem in roundings}


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


# Rounding of channels


@given(st.floats(0.5, 50_000), st.sampled_from([1, 2, 4, 8, 16]), st.sampled_from([0.0, 0.5, 0.9, 0.95]))
def test_channels_are_multiples_not_far_below(scaled: float, divisor: int, limit: float) -> None:
    rounded = round_channels(scaled, divisor=divisor, limit=limit)
    assert rounded % divisor == 0
    assert rounded >= divisor
    assert rounded >= limit * scaled - 1e-6
    assert abs(rounded - scaled) <= max(divisor, divisor / 2 + 1e-6)


@given(st.floats(4, 50_000))
def test_without_a_limit_channels_go_to_the_nearest_multiple(scaled: float) -> None:
    assert abs(round_channels(scaled, limit=0) - scaled) <= 4 + 1e-6


def test_channels_of_known_cases() -> None:
    cases = [
        (24 * 1.1, 0.9, 24),
        (32 * 1.3, 0.9, 40),
        (12, 0.9, 16),
        (11, 0.9, 16),
        (11, 0, 8),
        (1, 0.9, 8),
        (80 * 1.15, 0.9, 96),
    ]
    for scaled, limit, expected in cases:
        with case(scaled, limit, expected):
            assert round_channels(scaled, limit=limit) == expected


def test_halves_go_up_whatever_the_float_noise() -> None:
    for noise in [-1e-12, 0, 1e-12]:
        with case(noise):
            assert [round_channels(half + noise, limit=0) for half in (12, 20, 28)] == [16, 24, 32]


# Rounding of depth


@given(st.lists(st.integers(1, 12), min_size=1, max_size=10), st.floats(0.01, 10))
def test_nearest_depth_keeps_the_total_and_leaves_no_stage_empty(counts: list[int], depth: float) -> None:
    rounded = round_depth(counts, depth, rule="nearest")
    assert all(count >= 1 for count in rounded)
    assert abs(sum(rounded) - max(len(counts), sum(counts) * depth)) <= 0.5 + 1e-6


@given(st.lists(st.integers(1, 12), min_size=1, max_size=10), st.floats(1, 10))
def test_nearest_depth_gives_each_stage_its_share(counts: list[int], depth: float) -> None:
    for count, rounded in zip(counts, round_depth(counts, depth, rule="nearest"), strict=True):
        assert abs(rounded - count * depth) < 1 + 1e-6


@given(st.lists(st.integers(1, 12), min_size=1, max_size=10), st.floats(0.01, 10))
def test_ceil_rounds_each_stage_up(counts: list[int], depth: float) -> None:
    for count, rounded in zip(counts, round_depth(counts, depth, rule="ceil"), strict=True):
        assert rounded >= 1
        assert -1e-6 <= rounded - count * depth < 1


def test_nearest_depth_of_known_cases() -> None:
    cases = [
        ([1, 2, 2, 3, 3, 4, 1], 0.1, [1] * 7),
        ([1, 2, 3, 4, 3, 3, 1], 0.5, [1, 1, 2, 2, 1, 1, 1]),  # 8.5 blocks: halves go up, the first of equals
        ([1, 1, 1, 100], 0.1, [1, 1, 1, 7]),  # the lifted stages' blocks are taken from the one that has some
        ([1, 1, 5, 8], 0.4, [1, 1, 1, 3]),  # 2 and 3.2 would be kept, were there a block more: 2 loses less
        ([1, 2, 2, 3, 3, 4, 1], 1.2, [1, 2, 2, 4, 4, 5, 1]),
        ([3, 3, 3], 1.0, [3, 3, 3]),
        ([5], 1.5, [8]),
    ]
    for counts, depth, expected in cases:
        with case(counts, depth, expected):
            assert round_depth(counts, depth, rule="nearest") == expected


@given(st.lists(st.integers(1, 12), min_size=1, max_size=10), st.floats(0.01, 10))
def test_floor_rounds_each_stage_down_but_keeps_a_block(counts: list[int], depth: float) -> None:
    for count, rounded in zip(counts, round_depth(counts, depth, rule="floor"), strict=True):
        assert rounded >= 1
        assert rounded == 1 or -1e-6 <= count * depth - rounded < 1


@given(st.lists(st.integers(1, 12), min_size=1, max_size=10), st.floats(0.01, 10))
def test_round_takes_each_stage_to_its_nearest(counts: list[int], depth: float) -> None:
    for count, rounded in zip(counts, round_depth(counts, depth, rule="round"), strict=True):
        assert rounded >= 1
        assert rounded == 1 or abs(count * depth - rounded) <= 0.5 + 1e-6


def test_depth_of_a_stage_of_known_cases() -> None:
    cases = [
        ("round", [1, 2, 2, 3, 3, 4, 1], 1.2, [1, 2, 2, 4, 4, 5, 1]),  # TinyNet A, arXiv:2010.14819, in timm
        ("round", [1, 2, 2, 3, 3, 4, 1], 0.85, [1, 2, 2, 3, 3, 3, 1]),  # C
        ("round", [1, 2, 2, 3, 3, 4, 1], 0.695, [1, 1, 1, 2, 2, 3, 1]),  # D
        ("round", [1, 2, 2, 3, 3, 4, 1], 0.6, [1, 1, 1, 2, 2, 2, 1]),  # E
        ("round", [3, 5, 7], 0.5, [2, 2, 4]),  # 1.5, 2.5 and 3.5: halves to even
        ("floor", [1, 2, 3, 4], 1.9, [1, 3, 5, 7]),
        ("floor", [1, 2, 3, 4], 0.1, [1, 1, 1, 1]),
        ("floor", [10], 1.1, [11]),
        ("ceil", [1, 2, 2, 3, 3, 4, 1], 1.1, [2, 3, 3, 4, 4, 5, 2]),
    ]
    for rule, counts, depth, expected in cases:
        with case(rule, counts, depth, expected):
            assert round_depth(counts, depth, rule=rule) == expected


def test_depth_is_free_of_float_noise() -> None:
    for rule in ["ceil", "nearest", "round", "floor"]:
        with case(rule):
            assert 100 * 1.1 > 110  # which ceil would make 111
            assert round_depth([100, 200, 300], 1.1, rule=rule) == [110, 220, 330]


def test_more_repeats_than_a_stage_can_have_are_refused() -> None:
    for depth, rule in product([1001.0, 1e17, 1e300], ["ceil", "nearest", "round", "floor"]):
        with case(depth, rule), pytest.raises(ValueError, match="repeats of a stage; 1,000 are the most"):
            round_depth([1, 2, 3], depth, rule=rule)


# Rounding of resolution


def test_resolution_of_known_cases() -> None:
    cases = [
        ("floor", 1, 257.6, 257),
        ("nearest", 1, 257.6, 258),
        ("nearest", 1, 257.5, 258),
        ("floor", 1, 10 * 1.1, 11),
        ("floor", 1, 4.35 * 100, 435),  # 434.99999999999994 in binary fractions
        ("floor", 32, 250, 224),
        ("nearest", 32, 250, 256),
        ("floor", 32, 3, 32),
        ("nearest", 1, 0.2, 1),
        ("ceil", 1, 257.6, 258),
        ("ceil", 1, 10 * 1.1, 11),  # 11.000000000000002 in binary fractions
        ("ceil", 32, 225, 256),
        ("ceil", 32, 224, 224),
        ("ceil", 32, 0.2, 32),
    ]
    for rule, multiple, scaled, expected in cases:
        with case(rule, multiple, scaled, expected):
            assert round_resolution(scaled, replace(NEAREST, resolution=rule, resolution_multiple=multiple)) == expected


def test_a_resolution_is_a_multiple_of_the_patch_too() -> None:
    cases = [
        ("nearest", 1, 16, 257.6, 256),
        ("ceil", 1, 16, 257.6, 272),
        ("floor", 1, 14, 257.6, 252),
        ("nearest", 8, 14, 257.6, 280),  # multiples of 56: both must divide it
        ("nearest", 32, 16, 257.6, 256),
        ("floor", 1, 16, 3, 16),
    ]
    for rule, multiple, patch, scaled, expected in cases:
        with case(rule, multiple, patch, scaled, expected):
            rounding = replace(NEAREST, resolution=rule, resolution_multiple=multiple)
            assert round_resolution(scaled, rounding, patch=patch) == expected


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
    for factors, said in cases:
        with case(factors, said), pytest.raises(ValueError, match=said):
            resize(baselines["mobilenetv2"], rounding=NEAREST, **factors)


# The proxy


def test_no_proxy_is_the_baseline(
    baselines: dict[str, Network], roundings: dict[str, Rounding], proxies: dict[str, Proxy]
) -> None:
    for baseline in baselines.values():
        with case(baseline.name):
            for rounding in roundings.values():
                assert shrink(baseline, proxies["none"], rounding) == (baseline, rounding)


def test_strides_are_dropped_from_the_earliest_until_the_total_is_reached(baselines: dict[str, Network]) -> None:
    for total_stride in [1, 2, 4, 8, 16, 32]:
        with case(total_stride):
            base = baselines["mobilenetv2"]
            assert base.total_stride == 32
            proxy = Proxy(depth=1, width=1, resolution=64, total_stride=total_stride)
            small, _ = shrink(base, proxy, NEAREST)
            assert small.total_stride == total_stride
            assert small.resolution == 64
            kept = [stride for _, row in small.rows() if (stride := row.stride) > 1]
            strided = [row.stride for _, row in base.rows() if row.stride > 1]
            assert kept == strided[len(strided) - len(kept) :]
            dropped = len(strided) - len(kept)
            where = [index for index, (_, row) in enumerate(base.rows()) if row.stride > 1]
            assert [index for index, (_, row) in enumerate(small.rows()) if row.stride > 1] == where[dropped:]


def test_a_stride_of_four_is_halved_before_the_next_row_loses_its_own(baselines: dict[str, Network]) -> None:
    base = baselines["mobilenetv2"]
    patches = replace(base, stem=(replace(base.stem[0], stride=4),))
    small, _ = shrink(patches, Proxy(depth=1, width=1, resolution=64, total_stride=32), NEAREST)
    assert [row.stride for _, row in small.rows()] == [row.stride for _, row in base.rows()]


def strides(network: Network) -> list[int]:
    return [row.stride for _, row in network.rows()]


def test_strides_of_a_stem_of_several_rows_and_of_patches_are_dropped(baselines: dict[str, Network]) -> None:
    cases = [
        ("resnet50", 8, [1, 1, 1, 2, 2, 2]),  # of the stem both rows, the convolution first
        ("resnet50", 16, [1, 2, 1, 2, 2, 2]),
        ("preresnet29", 2, [1, 1, 1, 2, 1]),
        ("vit_tiny", 8, [8, 1, 1]),
        ("vit_tiny", 1, [1, 1, 1]),
    ]
    for name, total_stride, expected in cases:
        with case(name, total_stride, expected):
            small, _ = shrink(
                baselines[name], Proxy(depth=1, width=1, resolution=32, total_stride=total_stride), NEAREST
            )
            assert strides(small) == expected
            assert cost(small).macs > 0


def test_a_patch_is_halved_until_the_total_stride_is_reached() -> None:
    network = vision_transformer(16, 2, 14, 4)
    for total_stride, patch in ((14, 14), (8, 7), (4, 3), (2, 1)):
        small, _ = shrink(network, Proxy(depth=1, width=1, resolution=42, total_stride=total_stride), NEAREST)
        assert strides(small) == [patch, 1, 1]


def test_what_a_rule_keeps_is_shrunk_and_kept_again_when_the_proxy_is_scaled(
    baselines: dict[str, Network], roundings: dict[str, Rounding], proxies: dict[str, Proxy]
) -> None:
    base = baselines["mobilenetv2"]
    small, grain = shrink(base, proxies["small"], roundings["lite"])
    assert small.stem[0].channels == base.stem[0].channels / 4
    assert small.head[0].channels == base.head[0].channels / 4
    wide = resize(small, depth=2, width=2, rounding=grain)
    assert (wide.stem, wide.head) == (small.stem, small.head)
    assert repeats(wide)[0] == repeats(small)[0]


def test_a_total_stride_above_the_baselines_changes_nothing(baselines: dict[str, Network]) -> None:
    base = baselines["preresnet29"]
    small, _ = shrink(base, Proxy(depth=1, width=1, resolution=None, total_stride=64), NEAREST)
    assert small == base


def test_the_small_proxy_of_every_baseline_is_small(
    baselines: dict[str, Network], roundings: dict[str, Rounding], proxies: dict[str, Proxy]
) -> None:
    for baseline in baselines.values():
        with case(baseline.name):
            proxy = proxies["small"]
            for rounding in roundings.values():
                small, grain = shrink(baseline, proxy, rounding)
                assert small.resolution == proxy.resolution
                assert small.total_stride == min(baseline.total_stride, proxy.total_stride or 0)
                assert small.depth == max(len(baseline.stages), math.floor(baseline.depth * proxy.depth + 0.5))
                assert grain.divisor == max(1, rounding.divisor / 4)
                assert replace(grain, divisor=rounding.divisor) == rounding
                for less, row in zip(channels(small), channels(baseline), strict=True):
                    assert less % grain.divisor == 0
                    assert less == pytest.approx(row / 4, abs=grain.divisor)
                assert cost(small).macs < cost(baseline).macs


def test_a_proxy_smaller_than_its_stride_is_refused(baselines: dict[str, Network]) -> None:
    with pytest.raises(ValueError, match="smaller than the total stride 32"):
        shrink(baselines["mobilenetv2"], Proxy(depth=1, width=1, resolution=16, total_stride=None), NEAREST)


def test_channels_that_a_rounding_would_move_are_named(
    baselines: dict[str, Network], roundings: dict[str, Rounding]
) -> None:
    cases = [
        ("preresnet_tiny", "nearest", [6, 12]),
        ("preresnet_tiny", "fine", []),
        ("mobilenetv2", "nearest", []),
        ("vit_tiny", "released", []),
    ]
    for name, rule, uneven in cases:
        with case(name, rule, uneven):
            network, rounding = baselines[name], roundings[rule]
            assert uneven_channels(network, rounding) == uneven
            words = " ".join(grain_words(network, rounding))
            assert all(str(count) in words for count in uneven)
            assert bool(words) == bool(uneven)
