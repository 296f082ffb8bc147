"""Do coefficients that win at phi = 1 still win at 2 and 3? Section 3.3 of arXiv:1905.11946 takes it for granted.

The method is a star sweep, as in "Getting ViT in Shape" (arXiv:2305.13035): from one centre, the chosen split of the
compute, rays lead to splits that give more of it to one dimension. All cost the same, counted, at every phi.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from annotated_types import MinLen

from scalesearch.checks import Must, between, checked
from scalesearch.fidelity.agreement import kendall
from scalesearch.figures.paper import Panel, draw_panels
from scalesearch.paper.experiment import Figures, PaperExperiment
from scalesearch.paper.panels import EQUAL_COST, MACS_RATIO, curve
from scalesearch.paper.points import SINGLE, CorrectByKey, Point, Setting
from scalesearch.paper.tables import ACCURACY, Difference, Paired, summarised
from scalesearch.scaling import Coefficients
from scalesearch.text import percent

CENTRE = "centre"


@checked("experiment", kw_only=True)
class Experiment(PaperExperiment):
    """The centre is `coefficients`; of the compute of each other dimension a ray gives the shares `steps` to its own.

    A step of 1 is that dimension alone. At phi every split costs 2^phi times the baseline, counted.
    """

    coefficients: Coefficients
    phis: Annotated[list[Annotated[float, between(0.1, 100)]], Must("a list of numbers from 0.1 to 100")]
    steps: Annotated[
        list[Annotated[float, between(0.01, 1)]],
        MinLen(1),
        Must("a list of shares from 0.01 to 1, one at least"),
    ]

    def __post_init__(self) -> None:
        if len(set(self.phis)) < 2:
            raise ValueError(f"experiment.phis is {self.phis!r}; it needs two at least, such as [1, 2, 3]")

    def splits(self) -> dict[str, Coefficients]:
        """Name to coefficients of a doubling; the name says which share goes to depth, width and resolution."""
        given = self.coefficients
        logs = (math.log2(given.alpha), 2 * math.log2(given.beta), 2 * math.log2(given.gamma))
        centre = tuple(value / sum(logs) for value in logs)
        found = {CENTRE: centre}
        for ray, name in enumerate(SINGLE):
            for step in sorted(set(self.steps)):
                shares = [share * (1 - step) for share in centre]
                shares[ray] += step
                found[f"{name} +{step:g}"] = (shares[0], shares[1], shares[2])
        return {
            name: Coefficients(*(2 ** (share / power) for share, power in zip(shares, (1, 2, 2), strict=True)))
            for name, shares in found.items()
        }

    def points(self, setting: Setting) -> list[Point]:
        splits = self.splits()
        return [
            setting.matched(name, 2.0**phi, setting.baseline, coefficients)
            for phi in sorted(set(self.phis))
            for name, coefficients in splits.items()
        ]

    def summary(self, results: pd.DataFrame, correct: CorrectByKey) -> pd.DataFrame:
        """As `summarised`, with phi, the rank at it, and by how much each split is behind the best there."""
        summary, paired = summarised(results), Paired(results, correct)
        summary["phi"] = np.log2(summary["at"])
        summary["rank"] = summary.groupby("at")["val_accuracy_mean"].rank(ascending=False)
        rows = summary.to_dict("records")
        for row in rows:
            best = max((one for one in rows if one["at"] == row["at"]), key=lambda one: float(one["val_accuracy_mean"]))
            row |= paired.difference(best, row).columns("behind")
        return pd.DataFrame(rows)

    def finding(self, summary: pd.DataFrame) -> str:
        phis = sorted(set(summary["phi"]))
        first = summary[summary["phi"] == phis[0]].sort_values("rank")
        winner = str(first["curve"].iloc[0])
        sentences = []
        for phi in phis[1:]:
            rows = summary[summary["phi"] == phi].set_index("curve")
            if winner not in rows.index:
                sentences.append(f"at phi = {phi:g} it has no finished training")
                continue
            both = [name for name in first["curve"] if name in rows.index]
            sides = (side.loc[both, "val_accuracy_mean"] for side in (first.set_index("curve"), rows))
            tau = float(kendall(*(side.to_numpy(float) for side in sides))) if len(both) > 1 else math.nan
            place = f"rank {rows.loc[winner, 'rank']:g} of {len(rows)}"
            if rows.loc[winner, "rank"] > 1:
                value, low, high = map(percent, Difference.of(rows.loc[winner], "behind"))
                place += f", {value} points ({low} to {high}) behind {rows['val_accuracy_mean'].idxmax()}"
            sentences.append(f"at phi = {phi:g} {place}, and the splits' order agrees with Kendall's tau {tau:.2f}")
        tied = [str(row["curve"]) for row in first.to_dict("records")[1:] if not row["behind_low"] > 0]
        among = f" (tied with {', '.join(tied)})" if tied else ""
        return f"the best split at phi = {phis[0]:g} is {winner}{among}; {'; '.join(sentences)}."

    def draw(self, summary: pd.DataFrame, directory: Path, *, title: str) -> Figures:
        names = list(dict.fromkeys(summary["curve"]))
        panels = []
        for dimension in SINGLE:
            lines = [curve(summary, CENTRE, labelled=False)]
            for name in (name for name in names if name.startswith(f"{dimension} +")):
                step = float(name.partition("+")[2])
                words = "all of it" if step == 1 else f"{step:g} of the others' share"
                lines.append(curve(summary, name, labelled=False)._replace(name=words))
            panels.append(Panel(f"to {dimension}", MACS_RATIO, ACCURACY, lines, sorted(set(summary["at"]))))
        return {"phi_check": draw_panels(panels, title=title, foot=EQUAL_COST)}
