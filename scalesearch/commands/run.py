"""search coefficients for a baseline: plan, train, choose, scale; or go on where it stopped"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from scalesearch.checks import checked
from scalesearch.text import count, metric_title, override, percent, plural, typed
from scalesearch.workspace import (
    ALL_FAILED,
    DONE,
    NOTHING_LEARNT,
    SOME_FAILED,
    Directory,
    InitialWeights,
    Phis,
    StudyName,
    Target,
)

if TYPE_CHECKING:
    from scalesearch.config import Groups
    from scalesearch.screen import Screen
    from scalesearch.study import Answer, NothingLearnt, StudySettings, TargetAnswer

GROUPS = {
    "baseline": "mobilenetv2",
    "proxy": "small",
    "rounding": "nearest",
    "budget": "double",
    "grid": "default",
    "search": "race",
    "selection": "posterior",
    "data": "fashion_mnist",
    "executor": "local",
    "tracking": "mlflow",
    "recipe": "default",  # after grid and data, which recipe=quick makes smaller
    "experiment": None,
}
EXAMPLE = "scalesearch run baseline=preresnet29 budget.tolerance=0.05"
COEFFICIENT_COLUMNS = {
    "candidate": "network",
    "alpha": "alpha (depth)",
    "beta": "beta (width)",
    "gamma": "gamma (resolution)",
    "product": "nominal product",
    "macs_ratio": "counted ratio",
}


@checked()
class Arguments:
    study: Annotated[
        StudyName | None, Field(description="null: made of baseline, data and a digest of the settings")
    ] = None
    workspace: Annotated[Directory, Field(description="all that is written lies in it")] = Path("workspace")
    init: Annotated[InitialWeights | None, Field(description="weights to start from")] = None
    phis: Annotated[Phis, Field(description="of the scaled variants; 0 is the baseline itself")] = tuple(range(8))
    target: Annotated[
        Target, Field(description="the cost that one has: the best split there, from trainings at lower costs")
    ] = Target()
    retry: Annotated[bool, Field(description="run trainings again that have failed")] = False


def run(arguments: Arguments, groups: Groups, out: Screen) -> int:
    """Section 3.3 of arXiv:1905.11946: search at phi = 1, choose, scale."""
    from scalesearch.evaluation import counts, mixed_machines, mixed_precision
    from scalesearch.run import search_and_scale
    from scalesearch.session import Session
    from scalesearch.study import NothingLearnt, Study, StudySettings, TargetAnswer
    from scalesearch.training import named
    from scalesearch.workspace import AllAlike, Infeasible

    settings = StudySettings.of(groups)
    session = Session(
        settings.workspace, settings.executor, out, settings.directory, arguments.retry, settings.tracking
    )
    try:
        trials, answer = search_and_scale(settings, session)
    except Infeasible:
        out.answer({"study": settings.study, "chosen": None, "evaluations": counts([])})
        raise
    except AllAlike:
        done = Study(settings.workspace, settings.directory).status()["evaluations"]
        out.answer({"study": settings.study, "chosen": None, "evaluations": done})
        raise
    outcomes = [one.outcome for one in trials]
    if answer is None:
        reasons = [outcome.reason for outcome in outcomes if outcome.result is None]
        out.warn(
            f"every candidate failed ({plural(len(reasons), 'evaluation')}); the first: {reasons[0]}. "
            "When the cause is mended: scalesearch retry, with the same overrides"
        )
        out.answer({"study": settings.study, "chosen": None, "evaluations": counts(outcomes)})
        return ALL_FAILED
    if isinstance(answer, NothingLearnt):
        _show_nothing(out, settings, answer)
    elif isinstance(answer, TargetAnswer):
        _show_target(out, settings, answer)
    else:
        _show(out, settings, answer)
    whole = [one for one in outcomes if one.evaluation.recipe == settings.recipe]
    for mixed in filter(None, (mixed_precision(whole), mixed_machines(whole))):
        out.warn(mixed)
    if answer.waiting:
        out.warn(answer.waiting)
    out.answer(named(answer.values, settings.recipe.metric))
    if isinstance(answer, NothingLearnt):
        return NOTHING_LEARNT
    return SOME_FAILED if answer.values["evaluations"]["failed"] else DONE


def _show_nothing(out: Screen, settings: StudySettings, nothing: NothingLearnt) -> None:
    out.warn(f"{nothing.reason}. So nothing is chosen, and no family is written")
    out.say(nothing.remedy)
    _show_counts(out, settings, nothing.values["evaluations"], "trials.csv and result.json")


def _show_target(out: Screen, settings: StudySettings, answer: TargetAnswer) -> None:
    """The decision, the path over phi, and where things are."""
    values = answer.values
    out.say(f"decision: {values['decision']['sentence']}")
    rows = [
        {
            "name": variant["name"],
            **{name: f"{step[name]:.4g}" for name in ("phi", "macs_ratio", "alpha", "beta", "gamma")},
            "macs": count(step["macs"]),
            "accuracy": percent(step["accuracy"]),
            "interval": f"{percent(step['accuracy_low'])} to {percent(step['accuracy_high'])}",
            "regret": percent(step["expected_regret"]),
            "as_good": f"{step['as_good']} of {step['splits']}",
        }
        for step, variant in zip(values["target"]["path"], values["variants"], strict=True)
    ]
    columns = {
        **{"name": "network", "phi": "phi", "macs_ratio": "counted ratio", "macs": "multiply-adds"},
        **{"alpha": "alpha (depth)", "beta": "beta (width)", "gamma": "gamma (resolution)"},
        **{"accuracy": f"expected {metric_title(settings.recipe.metric or 'accuracy')} (%)"},
        **{"interval": f"{100 * settings.search.confidence:g}\u00a0%", "regret": "regret", "as_good": "as good"},
    }
    out.table("The best split of each cost, as the proxies let expect it", rows, columns)
    if values["passed_over"]:
        splits = "; ".join(
            ", ".join(f"{name} {100 * share:.0f} %" for name, share in split.items()) for split in values["passed_over"]
        )
        out.say(f"passed over, as no network of that split has the target's cost within budget.tolerance: {splits}")
    last = values["variants"][-1]["name"]
    again = typed("plan", "--config-dir", str(settings.directory / "variants"), f"baseline={last}")
    out.say(f"the network at the target loads as a baseline: {again}")
    _show_counts(out, settings, values["evaluations"], "tables, coefficients.yaml, report.md and variants")


def _show(out: Screen, settings: StudySettings, answer: Answer) -> None:
    """The candidates, the choice, its ties, test accuracies, the family, and where things are."""
    from scalesearch.commands._family import show_family

    values, chosen = answer.values, answer.values["chosen"]
    _show_decision(out, values)
    _show_candidates(out, settings, answer)
    out.say(
        f"chosen: {chosen['id']}, alpha (depth) = {chosen['alpha']:g}, beta (width) = {chosen['beta']:g}, "
        f"gamma (resolution) = {chosen['gamma']:g}; nominal product {chosen['product']:.3f}, "
        f"counted ratio {chosen['macs_ratio']:.3f}"
    )
    _show_ties(out, settings, answer)
    test, score = values["test_accuracy"], metric_title(settings.recipe.metric or "accuracy")
    out.say(
        f"test {score}: {test_words(test['chosen'])} chosen, {test_words(test['baseline'])} 1x network "
        f"({count(values['baseline']['macs'])} multiply-adds)"
        + (f"; {answer.chance.words(answer.levels['test'], 'test')}" if "test" in answer.levels else "")
    )
    show_family(out, settings.baseline.name, answer.chosen.coefficients, settings.rounding, values["variants"])
    _say_reach(out, settings)
    _show_counts(out, settings, values["evaluations"], "tables, figures, coefficients.yaml and variants")


def _say_reach(out: Screen, settings: StudySettings) -> None:
    """How far the family reaches beyond the cost that was trained."""
    beyond = max(settings.phis) - math.log2(settings.budget.macs_ratio)
    if beyond > 0.5:
        out.say(
            f"phi = {max(settings.phis):g} lies {beyond:.3g} doublings of the cost beyond what was trained: that the "
            "split stays the best there is the paper's assumption; target.macs_ratio=8, say, asks trainings of several "
            "costs"
        )


def _show_decision(out: Screen, values: Mapping[str, Any]) -> None:
    """What to do, and what it needs where the compute is doubled."""
    from scalesearch.commands._family import footprint_words

    if (decision := values["decision"]) is None:
        out.say("no decision: fewer than three trainings, or a single network, say nothing of how sure a choice is")
    else:
        out.say(f"decision: {decision['sentence']}")
    if (first := next((row for row in values["variants"] if row["phi"] == 1), None)) is not None:
        needs = [f"{name} {words}" for name, words in footprint_words(first).items()]
        out.say(
            f"the split needs at phi = 1: {count(first['macs'])} multiply-adds, {count(first['params'])} parameters"
            + "".join(f", {each.replace('_ms', '').replace('_', ' ')}" for each in needs)
        )


def _show_counts(out: Screen, settings: StudySettings, counts: Mapping[str, int], files: str) -> None:
    """How many trainings there were, and where things are."""
    trained = plural(counts["trained"], "evaluation")
    out.say(f"{trained} trained, {counts['reused']} from the ledger, {counts['failed']} failed")
    if counts["failed"]:
        out.say("`scalesearch retry` with the same overrides runs the failed ones again; `status` gives the reasons")
    out.say(f"{files}: {settings.directory}")
    place = (f"study={settings.study}", override("workspace", str(settings.workspace)))
    if settings.tracking.name == "mlflow":
        out.say(f"MLflow: {typed('ui', *place)}")
    else:
        out.say(f"nothing was sent to MLflow; later: {typed('sync', *place)}")


def _show_candidates(out: Screen, settings: StudySettings, answer: Answer) -> None:
    confidence = f"{100 * settings.search.confidence:g} %"
    rows = [
        {
            "mark": next((mark for mark in ("chosen", "best", "tied", "stopped") if row[mark]), ""),
            "candidate": row["candidate"],
            **{name: f"{row[name]:g}" for name in ("alpha", "beta", "gamma")},
            **{name: f"{row[name]:.3f}" for name in ("product", "macs_ratio")},
            "accuracy": percent(row["val_accuracy_mean"]),
            "interval": f"±{percent(row['val_accuracy_high'] - row['val_accuracy_mean'])}",
            "std": percent(row["val_accuracy_std"]),
            "seeds": str(row["num_seeds"]),
        }
        for row in answer.choice.candidates.sort_values("val_accuracy_mean", ascending=False).to_dict("records")
    ]
    accuracy = {
        "accuracy": f"val. {metric_title(settings.recipe.metric or 'accuracy')} (%)",
        "interval": confidence.replace(" ", "\u00a0"),
        "std": "sd",
        "seeds": "seeds",
    }
    title = f"Candidates, with {confidence} intervals over the seeds"
    out.table(title, rows, COEFFICIENT_COLUMNS | accuracy | {"mark": ""})
    out.say(answer.chance.words(answer.levels["validation"], "validation"))
    if answer.choice.not_learnt:
        out.say(f"no better than that at {confidence}, and so not to be chosen: {', '.join(answer.choice.not_learnt)}")
    if without := answer.choice.without_interval:
        out.say(
            f"no interval for {', '.join(without)}: so few seeds leave it wider than 100 points, or unknown; "
            f"recipe.seeds={settings.seeds + 2} gives more"
        )


def _show_ties(out: Screen, settings: StudySettings, answer: Answer) -> None:
    values, table = answer.values, answer.choice.candidates
    best, chosen = values["best"], values["chosen"]
    whose, tied = "it", chosen["tied_with"]
    if best["id"] != chosen["id"]:
        whose = "the best mean"
        tied = [row | {"id": row["candidate"]} for row in table[table["tied"]].to_dict("records")]
        rule = values["selection"]["rule"]
        why = {
            "posterior": f"all trainings together let expect more of {chosen['id']}",
            "cheapest_tied": f"of it and its ties {chosen['id']} needs the least of {values['selection']['metric']}",
        }[rule]
        out.say(f"best mean: {_network(best)} with {percent(best['val_accuracy_mean'])} %; {why} (selection={rule})")
    confidence = f"{100 * settings.search.confidence:g} %"
    names = ", ".join(map(_network, tied))
    out.say(
        f"statistically tied with {whose} at {confidence}: {names}"
        if names
        else f"no candidate is tied with it at {confidence}"
    )
    reasons: dict[str, list[str]] = {}
    compared = set(table["candidate"])
    for name, reason in values["stopped"].items():  # of some, no training of the whole recipe is there
        known = "" if name in compared else ", so it was compared with none"
        reasons.setdefault(reason.partition(" by ")[0] + known, []).append(name)
    for reason, stopped in reasons.items():
        out.say(f"stopped: {', '.join(stopped)} ({reason})")


def _network(row: Mapping[str, Any]) -> str:
    return f"{row['id']} ({row['alpha']:g}, {row['beta']:g}, {row['gamma']:g})"


def test_words(test: Mapping[str, Any]) -> str:
    """A mean test accuracy with its spread over the seeds."""
    if test["mean"] is None:
        return "none (it failed)"
    spread = f" (sd {percent(test['std'])}, {test['seeds']} seeds)" if test["std"] is not None else " (1 seed)"
    return f"{percent(test['mean'])} %{spread}"
