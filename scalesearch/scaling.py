"""Compound scaling: d = alpha^phi, w = beta^phi, r = gamma^phi (arXiv:1905.11946, equation 3), and its rounding.

Layers are whole and channels are multiples of something, so after rounding a network costs more or less than the
product alone would give. The rule of rounding therefore is a value of its own, and a study has one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Literal

from scalesearch.checks import between, checked
from scalesearch.network import CUT, MAX_REPEATS, AnyNetwork, Factory, Stage

MAX_FACTOR = 1e6  # no table can hold more; a larger number would be refused too, with all its digits
_WHOLE: dict[str, Callable[[float], int]] = {"ceil": math.ceil, "round": round, "floor": math.floor}


@checked("coefficients")
class Coefficients:
    """alpha (depth), beta (width) and gamma (resolution); each is at least 1 in the paper's search."""

    alpha: Annotated[float, between(0.1, 10, "depth at phi = 1, times the baseline's")]
    beta: Annotated[float, between(0.1, 10, "width at phi = 1, times the baseline's")]
    gamma: Annotated[float, between(0.1, 10, "resolution at phi = 1, times the baseline's")]

    @property
    def product(self) -> float:
        """alpha * beta^2 * gamma^2: the nominal factor of the multiply-adds at phi = 1."""
        return self.alpha * self.beta**2 * self.gamma**2

    def multipliers(self, phi: float) -> tuple[float, float, float]:
        """(depth, width, resolution) at `phi`. Raises: ValueError: one is more than a float can hold."""
        try:
            return self.alpha**phi, self.beta**phi, self.gamma**phi
        except OverflowError:
            raise ValueError(f"phi is {phi:g}; the multipliers alpha^phi, beta^phi, gamma^phi must be finite") from None


PAPERS = Coefficients(1.2, 1.1, 1.15)  # found for EfficientNet-B0 on ImageNet: arXiv:1905.11946, section 3.3


@checked("rounding", kw_only=True)
class Rounding:
    """How scaled numbers become whole.

    depth: "ceil", "round" and "floor" round each stage (up: TPU reference `efficientnet_model.py`, `round_repeats`;
        to the nearest, halves to even: TinyNet in timm); "nearest" rounds the total to the nearest and spreads it
        over the stages by largest remainder, so that the counted cost follows the product.
    limit: source `round_filters` of the same file, with 8 and 0.9.
    stem, head: whether their channels are "scaled" or "kept"; a "grown" head is never narrower than the baseline's. Of
        a head's rows it is the last, which the classifier reads: the first of MobileNetV3's two follows the stages.
    ends: whether the repeats of the first and the last stage are "scaled" or "kept" (EfficientNet-Lite).
    """

    name: str
    depth: Literal["ceil", "nearest", "round", "floor"]
    divisor: Annotated[int, between(1, 256, "channels become the nearest multiple of it")]
    limit: Annotated[float, between(0, 0.999, "channels below this share of the scaled number go one multiple up")]
    resolution: Literal["floor", "nearest", "ceil"]
    resolution_multiple: Annotated[int, between(1, 256, "px; the resolution is a multiple of it and of a patch")] = 1
    stem: Literal["scaled", "kept"] = "scaled"
    head: Literal["scaled", "kept", "grown"] = "scaled"
    ends: Literal["scaled", "kept"] = "scaled"


@checked("proxy", kw_only=True)
class Proxy:
    """How a baseline is made small enough to be trained many times.

    total_stride: strides are dropped from the earliest stage on until it is reached, those of a stem's patches to 2 at
        first; None: the baseline's own.
    """

    depth: Annotated[float, between(0.01, 10, "times the baseline's depth")]
    width: Annotated[float, between(0.01, 10, "times the baseline's width")]
    resolution: Annotated[int, between(1, 4096, "side of the input in px; null: the baseline's")] | None
    total_stride: Annotated[int, between(1, 4096, "the product of all strides; null: the baseline's")] | None


def scale(
    network: AnyNetwork, coefficients: Coefficients, phi: float, *, rounding: Rounding, name: str | None = None
) -> AnyNetwork:
    """The network at `phi`: equation 3 of the paper, then `rounding`.

    Raises: ValueError: the scaled network cannot be, such as one with more channels than a table may have.
    """
    depth, width, resolution = coefficients.multipliers(phi)
    return resize(network, depth=depth, width=width, resolution=resolution, rounding=rounding, name=name)


