"""Every candidate once, then the training that is expected to teach most about the best one, per multiply-add."""

from __future__ import annotations

from collections.abc import Iterator

from scalesearch.checks import checked
from scalesearch.search.strategies._base import Adaptive, History, Problem, Request, Step, estimate


@checked("search", kw_only=True)
class Strategy(Adaptive):
    """Every candidate once, then by the knowledge gradient per multiply-add, until `compute` is used up.

    All scores are estimated together (`posterior`). The next seed goes to the candidate whose training raises the best
    expected accuracy most for what it costs: to one that may be the best and of which little is known, or to one that
    tells much about others. The search ends early where the choice is expected to lose less than `regret` points.
    """

    def steps(self, problem: Problem, seen: History) -> Iterator[Step]:
        yield from self.once(problem)
        requested, left = dict.fromkeys(range(problem.size), 1), self.left_after_once(problem)
        while True:
            estimated = estimate(problem, seen)
            if end := self.settled(estimated, requested):
                yield end
                return
            under_way = {c: number - seen.num_shown(c) for c, number in requested.items()}
            # One whose first training is under way, or has failed, is not known to be worth a second one.
            gains = {} if estimated is None else estimated.gains(under_way)
            free = [c for c in requested if requested[c] < self.most_seeds and problem.macs[c] <= left]
            failed = [c for c in free if not seen.of(c) and not under_way[c]]
            known = [c for c in free if c in gains]
            if failed or known:
                # Of equal gains, as where none is left, the candidate with fewer seeds.
                candidate = (failed or sorted(known, key=lambda c: (-gains[c] / problem.macs[c], requested[c], c)))[0]
                left -= problem.macs[candidate]
                requested[candidate] += 1
                yield Request(candidate, requested[candidate] - 1)
            elif any(under_way.values()):
                yield None
            else:
                return
