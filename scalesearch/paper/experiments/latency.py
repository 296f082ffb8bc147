"""Table 4 of arXiv:1905.11946, for the ways of scaling: the time that networks as accurate, or as dear, take."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Annotated

import pandas as pd

from scalesearch.checks import between, checked
from scalesearch.figures.paper import Panel, draw_panels
from scalesearch.latency import latency
from scalesearch.network import AnyNetwork
from scalesearch.paper.experiment import Costs, Figures, PaperExperiment
from scalesearch.paper.panels import curve, present
from scalesearch.paper.points import BASELINE, COMPOUND, SINGLE, CorrectByKey, Point, Setting, Trainings
from scalesearch.paper.tables import ACCURACY, cells, number, summarised
from scalesearch.scaling import Coefficients
from scalesearch.screen import Screen

_ENDS = ("latency_ms", "latency_low", "latency_high")


@checked("experiment", kw_only=True)
class Experiment(PaperExperiment):
    """costs, coefficients: as of figure8. rounds: how often every network is timed, in turn with all the others."""

    costs: Costs
    coefficients: Coefficients
    rounds: Annotated[int, between(1, 1000)]

    def points(self, setting: Setting) -> list[Point]:
        return setting.ways(self.costs, self.coefficients, mixes=False)

    def measured(self, trainings: Trainings, results: pd.DataFrame, directory: Path, out: Screen) -> pd.DataFrame:
        """With latency_ms, the median of the rounds, and latency_low and latency_high, their extremes."""
        times: dict[AnyNetwork, list[float]] = {point.network: [] for point in trainings.points}
        out.say(f"timing {len(times)} networks {self.rounds} times in turn")
        for _ in range(self.rounds):  # in turn: whatever else the machine does hits all alike
            for network, taken in times.items():
                taken.append(latency(network, budget_seconds=0.1).median_ms)
        found = [times[point.network] for point in trainings.points for _ in range(trainings.setting.seeds)]
        for name, values in zip(_ENDS, (map(statistics.median, found), map(min, found), map(max, found)), strict=True):
            results[name] = list(values)
        return results

    def summary(self, results: pd.DataFrame, correct: CorrectByKey) -> pd.DataFrame:
        """As `summarised`, with latencies, and how many times as long each takes as compound scaling.

        over_same_cost: as the compound network of its cost. over_as_accurate: as the quickest compound network (or the
        baseline, which all begin with) that is at least as accurate; NaN where none is.
        """
        rows = summarised(results).to_dict("records")
        timed = results.groupby(["curve", "at"])[list(_ENDS)].first().to_dict("index")
        for row in rows:
            row |= timed[row["curve"], row["at"]]
        ours = [row for row in rows if row["curve"] in (COMPOUND, BASELINE)]
        for row in rows:
            single = row["curve"] in SINGLE
            same = [one for one in ours if single and one["curve"] == COMPOUND and one["at"] == row["at"]]
            better = [one for one in ours if single and one["val_accuracy_mean"] >= row["val_accuracy_mean"]]
            quickest = min((one["latency_ms"] for one in better), default=math.nan)
            row["over_same_cost"] = row["latency_ms"] / same[0]["latency_ms"] if same else math.nan
            row["over_as_accurate"] = row["latency_ms"] / quickest
        return pd.DataFrame(rows)

    def finding(self, summary: pd.DataFrame) -> str:
        singles = summary[summary["curve"].isin(SINGLE)]
        if singles["over_same_cost"].isna().all():
            return "no compound network has a finished training, so nothing can be compared."
        largest = singles["at"].max()
        at_cost = ", ".join(
            f"{row['curve']} {row['over_same_cost']:.2f}"
            for row in singles[singles["at"] == largest].to_dict("records")
            if not math.isnan(row["over_same_cost"])
        )
        known = singles[singles["over_as_accurate"].notna()]
        accurate = "; no compound network is as accurate as any single dimension"
        if len(known):
            best = known.loc[known.groupby("curve")["val_accuracy_mean"].idxmax()]
            accurate = "; against the most accurate single networks that compound scaling reaches it is " + ", ".join(
                f"{row['curve']} {row['over_as_accurate']:.2f}" for row in best.to_dict("records")
            )
        never = singles[singles["over_as_accurate"].isna()]
        rest = (
            ""
            if never.empty
            else f"; {len(never)} of {len(singles)} single networks are more accurate than any of them"
        )
        return f"at {largest:g} times the cost the latency over that of compound scaling is {at_cost}{accurate}{rest}."

    def table(self, summary: pd.DataFrame) -> list[dict[str, str]]:
        return [
            cells(row, "scaled", "multipliers", "blocks", "multiply-adds", ACCURACY)
            | {
                "latency (ms)": f"{row['latency_ms']:.3f} ({row['latency_low']:.3f} to {row['latency_high']:.3f})",
                "over compound of that cost": number(row["over_same_cost"], ".2f"),
                "over compound as accurate": number(row["over_as_accurate"], ".2f"),
            }
            for row in summary.to_dict("records")
        ]

    def draw(self, summary: pd.DataFrame, directory: Path, *, title: str) -> Figures:
        base = summary[summary["curve"] == BASELINE]
        names = present(summary, *SINGLE, COMPOUND)
        lines = [curve(summary, name, x="latency_ms", before=base) for name in names]
        panel = Panel("", "latency of one image (ms)", ACCURACY, lines)
        return {"latency": draw_panels([panel], title=title, foot="Bars: 95 % intervals of accuracy.")}
