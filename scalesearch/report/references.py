"""Splits of the cost over the dimensions that need no search, to compare a study's choice with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from scalesearch.budget import Budget
from scalesearch.config import Groups, network_of
from scalesearch.cost import cost
from scalesearch.model import identity
from scalesearch.network import AnyNetwork, Factory
from scalesearch.scaling import PAPERS, Coefficients, Rounding, scale, shrink
from scalesearch.search import BASELINE, Candidate
from scalesearch.selection import Seeds
from scalesearch.study import Study


class Reference(NamedTuple):
    """A split that needs no search, scaled to the study's budget, and what is known of it as the study's proxy.

    macs_ratio: its counted cost; None where the network cannot be made here, and `problem` says why. in_budget: whether
    that meets the budget, which no scaling of it may, since layers are whole. candidate: the one that is the same
    network, if there is one. seeds: its trainings, of that candidate or by themselves. resolution: of the network, px.
    """

    name: str
    coefficients: Coefficients
    macs_ratio: float | None
    in_budget: bool
    candidate: str | None
    seeds: Seeds
    resolution: int | None
    problem: str


def splits(product: float) -> dict[str, Coefficients]:
    """The splits that need no search, scaled to a nominal product.

    "dWr" is of Dollar et al. (arXiv:2103.06877): width squared takes the share 0.8 of the logarithm of the cost, depth
    and resolution squared 0.1 each. The paper's triple is for a product of about 2, and raised to log2 of another one.

    >>> {name: (c.alpha, c.beta, c.gamma) for name, c in splits(2).items()}["dWr"]
    (1.071773, 1.319508, 1.035265)
    """
    multipliers = {
        "alpha = beta = gamma": (product**0.2,) * 3,
        "dWr": (product**0.1, product**0.4, product**0.05),
        "EfficientNet's": PAPERS.multipliers(math.log2(product)),
    }
    return {name: Coefficients(*(round(value, 6) for value in split)) for name, split in multipliers.items()}


def references(
    study: Study, groups: Groups, candidates: Mapping[str, Candidate], finished: Mapping[str, Seeds]
) -> list[Reference]:
    """All splits as proxies of the study, with their trainings from `finished` or from the ledger."""
    described, budget = next(iter(study.records.values()))["specification"]["network"], groups.budget
    kinds = {key: described[key] for key in ("in_channels", "num_classes")}
    found, small = [], None
    for name, coefficients in splits(float(groups.grid.product)).items():
        try:
            baseline = replace(network_of(study.values["baseline"], trusted=False, name="it"), **kinds)
            small, rounding = shrink(baseline, groups.proxy, groups.rounding)
            coefficients, network, ratio = _to_budget(small, coefficients, rounding, budget)
            made = identity(network)
        except ValueError as error:  # more than a table can hold; a function that only the file names
            function = small.function if isinstance(small, Factory) else None
            unknown = f"the baseline is a function, {function}, which only the command `run`, that names it, calls"
            problem = unknown if function else str(error)
            found.append(Reference(name, coefficients, None, False, None, {}, None, problem))
            continue
        same = next((c.id for c in candidates.values() if c.id != BASELINE and identity(c.network) == made), None)
        seeds = finished.get(same, {}) if same else {}
        if same is None:
            all_seeds = sorted({seed for trained in finished.values() for seed in trained})
            correct = {seed: study.correct(made, seed) for seed in all_seeds}
            seeds = {seed: images for seed, images in correct.items() if images is not None}
        admitted = budget.admits(ratio)
        found.append(Reference(name, coefficients, ratio, admitted, same, seeds, network.resolution, ""))
    return found


def _to_budget(
    small: AnyNetwork, split: Coefficients, rounding: Rounding, budget: Budget
) -> tuple[Coefficients, AnyNetwork, float]:
    """The split, its network and counted ratio, raised or lowered as a whole until that meets the budget.

    Of all such the one that is nearest to what the product says; where the grain of the layers leaves none, the one
    whose cost comes nearest to the budget.
    """
    base, found = cost(small).macs, []
    for percent in sorted(range(-40, 41), key=abs):
        powers = split.multipliers(1 + percent / 100)
        coefficients = Coefficients(*(round(value, 6) for value in powers))
        network = scale(small, coefficients, 1, rounding=rounding)
        found.append((coefficients, network, cost(network).macs / base))
        if budget.admits(found[-1][2]):
            return found[-1]
    return min(found, key=lambda one: abs(math.log(one[2] / budget.macs_ratio)))
