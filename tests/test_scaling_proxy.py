"""The proxy: a baseline made small by rule, and scaled in its place."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
from conftest import case

from scalesearch.cost import cost
from scalesearch.network import CUT, Network
from scalesearch.planning import grain_words
from scalesearch.scaling import (
    Coefficients,
    Proxy,
    Rounding,
    resize,
    shrink,
    uneven_channels,
)

RELEASED = Rounding(name="released", depth="ceil", divisor=8, limit=0.9, resolution="floor")
NEAREST = Rounding(name="nearest", depth="nearest", divisor=8, limit=0.9, resolution="nearest")
PAPER = Coefficients(1.2, 1.1, 1.15)


def channels(network: Network) -> list[int]:
    """Of the rows that have channels of their own."""
    return [row.channels for _, row in network.rows() if row.channels is not None]


def groups(network: Network) -> list[int]:
    """Channels of a group of each of these rows; 1 where there are no groups."""
    rows = [row for _, row in network.rows() if row.channels is not None]
    return [row.channels // row.groups if row.groups > 1 else 1 for row in rows if row.channels]


def repeats(network: Network) -> list[int]:
    return [stage.repeats for stage in network.stages]


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


def test_a_patch_is_halved_until_the_total_stride_is_reached(baselines: dict[str, Network]) -> None:
    base = baselines["vit_tiny"]
    network = replace(base, resolution=56, stem=(replace(base.stem[0], stride=14),))
    for total_stride, patch in ((14, 14), (8, 7), (4, 3), (2, 1)):
        small, _ = shrink(network, Proxy(depth=1, width=1, resolution=42, total_stride=total_stride), NEAREST)
        assert strides(small) == [patch, 1, 1]


def test_a_stems_patches_of_a_pixel_are_the_last_resort(
    baselines: dict[str, Network], proxies: dict[str, Proxy]
) -> None:
    """Of points without neighbours ConvNeXt's norm leaves the sign alone: its proxy learnt nothing, 10 % on digits."""
    cut = [network for network in baselines.values() if any(row.block in CUT for row in network.stem)]
    assert {network.stem[0].block for network in cut} >= {"patch_embed", "patch_norm"}
    for network, proxy in product(cut, proxies.values()):
        small, _ = shrink(network, proxy, NEAREST)
        assert isinstance(small, Network)
        with case(network.name, proxy):
            assert small.total_stride == min(network.total_stride, proxy.total_stride or network.total_stride)
            assert min(row.stride for row in small.stem) > 1
    whole = Proxy(depth=1, width=1, resolution=32, total_stride=1)
    assert all(shrink(network, whole, NEAREST)[0].total_stride == 1 for network in cut)  # type: ignore[union-attr]


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
                for less, row, group in zip(channels(small), channels(baseline), groups(baseline), strict=True):
                    step = math.lcm(int(grain.divisor), group)  # whole groups, of as many channels as they have
                    assert less % step == 0
                    reach = grain.divisor if row / 4 % step == 0 or group == 1 else step
                    assert less == pytest.approx(row / 4, abs=reach)
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
