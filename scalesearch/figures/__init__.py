"""The last step: what was found, as figures for a paper (after sections 3.3 and 5.1 of arXiv:1905.11946).

Each figure is two functions: `..._data(table)` takes the numbers out of a table, `draw_...(numbers)` makes a matplotlib
`Figure` of them. To add one, write the two and add a row to `FIGURES`. Nothing here goes through pyplot, so no display
is needed and no figure stays registered anywhere.
"""

from __future__ import annotations

import json
import textwrap
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from pandas import DataFrame

BASELINE = "baseline"  # the row of the candidates table that is the 1x network


class AccuracyAgainstMacs(NamedTuple):
    """An entry for each candidate that has an accuracy, and for the 1x network; accuracies in percent."""

    candidate: tuple[str, ...]
    role: tuple[str, ...]  # "chosen", "tied", "other", or "baseline" for the 1x network
    label: tuple[str, ...]  # what stands beside the point; empty for most
    macs: NDArray[np.float64]
    macs_ratio: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    low: NDArray[np.float64]  # ends of the confidence interval; NaN where there is none (one seed)
    high: NDArray[np.float64]
    left_out: tuple[str, ...]  # those without an accuracy: all their evaluations failed


def accuracy_against_macs_data(candidates: DataFrame) -> AccuracyAgainstMacs:
    """The points of `draw_accuracy_against_macs`: accuracy and counted cost of every candidate and of the 1x network.

    Labelled are the chosen candidate, and the best one of each kind that the paper compares: depth only, width only,
    resolution only, compound (all three). A candidate that stands for several triples is of the plainest kind among
    them, because it is that network.
    """
    table, left_out = _finished(candidates, "triples", "val_accuracy_low", "val_accuracy_high")
    names, roles = list(table["candidate"]), _roles(table)
    kinds = [_kind(triples) for triples in table["triples"]]
    accuracy = 100 * table["val_accuracy_mean"].to_numpy(float)
    labelled = [i for i, role in enumerate(roles) if role == "chosen"]
    for kind in ("depth only", "width only", "resolution only", "compound"):
        same = [i for i, role in enumerate(roles) if kinds[i] == kind and role != BASELINE]
        if same and not set(same) & set(labelled):
            labelled.append(max(same, key=lambda i: float(accuracy[i])))
    return AccuracyAgainstMacs(
        candidate=tuple(names),
        role=roles,
        label=tuple(f"{kinds[i]} ({name})" if i in labelled else "" for i, name in enumerate(names)),
        macs=table["macs"].to_numpy(float),
        macs_ratio=table["macs_ratio"].to_numpy(float),
        accuracy=accuracy,
        low=100 * table["val_accuracy_low"].to_numpy(float),
        high=100 * table["val_accuracy_high"].to_numpy(float),
        left_out=left_out,
    )


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


