"""The commands, each top to bottom. `search_and_scale` is section 3.3 of arXiv:1905.11946."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from scalesearch import config, screen, search, study, variants
from scalesearch.config import Experiment
from scalesearch.cost import cost, stage_costs
from scalesearch.data import Data, load
from scalesearch.evaluation import Evaluation, Evaluator
from scalesearch.executor import EXECUTORS, default_workers
from scalesearch.ledger import Ledger, lock_study
from scalesearch.scaling import resize
from scalesearch.screen import Screen
from scalesearch.search import BASELINE, Plan, Trained
from scalesearch.tracking import StudyLog, Tracker, serve, sync
from scalesearch.training import seconds_per_image

if TYPE_CHECKING:
    from omegaconf import DictConfig

DONE, SOME_FAILED, ALL_FAILED = 0, 3, 4


class Infeasible(Exception):  # noqa: N818 - an answer: no network meets the constraints
    """No candidate meets both constraints; the message names the nearest points."""


def search_and_scale(experiment: Experiment, out: Screen, *, retry: bool = False) -> int:
    """`scalesearch run`: the exit code of a whole study, carried out or gone on with."""
    from scalesearch.selection import select  # pandas and scipy: `plan` and `cost` do without

    # The problem (equation 2): a baseline network, a budget on its counted cost, data to be accurate on.
    network, rounding = experiment.proxy_network
    plan = search.candidates(network, experiment.grid, experiment.budget, rounding)
    if not plan.candidates:
        out.answer({"study": experiment.study, "chosen": None, "evaluations": study.counts([])})
    _refuse_infeasible(plan, experiment)
    with lock_study(experiment.directory):
        data = load(experiment.data, log=out.warn)
        with (
            EXECUTORS[experiment.executor_name](**experiment.executor) as executor,
            _opened(experiment, plan, data) as log,
        ):
            evaluator = Evaluator(Ledger(experiment.workspace), executor, experiment.data)
            if retry:
                out.say(f"{study.forget_failures(experiment, plan, data)} failed evaluations are run again")
            out.say(screen.summary(plan, experiment))

            # Step 1: fix phi = 1 and search alpha, beta, gamma on a small grid, by training every candidate.
            trained: list[Trained] = []
            with out.progress(total=_num_evaluations(plan, experiment), slots=evaluator.slots) as progress:
                for one in search.STRATEGIES[experiment.search.strategy](
                    plan,
                    experiment.grid,
                    seeds=range(experiment.seeds),
                    recipe=experiment.recipe,
                    data=data.fingerprint,
                    evaluator=evaluator,
                    storage=search.sqlite(experiment.workspace / "optuna.db"),
                    study=experiment.study,
                ):
                    trained.append(one)
                    log.trained(one, trained)
                    progress.update(trained)
            study.write_trials(experiment, trained)
            if not _any_finished(trained):
                out.warn(_all_failed(trained))
                out.answer({"study": experiment.study, "chosen": None, "evaluations": study.counts(trained)})
                return ALL_FAILED
            choice = select(trained, confidence=experiment.search.confidence)
            chosen = next(candidate for candidate in plan.candidates if candidate.id == choice.chosen)
            test = {name: _test(evaluator, trained, name) for name in (BASELINE, chosen.id)}

            # Step 2: fix alpha, beta, gamma and scale the baseline up with phi (equation 3).
            family = variants.family(
                experiment.baseline, chosen.coefficients, experiment.phis, rounding=experiment.rounding
            )

            # The answer: tables, figures, coefficients and variants, on disk, in MLflow and on the screen.
            answer, files = study.write_answer(experiment, trained, choice, chosen, test, family)
            weights = Ledger(experiment.workspace).weights_path(_finished(trained, chosen.id)[0].key)
            waiting = log.finished(answer, chosen, choice, files=files, weights=weights)
        screen.show_answer(out, experiment, answer, choice)
        if waiting:
            out.warn(waiting)
        out.answer(answer)
    return SOME_FAILED if answer["evaluations"]["failed"] else DONE


def show_plan(experiment: Experiment, out: Screen) -> int:
    """`scalesearch plan`: what `run` would do, with the time that it is expected to take; nothing is trained."""
    network, rounding = experiment.proxy_network
    plan = search.candidates(network, experiment.grid, experiment.budget, rounding)
    evaluations = _num_evaluations(plan, experiment) if plan.candidates else 0
    seconds = _expected_seconds(plan, experiment) if plan.candidates else 0.0
    full = cost(experiment.baseline)
    out.say(screen.summary(plan, experiment))
    if plan.candidates:
        screen.show_candidates(out, plan)
        out.say(
            f"{evaluations} trainings ({len(plan.candidates)} candidates and the 1x network, {experiment.seeds} seeds "
            f"each); expected time on this machine: {screen.duration(seconds)}"
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
            "evaluations": evaluations,
            "estimated_seconds": round(seconds, 1),
        }
    )
    _refuse_infeasible(plan, experiment)
    return DONE


def show_status(question: config.StudyQuestion, out: Screen) -> int:
    """`scalesearch status`: how far a study is."""
    directory = config.find_study(question.workspace, question.study)
    answer = study.status(question.workspace, directory)
    counts, best = answer["evaluations"], answer["best"]
    out.say(
        f"study {answer['study']}: {answer['state']}; {counts['done']} of {counts['total']} evaluations done, "
        f"{counts['failed']} failed"
        + (f"; best so far {best['candidate']} with {100 * best['val_accuracy_mean']:.2f} %" if best else "")
    )
    for failure in answer["failures"]:
        out.say(f"  failed: {failure['candidate']} seed {failure['seed']}: {failure['reason']}")
    if answer["state"] == "interrupted":
        out.say("the same `scalesearch run` command goes on from there")
    elif counts["failed"]:
        out.say("`scalesearch retry` with the same overrides runs the failed ones again")
    out.answer(answer)
    return DONE


def show_variants(question: config.VariantsQuestion, out: Screen) -> int:
    """`scalesearch variants`: the family for coefficients, given or of a study, as table and YAML files."""
    baseline, rounding, coefficients = question.baseline, question.rounding, question.coefficients
    directory = question.workspace / "variants"
    if coefficients is None:
        found = config.find_study(question.workspace, question.study)
        baseline, rounding, coefficients = study.chosen(found)
        directory = found / "variants"
    family = variants.family(baseline, coefficients, question.phis, rounding=rounding)
    variants.write(family, coefficients, directory, rounding=rounding)
    rows = variants.family_rows(family, coefficients, directory)
    screen.show_family(out, baseline.name, coefficients, rounding, rows)
    out.say(f"each loads as a baseline: scalesearch plan --config-dir {directory} baseline={rows[-1]['name']}")
    out.answer({"coefficients": study.point(coefficients), "rounding": rounding.name, "variants": rows})
    return DONE


def show_cost(question: config.CostQuestion, out: Screen) -> int:
    """`scalesearch cost`: a network's cost by stage."""
    network = resize(question.baseline, depth=question.depth, width=question.width, rounding=question.rounding)
    if question.resolution is not None:
        network = replace(network, resolution=question.resolution)
    total, rows = cost(network), dict(network.rows())
    answer = {
        "name": network.name,
        "macs": total.macs,
        "params": total.params,
        "activations": total.activations,
        "depth": question.depth,
        "width": question.width,
        "resolution": network.resolution,
        "blocks": network.depth,
        "rounding": question.rounding.name,
        "stages": [
            {
                "stage": name,
                "block": rows[name].block if name in rows else "linear",
                "repeats": rows[name].repeats if name in rows else 1,
                "channels": rows[name].channels if name in rows else network.num_classes,
                "macs": part.macs,
                "params": part.params,
                "activations": part.activations,
            }
            for name, part in stage_costs(network)
        ],
    }
    screen.show_cost(out, answer)
    out.answer(answer)
    return DONE


