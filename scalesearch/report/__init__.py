"""Questions about a finished study, answered with numbers from its files and the ledger; nothing is trained.

`read` gathers the facts, `answers` has every question of `questions` answered from them, and `markdown` puts that into
words. What was not measured is named, with the command that measures it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scalesearch.ledger import write_atomic
from scalesearch.registry import Registry
from scalesearch.report.facts import Facts, read
from scalesearch.report.references import Reference
from scalesearch.text import level, metric_title, percent, plural
from scalesearch.training import ACCURACY

__all__ = ["QUESTIONS", "Facts", "Reference", "answers", "markdown", "ordered", "read", "write"]

QUESTIONS: Registry[Any] = Registry("questions", package="scalesearch.report.questions")


def ordered() -> list[str]:
    """The names of the questions, as the report has them one after the other."""
    return sorted(QUESTIONS, key=lambda name: (QUESTIONS[name].ORDER, name))


def answers(facts: Facts) -> dict[str, dict[str, Any]]:
    """Every question's answer, and first what the study is. Accuracies are fractions; None is what is not known."""
    about = {"study": facts.study.name, "confidence": facts.confidence} | facts.study.result["selection"]
    about["seeds"] = max(len(seeds) for seeds in facts.finished.values())
    for name in ("majority_share", "shuffled_labels"):  # a study from before they were known has neither
        about[name] = facts.study.result.get(name)
    about["metric_of_accuracy"] = facts.study.metric or ACCURACY
    return {"about": about} | {name: QUESTIONS[name].answer(facts) for name in ordered()}


def markdown(answers: Mapping[str, Mapping[str, Any]]) -> str:
    """The text of report.md: one heading per question, first the verdict, then the numbers."""
    about = answers["about"]
    rule = {
        "posterior": "the highest expected accuracy",
        "best": "the best mean",
        "cheapest_tied": f"of the best and its ties the least {about['metric']}",
    }[about["rule"]]
    paragraphs = [
        f"# {about['study']}",
        f"Accuracies are means over {plural(about['seeds'], 'seed')} at most, in percent of the validation images, and "
        f"differences points of that. Intervals are at {level(about['confidence'])}, over seeds and images. Chosen was "
        f"{rule}. `scalesearch report study={about['study']}` writes this anew.",
    ]
    if (share := about["majority_share"]) is not None:
        paragraphs.append(
            f"The most frequent class alone is right on {percent(share['validation'])} % of the validation images and "
            f"{percent(share['test'])} % of the test images."
        )
    if (shuffled := about["shuffled_labels"]) is not None:
        title = metric_title(about["metric_of_accuracy"])
        paragraphs.append(
            f"Accuracy is {title} on this page (recipe.metric={about['metric_of_accuracy']}), times 100, where it says "
            f"percent. With the labels of the validation images shuffled it is {percent(shuffled['validation'])}."
        )
    for name in ordered():
        paragraphs += [f"## {QUESTIONS[name].TITLE}", *QUESTIONS[name].words({**about, **answers[name]})]
    return "\n\n".join(paragraphs) + "\n"


def write(facts: Facts, directory: Path) -> Path:
    """Write report.md into the study's directory; returns where."""
    path = directory / "report.md"
    write_atomic(path, markdown(answers(facts)).encode())
    return path