def draw_accuracy_against_macs(numbers: AccuracyAgainstMacs, *, title: str = "") -> Figure:
    """Validation accuracy against counted multiply-adds, one column wide; intervals as bars, the choice marked.

    Candidates cost nearly the same and the 1x network much less: the x axis is broken between them where that gap is
    wider than the candidates' own range. The upper axis is the cost as a ratio to the 1x network.
    """
    with _style():
        figure = _figure(3.4, 3.0)
        if not numbers.candidate:
            return _nothing(figure, title, numbers.left_out)
        per_unit, unit = (1e9, "G") if numbers.macs.max() >= 1e9 else (1e6, "M")
        cost, role = numbers.macs / per_unit, np.array(numbers.role, dtype=object)
        is_baseline = role == BASELINE
        is_broken = False
        if is_baseline.any() and not is_baseline.all():
            gap = cost[~is_baseline].min() - cost[is_baseline].max()
            is_broken = bool(gap > np.ptp(cost[~is_baseline]))
        if is_broken:
            first, axes = figure.subplots(1, 2, sharey=True, width_ratios=(1, 6))
            _break(first, axes)
            first.set_xlim(_range(cost[is_baseline], least=0.04 * cost.max()))
            first.set_xticks(cost[is_baseline], [f"{value:.3g}" for value in cost[is_baseline]])
        else:
            first = axes = figure.subplots()
        axes.set_xlim(_range(cost[~is_baseline] if is_broken else cost, least=0.04 * cost.max()))
        low, high = _range(numbers.accuracy, numbers.low, numbers.high, least=0.5)
        axes.set_ylim(low, high + 0.1 * (high - low))  # room for labels above the best
        axes.set_xlabel(f"multiply-adds ({unit})")
        first.set_ylabel("validation accuracy (%)")

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
        for side in (first, axes) if is_broken else (axes,):
            upper = side.secondary_xaxis("top", functions=(lambda macs: macs / one, lambda ratio: ratio * one))
            if is_broken and side is first:
                upper.set_xticks([1.0], ["1"])
            else:
                upper.set_xlabel("counted ratio to the 1x network")
        _head(figure, title, [handles[name] for name in ("chosen", "tied", "other", BASELINE) if name in handles])
        without = int((~has_interval).sum())
        some = f"; {without} of {cost.size} have none (one seed)" if without else ""
        bars_are = f"Bars: confidence intervals{some}." if without < cost.size else "No intervals (one seed)."
        _foot(figure, bars_are, numbers.left_out)

        chosen_first = sorted(range(len(role)), key=lambda i: role[i] != "chosen")
        labels = [(cost[i], numbers.accuracy[i], numbers.label[i]) for i in chosen_first if numbers.label[i]]
        taken = [
            (x, y) for x, y in zip(cost, numbers.accuracy, strict=True) for _ in range(10)
        ]  # a bar may be covered sooner
        for i in np.flatnonzero(has_interval):
            taken += [(cost[i], y) for y in np.linspace(numbers.low[i], numbers.high[i], 9)]
        _label(axes, labels, taken)
        return figure


def _break(left: Axes, right: Axes) -> None:
    """Marks the x axis as interrupted between two axes that share their y axis."""
    left.spines.right.set_visible(False)
    right.spines.left.set_visible(False)
    right.tick_params(left=False, labelleft=False)
    for side, x in ((left, 1), (right, 0)):
        mark: dict[str, Any] = {
            "marker": [(-0.6, -1), (0.6, 1)],
            "markersize": 6,
            "linestyle": "none",
            "color": "black",
        }
        side.plot([x, x], [0, 1], transform=side.transAxes, clip_on=False, markeredgewidth=0.6, **mark)


class CoefficientsParallel(NamedTuple):
    """A row for each candidate that has an accuracy, a column for each of `axes`; the 1x network is not among them."""

    candidate: tuple[str, ...]
    role: tuple[str, ...]  # "chosen", "tied" or "other"
    axes: tuple[str, ...]
    values: NDArray[np.float64]  # (candidates, axes); the last axis is the accuracy in percent
    left_out: tuple[str, ...]


def coefficients_parallel_data(candidates: DataFrame) -> CoefficientsParallel:
    """The lines of `draw_coefficients_parallel`; the 1x network is no candidate and has none."""
    table, left_out = _finished(candidates, "alpha", "beta", "gamma")
    table = table[table["candidate"] != BASELINE]
    values = table[["alpha", "beta", "gamma", "macs_ratio", "val_accuracy_mean"]].to_numpy(float, copy=True)
    values[:, -1] *= 100
    return CoefficientsParallel(
        candidate=tuple(table["candidate"]),
        role=_roles(table),
        axes=("alpha (depth)", "beta (width)", "gamma (resolution)", "counted ratio to 1x", "accuracy (%)"),
        values=values,
        left_out=tuple(name for name in left_out if name != BASELINE),
    )


