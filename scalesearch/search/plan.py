"""What a search may train (arXiv:1905.11946, section 3.3, step 1): networks that meet the budget.

`candidates` are the points of the grid that meet alpha * beta^2 * gamma^2 ~ 2, scaled, counted, compared with the
budget, and merged where they are the same network.
"""

from __future__ import annotations

import bisect
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from functools import partial
from typing import Annotated, Any, NamedTuple

from scalesearch.budget import Budget, Footprint, Limits, Profiler
from scalesearch.checks import between, checked
from scalesearch.cost import Cost, computation, cost
from scalesearch.model import FactoryError, identity
from scalesearch.network import AnyNetwork, Factory
from scalesearch.probing import unscaled
from scalesearch.scaling import Coefficients, Rounding, patch_of, scale

BASELINE = "baseline"  # the id of the 1x network in every table


@checked("grid")
class Axis:
    """Values of one coefficient: `start` to `stop` by `step`, exact decimals, `stop` included where it is hit."""

    start: Annotated[Decimal, between(0.1, 10)]
    stop: Annotated[Decimal, between(0.1, 10)]
    step: Annotated[Decimal, between(1e-4, 10)]

    def __post_init__(self) -> None:
        if self.stop < self.start:
            raise ValueError(f"the stop of an axis of the grid is {self.stop}, below its start {self.start}")

    def values(self) -> list[Decimal]:
        return [self.start + self.step * index for index in range(int((self.stop - self.start) / self.step) + 1)]


@checked("grid")
class Grid:
    """Points (alpha, beta, gamma); their product must be nearer to `product` than `product_tolerance`.

    In exact decimals: (1.9, 1, 1) is 0.1 from 2 and therefore out at a tolerance of 0.1, whatever binary floats say.
    """

    alpha: Axis
    beta: Axis
    gamma: Axis
    product: Annotated[Decimal, between(1e-3, 1e6)]
    product_tolerance: Annotated[Decimal, between(1e-6, 1e6)]

    def points(self) -> list[tuple[Decimal, Decimal, Decimal]]:
        return [
            (alpha, beta, gamma)
            for alpha in self.alpha.values()
            for beta in self.beta.values()
            for gamma in self.gamma.values()
        ]

    def admits(self, alpha: Decimal, beta: Decimal, gamma: Decimal) -> bool:
        return abs(alpha * beta**2 * gamma**2 - self.product) < self.product_tolerance


@dataclass(frozen=True)
class Candidate:
    """A network that meets both constraints, with all triples that round to it.

    `triples` starts with the one whose product is nearest to the grid's: it stands for the others.
    `ratio` is the counted cost over the 1x network's; `footprint` is None where nobody asked for it.
    """

    id: str
    triples: tuple[Coefficients, ...]
    network: AnyNetwork
    cost: Cost
    ratio: float
    footprint: Footprint | None = None

    @property
    def coefficients(self) -> Coefficients:
        return self.triples[0]

    def sizes(self) -> dict[str, float]:
        """Product, counted costs, footprint, `depth` in blocks and `resolution` in px, as every table has them."""
        return {
            "product": round(self.coefficients.product, 6),
            "macs": self.cost.macs,
            "macs_ratio": self.ratio,
            "params": self.cost.params,
            "activations": self.cost.activations,
            **(self.footprint._asdict() if self.footprint else {}),
            "depth": self.network.depth,
            "resolution": self.network.resolution,
        }


class Plan(NamedTuple):
    """The candidates, and what became of the other points of the grid, counted by rule.

    What to tell somebody whose constraints nothing meets: `nearest` are the points that came nearest to the budget,
    (coefficients, ratio), and `excess` those that met it but not the limits, (coefficients, share, metric), each best
    first. `impossible` counts the points that no network can have by the reason, the most frequent first, and
    `unscaled` has the dimensions that a user's function does not scale, with the reason: they stay at 1.
    """

    baseline: Candidate
    points: int
    dropped: dict[str, int]
    candidates: list[Candidate]
    nearest: list[tuple[Coefficients, float]]
    excess: list[tuple[Coefficients, float, str]]
    impossible: dict[str, int]
    unscaled: dict[str, str]


class Real(NamedTuple):
    """The network that a proxy stands for, with the rounding of its family, and what its variants may need."""

    network: AnyNetwork
    rounding: Rounding
    limits: Limits
    profiler: Profiler

    def most(self, coefficients: Coefficients) -> tuple[float, str]:
        """The variant at phi = 1 for these coefficients: the share of a limit that it needs, as `Limits.most`."""
        try:
            return self.limits.most(scale(self.network, coefficients, 1, rounding=self.rounding), self.profiler)
        except ValueError:  # it cannot be
            return math.inf, next(iter(self.limits.given()))


