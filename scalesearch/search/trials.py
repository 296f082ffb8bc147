"""Carrying a strategy out: its requests become evaluations, and Optuna shows a trial for each candidate."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from scalesearch.evaluation import Evaluation, Evaluator, Outcome
from scalesearch.search.plan import BASELINE, Candidate, Grid, Plan
from scalesearch.search.strategies import Ask, History, Problem, Stop, Strategy
from scalesearch.training import Recipe

if TYPE_CHECKING:
    import optuna


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
        points=tuple(tuple((t.alpha, t.beta) for t in candidate.triples) for candidate in plan.candidates),
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


def carry_out(
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
) -> Iterator[TrialResult | Stopped]:
    """Train the 1x network with `seeds` seeds, and the candidates as the strategy asks; what comes, as it comes.

    `data` and `init` are digests, as an `Evaluation` has them.
    In Optuna a candidate is a trial with its trainings as intermediate values and the mean of those of the whole
    recipe as value; a stopped one is pruned. The ledger decides what is trained; the Optuna study only shows it, and
    may be deleted at any time.
    """
    seen, stops = History(), list[Stop]()
    asked: list[tuple[Ask, Evaluation]] = []
    arrived: dict[Evaluation, Outcome] = {}
    owner: dict[Evaluation, list[Candidate]] = {}
    shown = 0

    def show_next() -> bool:
        """Whether the oldest request that the strategy has not seen the score of was answered, and is now shown."""
        nonlocal shown
        request, evaluation = asked[shown]
        if evaluation not in arrived:
            return False
        result = arrived[evaluation].result
        seen.show(request, None if result is None else result.val_accuracy)
        shown += 1
        return True

    def evaluations() -> Iterator[Evaluation | None]:
        for seed in range(seeds):
            first = Evaluation(plan.baseline.network, recipe, data, seed, init)
            owner.setdefault(first, []).append(plan.baseline)
            yield first
        for step in strategy.steps(problem(plan, seeds), seen):
            if isinstance(step, Stop):
                stops.append(step)
            elif step is None:
                while not show_next():
                    yield None
            else:
                candidate = plan.candidates[step.candidate]
                view.begin(candidate)
                evaluation = Evaluation(candidate.network, shortened(recipe, step.share), data, step.seed, init)
                owner.setdefault(evaluation, []).append(candidate)
                asked.append((step, evaluation))
                yield evaluation
                while strategy.lookahead is not None and len(asked) - shown >= strategy.lookahead:
                    if not show_next():
                        yield None

    view = _View(storage, study, space, recipe, lambda c: Evaluation(c.network, recipe, data, 0, init).key)
    outcomes: dict[str, list[Outcome]] = {candidate.id: [] for candidate in (plan.baseline, *plan.candidates)}
    most = sum(count for count, _ in strategy.possible(problem(plan, seeds)))
    stopped: dict[str, str] = {}

    def end_if_all_have_come(candidate: Candidate) -> None:
        """What was under way when a candidate was stopped still comes, and belongs to its trial."""
        mine = outcomes[candidate.id]
        expected = sum(plan.candidates[request.candidate] is candidate for request, _ in asked)
        if len(mine) == most or (candidate.id in stopped and 0 < len(mine) == expected):
            view.end(candidate, mine, reason=stopped.get(candidate.id, ""))

    def newly_stopped() -> Iterator[Stopped]:
        while stops:
            stop = stops.pop(0)
            candidate = plan.candidates[stop.candidate]
            stopped[candidate.id] = stop.reason
            yield Stopped(candidate, stop.reason)
            end_if_all_have_come(candidate)

    for outcome in evaluator.run(evaluations()):
        candidate = owner[outcome.evaluation].pop(0)
        arrived[outcome.evaluation] = outcome
        outcomes[candidate.id].append(outcome)
        yield TrialResult(candidate, outcome)
        if candidate.id != BASELINE:
            view.report(candidate, outcomes[candidate.id])
            end_if_all_have_come(candidate)
        yield from newly_stopped()
    yield from newly_stopped()
    for candidate in plan.candidates:
        if candidate.id not in stopped and outcomes[candidate.id]:
            view.end(candidate, outcomes[candidate.id])


def sqlite(path: Path) -> str:
    """The Optuna storage URL of a file."""
    return f"sqlite:///{path.absolute()}"


class _View:
    """The search in Optuna, for its dashboard. A trial that shows what it should already is left as it is."""

    def __init__(self, storage: str, study: str, space: Grid, recipe: Recipe, key: object) -> None:
        import optuna

        self._storage, self._space, self._recipe, self._key = storage, space, recipe, key
        self._open: dict[str, optuna.trial.Trial] = {}
        self._reported: dict[str, int] = {}
        self._ended: set[str] = set()
        with _storing(storage):
            self._study = _open_study(storage, study)
            states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
            self._told = {
                trial.user_attrs["network"]: (trial.state, trial.user_attrs["finished"])
                for trial in self._study.get_trials(states=states)
            }

    def begin(self, candidate: Candidate) -> None:
        if candidate.id not in self._open and self._network(candidate) not in self._told:
            with _storing(self._storage):
                self._open[candidate.id] = self._ask(candidate)

    def report(self, candidate: Candidate, outcomes: Sequence[Outcome]) -> None:
        """The newest training of a candidate, as the next of its intermediate values."""
        if candidate.id in self._open and candidate.id not in self._ended:
            with _storing(self._storage):
                self._report(self._open[candidate.id], candidate, outcomes)

    def end(self, candidate: Candidate, outcomes: Sequence[Outcome], *, reason: str = "") -> None:
        """The mean of its whole trainings is its value; with a `reason` it was pruned; it failed if all of them did."""
        import optuna

        if candidate.id in self._ended:
            return
        self._ended.add(candidate.id)
        whole = [
            o.result.val_accuracy for o in outcomes if o.result is not None and o.evaluation.recipe == self._recipe
        ]
        finished = sorted(o.evaluation.key for o in outcomes if o.result is not None)
        states = optuna.trial.TrialState
        state = states.FAIL if not finished else states.PRUNED if reason or not whole else states.COMPLETE
        if self._told.get(self._network(candidate)) == (state, finished):
            return
        with _storing(self._storage):
            trial = self._open.get(candidate.id) or self._ask(candidate)
            self._report(trial, candidate, outcomes)
            trial.set_user_attr("finished", finished)
            for outcome in outcomes:
                if outcome.result is None:
                    trial.set_user_attr(f"failed_seed_{outcome.evaluation.seed}", outcome.reason)
            if reason:
                trial.set_user_attr("stopped", reason)
            self._study.tell(trial, sum(whole) / len(whole) if state == states.COMPLETE else None, state=state)

    def _report(self, trial: optuna.trial.Trial, candidate: Candidate, outcomes: Sequence[Outcome]) -> None:
        finished = [outcome for outcome in outcomes if outcome.result is not None]
        for step in range(self._reported.get(candidate.id, 0), len(finished)):
            outcome = finished[step]
            assert outcome.result is not None
            trial.report(outcome.result.val_accuracy, step=step)
            said = {"seed": outcome.evaluation.seed, "epochs": outcome.evaluation.recipe.epochs}
            trial.set_user_attr(f"training_{step}", said | {"val_accuracy": outcome.result.val_accuracy})
        self._reported[candidate.id] = len(finished)

    def _network(self, candidate: Candidate) -> str:
        return str(self._key(candidate))  # type: ignore[operator]

    def _ask(self, candidate: Candidate) -> optuna.trial.Trial:
        import optuna

        chosen = candidate.coefficients
        self._study.enqueue_trial({"alpha": chosen.alpha, "beta": chosen.beta, "gamma": chosen.gamma})
        axes = (("alpha", self._space.alpha), ("beta", self._space.beta), ("gamma", self._space.gamma))
        trial = self._study.ask(
            {
                # Without the grid's step: a gamma that was solved for lies between its points.
                name: optuna.distributions.FloatDistribution(float(axis.start), float(axis.values()[-1]))
                for name, axis in axes
            }
        )
        for name, value in {
            "network": self._network(candidate),
            "candidate": candidate.id,
            "triples": json.dumps([[t.alpha, t.beta, t.gamma] for t in candidate.triples]),
            "product": round(chosen.product, 6),
            "macs": candidate.cost.macs,
            "macs_ratio": candidate.ratio,
            "params": candidate.cost.params,
            "resolution": candidate.network.resolution,
        }.items():
            trial.set_user_attr(name, value)
        return trial


@contextlib.contextmanager
def _storing(storage: str) -> Iterator[None]:
    """Whatever Optuna's storage raises (a full disk, a damaged file) comes out as an OSError that names it."""
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as error:
        said = str(error.__cause__ or error).strip().partition("\n")[0]
        raise OSError(
            f"Optuna's storage {storage} cannot be used: {said}. Free the disk, or delete that file, which only shows "
            "the search; then the same command goes on"
        ) from error


def _open_study(storage: str, name: str) -> optuna.Study:
    """The study, made if it is new. Trials that an interrupted driver left open are told as failed; the study's
    lock says that no other driver is alive."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
    while study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,)):
        study.ask()
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study
