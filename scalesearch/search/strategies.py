"""Which candidate is trained next, with which seed, for how long.

A strategy is a generator. It yields `Ask`s; `Stop` for a candidate that is out of the race; and None where it must
see one more score before it can go on. What it has seen stands in `History`, in the order in which it was asked for:
who carries a strategy out shows it the score of a request at the latest when `lookahead` later ones have been made, and
never before. So workers do not wait for a round to fill, and the same seeds come to the same end whatever the order
in which the trainings finish: after a crash, on a machine with other workers, or replayed on a recorded table.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from statistics import fmean, stdev
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

if TYPE_CHECKING:
    import optuna


class Ask(NamedTuple):
    """A training that is asked for: a candidate by its place, a seed, and the share of the recipe's epochs."""

    candidate: int
    seed: int
    share: float = 1.0


class Stop(NamedTuple):
    """A candidate that gets no more trainings and cannot be chosen, and why."""

    candidate: int
    reason: str


Step = Ask | Stop | None


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

    def show(self, request: Ask, score: float | None) -> None:
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
        if freedom >= _ENOUGH_FREEDOM:
            return math.sqrt(sum((len(scores) - 1) * stdev(scores) ** 2 for scores in several) / freedom)
        means = [self.mean(c) for c in candidates if self.of(c)]
        return stdev(means) if len(means) > 1 else 0.0

    def freedom(self, candidates: Collection[int]) -> int:
        return sum(len(self.of(c)) - 1 for c in candidates if self.of(c))


_ENOUGH_FREEDOM = 4


class Strategy(Protocol):
    """A row of `STRATEGIES`, made from the options of its YAML."""

    @property
    def lookahead(self) -> int | None:
        """Requests that are made before the score of the first of them must be known; None: any number."""

    def steps(self, problem: Problem, seen: History) -> Iterator[Step]: ...

    def expected(self, problem: Problem) -> list[tuple[int, float]]:
        """(trainings, share): about how many of each length it will ask for."""

    def possible(self, problem: Problem) -> list[tuple[int, float]]:
        """(seeds, share) that it may ask for of any one candidate: seeds 0 to seeds - 1 for that share."""


@dataclass(frozen=True, kw_only=True)
class EveryCandidate:
    """Every candidate with every seed; `seeds` null: as many as the recipe has."""

    seeds: int | None = None
    lookahead: ClassVar[None] = None

    def __post_init__(self) -> None:
        if self.seeds is not None:
            _in_range(self, "seeds", 1, 1000)

    def steps(self, problem: Problem, seen: History) -> Iterator[Step]:
        for candidate in range(problem.size):
            for seed in range(self.seeds or problem.seeds):
                yield Ask(candidate, seed)

    def expected(self, problem: Problem) -> list[tuple[int, float]]:
        return [(problem.size * (self.seeds or problem.seeds), 1.0)]

    def possible(self, problem: Problem) -> list[tuple[int, float]]:
        return [(self.seeds or problem.seeds, 1.0)]


