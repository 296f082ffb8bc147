"""Parallel coordinates of the candidates: one line each, coloured by accuracy, darker is better."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scalesearch.figures.drawing import BLACK, foot, head, limits, sheet, style
from scalesearch.figures.study import BASELINE, LEGEND, ROLES, finished, nothing, roles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from pandas import DataFrame

TABLE = "candidates"
LINES: dict[str, dict[str, Any]] = {  # from back to front
    "other": {"linewidth": 0.8, "linestyle": "-", "alpha": 0.75, "zorder": 2},
    "tied": {"linewidth": 1.3, "linestyle": (0, (4, 1.5)), "zorder": 3},
    "chosen": {"linewidth": 3, "linestyle": "-", "zorder": 4},
}


class Numbers(NamedTuple):
    """A row for each candidate that has a score, a column for each of `axes`; the 1x network is not among them.

    score: what is measured, such as "accuracy" or "AUROC".
    """

    candidate: tuple[str, ...]
    role: tuple[str, ...]  # "chosen", "tied" or "other"
    axes: tuple[str, ...]
    values: NDArray[np.float64]  # (candidates, axes); the last axis is the score in percent
    left_out: tuple[str, ...]
    score: str


def data(candidates: DataFrame) -> Numbers:
    """The lines; the 1x network is no candidate and has none."""
    table, left_out, score = finished(candidates, "alpha", "beta", "gamma")
    table = table[table["candidate"] != BASELINE]
    values = table[["alpha", "beta", "gamma", "macs_ratio", "val_accuracy_mean"]].to_numpy(float, copy=True)
    values[:, -1] *= 100
    return Numbers(
        candidate=tuple(table["candidate"]),
        role=roles(table),
        axes=("alpha (depth)", "beta (width)", "gamma (resolution)", "counted ratio to 1x", f"{score} (%)"),
        values=values,
        left_out=tuple(name for name in left_out if name != BASELINE),
        score=score,
    )


@style()
def draw(numbers: Numbers, *, title: str = "") -> Figure:
    """Two columns wide."""
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import Normal, Stroke

    figure = sheet(7.0, 2.7)
    if not numbers.candidate:
        return nothing(figure, title, numbers.left_out)
    host = figure.subplots()
    ranges = np.array([limits(column, least=0.1) for column in numbers.values.T])
    _scales(host, numbers.axes, ranges)
    heights = (numbers.values - ranges[:, 0]) / (ranges[:, 1] - ranges[:, 0])

    # Viridis from light to dark, without the yellow that is lost on white paper.
    colours = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0.93, 0, 256)))
    accuracy = ScalarMappable(Normalize(*ranges[-1]), colours)
    back_to_front = {role: place for place, role in enumerate(LINES)}
    for i in sorted(range(len(heights)), key=lambda i: (back_to_front[numbers.role[i]], numbers.values[i, -1])):
        role = numbers.role[i]
        (line,) = host.plot(heights[i], color=accuracy.to_rgba(numbers.values[i, -1]), **LINES[role])
        line.set(clip_on=False, gid=f"line {numbers.candidate[i]}")
        if role == "chosen":
            line.set_path_effects([Stroke(linewidth=4.5, foreground="white"), Normal()])
    bar = figure.colorbar(accuracy, ax=host, pad=0.015, aspect=25)
    bar.set_label(f"validation {numbers.score} (%)")
    bar.outline.set_visible(False)
    shown = [role for role in LEGEND if role in numbers.role]
    head(figure, title, [Line2D([], [], color=BLACK, label=ROLES[role][0], **LINES[role]) for role in shown])
    foot(figure, "", numbers.left_out)
    return figure


def _scales(host: Axes, names: tuple[str, ...], ranges: NDArray[np.float64]) -> None:
    """An upright axis for each name with its own scale; lines lie in `host`, at their place between 0 and 1."""
    from matplotlib.patheffects import Normal, Stroke

    last = len(names) - 1
    host.set(xlim=(0, last), ylim=(0, 1), xticks=range(last + 1), yticks=[])
    host.set_xticklabels(names)
    host.xaxis.tick_top()
    host.tick_params(length=0, pad=6, labelsize=8)
    host.spines[:].set_visible(False)
    for at, (name, (low, high)) in enumerate(zip(names, ranges, strict=True)):
        axis = host.twinx()
        axis.set(ylim=(low, high), gid=f"axis {name}")
        axis.spines[:].set_visible(False)
        side = axis.spines.left if at == 0 else axis.spines.right
        side.set(visible=True, position=("data", at))
        axis.yaxis.set_ticks_position("left" if at == 0 else "right")
        axis.tick_params(labelright=0 < at < last, right=0 < at < last)  # the colour bar is the last one's scale
        axis.yaxis.get_major_locator().set_params(nbins=5)  # type: ignore[call-arg]
        axis.grid(visible=False)
        for text in axis.get_yticklabels():
            text.set_path_effects([Stroke(linewidth=2, foreground="white"), Normal()])
