"""From rows of a summary to the lines of a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalesearch.figures.paper import Line

if TYPE_CHECKING:
    import pandas as pd

INTERVALS = "Bars: 95 % intervals."
EQUAL_COST = "Bars: 95 % intervals; equal counted multiply-adds."
MACS_RATIO = "multiply-adds (times the baseline's)"


def curve(
    summary: pd.DataFrame,
    name: str,
    *,
    x: str = "macs_ratio",
    score: str = "val_accuracy",
    before: pd.DataFrame | None = None,
    labelled: bool = True,
    joined: bool = True,
) -> Line:
    """The line of a curve, by rising x.

    before: rows that it starts from, such as the baseline's; they have no label.
    """
    import pandas as pd

    own = summary[summary["curve"] == name]
    rows = own if before is None else pd.concat([before.assign(label=""), own])
    rows = rows.sort_values(x, kind="stable")
    mean, low, high = ((100 * rows[f"{score}_{end}"]).tolist() for end in ("mean", "low", "high"))
    labels = [str(label) if labelled and label == label else "" for label in rows["label"]]
    return Line(name, rows[x].tolist(), mean, low, high, labels, joined)


def in_unit(summary: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The summary with `macs` in the unit in which the largest is 1 or more, and the label of that axis."""
    unit, size = ("billions", 1e9) if summary["macs"].max() >= 1e9 else ("millions", 1e6)
    return summary.assign(macs=summary["macs"] / size), f"multiply-adds ({unit})"


def present(summary: pd.DataFrame, *names: str) -> list[str]:
    """Those of the curves that have a finished training."""
    return [name for name in names if (summary["curve"] == name).any()]
