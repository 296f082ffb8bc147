"""A strategy replayed on recorded trainings: thousands of searches in seconds, and what each would have cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from scalesearch.search import History, Problem, Request, Stop, Strategy, requests

Scores = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, eq=False)
class Recorded:
    """Trainings of every candidate with every seed.

    scores: share of the epochs to (K, S) validation accuracies of K candidates and S seeds.
    test: (K, S) test accuracies of the whole schedule.
    """

    names: tuple[str, ...]
    macs: tuple[int, ...]
    points: tuple[tuple[tuple[float, float], ...], ...]
    scores: Mapping[float, Scores]
    test: Scores

    @staticmethod
    def read(path: Path) -> Recorded:
        """The table that record.py wrote, without the 1x network. Raises: ValueError where trainings are missing."""
        table = pd.read_csv(path)
        table = table[table["candidate"] != "baseline"]
        one = table.drop_duplicates("candidate").set_index("candidate").sort_index()
        whole = table["epochs"].max()

        def square(epochs: float, column: str) -> Scores:
            rows = table[table["epochs"] == epochs]
            found: Scores = rows.pivot(index="candidate", columns="seed", values=column).sort_index().to_numpy(float)
            if np.isnan(found).any():
                raise ValueError(f"{path} lacks some of the trainings of {epochs:g} epochs; record them all")
            return found

        return Recorded(
            names=tuple(one.index),
            macs=tuple(int(value) for value in one["macs"]),
            points=tuple(tuple((t[0], t[1]) for t in json.loads(triples)) for triples in one["triples"]),
            scores={epochs / whole: square(epochs, "val_accuracy") for epochs in sorted(table["epochs"].unique())},
            test=square(whole, "test_accuracy"),
        )


class Replayed(NamedTuple):
    """The choice, the multiply-adds of all trainings per multiply-add of one training of every candidate, and more."""

    chosen: int
    compute: float
    requests: list[Request]
    stopped: dict[int, str]


def replay(strategy: Strategy, recorded: Recorded, *, seeds: int, columns: Sequence[int]) -> Replayed:
    """What `strategy` comes to where seed s is the recorded one `columns[s]` and the recipe has `seeds` seeds.

    The choice is that of `selection.select` with the rule "best": the highest mean of those that were not stopped.
    """
    problem, seen = Problem(recorded.macs, recorded.points, seeds), History()
    requested, stopped = list[Request](), dict[int, str]()

    def score(request: Request) -> float:
        return float(recorded.scores[request.share][request.candidate, columns[request.seed]])

    for step in requests(strategy, problem, lambda request: (score(request),)):
        if isinstance(step, Stop):
            stopped[step.candidate] = step.reason
        elif step is not None:
            requested.append(step)
            seen.show(step, score(step))
    contenders = [c for c in range(problem.size) if c not in stopped and seen.of(c)]
    chosen = max(contenders, key=lambda c: (round(seen.mean(c), 12), -recorded.macs[c], -c))
    spent = sum(recorded.macs[request.candidate] * request.share for request in requested)
    return Replayed(chosen, spent / sum(recorded.macs), requested, stopped)
