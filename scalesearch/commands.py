"""The commands, each top to bottom; the search itself is in `run`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scalesearch import config, export, fidelity, fitting, paper, pretrained, screen, study, template, variants
from scalesearch.budget import Profiler
from scalesearch.cost import cost, stage_costs
from scalesearch.data import load
from scalesearch.evaluation import Evaluation, Evaluator, Outcome, mixed_precision
from scalesearch.executor import EXECUTORS
from scalesearch.ledger import Ledger
from scalesearch.network import AnyNetwork, Network
from scalesearch.run import (
    ALL_FAILED,
    DONE,
    SOME_FAILED,
    Infeasible,
    initial_weights,
    search_and_scale,
    show_plan,
    test_accuracy,
)
from scalesearch.scaling import Coefficients, Rounding, resize
from scalesearch.screen import Screen
from scalesearch.tracking import serve, sync

if TYPE_CHECKING:
    from omegaconf import DictConfig

_CONFIDENCE = 0.95  # of the interval that `train` gives


def show_status(question: config.StudyRequest, out: Screen) -> int:
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


def show_report(question: config.StudyRequest, out: Screen) -> int:
    """`scalesearch report`: what a finished study says, and what it did not measure."""
    from scalesearch import report  # pandas and scipy: other commands do without

    directory = config.find_study(question.workspace, question.study)
    facts = report.read(question.workspace, directory)
    answers, path = report.answers(facts), report.write(facts, directory)
    out.markdown(report.markdown(facts.study, answers))
    out.say(f"written: {path}")
    out.answer({**answers, "file": str(path)})
    return DONE


def show_variants(question: config.VariantsRequest, out: Screen) -> int:
    """`scalesearch variants`: the family for coefficients, given or of a study, as table and YAML files."""
    asked = _asked(question)
    baseline, coefficients, rounding, directory = asked.baseline, asked.coefficients, asked.rounding, asked.directory
    family = variants.measured(asked.family, asked.meter)
    how = "" if asked.fit is None else screen.fit_words(asked.fit, question.limits)
    variants.write(family, coefficients, directory, rounding=rounding, comment=how)
    rows = variants.family_rows(family, coefficients, directory)
    if coefficients is config.PAPERS:
        out.say(screen.PAPERS_WORDS)
    screen.show_family(out, baseline.name, coefficients, rounding, rows)
    for words in screen.grain_words(baseline, rounding):
        out.say(words)
    answer = {"coefficients": study.point(coefficients), "rounding": rounding.name, "variants": rows}
    if asked.fit is not None:
        answer["budget"] = study.fit_values(asked.fit, question.limits)
        out.say(how)
    out.say(f"each loads as a baseline: scalesearch plan --config-dir {directory} baseline={rows[-1]['name']}")
    out.answer(answer)
    return DONE


class _Asked(NamedTuple):
    """What a question of `variants` comes to: the family, or the one variant that meets the limits."""

    baseline: AnyNetwork
    rounding: Rounding
    coefficients: Coefficients
    directory: Path
    meter: Profiler
    family: list[variants.Variant]
    fit: fitting.Fit | None


def _asked(question: config.VariantsRequest) -> _Asked:
    baseline, rounding, coefficients = question.baseline, question.rounding, question.coefficients
    directory, batch_size = question.workspace / "variants", question.batch_size
    if coefficients is None:
        found = config.find_study(question.workspace, question.study)
        baseline, rounding, coefficients = study.chosen(found)
        directory = found / "variants"
        batch_size = batch_size or study.batch_size(found)
    meter = Profiler(batch_size=batch_size or config.BATCH_SIZE, workspace=question.workspace)
    if not question.limits.given():
        family, fit = variants.family(baseline, coefficients, question.phis, rounding=rounding), None
    else:
        fit = fitting.fit(baseline, coefficients, question.limits, rounding=rounding, meter=meter)
        family = [fit.variant]
        if fit.share > 1:
            raise Infeasible(screen.unmet_words(fit, question.limits))
    return _Asked(baseline, rounding, coefficients, directory, meter, family, fit)


def show_cost(question: config.CostRequest, out: Screen) -> int:
    """`scalesearch cost`: a network's cost by stage."""
    network = resize(question.baseline, depth=question.depth, width=question.width, rounding=question.rounding)
    if question.resolution is not None:
        network = replace(network, resolution=question.resolution)
    total, needs = cost(network), Profiler(batch_size=question.batch_size).needs(network)
    places = {place.row: place for place in network.places()} if isinstance(network, Network) else {}
    answer = {
        "name": network.name,
        "macs": total.macs,
        "params": total.params,
        "activations": total.activations,
        **needs._asdict(),
        "batch_size": question.batch_size,
        "depth": question.depth,
        "width": question.width,
        "resolution": network.resolution,
        "blocks": network.depth,
        "rounding": question.rounding.name,
        "stages": [
            {
                "stage": name,
                "block": places[name].stage.block if name in places else "linear" if places else "factory",
                "repeats": places[name].stage.repeats if name in places else 1,
                "channels": places[name].channels if name in places else network.num_classes,
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


def train_network(question: config.TrainRequest, out: Screen) -> int:
    """`scalesearch train`: one network with every seed, kept in the ledger and taken from there as by `run`.

    A seed is one process on one device; several devices train several seeds, never one network together.
    """
    from scalesearch.selection import interval

    network = question.network
    init = initial_weights(question.init, (question.baseline, network), [network], question.workspace, out)
    data, ledger = load(question.data, log=out.warn), Ledger(question.workspace)
    evaluations = [Evaluation(network, question.recipe, data.fingerprint, seed, init) for seed in range(question.seeds)]
    if question.retry:
        out.say(f"{study.forget_failures(ledger, evaluations)} failed trainings are run again")
    out.say(screen.training_summary(network, cost(network), data.description, question.seeds))
    outcomes: list[Outcome] = []
    with EXECUTORS[question.executor_name](**question.executor) as executor:
        evaluator = Evaluator(ledger, executor, question.data)
        for outcome in evaluator.run(evaluations):
            outcomes.append(outcome)
            screen.show_outcome(out, outcome, len(outcomes), len(evaluations))
        outcomes.sort(key=lambda outcome: outcome.evaluation.seed)
        finished = [outcome for outcome in outcomes if outcome.result is not None]
        tested = test_accuracy(evaluator, [outcome.evaluation for outcome in finished]) if question.test else None
    accuracies = [outcome.result.val_accuracy for outcome in finished if outcome.result is not None]
    names = ("val_accuracy_mean", "val_accuracy_low", "val_accuracy_high")
    bounds = interval(accuracies, confidence=_CONFIDENCE) if accuracies else (math.nan,) * 3
    answer = {
        "name": network.name,
        "network": network.table(),
        **asdict(cost(network)),
        "init": None if init is None else {"source": question.init, "sha256": init},
        **{name: value if math.isfinite(value) else None for name, value in zip(names, bounds, strict=True)},
        "test_accuracy": tested,
        "seeds": [
            {
                "seed": outcome.evaluation.seed,
                "val_accuracy": None if outcome.result is None else outcome.result.val_accuracy,
                "precision": outcome.precision,
                "key": outcome.evaluation.key,
                "weights": None if outcome.result is None else str(ledger.weights_path(outcome.evaluation.key)),
                "reason": outcome.reason,
            }
            for outcome in outcomes
        ],
        "evaluations": study.counts(outcomes),
    }
    screen.show_training(out, answer, confidence=_CONFIDENCE)
    if (mixed := mixed_precision(outcomes)) is not None:
        out.warn(mixed)
    out.answer(answer)
    failed = len(outcomes) - len(finished)
    return DONE if not failed else SOME_FAILED if finished else ALL_FAILED


def export_networks(question: config.ExportRequest, out: Screen) -> int:
    """`scalesearch export`: networks with their weights as files, each checked against the network itself."""
    trained, initial = None, None
    if question.candidate is not None:
        workspace = question.variants.workspace
        found = config.find_study(workspace, question.variants.study)
        trained = study.trained_candidate(workspace, found, question.candidate)
        networks = [trained.network]
    else:
        asked = _asked(question.variants)
        networks = [variant.network for variant in asked.family]
        if asked.coefficients is config.PAPERS and any(variant.phi for variant in asked.family):
            out.say(screen.PAPERS_WORDS)
        if question.init is not None:
            initial = pretrained.fetch(question.init, [asked.baseline], warn=out.warn)
    if question.weights is not None and len(networks) > 1:
        raise ValueError(f"weights is one file, and {len(networks)} networks are asked for; give one phi")
    rows = []
    for network in networks:
        out.say(f"{network.name} ...")
        file = trained.weights if trained is not None else question.weights
        module, origin = export.filled(network, file=file, initial=initial, seed=question.seed)
        if trained is not None:
            accuracy = f"validation accuracy {100 * trained.val_accuracy:.2f} %"
            origin = f"of {trained.id} of study {question.variants.study}, {accuracy}"
        made, counted = export.counterpart(network), cost(network)
        comment = export.comment(network, counted, origin, made, trained.data if trained is not None else None)
        directory = question.directory / network.name
        written = export.write(network, module, directory, formats=question.formats, comment=comment)
        left = sorted({path.name for path in directory.glob(f"{network.name}.*")} - {one.file.name for one in written})
        if left:
            out.warn(f"{directory} holds {', '.join(left)} of an earlier export, which may have other weights")
        rows.append(
            {
                "name": network.name,
                "resolution": network.resolution,
                "macs": counted.macs,
                "params": counted.params,
                "weights": origin,
                "directory": str(directory),
                "files": {one.kind: str(one.file) for one in written},
                "bytes": {one.kind: one.num_bytes for one in written},
                "largest_difference": {one.kind: one.largest_difference for one in written},
                "load": export.load_call(network, written[0].file),
                "timm": made._asdict(),
            }
        )
    screen.show_exports(out, rows)
    out.answer({"tolerance": export.TOLERANCE, "networks": rows})
    return DONE


def write_template(question: config.InitRequest, out: Screen) -> int:
    """`scalesearch init`: files of a network of one's own, to be changed."""
    name, files = question.name, template.write(question.name, question.directory)
    out.say("\n".join(f"written: {path}" for path in files))
    here = "" if question.directory == Path() else f"in {question.directory}: "
    out.say(f"as a table: {here}scalesearch plan --config-dir {name} baseline={name}")
    out.say(f"as a function: {here}scalesearch plan --config-dir {name} baseline={name}_factory")
    return DONE


def show_ui(question: config.StudyRequest, out: Screen) -> int:
    """`scalesearch ui`: MLflow's interface on 127.0.0.1, until it is stopped."""
    return serve(
        workspace=question.workspace,
        uri=question.tracking.uri,
        port=question.port,
        study=question.study,
        show=out.say,
    )


def show_sync(question: config.StudyRequest, out: Screen) -> int:
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


def reproduce(composed: DictConfig, as_json: bool) -> int:
    """`scalesearch reproduce NAME`; fidelity, which is about a study, has a configuration of its own."""
    out = Screen(as_json=as_json)
    if "against" in composed:
        return fidelity.fidelity(config.load_fidelity(composed), out)
    return paper.carry_out(config.load_reproduce(composed, paper.EXPERIMENTS), out)


def _command(
    load_question: Callable[[DictConfig], Any], carry_out: Callable[[Any, Screen], int]
) -> Callable[[DictConfig, bool], int]:
    return lambda composed, as_json: carry_out(load_question(composed), Screen(as_json=as_json))


COMMANDS: dict[str, Callable[[DictConfig, bool], int]] = {
    "run": _command(config.load_experiment, search_and_scale),
    "retry": _command(config.load_experiment, lambda experiment, out: search_and_scale(experiment, out, retry=True)),
    "plan": _command(config.load_experiment, show_plan),
    "status": _command(config.load_study, show_status),
    "report": _command(config.load_study, show_report),
    "variants": _command(config.load_variants, show_variants),
    "cost": _command(config.load_cost, show_cost),
    "train": _command(config.load_train, train_network),
    "reproduce": reproduce,
    "export": _command(config.load_export, export_networks),
    "init": _command(config.load_init, write_template),
    "ui": _command(config.load_study, show_ui),
    "sync": _command(config.load_study, show_sync),
}
