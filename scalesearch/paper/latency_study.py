"""Table 4 of arXiv:1905.11946, asked of the ways of scaling: the time that as accurate, or as dear, networks take."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from scalesearch import screen
from scalesearch.latency import latency
from scalesearch.network import AnyNetwork
from scalesearch.paper.dimensions import BASELINE, COMPOUND, SINGLE, matched_points
from scalesearch.paper.experiment import Experiment, at_least_one, with_interval
from scalesearch.paper.panels import ACCURACY, curve
from scalesearch.paper.points import Correct, Point, Setting, Trainings
from scalesearch.paper.summaries import summarised
from scalesearch.scaling import Coefficients
from scalesearch.screen import Screen

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_ENDS = ("latency_ms", "latency_low", "latency_high")


@dataclass(frozen=True, kw_only=True)
class LatencyStudy(Experiment):
    """costs, coefficients: as of figure8. rounds: how often every network is timed, in turn with all the others."""

    costs: Sequence[float]
    coefficients: Coefficients
    rounds: int

    asks: ClassVar[str] = "How long does compound scaling take where it is as accurate, or as dear, as one dimension?"
    paper: ClassVar[str] = (
        "EfficientNet-B1 is 5.7 times as quick as ResNet-152, and B7 6.1 times as GPipe (Table 4, one core of "
        "a Xeon E5-2690)"
    )
    rests_on: ClassVar[Sequence[str]] = (
        "one image at a time, on one thread of a CPU or on the GPU where there is one, in float32",
        "networks are so small that a layer's call outweighs its arithmetic: what has many layers is slow here",
        "the paper's Table 4 compares EfficientNet with ResNet-152 and GPipe, not with single dimensions of itself",
        "accuracies are validation means over seeds, whose own uncertainty the ratios of times do not carry",
    )

    def __post_init__(self) -> None:
        at_least_one("costs", self.costs, least=1.05)
        if not 1 <= self.rounds <= 1000:
            raise ValueError(f"experiment.rounds is {self.rounds}; it must be a whole number from 1 to 1000")

    def points(self, setting: Setting) -> list[Point]:
        return matched_points(setting, tuple(self.costs), self.coefficients, mixes=False)

    def measured(self, trainings: Trainings, results: pd.DataFrame, directory: Path, out: Screen) -> pd.DataFrame:
        """With latency_ms, the median of the rounds, and latency_low and latency_high, their extremes."""
        times: dict[AnyNetwork, list[float]] = {point.network: [] for point in trainings.points}
        out.say(f"timing {len(times)} networks {self.rounds} times in turn")
        for _ in range(self.rounds):  # in turn: whatever else the machine does hits all alike
            for network, found in times.items():
                found.append(latency(network, budget_seconds=0.1).median_ms)
        rows = [
            dict(zip(_ENDS, (statistics.median(found), min(found), max(found)), strict=True))
            for point in trainings.points
            for found in [times[point.network]]
            for _ in range(trainings.setting.seeds)
        ]
        for name in _ENDS:
            results[name] = [row[name] for row in rows]
        return results

    def summary(self, results: pd.DataFrame, correct: Mapping[str, Correct]) -> pd.DataFrame:
        """As `summarised`, with latencies, and how many times as long each takes as compound scaling.

        over_same_cost: as the compound network of its cost. over_as_accurate: as the quickest compound network (or the
        baseline, which all begin with) that is at least as accurate; NaN where none is.
        """
        summary = summarised(results)
        rows: list[dict[Any, Any]] = summary.to_dict("records")
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
        import pandas as pd

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

    def shown(self, summary: pd.DataFrame) -> list[dict[str, str]]:
        return [
            {
                "scaled": str(row["curve"]),
                "multipliers": str(row["label"]),
                "blocks": f"{row['blocks']:g}",
                "multiply-adds": screen.count(row["macs"]),
                "validation accuracy (%)": with_interval(row, "val_accuracy"),
                "latency (ms)": f"{row['latency_ms']:.3f} ({row['latency_low']:.3f} to {row['latency_high']:.3f})",
                "over compound of that cost": _ratio(row["over_same_cost"]),
                "over compound as accurate": _ratio(row["over_as_accurate"]),
            }
            for row in summary.to_dict("records")
        ]

    def draw(self, summary: pd.DataFrame, directory: Path, *, title: str) -> dict[str, Figure]:
        from scalesearch.figures.paper import Panel, draw_panels

        base = summary[summary["curve"] == BASELINE]
        names = [name for name in (*SINGLE, COMPOUND) if (summary["curve"] == name).any()]
        lines = [curve(summary, name, x="latency_ms", before=base) for name in names]
        panel = Panel("", "latency of one image (ms)", ACCURACY, lines)
        return {"latency": draw_panels([panel], title=title, foot="Bars: 95 % intervals of accuracy.")}


def _ratio(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"