def resize(
    network: AnyNetwork,
    *,
    depth: float = 1.0,
    width: float = 1.0,
    resolution: float = 1.0,
    rounding: Rounding,
    name: str | None = None,
) -> AnyNetwork:
    """The network with depth, width and resolution multiplied, each rounded by `rounding`.

    A `Factory` rounds depth and width itself, but for the multiples that it takes.
    """
    if not all(0 < factor <= MAX_FACTOR for factor in (depth, width, resolution)):
        given = f"depth {depth:g}, width {width:g} and resolution {resolution:g}"
        raise ValueError(f"{given} times a baseline's must be above 0, and {MAX_FACTOR:g} at most")
    side = network.resolution
    if resolution != 1:
        side = round_resolution(side * resolution, rounding, patch=patch_of(network))
    if isinstance(network, Factory):
        return replace(
            network,
            name=name or network.name,
            depth=_multiple(network.depth * depth, network.depth_multiple),
            width=_multiple(network.width * width, network.width_multiple),
            resolution=side,
        )
    repeats = round_depth([stage.repeats for stage in network.stages], depth, rule=rounding.depth)
    if rounding.ends == "kept":
        repeats[0], repeats[-1] = network.stages[0].repeats, network.stages[-1].repeats

    def wide(stage: Stage, rule: str = "scaled") -> Stage:
        if stage.channels is None or width == 1 or (rule == "kept" and stage.block != "patch_embed"):
            return stage  # a baseline's own number stays, multiple or not; patches are as wide as the transformers
        divisor = rounding.divisor
        if stage.groups > 1:  # whole groups of as many channels as they have: else prime numbers make far too many
            group = stage.channels / stage.groups
            divisor = math.lcm(divisor, round(group) if group == round(group) else 1)
        channels = round_channels(stage.channels * width, divisor=divisor, limit=rounding.limit)
        if rule == "grown":
            channels = max(channels, stage.channels)
        stage = replace(stage, channels=channels)  # refuses what no table can hold before its divisors are sought
        inner = max(1, round(channels * stage.expand))
        return replace(
            stage,
            groups=_divisor(inner, stage.groups * width) if stage.groups > 1 else 1,
            heads=_divisor(channels, stage.heads * width) if stage.heads else 0,
        )

    return replace(
        network,
        name=name or network.name,
        resolution=side,
        stem=tuple(wide(stage, rounding.stem) for stage in network.stem),
        stages=tuple(replace(wide(stage), repeats=count) for stage, count in zip(network.stages, repeats, strict=True)),
        head=(*map(wide, network.head[:-1]), *(wide(stage, rounding.head) for stage in network.head[-1:])),
    )


