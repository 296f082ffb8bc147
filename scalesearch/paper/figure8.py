"""Figure 8 of arXiv:1905.11946: ways of scaling at the same counted cost, and what compound gains over the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from scalesearch.paper.dimensions import BASELINE, COMPOUND, MIXES, SINGLE, matched_points
from scalesearch.paper.experiment import Experiment, at_least_one
from scalesearch.paper.panels import ACCURACY, curve, macs_unit
from scalesearch.paper.points import Correct, Point, Setting
from scalesearch.paper.summaries import Difference, Paired, summarised
from scalesearch.scaling import Coefficients

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Figure8(Experiment):
    """costs: times the baseline's counted multiply-adds; coefficients: those of compound scaling."""

    costs: Sequence[float]
    coefficients: Coefficients

    asks: ClassVar[str] = (
        "At the same counted multiply-adds, does compound scaling beat the best single dimension, and by how much?"
    )
    paper: ClassVar[str] = (
        "compound scaling improves on single dimensions by up to 2.5 points of top-1 (ImageNet, "
        "EfficientNet-B0, section 6)"
    )
    rests_on: ClassVar[Sequence[str]] = (
        "equal multiply-adds are not equal seconds: on a CPU width is the quickest",
        "the best single dimension is chosen on the images that it is compared on, which favours it over compound",
    )

    def __post_init__(self) -> None:
        at_least_one("costs", self.costs, least=1.05)

    def points(self, setting: Setting) -> list[Point]:
        return matched_points(setting, tuple(self.costs), self.coefficients)

    def summary(self, results: pd.DataFrame, correct: Mapping[str, Correct]) -> pd.DataFrame:
        summary, paired = summarised(results), Paired(results, correct)
        for kind in ("single", "mix"):
            summary[f"best_{kind}"] = ""
            summary[[f"less_{kind}_{end}" for end in Difference._fields]] = float("nan")
        for at in sorted(set(summary["at"]) - {1.0}):
            here = summary[summary["at"] == at].set_index("curve")["val_accuracy_mean"]
            if COMPOUND not in here:
                continue
            row = (summary["curve"] == COMPOUND) & (summary["at"] == at)
            for kind, among in (("single", SINGLE), ("mix", MIXES)):
                known = [name for name in among if name in here]
                if not known:
                    continue
                best = max(known, key=lambda name: float(here[name]))
                difference = paired.difference((COMPOUND, at), (best, at))
                summary.loc[row, f"best_{kind}"] = best
                for end in Difference._fields:
                    summary.loc[row, f"less_{kind}_{end}"] = getattr(difference, end)
        return summary

    def finding(self, summary: pd.DataFrame) -> str:
        said = []
        for row in summary[(summary["curve"] == COMPOUND) & (summary["best_single"] != "")].to_dict("records"):
            difference = Difference(*(row[f"less_single_{end}"] for end in Difference._fields))
            said.append((row["at"], row["best_single"], difference))
        if not said:
            return (
                "no cost has a finished compound network and a finished single dimension, so nothing can be compared."
            )
        won = [at for at, _, difference in said if difference.verdict == "better"]
        lost = [at for at, _, difference in said if difference.verdict == "worse"]
        times = "; ".join(f"at {at:g} times the cost {difference} against {best}" for at, best, difference in said)
        verdict = (
            f"compound scaling beats the best single dimension at {_list(won)} times the cost"
            if won
            else "compound scaling beats the best single dimension at no cost"
        )
        if lost:
            verdict += f" and loses to it at {_list(lost)} times"
        mixes = summary[(summary["curve"] == COMPOUND) & (summary["best_mix"] != "")].to_dict("records")
        last = ""
        if mixes:
            row = mixes[-1]
            difference = Difference(*(row[f"less_mix_{end}"] for end in Difference._fields))
            last = f"; against the best mix of two ({row['best_mix']}) at {row['at']:g} times it is {difference}"
        return f"{verdict}: {times}{last}."

    def draw(self, summary: pd.DataFrame, directory: Path, *, title: str) -> dict[str, Figure]:
        from scalesearch.figures.paper import Panel, draw_panels

        unit, size = macs_unit(summary["macs"])
        shown = summary.assign(macs=summary["macs"] / size)
        base = shown[shown["curve"] == BASELINE]
        costs = [1.0, *sorted(set(summary["at"]) - {1.0})]
        one_time = float((shown["macs"] / shown["macs_ratio"]).median())
        x_label = f"multiply-adds ({unit}): {_list(costs)} times the first"

        def panel(names: Sequence[str], labelled: Sequence[str]) -> Panel:
            lines = [
                curve(shown, name, x="macs", before=base, labelled=name in labelled)
                for name in names
                if (shown["curve"] == name).any()
            ]
            return Panel("", x_label, ACCURACY, lines, [one_time * cost for cost in costs])

        one = panel((*SINGLE, COMPOUND), (*SINGLE, COMPOUND))
        figures = {
            "figure8": draw_panels([one], title=title, foot="Bars: 95 % intervals; equal counted multiply-adds.")
        }
        if (summary["curve"].isin(MIXES)).any():
            two = panel((*MIXES, COMPOUND), (COMPOUND,))
            figures["figure8_mixes"] = draw_panels(
                [two], title=title, foot="Bars: 95 % intervals; equal counted multiply-adds."
            )
        return figures


def _list(costs: Sequence[float]) -> str:
    words = [f"{cost:g}" for cost in costs]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
