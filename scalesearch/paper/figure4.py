"""Figure 4 of arXiv:1905.11946: width scaled for networks of several depths and resolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from scalesearch.paper.experiment import Experiment, at_least_one
from scalesearch.paper.panels import ACCURACY, curve, macs_unit
from scalesearch.paper.points import Correct, Point, Setting
from scalesearch.paper.summaries import summarised

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Figure4(Experiment):
    """widths: multipliers, under each (depth, resolution) of `curves`; at whatever that costs."""

    widths: Sequence[float]
    curves: Sequence[Sequence[float]]

    asks: ClassVar[str] = "Does width gain more where depth and resolution are larger too, at the same multiply-adds?"
    paper: ClassVar[str] = (
        "with depth and resolution kept, width saturates soon; with both larger it is much better at the same "
        "FLOPs (section 3.3); the dots' values are not printed"
    )
    rests_on: ClassVar[Sequence[str]] = (
        "curves are compared where they overlap in counted cost, by straight lines between points in its logarithm",
        "the paper's text beside its figure says r=2.0 where the legend says r=1.3; the legend's values are used",
    )

    def __post_init__(self) -> None:
        at_least_one("widths", self.widths, least=0.1)
        if not self.curves or any(len(pair) != 2 for pair in self.curves):
            raise ValueError(
                f"experiment.curves is {list(self.curves)!r}; it must be a list of [depth, resolution], such as "
                "[[1, 1], [2, 1.3]]"
            )
        for pair in self.curves:
            at_least_one("curves", pair, least=0.1)

    def points(self, setting: Setting) -> list[Point]:
        return [
            setting.resized(
                _name(depth, resolution),
                f"w={width:.1f}",
                float(width),
                setting.baseline,
                depth=float(depth),
                width=float(width),
                resolution=float(resolution),
            )
            for depth, resolution in self.curves
            for width in sorted(set(self.widths))
        ]

    def summary(self, results: pd.DataFrame, correct: Mapping[str, Correct]) -> pd.DataFrame:
        """As `summarised`, with `above_first`: how far each curve lies above the first, on average where both are."""
        summary = summarised(results)
        names = list(dict.fromkeys(summary["curve"]))
        for name in names:
            summary.loc[summary["curve"] == name, "above_first"] = _above(summary, name, names[0])
        return summary

    def finding(self, summary: pd.DataFrame) -> str:
        names = list(dict.fromkeys(summary["curve"]))
        said = []
        for name in names[1:]:
            above = float(summary.loc[summary["curve"] == name, "above_first"].iloc[0])
            said.append(
                f"{name} lies {100 * above:+.2f} points from {names[0]} on average over the costs that both have"
                if np.isfinite(above)
                else f"{name} shares no cost with {names[0]}"
            )
        best = summary.to_dict("records")[int(summary["val_accuracy_mean"].to_numpy(float).argmax())]
        return (
            f"{'; '.join(said) or 'there is one curve alone'}; the most accurate network is {best['curve']}, "
            f"{best['label']} with {100 * best['val_accuracy_mean']:.1f} % at {best['macs_ratio']:.1f} times the cost."
        )

    def draw(self, summary: pd.DataFrame, directory: Path, *, title: str) -> dict[str, Figure]:
        from scalesearch.figures.paper import Panel, draw_panels

        unit, size = macs_unit(summary["macs"])
        shown = summary.assign(macs=summary["macs"] / size)
        lines = [curve(shown, name, x="macs") for name in dict.fromkeys(summary["curve"])]
        panel = Panel("", f"multiply-adds ({unit})", ACCURACY, lines)
        return {
            "figure4": draw_panels([panel], title=title, foot="Bars: 95 % intervals. Dots: the multipliers of width.")
        }


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