@dataclass(frozen=True, kw_only=True)
class Race:
    """Every candidate once, then more seeds where they help to decide, until `compute` is used up.

    The next seed goes to the candidate that may still be the best one: the highest upper bound, `optimism` standard
    errors above its mean. One that is significantly worse than the leader (one-sided, over the seeds that both have,
    at 95 % corrected for the number of candidates) is stopped; the race ends early where one is left.

    compute: multiply-adds as a share of those that `grid` would train with the recipe's seeds; once is the least.
    most_seeds: of one candidate.
    """

    compute: float
    most_seeds: int
    optimism: float
    lookahead: int

    def __post_init__(self) -> None:
        _in_range(self, "compute", 0.01, 1)
        _in_range(self, "most_seeds", 1, 1000)
        _in_range(self, "optimism", 0, 10)
        _in_range(self, "lookahead", 1, 10_000)

    def steps(self, problem: Problem, seen: History) -> Iterator[Step]:
        for candidate in range(problem.size):
            yield Ask(candidate, 0)
        left = self.compute * problem.seeds * sum(problem.macs) - sum(problem.macs)
        yield from self.add_seeds(problem, seen, dict.fromkeys(range(problem.size), 1), left)

    def add_seeds(self, problem: Problem, seen: History, asked: dict[int, int], left: float) -> Iterator[Step]:
        """The race among the candidates of `asked` (how many seeds each has had), for `left` multiply-adds."""
        alive = set(asked)
        while True:
            for candidate, reason in self._worse(problem, seen, alive, asked):
                alive.discard(candidate)
                yield Stop(candidate, reason)
            if len(alive) == 1 and all(seen.num_shown(c) == asked[c] for c in alive):
                return
            deviation = seen.deviation(asked)

            def bound(candidate: int, deviation: float = deviation) -> tuple[float, int]:
                # The seeds under way count as well: else all workers would be given to the same candidate.
                return seen.mean(candidate) + self.optimism * deviation / math.sqrt(asked[candidate]), -candidate

            open_ones = [
                c for c in alive if asked[c] < self.most_seeds and problem.macs[c] <= left and seen.num_shown(c)
            ]
            if open_ones:
                candidate = max(open_ones, key=bound)
                left -= problem.macs[candidate]
                asked[candidate] += 1
                yield Ask(candidate, asked[candidate] - 1)
            elif any(seen.num_shown(c) < asked[c] for c in asked):
                yield None
            else:
                return

    def _worse(
        self, problem: Problem, seen: History, alive: Collection[int], asked: dict[int, int]
    ) -> list[tuple[int, str]]:
        """Those that are out: significantly worse than the leader, or failed with every seed that they may have."""
        finished = [c for c in alive if seen.of(c)]
        gone = [
            (c, "every training of it failed")
            for c in alive
            if not seen.of(c) and seen.num_shown(c) == asked[c] >= self.most_seeds
        ]
        if len(finished) < 2:
            return gone
        leader = max(finished, key=lambda c: (seen.mean(c), len(seen.of(c)), -c))
        best, deviation, freedom = seen.of(leader), seen.deviation(asked), seen.freedom(asked)
        if freedom < _ENOUGH_FREEDOM or deviation == 0:
            return gone
        threshold = _t_quantile(1 - 0.05 / max(1, problem.size - 1), freedom)
        for candidate in finished:
            shared = best.keys() & seen.of(candidate).keys()
            if candidate == leader or not shared:
                continue
            difference = fmean(best[s] - seen.of(candidate)[s] for s in shared)
            if difference > threshold * deviation * math.sqrt(2 / len(shared)):
                gone.append((candidate, f"significantly worse than another by {100 * difference:.2f} points"))
        return gone

    def expected(self, problem: Problem) -> list[tuple[int, float]]:
        return [(max(problem.size, int(self.compute * problem.seeds * problem.size)), 1.0)]

    def possible(self, problem: Problem) -> list[tuple[int, float]]:
        return [(self.most_seeds, 1.0)]


