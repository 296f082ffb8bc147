"""What sizes a user's function can make, found by trying: on the meta device, so each try takes milliseconds.

A table says what its patch is and which rows depth and width scale; of a function only its networks do.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from scalesearch.cost import check_training, computation
from scalesearch.model import FactoryError, trusted
from scalesearch.network import MAX_RESOLUTION, AnyNetwork, Factory
from scalesearch.scaling import Proxy, Rounding, shrink

_MOST = 256  # px: the largest step of resolution that is looked for
_FINEST = 64  # steps of depth or width in the baseline's own: the finest that is looked for


class Proxied(NamedTuple):
    """The 1x network with the rounding of its scaling; `why` says in what it departs from the proxy that was given."""

    network: AnyNetwork
    rounding: Rounding
    why: str


def with_grain(network: AnyNetwork) -> AnyNetwork:
    """The network; of a trusted function with the multiples that it takes, as far as it does not state them."""
    if not isinstance(network, Factory) or not trusted(network.function):
        return network
    return replace(
        network,
        resolution_multiple=grain(network) if network.resolution_multiple == 1 else network.resolution_multiple,
        depth_multiple=network.depth_multiple or multiple(network, "depth"),
        width_multiple=network.width_multiple or multiple(network, "width"),
    )


@lru_cache(maxsize=1024)
def multiple(network: Factory, name: str) -> float:
    """Of what the "depth" or the "width" of a function must be a multiple: what lies between is refused. 0: of nothing.

    A fault of the code is no such rule, and is met again by whoever needs that size.
    Raises: FactoryError: the network cannot be at its own size.
    """
    computation(network)
    own: float = getattr(network, name)

    def takes(value: float) -> bool:
        try:
            return bool(computation(_sized(network, name, round(value, 9))))
        except ValueError as error:
            _raise_fault(error)
            return False

    try:
        if any(takes(own * factor) for factor in (1.013, 1.037, 0.979)):
            return 0.0
        for parts in range(_FINEST, 0, -1):
            step = own / parts
            if takes(own + step) and takes(own + 2 * step) and (parts == 1 or takes(own - step)):
                return round(step, 9)
    except FactoryError:
        return 0.0
    return 0.0


def _sized(network: Factory, name: str, value: float) -> Factory:
    return replace(network, depth=value) if name == "depth" else replace(network, width=value)


@lru_cache(maxsize=1024)
def grain(network: Factory) -> int:
    """px of which a resolution must be a multiple: sides between are refused, or cut off by a patch.

    Raises: FactoryError: the network cannot be at its own resolution.
    """
    own, side = computation(network), network.resolution
    above, below = _tried(network, 1), _tried(network, -1)
    if above is None:  # refused: the rule is one of multiples, and its own side meets it
        divisors = [step for step in range(2, min(side, _MOST) + 1) if side % step == 0]
        return next((step for step in divisors if _tried(network, step) not in (None, own)), 1)
    if above == own and below != own:  # the layers change at its own side and not behind it: the rest is cut off
        step = next((step for step in range(2, 65) if _tried(network, step) != own), 1)
        return step if side % step == 0 else 1
    return 1


def _tried(network: Factory, more: int) -> str | None:
    """The computation at a resolution of so many px more; None where there is none."""
    side = network.resolution + more
    if not 1 <= side <= MAX_RESOLUTION:
        return None
    try:
        return computation(replace(network, resolution=side))
    except ValueError as error:
        _raise_fault(error)
        return None


def _raise_fault(error: ValueError) -> None:
    if isinstance(error, FactoryError) and error.fault:
        raise error


@lru_cache(maxsize=256)
def unscaled(network: AnyNetwork) -> dict[str, str]:
    """The dimensions that change nothing in what a function makes, or that it takes one value of, with the reason.

    Empty for a table, whose depth, width and resolution always do.
    """
    if not isinstance(network, Factory):
        return {}
    found = {}
    own = computation(network)
    for name in ("depth", "width", "resolution"):
        why = "changes no layer of the network"
        for factor in (2.0, 4.0, 0.5, 1.5, 3.0):
            value = getattr(network, name) * factor
            if name == "resolution":
                value = max(1, round(value / network.resolution_multiple)) * network.resolution_multiple
            try:
                other = computation(replace(network, **{name: value}))
            except ValueError as error:
                _raise_fault(error)
                why = f"has one value ({_reason(error)})"
                continue
            if other != own:
                break
        else:
            found[name] = why
    return found


@lru_cache(maxsize=256)
def proxied(baseline: AnyNetwork, proxy: Proxy, rounding: Rounding) -> Proxied:
    """The baseline made small by `proxy`; of a function the nearest larger size that can be trained, where that cannot.

    First the resolution is raised, then the width, at last the depth, up to the baseline's own.
    Raises: ValueError: none can be.
    """
    small, fine = shrink(baseline, proxy, rounding)
    if not isinstance(small, Factory) or not isinstance(baseline, Factory):
        return Proxied(small, fine, "")
    multiple = math.lcm(rounding.resolution_multiple, baseline.resolution_multiple)
    sides = [min(-(-small.resolution // multiple) * multiple, max(baseline.resolution, small.resolution))]
    while sides[-1] < baseline.resolution:
        sides.append(min(2 * sides[-1], baseline.resolution))
    first: ValueError | None = None
    for depth, width in ((small.depth, small.width), *_wider(small, baseline), (baseline.depth, baseline.width)):
        for side in sides:
            network = replace(small, depth=depth, width=width, resolution=side)
            try:
                check_training(network)
            except ValueError as error:
                _raise_fault(error)
                first = first or error
                continue
            return Proxied(network, fine, _departure(small, network, first))
    raise first or ValueError("no size of it can be trained")


def _wider(small: Factory, baseline: Factory) -> list[tuple[float, float]]:
    widths = itertools.takewhile(lambda width: width < baseline.width, (small.width * 2**step for step in range(1, 8)))
    return [(small.depth, round(width, 9)) for width in widths]


def _departure(small: Factory, network: Factory, error: ValueError | None) -> str:
    changed = [
        f"{name} {getattr(network, name):g} instead of {getattr(small, name):g}"
        for name in ("depth", "width", "resolution")
        if getattr(network, name) != getattr(small, name)
    ]
    if not changed:
        return ""
    reason = _reason(error) if error is not None else f"it takes multiples of {network.resolution_multiple} px"
    return f"the proxy has {', '.join(changed)}: {reason}"


def _reason(error: ValueError) -> str:
    return error.reason if isinstance(error, FactoryError) else str(error)


def grain_line(network: AnyNetwork) -> list[str]:
    """Lines on the sizes that a function takes; none where it takes all."""
    if not isinstance(network, Factory):
        return []
    lines = []
    if (step := network.resolution_multiple) != 1:
        lines.append(
            f"resolutions are multiples of {step} px: {network.function} takes no others, or computes the same for them"
        )
    for name, size in (("depths", network.depth_multiple), ("widths", network.width_multiple)):
        if size:
            lines.append(f"{name} are multiples of {size:g}: {network.function} takes no others")
    return lines
