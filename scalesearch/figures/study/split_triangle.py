"""The candidates in the triangle of depth, width and resolution: which share of the compute each dimension gets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scalesearch.figures.drawing import BLUE, GREY, VERMILLION, foot, head, label, sheet, style
from scalesearch.figures.study import need

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from pandas import DataFrame

TABLE = "decision"
CORNERS = {"depth": (0.5, 3**0.5 / 2), "width": (0.0, 0.0), "resolution": (1.0, 0.0)}
# Words in the legend, edge and face, from back to front.
GROUPS = {
    "other": ("other", GREY, "white"),
    "as_good": ("may as well be the best", BLUE, "#9ACBE8"),
    "chosen": ("chosen", VERMILLION, VERMILLION),
}


class Numbers(NamedTuple):
    """An entry for each candidate whose coefficients scale anything."""

    candidate: tuple[str, ...]
    group: tuple[str, ...]  # "chosen", "as_good" or "other"
    shares: NDArray[np.float64]  # (candidates, 3) of the logarithm of the nominal cost: depth, width, resolution
    probability_best: NDArray[np.float64]
    expected_regret: NDArray[np.float64]  # in points


def data(decision: DataFrame) -> Numbers:
    """Cost is alpha * beta^2 * gamma^2: the shares are those of its logarithm. A share is negative where a dimension
    shrinks, and the point then lies outside of the triangle."""
    need(decision, "candidate", "alpha", "beta", "gamma", "probability_best", "expected_regret", "as_good", "chosen")
    parts = np.log2(decision[["alpha", "beta", "gamma"]].to_numpy(float)) * [1, 2, 2]
    grown = np.abs(parts.sum(1)) > 1e-9
    table, parts = decision[grown], parts[grown]
    groups = np.select([table["chosen"].eq(True), table["as_good"].eq(True)], ["chosen", "as_good"], "other")
    return Numbers(
        tuple(table["candidate"]),
        tuple(groups.tolist()),
        parts / parts.sum(1, keepdims=True),
        table["probability_best"].to_numpy(float),
        100 * table["expected_regret"].to_numpy(float),
    )


@style()
def draw(numbers: Numbers, *, title: str = "") -> Figure:
    """One column wide."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Polygon

    figure = sheet(3.4, 3.0)
    axes: Any = figure.subplots()
    corners = np.array(list(CORNERS.values()))
    axes.add_patch(Polygon(corners, closed=True, fill=False, edgecolor="black", linewidth=0.8, zorder=1))
    for part in (0.25, 0.5, 0.75):
        for corner in range(3):
            one, other = np.delete(corners, corner, axis=0)
            ends = [part * corners[corner] + (1 - part) * side for side in (one, other)]
            axes.plot(*zip(*ends, strict=True), color="#E3E3E3", linewidth=0.5, zorder=0)
    for (name, (x, y)), (align, shift) in zip(
        CORNERS.items(), (("center", 0.05), ("left", -0.09), ("right", -0.09)), strict=True
    ):
        axes.text(x, y + shift, f"all to {name}", ha=align, va="center")
    places = numbers.shares @ corners
    handles = []
    for front, (name, (words, edge, face)) in enumerate(GROUPS.items(), start=3):
        here = np.array([group == name for group in numbers.group], dtype=bool)
        if not here.any():
            continue
        size = 12 + 220 * numbers.probability_best[here]
        points = axes.scatter(*places[here].T, size, facecolor=face, edgecolor=edge, linewidth=0.8)
        points.set(zorder=front, gid=f"points-{name}", alpha=0.9)
        look: dict[str, Any] = {"marker": "o", "linestyle": "none", "markersize": 5, "color": face}
        handles.append(Line2D([], [], markeredgecolor=edge, label=words, **look))
    axes.set_aspect("equal")
    around = np.concatenate([places, corners])
    axes.set(xlim=(around[:, 0].min() - 0.06, around[:, 0].max() + 0.06))
    axes.set(ylim=(around[:, 1].min() - 0.14, around[:, 1].max() + 0.1))
    axes.axis("off")
    head(figure, title, handles[::-1])
    foot(figure, "Area: probability of being the best. Number: expected regret in points.")
    labels = [(x, y, f"{regret:.2f}") for (x, y), regret in zip(places, numbers.expected_regret, strict=True)]
    label(axes, labels, 10 * list(map(tuple, places)))
    return figure