def draw_coefficients_parallel(numbers: CoefficientsParallel, *, title: str = "") -> Figure:
    """Parallel coordinates of the candidates, two columns wide: a line each, coloured by accuracy, darker is better."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import Normal, Stroke

    with _style():
        figure = _figure(7.0, 2.7)
        if not numbers.candidate:
            return _nothing(figure, title, numbers.left_out)
        host = figure.subplots()
        last = len(numbers.axes) - 1
        host.set(xlim=(0, last), ylim=(0, 1), xticks=range(last + 1), yticks=[])
        host.set_xticklabels(numbers.axes)
        host.xaxis.tick_top()
        host.tick_params(length=0, pad=6, labelsize=8)
        host.spines[:].set_visible(False)

        # An axis apiece with its own scale; the lines lie in the host, at their place between 0 and 1 on each.
        ranges = np.array([_range(column, least=0.1) for column in numbers.values.T])
        for at, (name, (low, high)) in enumerate(zip(numbers.axes, ranges, strict=True)):
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
        heights = (numbers.values - ranges[:, 0]) / (ranges[:, 1] - ranges[:, 0])

        accuracy = ScalarMappable(Normalize(*ranges[-1]), _colours())
        front = {"other": 1, "tied": 2, "chosen": 3}
        for i in sorted(range(len(numbers.role)), key=lambda i: (front[numbers.role[i]], numbers.values[i, -1])):
            role = numbers.role[i]
            (line,) = host.plot(heights[i], color=accuracy.to_rgba(numbers.values[i, -1]), **LINES[role])
            line.set(clip_on=False, gid=f"line {numbers.candidate[i]}")
            if role == "chosen":
                line.set_path_effects([Stroke(linewidth=4.5, foreground="white"), Normal()])
        bar = figure.colorbar(accuracy, ax=host, pad=0.015, aspect=25)
        bar.set_label("validation accuracy (%)")
        bar.outline.set_visible(False)
        shown = [role for role in ("chosen", "tied", "other") if role in numbers.role]
        _head(figure, title, [Line2D([], [], color=BLACK, label=ROLES[role].words, **LINES[role]) for role in shown])
        _foot(figure, "", numbers.left_out)
        return figure


class FamilyCost(NamedTuple):
    """An entry for each variant, by rising phi; phi = 0 is the baseline itself. Ratios are to it."""

    label: tuple[str, ...]
    phi: NDArray[np.float64]
    nominal_ratio: NDArray[np.float64]  # 2^phi
    product_ratio: NDArray[np.float64]  # (alpha * beta^2 * gamma^2)^phi
    macs_ratio: NDArray[np.float64]  # counted


def family_cost_data(family: DataFrame) -> FamilyCost:
    """The points and lines of `draw_family_cost`, labelled with each variant's resolution and depth."""
    _need(family, "phi", "nominal_ratio", "product_ratio", "macs_ratio", "depth", "resolution")
    if family.empty:
        raise ValueError("the family table has no rows; it has one for each variant, and one for phi = 0")
    family = family.sort_values("phi", kind="stable")
    return FamilyCost(
        label=tuple(f"{r} px, {d} blocks" for r, d in zip(family["resolution"], family["depth"], strict=True)),
        phi=family["phi"].to_numpy(float),
        nominal_ratio=family["nominal_ratio"].to_numpy(float),
        product_ratio=family["product_ratio"].to_numpy(float),
        macs_ratio=family["macs_ratio"].to_numpy(float),
    )


