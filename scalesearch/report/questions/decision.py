"""The decision: which split, what it costs to be wrong, and what else may be the best."""

from __future__ import annotations

from scalesearch.report.facts import Facts
from scalesearch.report.questions import Values, split_columns, table
from scalesearch.text import interval, level, percent

ORDER = 1
TITLE = "Which split?"


def answer(facts: Facts) -> Values:
    """As result.json has it, with a row per candidate; all None where there is no decision."""
    values = facts.study.result.get("decision")
    if values is None or facts.choice.decision is None:
        return {"sentence": None, "candidates": None}
    return {**values, "candidates": facts.choice.decision.table.to_dict("records")}


def words(values: Values) -> list[str]:
    if values["sentence"] is None:
        return ["There are too few trainings for an estimate, or this study was answered before there was one."]
    rows = [
        {
            "candidate": row["candidate"],
            **split_columns(row),
            "expected, %": interval(100 * row["accuracy"], 100 * row["accuracy_low"], 100 * row["accuracy_high"]),
            "probability of the best": f"{percent(row['probability_best'], 0)} %",
            "expected regret, points": percent(row["expected_regret"]),
            f"at most, at {level(values['confidence'])}": percent(row["regret_bound"]),
            "": "chosen" if row["chosen"] else "as good" if row["as_good"] else "",
        }
        for row in values["candidates"]
    ]
    sentence = values["sentence"]
    return [
        f"{sentence[0].upper()}{sentence[1:]}.",
        *table(rows),
        "All trainings of all networks were estimated together: networks of similar depth, width and resolution lend "
        f"each other strength. Intervals ({level(values['confidence'])}) are of accuracy over all seeds and images.",
    ]
