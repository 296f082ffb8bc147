"""Replay every strategy on the recorded trainings, and put the tables into docs/search.md.

    python benchmarks/tabular/replay.py                     # some minutes, most of them Optuna's Gaussian process
    python benchmarks/tabular/replay.py --replays 100       # a quick look, printed only

A replay draws seeds with replacement, the same seeds for all candidates. The recorded trainings are the population, and
their means are the truth. A strategy sees validation accuracies; its regret is measured on the test split.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from recorded import Recorded, replay

from scalesearch import compose, search
from scalesearch.config import Groups, plain
from scalesearch.evaluation import Evaluation, Outcome
from scalesearch.search import Strategy, TrialResult
from scalesearch.selection import select
from scalesearch.study import StudySettings
from scalesearch.training import Result

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent.parent / "docs" / "search.md"
BASELINES = ("mobilenetv2", "preresnet20")
SEEDS = 4  # of the recipe: what `grid` trains each candidate with
DRAWS = 16  # seeds that a strategy may come to

QUARTILES = ("lower quartile", "median", "upper quartile")

# What is compared: words, conf/search file, overrides, seeds of the recipe.
COMPARED = (
    ("grid, 1 seed", "grid1", (), 1),
    ("grid, 2 seeds", "grid", (), 2),
    ("grid, 3 seeds", "grid", (), 3),
    ("**grid, 4 seeds**", "grid", (), 4),
    ("grid, 8 seeds", "grid", (), 8),
    ("race, compute 0.25", "race", ("search.compute=0.25",), SEEDS),
    ("race, compute 0.375", "race", ("search.compute=0.375",), SEEDS),
    ("**race, compute 0.5**", "race", (), SEEDS),
    ("race, compute 0.75", "race", ("search.compute=0.75",), SEEDS),
    ("race, compute 0.5, lookahead 1", "race", ("search.lookahead=1",), SEEDS),
    ("race, compute 0.5, lookahead 6", "race", ("search.lookahead=6",), SEEDS),
    ("halving", "halving", (), SEEDS),
    ("tpe, compute 0.5", "tpe", (), SEEDS),
    ("gp, compute 0.5", "gp", (), SEEDS),
)
PIECE = 50  # replays that a process takes at a time


@functools.cache
def composed(baseline: str, name: str, overrides: tuple[str, ...], seeds: int) -> StudySettings:
    given = [f"baseline={baseline}", f"search={name}", f"recipe.seeds={seeds}", *overrides]
    return StudySettings.of(Groups(plain(compose.composed("run", *given))))


def regrets(
    baseline: str, name: str, overrides: tuple[str, ...], seeds: int, numbers: Sequence[int]
) -> list[tuple[float, float, bool]]:
    """(test regret in points, compute per `grid` with `SEEDS` seeds, whether the truly best was chosen) of each."""
    torch.set_num_threads(1)
    recorded = Recorded.read(HERE / f"{baseline}.csv")
    truth = recorded.test.mean(1)
    strategy: Strategy = composed(baseline, name, overrides, seeds).search.strategy
    rows = []
    for number in numbers:
        columns = np.random.default_rng(number).integers(0, recorded.test.shape[1], DRAWS).tolist()
        if hasattr(strategy, "sampler_seed"):
            strategy = replace(strategy, sampler_seed=number)  # type: ignore[type-var]
        found = replay(strategy, recorded, seeds=seeds, columns=columns)
        lost = float(100 * (truth.max() - truth[found.chosen]))
        rows.append((lost, found.compute / SEEDS, bool(truth[found.chosen] == truth.max())))
    return rows


def strategies_table(baseline: str, replays: int, pool: Executor) -> Iterator[str]:
    yield _row("strategy", "compute", "test regret, mean ± standard error", *QUARTILES, "truly best chosen", "replays")
    yield _row(*["---"] * 8)
    for words, name, overrides, seeds in COMPARED:
        pieces = [range(start, min(start + PIECE, replays)) for start in range(0, replays, PIECE)]
        of = functools.partial(regrets, baseline, name, overrides, seeds)
        rows = [row for piece in pool.map(of, pieces) for row in piece]
        lost, compute, best = zip(*rows, strict=True)
        error = statistics.stdev(lost) / replays**0.5
        low, middle, high = np.quantile(lost, [0.25, 0.5, 0.75])
        yield _row(
            words,
            f"{100 * statistics.fmean(compute):.0f} %",
            f"{statistics.fmean(lost):.3f} ± {error:.3f}",
            *(f"{value:.3f}" for value in (low, middle, high)),
            f"{100 * statistics.fmean(best):.0f} %",
            f"{replays:,}",
        )


def candidates_table(baseline: str) -> Iterator[str]:
    recorded = Recorded.read(HERE / f"{baseline}.csv")
    whole = recorded.scores[1.0]
    shorter = sorted(recorded.scores)[:-1]
    columns = [f"validation at {share:g} of the schedule, %" for share in shorter]
    yield _row("candidate", "(alpha, beta)", "validation, %", "sd of a seed", "test, %", *columns)
    yield _row(*["---"] * (5 + len(shorter)))
    for place in np.argsort(-whole.mean(1)):
        alpha, beta = recorded.points[place][0]
        yield _row(
            recorded.names[place],
            f"({alpha:g}, {beta:g})",
            f"{100 * whole[place].mean():.2f}",
            f"{100 * whole[place].std(ddof=1):.2f}",
            f"{100 * recorded.test[place].mean():.2f}",
            *(f"{100 * recorded.scores[share][place].mean():.2f}" for share in shorter),
        )


def ties(baseline: str, name: str, replays: int) -> tuple[float, float]:
    """(share of replays in which choice and ties include the truly best candidate, mean number of those named)."""
    recorded, correct = Recorded.read(HERE / f"{baseline}.csv"), np.load(HERE / f"{baseline}.npz")
    experiment = composed(baseline, name, (), SEEDS)
    network, rounding = experiment.proxy_network
    plan = search.candidates(network, experiment.grid, experiment.budget, rounding)
    num_seeds = recorded.test.shape[1]
    results = {
        (candidate.id, seed): Result(
            val_accuracy=float(bits.mean()),
            val_loss=0.0,
            correct=bits,
            curve=(),
            train_seconds=0.0,
            images_per_second=0.0,
        )
        for candidate in (plan.baseline, *plan.candidates)
        for seed in range(num_seeds)
        for bits in [np.unpackbits(correct[f"{candidate.id}.{seed}"]).astype(bool)]
    }
    best = recorded.names[int(recorded.scores[1.0].mean(1).argmax())]
    right, sizes = 0, 0
    for number in range(replays):
        columns = np.random.default_rng(number).integers(0, num_seeds, DRAWS).tolist()
        found = replay(experiment.search.strategy, recorded, seeds=SEEDS, columns=columns)
        requested = [(plan.baseline, seed) for seed in range(SEEDS)]
        requested += [(plan.candidates[request.candidate], request.seed) for request in found.requests]
        trials = []
        for candidate, seed in requested:
            evaluation = Evaluation(candidate.network, experiment.recipe, "", seed)
            outcome = Outcome(evaluation, results[candidate.id, columns[seed]], "", reused=True)
            trials.append(TrialResult(candidate, outcome))
        contenders = [candidate.id for place, candidate in enumerate(plan.candidates) if place not in found.stopped]
        choice = select(trials, confidence=experiment.search.confidence, contenders=contenders)
        assert choice.chosen == recorded.names[found.chosen]
        named = {choice.chosen, *choice.tied}
        right += best in named
        sizes += len(named)
    return right / replays, sizes / replays


def ties_table(replays: int) -> Iterator[str]:
    promise = "choice and ties include the truly best"
    yield _row("baseline", "strategy", promise, "nominal", "candidates named, mean", "of", "replays")
    yield _row(*["---"] * 7)
    for baseline in BASELINES:
        size = len(Recorded.read(HERE / f"{baseline}.csv").names)
        for name in ("grid", "race"):
            right, named = ties(baseline, name, replays)
            numbers = (f"{100 * right:.1f} %", "95 %", f"{named:.1f}", str(size), f"{replays:,}")
            yield _row(baseline, name, *numbers)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replays", type=int, default=1000)
    options = parser.parse_args()
    page = PAGE.read_text()
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        parts = {"ties": ties_table(options.replays)}
        for baseline in BASELINES:
            parts[f"candidates of {baseline}"] = candidates_table(baseline)
            parts[f"strategies on {baseline}"] = strategies_table(baseline, options.replays, pool)
        for name, rows in parts.items():
            table = "\n".join(rows)
            print(f"\n{name}\n{table}", flush=True)
            begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
            before, _, rest = page.partition(begin)
            page = f"{before}{begin}\n\n{table}\n\n{end}{rest.partition(end)[2]}"
    if options.replays >= 1000:
        PAGE.write_text(page)


if __name__ == "__main__":
    main()