@dataclass(frozen=True, kw_only=True)
class Halving:
    """Complete short schedules first, the better part of each goes on to the next longer one, without rounds.

    After the asynchronous rule of arXiv:1810.05934: where a worker is free, a candidate goes on that is among the best
    `keep` of those that have finished the same schedule. Those that reach the whole one get all seeds of the recipe.

    shares: of the recipe's epochs, rising, without the whole.
    """

    shares: Sequence[float]
    keep: float
    lookahead: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "shares", tuple(float(share) for share in self.shares))
        if not self.shares or list(self.shares) != sorted(set(self.shares)):
            raise ValueError(f"search.shares is {list(self.shares)}; it must be rising shares such as [0.25, 0.5]")
        if not 0.01 <= self.shares[0] <= self.shares[-1] < 1:
            raise ValueError(f"search.shares is {list(self.shares)}; each must be a number from 0.01 to less than 1")
        _in_range(self, "keep", 0.01, 0.99)
        _in_range(self, "lookahead", 1, 10_000)

    def steps(self, problem: Problem, seen: History) -> Iterator[Step]:
        rungs = (*self.shares, 1.0)
        reached = dict.fromkeys(range(problem.size), -1)  # the rung that each was asked for last
        asked = 0
        while True:
            fresh = next((c for c, rung in reached.items() if rung < 0), None)
            going_on = self._next(seen, rungs, reached) if fresh is None else (fresh, 0)
            if going_on is not None:
                candidate, rung = going_on
                reached[candidate] = rung
                for seed in range(problem.seeds if rungs[rung] == 1 else 1):
                    asked += 1
                    yield Ask(candidate, seed, rungs[rung])
            elif sum(len(seeds) for of in seen.scores.values() for seeds in of.values()) < asked:
                yield None
            else:
                break
        for candidate, rung in reached.items():
            if rungs[rung] < 1:
                yield Stop(candidate, f"not among the best at {rungs[rung]:g} of the schedule")

    def _next(self, seen: History, rungs: Sequence[float], reached: dict[int, int]) -> tuple[int, int] | None:
        """(candidate, rung) of one that has earned a longer schedule, the shortest first.

        The paper takes the longest first, for candidates without end in a random order; here they are few and ordered
        by depth, and the best so far of the first few would nearly always go on.
        """
        for rung in range(len(rungs) - 1):
            finished = [c for c in reached if seen.of(c, rungs[rung])]
            finished.sort(key=lambda c, rung=rung: (-seen.mean(c, rungs[rung]), c))  # type: ignore[misc]
            for candidate in finished[: max(1, round(len(finished) * self.keep))] if len(finished) > 1 else ():
                if reached[candidate] == rung:
                    return candidate, rung + 1
        return None

    def expected(self, problem: Problem) -> list[tuple[int, float]]:
        sizes = [problem.size]
        for _ in self.shares:
            sizes.append(max(1, round(sizes[-1] * self.keep)))
        return [*zip(sizes, self.shares, strict=False), (sizes[-1] * problem.seeds, 1.0)]

    def possible(self, problem: Problem) -> list[tuple[int, float]]:
        return [*((1, share) for share in self.shares), (problem.seeds, 1.0)]


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """One of Optuna's samplers proposes alpha and beta, a training each time; then a race among what it found.

    sampler: "tpe" or "gp". explore: the share of `compute` that the sampler has; the rest is the race's. The other
    options are those of `Race`. startup: proposals at random before the sampler learns. sampler_seed: of its chance.
    """

    sampler: str
    explore: float
    startup: int
    compute: float
    most_seeds: int
    optimism: float
    lookahead: int
    sampler_seed: int = 0

    def __post_init__(self) -> None:
        if self.sampler not in ("tpe", "gp"):
            raise ValueError(f"search.sampler is {self.sampler!r}; known: tpe, gp")
        _in_range(self, "explore", 0, 1)
        _in_range(self, "startup", 1, 1000)
        _in_range(self, "sampler_seed", 0, 2**32 - 1)
        _ = self._race

    @property
    def _race(self) -> Race:
        return Race(compute=self.compute, most_seeds=self.most_seeds, optimism=self.optimism, lookahead=self.lookahead)

    def steps(self, problem: Problem, seen: History) -> Iterator[Step]:
        import optuna

        left = self.compute * problem.seeds * sum(problem.macs)
        exploring = self.explore * left
        study = optuna.create_study(direction="maximize", sampler=self._sampler())
        axes: dict[str, optuna.distributions.BaseDistribution] = {
            name: optuna.distributions.FloatDistribution(
                min(point[place] for points in problem.points for point in points),
                max(point[place] for points in problem.points for point in points),
            )
            for place, name in enumerate(("alpha", "beta"))
        }
        asked: dict[int, int] = {}
        waiting: list[tuple[optuna.Trial, int, int]] = []
        known = 0  # proposals in a row of candidates that have all their seeds: then there is nothing to be learnt
        while known < 2 * problem.size:
            for told in [one for one in waiting if one[2] < seen.num_shown(one[1])]:
                trial, candidate, seed = told
                waiting.remove(told)
                score = seen.of(candidate).get(seed)
                study.tell(trial, score, state=None if score is not None else optuna.trial.TrialState.FAIL)
            trial = study.ask(axes)
            candidate = problem.nearest(trial.params["alpha"], trial.params["beta"])
            if asked.get(candidate, 0) >= self.most_seeds:
                known += 1
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                continue
            if asked and problem.macs[candidate] > exploring:
                break
            known = 0
            exploring -= problem.macs[candidate]
            left -= problem.macs[candidate]
            seed = asked.get(candidate, 0)
            asked[candidate] = seed + 1
            waiting.append((trial, candidate, seed))
            yield Ask(candidate, seed)
        yield from self._race.add_seeds(problem, seen, asked, left)
        for candidate in range(problem.size):
            if candidate not in asked:
                yield Stop(candidate, "never proposed")

    def _sampler(self) -> optuna.samplers.BaseSampler:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        if self.sampler == "tpe":
            return optuna.samplers.TPESampler(n_startup_trials=self.startup, seed=self.sampler_seed)
        return optuna.samplers.GPSampler(n_startup_trials=self.startup, seed=self.sampler_seed)

    def expected(self, problem: Problem) -> list[tuple[int, float]]:
        return [(max(1, int(self.compute * problem.seeds * problem.size)), 1.0)]

    def possible(self, problem: Problem) -> list[tuple[int, float]]:
        return [(self.most_seeds, 1.0)]


STRATEGIES: dict[str, type[EveryCandidate | Race | Halving | Sampled]] = {
    "grid": EveryCandidate,
    "race": Race,
    "halving": Halving,
    "sampler": Sampled,
}


def _in_range(of: object, name: str, low: float, high: float) -> None:
    value = getattr(of, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"search.{name} is {value!r}; it must be a number from {low:g} to {high:g}")


@cache
def _t_quantile(probability: float, freedom: int) -> float:
    from scipy import stats

    return float(stats.t.ppf(probability, freedom))
