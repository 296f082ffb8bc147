"""Running a strategy: its requests become evaluations, and Optuna shows one trial per candidate."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from scalesearch.evaluation import Alike, Evaluation, Evaluator, Outcome
from scalesearch.search.optuna_view import OptunaView
from scalesearch.search.plan import BASELINE, Candidate, Grid, Plan
from scalesearch.search.strategies import BASE, End, History, Problem, Request, Score, Step, Stop, Strategy
from scalesearch.text import typed
from scalesearch.training import Recipe


class TrialResult(NamedTuple):
    """One outcome of the search: which candidate, and what became of this evaluation of it."""

    candidate: Candidate
    outcome: Outcome


class Stopped(NamedTuple):
    """A candidate that the strategy has taken out: it gets no more trainings and cannot be chosen."""

    candidate: Candidate
    reason: str


def problem(plan: Plan, seeds: int) -> Problem:
    """What a strategy knows of the plan."""
    return Problem(
        macs=tuple(candidate.cost.macs for candidate in plan.candidates),
        triples=tuple(tuple((t.alpha, t.beta, t.gamma) for t in candidate.triples) for candidate in plan.candidates),
        seeds=seeds,
    )


def shortened(recipe: Recipe, share: float) -> Recipe:
    """The recipe with that share of its epochs: a complete shorter schedule."""
    return recipe if share == 1 else replace(recipe, epochs=share * recipe.epochs)


def possible(
    plan: Plan, strategy: Strategy, *, seeds: int, recipe: Recipe, data: str, init: str | None
) -> Iterator[tuple[Candidate, Evaluation]]:
    """Every evaluation that a search may come to ask for, the 1x network's first."""
    for seed in range(seeds):
        yield plan.baseline, Evaluation(plan.baseline.network, recipe, data, seed, init)
    for candidate in plan.candidates:
        for count, share in strategy.possible(problem(plan, seeds)):
            for seed in range(count):
                yield candidate, Evaluation(candidate.network, shortened(recipe, share), data, seed, init)


def requests(
    strategy: Strategy, problem: Problem, score: Callable[[Request], Score | None], *, first: Iterable[Request] = ()
) -> Iterator[Step]:
    """What a strategy requests and stops, in order, and None where it must wait for a score that is not there yet.

    score: of a request; None while it is under way. It is shown to the strategy when `lookahead` says so, and never
        sooner. first: requests that are under way already; their scores are shown before any other.
    """
    seen, unseen = History(), deque(first)

    def show_next() -> Iterator[None]:
        while (known := score(unseen[0])) is None:
            yield None
        seen.show(unseen.popleft(), known)

    for step in strategy.steps(problem, seen):
        if step is None:
            yield from show_next()
            continue
        yield step
        if isinstance(step, End):
            return
        if isinstance(step, Request):
            unseen.append(step)
            while strategy.lookahead is not None and len(unseen) >= strategy.lookahead:
                yield from show_next()


def run(
    plan: Plan,
    space: Grid,
    *,
    strategy: Strategy,
    seeds: int,
    recipe: Recipe,
    data: str,
    init: str | None,
    evaluator: Evaluator,
    storage: str,
    study: str,
) -> Iterator[TrialResult | Stopped | End]:
    """Train the 1x network with `seeds` seeds, and the candidates as the strategy requests; outcomes as they come.

    `data` and `init` are digests, as an `Evaluation` has them. `storage` and `study` are Optuna's, where a candidate is
    a trial with its trainings as intermediate values; the study may be deleted at any time.
    """

    def evaluation(candidate: Candidate, seed: int, share: float = 1.0) -> Evaluation:
        return Evaluation(candidate.network, shortened(recipe, share), data, seed, init)

    view = OptunaView(storage, study, space, recipe, lambda candidate: evaluation(candidate, 0).key)
    alike = Alike()
    loop = _Loop(plan, strategy, seeds, evaluation, view)
    for outcome in evaluator.run(loop.evaluations()):
        yield from loop.take(outcome)
        alike.refuse(outcome)
    yield from loop.finish()
    if (lagging := view.close()) is not None:
        logging.getLogger(__name__).warning(f"{lagging}; later: {typed('sync', f'study={study}')}")


