"""The choice: which candidate to take, how sure that is, and which ones are statistically tied with the best mean.

`decision` estimates all candidates at once, `prediction` the best split at a cost that none was trained at, `pairs`
compares two networks, `effect` is what the cost explains of accuracy, `learnt` whether a network is better than the
majority class.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from scalesearch import checks
from scalesearch.search import BASELINE, Candidate, TrialResult
from scalesearch.selection.decision import Decision, Further, decide, words
from scalesearch.selection.effect import CostEffect, cost_effect
from scalesearch.selection.learnt import (
    Chance,
    Majority,
    Shuffled,
    Unlearnt,
    chance_level,
    levels_of,
    nothing_learnt,
    remedy,
    unlearnt,
    unlearnt_words,
)
from scalesearch.selection.pairs import Comparison, Correct, Pairs, Seeds, between_seeds, ends, mean
from scalesearch.selection.prediction import Step, estimate_surface, path_of, surface_table

__all__ = ["Chance", "Choice", "Comparison", "CostEffect", "Decision", "Further", "Majority", "Pairs", "Seeds"]
__all__ += [
    "Separation",
    "Shuffled",
    "Step",
    "Unlearnt",
    "by_seed",
    "chance_level",
    "cost_effect",
    "decide",
    "estimate_surface",
    "interval",
    "levels_of",
    "nothing_learnt",
    "path_of",
    "remedy",
    "select",
    "surface_table",
    "trials_table",
    "unlearnt",
]
__all__ += ["unlearnt_words", "words"]


Rule = Literal["posterior", "best", "cheapest_tied"]


class Separation(NamedTuple):
    """What it takes to tell the best (`first`) from the next one (`second`); see `Pairs.seeds_to_separate`."""

    first: str
    second: str
    difference: float
    seeds: int | None
    images: int | None
    reason: str


@dataclass(frozen=True)
class Choice:
    """The chosen candidate's id, the one of the best mean, those tied with that (best first), and how it came to it.

    Under the rule "best" `chosen` is `best`; under "cheapest_tied" it may be one of `tied`, under "posterior" any. Best
    and ties together hold the truly best candidate with at least the stated confidence (subset selection: Gupta 1965;
    Hsu 1984).

    candidates: one row per candidate and one for the 1x network. `val_accuracy_low` and `_high` bound each mean over
        the seeds, by Student's t with the standard deviation pooled over all networks, NaN with a single seed and where
        they would be more than 100 points apart. `tied`
        marks those that are statistically tied with the best, `stopped` those that could not be chosen.
        `val_accuracy_corrected` is the mean less what the cost explains (`cost_effect`), `rank_corrected` its place
        from 1; both are empty where unknown.
    comparisons: one row per candidate against the best: difference, standard_error, degrees_of_freedom, p_value,
        p_corrected (times the number of comparisons), num_seeds that both have, and the two parts of the squared
        standard error, seeds_part and images_part.
    separation: of the best and the next one; None where there is no other.
    cost_effect: None where it cannot be known, see `cost_effect`.
    not_learnt: those that are no better than the majority class; they were compared, and could not be chosen.
    decision: of the estimate from all trainings at once; None where they are too few for one.
    """

    chosen: str
    best: str
    tied: tuple[str, ...]
    candidates: pd.DataFrame
    comparisons: pd.DataFrame
    separation: Separation | None
    cost_effect: CostEffect | None
    not_learnt: tuple[str, ...] = ()
    decision: Decision | None = None

    @property
    def without_interval(self) -> list[str]:
        """Networks that have finished, and too few seeds for an interval of at most 100 points."""
        table = self.candidates
        return list(table.loc[table["val_accuracy_low"].isna() & table["val_accuracy_mean"].notna(), "candidate"])


def select(
    results: Sequence[TrialResult],
    *,
    confidence: float,
    rule: str = "best",
    metric: str = "macs",
    contenders: Collection[str] | None = None,
    not_learnt: Collection[str] = (),
    macs_ratio: float | None = None,
    workers: int = 1,
) -> Choice:
    """The choice among finished candidates.

    Each candidate is compared with the best one over seeds and images, by a one-sided test at `confidence`, corrected
    for their number (Bonferroni). With a single seed nothing can be told apart, and all are tied.

    Args:
        rule: "posterior", the highest expected accuracy of the estimate from all trainings (`decide`), and "best" where
            they are too few for one; "best", the highest mean; or "cheapest_tied", of that and its ties the one that
            needs least of `metric`.
            Of equal means the one that needs less is better, of equal needs the one of the higher mean.
        metric: a size of the candidates (macs, params, memory, ...), or train_seconds, the mean of their trainings.
        contenders: ids of those that may be chosen (None: all). The others were stopped early, maybe with fewer seeds;
            they are compared on the seeds that they share with the best, so that they may be among the ties.
        not_learnt: ids of contenders that may not be chosen either, as they are no better than the majority class.
        macs_ratio: the budget, to which `val_accuracy_corrected` corrects; None: the candidates' geometric mean.
        workers: trainings at a time, for what further minutes would buy.

    Raises:
        ValueError: no candidate that may be chosen has finished, or no candidate has the metric.
    """
    checks.value(rule, Rule, "rule")
    results = sorted(results, key=_place)  # a resumed search gives the same digits in the same rows
    known = {candidate.id: candidate for candidate, _ in results}
    finished = by_seed(results)
    seconds: dict[str, list[float]] = {}
    for candidate, outcome in results:
        if outcome.result is not None:
            seconds.setdefault(candidate.id, []).append(outcome.result.train_seconds)
    means = {name: mean(seeds) for name, seeds in finished.items() if name != BASELINE}
    free = [name for name in _free(means, contenders) if name not in not_learnt]
    if not free:
        raise ValueError("no candidate that may be chosen has learnt anything, so there is nothing to choose from")
    amounts = _amounts([known[name] for name in means], seconds, metric)
    best = min(free, key=lambda name: (-means[name], amounts[name], name))

    pairs = Pairs(finished)
    compared = {name: pairs.compare(finished[best], finished[name]) for name in means if name != best}
    comparisons = _comparisons_table(compared)
    tied = tuple(comparisons.loc[comparisons["p_corrected"] > 1 - confidence, "candidate"])
    chosen = best
    if rule == "cheapest_tied":
        chosen = min({best, *tied} & {*free}, key=lambda name: (amounts[name], -means[name], name))
    decision = decide(
        known,
        finished,
        free,
        confidence=confidence,
        amounts=amounts,
        chosen=None if rule == "posterior" else chosen,
        seconds=float(np.mean([second for name in means for second in seconds[name]])),
        workers=workers,
    )
    chosen = chosen if decision is None else decision.chosen

    separation = _separation(pairs, best, compared, means, confidence)
    effect = cost_effect({name: known[name].cost.macs for name in means}, means, chosen=chosen, confidence=confidence)
    table = _candidates_table(known, finished, confidence, _corrected(effect, means, known, macs_ratio))
    table["chosen"] = table["candidate"] == chosen
    table["best"] = table["candidate"] == best
    table["tied"] = table["candidate"].isin(tied)
    table["stopped"] = ~table["candidate"].isin([BASELINE, *(known if contenders is None else contenders)])
    return Choice(chosen, best, tied, table, comparisons, separation, effect, tuple(sorted(not_learnt)), decision)


def by_seed(results: Sequence[TrialResult]) -> dict[str, dict[int, Correct]]:
    """Of each network that has finished a training, seed to what each validation image contributes to its score."""
    finished: dict[str, dict[int, Correct]] = {}
    for candidate, outcome in sorted(results, key=_place):
        if outcome.result is not None:
            finished.setdefault(candidate.id, {})[outcome.evaluation.seed] = outcome.result.by_image
    return finished


def _separation(
    pairs: Pairs, best: str, compared: Mapping[str, Comparison], means: Mapping[str, float], confidence: float
) -> Separation | None:
    second = min(compared, key=lambda name: (-means[name], name), default=None)
    if second is None:
        return None
    until = pairs.seeds_to_separate(compared[second], confidence=confidence, comparisons=len(compared))
    return Separation(best, second, compared[second].difference, *until)


def trials_table(results: Sequence[TrialResult]) -> pd.DataFrame:
    """One row per evaluation, ordered by candidate and seed; accuracies are fractions, NaN where it failed."""
    rows = []
    for candidate, outcome in sorted(results, key=_place):
        result = outcome.result
        rows.append(
            _columns(candidate)
            | {"seed": outcome.evaluation.seed, "state": "failed" if result is None else "finished"}
            | {name: getattr(result, name, math.nan) for name in ("val_accuracy", "val_loss", "train_seconds")}
            | {"precision": outcome.precision, "key": outcome.evaluation.key, "reason": outcome.reason}
        )
    return pd.DataFrame(rows)


def interval(accuracies: Sequence[float], *, confidence: float) -> tuple[float, float, float]:
    """(mean, low, high) of one network's accuracies over its seeds, by Student's t.

    low and high are NaN with one seed, and where they would be more than 100 points apart.
    """
    middle, reach = float(np.mean(accuracies)), math.nan
    if len(accuracies) > 1:
        error = float(np.std(accuracies, ddof=1)) / math.sqrt(len(accuracies))
        reach = float(stats.t.ppf((1 + confidence) / 2, len(accuracies) - 1)) * error
    return middle, *ends(middle, reach)


def _place(result: TrialResult) -> tuple[str, int]:
    return result.candidate.id, result.outcome.evaluation.seed


def _free(means: Mapping[str, float], contenders: Collection[str] | None) -> list[str]:
    """The finished candidates that may be chosen."""
    free = [name for name in means if contenders is None or name in contenders]
    if not means:
        raise ValueError("no candidate finished, so there is nothing to choose from; see the reasons above")
    if not free:
        raise ValueError(
            f"none of the candidates that may be chosen has finished ({', '.join(sorted(contenders or ()))}), only "
            f"{', '.join(means)}, which were stopped; `scalesearch retry` runs what failed again"
        )
    return free


def _amounts(candidates: Sequence[Candidate], seconds: Mapping[str, Sequence[float]], metric: str) -> dict[str, float]:
    """How much of `metric` each candidate needs; infinity where it was too large to be measured."""
    amounts: dict[str, float] = {}
    for candidate in candidates:
        sizes = {**candidate.sizes(), "train_seconds": float(np.mean(seconds[candidate.id]))}
        if metric not in sizes:
            raise ValueError(
                f"selection.metric is {metric!r}, which candidates do not have; they have {', '.join(sizes)}"
            )
        amount: float | None = sizes[metric]
        amounts[candidate.id] = math.inf if amount is None else float(amount)
    if all(math.isinf(amount) for amount in amounts.values()):
        raise ValueError(
            f"selection.metric is {metric!r}, which no candidate was measured in; selection.metric=macs is"
        )
    return amounts


def _corrected(
    effect: CostEffect | None, means: Mapping[str, float], known: Mapping[str, Candidate], macs_ratio: float | None
) -> dict[str, dict[str, Any]]:
    """For the table: each mean corrected to one cost, and its rank; nothing where the effect is not known."""
    if effect is None:
        return {}
    ratios = {name: math.log2(known[name].ratio) for name in means}
    to = float(np.mean(list(ratios.values()))) if macs_ratio is None else math.log2(macs_ratio)
    return {
        name: {
            "val_accuracy_corrected": means[name] - effect.slope * (ratios[name] - to),
            "rank_corrected": effect.order.index(name) + 1,
        }
        for name in means
    }


_UNKNOWN = {"val_accuracy_corrected": math.nan, "rank_corrected": pd.NA}


def _candidates_table(
    known: Mapping[str, Candidate],
    finished: Mapping[str, Seeds],
    confidence: float,
    corrected: Mapping[str, Mapping[str, Any]],
) -> pd.DataFrame:
    deviation, freedom = between_seeds(finished)
    spread = float(stats.t.ppf((1 + confidence) / 2, freedom)) * deviation if freedom else math.nan  # of one seed
    rows = []
    for name, candidate in known.items():
        seeds = finished.get(name, {})
        accuracies = [correct.mean(dtype=np.float64) for correct in seeds.values()]
        middle = mean(seeds) if seeds else math.nan
        low, high = ends(middle, spread / math.sqrt(len(accuracies))) if accuracies else (math.nan, math.nan)
        scores = {
            "num_seeds": len(accuracies),
            "val_accuracy_mean": middle,
            "val_accuracy_std": float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else math.nan,
            "val_accuracy_low": low,
            "val_accuracy_high": high,
        }
        rows.append({**_columns(candidate), **scores, **corrected.get(name, _UNKNOWN)})
    return pd.DataFrame(rows).astype({"rank_corrected": "Int64"})


def _comparisons_table(compared: Mapping[str, Comparison]) -> pd.DataFrame:
    rows = [
        {
            "candidate": name,
            **one._asdict(),
            "p_value": one.p_value(),
            "p_corrected": min(1.0, one.p_value() * len(compared)),
        }
        for name, one in compared.items()
    ]
    return pd.DataFrame(rows, columns=_COMPARED).sort_values(["difference", "candidate"], ignore_index=True)


_COMPARED = [
    *("candidate", "difference", "standard_error", "degrees_of_freedom", "p_value", "p_corrected"),
    *("num_seeds", "seeds_part", "images_part"),
]


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
