"""The questions, one module each, and what they share.

A module here is a question by its own name, which is its key in `scalesearch report --json`. It has `ORDER`, its place
in the report, `TITLE`, `answer(facts)`, plain values, and `words(values)`, the paragraphs that say them in Markdown.
In values, accuracies and their differences are fractions; None stands where a number is not known; intervals are
two-sided at the study's confidence. What was not measured has a `command` that would measure it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

from scalesearch import text
from scalesearch.report.facts import Facts
from scalesearch.scaling import Coefficients
from scalesearch.search import BASELINE, Candidate, Grid
from scalesearch.selection import Comparison

Values = dict[str, Any]
SAME: Values = {"difference": 0.0, "low": 0.0, "high": 0.0}  # of a network from itself


def scaled(facts: Facts) -> list[Candidate]:
    """The candidates without the 1x network."""
    return [one for one in facts.candidates.values() if one.id != BASELINE]


def grid_steps(grid: Grid, one: Coefficients, other: Coefficients) -> int:
    """Steps of the grid between two triples, along the coefficient in which they differ most.

    A coefficient that is not on the grid (a gamma that was solved for) counts whole steps, rounded.
    """
    sizes = [float(axis.step) for axis in (grid.alpha, grid.beta, grid.gamma)]
    parts = zip(astuple(one), astuple(other), sizes, strict=True)
    return max(round(abs(float(a - b)) / size) for a, b, size in parts)


def difference(compared: Comparison, confidence: float, *, pairs: int = 1) -> Values:
    """How much more accurate one network is than another, and on how many seeds."""
    low, high = bounds(compared, confidence, pairs=pairs)
    return {"difference": compared.difference, "low": low, "high": high, "seeds": compared.num_seeds}


def bounds(compared: Comparison, confidence: float, *, pairs: int = 1) -> tuple[float | None, float | None]:
    """Ends of the interval of a difference; None with one seed."""
    low, high = compared.interval(confidence, pairs=pairs)
    return (None, None) if math.isnan(low) else (low, high)


def interval(row: Mapping[str, Any], name: str = "difference") -> str:
    """A difference in points with its bounds."""
    return text.interval(row[name], row["low"], row["high"], text.points, without=" (no interval)")


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table whose headings are the keys of its rows; nothing without rows."""
    if not rows:
        return []
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return ["\n".join(lines + ["| " + " | ".join(map(str, row.values())) + " |" for row in rows])]


def split_columns(row: Mapping[str, Any]) -> dict[str, str]:
    """The columns of a table that say how a network is scaled."""
    headings = {"alpha": "alpha (depth)", "beta": "beta (width)", "gamma": "gamma (resolution)"}
    return {heading: f"{row[name]:.4g}" for name, heading in headings.items()}


def measured_by(command: str | None) -> list[str]:
    """The command that would measure what is missing, if there is one."""
    return ["This command would measure it:", f"    {command}"] if command else []
