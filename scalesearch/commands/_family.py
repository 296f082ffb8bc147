"""What several commands show of networks: the table of a family, footprints, and how a budget was met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scalesearch.budget import Footprint, Limits, words, written
from scalesearch.fitting import ENOUGH, Fit
from scalesearch.scaling import Coefficients, Rounding
from scalesearch.screen import Row, Screen
from scalesearch.text import count

FOOTPRINT_COLUMNS = {"memory": "memory", "training_memory": "training memory", "latency_ms": "latency"}

PAPERS_WORDS = (
    "coefficients of the EfficientNet paper, found for EfficientNet-B0 on ImageNet; a search for your own baseline and "
    "data, `scalesearch run`, then study=NAME, is better"
)


def show_family(
    out: Screen, name: str, coefficients: Coefficients, rounding: Rounding, family: Sequence[Mapping[str, Any]]
) -> None:
    """The variants as a table: the nominal cost 2^phi beside the counted one."""
    rows = [
        {
            "name": row["name"],
            "phi": f"{row['phi']:g}",
            "nominal": f"{row['nominal_ratio']:.4g}",
            "counted": f"{row['macs_ratio']:.4g}",
            "macs": count(row["macs"]),
            "params": count(row["params"]),
            "depth": f"{row['depth']:.4g}",
            "resolution": str(row["resolution"]),
            **footprint_words(row),
        }
        for row in family
    ]
    headings = {"name": "variant", "phi": "phi", "nominal": "2^phi", "counted": "counted ratio"}
    costs = {"macs": "multiply-adds", "params": "params", "depth": "blocks", "resolution": "px"}
    title = (
        f"{name} scaled by alpha (depth) = {coefficients.alpha:g}, beta (width) = {coefficients.beta:g}, "
        f"gamma (resolution) = {coefficients.gamma:g}, rounding {rounding.name}"
    )
    out.table(title, rows, headings | costs)
    if all("memory" in row for row in rows):
        out.table("What they need", rows, {"name": "variant"} | FOOTPRINT_COLUMNS)


def footprint_words(row: Row) -> dict[str, str]:
    """The footprint in a row of a table, as far as the row has it."""
    return {name: words(name, row[name]) for name in Footprint._fields if name in row}


def fit_words(fit: Fit, limits: Limits) -> str:
    """How a variant came to meet its limits, how much of each it uses, and why not more; one line each."""
    variant, given = fit.variant, limits.given()
    moves = f"; then, to use the budget up: {', '.join(map(str, variant.moves))}" if variant.moves else ""
    used = {name: f"{100 * share:.2f} % of {_limit_words(name, given[name])}" for name, share in fit.use.items()}
    others = "".join(f"; {line}" for name, line in used.items() if name != fit.binding)
    lines = [f"phi = {variant.phi:g}{moves}", f"it uses {used[fit.binding]}, which binds{others}"]
    if fit.share < ENOUGH and fit.binding == "latency_ms":
        lines.append("the next phi or resolution took longer; measured times vary by some percent")
    elif fit.share < ENOUGH:
        lines.append(
            "the grain allows no more: the next phi, resolution, channels or repeats of a row, in whole steps of the "
            "rounding, go beyond a limit or what a table can hold"
        )
    return "\n".join(lines)


def unmet_words(fit: Fit, limits: Limits) -> str:
    """That even the smallest network exceeds a limit."""
    network, limit = fit.variant.network, limits.given()[fit.binding]
    return (
        f"no network meets budget.{fit.binding}={written(fit.binding, limit)}: the smallest that the rule gives "
        f"(phi = {fit.variant.phi:g}, {network.resolution} px) needs {words(fit.binding, fit.share * limit)}, "
        f"{fit.share:.3g} x as much. Raise the budget, or take a smaller baseline"
    )


def _limit_words(metric: str, limit: float) -> str:
    return f"budget.{metric}={written(metric, limit)}"
