"""EfficientNet B0 to B7: what their published coefficients cost when they are counted, and which phi they stand for.

arXiv:1905.11946, sections 3.3 and 5.2. The released networks are not alpha^phi, beta^phi, gamma^phi of whole phis: each
dimension of a network implies a phi of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from annotated_types import MinLen

from scalesearch.checks import Must, between, checked
from scalesearch.cost import cost
from scalesearch.figures.paper import Line, Panel, draw_panels
from scalesearch.network import AnyNetwork
from scalesearch.paper.experiment import Figures, PaperExperiment
from scalesearch.paper.points import SINGLE
from scalesearch.paper.tables import number, published
from scalesearch.scaling import Coefficients, Rounding, resize, scale
from scalesearch.text import count

RELEASED, RAW, OTHERS = "B0 to B7 as released", "raw phi", "the paper's Table 2"
B0 = "efficientnet_b0"


@checked("experiment", kw_only=True)
class Experiment(PaperExperiment):
    """coefficients: alpha, beta, gamma of the rule; phis: at which it is taken by the letter.

    The released networks and the paper's Table 2 stand beside it where the baseline is efficientnet_b0.
    """

    coefficients: Coefficients
    phis: Annotated[
        list[Annotated[float, between(0, 20)]],
        MinLen(1),
        Must("a list of numbers from 0 to 20, such as [0, 1, 2]"),
    ]

    def computed(self, baselines: Mapping[str, AnyNetwork], rounding: Rounding) -> pd.DataFrame:
        """One row per network of the three `series`: phis, counted cost and what the paper prints, or NaN."""
        if len(baselines) != 1:
            raise ValueError(f"b_series has one baseline; given: {', '.join(baselines)}")
        base = next(iter(baselines.values()))
        rows = self._released(base, rounding) if base.name == B0 else []
        for phi in sorted(set(self.phis)):
            made = scale(base, self.coefficients, phi, rounding=rounding, name=f"{base.name}_phi{phi:g}")
            rows.append(
                {"series": RAW, "network": f"phi = {phi:g}", "phi": phi, "nominal_ratio": 2.0**phi}
                | {"product_ratio": self.coefficients.product**phi}
                | _counted(made, base)
            )
        if base.name == B0:
            names = {"model": "network", "flops_B": "paper_flops_B", "params_M": "paper_params_M", "top1": "paper_top1"}
            others = published("imagenet_convnets_table2").rename(columns=names)[list(names.values())]
            return pd.concat([pd.DataFrame(rows), others.assign(series=OTHERS)], ignore_index=True)
        return pd.DataFrame(rows)

    def _released(self, base: AnyNetwork, rounding: Rounding) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for place, row in enumerate(published("efficientnet_family").to_dict("records")[:8]):
            depth, width, side = row["depth_coefficient"], row["width_coefficient"], int(row["resolution"])
            made = resize(base, depth=depth, width=width, rounding=rounding, name=f"efficientnet_b{place}")
            made = replace(made, resolution=side)
            rule = self.coefficients
            multipliers = zip(SINGLE, (depth, width, side / base.resolution), vars(rule).values(), strict=True)
            implied = {f"phi_by_{name}": _phi(multiplier, power) for name, multiplier, power in multipliers}
            rows.append(
                {"series": RELEASED, "network": f"B{place}", "phi": float(place), "nominal_ratio": 2.0**place}
                | {"product_ratio": rule.product**place}
                | _counted(made, base)
                | implied
                | {"paper_flops_B": row["flops_B_multadds_table2"], "paper_params_M": row["params_M_table2"]}
                | {"paper_top1": row["top1_table2"]}
            )
        return rows

    def finding(self, summary: pd.DataFrame) -> str:
        raw = summary[summary["series"] == RAW]
        last = raw.to_dict("records")[-1]
        by_rule = (
            f"by the letter phi = {last['phi']:g} costs {last['macs_ratio']:.1f} times the baseline, counted, where "
            f"2^phi is {last['nominal_ratio']:.0f} and (alpha * beta^2 * gamma^2)^phi {last['product_ratio']:.1f}"
        )
        released = summary[summary["series"] == RELEASED]
        if released.empty:
            return f"{by_rule}."
        b7 = released.to_dict("records")[-1]
        phis = sorted(float(b7[f"phi_by_{name}"]) for name in SINGLE)
        gap = (released["macs"] / 1e9 / released["paper_flops_B"] - 1).abs().max()
        return (
            f"B7 as released costs {b7['macs_ratio']:.1f} times B0 where 2^7 is 128, and its multipliers stand for phi "
            f"{phis[0]:.2f} to {phis[-1]:.2f}; {by_rule}; counted multiply-adds are within {100 * gap:.0f} % of "
            "the printed ones."
        )

    def table(self, summary: pd.DataFrame) -> list[dict[str, str]]:
        return [
            {
                "series": str(row["series"]),
                "network": str(row["network"]),
                "px": number(row["pixels"], ".0f"),
                "blocks": number(row["blocks"], ".0f"),
                "multiply-adds": "-" if math.isnan(row["macs"]) else count(row["macs"]),
                "ratio": number(row["macs_ratio"], ".2f"),
                "2^phi": number(row["nominal_ratio"], ".4g"),
                "phi by depth, width, resolution": "-"
                if math.isnan(row.get("phi_by_depth", math.nan))
                else ", ".join(f"{row[f'phi_by_{name}']:.2f}" for name in SINGLE),
                "printed FLOPs (B)": number(row.get("paper_flops_B", math.nan), "g"),
                "printed top-1 (%)": number(row.get("paper_top1", math.nan), ".1f"),
            }
            for row in summary.to_dict("records")
        ]

    def draw(self, summary: pd.DataFrame, directory: Path, *, title: str) -> Figures:
        def line(name: str, rows: pd.DataFrame, x: str, y: str, labels: Sequence[str], joined: bool = True) -> Line:
            none = [math.nan] * len(rows)
            return Line(name, rows[x].tolist(), rows[y].tolist(), none, none, labels, joined)

        raw, released = (summary[summary["series"] == name] for name in (RAW, RELEASED))
        cost_panel = Panel(
            "",
            "phi",
            "log2 of multiply-adds (times the baseline's)",
            [
                line(name, rows.assign(log=rows["macs_ratio"].map(math.log2)), "phi", "log", _sides(rows, name == RAW))
                for name, rows in ((RAW, raw), (RELEASED, released))
                if len(rows)
            ],
            curves=[("2^phi", [0.0, float(raw["phi"].max())], [0.0, float(raw["phi"].max())])],
        )
        figures = {"b_series": draw_panels([cost_panel], title=title, foot="Thin line: 2^phi. Labels: px and blocks.")}
        if len(released):
            others = summary[(summary["series"] == OTHERS) & summary["paper_flops_B"].notna()]
            lines = [
                line(RELEASED, released, "paper_flops_B", "paper_top1", released["network"].tolist()),
                line(OTHERS, others, "paper_flops_B", "paper_top1", others["network"].tolist(), joined=False),
            ]
            panel = Panel("", "printed FLOPs (billions of multiply-adds)", "printed top-1 (%)", lines)
            foot = "The paper's own figures. GPipe (84.3 %, 557 M params) prints no FLOPs."
            figures["b_series_accuracy"] = draw_panels([panel], title=title, foot=foot)
        return figures


def _counted(made: AnyNetwork, base: AnyNetwork) -> dict[str, Any]:
    counted = cost(made)
    return {
        "pixels": made.resolution,
        "blocks": made.depth,
        "macs": counted.macs,
        "macs_ratio": counted.macs / cost(base).macs,
        "params": counted.params,
    }


def _phi(multiplier: float, coefficient: float) -> float:
    """The phi at which coefficient^phi is the multiplier; NaN for a coefficient of 1."""
    return math.log(multiplier) / math.log(coefficient) if coefficient != 1 else math.nan


def _sides(rows: pd.DataFrame, below: bool) -> list[str]:
    return [f"{row['pixels']:.0f} px, {row['blocks']:.0f}" if below else "" for row in rows.to_dict("records")]
