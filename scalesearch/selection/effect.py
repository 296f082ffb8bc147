"""What the counted cost explains of accuracy: the budget has an upper and a lower edge, and more cost buys accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import stats


class CostEffect(NamedTuple):
    """How far candidates are accurate because they cost more: least squares of mean accuracy on log2 of macs.

    slope: accuracy gained by a doubling of the counted multiply-adds, with the bounds `low` and `high`.
    share: of the variance of the means, that the cost explains; NaN where the means do not vary.
    most_expensive: whether the choice is the candidate of most multiply-adds.
    order: the candidates after correction of their means to one cost, best first.
    """

    slope: float
    low: float
    high: float
    share: float
    most_expensive: bool
    order: tuple[str, ...]

    @property
    def shown(self) -> bool:
        """Whether the slope differs from 0 at the confidence of its interval."""
        return self.low > 0 or self.high < 0


def cost_effect(
    macs: Mapping[str, float], means: Mapping[str, float], *, chosen: str, confidence: float
) -> CostEffect | None:
    """What the counted cost explains of the mean accuracies; None with fewer than three candidates, or of one cost.

    The bounds are Student's t at `confidence` of ordinary least squares: candidates scatter about the line by more than
    their seeds do, and that is what they are of.
    """
    names = sorted(means)
    cost, accuracy = (np.array([float(of[name]) for name in names]) for of in (macs, means))
    if len(names) < 3 or len(set(cost)) < 2:
        return None
    cost = np.log2(cost)
    line = stats.linregress(cost, accuracy)
    reach = float(stats.t.ppf((1 + confidence) / 2, len(names) - 2)) * float(line.stderr)
    slope = float(line.slope)
    rest = {name: float(value) for name, value in zip(names, accuracy - slope * (cost - cost.mean()), strict=True)}
    return CostEffect(
        slope=slope,
        low=slope - reach,
        high=slope + reach,
        share=float(line.rvalue) ** 2 if np.ptp(accuracy) > 0 else math.nan,
        most_expensive=macs[chosen] == max(macs.values()),
        order=tuple(sorted(names, key=lambda name: (-rest[name], name))),
    )
