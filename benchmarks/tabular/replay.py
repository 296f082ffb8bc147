"""Replay every strategy on the recorded trainings, and put the tables into docs/search.md.

    python benchmarks/tabular/replay.py                     # half an hour on two cores
    python benchmarks/tabular/replay.py --replays 20        # a quick look, printed only

Each replay splits the recorded seeds at random. A search sees validation accuracies of one part; the truth is the mean
test accuracy of the other part, which no search has seen. So the truth is as noisy as a few seeds, and never kind to a
choice by the same noise that made it.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from recorded import Recorded, Replayed, replay

from scalesearch import compose
from scalesearch.config import Groups, plain
from scalesearch.posterior import most_probable
from scalesearch.search import Strategy
from scalesearch.study import StudySettings

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent.parent / "docs" / "search.md"
BASELINES = tuple(sorted(path.stem for path in HERE.glob("*.csv")))
SEEDS = 4  # of the recipe: what `grid` trains each candidate with
SEEN = 8  # seeds that a search may come to; the others are the truth
CONFIDENCE = 0.95
PIECE = 20  # replays that a process takes at a time
POPULATIONS, OF_EACH = 12, 5  # of the bootstrap


class Compared(NamedTuple):
    """A search and how it chooses."""

    words: str
    search: str
    rule: str
    overrides: tuple[str, ...] = ()
    seeds: int = SEEDS


DEFAULT = Compared("**race, compute 0.5**", "race", "posterior")
COMPARED = (
    Compared("grid, 1 seed", "grid1", "best", seeds=1),
    Compared("grid, 1 seed", "grid1", "posterior", seeds=1),
    Compared("grid, 4 seeds", "grid", "best"),
    Compared("grid, 4 seeds", "grid", "posterior"),
    Compared("grid, 8 seeds", "grid", "best", seeds=8),
    Compared("grid, 8 seeds", "grid", "posterior", seeds=8),
    Compared("race, compute 0.5", "race", "best"),
    DEFAULT,
    Compared("race, compute 0.75", "race", "posterior", ("search.compute=0.75",)),
    Compared("race until search.regret=0.2", "race", "posterior", ("search.compute=1", "search.regret=0.2")),
    Compared("knowledge, compute 0.5", "knowledge", "posterior"),
    Compared("halving", "halving", "best"),
    Compared("tpe, compute 0.5", "tpe", "posterior"),
)


class Row(NamedTuple):
    """One replay. Accuracies are in points; NaN where there is no estimate.

    gain: of the choice over the average candidate, in truth. regret: of the choice against the best one of the truth,
    and `stated` what the estimate expects of that, the noise of the truth included. covered: whether the set that the
    estimate names for that includes the best one of the truth; `size`: candidates in the set of the decision.
    """

    gain: float
    compute: float
    regret: float
    stated: float
    covered: float
    size: float


@functools.cache
def composed(baseline: str, name: str, overrides: tuple[str, ...], seeds: int) -> StudySettings:
    given = [f"baseline={baseline}", f"search={name}", f"recipe.seeds={seeds}", *overrides]
    return StudySettings.of(Groups(plain(compose.composed("run", *given))))


@functools.cache
def read(baseline: str) -> Recorded:
    return Recorded.read(HERE / f"{baseline}.csv")


def possible(baseline: str, compared: Compared) -> bool:
    """Whether the table has what the search asks for: a halving wants shorter schedules."""
    return compared.search != "halving" or {0.25, 0.5} <= read(baseline).scores.keys()


def once(
    recorded: Recorded, baseline: str, compared: Compared, number: int, seen: Sequence[int], held: Sequence[int]
) -> Row:
    """One replay on the seeds `seen`, judged by the seeds `held`."""
    strategy: Strategy = composed(baseline, compared.search, compared.overrides, compared.seeds).search.strategy
    if hasattr(strategy, "sampler_seed"):
        strategy = replace(strategy, sampler_seed=number)  # type: ignore[type-var]
    found = replay(strategy, recorded, seeds=compared.seeds, columns=seen, rule=compared.rule)
    truth = 100 * recorded.test[:, held].mean(1)
    stated, covered, size = judged(found, truth, len(held), number)
    gain = float(truth[found.chosen] - truth.mean())
    return Row(gain, found.compute / SEEDS, float(truth.max() - truth[found.chosen]), stated, covered, size)


def judged(found: Replayed, truth: np.ndarray, num_held: int, number: int) -> tuple[float, float, float]:
    """(expected regret against the truth, whether the set for it covers its best, size of the decision's set)."""
    if found.estimate is None:
        return (np.nan,) * 3
    estimated, places = found.estimate.posterior, list(found.estimate.places)
    generator = np.random.default_rng(number)
    noise = float(estimated.weights @ estimated.noises) / num_held
    images = estimated.images[np.ix_(places, places)]
    covariance = images + noise * np.eye(len(places))
    drawn = estimated.draws[:, places]
    drawn = drawn + generator.multivariate_normal(np.zeros(len(places)), covariance, len(drawn), method="eigh")
    chosen = found.estimate.candidates.index(found.chosen)
    stated = 100 * float((drawn.max(1) - drawn[:, chosen]).mean())
    probability = np.bincount(drawn.argmax(1), minlength=len(places)) / len(drawn)
    best = int(truth.argmax())
    covered = best in {found.estimate.candidates[place] for place in most_probable(probability, CONFIDENCE)}
    return stated, float(covered), float(len(estimated.best_set(places, CONFIDENCE)))


def rows(baseline: str, compared: Compared, numbers: Sequence[int]) -> list[Row]:
    torch.set_num_threads(1)
    recorded, found = read(baseline), []
    for number in numbers:
        order = np.random.default_rng(number).permutation(recorded.test.shape[1]).tolist()
        found.append(once(recorded, baseline, compared, number, order[:SEEN], order[SEEN:]))
    return found


def population(baseline: str, compared: Compared, number: int) -> float:
    """The mean gain in a population of the bootstrap: candidates and seeds drawn with replacement.

    A candidate that is drawn twice counts once. A seed is seen or held out with all its copies.
    """
    torch.set_num_threads(1)
    generator, whole, gains = np.random.default_rng(10_000 + number), read(baseline), []
    drawn = np.unique(generator.integers(0, len(whole.names), len(whole.names))).tolist()
    recorded = whole.of(drawn)
    seeds = generator.integers(0, whole.test.shape[1], whole.test.shape[1])
    for draw in range(OF_EACH):
        order = generator.permutation(whole.test.shape[1])
        seen, held = np.split(order, [SEEN])
        left = [seed for seed in seeds if seed in seen]
        right = [seed for seed in seeds if seed in held]
        if not left or not right:
            continue
        columns = generator.choice(left, SEEN).tolist()
        gains.append(once(recorded, baseline, compared, draw, columns, right).gain)
    return float(np.mean(gains))


def strategies_table(baseline: str, replays: int, pool: Executor) -> Iterator[str]:
    yield _row("search", "selection", "compute", "gain over the average candidate", "of what the best has", "replays")
    yield _row(*["---"] * 6)
    recorded = read(baseline)
    truth = 100 * recorded.test.mean(1)
    for compared in COMPARED:
        if not possible(baseline, compared):
            continue
        found = list(_replayed(baseline, compared, replays, pool))
        populations = pool.map(functools.partial(population, baseline, compared), range(POPULATIONS))
        error = float(np.std(list(populations), ddof=1))
        gain = float(np.mean([row.gain for row in found]))
        yield _row(
            compared.words,
            compared.rule,
            f"{100 * np.mean([row.compute for row in found]):.0f} %",
            f"{gain:.3f} ± {error:.3f}",
            f"{100 * gain / (truth.max() - truth.mean()):.0f} %",
            f"{replays:,}",
        )


def _replayed(baseline: str, compared: Compared, number: int, pool: Executor) -> Iterator[Row]:
    pieces = [range(start, min(start + PIECE, number)) for start in range(0, number, PIECE)]
    for piece in pool.map(functools.partial(rows, baseline, compared), pieces):
        yield from piece


def sets_table(replays: int, pool: Executor) -> Iterator[str]:
    words = "set includes the best of the seeds held out"
    yield _row("baseline", "search", words, "nominal", "candidates named in the decision, mean", "of", "replays")
    yield _row(*["---"] * 7)
    for baseline in BASELINES:
        for compared in (DEFAULT, Compared("grid, 4 seeds", "grid", "posterior")):
            found = list(_replayed(baseline, compared, replays, pool))
            share, size = (float(np.mean([getattr(row, name) for row in found])) for name in ("covered", "size"))
            named = f"{size:.1f}"
            numbers = (f"{100 * share:.1f} %", f"{100 * CONFIDENCE:g} %", named, str(len(read(baseline).names)))
            yield _row(baseline, compared.words, *numbers, f"{replays:,}")


def calibration_table(replays: int, pool: Executor) -> Iterator[str]:
    """Stated against true regret by tenths of the stated one, over all tables."""
    yield _row("tenth", "stated, points", "true, points", "standard error of the true one")
    yield _row(*["---"] * 4)
    found = [row for baseline in BASELINES for row in _replayed(baseline, DEFAULT, replays, pool)]
    found.sort(key=lambda row: row.stated)
    for tenth, part in enumerate(np.array_split(np.array(found), 10), start=1):
        stated, true = part[:, Row._fields.index("stated")], part[:, Row._fields.index("regret")]
        error = true.std(ddof=1) / len(true) ** 0.5
        yield _row(str(tenth), f"{stated.mean():.3f}", f"{true.mean():.3f}", f"{error:.3f}")


def agreement(baseline: str, numbers: Sequence[int]) -> list[tuple[bool, bool]]:
    """Of two searches on seeds that they do not share: (same choice, difference within the bounds of regret of both).

    The truth is the mean test accuracy of all seeds.
    """
    torch.set_num_threads(1)
    recorded, found = read(baseline), []
    truth = 100 * recorded.test.mean(1)
    strategy = composed(baseline, "race", ("search.most_seeds=6",), SEEDS).search.strategy
    for number in numbers:
        order = np.random.default_rng(number).permutation(recorded.test.shape[1]).tolist()
        both = [replay(strategy, recorded, seeds=SEEDS, columns=columns) for columns in (order[:6], order[6:12])]
        stated = sum(_bound(one) for one in both)
        one, other = (run.chosen for run in both)
        found.append((one == other, bool(abs(truth[one] - truth[other]) <= stated)))
    return found


def _bound(found: Replayed) -> float:
    """What the decision says that its choice loses at most, in points."""
    if found.estimate is None:
        return 100.0
    bounds = found.estimate.posterior.regret_bound(found.estimate.places, CONFIDENCE)
    return 100 * float(bounds[found.estimate.candidates.index(found.chosen)])


def agreement_table(replays: int, pool: Executor) -> Iterator[str]:
    yield _row("baseline", "the same choice", "difference within the stated bounds", "pairs of searches")
    yield _row(*["---"] * 4)
    for baseline in BASELINES:
        pieces = [range(start, min(start + PIECE, replays)) for start in range(0, replays, PIECE)]
        pairs = [pair for piece in pool.map(functools.partial(agreement, baseline), pieces) for pair in piece]
        same, within = (100 * float(np.mean(part)) for part in zip(*pairs, strict=True))
        yield _row(baseline, f"{same:.0f} %", f"{within:.1f} %", f"{replays:,}")


def candidates_table(baseline: str) -> Iterator[str]:
    recorded = read(baseline)
    whole = recorded.scores[1.0]
    shorter = sorted(recorded.scores)[:-1]
    columns = [f"validation at {share:g} of the schedule, %" for share in shorter]
    yield _row("candidate", "(alpha, beta, gamma)", "validation, %", "sd of a seed", "test, %", *columns)
    yield _row(*["---"] * (5 + len(shorter)))
    for place in np.argsort(-whole.mean(1)):
        yield _row(
            recorded.names[place],
            "({:g}, {:g}, {:g})".format(*recorded.triples[place][0]),
            f"{100 * whole[place].mean():.2f}",
            f"{100 * whole[place].std(ddof=1):.2f}",
            f"{100 * recorded.test[place].mean():.2f}",
            *(f"{100 * recorded.scores[share][place].mean():.2f}" for share in shorter),
        )


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replays", type=int, default=60)
    options = parser.parse_args()
    page, number = PAGE.read_text(), options.replays
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        parts = {f"candidates of {baseline}": candidates_table(baseline) for baseline in BASELINES}
        parts |= {f"searches on {baseline}": strategies_table(baseline, number, pool) for baseline in BASELINES}
        parts |= {"sets": sets_table(number, pool), "calibration": calibration_table(number, pool)}
        parts["agreement"] = agreement_table(5 * number, pool)
        for name, lines in parts.items():
            table = "\n".join(lines)
            print(f"\n{name}\n{table}", flush=True)
            begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
            if begin not in page:
                raise SystemExit(f"{PAGE} has no place for {begin}")
            before, _, rest = page.partition(begin)
            page = f"{before}{begin}\n\n{table}\n\n{end}{rest.partition(end)[2]}"
    if options.replays >= 60:
        PAGE.write_text(page)


if __name__ == "__main__":
    main()
