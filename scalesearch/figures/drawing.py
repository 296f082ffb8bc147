"""What all figures share: style, size, title and legend, ranges of axes, labels of points, files.

Nothing here goes through pyplot, so no display is needed and no figure stays registered anywhere.
"""

from __future__ import annotations

import io
import itertools
import textwrap
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from scalesearch.ledger import write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

# Okabe and Ito's colours, told apart by every kind of colour vision.
BLACK, GREY, BLUE, VERMILLION = "#000000", "#767676", "#0072B2", "#D55E00"
GREEN, PURPLE, ORANGE, SKY = "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
STYLE: dict[str, Any] = {
    **dict.fromkeys(("font.size", "axes.labelsize", "legend.title_fontsize", "figure.titlesize"), 8),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 7),
    **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.6),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 2.5),
    **{"axes.grid": True, "axes.axisbelow": True, "axes.formatter.useoffset": False, "legend.frameon": False},
    **{"grid.color": "#E3E3E3", "grid.linewidth": 0.5, "savefig.dpi": 200, "svg.fonttype": "none"},
    "svg.hashsalt": "scalesearch",  # else the ids in an SVG are random
}
# Where a label may lie from its point, the preferred first.
DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), *((x, y) for x in (1, -1, 0.5, -0.5) for y in (1, -1)))
_SETTINGS = threading.RLock()


@contextmanager
def style() -> Iterator[None]:
    """Ours and matplotlib's own defaults, whatever the user's matplotlibrc says.

    matplotlib's settings are global: the lock keeps two threads that draw from restoring each other's.
    """
    import matplotlib.style

    with _SETTINGS, matplotlib.style.context(["default", STYLE]):
        yield


def sheet(width: float, height: float) -> Figure:
    """An empty figure of so many inches; `head` and `foot` make it higher by what they write."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def head(figure: Figure, title: str, handles: Sequence[Artist] = ()) -> None:
    """The title, and the legend under it. They are one artist: matplotlib's layout would lay one over the other."""
    lines = textwrap.wrap(title.replace("$", r"\$"), int(figure.get_figwidth() * 15))
    figure.set_figheight(figure.get_figheight() + 0.14 * len(lines))
    if handles:
        spaces: dict[str, Any] = {"columnspacing": 1, "handletextpad": 0.5, "borderaxespad": 0.2}
        longest = max(len(str(handle.get_label())) for handle in handles)
        columns = max(1, min(4, int(figure.get_figwidth() * 18 / (longest + 6))))
        words = "\n".join(lines) or None
        figure.legend(handles=handles, title=words, loc="outside upper center", ncols=columns, **spaces)
    elif lines:
        figure.suptitle("\n".join(lines))


def foot(figure: Figure, sentence: str, left_out: Sequence[str] = ()) -> None:
    """Small print: the sentence, and who is not in the figure."""
    if left_out:
        some = ", ".join(left_out[:6]) + (", ..." if len(left_out) > 6 else "")
        sentence += f" Not drawn because training failed: {len(left_out)} ({some})."
    lines = textwrap.wrap(sentence, int(figure.get_figwidth() * 22))
    if lines:
        figure.set_figheight(figure.get_figheight() + 0.11 * len(lines))
        figure.supxlabel("\n".join(lines), fontsize=6, color="#444444", x=0.01, ha="left")


def limits(*values: ArrayLike, least: float) -> tuple[float, float]:
    """Limits of an axis around all finite values, never narrower than `least`.

    Set by hand because matplotlib's own would magnify the rounding error between equal numbers.
    """
    finite = np.concatenate([np.asarray(part, float) for part in values])
    finite = finite[np.isfinite(finite)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    margin = max(0.08 * (high - low), (least - (high - low)) / 2)
    return low - margin, high + margin


def label(axes: Axes, labels: Sequence[tuple[float, float, str]], taken: Sequence[tuple[float, float]]) -> None:
    """Writes each text near its point, where it covers least of the `taken` places and of the other labels.

    The layout is frozen first: where a label fits depends on where the axes came to lie.
    """
    from matplotlib.patheffects import Normal, Stroke

    figure: Any = axes.figure
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    renderer = figure.canvas.get_renderer()
    per_point = figure.dpi / 72
    inside = axes.get_window_extent(renderer).extents
    legend = axes.get_legend()
    boxes: list[Any] = [legend.get_window_extent(renderer).extents] if legend else []
    pixels = axes.transData.transform(np.array(taken, dtype=float).reshape(-1, 2))
    font: dict[str, Any] = {"textcoords": "offset points", "fontsize": 6.5, "ha": "center", "va": "center"}
    for x, y, text in labels:
        note = axes.annotate(text, (x, y), (0, 0), **font)
        extent = note.get_window_extent(renderer)
        half = np.array([extent.width, extent.height]) / per_point / 2 + 1
        at = axes.transData.transform((x, y))
        cheapest = np.inf
        for distance, direction in itertools.product((4, 7, 11, 16, 22, 30, 40, 52), DIRECTIONS):
            away = distance * (0.75 if all(direction) else 1)
            shift = np.array(direction) * (away + half)
            box = np.concatenate([at + (shift - half) * per_point, at + (shift + half) * per_point])
            hidden = int(np.all((pixels >= box[:2]) & (pixels <= box[2:]), axis=1).sum())
            overlaid = sum(bool(np.all(box[:2] < other[2:]) and np.all(box[2:] > other[:2])) for other in boxes)
            leader = np.linspace(at, at + shift * per_point, 12)
            crossed = sum(bool(np.any(np.all((leader > b[:2]) & (leader < b[2:]), axis=1))) for b in boxes)
            outside = bool(np.any(box[:2] < inside[:2]) or np.any(box[2:] > inside[2:]))
            price = hidden + 30 * crossed + 1000 * (overlaid + outside) + 0.6 * distance
            if price < cheapest:
                cheapest, gap, place, here, line_at = price, distance, shift, box, leader
        boxes.append(here)
        pixels = np.concatenate([pixels, line_at])
        note.remove()
        line = {"arrowstyle": "-", "color": GREY, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2.5} if gap > 7 else None
        note = axes.annotate(text, (x, y), place, arrowprops=line, zorder=9, **font)
        note.set(in_layout=False, path_effects=[Stroke(linewidth=1.5, foreground="white"), Normal()])


def save(figure: Figure, directory: Path, name: str, *, title: str) -> list[Path]:
    """The figure as `<name>.png` (200 dpi) and `<name>.svg` with this title in its metadata.

    The same figure gives the same bytes with the same matplotlib: no date is written. Text in the SVG stays text.
    """
    files = []
    for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Title": title})):
        files.append(directory / f"{name}.{suffix}")
        drawn = io.BytesIO()
        with style():
            figure.savefig(drawn, format=suffix, metadata=metadata)
        write_atomic(files[-1], drawn.getvalue())
    return files
