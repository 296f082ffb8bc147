"""The search, top to bottom: `search_and_scale` is section 3.3 of arXiv:1905.11946."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from scalesearch import report, search, variants
from scalesearch.budget import Profiler
from scalesearch.data import Data
from scalesearch.evaluation import Evaluation
from scalesearch.planning import num_evaluations, planned, refuse_infeasible, summary
from scalesearch.search import BASELINE, End, Plan, Stopped, TrialResult
from scalesearch.selection import (
    Chance,
    Choice,
    Unlearnt,
    by_seed,
    chance_level,
    estimate_surface,
    levels_of,
    path_of,
    remedy,
    select,
    unlearnt,
    unlearnt_words,
)
from scalesearch.session import Session
from scalesearch.study import (
    Answer,
    NothingLearnt,
    Study,
    StudySettings,
    TargetAnswer,
    family_of,
    possible_of,
    write_answer,
    write_nothing,
    write_target,
    write_trials,
)
from scalesearch.tracking import StudyLog, recipe_params
from scalesearch.training import Result, check_function
from scalesearch.workspace import sqlite_url

Outcome = Answer | TargetAnswer | NothingLearnt | None


def search_and_scale(settings: StudySettings, session: Session) -> tuple[list[TrialResult], Outcome]:
    """(every training, the answer of the study, on disk and in MLflow); None where every candidate failed.

    Raises: Infeasible where no network meets the constraints.
    """
    # The problem (equation 2): a baseline network, a budget on its counted cost, data to be accurate on.
    plan, profiler = planned(settings)
    refuse_infeasible(plan, settings)
    networks = [candidate.network for candidate in (plan.baseline, *plan.candidates)]
    init = session.initial_weights(settings.init, (settings.baseline, networks[0]), networks)
    with session:
        data = session.data(settings.data)
        check_function(settings.recipe.metric, data, test=True)
        study = Study.begin(settings, plan, data, init)
        with _log(settings, session, plan, data, init) as log:
            session.forget_failures(one for _, one in possible_of(settings, plan, data, init))
            session.out.say(summary(plan, settings))

            # Step 1: fix phi = 1 and search alpha, beta, gamma on a small grid, by training candidates.
            trials, stopped = _train_candidates(settings, session, study, plan, data, init, log)
            chance = _chance(settings, data, trials)
            if settings.target is not None:
                return trials, _at_target(settings, plan, profiler, data, trials, chance, log)
            choice = _choose(settings, session, trials, stopped, chance)
            if not isinstance(choice, Choice):
                return trials, choice and _nothing(settings, trials, stopped, choice, chance, data, log)
            chosen = next(candidate for candidate in plan.candidates if candidate.id == choice.chosen)
            finished = {name: _finished(settings, trials, name) for name in (BASELINE, chosen.id)}
            test = {name: session.test_accuracy(seeds, settings.data) for name, seeds in finished.items()}

            # Step 2: fix alpha, beta, gamma and scale the baseline up with phi (equation 3).
            scaled = variants.family(settings.baseline, chosen.coefficients, settings.phis, rounding=settings.rounding)
            family = variants.measured(scaled, profiler)

            answer = Answer(trials, stopped, choice, chosen, test, family, chance, levels_of(chance, data))
            values, files = write_answer(settings, answer)
            files.append(report.write(report.read(study), study.directory))
            weights = session.ledger.weights_path(finished[chosen.id][0].key)
            waiting = log.answered(values, chosen, choice, files=files, weights=weights)
    return trials, replace(answer, values=values, waiting=waiting)


def _train_candidates(
    settings: StudySettings,
    session: Session,
    study: Study,
    plan: Plan,
    data: Data,
    init: str | None,
    log: StudyLog,
) -> tuple[list[TrialResult], dict[str, str]]:
    """(every training, the reason of each candidate that was stopped), as the strategy requests; writes trials.csv."""
    evaluator = session.evaluator(settings.data)
    lookahead = settings.search.strategy.lookahead
    if lookahead is not None and lookahead < evaluator.slots:
        session.out.warn(
            f"{evaluator.slots} trainings can run at a time, and search.lookahead={lookahead} allows only so many: the "
            f"other workers wait; search.lookahead={evaluator.slots + 1} would keep all busy"
        )
    trials: list[TrialResult] = []
    stopped: dict[str, str] = {}
    with session.out.progress(total=num_evaluations(plan, settings), slots=evaluator.slots) as progress:
        for one in search.run(
            plan,
            settings.space,
            strategy=settings.search.strategy,
            seeds=settings.seeds,
            recipe=settings.recipe,
            data=data.fingerprint,
            init=init,
            evaluator=evaluator,
            storage=sqlite_url(settings.workspace / "optuna.db"),
            study=settings.study,
        ):
            if isinstance(one, End):
                progress.note(f"the search ends: {one.reason}")
            elif isinstance(one, Stopped):
                stopped[one.candidate.id] = one.reason
                log.stopped(one)
                progress.note(f"{one.candidate.id} stopped: {one.reason}")
            else:
                trials.append(one)
                study.record(settings, one)
                log.candidate(one, trials, epochs=settings.recipe.epochs)
                progress.update(one.candidate.id, one.outcome, ranked=one.candidate.id != BASELINE)
    write_trials(study, settings, trials, stopped)
    return trials, stopped


def _at_target(
    settings: StudySettings,
    plan: Plan,
    profiler: Profiler,
    data: Data,
    trials: Sequence[TrialResult],
    chance: Chance,
    log: StudyLog,
) -> TargetAnswer | NothingLearnt | None:
    """The best split at the target from all trainings, on disk and in MLflow; None where these are too few.

    It is no candidate: so nothing is scored on the test set, which is left for the network that is then trained.
    """
    finished, no_better = _compared(settings, trials, chance)
    if not finished:
        return None
    if finished <= no_better.keys():
        return _nothing(settings, trials, {}, _best(no_better, finished), chance, data, log)
    rounding = settings.proxy_network[1]
    surface = estimate_surface(plan, by_seed(trials), target=settings.target_ratio, rounding=rounding)
    if surface is None:
        return None
    steps = path_of(surface, settings.baseline, rounding=settings.rounding, budget=settings.budget)
    family = variants.measured(family_of(settings, steps), profiler)
    answer = TargetAnswer(trials, surface, steps, family, chance, levels_of(chance, data))
    values, files = write_target(settings, answer)
    return replace(answer, values=values, waiting=log.targeted(values, files=files))


def _chance(settings: StudySettings, data: Data, trials: Sequence[TrialResult]) -> Chance:
    """What a candidate must be better than."""
    results = [one.outcome.result for one in trials if one.outcome.result is not None]
    return chance_level(settings.recipe.metric, data.val_labels.numpy(), results)


def _choose(
    settings: StudySettings,
    session: Session,
    trials: Sequence[TrialResult],
    stopped: Mapping[str, str],
    chance: Chance,
) -> Choice | Unlearnt | None:
    """Of the trainings of the whole recipe; None where no candidate that may be chosen has finished one.

    Where no candidate that may be chosen is better than chance, the best of them, which is no choice.
    """
    whole = [one for one in trials if one.outcome.evaluation.recipe == settings.recipe]
    contenders = sorted({one.candidate.id for one in whole} - {BASELINE} - stopped.keys())
    if not any(one.outcome.result is not None for one in whole if one.candidate.id in contenders):
        return None
    finished, no_better = _compared(settings, whole, chance)
    free = finished & {*contenders}
    if free <= no_better.keys():
        return _best(no_better, free)
    return select(
        whole,
        confidence=settings.search.confidence,
        not_learnt=sorted(no_better),
        rule=settings.selection.rule,
        metric=settings.selection.metric,
        contenders=contenders,
        macs_ratio=settings.budget.macs_ratio,
        workers=session.evaluator(settings.data).slots,
    )


def _compared(
    settings: StudySettings, trials: Sequence[TrialResult], chance: Chance
) -> tuple[set[str], dict[str, Unlearnt]]:
    """(the candidates that have finished a training, those of them that are no better than chance)."""
    finished: dict[str, list[Result]] = {}
    for one in trials:
        if one.outcome.result is not None and one.candidate.id != BASELINE:
            finished.setdefault(one.candidate.id, []).append(one.outcome.result)
    return {*finished}, unlearnt(finished, chance, confidence=settings.search.confidence)


def _best(no_better: Mapping[str, Unlearnt], names: Collection[str]) -> Unlearnt:
    return max((no_better[name] for name in sorted(names)), key=lambda one: one.accuracy)


def _nothing(
    settings: StudySettings,
    trials: Sequence[TrialResult],
    stopped: Mapping[str, str],
    best: Unlearnt,
    chance: Chance,
    data: Data,
    log: StudyLog,
) -> NothingLearnt:
    """That no candidate has learnt anything, on disk and in MLflow."""
    num_networks = len({one.candidate.id for one in trials} - {BASELINE})
    confidence = settings.search.confidence
    reason = unlearnt_words(best, chance, num_networks=num_networks, confidence=confidence)
    tried = remedy(settings.recipe, settings.description.num_train, data.val_labels.numpy())
    nothing = NothingLearnt(trials, stopped, best, chance, reason, tried)
    values, files = write_nothing(settings, nothing)
    return replace(nothing, values=values, waiting=log.nothing_learnt(values, files=files))


def _finished(settings: StudySettings, trials: Sequence[TrialResult], name: str) -> list[Evaluation]:
    """The finished evaluations of a candidate, by seed: in which order they came must not matter."""
    mine = [one.outcome for one in trials if one.candidate.id == name and one.outcome.result is not None]
    whole = [one.evaluation for one in mine if one.evaluation.recipe == settings.recipe]
    return sorted(whole, key=lambda evaluation: evaluation.seed)


def _log(settings: StudySettings, session: Session, plan: Plan, data: Data, init: str | None) -> StudyLog:
    """What MLflow shows of the study."""
    params: dict[str, Any] = {
        "baseline": settings.baseline.name,
        "rounding": settings.rounding.name,
        "budget.macs_ratio": settings.budget.macs_ratio,
        "budget.tolerance": settings.budget.tolerance,
        **{f"budget.{name}": limit for name, limit in settings.limits.given().items()},
        "candidates": len(plan.candidates),
        **({} if settings.target is None else {"target.macs_ratio": settings.target_ratio}),
        **({} if init is None else {"init": settings.init, "init.sha256": init}),
        **recipe_params(settings.recipe, settings.seeds),
    }
    return StudyLog(
        session.tracker(),
        command="run",
        name=settings.study,
        directory=settings.directory,
        params=params,
        summary=summary(plan, settings),
        data={settings.data.root or settings.data.name: data},
        files=[settings.directory / "settings.yaml"],
    )
