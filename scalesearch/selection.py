"""The choice: the best mean validation accuracy, how sure it is, and which candidates cannot be told from it.

Candidates share their validation images and their seeds (a seed gives all of them the same order of the same
images), so two of them are compared seed by seed and image by image. What a comparison is uncertain by has two
sources: the seeds (how a training falls out), pooled over all networks because a few seeds of one alone say little;
and the images (another validation set would order them otherwise).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from scalesearch.search import BASELINE, Candidate, Trained

Correct = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Choice:
    """The chosen candidate's id, those tied with it (best first), and the tables that led to it.

    candidates: a row a candidate and one for the 1x network; see `select`.
    comparisons: a row a candidate against the chosen: difference, standard_error, degrees_of_freedom, p_value and
        p_corrected (times the number of comparisons).
    """

    chosen: str
    tied: tuple[str, ...]
    candidates: pd.DataFrame
    comparisons: pd.DataFrame


def trials_table(trained: Sequence[Trained]) -> pd.DataFrame:
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
                "key": outcome.evaluation.key,
                "reason": outcome.reason,
            }
        )
    return pd.DataFrame(rows)


def select(trained: Sequence[Trained], *, confidence: float) -> Choice:
    """The choice among finished candidates.

    In `candidates`, `val_accuracy_low` and `_high` bound each mean over the seeds at `confidence`, by Student's t
    with the standard deviation pooled over all candidates; NaN with a single seed. `tied` marks those that cannot
    be told from the chosen one: a one-sided test of each against it, over seeds and images, Bonferroni-corrected
    for the number of candidates less one. The chosen one together with its ties then holds the truly best
    candidate with at least this confidence (subset selection: Gupta 1965; Hsu 1984). With a single seed nothing
    can be told apart, and all are tied.

    Errors: ValueError where no candidate has finished.
    """
    finished: dict[str, dict[int, Correct]] = {}
    known: dict[str, Candidate] = {}
    for candidate, outcome in sorted(trained, key=_place):  # a resumed search gives the same digits in the same rows
        known[candidate.id] = candidate
        if outcome.result is not None:
            finished.setdefault(candidate.id, {})[outcome.evaluation.seed] = outcome.result.correct
    means = {name: _mean(seeds) for name, seeds in finished.items()}
    contenders = [name for name in means if name != BASELINE]
    if not contenders:
        raise ValueError("no candidate finished, so there is nothing to choose from; see the reasons above")
    chosen = min(contenders, key=lambda name: (-means[name], known[name].cost.macs, name))

    deviation, freedom = _between_seeds(finished)
    paired = _within_seeds(finished)
    rows = []
    for name in contenders:
        if name != chosen:
            difference, error, degrees = _compare(finished[chosen], finished[name], *paired)
            p_value = _one_sided(difference, error, degrees)
            corrected = min(1.0, p_value * (len(contenders) - 1))
            rows.append((name, difference, error, degrees, p_value, corrected))
    columns = ["candidate", "difference", "standard_error", "degrees_of_freedom", "p_value", "p_corrected"]
    comparisons = pd.DataFrame(rows, columns=columns).sort_values(["difference", "candidate"], ignore_index=True)
    tied = tuple(comparisons.loc[comparisons["p_corrected"] > 1 - confidence, "candidate"])

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
                "chosen": name == chosen,
                "tied": name in tied,
            }
        )
    return Choice(chosen, tied, pd.DataFrame(table), comparisons)


def interval(accuracies: Sequence[float], *, confidence: float) -> tuple[float, float, float]:
    """(mean, low, high) of one network's accuracies over its seeds, by Student's t; low and high NaN with one seed."""
    mean, reach = float(np.mean(accuracies)), math.nan
    if len(accuracies) > 1:
        error = float(np.std(accuracies, ddof=1)) / math.sqrt(len(accuracies))
        reach = float(stats.t.ppf((1 + confidence) / 2, len(accuracies) - 1)) * error
    return mean, mean - reach, mean + reach


def _place(trained: Trained) -> tuple[str, int]:
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


def _compare(
    best: Mapping[int, Correct], other: Mapping[int, Correct], deviation: float, freedom: int
) -> tuple[float, float, float]:
    """(mean difference over the seeds that both have, its standard error, degrees of freedom) of two candidates.

    The standard error adds the seeds' part, 2 deviation^2 / seeds, to the images' part: how much the difference
    varies between images, of which the noise that the seeds leave in it has been taken off. Nothing is known
    (NaN) where no seed is shared.
    """
    shared = sorted(best.keys() & other.keys())
    if not shared or not freedom:
        return _mean(best) - _mean(other), math.nan, 0.0
    table = np.stack([best[s].astype(np.float64) - other[s] for s in shared])  # (S, N), entries -1, 0, 1
    num_seeds, num_images = table.shape
    by_image = table.mean(0)
    noise = 0.0  # with one seed it is not known, and stays in the images' part, which errs to the safe side
    if num_seeds > 1:
        rest = table - by_image - table.mean(1, keepdims=True) + table.mean()
        noise = float((rest**2).sum()) / ((num_seeds - 1) * (num_images - 1)) / num_seeds
    seeds_part = 2 * deviation**2 / num_seeds
    images_part = max(0.0, float(by_image.var(ddof=1)) - noise) / num_images
    variance = seeds_part + images_part
    # Satterthwaite: the images' part has as good as infinitely many degrees of freedom.
    degrees = freedom * (variance / seeds_part) ** 2 if seeds_part > 0 else math.inf
    same = {s: best[s] for s in shared}, {s: other[s] for s in shared}
    return _mean(same[0]) - _mean(same[1]), math.sqrt(variance), degrees


def _one_sided(difference: float, error: float, degrees: float) -> float:
    """p-value of "the other one is as good"; 1 where nothing can be said."""
    if math.isnan(error):
        return 1.0
    if error == 0:
        return 1.0 if difference == 0 else 0.0
    return float(stats.t.sf(difference / error, degrees))
