from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
)

RELEASED = Rounding(name="released", depth="ceil", divisor=8, limit=0.9, resolution="floor")
NEAREST = Rounding(name="nearest", depth="nearest", divisor=8, limit=0.9, resolution="nearest")
PAPER = Coefficients(1.2, 1.1, 1.15)

multipliers = st.floats(0.1, 4)
coefficients = st.builds(Coefficients, *[st.floats(0.5, 2)] * 3)
rules = st.sampled_from([RELEASED, NEAREST])
rows = st.builds(
    Stage,
    block=st.just("mbconv"),
    channels=st.integers(1, 64).map(lambda count: 8 * count),
    repeats=st.integers(1, 8),
    expand=st.sampled_from([1, 6]),
)
networks = st.builds(
    Network,
    name=st.just("net"),
    resolution=st.integers(32, 256),
    stem=rows,
    stages=st.lists(rows, min_size=1, max_size=8).map(tuple),
    head=rows,
    activation=st.just("relu"),
)


def channels(network: Network) -> list[int]:
    return [row.channels for _, row in network.rows()]


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


def test_phi_of_zero_leaves_every_baseline(baseline: Network, roundings: dict[str, Rounding]) -> None:
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


def test_every_row_is_widened_and_only_stages_are_deepened(baseline: Network, roundings: dict[str, Rounding]) -> None:
    doubled = resize(baseline, depth=2, width=2, rounding=roundings["released"])
    assert channels(doubled) == [2 * count for count in channels(baseline)]
    assert repeats(doubled) == [2 * count for count in repeats(baseline)]
    assert (doubled.stem.repeats, doubled.head.repeats) == (baseline.stem.repeats, baseline.head.repeats)


def test_a_baselines_own_channels_stay_where_the_width_is_one(baselines: dict[str, Network]) -> None:
    odd = replace(baselines["mobilenetv2"], stem=replace(baselines["mobilenetv2"].stem, channels=13))
    assert resize(odd, depth=2, resolution=2, rounding=NEAREST).stem.channels == 13


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


@pytest.mark.parametrize(
    ("scaled", "limit", "expected"),
    [
        (24 * 1.1, 0.9, 24),
        (32 * 1.3, 0.9, 40),
        (12, 0.9, 16),
        (11, 0.9, 16),
        (11, 0, 8),
        (1, 0.9, 8),
        (80 * 1.15, 0.9, 96),
    ],
)
def test_channels_of_known_cases(scaled: float, limit: float, expected: int) -> None:
    assert round_channels(scaled, limit=limit) == expected


@pytest.mark.parametrize("noise", [-1e-12, 0, 1e-12])
def test_halves_go_up_whatever_the_float_noise(noise: float) -> None:
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


@pytest.mark.parametrize(
    ("counts", "depth", "expected"),
    [
        ([1, 2, 2, 3, 3, 4, 1], 0.1, [1] * 7),
        ([1, 2, 3, 4, 3, 3, 1], 0.5, [1, 1, 2, 2, 1, 1, 1]),  # 8.5 blocks: halves go up, the first of equals
        ([1, 1, 1, 100], 0.1, [1, 1, 1, 7]),  # the lifted stages' blocks are taken from the one that has some
        ([1, 1, 5, 8], 0.4, [1, 1, 1, 3]),  # 2 and 3.2 would be kept, were there a block more: 2 loses less
        ([1, 2, 2, 3, 3, 4, 1], 1.2, [1, 2, 2, 4, 4, 5, 1]),
        ([3, 3, 3], 1.0, [3, 3, 3]),
        ([5], 1.5, [8]),
    ],
)
def test_nearest_depth_of_known_cases(counts: list[int], depth: float, expected: list[int]) -> None:
    assert round_depth(counts, depth, rule="nearest") == expected


@pytest.mark.parametrize("rule", ["ceil", "nearest"])
def test_depth_is_free_of_float_noise(rule: str) -> None:
    assert 100 * 1.1 > 110  # which ceil would make 111
    assert round_depth([100, 200, 300], 1.1, rule=rule) == [110, 220, 330]


@pytest.mark.parametrize("rule", ["ceil", "nearest"])
@pytest.mark.parametrize("depth", [1001.0, 1e17, 1e300])
def test_more_repeats_than_a_stage_can_have_are_refused_at_once(rule: str, depth: float) -> None:
    with pytest.raises(ValueError, match="repeats of a stage; 1,000 are the most"):
        round_depth([1, 2, 3], depth, rule=rule)


# Rounding of resolution


@pytest.mark.parametrize(
    ("rule", "multiple", "scaled", "expected"),
    [
        ("floor", 1, 257.6, 257),
        ("nearest", 1, 257.6, 258),
        ("nearest", 1, 257.5, 258),
        ("floor", 1, 10 * 1.1, 11),
        ("floor", 1, 4.35 * 100, 435),  # 434.99999999999994 in binary fractions
        ("floor", 32, 250, 224),
        ("nearest", 32, 250, 256),
        ("floor", 32, 3, 32),
        ("nearest", 1, 0.2, 1),
    ],
)
def test_resolution_of_known_cases(rule: str, multiple: int, scaled: float, expected: int) -> None:
    assert round_resolution(scaled, replace(NEAREST, resolution=rule, resolution_multiple=multiple)) == expected


