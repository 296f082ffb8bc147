"""The three dimensions, and their mixes, in the words and the order of the paper's figures."""

from __future__ import annotations

from scalesearch.paper.points import Point, Setting, coefficients_of
from scalesearch.scaling import Coefficients

SINGLE = ("depth", "width", "resolution")
MIXES = ("depth + width", "depth + resolution", "width + resolution")
COMPOUND = "compound"
BASELINE = "baseline"


def matched_points(
    setting: Setting, ratios: tuple[float, ...], compound: Coefficients, *, mixes: bool = True
) -> list[Point]:
    """The baseline, and each dimension, each mix of two if asked, and compound at `ratios` times its counted cost."""
    base = setting.baseline
    curves = {name: coefficients_of(*name.split(" + ")) for name in (*SINGLE, *(MIXES if mixes else ()))}
    curves[COMPOUND] = compound
    return [
        setting.point(BASELINE, "1x", 1.0, base),
        *(setting.matched(name, ratio, base, rule) for ratio in ratios for name, rule in curves.items()),
    ]
