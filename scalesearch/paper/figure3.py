"""Figure 3 of arXiv:1905.11946: width, depth and resolution of a baseline scaled alone, each until it saturates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from scalesearch.paper.experiment import Experiment, at_least_one
from scalesearch.paper.panels import ACCURACY, curve, macs_unit
from scalesearch.paper.points import Correct, Point, Setting
from scalesearch.paper.summaries import summarised

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

LETTERS = {"width": "w", "depth": "d", "resolution": "r"}


@dataclass(frozen=True, kw_only=True)
class Figure3(Experiment):
    """widths, depths, resolutions: multipliers of the baseline, the others kept at 1, at whatever they cost."""

    widths: Sequence[float]
    depths: Sequence[float]
    resolutions: Sequence[float]

    asks: ClassVar[str] = "How far does accuracy follow when one dimension alone is scaled, and where does it saturate?"
    paper: ClassVar[str] = (
        "the gain of each dimension alone shrinks and saturates once about 80 % top-1 is reached (ImageNet, "
        "section 3.2); the dots' values are not printed"
    )
    rests_on: ClassVar[Sequence[str]] = (
        "the fitted ceilings lie beyond what was measured: accuracy = ceiling - gain * ratio^-rate, by least squares",
        "multipliers are rounded to whole blocks, channels in twos and whole px; costs are counted, not nominal",
    )

    def __post_init__(self) -> None:
        for name in ("widths", "depths", "resolutions"):
            at_least_one(name, getattr(self, name), least=0.1)

    def points(self, setting: Setting) -> list[Point]:
        base = setting.baseline
        asked = {"width": self.widths, "depth": self.depths, "resolution": self.resolutions}
        return [
            setting.resized(name, f"{LETTERS[name]}={value:.1f}", float(value), base, **{name: float(value)})
            for name, values in asked.items()
            for value in sorted(set(values))
        ]

    def summary(self, results: pd.DataFrame, correct: Mapping[str, Correct]) -> pd.DataFrame:
        summary = summarised(results)
        for name, rows in summary.groupby("curve"):
            fitted = saturation(rows["macs_ratio"].to_numpy(float), rows["val_accuracy_mean"].to_numpy(float))
            for column, value in zip(("ceiling", "gain", "rate"), fitted or (math.nan,) * 3, strict=True):
                summary.loc[summary["curve"] == name, column] = value
        return summary

    def finding(self, summary: pd.DataFrame) -> str:
        said = []
        for name in dict.fromkeys(summary["curve"]):
            rows = summary[summary["curve"] == name].sort_values("macs_ratio")
            accuracy, ratio = rows["val_accuracy_mean"].to_numpy(float), rows["macs_ratio"].to_numpy(float)
            if len(rows) < 2:
                said.append(f"{name} has one point alone")
                continue
            slopes = np.diff(accuracy) / np.diff(np.log2(ratio))
            ceiling = float(rows["ceiling"].iloc[0])
            fitted = f", fitted ceiling {100 * ceiling:.1f} %" if math.isfinite(ceiling) else ", no ceiling in sight"
            said.append(
                f"{name} takes accuracy from {100 * accuracy[0]:.1f} % to {100 * accuracy[-1]:.1f} % at "
                f"{ratio[-1]:.1f} times the cost, {100 * slopes[0]:+.1f} points a doubling at first and "
                f"{100 * slopes[-1]:+.1f} at last"
                f"{fitted}"
            )
        return "; ".join(said) + "."

    def draw(self, summary: pd.DataFrame, directory: Path, *, title: str) -> dict[str, Figure]:
        from scalesearch.figures.paper import Panel, draw_panels

        unit, size = macs_unit(summary["macs"])
        shown = summary.assign(macs=summary["macs"] / size)
        panels = []
        for name in (name for name in LETTERS if (summary["curve"] == name).any()):
            rows = shown[shown["curve"] == name]
            fits = [(name, *law)] if (law := _fitted(rows)) else []
            line = curve(shown, name, x="macs", joined=not fits)
            panels.append(Panel(f"{name} alone", f"multiply-adds ({unit})", ACCURACY, [line], curves=fits))
        foot = "Bars: 95 % intervals. Lines: fitted ceiling - gain * ratio^-rate, where four points or more allow one."
        return {"figure3": draw_panels(panels, title=title, foot=foot)}


def saturation(ratio: Any, accuracy: Any) -> tuple[float, float, float] | None:
    """(ceiling, gain, rate) of accuracy = ceiling - gain * ratio^-rate, by least squares; None for fewer than four.

    The ceiling is a fraction below 1: what the fit says that more of the same dimension comes to. None as well where
    the best fit has no ceiling, but runs into 1.
    """
    from scipy.optimize import curve_fit

    if len(ratio) < 4:
        return None
    start = (min(1.0, float(accuracy.max()) + 0.01), max(1e-3, float(np.ptp(accuracy))), 0.7)
    try:
        found, _ = curve_fit(_law, ratio, accuracy, p0=start, bounds=([0, 0, 0.02], [1, 2, 5]), max_nfev=20_000)
    except RuntimeError:
        return None
    return (float(found[0]), float(found[1]), float(found[2])) if found[0] < 0.999 else None


def _law(ratio: Any, ceiling: float, gain: float, rate: float) -> Any:
    return ceiling - gain * ratio ** (-rate)


def _fitted(rows: pd.DataFrame) -> tuple[list[float], list[float]] | None:
    """(multiply-adds, accuracy in percent) along the fitted law of a curve; None where there is none."""
    ceiling, gain, rate = (float(rows[name].iloc[0]) for name in ("ceiling", "gain", "rate"))
    if not math.isfinite(ceiling):
        return None
    ratios = np.geomspace(rows["macs_ratio"].min(), rows["macs_ratio"].max(), 60)
    one = float((rows["macs"] / rows["macs_ratio"]).median())
    return (ratios * one).tolist(), (100 * _law(ratios, ceiling, gain, rate)).tolist()
