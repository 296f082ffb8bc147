"""Compound scaling: d = alpha^phi, w = beta^phi, r = gamma^phi (arXiv:1905.11946, equation 3), and its rounding.

Layers are whole and channels are multiples of something, so what a network costs after rounding is not what
the product says. The rule of rounding therefore is a value of its own, and a study has one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from scalesearch.network import MAX_REPEATS, Network, Stage

MAX_FACTOR = 1e6  # no table can hold more; a larger number would be refused too, with all its digits


@dataclass(frozen=True)
class Coefficients:
    """alpha (depth), beta (width) and gamma (resolution), each above 0; at least 1 in the paper's search."""

    alpha: float
    beta: float
    gamma: float

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "gamma"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0.1 <= value <= 10:
                raise ValueError(f"coefficients.{name} is {value!r}; it must be a number from 0.1 to 10")

    @property
    def product(self) -> float:
        """alpha * beta^2 * gamma^2: the nominal factor of the multiply-adds at phi = 1."""
        return self.alpha * self.beta**2 * self.gamma**2

    def multipliers(self, phi: float) -> tuple[float, float, float]:
        """(depth, width, resolution) at `phi`. Errors: ValueError where one is more than a float can hold."""
        try:
            return float(self.alpha) ** phi, float(self.beta) ** phi, float(self.gamma) ** phi
        except OverflowError:
            raise ValueError(f"phi is {phi:g}; the multipliers alpha^phi, beta^phi, gamma^phi must be finite") from None


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """How scaled numbers become whole.

    depth: "ceil" rounds each stage up (TPU reference `efficientnet_model.py`, `round_repeats`); "nearest"
        rounds the total to the nearest and spreads it over the stages by largest remainder, so that the
        counted cost follows the product.
    divisor, limit: channels go to the nearest multiple of `divisor`, and one up where that is below `limit`
        times the scaled number (the same file, `round_filters`: 8 and 0.9); limit 0 switches that off.
    resolution: "floor" or "nearest", to a multiple of `resolution_multiple` px.
    """

    name: str
    depth: str
    divisor: int
    limit: float
    resolution: str
    resolution_multiple: int = 1

    def __post_init__(self) -> None:
        if self.depth not in ("ceil", "nearest"):
            raise ValueError(f"rounding.depth is {self.depth!r}; known rules: ceil, nearest")
        if self.resolution not in ("floor", "nearest"):
            raise ValueError(f"rounding.resolution is {self.resolution!r}; known rules: floor, nearest")
        if not 1 <= self.divisor <= 256 or not 1 <= self.resolution_multiple <= 256:
            raise ValueError("rounding.divisor and rounding.resolution_multiple must be whole numbers from 1 to 256")
        if not 0 <= self.limit < 1:
            raise ValueError(f"rounding.limit is {self.limit}; it must be from 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """How a baseline is made small enough to be trained many times.

    Multipliers of depth and width; the side of its input in px, and the total stride to which strides are dropped
    from the earliest stage on (None: the baseline's own).
    """

    depth: float
    width: float
    resolution: int | None
    total_stride: int | None

    def __post_init__(self) -> None:
        for name in ("depth", "width"):
            if not 0.01 <= getattr(self, name) <= 10:
                raise ValueError(f"proxy.{name} is {getattr(self, name)!r}; it must be a number from 0.01 to 10")
        for name in ("resolution", "total_stride"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= 4096:
                raise ValueError(f"proxy.{name} is {value!r}; it must be null or a whole number from 1 to 4096")


def scale(
    network: Network, coefficients: Coefficients, phi: float, *, rounding: Rounding, name: str | None = None
) -> Network:
    """The network at `phi`: equation 3 of the paper, then `rounding`.

    Errors: ValueError where the scaled network cannot be (more channels than can be held, say).
    """
    depth, width, resolution = coefficients.multipliers(phi)
    return resize(network, depth=depth, width=width, resolution=resolution, rounding=rounding, name=name)


def resize(
    network: Network,
    *,
    depth: float = 1.0,
    width: float = 1.0,
    resolution: float = 1.0,
    rounding: Rounding,
    name: str | None = None,
) -> Network:
    """The network with depth, width and resolution multiplied, each rounded by `rounding`."""
    if not all(0 < factor <= MAX_FACTOR for factor in (depth, width, resolution)):
        given = f"depth {depth:g}, width {width:g} and resolution {resolution:g}"
        raise ValueError(f"{given} times a baseline's must be above 0, and {MAX_FACTOR:g} at most")
    repeats = round_depth([stage.repeats for stage in network.stages], depth, rule=rounding.depth)

    def wide(stage: Stage) -> int:
        if width == 1:
            return stage.channels  # a baseline's own number stays, multiple or not
        return round_channels(stage.channels * width, divisor=rounding.divisor, limit=rounding.limit)

    return replace(
        network,
        name=name or network.name,
        resolution=round_resolution(network.resolution * resolution, rounding)
        if resolution != 1
        else network.resolution,
        stem=replace(network.stem, channels=wide(network.stem)),
        stages=tuple(
            replace(stage, channels=wide(stage), repeats=count)
            for stage, count in zip(network.stages, repeats, strict=True)
        ),
        head=replace(network.head, channels=wide(network.head)),
    )


def shrink(network: Network, proxy: Proxy, rounding: Rounding) -> tuple[Network, Rounding]:
    """The proxy of a baseline, and the rounding for scaling it.

    Channels that shrink to a quarter are rounded to a quarter of the divisor: the proxy then has the grain of
    the baseline that it stands for.
    """
    grain = replace(rounding, divisor=max(1, round(rounding.divisor * min(1.0, proxy.width))))
    rows = [network.stem, *network.stages]
    total = network.total_stride
    wanted = proxy.total_stride or total
    for index in range(len(rows)):
        while total > wanted and rows[index].stride > 1:
            rows[index] = replace(rows[index], stride=rows[index].stride // 2)
            total //= 2
    small = replace(network, stem=rows[0], stages=tuple(rows[1:]), resolution=proxy.resolution or network.resolution)
    return resize(small, depth=proxy.depth, width=proxy.width, rounding=replace(grain, depth="nearest")), grain


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
    if rule == "ceil":
        return [math.ceil(count) for count in scaled]
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


def round_resolution(resolution: float, rounding: Rounding) -> int:
    """Side of the input in px: a multiple of `rounding.resolution_multiple`, one of them at least."""
    multiple = rounding.resolution_multiple
    multiples = _snap(resolution) / multiple
    return max(1, math.floor(multiples + (0.5 if rounding.resolution == "nearest" else 0))) * multiple


def _snap(value: float) -> float:
    """`value` without the noise of binary fractions: 80 * 1.15 is 92, not 91.99999999999999."""
    return round(value, 9)
