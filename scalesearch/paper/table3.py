"""Table 3 of arXiv:1905.11946: MobileNetV1, MobileNetV2 and a ResNet, each scaled by one dimension and by compound."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from scalesearch import screen
from scalesearch.paper.dimensions import BASELINE, COMPOUND, SINGLE
from scalesearch.paper.experiment import Experiment, at_least_one, with_interval
from scalesearch.paper.panels import ACCURACY, MACS_RATIO, curve
from scalesearch.paper.points import Correct, Point, Setting, coefficients_of
from scalesearch.paper.summaries import Difference, Paired, published, summarised
from scalesearch.scaling import Coefficients

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PAPERS = {"mobilenetv1": "MobileNetV1", "mobilenetv2": "MobileNetV2"}


@dataclass(frozen=True, kw_only=True)
class Table3(Experiment):
    """cost: times each baseline's counted multiply-adds; coefficients: those of compound scaling, the same for all."""

    cost: float
    coefficients: Coefficients

    asks: ClassVar[str] = "Does compound scaling beat one dimension on other networks too, at the same multiply-adds?"
    paper: ClassVar[str] = (
        "compound less the best single dimension: +1.4 on MobileNetV1, +0.6 on MobileNetV2, +0.7 on ResNet-50 "
        "(top-1, ImageNet, at unequal FLOPs)"
    )
    rests_on: ClassVar[Sequence[str]] = (
        "the networks are proxies, small by rule; the paper's figures are those of the whole networks on ImageNet",
        "beside any ResNet stands the paper's ResNet-50",
        "the paper's own costs differ within a row group by a tenth; here all are matched within 3 %",
        "the best single dimension is chosen on the images that it is compared on, which favours it over compound",
        "short training, of which deep networks suffer most",
    )

    def __post_init__(self) -> None:
        at_least_one("cost", [self.cost], least=1.05)

    def points(self, setting: Setting) -> list[Point]:
        rules = {name: coefficients_of(name) for name in SINGLE} | {COMPOUND: self.coefficients}
        found = []
        for name, base in setting.baselines.items():
            init = setting.init.get(name)
            found.append(setting.point(_curve(name, BASELINE), "1x", 1.0, base, base=base, init=init))
            found += [
                setting.matched(_curve(name, method), self.cost, base, rule, init=init)
                for method, rule in rules.items()
            ]
        return found

    def summary(self, results: pd.DataFrame, correct: Mapping[str, Correct]) -> pd.DataFrame:
        """As `summarised`, with the paper's row beside each, and compound less its network's best single dimension."""
        summary, paired = summarised(results), Paired(results, correct)
        summary[["baseline", "method"]] = [name.split(": ") for name in summary["curve"]]
        papers = published("scaling_mobilenet_resnet").set_index(["baseline", "method"])
        for column in ("flops_B", "top1"):
            summary[f"paper_{column}"] = [
                papers[column].get((_in_the_paper(str(row["baseline"])), row["method"]), math.nan)
                for row in summary.to_dict("records")
            ]
        summary["best_single"] = ""
        summary[[f"less_single_{end}" for end in Difference._fields]] = math.nan
        rows: list[dict[Any, Any]] = summary.to_dict("records")
        for index, row in enumerate(rows):
            singles = [one for one in rows if one["baseline"] == row["baseline"] and one["method"] in SINGLE]
            if row["method"] == COMPOUND and singles:
                best = max(singles, key=lambda one: float(one["val_accuracy_mean"]))
                difference = paired.difference((row["curve"], row["at"]), (best["curve"], best["at"]))
                summary.loc[index, "best_single"] = best["method"]
                summary.loc[index, [f"less_single_{end}" for end in Difference._fields]] = list(difference)
        return summary

    def finding(self, summary: pd.DataFrame) -> str:
        said = []
        for row in summary[summary["best_single"] != ""].to_dict("records"):
            difference = Difference(*(row[f"less_single_{end}"] for end in Difference._fields))
            papers = summary[summary["baseline"] == row["baseline"]].set_index("method")["paper_top1"]
            singles = papers.reindex(list(SINGLE)).dropna()
            paper = f" (the paper's: {papers[COMPOUND] - singles.max():+.1f})" if len(singles) else ""
            said.append(f"on {row['baseline']} {difference} against {row['best_single']}, {difference.verdict}{paper}")
        if not said:
            return "no network has both a finished compound variant and a finished single-dimension one."
        return f"compound less the best single dimension at {self.cost:g} times the cost: {'; '.join(said)}."

    def shown(self, summary: pd.DataFrame) -> list[dict[str, str]]:
        return [
            {
                "network": str(row["baseline"]),
                "scaled": str(row["method"]),
                "multipliers": str(row["label"]),
                "px": str(row["pixels"]),
                "multiply-adds": screen.count(row["macs"]),
                "ratio": f"{row['macs_ratio']:.3f}",
                "seeds": str(row["seeds"]),
                "validation accuracy (%)": with_interval(row, "val_accuracy"),
                "the paper's FLOPs (B)": "-" if math.isnan(row["paper_flops_B"]) else f"{row['paper_flops_B']:g}",
                "the paper's top-1 (%)": "-" if math.isnan(row["paper_top1"]) else f"{row['paper_top1']:.1f}",
            }
            for row in summary.to_dict("records")
        ]

    def draw(self, summary: pd.DataFrame, directory: Path, *, title: str) -> dict[str, Figure]:
        from scalesearch.figures.paper import Panel, draw_panels

        panels = []
        for name in dict.fromkeys(summary["baseline"]):
            rows = summary[summary["baseline"] == name].assign(curve=summary["method"])
            base = rows[rows["method"] == BASELINE]
            methods = [method for method in (*SINGLE, COMPOUND) if (rows["method"] == method).any()]
            lines = [curve(rows, method, before=base, labelled=False) for method in methods]
            panels.append(Panel(str(name), MACS_RATIO, ACCURACY, lines, [1, self.cost]))
        return {"table3": draw_panels(panels, title=title, foot="Bars: 95 % intervals; equal counted multiply-adds.")}


def _in_the_paper(baseline: str) -> str:
    return "ResNet-50" if "resnet" in baseline else PAPERS.get(baseline, "")


def _curve(baseline: str, method: str) -> str:
    return f"{baseline}: {method}"