def show_ui(question: config.StudyQuestion, out: Screen) -> int:
    """`scalesearch ui`: MLflow's interface on 127.0.0.1, until it is stopped."""
    return serve(
        workspace=question.workspace,
        uri=question.tracking.uri,
        port=question.port,
        study=question.study,
        show=out.say,
    )


def show_sync(question: config.StudyQuestion, out: Screen) -> int:
    """`scalesearch sync`: what has not arrived in MLflow is sent."""
    directory = config.find_study(question.workspace, question.study)
    sent = sync(
        uri=question.tracking.uri,
        workspace=question.workspace,
        study=directory.name,
        directory=directory,
        rebuild=question.rebuild,
    )
    out.say(f"study {directory.name}: {sent} records sent to MLflow")
    return DONE


def _command(
    load_question: Callable[[DictConfig], Any], carry_out: Callable[[Any, Screen], int]
) -> Callable[[DictConfig, bool], int]:
    return lambda composed, as_json: carry_out(load_question(composed), Screen(as_json=as_json))


COMMANDS: dict[str, Callable[[DictConfig, bool], int]] = {
    "run": _command(config.load_experiment, search_and_scale),
    "retry": _command(config.load_experiment, lambda experiment, out: search_and_scale(experiment, out, retry=True)),
    "plan": _command(config.load_experiment, show_plan),
    "status": _command(config.load_study, show_status),
    "variants": _command(config.load_variants, show_variants),
    "cost": _command(config.load_cost, show_cost),
    "ui": _command(config.load_study, show_ui),
    "sync": _command(config.load_study, show_sync),
}


