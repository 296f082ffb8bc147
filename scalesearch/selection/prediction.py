"""The best split at a target cost, from the trainings of several costs: the surface, and the networks on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from scalesearch import surface
from scalesearch.budget import Budget
from scalesearch.network import AnyNetwork
from scalesearch.posterior import image_covariance
from scalesearch.scaling import Rounding
from scalesearch.search import AXES, BASELINE, Candidate, Plan, Realised, every_split, multiples_of, realised, size_of
from scalesearch.selection.pairs import Seeds, scores
from scalesearch.surface import Split, Surface
from scalesearch.workspace import Infeasible


@dataclass(frozen=True, eq=False)
class Step:
    """Of one cost of the path: the split to take there, by its place in the surface's splits, and its network.

    passed_over: splits that are expected to be better, and of which no network is at that cost.
    """

    cost: float
    split: int
    realised: Realised
    passed_over: tuple[Split, ...]


def estimate_surface(plan: Plan, finished: Mapping[str, Seeds], *, target: float, rounding: Rounding) -> Surface | None:
    """The surface of the networks that were trained; None where these are too few.

    finished: by name, of each what its trainings had right; the 1x network's among them.
    """
    base = plan.baseline.network
    known = {one.id: one for one in (plan.baseline, *plan.candidates)}
    names = sorted(finished, key=lambda name: (name != BASELINE, name))
    networks = [
        surface.Network(_multiples(base, known[name]), scores(finished[name]), known[name].ratio) for name in names
    ]

    def place(split: Split, cost: float) -> tuple[float, float, float] | None:
        try:
            return size_of(base, realised(base, split, cost, rounding), split, cost)
        except ValueError:
            return None

    images = image_covariance([finished[name] for name in names])
    return surface.fit(networks, target, images=images, splits=every_split(plan), place=place)


def _multiples(base: AnyNetwork, candidate: Candidate) -> tuple[float, float, float]:
    if candidate.id == BASELINE:
        return 1.0, 1.0, 1.0
    return multiples_of(base, candidate.network, candidate.coefficients)


def path_of(found: Surface, network: AnyNetwork, *, rounding: Rounding, budget: Budget) -> list[Step]:
    """At each cost of the surface the best split that `network` can be scaled by, as the network nearest to that cost.

    At the target, the last one, its counted multiply-adds are within the budget's tolerance.

    Raises: Infeasible: no split has such a network at a cost.
    """
    steps = []
    for place, cost in enumerate(found.costs):
        is_target, passed_over = place == len(found.costs) - 1, list[Split]()
        for split in (-found.expected(place)).argsort(kind="stable"):
            try:
                one = realised(network, found.splits[split], cost, rounding)
            except ValueError:  # more than a table can hold, say
                one = None
            if one is not None and (budget.near(one.ratio, cost) or not is_target):
                steps.append(Step(cost, int(split), one, tuple(passed_over)))
                break
            passed_over.append(found.splits[split])
        else:
            raise Infeasible(f"{network.name} has no network of {cost:.4g} x its multiply-adds; raise budget.tolerance")
    return steps


def surface_table(found: Surface, steps: list[Step], confidence: float) -> pd.DataFrame:
    """One row per cost and split: shares, multiples of the 1x network, what is expected of it and how sure that is."""
    rows = []
    for place, (cost, step) in enumerate(zip(found.costs, steps, strict=True)):
        regret, good = found.regret(place), found.as_good(confidence, place)
        probability, expected = found.posterior.probability_best(found.places(place)), found.expected(place)
        for number, split in enumerate(found.splits):
            depth, width, resolution = found.sizes[place][number]
            low, high = found.interval(number, confidence, place)
            rows.append(
                {
                    "cost": cost,
                    **{f"{name}_share": share for name, share in zip(AXES, split, strict=True)},
                    "depth": 2**depth,
                    "width": 2 ** (width / 2),
                    "resolution": 2 ** (resolution / 2),
                    "accuracy": float(expected[number]),
                    "accuracy_low": low,
                    "accuracy_high": high,
                    "probability_best": float(probability[number]),
                    "expected_regret": float(regret[number]),
                    "as_good": number in good,
                    "chosen": number == step.split,
                }
            )
    return pd.DataFrame(rows)