def shrink(network: AnyNetwork, proxy: Proxy, rounding: Rounding) -> tuple[AnyNetwork, Rounding]:
    """The proxy of a baseline, and the rounding for scaling it.

    Channels that shrink to a quarter are rounded to a quarter of the divisor: the proxy then has the grain of
    the baseline that it stands for. The strides of a `Factory` are its own.
    """
    grain = replace(rounding, divisor=max(1, round(rounding.divisor * min(1.0, proxy.width))))
    if isinstance(network, Factory):
        made = replace(network, resolution=proxy.resolution or network.resolution)
        return resize(made, depth=proxy.depth, width=proxy.width, rounding=grain), grain
    rows = [*network.stem, *network.stages]
    above = math.prod(stage.stride for stage in network.head)
    wanted = proxy.total_stride or network.total_stride
    for least in (2, 1):  # a stem's patches of one pixel are the last resort: a norm then leaves their sign alone
        for index, row in enumerate(rows):
            end = least if index < len(network.stem) and row.block in CUT else 1
            while above * math.prod(one.stride for one in rows) > wanted and rows[index].stride // 2 >= end:
                rows[index] = replace(rows[index], stride=rows[index].stride // 2)
    small = replace(
        network,
        stem=tuple(rows[: len(network.stem)]),
        stages=tuple(rows[len(network.stem) :]),
        resolution=proxy.resolution or network.resolution,
    )
    whole = replace(grain, depth="nearest", stem="scaled", head="scaled", ends="scaled")  # all of it becomes small
    return resize(small, depth=proxy.depth, width=proxy.width, rounding=whole), grain


def uneven_channels(network: AnyNetwork, rounding: Rounding) -> list[int]:
    """Channels of the rows that are no multiples of the rounding's divisor, in rising order: the least scaling moves
    them to the next one, which can cost more than the scaling itself. Those of a `Factory` are its own.
    """
    if isinstance(network, Factory):
        return []
    return sorted({row.channels for _, row in network.rows() if row.channels and row.channels % rounding.divisor})


def round_depth(repeats: list[int], depth: float, *, rule: str) -> list[int]:
    """Blocks of each stage for a multiplier of depth, at least 1 each.

    >>> round_depth([1, 2, 2, 3, 3, 4, 1], 1.2, rule="ceil")
    [2, 3, 3, 4, 4, 5, 2]
    >>> round_depth([1, 2, 2, 3, 3, 4, 1], 1.2, rule="nearest")
    [1, 2, 2, 4, 4, 5, 1]
    """
    scaled = [_snap(count * depth) for count in repeats]
    if max(scaled) > MAX_REPEATS:
        raise ValueError(f"depth {depth:g} makes {max(scaled):g} repeats of a stage; {MAX_REPEATS:,} are the most")
    if rule != "nearest":
        return [max(1, _WHOLE[rule](count)) for count in scaled]
    total = max(len(repeats), math.floor(_snap(sum(repeats) * depth) + 0.5))
    whole = [max(1, math.floor(count)) for count in scaled]
    # Largest remainder: where stages of one block were lifted to 1 the sum may already be too large.
    by_remainder = sorted(range(len(whole)), key=lambda index: (whole[index] - scaled[index], index))
    while sum(whole) != total:
        for index in by_remainder if sum(whole) < total else reversed(by_remainder):
            step = 1 if sum(whole) < total else -1
            if sum(whole) != total and whole[index] + step >= 1:
                whole[index] += step
    return whole


def round_channels(channels: float, *, divisor: int = 8, limit: float = 0.9) -> int:
    """The multiple of `divisor` nearest to `channels`, halves up, and not below `limit` of it.

    Source: TPU reference `efficientnet_model.py`, `round_filters`.

    >>> round_channels(24 * 1.1)
    24
    >>> round_channels(32 * 1.3)
    40
    """
    channels = _snap(channels)
    rounded = max(divisor, math.floor(channels / divisor + 0.5) * divisor)
    return rounded + divisor if rounded < limit * channels else rounded


def round_resolution(resolution: float, rounding: Rounding, *, patch: int = 1) -> int:
    """Side of the input in px: a multiple of `rounding.resolution_multiple` and of `patch`, one of them at least.

    >>> rule = Rounding(name="nearest", depth="nearest", divisor=8, limit=0.9, resolution="nearest")
    >>> round_resolution(224 * 1.15, rule), round_resolution(224 * 1.15, rule, patch=16)
    (258, 256)
    """
    multiple = math.lcm(rounding.resolution_multiple, patch)
    multiples = _snap(resolution) / multiple
    if rounding.resolution == "ceil":
        return max(1, math.ceil(multiples)) * multiple
    return max(1, math.floor(multiples + (0.5 if rounding.resolution == "nearest" else 0))) * multiple


def patch_of(network: AnyNetwork) -> int:
    """px of which the resolution is a multiple: 1, or the patch that the stem cuts, or what a function takes."""
    if isinstance(network, Factory):
        return network.resolution_multiple
    rows = max((index for index, stage in enumerate(network.stem, start=1) if stage.block in CUT), default=0)
    return math.prod(stage.stride for stage in network.stem[:rows])


def _divisor(of: int, wanted: float) -> int:
    """The divisor of `of` whose ratio to `wanted` is nearest to 1: so many groups keep about the channels they had.

    >>> _divisor(140, 35.2), _divisor(384, 6), _divisor(48, 0.75)
    (35, 6, 1)
    """
    divisors = {part for low in range(1, math.isqrt(of) + 1) if of % low == 0 for part in (low, of // low)}
    return min(divisors, key=lambda number: (abs(math.log(number / wanted)), number))


def _multiple(value: float, of: float) -> float:
    """The multiple of a number that is nearest to `value`, one of it at least; of 0 the value itself.

    >>> _multiple(1.1, 0.25), _multiple(0.01, 0.25), _multiple(1.1, 0)
    (1.0, 0.25, 1.1)
    """
    return _snap(value) if of == 0 else _snap(max(1, math.floor(_snap(value / of) + 0.5)) * of)


def _snap(value: float) -> float:
    """`value` without the noise of binary fractions: 80 * 1.15 is 92, not 91.99999999999999."""
    return round(value, 9)