class _Loop:
    """What the strategy has asked for, and what has come back."""

    def __init__(
        self, plan: Plan, strategy: Strategy, seeds: int, make: Callable[..., Evaluation], view: OptunaView
    ) -> None:
        self._plan, self._strategy, self._make, self._view = plan, strategy, make, view
        self._problem = problem(plan, seeds)
        self._most = sum(count for count, _ in strategy.possible(self._problem))  # trainings of one candidate
        self._requested: dict[Request, Evaluation] = {}
        self._num_asked: Counter[str] = Counter()
        self._owners: dict[Evaluation, list[Candidate]] = defaultdict(list)
        self._arrived: dict[Evaluation, Outcome] = {}
        self._outcomes: dict[str, list[Outcome]] = defaultdict(list)
        self._stops: deque[Stop] = deque()  # that nobody was told of yet
        self._stopped: dict[str, str] = {}
        self._end: End | None = None

    def evaluations(self) -> Iterator[Evaluation | None]:
        """What is to be trained, in order; None where the strategy waits for a score."""
        first = [Request(BASE, seed) for seed in range(self._problem.seeds)]
        for request in first:
            self._requested[request] = self._request(self._plan.baseline, request.seed)
            yield self._requested[request]
        for step in requests(self._strategy, self._problem, self._score, first=first):
            if isinstance(step, Stop):
                self._stops.append(step)
            elif isinstance(step, End):
                self._end = step
            elif step is None:
                yield None
            else:
                candidate = self._plan.candidates[step.candidate]
                self._view.begin(candidate)
                self._requested[step] = self._request(candidate, step.seed, step.share)
                yield self._requested[step]

    def _score(self, request: Request) -> Score | None:
        if (outcome := self._arrived.get(self._requested[request])) is None:
            return None
        result = outcome.result
        return Score(None) if result is None else Score(result.val_accuracy, result.by_image)

    def take(self, outcome: Outcome) -> Iterator[TrialResult | Stopped]:
        """What an outcome means: the result, and the candidates that were stopped since the one before."""
        candidate = self._owners[outcome.evaluation].pop(0)
        self._arrived[outcome.evaluation] = outcome
        self._outcomes[candidate.id].append(outcome)
        yield TrialResult(candidate, outcome)
        if candidate.id != BASELINE:
            self._view.report(candidate, self._outcomes[candidate.id])
            self._end_if_complete(candidate)
        yield from self._newly_stopped()

    def finish(self) -> Iterator[Stopped | End]:
        yield from self._newly_stopped()
        if self._end is not None:
            yield self._end
        for candidate in self._plan.candidates:
            if candidate.id not in self._stopped and self._outcomes[candidate.id]:
                self._view.end(candidate, self._outcomes[candidate.id])

    def _request(self, candidate: Candidate, seed: int, share: float = 1.0) -> Evaluation:
        evaluation = self._make(candidate, seed, share)
        self._owners[evaluation].append(candidate)
        self._num_asked[candidate.id] += 1
        return evaluation

    def _newly_stopped(self) -> Iterator[Stopped]:
        while self._stops:
            stop = self._stops.popleft()
            candidate = self._plan.candidates[stop.candidate]
            self._stopped[candidate.id] = stop.reason
            yield Stopped(candidate, stop.reason)
            self._end_if_complete(candidate)

    def _end_if_complete(self, candidate: Candidate) -> None:
        """What was under way when a candidate was stopped still comes, and belongs to its trial."""
        outcomes, stopped = self._outcomes[candidate.id], candidate.id in self._stopped
        if len(outcomes) == self._most or (stopped and 0 < len(outcomes) == self._num_asked[candidate.id]):
            self._view.end(candidate, outcomes, reason=self._stopped.get(candidate.id, ""))