# Refusals


@pytest.mark.parametrize("name", ["alpha", "beta", "gamma"])
@pytest.mark.parametrize("value", [0, -1, 11, math.nan, math.inf, True, "1.2", None])
def test_a_coefficient_out_of_range_is_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"coefficients\.{name} is .*; it must be a number from 0\.1 to 10"):
        replace(PAPER, **{name: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("depth", "round"), ("resolution", "ceil"), ("divisor", 0), ("divisor", 257), ("resolution_multiple", 0)),
        *(("limit", 1), ("limit", -0.1), ("limit", math.nan)),
    ],
)
def test_a_rule_that_is_not_known_is_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"rounding\.{field}"):
        replace(NEAREST, **{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [("depth", 0), ("width", math.nan), ("width", 11), ("resolution", 0), ("total_stride", 0), ("total_stride", 5000)],
)
def test_a_proxy_out_of_range_is_named(field: str, value: object) -> None:
    good = Proxy(depth=0.5, width=0.25, resolution=15, total_stride=8)
    with pytest.raises(ValueError, match=rf"proxy\.{field} is"):
        replace(good, **{field: value})


@pytest.mark.parametrize("phi", [math.inf, -math.inf, math.nan, 1e6, 5000, 300, -5000, 60])
@pytest.mark.parametrize("rule", [RELEASED, NEAREST], ids=lambda rule: rule.name)
def test_a_phi_that_no_network_can_have_is_refused_in_few_words(phi: float, rule: Rounding, baseline: Network) -> None:
    with pytest.raises(ValueError, match=r"must be|are the most") as refusal:
        scale(baseline, PAPER, phi, rounding=rule)
    assert len(str(refusal.value)) < 200


@pytest.mark.parametrize(
    ("factors", "said"),
    [
        ({"width": 1000}, "channels is .* whole number from 1 to 65536"),
        ({"depth": 1000}, "repeats of a stage"),
        ({"resolution": 1000}, "resolution is .* whole number from 1 to 16384"),
        ({"resolution": 1e-3}, "resolution is 1 px, smaller than the total stride 32"),
        ({"width": 0}, "width 0"),
        ({"depth": -1}, "depth -1"),
    ],
)
def test_what_cannot_be_scaled_is_refused(factors: dict[str, float], said: str, baselines: dict[str, Network]) -> None:
    with pytest.raises(ValueError, match=said):
        resize(baselines["mobilenetv2"], rounding=NEAREST, **factors)


# The proxy


def test_no_proxy_is_the_baseline(baseline: Network, roundings: dict[str, Rounding], proxies: dict[str, Proxy]) -> None:
    for rounding in roundings.values():
        assert shrink(baseline, proxies["none"], rounding) == (baseline, rounding)


@pytest.mark.parametrize("total_stride", [1, 2, 4, 8, 16, 32])
def test_strides_are_dropped_from_the_earliest_until_the_total_is_reached(
    total_stride: int, baselines: dict[str, Network]
) -> None:
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
    patches = replace(base, stem=replace(base.stem, stride=4))
    small, _ = shrink(patches, Proxy(depth=1, width=1, resolution=64, total_stride=32), NEAREST)
    assert [row.stride for _, row in small.rows()] == [row.stride for _, row in base.rows()]


def test_a_total_stride_above_the_baselines_changes_nothing(baselines: dict[str, Network]) -> None:
    base = baselines["preresnet29"]
    small, _ = shrink(base, Proxy(depth=1, width=1, resolution=None, total_stride=64), NEAREST)
    assert small == base


def test_the_small_proxy_of_every_baseline_is_small(
    baseline: Network, roundings: dict[str, Rounding], proxies: dict[str, Proxy]
) -> None:
    proxy = proxies["small"]
    for rounding in roundings.values():
        small, grain = shrink(baseline, proxy, rounding)
        assert small.resolution == proxy.resolution
        assert small.total_stride == min(baseline.total_stride, proxy.total_stride or 0)
        assert small.depth == max(len(baseline.stages), math.floor(baseline.depth * proxy.depth + 0.5))
        assert grain.divisor == rounding.divisor / 4
        assert replace(grain, divisor=rounding.divisor) == rounding
        for less, row in zip(channels(small), channels(baseline), strict=True):
            assert less % grain.divisor == 0
            assert less == pytest.approx(row / 4, abs=grain.divisor)
        assert cost(small).macs < cost(baseline).macs


def test_a_proxy_smaller_than_its_stride_is_refused(baselines: dict[str, Network]) -> None:
    with pytest.raises(ValueError, match="smaller than the total stride 32"):
        shrink(baselines["mobilenetv2"], Proxy(depth=1, width=1, resolution=16, total_stride=None), NEAREST)
