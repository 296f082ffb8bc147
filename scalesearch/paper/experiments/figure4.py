"""Figure 4 of arXiv:1905.11946: width scaled for networks of several depths and resolutions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from annotated_types import MaxLen, MinLen

from scalesearch.checks import Must, between, checked
from scalesearch.figures.paper import Panel, draw_panels
from scalesearch.paper.experiment import Figures, Multipliers, PaperExperiment
from scalesearch.paper.panels import INTERVALS, curve, in_unit
from scalesearch.paper.points import CorrectByKey, Point, Setting
from scalesearch.paper.tables import ACCURACY, summarised

_Pair = Annotated[
    list[Annotated[float, between(0.1, 100)]], MinLen(2), MaxLen(2), Must("[depth, resolution], each from 0.1 to 100")
]


@checked("experiment", kw_only=True)
class Experiment(PaperExperiment):
    """widths: multipliers, under each (depth, resolution) of `curves`; at whatever that costs."""

    widths: Multipliers
    curves: Annotated[list[_Pair], MinLen(1), Must("a list of [depth, resolution], such as [[1, 1], [2, 1.3]]")]

    def points(self, setting: Setting) -> list[Point]:
        return [
            setting.resized(
                _name(depth, resolution),
                f"w={width:.1f}",
                width,
                setting.baseline,
                depth=depth,
                width=width,
                resolution=resolution,
            )
            for depth, resolution in self.curves
            for width in sorted(set(self.widths))
        ]

    def summary(self, results: pd.DataFrame, correct: CorrectByKey) -> pd.DataFrame:
        """As `summarised`, with `above_first`: how far each curve lies above the first, on average where both are."""
        summary = summarised(results)
        names = list(dict.fromkeys(summary["curve"]))
        for name in names:
            summary.loc[summary["curve"] == name, "above_first"] = _above(summary, name, names[0])
        return summary

    def finding(self, summary: pd.DataFrame) -> str:
        names = list(dict.fromkeys(summary["curve"]))
        sentences = []
        for name in names[1:]:
            above = float(summary.loc[summary["curve"] == name, "above_first"].iloc[0])
            sentences.append(
                f"{name} lies {100 * above:+.2f} points from {names[0]} on average over the costs that both have"
                if np.isfinite(above)
                else f"{name} shares no cost with {names[0]}"
            )
        best = summary.to_dict("records")[int(summary["val_accuracy_mean"].to_numpy(float).argmax())]
        return (
            f"{'; '.join(sentences) or 'there is one curve alone'}; the most accurate network is {best['curve']}, "
            f"{best['label']} with {100 * best['val_accuracy_mean']:.1f} % at {best['macs_ratio']:.1f} times the cost."
        )

    def draw(self, summary: pd.DataFrame, directory: Path, *, title: str) -> Figures:
        shown, x_label = in_unit(summary)
        panel = Panel("", x_label, ACCURACY, [curve(shown, name, x="macs") for name in dict.fromkeys(summary["curve"])])
        return {"figure4": draw_panels([panel], title=title, foot=f"{INTERVALS} Dots: the multipliers of width.")}


def _name(depth: float, resolution: float) -> str:
    return f"d={depth:.1f}, r={resolution:.1f}"


def _above(summary: pd.DataFrame, name: str, first: str) -> float:
    """Mean accuracy of one curve less the first's, over the costs that both span; NaN where there are none."""
    sides = []
    for curve_name in (name, first):
        rows = summary[summary["curve"] == curve_name].sort_values("macs_ratio")
        sides.append((np.log2(rows["macs_ratio"].to_numpy(float)), rows["val_accuracy_mean"].to_numpy(float)))
    low, high = max(x[0] for x, _ in sides), min(x[-1] for x, _ in sides)
    if name == first:
        return 0.0
    if high <= low:
        return float("nan")
    at = np.linspace(low, high, 50)
    one, other = (np.interp(at, x, y) for x, y in sides)
    return float((one - other).mean())