def draw_family_cost(numbers: FamilyCost, *, title: str = "") -> Figure:
    """What the variants cost against what they should, by phi, one column wide; the y axis doubles at every tick."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    with _style():
        figure = _figure(3.4, 2.8)
        axes = figure.subplots()
        # Powers are straight on this axis, so the variants' own values are the whole line.
        lines: dict[str, Any] = {"marker": "", "linewidth": 1}
        axes.plot(numbers.phi, numbers.nominal_ratio, "--", color=GREY, label=r"$2^\phi$", gid="nominal", **lines)
        words = r"$(\alpha\,\beta^2\gamma^2)^\phi$"
        axes.plot(numbers.phi, numbers.product_ratio, "-", color=BLUE, label=words, gid="product", **lines)
        points = axes.scatter(numbers.phi, numbers.macs_ratio, 22, marker="o", facecolor=VERMILLION, label="counted")
        points.set(edgecolor="white", linewidth=0.5, zorder=3, gid="counted")
        ratios = np.concatenate([numbers.nominal_ratio, numbers.product_ratio, numbers.macs_ratio])
        low, high = _range(np.log2(ratios), least=2)
        axes.set_yscale("log", base=2)
        axes.set(ylim=(2**low, 2**high), xlim=_range(numbers.phi, least=1), xlabel="phi (compound coefficient)")
        axes.set_ylabel("multiply-adds (ratio to phi = 0)")
        axes.xaxis.set_major_locator(MaxNLocator(9, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(LogLocator(base=2, numticks=12))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}"))
        axes.legend(loc="upper left")
        _head(figure, title)
        taken = [(x, y) for x, y in zip(numbers.phi, numbers.macs_ratio, strict=True) for _ in range(10)]
        along = np.linspace(numbers.phi.min(), numbers.phi.max(), 80)
        for ratio in (numbers.nominal_ratio, numbers.product_ratio):
            taken += list(zip(along, 2 ** np.interp(along, numbers.phi, np.log2(ratio)), strict=True))
        _label(axes, list(zip(numbers.phi, numbers.macs_ratio, numbers.label, strict=True)), taken)
        return figure


class Drawing(NamedTuple):
    """How a figure is made: from which table, by which two functions."""

    table: str  # "candidates" or "family"
    data: Callable[[DataFrame], Any]
    draw: Callable[..., Figure]


FIGURES = {
    "accuracy_against_macs": Drawing("candidates", accuracy_against_macs_data, draw_accuracy_against_macs),
    "coefficients_parallel": Drawing("candidates", coefficients_parallel_data, draw_coefficients_parallel),
    "family_cost": Drawing("family", family_cost_data, draw_family_cost),
}


def draw_all(tables: Mapping[str, DataFrame], directory: Path, *, title: str) -> list[Path]:
    """The files of every figure whose table is given, as `<name>.png` (200 dpi) and `<name>.svg` in `directory`.

    The same tables give the same bytes with the same matplotlib: the files carry no date. Text in the SVG stays text.

    Raises:
        ValueError: a table has a name that no figure reads, or lacks a column.
    """
    known = sorted({drawing.table for drawing in FIGURES.values()})
    if unknown := sorted(set(tables) - set(known)):
        raise ValueError(f"no figure reads a table '{unknown[0]}'; known tables: {', '.join(known)}")
    directory.mkdir(parents=True, exist_ok=True)
    files = []
    for name, drawing in FIGURES.items():
        if drawing.table in tables:
            figure = drawing.draw(drawing.data(tables[drawing.table]), title=title)
            for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Title": f"{title}: {name}"})):
                files.append(directory / f"{name}.{suffix}")
                with _style():
                    figure.savefig(files[-1], metadata=metadata)
    return files


# What the figures have in common. The colours are Okabe and Ito's, told apart by every kind of colour vision.
BLACK, GREY, BLUE, VERMILLION = "#000000", "#767676", "#0072B2", "#D55E00"
STYLE: dict[str, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.title_fontsize": 8,
    "figure.titlesize": 8,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "savefig.dpi": 200,
    "svg.fonttype": "none",
    "svg.hashsalt": "scalesearch",  # else the ids in an SVG are random
}


class _Marker(NamedTuple):
    words: str
    shape: str
    edge: str
    face: str
    size: float


# From back to front. Shape and filling say the same as the colour does.
ROLES = {
    "other": _Marker("other", "o", GREY, "white", 12),
    "tied": _Marker("tied with it", "D", BLUE, "#9ACBE8", 15),
    BASELINE: _Marker("1x network", "s", BLACK, BLACK, 16),
    "chosen": _Marker("chosen", "*", VERMILLION, VERMILLION, 75),
}
LINES: dict[str, dict[str, Any]] = {
    "chosen": {"linewidth": 3, "linestyle": "-", "zorder": 4},
    "tied": {"linewidth": 1.3, "linestyle": (0, (4, 1.5)), "zorder": 3},
    "other": {"linewidth": 0.8, "linestyle": "-", "alpha": 0.75, "zorder": 2},
}
# Where a label may lie from its point, the preferred first.
DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), *((x, y) for x in (1, -1, 0.5, -0.5) for y in (1, -1)))
_SETTINGS = threading.RLock()


@contextmanager
def _style() -> Iterator[None]:
    """Ours and matplotlib's own defaults, whatever the user's matplotlibrc says.

    matplotlib's settings are global: the lock keeps two threads that draw from restoring each other's.
    """
    import matplotlib.style

    with _SETTINGS, matplotlib.style.context(["default", STYLE]):
        yield


def _figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches; `_head` and `_foot` make it higher by what they write."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _head(figure: Figure, title: str, handles: Sequence[Artist] = ()) -> None:
    """The title, and the legend under it. They are one artist: matplotlib's layout would lay one over the other."""
    lines = textwrap.wrap(title.replace("$", r"\$"), int(figure.get_figwidth() * 15))
    figure.set_figheight(figure.get_figheight() + 0.14 * len(lines))
    if handles:
        style: dict[str, Any] = {"columnspacing": 1, "handletextpad": 0.5, "borderaxespad": 0.2}
        longest = max(len(str(handle.get_label())) for handle in handles)
        columns = max(1, min(4, int(figure.get_figwidth() * 18 / (longest + 6))))
        figure.legend(
            handles=handles, title="\n".join(lines) or None, loc="outside upper center", ncols=columns, **style
        )
    elif lines:
        figure.suptitle("\n".join(lines))


