"""Figure 8 of arXiv:1905.11946: ways of scaling at the same counted cost, and what compound gains over the best."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from scalesearch.checks import checked
from scalesearch.figures.paper import Panel, draw_panels
from scalesearch.paper.experiment import Costs, Figures, PaperExperiment
from scalesearch.paper.panels import EQUAL_COST, curve, in_unit, present
from scalesearch.paper.points import BASELINE, COMPOUND, MIXES, SINGLE, CorrectByKey, Point, Setting
from scalesearch.paper.tables import ACCURACY, Difference, Paired, summarised
from scalesearch.scaling import Coefficients
from scalesearch.text import listed


@checked("experiment", kw_only=True)
class Experiment(PaperExperiment):
    """costs: times the baseline's counted multiply-adds; coefficients: those of compound scaling."""

    costs: Costs
    coefficients: Coefficients

    def points(self, setting: Setting) -> list[Point]:
        return setting.ways(self.costs, self.coefficients)

    def summary(self, results: pd.DataFrame, correct: CorrectByKey) -> pd.DataFrame:
        """As `summarised`, with compound less the best single dimension, and less the best mix of two, at each cost."""
        paired = Paired(results, correct)
        rows = summarised(results).to_dict("records")
        for row in rows:
            for kind, names in (("single", SINGLE), ("mix", MIXES)):
                others = [one for one in rows if one["at"] == row["at"] and one["curve"] in names]
                row |= paired.over_best(kind, row, others if row["curve"] == COMPOUND else [])
        return pd.DataFrame(rows)

    def finding(self, summary: pd.DataFrame) -> str:
        compared = [
            (f"{row['at']:g}", row["best_single"], Difference.of(row, "less_single"))
            for row in summary[summary["best_single"] != ""].to_dict("records")
        ]
        if not compared:
            return (
                "no cost has a finished compound network and a finished single dimension, so nothing can be compared."
            )
        won, lost = (
            [at for at, _, difference in compared if difference.verdict == verdict] for verdict in ("better", "worse")
        )
        where = f"{listed(won)} times the cost" if won else "no cost"
        verdict = f"compound scaling beats the best single dimension at {where}"
        if lost:
            verdict += f" and loses to it at {listed(lost)} times"
        times = "; ".join(f"at {at} times the cost {difference} against {best}" for at, best, difference in compared)
        last = ""
        if mixes := summary[summary["best_mix"] != ""].to_dict("records"):
            row, difference = mixes[-1], Difference.of(mixes[-1], "less_mix")
            last = f"; against the best mix of two ({row['best_mix']}) at {row['at']:g} times it is {difference}"
        return f"{verdict}: {times}{last}."

    def draw(self, summary: pd.DataFrame, directory: Path, *, title: str) -> Figures:
        shown, x_label = in_unit(summary)
        base = shown[shown["curve"] == BASELINE]
        costs = [1.0, *sorted(set(summary["at"]) - {1.0})]
        one_time = float((shown["macs"] / shown["macs_ratio"]).median())

        def drawn(names: Sequence[str], labelled: Sequence[str]) -> Any:
            lines = [
                curve(shown, name, x="macs", before=base, labelled=name in labelled)
                for name in present(shown, *names, COMPOUND)
            ]
            words = f"{x_label}: {listed([f'{cost:g}' for cost in costs])} times the first"
            panel = Panel("", words, ACCURACY, lines, [one_time * cost for cost in costs])
            return draw_panels([panel], title=title, foot=EQUAL_COST)

        figures = {"figure8": drawn(SINGLE, (*SINGLE, COMPOUND))}
        if present(shown, *MIXES):
            figures["figure8_mixes"] = drawn(MIXES, (COMPOUND,))
        return figures
