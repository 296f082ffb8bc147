"""The answer of a search for a target cost: the split to take there, how far that reaches, the path over phi."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalesearch import variants
from scalesearch.config import to_yaml
from scalesearch.cost import cost
from scalesearch.evaluation import counts
from scalesearch.ledger import write_atomic
from scalesearch.scaling import Coefficients
from scalesearch.search import AXES, TrialResult
from scalesearch.study.answer import write_csv
from scalesearch.study.settings import StudySettings
from scalesearch.text import count, level, listed, percent, plural
from scalesearch.training import named

if TYPE_CHECKING:
    from scalesearch.selection import Chance, Step
    from scalesearch.surface import Surface

_TARGET = "target"  # the id of what is chosen: a split, and none of the candidates


@dataclass(frozen=True)
class TargetAnswer:
    """What a search for a target came to.

    steps: of each cost of the path the split to take and its network, the target's last. family: their networks with
    what they need. values: what `run --json` prints. waiting: what MLflow has not got yet.
    """

    trials: Sequence[TrialResult]
    surface: Surface
    steps: Sequence[Step]
    family: Sequence[variants.Variant]
    chance: Chance
    levels: Mapping[str, float]
    values: Mapping[str, Any] = field(default_factory=dict)
    waiting: str | None = None


def family_of(settings: StudySettings, steps: Sequence[Step]) -> list[variants.Variant]:
    """The networks of a path, named by their cost: mobilenetv2_8x."""
    made = []
    for step in steps:
        name = f"{settings.baseline.name}_{step.cost:.4g}x"
        network = replace(step.realised.network, name=name)
        made.append(variants.Variant(math.log2(step.cost), network, cost(network), step.realised.ratio))
    return made


def per_doubling(step: Step) -> Coefficients:
    """alpha, beta and gamma whose power phi = log2(cost) gives the step's network."""
    of, phi = step.realised.coefficients, math.log2(step.cost)
    return Coefficients(*(value ** (1 / phi) for value in (of.alpha, of.beta, of.gamma)))


def write_target(settings: StudySettings, answer: TargetAnswer) -> tuple[dict[str, Any], list[Path]]:
    """Write tables, coefficients, variants and the page into the study's directory.

    Returns what `run --json` prints, and the files and folders that belong to the answer.
    """
    from scalesearch.selection import select, surface_table

    directory, metric, confidence = settings.directory, settings.recipe.metric, settings.search.confidence
    family: list[dict[str, Any]] = []
    for step, variant in zip(answer.steps, answer.family, strict=True):
        coefficients = per_doubling(step)
        variants.write([variant], coefficients, directory / "variants", rounding=settings.rounding)
        family += variants.family_rows([variant], coefficients, directory / "variants")
    candidates = select(answer.trials, confidence=confidence).candidates
    of_a_choice = ["chosen", "best", "tied", "stopped", "val_accuracy_corrected", "rank_corrected"]
    tables = {
        "candidates": candidates.drop(columns=of_a_choice),
        "surface": surface_table(answer.surface, list(answer.steps), confidence),
    }
    for name, table in tables.items():
        write_csv(named(table, metric), directory / f"{name}.csv")
    values = _values(settings, answer, family)
    chosen = {name: values["chosen"][name] for name in ("alpha", "beta", "gamma")}
    written = {**chosen, "rounding": settings.rounding.name, "study": settings.study, "phi": values["target"]["phi"]}
    write_atomic(directory / "coefficients.yaml", to_yaml(written).encode())
    result = json.dumps(named(values, metric), indent=1, allow_nan=False)
    write_atomic(directory / "result.json", result.encode())
    write_atomic(directory / "report.md", target_page(values).encode())
    for stale in ("figures", "model"):
        shutil.rmtree(directory / stale, ignore_errors=True)
    names = ("coefficients.yaml", "trials.csv", "candidates.csv", "surface.csv", "result.json", "report.md", "variants")
    return values, [directory / name for name in names]


def _values(settings: StudySettings, answer: TargetAnswer, family: list[dict[str, Any]]) -> dict[str, Any]:
    found, confidence, steps = answer.surface, settings.search.confidence, answer.steps
    path = [_step(answer, place, row, confidence) for place, row in enumerate(family)]
    constant = found.constant(confidence)
    last = path[-1]
    equal = min(range(len(found.splits)), key=lambda split: max(found.splits[split]))
    target = {
        "macs_ratio": found.costs[-1],
        "phi": math.log2(found.costs[-1]),
        "beyond": found.beyond,
        "most_trained": found.most_trained,
        "confidence": confidence,
        **{name: given for name, given in last.items() if name not in ("cost", "phi", "macs_ratio")},
        "equal_shares_regret": float(found.regret()[equal]),
        "path": path,
        "constant": {
            "split": _named(constant.split),
            "p_value": constant.p_value,
            "fits": constant.p_value > 1 - confidence,
            "loss": constant.loss,
            "loss_low": constant.loss_low,
            "loss_high": constant.loss_high,
            "at": found.costs[0],
        },
    }
    return {
        "decision": {"sentence": sentence(target)},
        "study": settings.study,
        "target": target,
        "chosen": {"id": _TARGET, **{name: last[name] for name in ("alpha", "beta", "gamma", "macs_ratio")}},
        answer.chance.key: dict(answer.levels),
        "passed_over": [_named(split) for split in steps[-1].passed_over],
        "evaluations": counts(one.outcome for one in answer.trials),
        "variants": family,
        "directory": str(settings.directory),
    }


