"""Figure 3 of arXiv:1905.11946: width, depth and resolution of a baseline scaled alone, each until it saturates."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import curve_fit

from scalesearch.checks import checked
from scalesearch.figures.paper import Panel, draw_panels
from scalesearch.paper.experiment import Figures, Multipliers, PaperExperiment
from scalesearch.paper.panels import curve, in_unit, present
from scalesearch.paper.points import CorrectByKey, Point, Setting
from scalesearch.paper.tables import ACCURACY, summarised

LETTERS = {"width": "w", "depth": "d", "resolution": "r"}


@checked("experiment", kw_only=True)
class Experiment(PaperExperiment):
    """widths, depths, resolutions: multipliers of the baseline, the others kept at 1, at whatever they cost."""

    widths: Multipliers
    depths: Multipliers
    resolutions: Multipliers

    def points(self, setting: Setting) -> list[Point]:
        ways = {"width": self.widths, "depth": self.depths, "resolution": self.resolutions}
        return [
            setting.resized(name, f"{LETTERS[name]}={value:.1f}", value, setting.baseline, **{name: value})
            for name, values in ways.items()
            for value in sorted(set(values))
        ]

    def summary(self, results: pd.DataFrame, correct: CorrectByKey) -> pd.DataFrame:
        summary = summarised(results)
        for name, rows in summary.groupby("curve"):
            fitted = saturation(rows["macs_ratio"].to_numpy(float), rows["val_accuracy_mean"].to_numpy(float))
            for column, value in zip(("ceiling", "gain", "rate"), fitted or (math.nan,) * 3, strict=True):
                summary.loc[summary["curve"] == name, column] = value
        return summary

    def finding(self, summary: pd.DataFrame) -> str:
        sentences = []
        for name in dict.fromkeys(summary["curve"]):
            rows = summary[summary["curve"] == name].sort_values("macs_ratio")
            accuracy, ratio = rows["val_accuracy_mean"].to_numpy(float), rows["macs_ratio"].to_numpy(float)
            if len(rows) < 2:
                sentences.append(f"{name} has one point alone")
                continue
            slopes = np.diff(accuracy) / np.diff(np.log2(ratio))
            ceiling = float(rows["ceiling"].iloc[0])
            fitted = f", fitted ceiling {100 * ceiling:.1f} %" if math.isfinite(ceiling) else ", no ceiling in sight"
            sentences.append(
                f"{name} takes accuracy from {100 * accuracy[0]:.1f} % to {100 * accuracy[-1]:.1f} % at "
                f"{ratio[-1]:.1f} times the cost, {100 * slopes[0]:+.1f} points a doubling at first and "
                f"{100 * slopes[-1]:+.1f} at last"
                f"{fitted}"
            )
        return "; ".join(sentences) + "."

    def draw(self, summary: pd.DataFrame, directory: Path, *, title: str) -> Figures:
        shown, x_label = in_unit(summary)
        panels = []
        for name in present(summary, *LETTERS):
            rows = shown[shown["curve"] == name]
            fits = [(name, *law)] if (law := _fitted(rows)) else []
            line = curve(shown, name, x="macs", joined=not fits)
            panels.append(Panel(f"{name} alone", x_label, ACCURACY, [line], curves=fits))
        foot = "Bars: 95 % intervals. Lines: fitted ceiling - gain * ratio^-rate, where four points or more allow one."
        return {"figure3": draw_panels(panels, title=title, foot=foot)}


def saturation(ratio: Any, accuracy: Any) -> tuple[float, float, float] | None:
    """(ceiling, gain, rate) of accuracy = ceiling - gain * ratio^-rate, by least squares; None for fewer than four.

    The ceiling is a fraction below 1: what the fit says that more of the same dimension comes to. None as well where
    the best fit has no ceiling, but runs into 1.
    """
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
