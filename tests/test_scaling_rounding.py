"""How channels, repeats and resolutions become whole; the published rules against the published networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
from conftest import case
from hypothesis import given
from hypothesis import strategies as st

from scalesearch.cost import cost
from scalesearch.network import Network
from scalesearch.scaling import (
    Coefficients,
    Rounding,
    resize,
    round_channels,
    round_depth,
    round_resolution,
    scale,
)

RELEASED = Rounding(name="released", depth="ceil", divisor=8, limit=0.9, resolution="floor")
NEAREST = Rounding(name="nearest", depth="nearest", divisor=8, limit=0.9, resolution="nearest")
PAPER = Coefficients(1.2, 1.1, 1.15)


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