def _step(answer: TargetAnswer, place: int, row: Mapping[str, Any], confidence: float) -> dict[str, Any]:
    found, step = answer.surface, answer.steps[place]
    coefficients, of = per_doubling(step), step.realised.coefficients
    good = [found.splits[split] for split in found.as_good(confidence, place)]
    low, high = found.interval(step.split, confidence, place)
    return {
        "cost": step.cost,
        "phi": math.log2(step.cost),
        **{name: getattr(coefficients, name) for name in ("alpha", "beta", "gamma")},
        "multiples": {"depth": of.alpha, "width": of.beta, "resolution": of.gamma},
        "split": _named(found.splits[step.split]),
        "macs": row["macs"],
        "macs_ratio": row["macs_ratio"],
        "accuracy": float(found.expected(place)[step.split]),
        "accuracy_low": low,
        "accuracy_high": high,
        "expected_regret": float(found.regret(place)[step.split]),
        "regret_bound": float(found.posterior.regret_bound(found.places(place), confidence)[step.split]),
        "probability_best": float(found.posterior.probability_best(found.places(place))[step.split]),
        "as_good": len(good),
        "splits": len(found.splits),
        "spans": {
            name: [min(split[axis] for split in good), max(split[axis] for split in good)]
            for axis, name in enumerate(AXES)
        },
    }


def _named(split: Sequence[float]) -> dict[str, float]:
    return dict(zip(AXES, split, strict=True))


def sentence(target: Mapping[str, Any]) -> str:
    """What to do with the target's compute, how sure that is, how far it reaches, and whether one triple would do."""
    of = listed([f"{name} x {value:.3g}" for name, value in target["multiples"].items()])
    reach = ", ".join(f"{name} {100 * low:.0f} to {100 * high:.0f} %" for name, (low, high) in target["spans"].items())
    text = (
        f"at {target['macs_ratio']:.4g} x the multiply-adds ({count(target['macs'])}) take {of}: expected regret "
        f"{percent(target['expected_regret'])} points (at {level(target['confidence'])} at most "
        f"{percent(target['regret_bound'])}); at {level(target['confidence'])} the best may be any of "
        f"{target['as_good']} of {plural(target['splits'], 'split')} (shares of the doublings: {reach})"
    )
    return f"{text}. {reach_words(target)}. {constant_words(target)}"


def reach_words(target: Mapping[str, Any]) -> str:
    """How far the target lies beyond what was trained."""
    if target["beyond"] < 0.05:
        return "The target lies within the costs that were trained"
    return (
        f"The target lies {target['beyond']:.2g} doublings of the cost beyond what was trained "
        f"({target['most_trained']:.3g} x at most)"
    )


def constant_words(target: Mapping[str, Any]) -> str:
    """Whether one triple fits at every cost, and what keeping that of the first cost loses."""
    constant, confidence = target["constant"], level(target["confidence"])
    if len(target["path"]) == 1:
        return "The target is no further than phi = 1, so that there is no path over phi"
    fits = (
        f"That one triple is the best at every cost is not refuted (p = {constant['p_value']:.2g})"
        if constant["fits"]
        else f"No one triple is the best at every cost (p = {constant['p_value']:.2g})"
    )
    return (
        f"{fits}; the best one at {constant['at']:.3g} x, raised, is expected to lose {percent(constant['loss'])} "
        f"points at the target ({percent(constant['loss_low'])} to {percent(constant['loss_high'])} at {confidence})"
    )


def target_page(values: Mapping[str, Any]) -> str:
    """The text of report.md, from what result.json has."""
    target = values["target"]
    heads = ("phi", "cost", "alpha (depth)", "beta (width)", "gamma (resolution)", "expected, %", "at confidence, %")
    rows = [
        f"| {one['phi']:.3g} | {one['macs_ratio']:.3g} | {one['alpha']:.4g} | {one['beta']:.4g} | {one['gamma']:.4g} | "
        f"{percent(one['accuracy'])} | {percent(one['accuracy_low'])} to {percent(one['accuracy_high'])} | "
        f"{percent(one['expected_regret'])} | {one['as_good']} of {one['splits']} |"
        for one in target["path"]
    ]
    table = [
        f"| {' | '.join(heads)} | expected regret, points | as good |",
        "|" + "---|" * (len(heads) + 2),
        *rows,
    ]
    text = values["decision"]["sentence"]
    paragraphs = [
        f"# {values['study']}",
        "## Which split at the target?",
        f"{text[0].upper()}{text[1:]}.",
        "## The path over phi",
        "At each cost the split that is expected to be the best, per doubling of the cost: alpha, beta and gamma to "
        "the power of phi are the network's depth, width and resolution. *Cost* is counted, times the baseline's.",
        "\n".join(table),
        f"{constant_words(target)}. The test is of the largest difference to a better split at any cost. Equal shares "
        f"for all dimensions are expected to lose {percent(target['equal_shares_regret'])} points at the target.",
        "## What was trained",
        f"{reach_words(target)}. Every candidate is in candidates.csv; every split that was compared, at every cost, "
        "in surface.csv. The estimate and its check on recorded experiments: docs/search.md.",
    ]
    return "\n\n".join(paragraphs) + "\n"
