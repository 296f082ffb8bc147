"""How busy many workers are: a search with made-up scores on a simulated clock.

    python benchmarks/scheduling.py

The cost of candidates is spread over the budget's tolerance. Trainings of one network take equally long, or vary as the
recorded ones of benchmarks/tabular did, on machines that had other work. A worker takes the next request when it is
free, as `Evaluator.run` does. Busy is the share of all workers' time until the last training ends.
"""

from __future__ import annotations

import argparse
import heapq
from pathlib import Path

import numpy as np
import pandas as pd

from scalesearch import compose
from scalesearch.config import Groups, plain
from scalesearch.search import History, Problem, Request, Score
from scalesearch.study import StudySettings

HERE = Path(__file__).resolve().parent
WORKERS = (2, 10, 100, 1_000)
CASES = (("grid", 1_000, 10), ("race", 100, 8))  # search, candidates, seeds of the recipe


def spread(path: Path) -> np.ndarray:
    """Seconds of every training of the whole schedule over the mean of its network."""
    table = pd.read_csv(path)
    whole = table[table["epochs"] == table["epochs"].max()]
    relative = whole["train_seconds"] / whole.groupby("candidate")["train_seconds"].transform("mean")
    return np.asarray(relative.to_numpy(float))


def simulated(search: str, candidates: int, seeds: int, workers: int, times: np.ndarray) -> tuple[int, float]:
    """(trainings, share of the workers' time in which they train)."""
    generator = np.random.default_rng(0)
    ratios = generator.uniform(1.8, 2.2, candidates)
    triples = tuple(((float(a), float(b), 1.0),) for a, b in generator.uniform(1, 2, (candidates, 2)))
    problem = Problem(tuple((1_000_000 * ratios).astype(int).tolist()), triples, seeds)
    given = (
        f"search={search}",
        f"recipe.seeds={seeds}",
        *(() if search == "grid" else (f"search.lookahead={workers + 1}",)),
    )
    strategy = StudySettings.of(Groups(plain(compose.composed("run", *given)))).search.strategy
    truth = generator.normal(0.8, 0.003, candidates)
    seen, unseen = History(), list[Request]()
    done: dict[Request, float] = {}
    running: list[tuple[float, int, Request]] = []
    now, busy, number, lookahead = 0.0, 0.0, 0, strategy.lookahead
    steps = strategy.steps(problem, seen)

    def finish() -> None:
        nonlocal now
        now, _, request = heapq.heappop(running)
        done[request] = now

    def show_next() -> None:
        while unseen[0] not in done:
            finish()
        request = unseen.pop(0)
        noise = np.random.default_rng([request.candidate, request.seed]).normal(0, 0.004)
        seen.show(request, Score(float(truth[request.candidate] + noise)))

    for step in steps:
        if step is None:
            show_next()
        elif isinstance(step, Request):
            if len(running) == workers:
                finish()
            seconds = ratios[step.candidate] * float(generator.choice(times))
            busy += seconds
            number += 1
            heapq.heappush(running, (now + seconds, number, step))
            unseen.append(step)
            while lookahead is not None and len(unseen) >= lookahead:
                show_next()
    while running:
        finish()
    return number, busy / (workers * now)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    recorded = np.concatenate([spread(path) for path in sorted((HERE / "tabular").glob("*.csv"))])
    low, high = np.quantile(recorded, [0.05, 0.95])
    print(f"recorded: 5 % take less than {low:.2f} and 5 % more than {high:.2f} times the mean of their network\n")
    print("| search | trainings | workers | busy, equal times | busy, recorded times |\n|---|---|---|---|---|")
    for search, candidates, seeds in CASES:
        for workers in WORKERS:
            if workers > candidates:  # most would never have had any work
                continue
            number, equal = simulated(search, candidates, seeds, workers, np.ones(1))
            _, varied = simulated(search, candidates, seeds, workers, recorded)
            print(f"| {search} | {number:,} | {workers:,} | {100 * equal:.1f} % | {100 * varied:.1f} % |", flush=True)


if __name__ == "__main__":
    main()
