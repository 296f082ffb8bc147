"""The search as Optuna shows it, for its dashboard; the ledger decides what is trained."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from scalesearch.evaluation import Outcome
from scalesearch.search.plan import Candidate, Grid
from scalesearch.training import Recipe

if TYPE_CHECKING:
    import optuna


class OptunaView:
    """One trial per candidate: its trainings are intermediate values, the mean of those of the whole recipe its value.

    A stopped candidate is pruned. A trial that shows what it should already is left as it is.

    Args:
        storage: the URL of a database, which may be deleted at any time.
        key: of a candidate's network, by which the trials of an earlier command are found again.
    """

    def __init__(self, storage: str, study: str, space: Grid, recipe: Recipe, key: Callable[[Candidate], str]) -> None:
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
        if candidate.id not in self._open and self._key(candidate) not in self._told:
            with _storing(self._storage):
                self._open[candidate.id] = self._ask(candidate)

    def report(self, candidate: Candidate, outcomes: Sequence[Outcome]) -> None:
        """The newest training of a candidate, as the next of its intermediate values."""
        if candidate.id in self._open and candidate.id not in self._ended:
            with _storing(self._storage):
                self._report(self._open[candidate.id], candidate, outcomes)

    def end(self, candidate: Candidate, outcomes: Sequence[Outcome], *, reason: str = "") -> None:
        """All trainings of a candidate have come; with a `reason` it was stopped. It failed if all of them did."""
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
        if self._told.get(self._key(candidate)) == (state, finished):
            return
        with _storing(self._storage):
            trial = self._open.get(candidate.id) or self._ask(candidate)
            self._report(trial, candidate, outcomes)
            trial.set_user_attr("trainings", [_shown(outcome) for outcome in outcomes if outcome.result is not None])
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
            trial.report(_shown(finished[step])["val_accuracy"], step=step)
        self._reported[candidate.id] = len(finished)

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
            "network": self._key(candidate),
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


def _shown(outcome: Outcome) -> dict[str, float]:
    assert outcome.result is not None
    training = outcome.evaluation
    return {"seed": training.seed, "epochs": training.recipe.epochs, "val_accuracy": outcome.result.val_accuracy}


@contextlib.contextmanager
def _storing(storage: str) -> Iterator[None]:
    """Whatever Optuna's storage raises (a full disk, a damaged file) comes out as an OSError that names it."""
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise OSError(
            f"Optuna's storage {storage} cannot be used: {reason}. Free the disk, or delete that file, which only "
            "shows the search; then the same command goes on"
        ) from error


def _open_study(storage: str, name: str) -> optuna.Study:
    """The study, made if it is new. Trials that an interrupted driver left open are told as failed; the study's
    lock says that no other driver is alive."""
    import optuna
    import sqlalchemy

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    database = optuna.storages.RDBStorage(storage)
    if storage.startswith("sqlite"):
        # A commit need not reach the disk before the search goes on: a killed process loses nothing by that, and of a
        # machine that loses its power the ledger has all.
        sqlalchemy.event.listen(database.engine, "connect", lambda one, _: one.execute("PRAGMA synchronous=OFF"))
        database.engine.dispose()  # connections from before
    study = optuna.create_study(storage=database, study_name=name, direction="maximize", load_if_exists=True)
    while study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,)):
        study.ask()
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study
