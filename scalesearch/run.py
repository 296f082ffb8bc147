"""The search, top to bottom: `search_and_scale` is section 3.3 of arXiv:1905.11946; `show_plan` is what it would do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scalesearch import pretrained, screen, search, study, variants
from scalesearch.budget import Profiler
from scalesearch.config import StudySettings
from scalesearch.cost import cost
from scalesearch.data import Data, load
from scalesearch.evaluation import Evaluation, Evaluator, Work, mixed_precision
from scalesearch.executor import EXECUTORS
from scalesearch.ledger import Ledger, lock_study
from scalesearch.network import AnyNetwork
from scalesearch.screen import Screen
from scalesearch.search import BASELINE, Plan, Stopped, TrialResult
from scalesearch.tracking import StudyLog, Tracker

DONE, SOME_FAILED, ALL_FAILED = 0, 3, 4


class Infeasible(Exception):  # noqa: N818 - an answer: no network meets the constraints
    """No candidate meets both constraints; the message names the nearest points."""


def search_and_scale(experiment: StudySettings, out: Screen, *, retry: bool = False) -> int:
    """`scalesearch run`: the exit code of a whole study, carried out or gone on with."""
    from scalesearch import report  # pandas and scipy: `plan` and `cost` do without
    from scalesearch.selection import select

    # The problem (equation 2): a baseline network, a budget on its counted cost, data to be accurate on.
    plan, meter = _plan(experiment)
    if not plan.candidates:
        out.answer({"study": experiment.study, "chosen": None, "evaluations": study.counts([])})
    _refuse_infeasible(plan, experiment)
    _refuse_unmeasured(plan, experiment.selection.metric)
    networks = [candidate.network for candidate in (plan.baseline, *plan.candidates)]
    bases = (experiment.baseline, plan.baseline.network)
    init = initial_weights(experiment.init, bases, networks, experiment.workspace, out)
    with lock_study(experiment.directory):
        data = load(experiment.data, log=out.warn)
        with (
            EXECUTORS[experiment.executor_name](**experiment.executor) as executor,
            _opened(experiment, plan, data, init) as log,
        ):
            ledger = Ledger(experiment.workspace)
            evaluator = Evaluator(ledger, executor, experiment.data)
            if retry:
                may_be_asked = (evaluation for _, evaluation in study.possible(plan, experiment, data, init))
                out.say(f"{study.forget_failures(ledger, may_be_asked)} failed evaluations are run again")
            lookahead = experiment.search.strategy.lookahead
            if lookahead is not None and lookahead < evaluator.slots:
                out.warn(
                    f"{evaluator.slots} trainings can run at a time, and search.lookahead={lookahead} lets so many be "
                    f"asked for: the rest waits; search.lookahead={evaluator.slots + 1} would keep all busy"
                )
            out.say(screen.summary(plan, experiment))

            # Step 1: fix phi = 1 and search alpha, beta, gamma on a small grid, by training candidates.
            trained: list[TrialResult] = []
            stopped: dict[str, str] = {}
            with out.progress(total=_num_evaluations(plan, experiment), slots=evaluator.slots) as progress:
                for one in search.carry_out(
                    plan,
                    experiment.grid,
                    strategy=experiment.search.strategy,
                    seeds=experiment.seeds,
                    recipe=experiment.recipe,
                    data=data.fingerprint,
                    init=init,
                    evaluator=evaluator,
                    storage=search.sqlite(experiment.workspace / "optuna.db"),
                    study=experiment.study,
                ):
                    if isinstance(one, Stopped):
                        stopped[one.candidate.id] = one.reason
                        log.stopped(one)
                        progress.stopped(one)
                    else:
                        trained.append(one)
                        study.record_asked(experiment, one)
                        log.trained(one, trained)
                        progress.update(trained)
            study.write_trials(experiment, trained, stopped)
            whole = [one for one in trained if one.outcome.evaluation.recipe == experiment.recipe]
            if not _any_finished(whole, stopped):
                out.warn(_all_failed(trained))
                counts = study.counts([one.outcome for one in trained])
                out.answer({"study": experiment.study, "chosen": None, "evaluations": counts})
                return ALL_FAILED
            choice = select(
                whole,
                confidence=experiment.search.confidence,
                rule=experiment.selection.rule,
                metric=experiment.selection.metric,
                contenders=_contenders(whole, stopped),
                macs_ratio=experiment.budget.macs_ratio,
            )
            chosen = next(candidate for candidate in plan.candidates if candidate.id == choice.chosen)
            test = {name: test_accuracy(evaluator, _finished(whole, name)) for name in (BASELINE, chosen.id)}

            # Step 2: fix alpha, beta, gamma and scale the baseline up with phi (equation 3).
            family = variants.family(
                experiment.baseline, chosen.coefficients, experiment.phis, rounding=experiment.rounding
            )
            family = variants.measured(family, meter)

            # The answer: tables, figures, coefficients and variants, on disk, in MLflow and on the screen.
            answer, files = study.write_answer(experiment, trained, stopped, choice, chosen, test, family)
            files.append(report.write(report.read(experiment.workspace, experiment.directory), experiment.directory))
            weights = ledger.weights_path(_finished(whole, chosen.id)[0].key)
            waiting = log.finished(answer, chosen, choice, files=files, weights=weights)
        screen.show_answer(out, experiment, answer, choice)
        if (mixed := mixed_precision(one.outcome for one in whole)) is not None:
            out.warn(mixed)
        if waiting:
            out.warn(waiting)
        out.answer(answer)
    return SOME_FAILED if answer["evaluations"]["failed"] else DONE


def show_plan(experiment: StudySettings, out: Screen) -> int:
    """`scalesearch plan`: what `run` would do, with the time that it is expected to take; nothing is trained."""
    plan, _ = _plan(experiment)
    evaluations = _num_evaluations(plan, experiment) if plan.candidates else 0
    seconds = _expected_seconds(plan, experiment) if plan.candidates else 0.0
    full = cost(experiment.baseline)
    out.say(screen.summary(plan, experiment))
    if plan.candidates:
        screen.show_candidates(out, plan)
        out.say(
            f"about {evaluations} trainings by search={experiment.search.name} ({len(plan.candidates)} candidates and "
            f"the 1x network); expected time on this machine: {screen.duration(seconds)}"
        )
    out.answer(
        {
            "study": experiment.study,
            "baseline": study.candidate_values(plan.baseline) | {"name": experiment.baseline.name},
            "full_baseline": {
                "name": experiment.baseline.name,
                "macs": full.macs,
                "params": full.params,
                "activations": full.activations,
                "depth": experiment.baseline.depth,
                "resolution": experiment.baseline.resolution,
            },
            "grid": {
                "points": plan.points,
                "product": float(experiment.grid.product),
                "product_tolerance": float(experiment.grid.product_tolerance),
            },
            "dropped": plan.dropped,
            "merged": sum(len(candidate.triples) - 1 for candidate in plan.candidates),
            "candidates": [study.candidate_values(candidate) for candidate in plan.candidates],
            "nearest": [study.point(coefficients, ratio) for coefficients, ratio in plan.nearest],
            "limits": experiment.limits.given(),
            "excess": [study.point(one) | {"metric": metric, "share": share} for one, share, metric in plan.excess],
            "evaluations": evaluations,
            "estimated_seconds": round(seconds, 1),
        }
    )
    _refuse_infeasible(plan, experiment)
    return DONE


def initial_weights(
    source: str | None, bases: Sequence[AnyNetwork], networks: Sequence[AnyNetwork], workspace: Path, out: Screen
) -> str | None:
    """The digest of the weights that all of `networks` start from, kept in the workspace; what does not fit is said."""
    if source is None:
        return None
    weights = pretrained.fetch(source, bases, warn=out.warn)
    first, *others = (pretrained.fit(weights.tensors, network) for network in networks)
    if not first.taken:
        raise ValueError(
            f"init={source}: {networks[0].name} as it is trained here has no layer of that shape ({first}); "
            "proxy=none and a width of 1 keep the shapes"
        )
    out.say(f"init={source}: of {networks[0].name} {first}")
    if others:
        shares = [fit.taken / fit.layers for fit in others]
        out.say(f"of the candidates {100 * min(shares):.0f} to {100 * max(shares):.0f} % of the layers do")
    Ledger(workspace).keep_initial(weights.digest, weights.content)
    return weights.digest


def test_accuracy(evaluator: Evaluator, finished: Sequence[Evaluation]) -> dict[str, Any]:
    """Test accuracy over the seeds that finished. A search asks for the choice and the 1x network, and for no other."""
    values = [row["test_accuracy"] for row in evaluator.test(finished)]
    return {
        "mean": statistics.fmean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "seeds": len(values),
    }


def _plan(experiment: StudySettings) -> tuple[Plan, Profiler]:
    """The plan with what its networks need: measured now, before workers make the machine busy."""
    meter = Profiler(batch_size=experiment.recipe.batch_size, workspace=experiment.workspace)
    real = search.Real(experiment.baseline, experiment.rounding, experiment.limits, meter)
    network, rounding = experiment.proxy_network
    plan = search.candidates(
        network, experiment.grid, experiment.budget, rounding, real=real, solve_gamma=experiment.search.solves_gamma
    )
    return (search.measured(plan, meter) if plan.candidates else plan), meter


def _refuse_infeasible(plan: Plan, experiment: StudySettings) -> None:
    if plan.candidates:
        return
    if plan.excess:
        raise Infeasible(screen.excess_words(plan, experiment))
    budget = experiment.budget
    if not plan.nearest:
        raise Infeasible(
            f"none of the {plan.points} points of the grid has a product nearer than "
            f"{experiment.grid.product_tolerance} to {experiment.grid.product}. "
            "Raise grid.product_tolerance, or widen an axis or lower its step"
        )
    nearest = "; ".join(
        f"{ratio:.3f} x (alpha={c.alpha:g}, beta={c.beta:g}, gamma={c.gamma:g})" for c, ratio in plan.nearest
    )
    raise Infeasible(
        f"no candidate is within {100 * budget.tolerance:g} % of {budget.macs_ratio:g} x the counted multiply-adds of "
        f"the 1x network; the nearest: {nearest}. Raise budget.tolerance, or lower a step of the grid"
    )


def _refuse_unmeasured(plan: Plan, metric: str) -> None:
    """Before training: a choice by what no candidate was measured in could not be made after it."""
    if all(candidate.sizes().get(metric, 0) is None for candidate in plan.candidates):
        raise ValueError(
            f"selection.metric is {metric!r}, but the candidates are too large to be measured in it here; choose by "
            "another one, such as selection.metric=macs"
        )


def _num_evaluations(plan: Plan, experiment: StudySettings) -> int:
    """About how many trainings there will be, the 1x network's among them."""
    return experiment.seeds + sum(number for number, _ in study.expected(plan, experiment))


