"""Every candidate with every seed: the paper's search."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

from scalesearch.checks import between, checked
from scalesearch.search.strategies._base import History, Problem, Request, Step


@checked("search", kw_only=True)
class Strategy:
    """Every candidate with every seed."""

    seeds: Annotated[int | None, between(1, 1000, "of each candidate; null: as many as the recipe has")] = None
    lookahead: ClassVar[None] = None

    def steps(self, problem: Problem, seen: History) -> Iterator[Step]:
        for candidate in problem.longest_first:
            for seed in range(self.seeds or problem.seeds):
                yield Request(candidate, seed)

    def expected(self, problem: Problem) -> list[tuple[int, float]]:
        return [(problem.size * (self.seeds or problem.seeds), 1.0)]

    def possible(self, problem: Problem) -> list[tuple[int, float]]:
        return [(self.seeds or problem.seeds, 1.0)]
