"""What every strategy works with: the problem, the requests that it makes, and the scores that it has seen."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Protocol

from scalesearch.checks import between, checked

if TYPE_CHECKING:
    from scalesearch.posterior import Posterior

Lookahead = Annotated[int, between(1, 10_000, "trainings asked for before the first one's score is known")]

Compute = Annotated[float, between(0.01, 1, "multiply-adds, as a share of those of search=grid")]
MostSeeds = Annotated[int, between(1, 1000, "of one candidate")]
Regret = Annotated[
    float | None, between(1e-3, 100, "points; the search ends once its choice is expected to lose less than that")
]
BASE = -1  # the place of the 1x network in a request: it is trained beside what a strategy requests


class Request(NamedTuple):
    """A training that is asked for: a candidate by its place, a seed, and the share of the recipe's epochs."""

    candidate: int
    seed: int
    share: float = 1.0


class Stop(NamedTuple):
    """A candidate that gets no more trainings and cannot be chosen, and why."""

    candidate: int
    reason: str


class End(NamedTuple):
    """The end of the search before its compute is used up, and why."""

    reason: str


Step = Request | Stop | End | None


class Score(NamedTuple):
    """What a training came to: its validation score, None where it failed, and (N,) what each image adds to it."""

    value: float | None
    by_image: Any = None


@dataclass(frozen=True)
class Problem:
    """What is known before anything is trained.

    macs: of each candidate. triples: the (alpha, beta, gamma) that are each of them. seeds: of the recipe.
    """

    macs: tuple[int, ...]
    triples: tuple[tuple[tuple[float, float, float], ...], ...]
    seeds: int

    @property
    def size(self) -> int:
        return len(self.macs)

    @property
    def longest_first(self) -> list[int]:
        """The candidates in the order in which many workers finish them soonest: none is left with a long one alone."""
        return sorted(range(self.size), key=lambda candidate: -self.macs[candidate])

    def nearest(self, alpha: float, beta: float) -> int:
        """The candidate one of whose triples is nearest, in ratios of depth and of width squared."""

        def distance(candidate: int) -> float:
            return min(math.log(a / alpha) ** 2 + (2 * math.log(b / beta)) ** 2 for a, b, _ in self.triples[candidate])

        return min(range(self.size), key=distance)


@dataclass
class History:
    """Scores that have been shown, by share of the epochs, candidate and seed; None for a training that failed.

    by_image: of the whole schedule, by candidate and seed, what each validation image adds to the score.
    baseline: scores of the 1x network, by seed.
    """

    scores: dict[float, dict[int, dict[int, float | None]]] = field(default_factory=dict)
    by_image: dict[int, dict[int, Any]] = field(default_factory=dict)
    baseline: dict[int, float] = field(default_factory=dict)

    def show(self, request: Request, score: Score) -> None:
        if score.value is not None and score.by_image is not None and request.share == 1:
            self.by_image.setdefault(request.candidate, {})[request.seed] = score.by_image
        if request.candidate != BASE:
            self.scores.setdefault(request.share, {}).setdefault(request.candidate, {})[request.seed] = score.value
        elif score.value is not None:
            self.baseline[request.seed] = score.value

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


class Estimate(NamedTuple):
    """All that the scores say of the candidates together; `places` has those of `candidates` in the posterior."""

    posterior: Posterior
    candidates: tuple[int, ...]
    places: tuple[int, ...]

    def regret(self, free: Collection[int]) -> float:
        """The expected regret of the choice among `free`, in points."""
        of = dict(zip(self.candidates, self.posterior.regret(self.places), strict=True))
        return 100 * min(float(of[candidate]) for candidate in of.keys() & free)

    def gains(self, under_way: Mapping[int, int]) -> dict[int, float]:
        """By candidate, by how much one more training raises the best expected accuracy; see `Posterior.gain`."""
        place_of = dict(zip(self.candidates, self.places, strict=True))
        waiting = {place_of[candidate]: number for candidate, number in under_way.items() if candidate in place_of}
        return {c: self.posterior.gain(place, self.places, waiting) for c, place in place_of.items()}


def estimate(problem: Problem, seen: History) -> Estimate | None:
    """The estimate of `selection.decision` from what has been shown; None where it says too little.

    Candidates that have finished no training are not in it.
    """
    from scalesearch.posterior import fitted

    candidates = tuple(c for c in range(problem.size) if seen.of(c))
    networks = [*([BASE] if seen.baseline else []), *candidates]
    scores = [seen.baseline if network == BASE else seen.of(network) for network in networks]
    triples = [[(1.0, 1.0, 1.0)] if network == BASE else problem.triples[network] for network in networks]
    found = fitted(triples, scores, [seen.by_image.get(network, {}) for network in networks])
    return None if found is None else Estimate(found, candidates, tuple(map(networks.index, candidates)))


ENOUGH_FREEDOM = 4  # degrees, from which on the deviation between seeds can be trusted


@checked("search", kw_only=True)
class Adaptive:
    """What strategies share that train every candidate once, and then go by what they have seen."""

    compute: Compute = 0.5
    most_seeds: MostSeeds = 8
    lookahead: Lookahead = 3
    regret: Regret = None

    def once(self, problem: Problem) -> Iterator[Request]:
        """Every candidate with the first seed."""
        for candidate in problem.longest_first:
            yield Request(candidate, 0)

    def left_after_once(self, problem: Problem) -> float:
        """Multiply-adds that may be used beside those trainings."""
        return self.compute * problem.seeds * sum(problem.macs) - sum(problem.macs)

    def settled(self, estimated: Estimate | None, free: Collection[int]) -> End | None:
        """The end of a search whose choice among `free` is expected to lose less than `regret` points."""
        if self.regret is None or estimated is None or not {*estimated.candidates} & {*free}:
            return None
        expected = estimated.regret(free)
        if expected >= self.regret:
            return None
        return End(f"the expected regret is {expected:.2f} points, below search.regret={self.regret:g}")

    def expected(self, problem: Problem) -> list[tuple[int, float]]:
        """(trainings, share): as many as the compute is for, and each candidate once."""
        return [(max(problem.size, int(self.compute * problem.seeds * problem.size)), 1.0)]

    def possible(self, problem: Problem) -> list[tuple[int, float]]:
        """(seeds, share) of any one candidate."""
        return [(self.most_seeds, 1.0)]


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
