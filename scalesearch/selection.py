"""The choice: the best mean validation accuracy, how sure it is, and which candidates cannot be told from it.

Candidates share their validation images and their seeds (a seed gives all of them the same order of the same
images), so two of them are compared seed by seed and image by image. What a comparison is uncertain by has two
sources: the seeds (how a training falls out), pooled over all networks because a few seeds of one alone say little;
and the images (another validation set would order them otherwise).

Two more things that a best mean does not say: how many seeds it would take to tell the first two apart, and whether
candidates are accurate because they cost more, the budget having an upper and a lower edge.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from scalesearch.search import BASELINE, Candidate, TrialResult

Correct = np.ndarray[Any, np.dtype[np.bool_]]


Seeds = Mapping[int, Correct]  # a network's finished trainings: for each seed which images were right


@dataclass(frozen=True)
class Choice:
    """The chosen candidate's id, the one of the best mean, those tied with that (best first), and how it came to it.

    Under the rule "best" `chosen` is `best`; else it may be one of `tied`.
    candidates: a row a candidate and one for the 1x network; see `select`.
    comparisons: a row a candidate against the best: difference, standard_error, degrees_of_freedom, p_value,
        p_corrected (times the number of comparisons), num_seeds that both have, and the two parts of the squared
        standard error, seeds_part and images_part.
    separation: of the best and the next one; None where there is no other.
    cost_effect: None where it cannot be known, see `cost_effect`.
    """

    chosen: str
    best: str
    tied: tuple[str, ...]
    candidates: pd.DataFrame
    comparisons: pd.DataFrame
    separation: Separation | None
    cost_effect: CostEffect | None


class Comparison(NamedTuple):
    """One network's accuracy less another's on the seeds and images that they share.

    The standard error is NaN, and the degrees of freedom 0, where nothing can be said: no seed shared, or one seed
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
        """One-sided, of "the other one is as good"; 1 where nothing can be said."""
        if math.isnan(self.standard_error):
            return 1.0
        if self.standard_error == 0:
            return 1.0 if self.difference == 0 else 0.0
        return float(stats.t.sf(self.difference / self.standard_error, self.degrees_of_freedom))

    def interval(self, confidence: float, *, pairs: int = 1) -> tuple[float, float]:
        """(low, high) of the difference, two-sided; NaN where nothing can be said.

        pairs: of how many differences this is one, all of which the intervals then cover at once (Bonferroni).
        """
        if math.isnan(self.standard_error):
            return math.nan, math.nan
        tail = (1 - confidence) / (2 * pairs)
        reach = float(stats.t.isf(tail, self.degrees_of_freedom)) * self.standard_error if self.standard_error else 0.0
        return self.difference - reach, self.difference + reach


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
            difference = _mean(one) - _mean(other)
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
        difference = _mean({s: one[s] for s in shared}) - _mean({s: other[s] for s in shared})
        error, degrees = _error(seeds_part, images_part, self._freedom)
        return Comparison(difference, error, degrees, num_seeds, num_images, seeds_part, images_part)

    def seeds_to_separate(
        self, comparison: Comparison, *, confidence: float, comparisons: int
    ) -> tuple[int | None, int | None, str]:
        """(more seeds a candidate, validation images, why) until a comparison says that one network is better.

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
            return None, None, "one seed says nothing of how much seeds vary; at least 2 are needed"
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
            if high > _MOST_SEEDS:
                return None, None, f"more than {_MOST_SEEDS:,} seeds: the difference is too small"
            high *= 2
        low = high // 2  # not enough
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if apart(middle) else (middle, high)
        return high, None, "more seeds"


_MOST_SEEDS = 100_000


class Separation(NamedTuple):
    """What it takes to tell the best (`first`) from the next one (`second`); see `Pairs.seeds_to_separate`."""

    first: str
    second: str
    difference: float
    seeds: int | None
    images: int | None
    reason: str


class CostEffect(NamedTuple):
    """How far candidates are accurate because they cost more: least squares of mean accuracy on log2 of macs.

    slope: accuracy gained by a doubling of the counted multiply-adds, with the bounds `low` and `high`.
    share: of the variance of the means, that the cost explains; NaN where the means do not vary.
    dearest: whether the choice is the candidate of most multiply-adds.
    order: the candidates after correction of their means to one cost, best first.
    """

    slope: float
    low: float
    high: float
    share: float
    dearest: bool
    order: tuple[str, ...]

    @property
    def shown(self) -> bool:
        """Whether the slope differs from 0 at the confidence of its interval."""
        return self.low > 0 or self.high < 0


def trials_table(trained: Sequence[TrialResult]) -> pd.DataFrame:
    """A row an evaluation, ordered by candidate and seed; accuracies are fractions, NaN where it failed."""
    rows = []
    for candidate, outcome in sorted(trained, key=_place):
        result = outcome.result
        rows.append(
            _columns(candidate)
            | {
                "seed": outcome.evaluation.seed,
                "state": "failed" if result is None else "finished",
                "val_accuracy": math.nan if result is None else result.val_accuracy,
                "val_loss": math.nan if result is None else result.val_loss,
                "train_seconds": math.nan if result is None else result.train_seconds,
                "precision": outcome.precision,
                "key": outcome.evaluation.key,
                "reason": outcome.reason,
            }
        )
    return pd.DataFrame(rows)


def select(
    trained: Sequence[TrialResult],
    *,
    confidence: float,
    rule: str = "best",
    metric: str = "macs",
    contenders: Collection[str] | None = None,
    macs_ratio: float | None = None,
) -> Choice:
    """The choice among finished candidates.

    Args:
        rule: "best", the highest mean; or "cheapest_tied", of that and of what is tied with it the one that needs least
            of `metric`. Of equal means the one that needs less is better, of equal needs the one of the higher mean.
        metric: a size of the candidates (macs, params, memory, ...), or train_seconds, the mean of their trainings.
        contenders: ids of those that may be chosen (None: all). The others were stopped early, with fewer seeds maybe.
            They cannot be chosen, but are compared on the seeds that they share with the best, so that the ties
            hold them too where they cannot be told from it.
        macs_ratio: the budget, to which `val_accuracy_corrected` corrects; None: the candidates' geometric mean.

    In `candidates`, `val_accuracy_low` and `_high` bound each mean over the seeds at `confidence`, by Student's t
    with the standard deviation pooled over all candidates; NaN with a single seed. `tied` marks those that cannot
    be told from the best one: a one-sided test of each against it, over seeds and images, Bonferroni-corrected
    for the number of candidates less one. The best one together with its ties then holds the truly best
    candidate with at least this confidence (subset selection: Gupta 1965; Hsu 1984). With a single seed nothing
    can be told apart, and all are tied. `stopped` marks those that could not be chosen. `val_accuracy_corrected` is
    the mean less what the cost explains (`cost_effect`), `rank_corrected` its place from 1; empty where unknown.

    Errors: ValueError where no candidate that may be chosen has finished, or where no candidate has the metric.
    """
    if rule not in ("best", "cheapest_tied"):
        raise ValueError(f"rule is {rule!r}; it must be best or cheapest_tied")
    finished: dict[str, dict[int, Correct]] = {}
    seconds: dict[str, list[float]] = {}
    known: dict[str, Candidate] = {}
    for candidate, outcome in sorted(trained, key=_place):  # a resumed search gives the same digits in the same rows
        known[candidate.id] = candidate
        if outcome.result is not None:
            finished.setdefault(candidate.id, {})[outcome.evaluation.seed] = outcome.result.correct
            seconds.setdefault(candidate.id, []).append(outcome.result.train_seconds)
    means = {name: _mean(seeds) for name, seeds in finished.items()}
    others = [name for name in means if name != BASELINE]
    free = [name for name in others if contenders is None or name in contenders]
    if not others:
        raise ValueError("no candidate finished, so there is nothing to choose from; see the reasons above")
    if not free:
        raise ValueError(
            f"none of the candidates that may be chosen has finished ({', '.join(sorted(contenders or ()))}), only "
            f"{', '.join(others)}, which were stopped; `scalesearch retry` runs what failed again"
        )
    need = {name: _need(known[name], metric, seconds[name]) for name in others}
    if all(math.isinf(value) for value in need.values()):
        raise ValueError(
            f"selection.metric is {metric!r}, which no candidate was measured in; selection.metric=macs is"
        )
    best = min(free, key=lambda name: (-means[name], need[name], name))

    deviation, freedom = _between_seeds(finished)
    pairs = Pairs(finished)
    compared = {name: pairs.compare(finished[best], finished[name]) for name in others if name != best}
    rows = [
        {
            "candidate": name,
            "difference": one.difference,
            "standard_error": one.standard_error,
            "degrees_of_freedom": one.degrees_of_freedom,
            "p_value": one.p_value(),
            "p_corrected": min(1.0, one.p_value() * len(compared)),
            "num_seeds": one.num_seeds,
            "seeds_part": one.seeds_part,
            "images_part": one.images_part,
        }
        for name, one in compared.items()
    ]
    comparisons = pd.DataFrame(rows, columns=_COMPARED).sort_values(["difference", "candidate"], ignore_index=True)
    tied = tuple(comparisons.loc[comparisons["p_corrected"] > 1 - confidence, "candidate"])
    chosen = best
    if rule == "cheapest_tied":
        eligible = [best, *(name for name in tied if name in free)]
        chosen = min(eligible, key=lambda name: (need[name], -means[name], name))

    separation = None
    if second := min(compared, key=lambda name: (-means[name], name), default=None):
        until = pairs.seeds_to_separate(compared[second], confidence=confidence, comparisons=len(compared))
        separation = Separation(best, second, compared[second].difference, *until)
    macs = {name: known[name].cost.macs for name in others}
    effect = cost_effect(macs, {name: means[name] for name in others}, chosen=chosen, confidence=confidence)
    corrected: dict[str, float] = {}
    if effect is not None:
        ratios = {name: math.log2(known[name].ratio) for name in others}
        to = float(np.mean(list(ratios.values()))) if macs_ratio is None else math.log2(macs_ratio)
        corrected = {name: means[name] - effect.slope * (ratios[name] - to) for name in others}

    table = []
    for name, candidate in known.items():
        accuracies = [c.mean() for c in finished.get(name, {}).values()]
        mean = means.get(name, math.nan)
        reach = math.nan
        if accuracies and freedom > 0:
            reach = float(stats.t.ppf((1 + confidence) / 2, freedom)) * deviation / math.sqrt(len(accuracies))
        table.append(
            _columns(candidate)
            | {
                "num_seeds": len(accuracies),
                "val_accuracy_mean": mean,
                "val_accuracy_std": float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else math.nan,
                "val_accuracy_low": mean - reach,
                "val_accuracy_high": mean + reach,
                "val_accuracy_corrected": corrected.get(name, math.nan),
                "rank_corrected": effect.order.index(name) + 1 if effect and name in corrected else pd.NA,
                "chosen": name == chosen,
                "best": name == best,
                "tied": name in tied,
                "stopped": name != BASELINE and contenders is not None and name not in contenders,
            }
        )
    candidates = pd.DataFrame(table).astype({"rank_corrected": "Int64"})
    return Choice(chosen, best, tied, candidates, comparisons, separation, effect)


_COMPARED = [
    *("candidate", "difference", "standard_error", "degrees_of_freedom", "p_value", "p_corrected"),
    *("num_seeds", "seeds_part", "images_part"),
]


def cost_effect(
    macs: Mapping[str, float], means: Mapping[str, float], *, chosen: str, confidence: float
) -> CostEffect | None:
    """What the counted cost explains of the mean accuracies; None with fewer than three candidates, or of one cost.

    The bounds are Student's t at `confidence` of ordinary least squares: candidates scatter about the line by more than
    their seeds do, and that is what they are of.
    """
    names = sorted(means)
    cost, accuracy = (np.array([float(of[name]) for name in names]) for of in (macs, means))
    if len(names) < 3 or len(set(cost)) < 2:
        return None
    cost = np.log2(cost)
    line = stats.linregress(cost, accuracy)
    reach = float(stats.t.ppf((1 + confidence) / 2, len(names) - 2)) * float(line.stderr)
    slope = float(line.slope)
    rest = {name: float(value) for name, value in zip(names, accuracy - slope * (cost - cost.mean()), strict=True)}
    return CostEffect(
        slope=slope,
        low=slope - reach,
        high=slope + reach,
        share=float(line.rvalue) ** 2 if np.ptp(accuracy) > 0 else math.nan,
        dearest=macs[chosen] == max(macs.values()),
        order=tuple(sorted(names, key=lambda name: (-rest[name], name))),
    )


def interval(accuracies: Sequence[float], *, confidence: float) -> tuple[float, float, float]:
    """(mean, low, high) of one network's accuracies over its seeds, by Student's t; low and high NaN with one seed."""
    mean, reach = float(np.mean(accuracies)), math.nan
    if len(accuracies) > 1:
        error = float(np.std(accuracies, ddof=1)) / math.sqrt(len(accuracies))
        reach = float(stats.t.ppf((1 + confidence) / 2, len(accuracies) - 1)) * error
    return mean, mean - reach, mean + reach


def _place(trained: TrialResult) -> tuple[str, int]:
    return trained.candidate.id, trained.outcome.evaluation.seed


def _mean(seeds: Mapping[int, Correct]) -> float:
    """The mean accuracy, counted in whole images: equal candidates must not differ in the last digit."""
    return sum(int(c.sum()) for c in seeds.values()) / sum(len(c) for c in seeds.values())


def _columns(candidate: Candidate) -> dict[str, Any]:
    coefficients = candidate.coefficients
    return {
        "candidate": candidate.id,
        "triples": json.dumps([[t.alpha, t.beta, t.gamma] for t in candidate.triples]),
        "alpha": coefficients.alpha,
        "beta": coefficients.beta,
        "gamma": coefficients.gamma,
        **candidate.sizes(),
    }


def _between_seeds(finished: Mapping[str, Mapping[int, Correct]]) -> tuple[float, int]:
    """(standard deviation of a network's accuracy between seeds, its degrees of freedom), pooled over all networks."""
    squares, freedom = 0.0, 0
    for seeds in finished.values():
        accuracies = np.array([c.mean() for c in seeds.values()])
        squares += float(((accuracies - accuracies.mean()) ** 2).sum())
        freedom += len(accuracies) - 1
    return (math.sqrt(squares / freedom), freedom) if freedom else (math.nan, 0)


def _within_seeds(finished: Mapping[str, Mapping[int, Correct]]) -> tuple[float, int]:
    """The same after what a seed does to all networks is taken off: the noise of a difference paired by seed.

    The residual of accuracy = network + seed, by least squares, so that networks may lack some of the seeds.
    """
    rows = [(name, seed, c.mean()) for name, seeds in finished.items() for seed, c in seeds.items()]
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


def _need(candidate: Candidate, metric: str, seconds: Sequence[float]) -> float:
    """How much of `metric` a candidate needs; infinity where it was too large to be measured.

    Errors: ValueError for a metric that candidates do not have.
    """
    amounts = {**candidate.sizes(), "train_seconds": float(np.mean(seconds))}
    if metric not in amounts:
        raise ValueError(
            f"selection.metric is {metric!r}, which candidates do not have; they have {', '.join(amounts)}"
        )
    amount: float | None = amounts[metric]
    return math.inf if amount is None else float(amount)
