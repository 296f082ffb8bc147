"""Do coefficients that win at phi = 1 still win at 2 and 3? Section 3.3 of arXiv:1905.11946 takes it for granted.

The method is a star sweep, as in "Getting ViT in Shape" (arXiv:2305.13035): from one centre, the chosen split of the
compute, rays lead to splits that give more of it to one dimension. All cost the same, counted, at every phi.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from scalesearch.paper.experiment import Experiment, at_least_one
from scalesearch.paper.panels import ACCURACY, MACS_RATIO, curve
from scalesearch.paper.points import Correct, Point, Setting
from scalesearch.paper.summaries import Difference, Paired, summarised
from scalesearch.scaling import Coefficients

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

DIMENSIONS = ("depth", "width", "resolution")
CENTRE = "centre"


@dataclass(frozen=True, kw_only=True)
class PhiCheck(Experiment):
    """The centre is `coefficients`; of the compute of each other dimension a ray gives the shares `steps` to its own.

    A step of 1 is that dimension alone. At phi every split costs 2^phi times the baseline, counted.
    """

    coefficients: Coefficients
    phis: Sequence[float]
    steps: Sequence[float]

    asks: ClassVar[str] = "Does the split of the compute that is best at phi = 1 stay the best at larger phi?"
    paper: ClassVar[str] = (
        "alpha, beta and gamma are found at phi = 1 and kept for all larger phi (section 3.3); whether they "
        "stay the best is not tested"
    )
    rests_on: ClassVar[Sequence[str]] = (
        "the best at the smallest phi is known by the same trainings, so what it keeps at larger ones errs downwards",
        "a few splits on three rays, not all that there are",
    )

    def __post_init__(self) -> None:
        at_least_one("phis", self.phis, least=0.1)
        at_least_one("steps", self.steps, least=0.01)
        if max(self.steps) > 1:
            raise ValueError(f"experiment.steps is {list(self.steps)!r}; a step is a share, 1 at most")
        if len(set(self.phis)) < 2:
            raise ValueError(f"experiment.phis is {list(self.phis)!r}; it needs two at least, such as [1, 2, 3]")

    def splits(self) -> dict[str, Coefficients]:
        """Name to coefficients of a doubling; the name says which share goes to depth, width and resolution."""
        given = self.coefficients
        logs = (math.log2(given.alpha), 2 * math.log2(given.beta), 2 * math.log2(given.gamma))
        centre = tuple(value / sum(logs) for value in logs)
        found = {CENTRE: centre}
        for ray, name in enumerate(DIMENSIONS):
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

    def summary(self, results: pd.DataFrame, correct: Mapping[str, Correct]) -> pd.DataFrame:
        """As `summarised`, with phi, the rank at it, and by how much each split is behind the best there."""
        summary, paired = summarised(results), Paired(results, correct)
        summary["phi"] = np.log2(summary["at"])
        summary["rank"] = summary.groupby("at")["val_accuracy_mean"].rank(ascending=False)
        summary[[f"behind_{end}" for end in Difference._fields]] = math.nan
        first = summary.groupby("at")["val_accuracy_mean"].max().to_dict()
        rows = summary.to_dict("records")
        for index, row in enumerate(rows):
            best = next(one for one in rows if one["at"] == row["at"] and one["val_accuracy_mean"] == first[row["at"]])
            difference = paired.difference((best["curve"], best["at"]), (row["curve"], row["at"]))
            summary.loc[index, [f"behind_{end}" for end in Difference._fields]] = list(difference)
        return summary

    def finding(self, summary: pd.DataFrame) -> str:
        phis = sorted(set(summary["phi"]))
        first = summary[summary["phi"] == phis[0]].sort_values("rank")
        winner = str(first["curve"].iloc[0])
        said = []
        for phi in phis[1:]:
            rows = summary[summary["phi"] == phi].set_index("curve")
            if winner not in rows.index:
                said.append(f"at phi = {phi:g} it has no finished training")
                continue
            both = [name for name in first["curve"] if name in rows.index]
            tau = _kendall(
                first.set_index("curve").loc[both, "val_accuracy_mean"].to_numpy(float),
                rows.loc[both, "val_accuracy_mean"].to_numpy(float),
            )
            behind = Difference(*(float(rows.loc[winner, f"behind_{end}"]) for end in Difference._fields))
            place = f"rank {rows.loc[winner, 'rank']:g} of {len(rows)}"
            if rows.loc[winner, "rank"] > 1:
                best = rows["val_accuracy_mean"].idxmax()
                ends = f"{100 * behind.low:.2f} to {100 * behind.high:.2f}"
                place += f", {100 * behind.value:.2f} points ({ends}) behind {best}"
            said.append(f"at phi = {phi:g} {place}, and the splits' order agrees with Kendall's tau {tau:.2f}")
        tied = [str(row["curve"]) for row in first.to_dict("records")[1:] if not row["behind_low"] > 0]
        among = f" (tied with {', '.join(tied)})" if tied else ""
        return f"the best split at phi = {phis[0]:g} is {winner}{among}; {'; '.join(said)}."

    def draw(self, summary: pd.DataFrame, directory: Path, *, title: str) -> dict[str, Figure]:
        from scalesearch.figures.paper import Panel, draw_panels

        names = list(dict.fromkeys(summary["curve"]))
        panels = []
        for dimension in DIMENSIONS:
            of_ray = [name for name in names if name.startswith(f"{dimension} +")]
            lines = [curve(summary, CENTRE, labelled=False)]
            for name in of_ray:
                step = float(name.partition("+")[2])
                words = "all of it" if step == 1 else f"{step:g} of the others' share"
                lines.append(curve(summary, name, labelled=False)._replace(name=words))
            panels.append(Panel(f"to {dimension}", MACS_RATIO, ACCURACY, lines, sorted(set(summary["at"]))))
        return {
            "phi_check": draw_panels(panels, title=title, foot="Bars: 95 % intervals; equal counted multiply-adds.")
        }


def _kendall(one: Any, other: Any) -> float:
    from scalesearch.fidelity.agreement import kendall

    return float(kendall(one, other)) if len(one) > 1 else math.nan