def _expected_seconds(plan: Plan, experiment: StudySettings) -> float:
    """Seconds of the whole search, from timing its networks in workers as it would train them."""
    sizes, recipe = experiment.description, experiment.recipe
    whole = sum(number * share for number, share in study.expected(plan, experiment)) / len(plan.candidates)
    work = [Work(candidate.network, recipe, sizes, whole) for candidate in plan.candidates]
    work.append(Work(plan.baseline.network, recipe, sizes, experiment.seeds))
    with EXECUTORS[experiment.executor_name](**experiment.executor) as executor:
        trainings = Evaluator(Ledger(experiment.workspace), executor, experiment.data).expected_seconds(work)
    return _STARTS * _CPU_SECONDS_TO_IMPORT + trainings


# Starting workers, the test split, figures and MLflow take about as long as so many starts of this program.
_STARTS = 12.0
_CPU_SECONDS_TO_IMPORT = time.process_time()  # how fast this machine is at it


def _opened(experiment: StudySettings, plan: Plan, data: Data, init: str | None) -> StudyLog:
    """The study's directory, made or found to be that of the same search, and what MLflow is told of it."""
    study.open_study(experiment, plan, data, init)
    tracker = Tracker(
        uri=experiment.tracking.uri,
        workspace=experiment.workspace,
        study=experiment.study,
        directory=experiment.directory,
        replay=experiment.tracking.name == "mlflow",
    )
    return StudyLog(
        tracker,
        study=experiment.study,
        directory=experiment.directory,
        seeds=experiment.seeds,
        epochs=experiment.recipe.epochs,
        params={
            "baseline": experiment.baseline.name,
            "rounding": experiment.rounding.name,
            "budget.macs_ratio": experiment.budget.macs_ratio,
            "budget.tolerance": experiment.budget.tolerance,
            **{f"budget.{name}": limit for name, limit in experiment.limits.given().items()},
            "candidates": len(plan.candidates),
            **({} if init is None else {"init": experiment.init, "init.sha256": init}),
            **{f"recipe.{key}": value for key, value in asdict(experiment.recipe).items()},
        },
        summary=screen.summary(plan, experiment),
        data=data,
        source=experiment.data.root or experiment.data.name,
    )


def _finished(trained: Sequence[TrialResult], name: str) -> list[Evaluation]:
    """The finished evaluations of a candidate, by seed: in which order they came must not matter."""
    finished = [t.outcome.evaluation for t in trained if t.candidate.id == name and t.outcome.result is not None]
    return sorted(finished, key=lambda evaluation: evaluation.seed)


def _contenders(trained: Sequence[TrialResult], stopped: Mapping[str, str]) -> list[str]:
    """The candidates that may be chosen."""
    return sorted({one.candidate.id for one in trained} - {BASELINE} - stopped.keys())


def _any_finished(trained: Sequence[TrialResult], stopped: Mapping[str, str]) -> bool:
    contenders = _contenders(trained, stopped)
    return any(one.outcome.result is not None for one in trained if one.candidate.id in contenders)


def _all_failed(trained: Sequence[TrialResult]) -> str:
    reasons = [one.outcome.reason for one in trained if one.outcome.result is None]
    return (
        f"every candidate failed ({len(reasons)} evaluations); the first: {reasons[0]}. "
        "When the cause is mended: scalesearch retry, with the same overrides"
    )
