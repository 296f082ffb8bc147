"""What every strategy works with: the problem, the requests that it makes, and the scores that it has seen."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Annotated, NamedTuple, Protocol

from scalesearch.checks import between

Lookahead = Annotated[int, between(1, 10_000, "trainings asked for before the first one's score is known")]


class Request(NamedTuple):
    """A training that is asked for: a candidate by its place, a seed, and the share of the recipe's epochs."""

    candidate: int
    seed: int
    share: float = 1.0


class Stop(NamedTuple):
    """A candidate that gets no more trainings and cannot be chosen, and why."""

    candidate: int
    reason: str


Step = Request | Stop | None


@dataclass(frozen=True)
class Problem:
    """What is known before anything is trained.

    macs: of each candidate. points: the (alpha, beta) of each one's triples. seeds: that the recipe asks for.
    """

    macs: tuple[int, ...]
    points: tuple[tuple[tuple[float, float], ...], ...]
    seeds: int

    @property
    def size(self) -> int:
        return len(self.macs)

    def nearest(self, alpha: float, beta: float) -> int:
        """The candidate one of whose triples is nearest, in ratios of depth and of width squared."""

        def distance(candidate: int) -> float:
            return min(math.log(a / alpha) ** 2 + (2 * math.log(b / beta)) ** 2 for a, b in self.points[candidate])

        return min(range(self.size), key=distance)


@dataclass
class History:
    """Scores that have been shown, by share of the epochs, candidate and seed; None for a training that failed."""

    scores: dict[float, dict[int, dict[int, float | None]]] = field(default_factory=dict)

    def show(self, request: Request, score: float | None) -> None:
        self.scores.setdefault(request.share, {}).setdefault(request.candidate, {})[request.seed] = score

    def of(self, candidate: int, share: float = 1.0) -> dict[int, float]:
        """Seed to score of the trainings that finished."""
        all_of = self.scores.get(share, {}).get(candidate, {})
        return {seed: score for seed, score in all_of.items() if score is not None}

    def mean(self, candidate: int, share: float = 1.0) -> float:
        """The mean over seeds; minus infinity where none has finished."""
        scores = self.of(candidate, share)
        return fmean(scores.values()) if scores else -math.inf

    def num_shown(self, candidate: int, share: float = 1.0) -> int:
        """Trainings whose end is known, failed ones included."""
        return len(self.scores.get(share, {}).get(candidate, {}))

    def deviation(self, candidates: Collection[int]) -> float:
        """Standard deviation between seeds, pooled; as long as few have two, that between candidates, which is more."""
        several = [list(scores.values()) for c in candidates if len(scores := self.of(c)) > 1]
        freedom = sum(len(scores) - 1 for scores in several)
        if freedom >= ENOUGH_FREEDOM:
            return math.sqrt(sum((len(scores) - 1) * stdev(scores) ** 2 for scores in several) / freedom)
        means = [self.mean(c) for c in candidates if self.of(c)]
        return stdev(means) if len(means) > 1 else 0.0

    def freedom(self, candidates: Collection[int]) -> int:
        """Degrees of freedom of the pooled deviation."""
        return sum(len(self.of(c)) - 1 for c in candidates if self.of(c))


ENOUGH_FREEDOM = 4  # degrees, from which on the deviation between seeds can be trusted


class Strategy(Protocol):
    """What each of `STRATEGIES` is: made from its options, all of which have defaults."""

    @property
    def lookahead(self) -> int | None:
        """Requests that are made before the score of the first of them must be known; None: any number."""

    def steps(self, problem: Problem, seen: History) -> Iterator[Step]: ...

    def expected(self, problem: Problem) -> list[tuple[int, float]]:
        """(trainings, share): about how many of each length it will ask for."""

    def possible(self, problem: Problem) -> list[tuple[int, float]]:
        """(seeds, share) that it may ask for of any one candidate: seeds 0 to seeds - 1 for that share."""
