"""The search for a target cost: which networks are trained, at lower costs, so that the surface over all of them tells
the best split at the target (`scalesearch.surface`).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from scalesearch.budget import Budget, parse
from scalesearch.cost import cost
from scalesearch.model import FactoryError
from scalesearch.network import AnyNetwork, Factory
from scalesearch.probing import unscaled
from scalesearch.scaling import Coefficients, Rounding, scale
from scalesearch.search.plan import AXES, BASELINE, Candidate, Plan, merge, tally, why_not
from scalesearch.surface import Split, lattice, multiples, size, spread
from scalesearch.text import count
from scalesearch.workspace import Target

USUAL_COSTS = (1.0, 2.0, 4.0)
_STEPS = 32  # of a doubling, in which the cost of a split is met
# Doublings about the nominal size in which a cost is sought: rounding adds to it, and a stem that stays takes from it.
_BELOW, _ABOVE = 1, 2


class Realised(NamedTuple):
    """A network of a split: its multiples of the 1x network as coefficients, and how often it costs that, counted."""

    coefficients: Coefficients
    network: AnyNetwork
    ratio: float


def ratio_of(target: Target, network: AnyNetwork) -> float:
    """The target as a multiple of the counted cost of `network`, the baseline.

    Raises: ValueError: it is no more than that.
    """
    if target.macs is None:
        assert target.macs_ratio is not None
        return target.macs_ratio
    own, wanted = cost(network).macs, parse(target.macs, "macs", key="target.macs")
    if wanted <= 1.01 * own:
        raise ValueError(
            f"target.macs is {target.macs}; {network.name} itself has {count(own)} multiply-adds, and the target must "
            f"be above that: target.macs={count(2 * own).replace(' ', '')}, say"
        )
    return wanted / own


def costs_of(target: Target, ratio: float) -> tuple[float, ...]:
    """The costs at which candidates are trained, as multiples of the 1x network's, which is trained in any case.

    Raises: ValueError: one is above the target, or none is above 1.
    """
    costs = target.costs or tuple(one for one in USUAL_COSTS if one <= ratio)
    if max(costs) > ratio:
        raise ValueError(
            f"target.costs has {max(costs):g}, and the target is {ratio:.4g} x the 1x network's multiply-adds; nothing "
            "is trained above the target. Leave it out, or raise target.macs_ratio"
        )
    above = tuple(one for one in costs if one > 1)
    if not above:
        raise ValueError(
            f"the target is {ratio:.4g} x the 1x network's multiply-adds, and no cost above 1 is trained. Give one up "
            f"to it, such as target.costs=[{ratio:.4g}], or search at that cost: budget.macs_ratio={ratio:.4g} "
            f"grid.product={ratio:.4g}"
        )
    return above


def targeted(network: AnyNetwork, budget: Budget, rounding: Rounding, *, costs: Sequence[float], number: int) -> Plan:
    """The plan: of each cost so many splits, spread over all, as networks whose counted cost is that within tolerance.

    A candidate's coefficients are its multiples of the 1x network. Raises: ValueError: there is nothing to split.
    """
    base, fixed = cost(network), unscaled(network)
    splits = [] if len(fixed) == len(AXES) else spread(number, free=tuple(name not in fixed for name in AXES))
    if len(splits) < 2:
        reasons = "; ".join(f"{name} {why}" for name, why in fixed.items())
        raise ValueError(f"there is nothing to split: {reasons}")
    within: list[tuple[Coefficients, AnyNetwork]] = []
    missed: list[tuple[Coefficients, float]] = []
    reasons_of: list[str] = []
    for target in costs:
        for split in splits:
            try:
                found = realised(network, split, target, rounding)
            except ValueError as error:
                reasons_of.append(why_not(error))
                continue
            if budget.near(found.ratio, target):
                within.append((found.coefficients, found.network))
            else:
                missed.append((found.coefficients, found.ratio))
    dropped = {"product": 0, "impossible": len(reasons_of), "budget": len(missed), "limits": 0}
    baseline = Candidate(BASELINE, (Coefficients(1.0, 1.0, 1.0),), network, base, 1.0)
    points = len(costs) * len(splits)
    return Plan(baseline, points, dropped, merge(within, base, 0.0), missed[:5], [], tally(reasons_of), fixed)


def realised(network: AnyNetwork, split: Split, ratio: float, rounding: Rounding) -> Realised:
    """The network on the ray of a split whose counted cost is nearest to `ratio` times that of `network`.

    Raises: ValueError: there is none, as every size on the ray is more than a table can hold, say.
    """
    base, nominal = cost(network).macs, round(_STEPS * math.log2(ratio))
    refused: list[ValueError] = []

    @cache
    def at(step: int) -> Realised | None:
        try:
            coefficients = Coefficients(*multiples(split, step / _STEPS))
            scaled = scale(network, coefficients, 1, rounding=rounding)
            return Realised(coefficients, scaled, cost(scaled).macs / base)
        except ValueError as error:
            if isinstance(error, FactoryError) and error.fault:
                raise
            refused.append(error)
            return None

    def ratio_at(step: int) -> float:
        found = at(step)
        return math.inf if found is None else found.ratio

    first, last = nominal - _BELOW * _STEPS, nominal + _ABOVE * _STEPS
    place = first + bisect.bisect_left(range(first, last), ratio, key=ratio_at)
    near = [one for step in range(place - 2, place + 3) if (one := at(step)) is not None]
    if not near:
        raise refused[0]
    return min(near, key=lambda one: (round(abs(math.log(one.ratio / ratio)), 9), one.coefficients.product))


def size_of(network: AnyNetwork, found: Realised, split: Split, ratio: float) -> tuple[float, float, float]:
    """What the split at exactly `ratio` times the cost of `network` comes to, in doublings of the cost.

    As the network that was found is built, in blocks and pixels, and what its cost lacks along the split.
    """
    built = size(multiples_of(network, found.network, found.coefficients))
    lacks = math.log2(ratio / found.ratio)
    depth, width, resolution = (one + share * lacks for one, share in zip(built, split, strict=True))
    return depth, width, resolution


def multiples_of(baseline: AnyNetwork, network: AnyNetwork, coefficients: Coefficients) -> tuple[float, float, float]:
    """Depth and resolution of a network as it is built, width as it was asked for, over those of the 1x network."""
    return network.depth / baseline.depth, coefficients.beta, network.resolution / baseline.resolution


def every_split(plan: Plan) -> list[Split]:
    """The splits that are compared: those without a share for a dimension that the network does not scale.

    Each takes ten counts at each cost. A function takes far longer to be counted than a table, and has fewer of them.
    """
    free = tuple(name not in plan.unscaled for name in AXES)
    if isinstance(plan.baseline.network, Factory):
        return spread(13, free)
    return [one for one in lattice() if all(scales or share == 0 for scales, share in zip(free, one, strict=True))]
