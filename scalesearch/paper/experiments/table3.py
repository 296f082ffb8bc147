"""Table 3 of arXiv:1905.11946: MobileNetV1, MobileNetV2 and a ResNet, each scaled by one dimension and by compound."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from scalesearch.checks import checked
from scalesearch.figures.paper import Panel, draw_panels
from scalesearch.paper.experiment import Cost, Figures, PaperExperiment
from scalesearch.paper.panels import EQUAL_COST, MACS_RATIO, curve, present
from scalesearch.paper.points import BASELINE, COMPOUND, SINGLE, CorrectByKey, Point, Setting, coefficients_of
from scalesearch.paper.tables import ACCURACY, Difference, Paired, cells, number, published, summarised
from scalesearch.scaling import Coefficients

PAPERS = {"mobilenetv1": "MobileNetV1", "mobilenetv2": "MobileNetV2"}


@checked("experiment", kw_only=True)
class Experiment(PaperExperiment):
    """cost: times each baseline's counted multiply-adds; coefficients: those of compound scaling, the same for all."""

    cost: Cost
    coefficients: Coefficients

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

    def summary(self, results: pd.DataFrame, correct: CorrectByKey) -> pd.DataFrame:
        """As `summarised`, with the paper's row beside each, and compound less its network's best single dimension."""
        paired = Paired(results, correct)
        papers = published("scaling_mobilenet_resnet").set_index(["baseline", "method"])
        rows = summarised(results).to_dict("records")
        for row in rows:
            row["baseline"], row["method"] = row["curve"].split(": ")
            for column in ("flops_B", "top1"):
                printed = papers[column].get((_in_the_paper(row["baseline"]), row["method"]), math.nan)
                row[f"paper_{column}"] = printed
        for row in rows:
            singles = [one for one in rows if one["baseline"] == row["baseline"] and one["method"] in SINGLE]
            row |= paired.over_best("single", row, singles if row["method"] == COMPOUND else [], name="method")
        return pd.DataFrame(rows)

    def finding(self, summary: pd.DataFrame) -> str:
        sentences = []
        for row in summary[summary["best_single"] != ""].to_dict("records"):
            difference = Difference.of(row, "less_single")
            papers = summary[summary["baseline"] == row["baseline"]].set_index("method")["paper_top1"]
            singles = papers.reindex(list(SINGLE)).dropna()
            paper = f" (the paper's: {papers[COMPOUND] - singles.max():+.1f})" if len(singles) else ""
            sentences.append(
                f"on {row['baseline']} {difference} against {row['best_single']}, {difference.verdict}{paper}"
            )
        if not sentences:
            return "no network has both a finished compound variant and a finished single-dimension one."
        return f"compound less the best single dimension at {self.cost:g} times the cost: {'; '.join(sentences)}."

    def table(self, summary: pd.DataFrame) -> list[dict[str, str]]:
        return [
            {"network": str(row["baseline"]), "scaled": str(row["method"])}
            | cells(row, "multipliers", "px", "multiply-adds", "ratio", "seeds", ACCURACY)
            | {
                "the paper's FLOPs (B)": number(row["paper_flops_B"], "g"),
                "the paper's top-1 (%)": number(row["paper_top1"], ".1f"),
            }
            for row in summary.to_dict("records")
        ]

    def draw(self, summary: pd.DataFrame, directory: Path, *, title: str) -> Figures:
        panels = []
        for name in dict.fromkeys(summary["baseline"]):
            rows = summary[summary["baseline"] == name].assign(curve=summary["method"])
            base = rows[rows["method"] == BASELINE]
            lines = [curve(rows, method, before=base, labelled=False) for method in present(rows, *SINGLE, COMPOUND)]
            panels.append(Panel(str(name), MACS_RATIO, ACCURACY, lines, [1, self.cost]))
        return {"table3": draw_panels(panels, title=title, foot=EQUAL_COST)}


def _in_the_paper(baseline: str) -> str:
    return "ResNet-50" if "resnet" in baseline else PAPERS.get(baseline, "")


def _curve(baseline: str, method: str) -> str:
    return f"{baseline}: {method}"
