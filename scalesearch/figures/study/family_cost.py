"""What the variants cost against what they should, by phi; the y axis doubles at every tick."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scalesearch.figures.drawing import BLUE, GREY, VERMILLION, head, label, limits, sheet, style
from scalesearch.figures.study import need

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from pandas import DataFrame

TABLE = "family"


class Numbers(NamedTuple):
    """An entry for each variant, by rising phi; phi = 0 is the baseline itself. Ratios are to it."""

    label: tuple[str, ...]
    phi: NDArray[np.float64]
    nominal_ratio: NDArray[np.float64]  # 2^phi
    product_ratio: NDArray[np.float64]  # (alpha * beta^2 * gamma^2)^phi
    macs_ratio: NDArray[np.float64]  # counted


def data(family: DataFrame) -> Numbers:
    """The points and lines, labelled with each variant's resolution and depth."""
    ratios = ("phi", "nominal_ratio", "product_ratio", "macs_ratio")
    need(family, *ratios, "depth", "resolution")
    if family.empty:
        raise ValueError("the family table has no rows; it has one for each variant, and one for phi = 0")
    family = family.sort_values("phi", kind="stable")
    labels = tuple(f"{r} px, {d} blocks" for r, d in zip(family["resolution"], family["depth"], strict=True))
    return Numbers(labels, *(family[name].to_numpy(float) for name in ratios))


@style()
def draw(numbers: Numbers, *, title: str = "") -> Figure:
    """One column wide."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    figure = sheet(3.4, 2.8)
    axes = figure.subplots()
    # Powers are straight on this axis, so the variants' own values are the whole line.
    lines: dict[str, Any] = {"marker": "", "linewidth": 1}
    axes.plot(numbers.phi, numbers.nominal_ratio, "--", color=GREY, label=r"$2^\phi$", gid="nominal", **lines)
    words = r"$(\alpha\,\beta^2\gamma^2)^\phi$"
    axes.plot(numbers.phi, numbers.product_ratio, "-", color=BLUE, label=words, gid="product", **lines)
    points = axes.scatter(numbers.phi, numbers.macs_ratio, 22, marker="o", facecolor=VERMILLION, label="counted")
    points.set(edgecolor="white", linewidth=0.5, zorder=3, gid="counted")
    low, high = limits(*map(np.log2, (numbers.nominal_ratio, numbers.product_ratio, numbers.macs_ratio)), least=2)
    axes.set_yscale("log", base=2)
    axes.set(ylim=(2**low, 2**high), xlim=limits(numbers.phi, least=1), xlabel="phi (compound coefficient)")
    axes.set_ylabel("multiply-adds (ratio to phi = 0)")
    axes.xaxis.set_major_locator(MaxNLocator(9, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(LogLocator(base=2, numticks=12))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}"))
    axes.legend(loc="upper left")
    head(figure, title)
    taken = 10 * list(zip(numbers.phi, numbers.macs_ratio, strict=True))  # a line may be covered sooner
    along = np.linspace(numbers.phi.min(), numbers.phi.max(), 80)
    for ratio in (numbers.nominal_ratio, numbers.product_ratio):
        taken += list(zip(along, 2 ** np.interp(along, numbers.phi, np.log2(ratio)), strict=True))
    label(axes, list(zip(numbers.phi, numbers.macs_ratio, numbers.label, strict=True)), taken)
    return figure