def _refuse_infeasible(plan: Plan, experiment: Experiment) -> None:
    if plan.candidates:
        return
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


def _num_evaluations(plan: Plan, experiment: Experiment) -> int:
    return (len(plan.candidates) + 1) * experiment.seeds


def _expected_seconds(plan: Plan, experiment: Experiment) -> float:
    """Seconds of the whole search, from timing a few steps of two of its networks in this process."""
    threads = int(experiment.executor["threads"])
    workers = int(experiment.executor["workers"] or 0) or max(1, default_workers() // threads)
    middle = sorted(plan.candidates, key=lambda candidate: candidate.network.depth)[len(plan.candidates) // 2]
    timed = (plan.baseline, middle)
    per_mac = sum(
        seconds_per_image(c.network, experiment.recipe, threads=threads, budget_seconds=0.3) / c.cost.macs
        for c in timed
    ) / len(timed)
    # Scoring an image is a forward pass, a third of a training step.
    images = experiment.description.num_train * experiment.recipe.epochs + experiment.description.num_val / 3
    macs = sum(candidate.cost.macs for candidate in (plan.baseline, *plan.candidates)) * experiment.seeds
    overhead = 15.0  # workers that import torch, the test split, figures, what MLflow still has to write
    return per_mac * images * macs / min(workers, _num_evaluations(plan, experiment)) + overhead


def _opened(experiment: Experiment, plan: Plan, data: Data) -> StudyLog:
    """The study's directory, made or found to be that of the same search, and what MLflow is told of it."""
    study.open_study(experiment, plan, data)
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
        params={
            "baseline": experiment.baseline.name,
            "rounding": experiment.rounding.name,
            "budget.macs_ratio": experiment.budget.macs_ratio,
            "budget.tolerance": experiment.budget.tolerance,
            "candidates": len(plan.candidates),
            **{f"recipe.{key}": value for key, value in asdict(experiment.recipe).items()},
        },
        summary=screen.summary(plan, experiment),
        data=data,
        source=experiment.data.root or experiment.data.name,
    )


def _finished(trained: Sequence[Trained], name: str) -> list[Evaluation]:
    """The finished evaluations of a candidate, by seed: in which order they came must not matter."""
    finished = [t.outcome.evaluation for t in trained if t.candidate.id == name and t.outcome.result is not None]
    return sorted(finished, key=lambda evaluation: evaluation.seed)


def _any_finished(trained: Sequence[Trained]) -> bool:
    return any(one.outcome.result is not None for one in trained if one.candidate.id != BASELINE)


def _all_failed(trained: Sequence[Trained]) -> str:
    reasons = [one.outcome.reason for one in trained if one.outcome.result is None]
    return (
        f"every candidate failed ({len(reasons)} evaluations); the first: {reasons[0]}. "
        "When the cause is mended: scalesearch retry, with the same overrides"
    )


def _test(evaluator: Evaluator, trained: Sequence[Trained], name: str) -> dict[str, Any]:
    """Test accuracy over the seeds that finished. Called for the choice and the 1x network, and for nothing else."""
    values = [row["test_accuracy"] for row in evaluator.test(_finished(trained, name))]
    return {
        "mean": statistics.fmean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "seeds": len(values),
    }
