"""A strategy replayed on recorded trainings: thousands of searches in minutes, and what each would have cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from scalesearch.search import BASE, History, Problem, Request, Score, Stop, Strategy, requests
from scalesearch.search.strategies import Estimate, estimate

Scores = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, eq=False)
class Recorded:
    """Trainings of every candidate with every seed.

    scores: share of the epochs to (K, S) validation accuracies of K candidates and S seeds.
    test: (K, S) test accuracies of the whole schedule. baseline: (S,) validation accuracies of the 1x network.
    correct: (candidate, seed) to (N,) which validation images were right; `BASE` is the 1x network. It may be empty.
    """

    names: tuple[str, ...]
    macs: tuple[int, ...]
    triples: tuple[tuple[tuple[float, float, float], ...], ...]
    scores: Mapping[float, Scores]
    test: Scores
    baseline: Scores
    correct: Mapping[tuple[int, int], Any] = field(default_factory=dict)

    @staticmethod
    def read(path: Path) -> Recorded:
        """The table that record.py wrote. Raises: ValueError where trainings are missing."""
        everything = pd.read_csv(path)
        table = everything[everything["candidate"] != "baseline"]
        one = table.drop_duplicates("candidate").set_index("candidate").sort_index()
        whole = table["epochs"].max()

        def square(epochs: float, column: str) -> Scores:
            rows = table[table["epochs"] == epochs]
            found: Scores = rows.pivot(index="candidate", columns="seed", values=column).sort_index().to_numpy(float)
            if np.isnan(found).any():
                raise ValueError(f"{path} lacks some of the trainings of {epochs:g} epochs; record them all")
            return found

        names = tuple(one.index)
        first = everything[(everything["candidate"] == "baseline") & (everything["epochs"] == whole)]
        bits = np.load(path.with_suffix(".npz"))
        places = {name: place for place, name in enumerate(names)} | {"baseline": BASE}
        correct = {}
        for key in bits.files:
            name, _, seed = key.rpartition(".")
            correct[places[name], int(seed)] = np.unpackbits(bits[key]).astype(bool)
        return Recorded(
            names=names,
            macs=tuple(int(value) for value in one["macs"]),
            triples=tuple(tuple((a, b, c) for a, b, c in json.loads(triples)) for triples in one["triples"]),
            scores={epochs / whole: square(epochs, "val_accuracy") for epochs in sorted(table["epochs"].unique())},
            test=square(whole, "test_accuracy"),
            baseline=first.sort_values("seed")["val_accuracy"].to_numpy(float),
            correct=correct,
        )

    def of(self, candidates: Sequence[int]) -> Recorded:
        """Without the other candidates."""
        place = {BASE: BASE} | {candidate: index for index, candidate in enumerate(candidates)}
        chosen = list(candidates)
        return Recorded(
            names=tuple(self.names[c] for c in chosen),
            macs=tuple(self.macs[c] for c in chosen),
            triples=tuple(self.triples[c] for c in chosen),
            scores={share: scores[chosen] for share, scores in self.scores.items()},
            test=self.test[chosen],
            baseline=self.baseline,
            correct={(place[c], seed): right for (c, seed), right in self.correct.items() if c in place},
        )


class Replayed(NamedTuple):
    """A search that was replayed.

    compute: the multiply-adds of all trainings per multiply-add of one training of every candidate.
    contenders: candidates that may be chosen. estimate: of all scores together; None where they are too few.
    """

    chosen: int
    compute: float
    requests: list[Request]
    stopped: dict[int, str]
    contenders: tuple[int, ...]
    estimate: Estimate | None


def replay(
    strategy: Strategy, recorded: Recorded, *, seeds: int, columns: Sequence[int], rule: str = "posterior"
) -> Replayed:
    """What `strategy` comes to where seed s is the recorded one `columns[s]` and the recipe has `seeds` seeds.

    The choice is that of `selection.select` with this rule: the highest expected accuracy ("posterior") or the highest
    mean ("best") of those that were not stopped.
    """
    problem, seen = Problem(recorded.macs, recorded.triples, seeds), History()
    requested, stopped = list[Request](), dict[int, str]()

    def score(request: Request) -> Score:
        column = columns[request.seed]
        values = recorded.baseline if request.candidate == BASE else recorded.scores[request.share][request.candidate]
        return Score(float(values[column]), recorded.correct.get((request.candidate, column)))

    first = [Request(BASE, seed) for seed in range(seeds)]
    for request in first:
        seen.show(request, score(request))
    for step in requests(strategy, problem, score, first=first):
        if isinstance(step, Stop):
            stopped[step.candidate] = step.reason
        elif isinstance(step, Request):
            requested.append(step)
            seen.show(step, score(step))
    contenders = tuple(c for c in range(problem.size) if c not in stopped and seen.of(c))
    estimated = estimate(problem, seen)
    value = {c: seen.mean(c) for c in contenders}
    if rule == "posterior" and estimated is not None:
        of = dict(zip(estimated.candidates, estimated.places, strict=True))
        value = {c: float(estimated.posterior.mean[of[c]]) for c in contenders}
    chosen = max(contenders, key=lambda c: (round(value[c], 12), -recorded.macs[c], -c))
    spent = sum(recorded.macs[request.candidate] * request.share for request in requested)
    return Replayed(chosen, spent / sum(recorded.macs), requested, stopped, contenders, estimated)
