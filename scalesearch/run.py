"""The commands, each top to bottom. `search_and_scale` is section 3.3 of arXiv:1905.11946."""

from __future__ import annotations

import datetime
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from scalesearch import config, search, variants
from scalesearch.config import Experiment
from scalesearch.cost import cost, stage_costs
from scalesearch.data import Data, load
from scalesearch.evaluation import Evaluation, Evaluator
from scalesearch.executor import EXECUTORS
from scalesearch.figures import draw_all
from scalesearch.ledger import Ledger, is_locked, lock_study, write_atomic
from scalesearch.scaling import Coefficients, Rounding, resize
from scalesearch.screen import Screen, count, duration
from scalesearch.search import BASELINE, Candidate, Plan, Trained
from scalesearch.selection import Choice, select, trials_table
from scalesearch.tracking import Tracker, serve, sync
from scalesearch.training import seconds_per_image

if TYPE_CHECKING:
    from omegaconf import DictConfig

DONE, SOME_FAILED, ALL_FAILED = 0, 3, 4


class Infeasible(Exception):  # noqa: N818 - an answer: no network meets the constraints
    """No candidate meets both constraints; the message names the nearest points."""


def search_and_scale(experiment: Experiment, screen: Screen, *, retry: bool = False) -> int:
    """`scalesearch run`: the exit code of a whole study, carried out or gone on with."""
    # The problem (equation 2): a baseline network, a budget on its counted cost, data to be accurate on.
    network, rounding = experiment.proxy_network
    plan = search.candidates(network, experiment.grid, experiment.budget, rounding)
    _refuse_infeasible(plan, experiment)
    with lock_study(experiment.directory):
        data = load(experiment.data, log=screen.warn)
        _open_directory(experiment, plan, data)
        with _evaluator(experiment) as evaluator, _Log(experiment, plan, data) as log:
            # Step 1: fix phi = 1 and search alpha, beta, gamma on a small grid, by training every candidate.
            screen.say(_summary(plan, experiment))
            if retry:
                screen.say(f"{_forget_failures(experiment, plan, data)} failed evaluations are run again")
            trained: list[Trained] = []
            with screen.progress(total=_num_evaluations(plan, experiment), slots=evaluator.slots) as progress:
                for one in search.grid(
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
                    progress.update(**_progress(trained))
            trials = trials_table(trained)
            _write_csv(trials, experiment.directory / "trials.csv")
            if not any(one.outcome.result for one in trained if one.candidate.id != BASELINE):
                return _all_failed(trials, screen, log)
            choice = select(trained, confidence=experiment.search.confidence)
            chosen = next(candidate for candidate in plan.candidates if candidate.id == choice.chosen)
            test = _test(evaluator, trained, (BASELINE, choice.chosen))

            # Step 2: fix alpha, beta, gamma and scale the baseline up with phi (equation 3).
            family = variants.family(
                experiment.baseline, chosen.coefficients, experiment.phis, rounding=experiment.rounding
            )

            # The answer: tables, figures, coefficients and variants, on the screen, on disk and in MLflow.
            answer = _write_answer(experiment, choice, chosen, family, test, trained)
            waiting = log.finished(answer, chosen, choice, trained)
        _show_answer(answer, choice, family, experiment, screen)
        if waiting:
            screen.warn(waiting)
        screen.answer(answer)
    return SOME_FAILED if answer["evaluations"]["failed"] else DONE


def show_plan(experiment: Experiment, screen: Screen) -> int:
    """`scalesearch plan`: what `run` would do, with the time that it is expected to take; nothing is trained."""
    network, rounding = experiment.proxy_network
    plan = search.candidates(network, experiment.grid, experiment.budget, rounding)
    seconds = _expected_seconds(plan, experiment) if plan.candidates else 0.0
    full = cost(experiment.baseline)
    screen.say(_summary(plan, experiment))
    if plan.candidates:
        rows = [_candidate_row(candidate) for candidate in (plan.baseline, *plan.candidates)]
        screen.table("Candidates", rows, _CANDIDATE_COLUMNS)
        screen.say(
            f"{_num_evaluations(plan, experiment)} trainings ({len(plan.candidates)} candidates and the 1x network, "
            f"{experiment.seeds} seeds each); expected time on this machine: {duration(seconds)}"
        )
    screen.answer(
        {
            "study": experiment.study,
            "baseline": _candidate_values(plan.baseline) | {"name": experiment.baseline.name},
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
            "candidates": [_candidate_values(candidate) for candidate in plan.candidates],
            "nearest": [_point(coefficients, ratio) for coefficients, ratio in plan.nearest],
            "evaluations": _num_evaluations(plan, experiment) if plan.candidates else 0,
            "estimated_seconds": round(seconds, 1),
        }
    )
    _refuse_infeasible(plan, experiment)
    return DONE


def show_status(question: config.StudyQuestion, screen: Screen) -> int:
    """`scalesearch status`: how far a study is, from the ledger alone; a running one is not disturbed."""
    directory = config.find_study(question.workspace, question.study)
    planned = json.loads((directory / "evaluations.json").read_text())
    ledger = Ledger(question.workspace)
    done, failed, accuracies = 0, [], dict[str, list[float]]()
    for row in planned["evaluations"]:
        record = ledger.get(row["key"])
        if record is not None and record["state"] == "finished":
            done += 1
            accuracies.setdefault(row["candidate"], []).append(record["result"]["val_accuracy"])
        elif record is not None:
            failed.append({"candidate": row["candidate"], "seed": row["seed"], "reason": record["reason"]})
    total = len(planned["evaluations"])
    alive = is_locked(directory)
    complete = done + len(failed) == total and (directory / "result.json").exists()
    state = "running" if alive else "finished" if complete else "interrupted"
    means = {name: statistics.fmean(values) for name, values in accuracies.items() if name != BASELINE}
    best = max(means, key=lambda name: means[name]) if means else None
    screen.say(
        f"study {directory.name}: {state}; {done} of {total} evaluations done, {len(failed)} failed"
        + (f"; best so far {best} with {100 * means[best]:.2f} %" if best else "")
    )
    for failure in failed:
        screen.say(f"  failed: {failure['candidate']} seed {failure['seed']}: {failure['reason']}")
    if state == "interrupted":
        screen.say("the same `scalesearch run` command goes on from there")
    elif failed:
        screen.say("`scalesearch retry` with the same overrides runs the failed ones again")
    screen.answer(
        {
            "study": directory.name,
            "state": state,
            "evaluations": {"total": total, "done": done, "failed": len(failed), "left": total - done - len(failed)},
            "failures": failed,
            "best": {"candidate": best, "val_accuracy_mean": means[best]} if best else None,
            "directory": str(directory),
        }
    )
    return DONE


def show_variants(question: config.VariantsQuestion, screen: Screen) -> int:
    """`scalesearch variants`: the family for coefficients, given or of a study, as table and YAML files."""
    baseline, rounding, coefficients = question.baseline, question.rounding, question.coefficients
    directory = question.workspace / "variants"
    if coefficients is None:
        study = config.find_study(question.workspace, question.study)
        if not (study / "coefficients.yaml").exists():
            raise ValueError(f"study {study.name!r} has not come to a choice yet; see: scalesearch status")
        settings = config.from_yaml(study / "settings.yaml")
        chosen = config.from_yaml(study / "coefficients.yaml")
        baseline, rounding = config.load_baseline(settings), Rounding(**settings["rounding"])
        coefficients = Coefficients(chosen["alpha"], chosen["beta"], chosen["gamma"])
        directory = study / "variants"
    family = variants.family(baseline, coefficients, question.phis, rounding=rounding)
    variants.write(family, coefficients, directory, rounding=rounding)
    table = variants.family_table(family, coefficients, directory)
    screen.table(_family_title(baseline.name, coefficients, rounding), *_family_rows(table))
    screen.say(f"written to {directory}; each loads as a baseline")
    screen.answer(
        {
            "coefficients": _point(coefficients, None),
            "rounding": rounding.name,
            "variants": table.to_dict("records"),
        }
    )
    return DONE


def show_cost(question: config.CostQuestion, screen: Screen) -> int:
    """`scalesearch cost`: a network's cost by stage."""
    network = resize(question.baseline, depth=question.depth, width=question.width, rounding=question.rounding)
    if question.resolution is not None:
        network = replace(network, resolution=question.resolution)
    total = cost(network)
    rows = dict(network.rows())
    stages = [
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
    ]
    shown = [row | {"share": f"{100 * row['macs'] / total.macs:.1f} %"} for row in stages]
    columns = {
        **{key: key for key in ("stage", "block", "repeats", "channels")},
        **{"macs": "multiply-adds", "share": "share", "params": "params", "activations": "activations"},
    }
    formatted = [row | {key: f"{row[key]:,}" for key in ("macs", "params", "activations")} for row in shown]
    screen.table(f"{network.name} at {network.resolution} px", formatted, columns)
    screen.say(
        f"{total.macs:,} multiply-adds, {total.params:,} params, {total.activations:,} activations, "
        f"{network.depth} blocks, rounding {question.rounding.name}"
    )
    screen.answer(
        {
            "name": network.name,
            "macs": total.macs,
            "params": total.params,
            "activations": total.activations,
            "depth": question.depth,
            "width": question.width,
            "resolution": network.resolution,
            "blocks": network.depth,
            "rounding": question.rounding.name,
            "stages": stages,
        }
    )
    return DONE


def show_ui(question: config.StudyQuestion, screen: Screen) -> int:
    """`scalesearch ui`: MLflow's interface on 127.0.0.1, until it is stopped."""
    return serve(
        workspace=question.workspace,
        uri=question.tracking.uri,
        port=question.port,
        study=question.study,
        show=screen.say,
    )


def show_sync(question: config.StudyQuestion, screen: Screen) -> int:
    """`scalesearch sync`: what has not arrived in MLflow is sent."""
    directory = config.find_study(question.workspace, question.study)
    sent = sync(
        uri=question.tracking.uri,
        workspace=question.workspace,
        study=directory.name,
        directory=directory,
        rebuild=question.rebuild,
    )
    screen.say(f"study {directory.name}: {sent} records sent to MLflow")
    return DONE


def _command(
    load_question: Callable[[DictConfig], Any], carry_out: Callable[[Any, Screen], int]
) -> Callable[[DictConfig, bool], int]:
    return lambda composed, as_json: carry_out(load_question(composed), Screen(as_json=as_json))


COMMANDS: dict[str, Callable[[DictConfig, bool], int]] = {
    "run": _command(config.load_experiment, search_and_scale),
    "retry": _command(
        config.load_experiment, lambda experiment, screen: search_and_scale(experiment, screen, retry=True)
    ),
    "plan": _command(config.load_experiment, show_plan),
    "status": _command(config.load_study, show_status),
    "variants": _command(config.load_variants, show_variants),
    "cost": _command(config.load_cost, show_cost),
    "ui": _command(config.load_study, show_ui),
    "sync": _command(config.load_study, show_sync),
}


# The plan.


def _refuse_infeasible(plan: Plan, experiment: Experiment) -> None:
    if plan.candidates:
        return
    budget = experiment.budget
    if not plan.nearest:
        raise Infeasible(
            f"none of the {plan.points} points of the grid has a product within {experiment.grid.product_tolerance} "
            f"of {experiment.grid.product}. Raise grid.product_tolerance, or widen an axis or lower its step"
        )
    nearest = "; ".join(
        f"{ratio:.3f} x (alpha={c.alpha:g}, beta={c.beta:g}, gamma={c.gamma:g})" for c, ratio in plan.nearest
    )
    raise Infeasible(
        f"no candidate is within {100 * budget.tolerance:g} % of {budget.macs_ratio:g} x the counted multiply-adds of "
        f"the 1x network; the nearest: {nearest}. Raise budget.tolerance, or lower a step of the grid"
    )


def _summary(plan: Plan, experiment: Experiment) -> str:
    triples = sum(len(candidate.triples) for candidate in plan.candidates)
    budget, grid = experiment.budget, experiment.grid
    network = plan.baseline.network
    impossible = plan.dropped["impossible"]
    return "\n".join(
        [
            f"study {experiment.study}",
            f"1x network: {experiment.baseline.name} as a proxy of {network.depth} blocks at {network.resolution} px, "
            f"{count(plan.baseline.cost.macs)} multiply-adds, {count(plan.baseline.cost.params)} params",
            f"{plan.points} points of the grid; dropped: {plan.dropped['product']} whose product is not within "
            f"{grid.product_tolerance} of {grid.product}, {plan.dropped['budget']} whose counted cost is not within "
            f"{100 * budget.tolerance:g} % of {budget.macs_ratio:g} x"
            + (f", {impossible} that no network can have" if impossible else ""),
            f"{triples} triples are left, which are {len(plan.candidates)} different networks",
        ]
    )


def _num_evaluations(plan: Plan, experiment: Experiment) -> int:
    return (len(plan.candidates) + 1) * experiment.seeds


def _expected_seconds(plan: Plan, experiment: Experiment) -> float:
    """Seconds of the whole search, from timing a few steps of three of its networks in this process."""
    from scalesearch.executor import default_workers

    ranked = sorted(plan.candidates, key=lambda candidate: candidate.network.depth)
    timed = {c.id: c for c in (ranked[0], ranked[len(ranked) // 2], ranked[-1])}
    began = time.perf_counter()
    measured = [
        seconds_per_image(c.network, experiment.recipe, budget_seconds=0.4) / c.cost.macs for c in timed.values()
    ]
    per_mac = statistics.fmean(measured)
    images = experiment.description.num_train * experiment.recipe.epochs + experiment.description.num_val / 3
    macs = sum(candidate.cost.macs for candidate in (plan.baseline, *plan.candidates)) * experiment.seeds
    workers = experiment.executor["workers"] or max(1, default_workers() // experiment.executor["threads"])
    start = 2 * (time.perf_counter() - began) + 8  # workers that import torch; test split, figures, MLflow at the end
    return per_mac * images * macs / min(workers, _num_evaluations(plan, experiment)) + start


def _candidate_values(candidate: Candidate) -> dict[str, Any]:
    return {
        "id": candidate.id,
        "triples": [[t.alpha, t.beta, t.gamma] for t in candidate.triples],
        "product": round(candidate.coefficients.product, 6),
        "macs": candidate.cost.macs,
        "macs_ratio": candidate.ratio,
        "params": candidate.cost.params,
        "activations": candidate.cost.activations,
        "depth": candidate.network.depth,
        "resolution": candidate.network.resolution,
    }


def _point(coefficients: Coefficients, ratio: float | None) -> dict[str, float]:
    values = {"alpha": coefficients.alpha, "beta": coefficients.beta, "gamma": coefficients.gamma}
    values["product"] = round(coefficients.product, 6)
    return values if ratio is None else values | {"macs_ratio": ratio}


_COEFFICIENT_COLUMNS = {
    "candidate": "network",
    "alpha": "alpha (depth)",
    "beta": "beta (width)",
    "gamma": "gamma (resolution)",
    "product": "nominal product",
    "macs_ratio": "counted ratio",
    "macs": "multiply-adds",
}
_CANDIDATE_COLUMNS = _COEFFICIENT_COLUMNS | {"params": "params", "depth": "blocks", "resolution": "px", "also": "also"}


def _candidate_row(candidate: Candidate) -> dict[str, str]:
    coefficients = candidate.coefficients
    return {
        "candidate": candidate.id,
        "alpha": f"{coefficients.alpha:g}",
        "beta": f"{coefficients.beta:g}",
        "gamma": f"{coefficients.gamma:g}",
        "product": f"{coefficients.product:.3f}",
        "macs_ratio": f"{candidate.ratio:.3f}",
        "macs": count(candidate.cost.macs),
        "params": count(candidate.cost.params),
        "depth": str(candidate.network.depth),
        "resolution": str(candidate.network.resolution),
        "also": "; ".join(f"{t.alpha:g}, {t.beta:g}, {t.gamma:g}" for t in candidate.triples[1:]),
    }


# The study's directory and its workers.


def _open_directory(experiment: Experiment, plan: Plan, data: Data) -> None:
    """Make the study's directory, or see that the one that is there belongs to the same search."""
    path = experiment.directory / "settings.yaml"
    if path.exists():
        before = config.decisive_settings(config.from_yaml(path))
        now = config.decisive_settings(experiment.settings)
        differing = [key for key in now if before.get(key) != now[key]]
        if differing:
            raise ValueError(
                f"study {experiment.study!r} was begun with other settings ({', '.join(differing)}); choose another "
                f"name with study=NAME, or none: what is trained already is shared either way"
            )
    write_atomic(path, config.to_yaml(experiment.settings).encode())
    rows = [
        {"candidate": candidate.id, "seed": evaluation.seed, "key": evaluation.key}
        for candidate, evaluation in _evaluations(plan, experiment, data)
    ]
    write_atomic(experiment.directory / "evaluations.json", json.dumps({"evaluations": rows}, indent=1).encode())


def _evaluations(plan: Plan, experiment: Experiment, data: Data) -> Iterator[tuple[Candidate, Evaluation]]:
    for candidate in (plan.baseline, *plan.candidates):
        for seed in range(experiment.seeds):
            yield candidate, Evaluation(candidate.network, experiment.recipe, data.fingerprint, seed)


def _forget_failures(experiment: Experiment, plan: Plan, data: Data) -> int:
    ledger, forgotten = Ledger(experiment.workspace), 0
    for _, evaluation in _evaluations(plan, experiment, data):
        record = ledger.get(evaluation.key)
        if record is not None and record["state"] == "failed":
            ledger.remove(evaluation.key)
            forgotten += 1
    return forgotten


@contextmanager
def _evaluator(experiment: Experiment) -> Iterator[Evaluator]:
    with EXECUTORS[experiment.executor_name](**experiment.executor) as executor:
        yield Evaluator(Ledger(experiment.workspace), executor, experiment.data)


def _test(evaluator: Evaluator, trained: Sequence[Trained], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Test accuracy, mean and standard deviation over seeds, of the choice and the 1x network and nothing else."""
    answers = {}
    for name in names:
        finished = [t.outcome.evaluation for t in trained if t.candidate.id == name and t.outcome.result is not None]
        values = [row["test_accuracy"] for row in evaluator.test(finished)]
        answers[name] = {
            "mean": statistics.fmean(values) if values else None,
            "std": statistics.stdev(values) if len(values) > 1 else None,
            "seeds": len(values),
        }
    return answers


def _progress(trained: Sequence[Trained]) -> dict[str, Any]:
    failed = sum(one.outcome.result is None for one in trained)
    reused = sum(one.outcome.reused and one.outcome.result is not None for one in trained)
    by_candidate: dict[str, list[float]] = {}
    for one in trained:
        if one.outcome.result is not None and one.candidate.id != BASELINE:
            by_candidate.setdefault(one.candidate.id, []).append(one.outcome.result.val_accuracy)
    means = {name: statistics.fmean(values) for name, values in by_candidate.items()}
    best = max(means, key=lambda name: means[name]) if means else None
    last = trained[-1]
    said = f"{100 * last.outcome.result.val_accuracy:.2f} %" if last.outcome.result else "failed"
    return {
        "trained": len(trained) - failed - reused,
        "reused": reused,
        "failed": failed,
        "best": f"{best} {100 * means[best]:.2f} %" if best else "",
        "last": f"{last.candidate.id} seed {last.outcome.evaluation.seed}: {said}",
    }


# The answer.


def _write_answer(
    experiment: Experiment,
    choice: Choice,
    chosen: Candidate,
    family: Sequence[variants.Variant],
    test: Mapping[str, Mapping[str, Any]],
    trained: Sequence[Trained],
) -> dict[str, Any]:
    """Write tables, coefficients, variants and figures into the study's directory; what `run --json` prints."""
    directory, coefficients = experiment.directory, chosen.coefficients
    variants.write(family, coefficients, directory / "variants", rounding=experiment.rounding)
    table = variants.family_table(family, coefficients, directory / "variants")
    _write_csv(choice.candidates, directory / "candidates.csv")
    _write_csv(choice.comparisons, directory / "comparisons.csv")
    _write_csv(table, directory / "family.csv")
    write_atomic(
        directory / "coefficients.yaml",
        config.to_yaml(
            {
                "alpha": coefficients.alpha,
                "beta": coefficients.beta,
                "gamma": coefficients.gamma,
                "rounding": experiment.rounding.name,
                "study": experiment.study,
                "tied": {row["candidate"]: row["triples"] for row in _tied(choice)},
            }
        ).encode(),
    )
    title = experiment.study
    draw_all({"candidates": choice.candidates, "family": table}, directory / "figures", title=title)
    rows = {row["candidate"]: row for row in choice.candidates.to_dict("records")}

    def scores(name: str) -> dict[str, Any]:
        row = rows[name]
        return {
            "val_accuracy_mean": _finite(row["val_accuracy_mean"]),
            "val_accuracy_std": _finite(row["val_accuracy_std"]),
            "val_accuracy_low": _finite(row["val_accuracy_low"]),
            "val_accuracy_high": _finite(row["val_accuracy_high"]),
            "seeds": int(row["num_seeds"]),
        }

    failed = sum(one.outcome.result is None for one in trained)
    reused = sum(one.outcome.reused and one.outcome.result is not None for one in trained)
    answer = {
        "study": experiment.study,
        "chosen": {
            "id": chosen.id,
            **_point(coefficients, chosen.ratio),
            "triples": [[t.alpha, t.beta, t.gamma] for t in chosen.triples],
            **scores(chosen.id),
            "tied_with": [
                {"id": row["candidate"], "alpha": row["alpha"], "beta": row["beta"], "gamma": row["gamma"]}
                for row in _tied(choice)
            ],
        },
        "test_accuracy": {"chosen": test[chosen.id], "baseline": test[BASELINE]},
        "baseline": {
            **{key: rows[BASELINE][key] for key in ("macs", "params", "activations", "depth", "resolution")},
            **scores(BASELINE),
        },
        "evaluations": {"trained": len(trained) - failed - reused, "reused": reused, "failed": failed},
        "variants": table.to_dict("records"),
        "directory": str(directory),
    }
    write_atomic(directory / "result.json", json.dumps(answer, indent=1, allow_nan=False).encode())
    return answer


def _tied(choice: Choice) -> list[dict[str, Any]]:
    rows = {row["candidate"]: row for row in choice.candidates.to_dict("records")}
    return [rows[name] | {"triples": json.loads(rows[name]["triples"])} for name in choice.tied]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _write_csv(table: pd.DataFrame, path: Path) -> None:
    write_atomic(path, table.to_csv(index=False).encode())


def _all_failed(trials: pd.DataFrame, screen: Screen, log: _Log) -> int:
    log.failed()
    reason = trials.loc[trials["state"] == "failed", "reason"].iloc[0]
    screen.warn(
        f"all {len(trials)} evaluations of the candidates failed; the first: {reason}. "
        "When the cause is mended: scalesearch retry, with the same overrides"
    )
    return ALL_FAILED


def _show_answer(
    answer: Mapping[str, Any],
    choice: Choice,
    family: Sequence[variants.Variant],
    experiment: Experiment,
    screen: Screen,
) -> None:
    confidence = f"{100 * experiment.search.confidence:g} %"
    ranked = choice.candidates.sort_values("val_accuracy_mean", ascending=False)
    rows = [
        {
            "mark": "chosen"
            if row["chosen"]
            else "tied"
            if row["tied"]
            else "1x"
            if row["candidate"] == BASELINE
            else "",
            "candidate": row["candidate"],
            "alpha": f"{row['alpha']:g}",
            "beta": f"{row['beta']:g}",
            "gamma": f"{row['gamma']:g}",
            "product": f"{row['product']:.3f}",
            "macs_ratio": f"{row['macs_ratio']:.3f}",
            "macs": count(row["macs"]),
            "accuracy": _percent(row["val_accuracy_mean"]),
            "interval": f"{_percent(row['val_accuracy_low'])} to {_percent(row['val_accuracy_high'])}",
            "std": _percent(row["val_accuracy_std"]),
            "seeds": str(row["num_seeds"]),
        }
        for row in ranked.to_dict("records")
    ]
    accuracy = {"accuracy": "val. accuracy (%)", "interval": f"{confidence} interval", "std": "sd", "seeds": "seeds"}
    screen.table("Candidates", rows, _COEFFICIENT_COLUMNS | accuracy | {"mark": ""})

    chosen, test = answer["chosen"], answer["test_accuracy"]
    screen.say(
        f"chosen: {chosen['id']}, alpha (depth) = {chosen['alpha']:g}, beta (width) = {chosen['beta']:g}, "
        f"gamma (resolution) = {chosen['gamma']:g}; nominal product {chosen['product']:.3f}, "
        f"counted ratio {chosen['macs_ratio']:.3f}"
    )
    tied = ", ".join(
        f"{row['id']} ({row['alpha']:g}, {row['beta']:g}, {row['gamma']:g})" for row in chosen["tied_with"]
    )
    screen.say(
        f"cannot be told from it at {confidence}: {tied}" if tied else f"no candidate is tied with it at {confidence}"
    )
    screen.say(
        f"test accuracy: {_test_words(test['chosen'])} chosen, {_test_words(test['baseline'])} 1x network "
        f"({count(answer['baseline']['macs'])} multiply-adds)"
    )
    table = variants.family_table(family, _coefficients(chosen), experiment.directory / "variants")
    screen.table(
        _family_title(experiment.baseline.name, _coefficients(chosen), experiment.rounding), *_family_rows(table)
    )
    counts = answer["evaluations"]
    screen.say(
        f"{counts['trained']} evaluations trained, {counts['reused']} from the ledger, {counts['failed']} failed"
    )
    if counts["failed"]:
        screen.say("`scalesearch retry` with the same overrides runs the failed ones again; `status` gives the reasons")
    screen.say(f"tables, figures, coefficients.yaml and variants: {experiment.directory}")
    screen.say(f"MLflow: scalesearch ui study={experiment.study} workspace={experiment.workspace}")


def _coefficients(chosen: Mapping[str, Any]) -> Coefficients:
    return Coefficients(chosen["alpha"], chosen["beta"], chosen["gamma"])


def _percent(value: float) -> str:
    return f"{100 * value:.2f}" if math.isfinite(value) else "-"


def _test_words(test: Mapping[str, Any]) -> str:
    if test["mean"] is None:
        return "none (it failed)"
    spread = f" (sd {100 * test['std']:.2f}, {test['seeds']} seeds)" if test["std"] is not None else " (1 seed)"
    return f"{100 * test['mean']:.2f} %{spread}"


def _family_title(name: str, coefficients: Coefficients, rounding: Rounding) -> str:
    return (
        f"{name} scaled by alpha (depth) = {coefficients.alpha:g}, beta (width) = {coefficients.beta:g}, "
        f"gamma (resolution) = {coefficients.gamma:g}, rounding {rounding.name}"
    )


def _family_rows(table: pd.DataFrame) -> tuple[list[dict[str, str]], dict[str, str]]:
    rows = [
        {
            "name": row["name"],
            "phi": f"{row['phi']:g}",
            "nominal": f"{row['nominal_ratio']:.4g}",
            "counted": f"{row['macs_ratio']:.4g}",
            "macs": count(row["macs"]),
            "params": count(row["params"]),
            "depth": str(row["depth"]),
            "resolution": str(row["resolution"]),
        }
        for row in table.to_dict("records")
    ]
    headings = {
        "name": "variant",
        "phi": "phi",
        "nominal": "2^phi",
        "counted": "counted ratio",
        "macs": "multiply-adds",
    }
    return rows, headings | {"params": "params", "depth": "blocks", "resolution": "px"}


# What MLflow is told: one run a command, a child a candidate, a grandchild a seed.


class _Log:
    """The study's records for MLflow, as the search goes on; ends the command's run however the search ends."""

    def __init__(self, experiment: Experiment, plan: Plan, data: Data) -> None:
        self._experiment, self._plan, self._data = experiment, plan, data
        self._parent = f"run:{datetime.datetime.now(datetime.UTC).isoformat()}"
        self._best = 0.0
        self._begun: set[str] = set()
        self._open = False

    def __enter__(self) -> _Log:
        experiment = self._experiment
        self._tracker = Tracker(
            uri=experiment.tracking.uri,
            workspace=experiment.workspace,
            study=experiment.study,
            directory=experiment.directory,
            replay=experiment.tracking.name == "mlflow",
        )
        recipe = {f"recipe.{key}": value for key, value in experiment.settings["recipe"].items()}
        self._tracker.start_run(
            self._parent,
            name=f"run {experiment.study}",
            params={
                "baseline": experiment.baseline.name,
                "rounding": experiment.rounding.name,
                "budget.macs_ratio": experiment.budget.macs_ratio,
                "budget.tolerance": experiment.budget.tolerance,
                "candidates": len(self._plan.candidates),
                "seeds": experiment.seeds,
                **recipe,
            },
            tags=_git_commit(),
            note=f"`scalesearch run`\n\n```\n{_summary(self._plan, experiment)}\n```",
        )
        description = self._data.description
        self._tracker.log_dataset(
            self._parent,
            name=description.name,
            digest=self._data.fingerprint,
            source=experiment.data.root or description.name,
            profile={
                "num_train": description.num_train,
                "num_val": description.num_val,
                "num_test": description.num_test,
            },
        )
        self._tracker.log_artifact(self._parent, experiment.directory / "settings.yaml")
        self._open = True
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._open:
            for name in self._begun:
                self._tracker.end_run(f"{self._parent}:{name}", "KILLED")
            self._tracker.end_run(
                self._parent, "FAILED" if kind is not None and issubclass(kind, Exception) else "KILLED"
            )
            self._tracker.close(timeout=5)

    def trained(self, one: Trained, so_far: Sequence[Trained]) -> None:
        """A seed has come back: log it, and its candidate when that was the last one."""
        candidate, outcome = one
        child = f"{self._parent}:{candidate.id}"
        if candidate.id not in self._begun:
            self._begun.add(candidate.id)
            coefficients = candidate.coefficients
            self._tracker.start_run(
                child,
                name=candidate.id,
                parent=self._parent,
                params={
                    "alpha": coefficients.alpha,
                    "beta": coefficients.beta,
                    "gamma": coefficients.gamma,
                    "phi": 0 if candidate.id == BASELINE else 1,
                    "product": round(coefficients.product, 6),
                    "resolution": candidate.network.resolution,
                    "depth": candidate.network.depth,
                },
                tags={"triples": json.dumps([[t.alpha, t.beta, t.gamma] for t in candidate.triples])},
            )
            self._tracker.log_metrics(child, _costs(candidate))
        grandchild = f"{child}:seed{outcome.evaluation.seed}"
        self._tracker.start_run(
            grandchild,
            name=f"{candidate.id} seed {outcome.evaluation.seed}",
            parent=child,
            params={"seed": outcome.evaluation.seed},
            tags={"key": outcome.evaluation.key, "reused": outcome.reused, "reason": outcome.reason},
        )
        if outcome.result is not None:
            result = outcome.result
            self._tracker.log_curve(grandchild, result.curve)
            self._tracker.log_metrics(
                grandchild,
                {
                    "val_accuracy": result.val_accuracy,
                    "val_loss": result.val_loss,
                    "train_seconds": result.train_seconds,
                    "images_per_second": result.images_per_second,
                },
            )
        self._tracker.end_run(grandchild, "FINISHED" if outcome.result is not None else "FAILED")
        mine = [t.outcome for t in so_far if t.candidate.id == candidate.id]
        if len(mine) == self._experiment.seeds:
            self._candidate_done(candidate, [o.result for o in mine if o.result is not None], len(so_far))

    def _candidate_done(self, candidate: Candidate, results: Sequence[Any], step: int) -> None:
        child = f"{self._parent}:{candidate.id}"
        self._begun.discard(candidate.id)
        if results:
            accuracies = [result.val_accuracy for result in results]
            mean = statistics.fmean(accuracies)
            spread = {"val_accuracy_std": statistics.stdev(accuracies)} if len(accuracies) > 1 else {}
            seconds = sum(result.train_seconds for result in results)
            self._tracker.log_metrics(child, {"val_accuracy": mean, "train_seconds": seconds, **spread})
            if candidate.id != BASELINE:
                self._best = max(self._best, mean)
                self._tracker.log_metrics(self._parent, {"best_so_far": self._best}, step=step)
        self._tracker.end_run(child, "FINISHED" if results else "FAILED")

    def finished(
        self, answer: Mapping[str, Any], chosen: Candidate, choice: Choice, trained: Sequence[Trained]
    ) -> str | None:
        """The answer, on the command's own run; one sentence where MLflow has not got all of it yet."""
        parent, directory, values = self._parent, self._experiment.directory, answer["chosen"]
        for name in (chosen.id, BASELINE):
            test = answer["test_accuracy"]["chosen" if name == chosen.id else "baseline"]["mean"]
            if test is not None:
                self._tracker.log_metrics(f"{parent}:{name}", {"test_accuracy": test})
        self._tracker.log_metrics(
            parent,
            {
                key: value
                for key, value in {
                    "best_val_accuracy": values["val_accuracy_mean"],
                    "val_accuracy": values["val_accuracy_mean"],
                    "val_accuracy_std": values["val_accuracy_std"],
                    "test_accuracy": answer["test_accuracy"]["chosen"]["mean"],
                    "num_tied": len(choice.tied),
                    **_costs(chosen),
                }.items()
                if value is not None
            },
        )
        coefficients = _point(chosen.coefficients, None)
        self._tracker.log_params(parent, {f"chosen.{key}": value for key, value in coefficients.items()})
        self._tracker.set_tags(parent, {**coefficients, "chosen": chosen.id, "tied": ", ".join(choice.tied)})
        for name in (
            "coefficients.yaml",
            "trials.csv",
            "candidates.csv",
            "comparisons.csv",
            "family.csv",
            "result.json",
        ):
            self._tracker.log_artifact(parent, directory / name)
        for name in ("figures", "variants"):
            self._tracker.log_artifact(parent, directory / name)
        self._log_model(chosen, trained)
        self._tracker.end_run(parent, "FINISHED")
        self._open = False
        return self._tracker.close(timeout=60)

    def _log_model(self, chosen: Candidate, trained: Sequence[Trained]) -> None:
        """The chosen network as it was trained, from the first seed that finished."""
        first = next(
            t.outcome.evaluation for t in trained if t.candidate.id == chosen.id and t.outcome.result is not None
        )
        path = self._experiment.directory / "model" / "network.yaml"
        network = replace(chosen.network, name=f"{self._experiment.study}-{chosen.id}")
        write_atomic(path, network.to_yaml(comment=f"the chosen network of study {self._experiment.study}").encode())
        self._tracker.log_model(
            self._parent,
            name=self._experiment.study,
            variant=path,
            weights=Ledger(self._experiment.workspace).weights_path(first.key),
            input_shape=(network.in_channels, network.resolution, network.resolution),
            output_shape=(network.num_classes,),
        )

    def failed(self) -> None:
        """Every candidate failed."""
        self._tracker.end_run(self._parent, "FAILED")
        self._open = False
        self._tracker.close(timeout=5)


def _costs(candidate: Candidate) -> dict[str, float]:
    return {
        "macs": candidate.cost.macs,
        "macs_ratio": candidate.ratio,
        "params": candidate.cost.params,
        "activations": candidate.cost.activations,
    }


def _git_commit() -> dict[str, str]:
    """The commit of the directory the command was given in, as the tag that MLflow shows; none outside of git."""
    import subprocess

    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return {"mlflow.source.git.commit": found.stdout.strip()} if found.returncode == 0 else {}
