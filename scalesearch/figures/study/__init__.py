"""The figures of a study, one module each, and what those of the candidates share.

A module here is a figure by its own name. It has `TABLE`, the table that it reads ("candidates" or "family");
`data(table)`, the numbers in it; and `draw(numbers, title=...)`, a matplotlib `Figure` of them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scalesearch.figures.drawing import BLACK, BLUE, GREY, VERMILLION, foot, head
from scalesearch.text import metric_title

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure
    from pandas import DataFrame

BASELINE = "baseline"  # the row of the candidates table that is the 1x network


# Words in the legend, shape, edge, face and size, from back to front. Shape and filling say what the colour does.
ROLES: dict[str, tuple[str, str, str, str, float]] = {
    "other": ("other", "o", GREY, "white", 12),
    "tied": ("tied with it", "D", BLUE, "#9ACBE8", 15),
    BASELINE: ("1x network", "s", BLACK, BLACK, 16),
    "chosen": ("chosen", "*", VERMILLION, VERMILLION, 75),
}
LEGEND = ("chosen", "tied", "other", BASELINE)


def need(table: DataFrame, *columns: str) -> None:
    """Raises: ValueError: the table lacks one of these columns."""
    for name in columns:
        if name not in table.columns:
            raise ValueError(f"a figure needs the column '{name}'; the table has: {', '.join(table.columns)}")


class Finished(NamedTuple):
    """The rows that have a score, the names of those that have none, and what the score is: "accuracy", "AUROC".

    Its columns have the names of accuracy, whichever metric it is.
    """

    table: DataFrame
    left_out: tuple[str, ...]
    score: str


def finished(candidates: DataFrame, *columns: str) -> Finished:
    """Of a table with columns such as `val_accuracy_mean` or `val_auroc_mean`; `columns` are needed besides."""
    names = [found[1] for name in candidates.columns if (found := re.fullmatch(r"val_(\w+)_mean", name))]
    metric = names[0] if len(names) == 1 else "accuracy"
    table = candidates.rename(columns=lambda name: re.sub(rf"^val_{metric}_", "val_accuracy_", name))
    need(table, "candidate", "macs", "macs_ratio", "val_accuracy_mean", "chosen", "tied", *columns)
    has = np.isfinite(table["val_accuracy_mean"].to_numpy(float))
    return Finished(table[has], tuple(table["candidate"][~has]), metric_title(metric))


def roles(candidates: DataFrame) -> tuple[str, ...]:
    """Of each row: "baseline", "chosen", "tied" or "other"."""
    conditions = (candidates["candidate"] == BASELINE, candidates["chosen"].eq(True), candidates["tied"].eq(True))
    return tuple(np.select(conditions, (BASELINE, "chosen", "tied"), "other").tolist())


def nothing(figure: Figure, title: str, left_out: Sequence[str]) -> Figure:
    """The figure when there is nothing to draw, which says so."""
    axes: Any = figure.subplots()
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, "no candidate has a finished training", ha="center", transform=axes.transAxes)
    head(figure, title)
    foot(figure, "", left_out)
    return figure
