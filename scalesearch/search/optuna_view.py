"""The search as Optuna shows it, for its dashboard; the ledger decides what is trained."""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from scalesearch.evaluation import Outcome
from scalesearch.search.plan import Candidate, Grid
from scalesearch.text import one_line
from scalesearch.training import Recipe
from scalesearch.workspace import locked, make_aside, sqlite_file

if TYPE_CHECKING:
    import optuna


_PAUSE = 30.0  # seconds without the database after it has failed
_log = logging.getLogger(__name__)


@dataclass
class _Seen:
    """What is known of a candidate, to be shown again to a database that was lost."""

    candidate: Candidate
    outcomes: list[Outcome] = field(default_factory=list)
    reason: str = ""
    ended: bool = False


class OptunaView:
    """One trial per candidate: its trainings are intermediate values, the mean of those of the whole recipe its value.

    A stopped candidate is pruned. A trial that shows what it should already is left as it is. It is a view: where the
    database is locked, full, damaged or gone the search goes on without, it is tried again now and then, and then
    shown all that it has missed. A damaged file is moved aside, and begun anew.

    Args:
        storage: the URL of a database, which may be deleted at any time.
        key: of a candidate's network, by which the trials of an earlier command are found again.
    """

    def __init__(self, storage: str, study: str, space: Grid, recipe: Recipe, key: Callable[[Candidate], str]) -> None:
        self._storage, self._name, self._space, self._recipe, self._key = storage, study, space, recipe, key
        self._seen: dict[str, _Seen] = {}
        self._next_try, self._why, self._warned = 0.0, "", False
        self._study: optuna.Study | None = None
        self._forget()
        self._show(lambda: None)

    def begin(self, candidate: Candidate) -> None:
        self._seen.setdefault(candidate.id, _Seen(candidate))
        self._show(lambda: self._begin(candidate))

    def report(self, candidate: Candidate, outcomes: Sequence[Outcome]) -> None:
        """The newest training of a candidate, as the next of its intermediate values."""
        seen = self._seen.setdefault(candidate.id, _Seen(candidate))
        seen.outcomes = list(outcomes)
        self._show(lambda: self._report(candidate, outcomes))

    def end(self, candidate: Candidate, outcomes: Sequence[Outcome], *, reason: str = "") -> None:
        """All trainings of a candidate have come; with a `reason` it was stopped. It failed if all of them did."""
        seen = self._seen.setdefault(candidate.id, _Seen(candidate))
        if seen.ended:
            return
        seen.outcomes, seen.reason, seen.ended = list(outcomes), reason, True
        self._show(lambda: self._end(seen))

    def close(self, *, patience: float = 20.0) -> str | None:
        """None where the database shows everything, else why it does not; a lock is waited for so many seconds."""
        path = sqlite_file(self._storage)
        if path is not None and not path.exists():
            self._lose(FileNotFoundError(f"{path} was deleted"))  # what is open is written to a file without a name
        until = time.monotonic() + patience
        while True:
            self._next_try = 0.0
            self._show(lambda: None)
            if self._study is not None or time.monotonic() > until:
                return None if self._study is not None else f"Optuna's database {self._storage} lags: {self._why}"
            time.sleep(1.0)

    def _show(self, action: Callable[[], None]) -> None:
        """Do it, or after a failure everything that was missed, once it is time to try again."""
        try:
            if self._study is not None:
                action()
            elif time.monotonic() >= self._next_try:
                self._reopen()
        except Exception as error:  # Optuna's, SQLAlchemy's, the database's
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        self._why = one_line(error.__cause__ or error).partition(" [SQL")[0][:300]
        if not self._warned:
            _log.warning(f"Optuna's database {self._storage} cannot be used: {self._why}. The search goes on without")
            self._warned = True
        self._next_try = time.monotonic() + _PAUSE
        self._study = None
        self._forget()

    def _forget(self) -> None:
        self._open: dict[str, optuna.trial.Trial] = {}
        self._reported: dict[str, int] = {}
        self._told: dict[str, tuple[optuna.trial.TrialState, list[str]]] = {}

    def _reopen(self) -> None:
        import optuna

        study = _open_study(self._storage, self._name)
        states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        self._told = {
            trial.user_attrs["network"]: (trial.state, trial.user_attrs["finished"])
            for trial in study.get_trials(states=states)
        }
        self._study = study
        for seen in self._seen.values():
            self._begin(seen.candidate)
            self._report(seen.candidate, seen.outcomes)
            if seen.ended:
                self._end(seen)
        self._warned = False

    def _begin(self, candidate: Candidate) -> None:
        if candidate.id not in self._open and self._key(candidate) not in self._told:
            self._open[candidate.id] = self._ask(candidate)

    def _end(self, seen: _Seen) -> None:
        import optuna

        candidate, outcomes, reason = seen.candidate, seen.outcomes, seen.reason
        whole = [
            o.result.val_accuracy for o in outcomes if o.result is not None and o.evaluation.recipe == self._recipe
        ]
        finished = sorted(o.evaluation.key for o in outcomes if o.result is not None)
        states = optuna.trial.TrialState
        state = states.FAIL if not finished else states.PRUNED if reason or not whole else states.COMPLETE
        if self._told.get(self._key(candidate)) == (state, finished):
            return
        assert self._study is not None
        trial = self._open.pop(candidate.id, None) or self._ask(candidate)
        self._write_report(trial, candidate, outcomes)
        trial.set_user_attr("trainings", [_shown(outcome) for outcome in outcomes if outcome.result is not None])
        trial.set_user_attr("finished", finished)
        for outcome in outcomes:
            if outcome.result is None:
                trial.set_user_attr(f"failed_seed_{outcome.evaluation.seed}", outcome.reason)
        if reason:
            trial.set_user_attr("stopped", reason)
        self._study.tell(trial, sum(whole) / len(whole) if state == states.COMPLETE else None, state=state)

    def _report(self, candidate: Candidate, outcomes: Sequence[Outcome]) -> None:
        if candidate.id in self._open:
            self._write_report(self._open[candidate.id], candidate, outcomes)

    def _write_report(self, trial: optuna.trial.Trial, candidate: Candidate, outcomes: Sequence[Outcome]) -> None:
        finished = [outcome for outcome in outcomes if outcome.result is not None]
        for step in range(self._reported.get(candidate.id, 0), len(finished)):
            trial.report(_shown(finished[step])["val_accuracy"], step=step)
        self._reported[candidate.id] = len(finished)

    def _ask(self, candidate: Candidate) -> optuna.trial.Trial:
        import optuna

        chosen = candidate.coefficients
        assert self._study is not None
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


