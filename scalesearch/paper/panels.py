"""From rows of a summary to the lines of a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from scalesearch.figures.paper import Line

ACCURACY = "validation accuracy (%)"
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

    from scalesearch.figures.paper import Line

    own = summary[summary["curve"] == name]
    rows = own if before is None else pd.concat([before.assign(label=""), own])
    rows = rows.sort_values(x, kind="stable")
    mean, low, high = ((100 * rows[f"{score}_{end}"]).tolist() for end in ("mean", "low", "high"))
    labels = [str(label) if labelled and label == label else "" for label in rows["label"]]
    return Line(name, rows[x].tolist(), mean, low, high, labels, joined)


def macs_unit(macs: pd.Series[float]) -> tuple[str, float]:
    """(unit, its size) in which the largest of these multiply-adds is 1 or more."""
    return ("billions", 1e9) if macs.max() >= 1e9 else ("millions", 1e6)
