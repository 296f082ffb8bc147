"""The counted cost over the nominal product: of the choice, over all candidates, and of the choice's variants."""

from __future__ import annotations

from scalesearch.report.facts import Facts
from scalesearch.report.questions import Values, scaled, table

ORDER = 4
TITLE = "What does it cost really?"


def answer(facts: Facts) -> Values:
    """Ratios to the 1x network; a factor is the counted one over the nominal one."""
    factors = {one.id: one.ratio / one.coefficients.product for one in scaled(facts)}
    chosen = facts.candidates[facts.choice.chosen]
    low, high = (pick(factors, key=lambda name: factors[name]) for pick in (min, max))
    return {
        "chosen": chosen.id,
        "product": chosen.coefficients.product,
        "macs_ratio": chosen.ratio,
        "factor": factors[chosen.id],
        "lowest": {"candidate": low, "factor": factors[low]},
        "highest": {"candidate": high, "factor": factors[high]},
        "variants": [
            {"name": row["name"], "phi": row["phi"], "nominal": row["nominal_ratio"], "macs_ratio": row["macs_ratio"]}
            for row in facts.study.result["variants"]
            if row["phi"] != 0
        ],
    }


def words(values: Values) -> list[str]:
    low, high = values["lowest"], values["highest"]
    variants = [
        {
            "variant": row["name"],
            "phi": f"{row['phi']:g}",
            "nominal": f"{row['nominal']:.4g}",
            "counted": f"{row['macs_ratio']:.4g}",
            "counted / nominal": f"{row['macs_ratio'] / row['nominal']:.3f}",
        }
        for row in values["variants"]
    ]
    return [
        f"{values['chosen']} costs {values['macs_ratio']:.3f} times the 1x network in counted multiply-adds, where its "
        f"product says {values['product']:.3f}: {_excess(values['factor'])}.",
        f"Over the candidates that goes from {_excess(low['factor'])} ({low['candidate']}) to "
        f"{_excess(high['factor'])} ({high['candidate']}). These are counts, without error.",
        *table(variants),
    ]


def _excess(factor: float) -> str:
    return f"{100 * (factor - 1):+.1f} %"
