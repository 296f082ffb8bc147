"""Every candidate once, then seeds where they help to decide; what is significantly worse is stopped."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from statistics import fmean
from typing import Annotated

from scalesearch.checks import between, checked
from scalesearch.search.strategies._base import (
    ENOUGH_FREEDOM,
    Adaptive,
    History,
    Problem,
    Request,
    Step,
    Stop,
    estimate,
)


@checked("search", kw_only=True)
class Strategy(Adaptive):
    """Every candidate once, then more seeds where they help to decide, until `compute` is used up.

    The next seed goes to the candidate that may still be the best one: the highest upper bound, `optimism` standard
    errors above its mean. One that is significantly worse than the leader (one-sided, over the seeds that both have,
    at 95 % corrected for the number of candidates) is stopped; the race ends early where one is left, or where the
    choice is expected to lose less than `regret` points against the best candidate.
    """

    optimism: Annotated[float, between(0, 10, "standard errors above the mean, by which the next seed is given")] = 1.0

    def steps(self, problem: Problem, seen: History) -> Iterator[Step]:
        yield from self.once(problem)
        yield from self.add_seeds(problem, seen, dict.fromkeys(range(problem.size), 1), self.left_after_once(problem))

    def add_seeds(self, problem: Problem, seen: History, requested: dict[int, int], left: float) -> Iterator[Step]:
        """The race among the candidates of `requested` (how many seeds each has had), for `left` multiply-adds."""
        alive = set(requested)
        while True:
            for stop in self._worse(problem, seen, alive, requested):
                alive.discard(stop.candidate)
                yield stop
            if len(alive) == 1 and all(seen.num_shown(c) == requested[c] for c in alive):
                return
            if self.regret is not None and (end := self.settled(estimate(problem, seen), alive)):
                yield end
                return
            deviation = seen.deviation(requested)

            def bound(candidate: int, deviation: float = deviation) -> tuple[float, int]:
                # The seeds under way count as well: else all workers would be given to the same candidate.
                return seen.mean(candidate) + self.optimism * deviation / math.sqrt(requested[candidate]), -candidate

            free = [
                c for c in alive if requested[c] < self.most_seeds and problem.macs[c] <= left and seen.num_shown(c)
            ]
            if free:
                candidate = max(free, key=bound)
                left -= problem.macs[candidate]
                requested[candidate] += 1
                yield Request(candidate, requested[candidate] - 1)
            elif any(seen.num_shown(c) < requested[c] for c in requested):
                yield None
            else:
                return

    def _worse(self, problem: Problem, seen: History, alive: set[int], requested: dict[int, int]) -> list[Stop]:
        """Those that are out: significantly worse than the leader, or failed with every seed that they may have."""
        gone = [
            Stop(c, "every training of it failed")
            for c in alive
            if not seen.of(c) and seen.num_shown(c) == requested[c] >= self.most_seeds
        ]
        finished = [c for c in alive if seen.of(c)]
        deviation, freedom = seen.deviation(requested), seen.freedom(requested)
        if len(finished) < 2 or freedom < ENOUGH_FREEDOM or deviation == 0:
            return gone
        leader = max(finished, key=lambda c: (seen.mean(c), len(seen.of(c)), -c))
        best, threshold = seen.of(leader), _t_quantile(1 - 0.05 / max(1, problem.size - 1), freedom)
        for candidate in finished:
            shared = best.keys() & seen.of(candidate).keys()
            if candidate == leader or not shared:
                continue
            difference = fmean(best[s] - seen.of(candidate)[s] for s in shared)
            if difference > threshold * deviation * math.sqrt(2 / len(shared)):
                gone.append(Stop(candidate, f"significantly worse than another by {100 * difference:.2f} points"))
        return gone


@cache
def _t_quantile(probability: float, freedom: int) -> float:
    from scipy import stats

    return float(stats.t.ppf(probability, freedom))
