"""The paper's figures of accuracy against cost, as panels of lines: one drawing for all of them.

After Figures 3, 4 and 8 of arXiv:1905.11946: accuracy in percent over multiply-adds, one line per way of scaling, and
beside each dot the multipliers that it was scaled with.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scalesearch.figures import drawing
from scalesearch.figures.drawing import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, limits

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

# A way of scaling looks the same in every figure; shape and dashes say what the colour does.
LOOKS: dict[str, tuple[str, Any, Any]] = {
    "depth": (BLUE, "s", (0, (5, 1.5))),
    "width": (GREEN, "^", (0, (3, 1.2, 1, 1.2))),
    "resolution": (ORANGE, "o", (0, (1, 1))),
    "depth + width": (SKY, "D", (0, (5, 1.5))),
    "depth + resolution": (PURPLE, "v", (0, (5, 1.5))),
    "width + resolution": (GREY, "P", (0, (5, 1.5))),
    "compound": (VERMILLION, "*", "-"),
    "baseline": (BLACK, "X", "-"),
}
_PAIRS = ((BLUE, "s"), (VERMILLION, "o"), (GREEN, "^"), (PURPLE, "D"), (ORANGE, "v"), (GREY, "P"))
OTHERS: list[tuple[str, Any, Any]] = [(colour, shape, "-") for colour, shape in _PAIRS]


class Line(NamedTuple):
    """Points joined in their order; `low` and `high` are ends of intervals, NaN where there are none."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    labels: Sequence[str]
    joined: bool = True


class Panel(NamedTuple):
    """Axes with their lines; `powers` are the ticks of a logarithmic x axis, none for an even one."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    powers: Sequence[float] = ()
    curves: Sequence[tuple[str, Sequence[float], Sequence[float]]] = ()  # thin lines without points: what was fitted


@drawing.style()
def draw_panels(panels: Sequence[Panel], *, title: str, foot: str = "") -> Figure:
    """Panels side by side: one is a column wide, several are two; a legend of all names above them."""
    from matplotlib.lines import Line2D

    shared = len({panel.y_label for panel in panels}) == 1
    figure = drawing.sheet(*((3.4, 3.1) if len(panels) == 1 else (7.0, 2.7)))
    (columns,) = figure.subplots(1, len(panels), squeeze=False, sharey=shared)
    names = list(dict.fromkeys(line.name for panel in panels for line in panel.lines))
    unknown = [name for name in names if name not in LOOKS]
    looks = {name: LOOKS.get(name) or OTHERS[unknown.index(name) % len(OTHERS)] for name in names}
    for axes, panel in zip(columns, panels, strict=True):
        _panel(axes, panel, looks)
    for axes, panel in zip(columns, panels, strict=True):
        lines = [line for one in (panels if shared else [panel]) for line in one.lines]
        low, high = limits(*(ends for line in lines for ends in (line.y, line.low, line.high)), least=1.0)
        axes.set_ylim(low, high + 0.08 * (high - low))
        if axes is columns[0] or not shared:
            axes.set_ylabel(panel.y_label)
    handles = []
    if len(panels) == 1 or any(len(panel.lines) != 1 for panel in panels):  # else the panels' titles are the names
        for name, (colour, shape, dashes) in looks.items():
            handles.append(Line2D([], [], color=colour, marker=shape, linestyle=dashes, markersize=4, label=name))
    drawing.head(figure, title, handles)
    drawing.foot(figure, foot)
    for axes, panel in zip(columns, panels, strict=True):
        places = [place for line in panel.lines for place in zip(line.x, line.y, line.labels, strict=True)]
        drawing.label(axes, [(x, y, label) for x, y, label in places if label and math.isfinite(y)], _taken(panel))
    return figure


def _panel(axes: Any, panel: Panel, looks: Mapping[str, tuple[str, Any, Any]]) -> None:
    from matplotlib.ticker import NullFormatter, NullLocator

    for name, xs, ys in panel.curves:
        axes.plot(xs, ys, color=looks[name][0] if name in looks else GREY, linewidth=0.6, alpha=0.7, zorder=1)
    for line in panel.lines:
        colour, marker, dashes = looks[line.name]
        x, y, low, high = (np.asarray(values, float) for values in (line.x, line.y, line.low, line.high))
        known = np.isfinite(low) & np.isfinite(high)
        bars = axes.vlines(x[known], low[known], high[known], color=colour, linewidth=0.8, alpha=0.5)
        bars.set(zorder=2, gid=f"intervals {line.name}")
        size = 7 if marker == "*" else 4
        (drawn,) = axes.plot(x, y, marker=marker, markersize=size, linewidth=1.1, color=colour)
        drawn.set(linestyle=dashes if line.joined else "none", gid=f"line {line.name}", zorder=3 + (marker == "*"))
    if panel.powers:
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(panel.powers), [f"{value:.3g}" for value in panel.powers])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(limits(*(line.x for line in panel.lines), least=1e-9))
    axes.set_xlabel(panel.x_label)
    if panel.title:
        axes.set_title(panel.title, fontsize=8)


def _taken(panel: Panel) -> list[tuple[float, float]]:
    """Where ink is, that a label should not cover: points, bars, and the lines between points."""
    taken: list[tuple[float, float]] = []
    for line in panel.lines:
        points = list(zip(line.x, line.y, strict=True))
        taken += 6 * points
        for x, low, high in zip(line.x, line.low, line.high, strict=True):
            taken += [(x, float(y)) for y in np.linspace(low, high, 7)]
        if line.joined:
            for one, next_one in itertools.pairwise(points):
                taken += [(float(x), float(y)) for x, y in np.linspace(one, next_one, 16)]
    return [(x, y) for x, y in taken if math.isfinite(y)]


@drawing.style()
def draw_maps(
    images: NDArray[np.uint8], maps: NDArray[np.float32], names: Sequence[str], boxes: NDArray[np.int64], *, title: str
) -> Figure:
    """Images (n, H, W) in rows, and beside each the activation maps (n, M, H, W) in 0..1 of M models over it.

    As the paper's Figure 7; the box is where the object is.
    """
    from matplotlib.patches import Rectangle

    rows, models = maps.shape[:2]
    wide = 7.0
    figure = drawing.sheet(wide, 0.25 + rows * wide / (models + 1))
    places: Any = figure.subplots(rows, models + 1, squeeze=False, gridspec_kw={"wspace": 0.03, "hspace": 0.03})
    for row, column in np.ndindex(rows, models + 1):
        axes, (left, top, right, bottom) = places[row, column], boxes[row].tolist()
        axes.imshow(images[row], cmap="gray", vmin=0, vmax=255)
        if column:
            axes.imshow(maps[row, column - 1], cmap="inferno", vmin=0, vmax=1, alpha=0.65)
        box = Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False)
        box.set(edgecolor="white", linewidth=0.7)
        axes.add_patch(box)
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        if row == 0:
            axes.set_title(names[column - 1] if column else "image and box", fontsize=7.5)
    drawing.head(figure, title)
    return figure
