"""Two networks compared seed by seed and image by image, and what it would take to tell them apart.

All networks of a search share their validation images and their seeds: a seed gives all of them the same order of the
same images. A difference is uncertain by two sources: the seeds (how a training falls out), pooled over all networks
because a few seeds of one alone tell little; and the images (another validation set would order them otherwise).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

# (N,) what each validation image contributes to the score, their mean: whether it is right, or its part in a metric
Correct = np.ndarray[Any, np.dtype[Any]]
Seeds = Mapping[int, Correct]  # a network's finished trainings by seed


class Comparison(NamedTuple):
    """One network's accuracy less another's on the seeds and images that they share.

    The standard error is NaN, and the degrees of freedom 0, where nothing is known: no seed shared, or one seed
    each. `seeds_part` falls with the seeds; `images_part`, of so many images, does not.
    """

    difference: float
    standard_error: float
    degrees_of_freedom: float
    num_seeds: int
    num_images: int
    seeds_part: float
    images_part: float

    def p_value(self) -> float:
        """One-sided, of "the other one is as good"; 1 where nothing is known."""
        if math.isnan(self.standard_error):
            return 1.0
        if self.standard_error == 0:
            return 1.0 if self.difference == 0 else 0.0
        return float(stats.t.sf(self.difference / self.standard_error, self.degrees_of_freedom))

    def interval(self, confidence: float, *, pairs: int = 1) -> tuple[float, float]:
        """(low, high) of the difference, two-sided; NaN where nothing is known, as by `ends`.

        pairs: of how many differences this is one, all of which the intervals then cover at once (Bonferroni).
        """
        if math.isnan(self.standard_error):
            return math.nan, math.nan
        tail = (1 - confidence) / (2 * pairs)
        reach = float(stats.t.isf(tail, self.degrees_of_freedom)) * self.standard_error if self.standard_error else 0.0
        return ends(self.difference, reach)


class Pairs:
    """Compares any two networks of a search; the seeds' part is pooled over `finished`, all that it has trained."""

    def __init__(self, finished: Mapping[str, Seeds]) -> None:
        self._deviation, self._freedom = _within_seeds(finished)
        self._num_networks = len(finished)

    def compare(self, one: Seeds, other: Seeds) -> Comparison:
        """`one` against `other`, of which neither need be of the search itself.

        The squared standard error adds the seeds' part, 2 deviation^2 / seeds, to the images' part: how much the
        difference varies between images, of which the noise that the seeds leave in it has been taken off.
        """
        shared = sorted(one.keys() & other.keys())
        num_images = len(next(iter(one.values())))
        if not shared or not self._freedom:
            difference = mean(one) - mean(other)
            return Comparison(difference, math.nan, 0.0, len(shared), num_images, math.nan, math.nan)
        table = np.stack([one[s].astype(np.float64) - other[s] for s in shared])  # (S, N), entries -1, 0, 1
        num_seeds = len(shared)
        by_image = table.mean(0)
        noise = 0.0  # with one seed it is not known, and stays in the images' part, which errs to the safe side
        if num_seeds > 1:
            rest = table - by_image - table.mean(1, keepdims=True) + table.mean()
            noise = float((rest**2).sum()) / ((num_seeds - 1) * (num_images - 1)) / num_seeds
        seeds_part = 2 * self._deviation**2 / num_seeds
        images_part = max(0.0, float(by_image.var(ddof=1)) - noise) / num_images
        difference = mean({s: one[s] for s in shared}) - mean({s: other[s] for s in shared})
        error, degrees = _error(seeds_part, images_part, self._freedom)
        return Comparison(difference, error, degrees, num_seeds, num_images, seeds_part, images_part)

    def seeds_to_separate(
        self, comparison: Comparison, *, confidence: float, comparisons: int
    ) -> tuple[int | None, int | None, str]:
        """(more seeds per candidate, validation images, why) until a comparison says that one network is better.

        That is, at `confidence`, corrected for the number of `comparisons`, if the difference is what was observed,
        every network gets the seeds, and what seeds and images vary by stays what it is. Half of all repetitions then
        tell the two apart, so it is a lower bound to plan with. Seeds are 0 where they are apart already, and None
        where no number of them will do, with the images below which none can; both are None where that is unknown.
        """
        level = (1 - confidence) / comparisons
        difference, seeds_part, images_part = comparison.difference, comparison.seeds_part, comparison.images_part
        if comparison.num_seeds == 0:
            return None, None, "they share no seed"
        if math.isnan(comparison.standard_error):
            return None, None, ONE_SEED
        if comparison.p_value() <= level:
            return 0, None, "they are apart already"
        if difference <= 0:
            return None, None, "on the seeds that they share the second one is as good"

        def apart(more: int) -> bool:
            part = seeds_part * comparison.num_seeds / (comparison.num_seeds + more)
            freedom = self._freedom + more * (self._num_networks - 1)
            error, degrees = _error(part, images_part, freedom)
            return error == 0 or bool(stats.t.sf(difference / error, degrees) <= level)

        least = images_part * float(stats.norm.isf(level)) ** 2 / difference**2  # as a share of the present images
        if least >= 1:
            images = math.floor(least * comparison.num_images) + 1
            return None, images, "more validation images: what is left is uncertain by the images, not by the seeds"
        high = 1
        while not apart(high):
            if high == _MOST_SEEDS:
                return None, None, f"more than {_MOST_SEEDS:,} seeds: the difference is too small"
            high = min(2 * high, _MOST_SEEDS)
        low = high // 2  # not enough
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if apart(middle) else (middle, high)
        return high, None, "more seeds"