def _foot(figure: Figure, sentence: str, left_out: Sequence[str]) -> None:
    """Small print: the sentence, and who is not in the figure."""
    if left_out:
        some = ", ".join(left_out[:6]) + (", ..." if len(left_out) > 6 else "")
        sentence += f" Not drawn because training failed: {len(left_out)} ({some})."
    lines = textwrap.wrap(sentence, int(figure.get_figwidth() * 22))
    if lines:
        figure.set_figheight(figure.get_figheight() + 0.11 * len(lines))
        figure.supxlabel("\n".join(lines), fontsize=6, color="#444444", x=0.01, ha="left")


def _nothing(figure: Figure, title: str, left_out: Sequence[str]) -> Figure:
    """The figure when there is nothing to draw, which says so."""
    axes = figure.subplots()
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, "no candidate has an accuracy", ha="center", transform=axes.transAxes)
    _head(figure, title)
    _foot(figure, "", left_out)
    return figure


def _colours() -> Colormap:
    """Viridis from light to dark, without the yellow that is lost on white paper."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    return ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0.93, 0, 256)))


def _range(*values: NDArray[np.float64], least: float) -> tuple[float, float]:
    """Limits of an axis around all finite values, never narrower than `least`.

    Set by hand because matplotlib's own would magnify the rounding error between equal numbers.
    """
    finite = np.concatenate(values)
    finite = finite[np.isfinite(finite)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    margin = max(0.08 * (high - low), (least - (high - low)) / 2)
    return low - margin, high + margin


def _label(axes: Axes, labels: Sequence[tuple[float, float, str]], taken: Sequence[tuple[float, float]]) -> None:
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
    for x, y, text in labels:
        note = axes.annotate(text, (x, y), (0, 0), textcoords="offset points", fontsize=6.5, ha="center", va="center")
        extent = note.get_window_extent(renderer)
        half = np.array([extent.width, extent.height]) / per_point / 2 + 1
        at = axes.transData.transform((x, y))
        cheapest = np.inf
        for distance in (4, 7, 11, 16, 22, 30, 40, 52):
            for direction in DIRECTIONS:
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
        style: dict[str, Any] = {"fontsize": 6.5, "ha": "center", "va": "center", "arrowprops": line, "zorder": 9}
        note = axes.annotate(text, (x, y), place, textcoords="offset points", **style)
        note.set(in_layout=False, path_effects=[Stroke(linewidth=1.5, foreground="white"), Normal()])


def _finished(candidates: DataFrame, *columns: str) -> tuple[DataFrame, tuple[str, ...]]:
    """The rows that have an accuracy, and the names of those that have none."""
    _need(candidates, "candidate", "macs", "macs_ratio", "val_accuracy_mean", "chosen", "tied", *columns)
    finished = np.isfinite(candidates["val_accuracy_mean"].to_numpy(float))
    return candidates[finished], tuple(candidates["candidate"][~finished])


def _roles(candidates: DataFrame) -> tuple[str, ...]:
    """Of each row: "baseline", "chosen", "tied" or "other"."""
    conditions = (candidates["candidate"] == BASELINE, candidates["chosen"].eq(True), candidates["tied"].eq(True))
    return tuple(np.select(conditions, (BASELINE, "chosen", "tied"), "other").tolist())


def _need(table: DataFrame, *columns: str) -> None:
    for name in columns:
        if name not in table.columns:
            raise ValueError(f"a figure needs the column '{name}'; the table has: {', '.join(table.columns)}")