def candidates(
    network: AnyNetwork,
    grid: Grid,
    budget: Budget,
    rounding: Rounding,
    *,
    real: Real | None = None,
    solve_gamma: bool = False,
) -> Plan:
    """The plan for a network: nothing is trained, each point costs a fraction of a millisecond.

    A triple is dropped too where the variant of `real` exceeds a limit; finding that out may take longer.
    solve_gamma: the points are those of alpha and beta, each with the gamma between the ends of its axis whose
        counted cost is nearest to the budget; the product is then not asked for.
    """
    base, fixed = cost(network), unscaled(network)
    grid = _without(grid, fixed)
    points = _solved(network, grid, budget, rounding) if solve_gamma else grid.points()
    admitted = points if solve_gamma else [point for point in points if grid.admits(*point)]
    ratios: list[tuple[Coefficients, float]] = []
    within: list[tuple[Coefficients, AnyNetwork]] = []
    reasons: list[str] = []
    for point in admitted:
        coefficients = Coefficients(*map(float, point))
        try:
            scaled = scale(network, coefficients, 1, rounding=rounding)
            ratios.append((coefficients, cost(scaled).macs / base.macs))
        except ValueError as error:  # it cannot be: a resolution below the total stride, say
            reasons.append(why_not(error))
        else:
            if budget.admits(ratios[-1][1]):
                within.append((coefficients, scaled))
    met, excess = within, list[tuple[Coefficients, float, str]]()
    if real is not None and real.limits.given():
        uses = [real.most(coefficients) for coefficients, _ in within]
        met = [one for one, (share, _) in zip(within, uses, strict=True) if share <= 1]
        excess = [(one, share, metric) for (one, _), (share, metric) in zip(within, uses, strict=True) if share > 1]
    dropped = {
        "product": len(points) - len(admitted),
        "impossible": len(admitted) - len(ratios),
        "budget": len(ratios) - len(within),
        "limits": len(excess),
    }
    ratios.sort(key=lambda one: abs(math.log(one[1] / budget.macs_ratio)))
    excess.sort(key=lambda one: one[1])
    baseline = Candidate(BASELINE, (Coefficients(1.0, 1.0, 1.0),), network, base, 1.0)
    merged = merge(met, base, float(grid.product))
    return Plan(baseline, len(points), dropped, merged, ratios[:5], excess[:5], tally(reasons), fixed)


def _without(grid: Grid, fixed: Mapping[str, str]) -> Grid:
    """The grid in which the dimensions that change nothing have the value 1 alone."""
    if len(fixed) == len(AXES):
        reasons = "; ".join(f"{name} {why}" for name, why in fixed.items())
        raise ValueError(f"there is nothing to search: {reasons}")
    one = Axis(Decimal(1), Decimal(1), Decimal(1))
    axes: dict[str, Any] = {axis: one for name, axis in AXES.items() if name in fixed}
    return replace(grid, **axes)


AXES = {"depth": "alpha", "width": "beta", "resolution": "gamma"}


def why_not(error: ValueError) -> str:
    """Why a point of the grid is no network. Raises: ValueError where the code of a user's function is at fault."""
    if not isinstance(error, FactoryError):
        return str(error)
    if error.fault:
        raise ValueError(f"{error}. That is a fault of the code, and not a size that no network can have") from error
    return error.reason


def tally(reasons: Sequence[str]) -> dict[str, int]:
    """How often each reason was given; those that differ in numbers alone are one."""
    first: dict[str, str] = {}
    found: Counter[str] = Counter()
    for reason in reasons:
        found[first.setdefault(re.sub(r"\d+(\.\d+)?", "#", reason), reason)] += 1
    return dict(found.most_common())


def merge(scaled: Sequence[tuple[Coefficients, AnyNetwork]], base: Cost, product: float) -> list[Candidate]:
    """One candidate per network, named in the order of the points."""
    same: dict[str, dict[Coefficients, AnyNetwork]] = {}
    for coefficients, network in scaled:
        same.setdefault(_computes(network), {})[coefficients] = network
    width = max(2, len(str(len(same))))
    merged = []
    for index, networks in enumerate(same.values(), start=1):
        triples = sorted(networks, key=lambda one: (round(abs(one.product - product), 9), one.alpha, one.beta))
        network = networks[triples[0]]
        counted = cost(network)
        merged.append(Candidate(f"c{index:0{width}d}", tuple(triples), network, counted, counted.macs / base.macs))
    return merged


def _computes(network: AnyNetwork) -> str:
    """What two points share that are one candidate: the table, or of a function what it makes and what that computes,
    which may be the same for two resolutions."""
    if not isinstance(network, Factory):
        return json.dumps(identity(network))
    return json.dumps([identity(network)["structure"], computation(network), asdict(cost(network))])


def _solved(
    network: AnyNetwork, grid: Grid, budget: Budget, rounding: Rounding
) -> list[tuple[Decimal, Decimal, Decimal]]:
    """(alpha, beta, gamma) for every alpha and beta; gamma is the ratio of a whole resolution to the 1x network's."""
    base, step = network.resolution, math.lcm(rounding.resolution_multiple, patch_of(network))
    low, high = (math.ceil(base * end / step) for end in (grid.gamma.start, grid.gamma.stop))
    gammas = [float(grid.gamma.start), *(size * step / base for size in range(low, high + 1))]
    gammas = sorted({gamma for gamma in gammas if grid.gamma.start <= gamma <= grid.gamma.stop})
    baseline_macs = cost(network).macs

    def ratio(alpha: Decimal, beta: Decimal, gamma: float) -> float:
        try:
            scaled = scale(network, Coefficients(float(alpha), float(beta), gamma), 1, rounding=rounding)
            return cost(scaled).macs / baseline_macs
        except ValueError:  # fewer pixels than the total stride, say
            return 0.0

    found = []
    for alpha in grid.alpha.values():
        for beta in grid.beta.values():
            of = partial(ratio, alpha, beta)
            place = bisect.bisect_left(gammas, budget.macs_ratio, key=of)
            near = gammas[max(0, place - 1) : place + 1]
            best = min(near, key=lambda gamma, of=of: abs(of(gamma) - budget.macs_ratio))  # type: ignore[misc]
            found.append((alpha, beta, Decimal(repr(best))))
    return found


def measured(plan: Plan, profiler: Profiler) -> Plan:
    """The plan with the footprint of its networks, in memory and time; a proxy takes a tenth of a second."""
    baseline, *others = (
        replace(candidate, footprint=profiler.footprint(candidate.network))
        for candidate in (plan.baseline, *plan.candidates)
    )
    return plan._replace(baseline=baseline, candidates=others)