ONE_SEED = "one seed says nothing of how much seeds vary; at least 2 are needed"
_MOST_SEEDS = 100_000


def ends(middle: float, reach: float) -> tuple[float, float]:
    """(low, high) of an interval of accuracies; both NaN where it would span more than 100 points: it says nothing."""
    return (middle - reach, middle + reach) if 2 * reach <= 1 else (math.nan, math.nan)


def scores(seeds: Seeds) -> dict[int, float]:
    """Seed to the score of that training."""
    return {seed: mean({seed: correct}) for seed, correct in seeds.items()}


def mean(seeds: Seeds) -> float:
    """The mean accuracy, counted in whole images: equal candidates must not differ in the last digit."""
    if any(c.dtype != np.bool_ for c in seeds.values()):
        return round(float(np.mean([c.mean(dtype=np.float64) for c in seeds.values()])), 12)
    return sum(int(c.sum()) for c in seeds.values()) / sum(len(c) for c in seeds.values())


def between_seeds(finished: Mapping[str, Seeds]) -> tuple[float, int]:
    """(standard deviation of a network's accuracy between seeds, its degrees of freedom), pooled over all networks."""
    squares, freedom = 0.0, 0
    for seeds in finished.values():
        accuracies = np.array([c.mean(dtype=np.float64) for c in seeds.values()])
        squares += float(((accuracies - accuracies.mean()) ** 2).sum())
        freedom += len(accuracies) - 1
    return (math.sqrt(squares / freedom), freedom) if freedom else (math.nan, 0)


def _within_seeds(finished: Mapping[str, Seeds]) -> tuple[float, int]:
    """The same after what a seed does to all networks is taken off: the noise of a difference paired by seed.

    The residual of accuracy = network + seed, by least squares, so that networks may lack some of the seeds.
    """
    rows = [(name, seed, c.mean(dtype=np.float64)) for name, seeds in finished.items() for seed, c in seeds.items()]
    names, seeds = sorted(finished), sorted({seed for _, seed, _ in rows})
    design = np.array([[n == name for n in names] + [s == seed for s in seeds] for name, seed, _ in rows], dtype=float)
    accuracies = np.array([accuracy for *_, accuracy in rows])
    solution, _, rank, _ = np.linalg.lstsq(design, accuracies, rcond=None)
    freedom = len(rows) - int(rank)
    squares = float(((accuracies - design @ solution) ** 2).sum())
    return (math.sqrt(squares / freedom), freedom) if freedom else (math.nan, 0)


def _error(seeds_part: float, images_part: float, freedom: int) -> tuple[float, float]:
    """(standard error, degrees of freedom), Satterthwaite's: the images' part has as good as infinitely many."""
    variance = seeds_part + images_part
    degrees = freedom * (variance / seeds_part) ** 2 if seeds_part > 0 else math.inf
    return math.sqrt(variance), degrees
