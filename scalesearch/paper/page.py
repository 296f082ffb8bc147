"""What a person reads of an experiment: what it would train, what came out and what that depends on, and its page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scalesearch.data import describe
from scalesearch.evaluation import Outcome, Work
from scalesearch.fidelity.judgement import PREFERENCE, SHORT_EPOCHS
from scalesearch.machine import environment
from scalesearch.model import identity
from scalesearch.paper.experiment import worded
from scalesearch.paper.points import Point, Setting, point_values
from scalesearch.paper.request import ExperimentRequest
from scalesearch.paper.tables import cells
from scalesearch.text import duration, plural
from scalesearch.training import Recipe, few_steps

if TYPE_CHECKING:
    import pandas as pd


def work(points: Sequence[Point], seeds: int) -> list[Work]:
    """The trainings of all points, those together that are one whatever their names, as in an evaluation's key."""
    found: dict[tuple[Any, ...], Work] = {}
    for point in points:
        same = json.dumps(identity(point.network), sort_keys=True)
        what = (same, point.recipe, point.data, point.init, point.after is not None)
        found.setdefault(what, Work(point.network, point.recipe, describe(point.data), seeds))
    return list(found.values())


def macs_images(points: Sequence[Point], seeds: int) -> float:
    """Multiply-adds x training images of all points."""
    return seeds * math.fsum(
        point_values(point)["macs"] * describe(point.data).num_train * point.recipe.epochs for point in points
    )


def plan_rows(points: Sequence[Point]) -> list[dict[str, str]]:
    """The table of what is trained, heading to cell."""
    headings = ("scaled", "multipliers", "px", "blocks", "multiply-adds", "ratio", "epochs", "departures from the rule")
    return [cells(point_values(point), *headings) for point in points]


def plan_words(setting: Setting, outlook: Mapping[str, Any]) -> list[str]:
    """How many trainings, and where it was estimated how long they take."""
    sizes = describe(setting.data)
    words = [
        f"{plural(outlook['trainings'], 'training')} ({plural(setting.seeds, 'seed')} each) on "
        f"{plural(sizes.num_train, 'image')} of {sizes.name}; "
        "those that the ledger has are not repeated"
    ]
    if (few := few_steps(setting.recipe, sizes.num_train)) is not None:
        words.append(few)
    if "estimated_seconds" in outlook:
        words.append(f"expected time for all of them on this machine: {duration(outlook['estimated_seconds'])}")
    return words


def caveats(written: Sequence[str], recipe: Recipe | None) -> list[str]:
    """What the answer depends on: what the experiment's configuration says, and what follows from the recipe."""
    if recipe is None or recipe.epochs > SHORT_EPOCHS:
        return list(written)
    epochs = f"{recipe.epochs:g} epoch" + "s" * (recipe.epochs != 1)
    return [*written, f"the recipe trains for {epochs}, which trains nothing to its end, and short {PREFERENCE}"]


def entry(
    request: ExperimentRequest,
    summary: pd.DataFrame,
    outcomes: Sequence[Outcome],
    figures: Sequence[str],
    *,
    nothing: str | None,
    beside: Sequence[str],
) -> dict[str, Any]:
    """What finding.json keeps: question and finding, and how they were come by.

    nothing: why nothing was learnt, which is the finding then. beside: the chance level on each data set.
    """
    experiment = request.experiment
    results = [one.result for one in outcomes if one.result is not None]
    return {
        "experiment": request.name,
        "question": experiment.question,
        "finding": nothing or worded(experiment.finding(summary), request.metric),
        "paper": experiment.paper,
        "caveats": [*caveats(experiment.caveats, request.recipe if outcomes else None), *beside],
        "command": request.command,
        "title": request.title,
        "seeds": request.seeds if outcomes else 0,
        "trainings": len(outcomes),
        "failed": len(outcomes) - len(results),
        "train_seconds": round(math.fsum(one.train_seconds for one in results), 1),
        "environment": {name: value for name, value in environment().items() if name != "host"},
        "figures": list(figures),
    }


def readme(kept: Mapping[str, Any], rows: Sequence[Mapping[str, str]]) -> str:
    """The page of an experiment from its `entry` and table: question, finding, caveats, figures, how it was made."""
    lines = [f"# {kept['experiment']}", "", f"    {kept['command']}", "", "made every file here.", ""]
    for heading, key, end in (("Question", "question", ""), ("Finding", "finding", ""), ("The paper", "paper", ".")):
        if kept[key]:
            lines += [f"**{heading}.** {kept[key]}{end}", ""]
    if kept["caveats"]:
        lines += ["**Caveats.**", "", *(f"- {sentence}" for sentence in kept["caveats"]), ""]
    for name in kept["figures"]:
        lines += [f"![{kept['experiment']}](figures/{name})", ""]
    if rows:
        lines += ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
        lines += ["| " + " | ".join(row.values()) + " |" for row in rows] + [""]
    if kept["trainings"]:
        lines += [
            f"{kept['trainings']} trainings, {plural(kept['seeds'], 'seed')} per point, "
            f"{duration(kept['train_seconds'])} of training on one thread each; intervals are at 95 %.",
        ]
    here = kept["environment"]
    machine = here.get("processor", here["machine"])
    lines += [f"Python {here['python']}, torch {here['torch']}, {machine}, device {here['device']}.", ""]
    return "\n".join(lines)
