"""Validation accuracy against counted multiply-adds of every candidate and of the 1x network."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scalesearch.figures.drawing import foot, head, label, limits, sheet, style
from scalesearch.figures.study import BASELINE, LEGEND, ROLES, finished, nothing, roles

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from pandas import DataFrame

TABLE = "candidates"


class Numbers(NamedTuple):
    """An entry for each candidate that has a score, and for the 1x network; scores in percent.

    score: what is measured, such as "accuracy" or "AUROC".
    """

    candidate: tuple[str, ...]
    role: tuple[str, ...]  # "chosen", "tied", "other", or "baseline" for the 1x network
    label: tuple[str, ...]  # what stands beside the point; empty for most
    macs: NDArray[np.float64]
    macs_ratio: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    low: NDArray[np.float64]  # ends of the confidence interval; NaN where there is none (one seed)
    high: NDArray[np.float64]
    left_out: tuple[str, ...]  # those without a score: all their evaluations failed
    score: str


def data(candidates: DataFrame) -> Numbers:
    """The points: accuracy and counted cost.

    Labelled are the chosen candidate, and the best one of each kind that the paper compares: depth only, width only,
    resolution only, compound (all three). A candidate that stands for several triples is of the plainest kind among
    them, because it is that network.
    """
    table, left_out, score = finished(candidates, "triples", "val_accuracy_low", "val_accuracy_high")
    names, role = tuple(table["candidate"]), roles(table)
    kinds = [_kind(triples) for triples in table["triples"]]
    accuracy, low, high = (100 * table[f"val_accuracy_{name}"].to_numpy(float) for name in ("mean", "low", "high"))
    labelled = [i for i, one in enumerate(role) if one == "chosen"]
    for kind in ("depth only", "width only", "resolution only", "compound"):
        same = [i for i, one in enumerate(role) if kinds[i] == kind and one != BASELINE]
        if same and not set(same) & set(labelled):
            labelled.append(max(same, key=lambda i: float(accuracy[i])))
    labels = tuple(f"{kinds[i]} ({name})" if i in labelled else "" for i, name in enumerate(names))
    macs, ratio = (table[name].to_numpy(float) for name in ("macs", "macs_ratio"))
    return Numbers(names, role, labels, macs, ratio, accuracy, low, high, left_out, score)


def _kind(triples: str) -> str:
    """Which dimensions are scaled by the plainest of the triples, like "depth only" or "compound".

    >>> _kind("[[1.2, 1.1, 1.15]]")
    'compound'
    >>> _kind("[[1.95, 1.05, 1.0], [2.0, 1.0, 1.0]]")
    'depth only'
    """
    scaled = [
        [name for name, value in zip(("depth", "width", "resolution"), triple, strict=True) if value != 1]
        for triple in json.loads(triples)
    ]
    plainest = min(scaled, key=len)
    return {0: "1x", 1: f"{''.join(plainest)} only", 2: " + ".join(plainest), 3: "compound"}[len(plainest)]


@style()
def draw(numbers: Numbers, *, title: str = "") -> Figure:
    """One column wide; intervals as bars, the choice marked; above, the cost as a ratio to the 1x network."""
    figure = sheet(3.4, 3.0)
    if not numbers.candidate:
        return nothing(figure, title, numbers.left_out)
    per_unit, unit = (1e9, "G") if numbers.macs.max() >= 1e9 else (1e6, "M")
    cost, role = numbers.macs / per_unit, np.array(numbers.role, dtype=object)
    first, axes = _axes(figure, cost, role == BASELINE)
    low, high = limits(numbers.accuracy, numbers.low, numbers.high, least=0.5)
    axes.set_ylim(low, high + 0.1 * (high - low))  # room for labels above the best
    axes.set_xlabel(f"multiply-adds ({unit})")
    first.set_ylabel(f"validation {numbers.score} (%)")

    handles: dict[str, Artist] = {}
    has_interval = np.isfinite(numbers.low) & np.isfinite(numbers.high)
    for front, (name, (words, marker, edge, face, size)) in enumerate(ROLES.items(), start=3):
        here, side = role == name, first if name == BASELINE else axes
        if not here.any():
            continue
        points = side.scatter(cost[here], numbers.accuracy[here], size, marker=marker, linewidth=0.8, label=words)
        points.set(edgecolor=edge, facecolor=face, zorder=front, gid=f"points-{name}")
        handles[name] = points
        bar = here & has_interval
        bars = side.vlines(cost[bar], numbers.low[bar], numbers.high[bar], color=edge, linewidth=0.8)
        bars.set(alpha=0.5 if name == "other" else 1, zorder=front - 0.5, gid=f"intervals-{name}")

    one = float(np.median(cost / numbers.macs_ratio))  # where 1x lies on this axis
    for side in dict.fromkeys((first, axes)):
        upper = side.secondary_xaxis("top", functions=(lambda x: np.asarray(x) / one, lambda x: np.asarray(x) * one))
        if side is axes:
            upper.set_xlabel("counted ratio to the 1x network")
        else:
            upper.set_xticks([1.0], ["1"])
    head(figure, title, [handles[name] for name in LEGEND if name in handles])
    without = int((~has_interval).sum())
    some = f"; {without} of {cost.size} have none (one seed)" if without else ""
    bars_are = f"Bars: confidence intervals{some}." if without < cost.size else "No intervals (one seed)."
    foot(figure, bars_are, numbers.left_out)

    chosen_first = sorted(range(len(role)), key=lambda i: role[i] != "chosen")
    labels = [(cost[i], numbers.accuracy[i], numbers.label[i]) for i in chosen_first if numbers.label[i]]
    taken = 10 * list(zip(cost, numbers.accuracy, strict=True))  # a bar may be covered sooner
    for i in np.flatnonzero(has_interval):
        taken += [(cost[i], y) for y in np.linspace(numbers.low[i], numbers.high[i], 9)]
    label(axes, labels, taken)
    return figure


def _axes(figure: Figure, cost: NDArray[np.float64], is_baseline: NDArray[np.bool_]) -> tuple[Axes, Axes]:
    """Where the 1x network is drawn, and where the candidates are: the same axes, or two whose x axis is broken.

    Candidates cost nearly the same and the 1x network much less: the axis is broken between them where that gap is
    wider than the candidates' own range.
    """
    least = 0.04 * cost.max()
    if is_baseline.any() and not is_baseline.all():
        gap = cost[~is_baseline].min() - cost[is_baseline].max()
        if gap > np.ptp(cost[~is_baseline]):
            first, axes = figure.subplots(1, 2, sharey=True, width_ratios=(1, 6))
            first.spines.right.set_visible(False)
            axes.spines.left.set_visible(False)
            axes.tick_params(left=False, labelleft=False)
            mark: dict[str, Any] = {"marker": [(-0.6, -1), (0.6, 1)], "markersize": 6, "linestyle": "none"}
            for side, x in ((first, 1), (axes, 0)):
                mark |= {"color": "black", "markeredgewidth": 0.6, "clip_on": False, "transform": side.transAxes}
                side.plot([x, x], [0, 1], **mark)
            first.set_xlim(limits(cost[is_baseline], least=least))
            first.set_xticks(cost[is_baseline], [f"{value:.3g}" for value in cost[is_baseline]])
            axes.set_xlim(limits(cost[~is_baseline], least=least))
            return first, axes
    axes = figure.subplots()
    axes.set_xlim(limits(cost, least=least))
    return axes, axes