def _make_tables(storage: str) -> None:
    """A sqlite database is there, with its tables, and whole.

    A damaged file is moved aside.
    """
    import optuna

    if (path := sqlite_file(storage)) is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)

    def make(unfinished: Path) -> None:
        made = optuna.storages.RDBStorage(f"sqlite:///{unfinished}")
        made.remove_session()
        made.engine.dispose()

    with locked(path.with_name(f"{path.name}.lock"), wait=True):
        if path.exists() and (why := _damage(path)) is not None:
            aside = path.with_name(f"{path.name}.damaged")
            _log.warning(f"{path} is damaged ({why}); it is kept as {aside.name}, and begun anew")
            path.replace(aside)
        if not path.exists():
            make_aside(path, make)


def _damage(path: Path) -> str | None:
    """Why a file is no sound database with Optuna's tables; None where it is one, or is locked."""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=5)) as database:
            (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.OperationalError:  # a lock: nothing is known
        return None
    except sqlite3.DatabaseError as error:
        return one_line(error)
    if found != "ok":
        return one_line(ValueError(found))[:100]
    return None if {"studies", "trials", "version_info"} <= tables else "it lacks tables"


def _open_study(storage: str, name: str) -> optuna.Study:
    """The study, made if it is new. Trials that an interrupted driver left open are told as failed; the study's
    lock says that no other driver is alive."""
    import optuna
    import sqlalchemy

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    _make_tables(storage)
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
