"""Complete short schedules of all candidates; the better part goes on to longer ones, the best have every seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Annotated

from pydantic import Field

from scalesearch.checks import between, checked
from scalesearch.search.strategies._base import History, Lookahead, Problem, Request, Step, Stop

Share = Annotated[float, between(0.01, 1)]


@checked("search", kw_only=True)
class Strategy:
    """Complete short schedules first, the better part of each goes on to the next longer one, without rounds.

    After the asynchronous rule of arXiv:1810.05934: where a worker is free, a candidate goes on that is among the best
    `keep` of those that have finished the same schedule. Those that reach the whole one get all seeds of the recipe.
    """

    shares: Annotated[Sequence[Share], Field(description="of the recipe's epochs, rising")] = (0.25, 0.5)
    keep: Annotated[float, between(0.01, 0.99, "of those that have finished a schedule")] = 0.5
    lookahead: Lookahead = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "shares", tuple(self.shares))
        if not self.shares or any(share >= longer for share, longer in pairwise((*self.shares, 1.0))):
            raise ValueError(
                f"search.shares is {list(self.shares)}; it must be rising shares, each less than 1, such as [0.25, 0.5]"
            )

    def steps(self, problem: Problem, seen: History) -> Iterator[Step]:
        rungs = (*self.shares, 1.0)
        reached = dict.fromkeys(range(problem.size), -1)  # the rung that each was asked for last
        requested = 0
        while True:
            fresh = next((c for c, rung in reached.items() if rung < 0), None)
            going_on = self._next(seen, rungs, reached) if fresh is None else (fresh, 0)
            if going_on is not None:
                candidate, rung = going_on
                reached[candidate] = rung
                for seed in range(problem.seeds if rungs[rung] == 1 else 1):
                    requested += 1
                    yield Request(candidate, seed, rungs[rung])
            elif sum(len(seeds) for of in seen.scores.values() for seeds in of.values()) < requested:
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
        for rung, share in enumerate(rungs[:-1]):
            means = {c: seen.mean(c, share) for c in reached if seen.of(c, share)}
            best = sorted(means, key=lambda c, means=means: (-means[c], c))  # type: ignore[misc]
            for candidate in best[: max(1, round(len(best) * self.keep))] if len(best) > 1 else ():
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
