"""What the counted cost explains of accuracy."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from made_up import CANDIDATES, ONE_TIMES, first, trial

from scalesearch.cost import Cost
from scalesearch.search import BASELINE, Candidate
from scalesearch.selection import cost_effect, select


@pytest.mark.parametrize("slope", [0.0, 0.02])
def test_the_interval_of_the_slope_covers_a_planted_one_at_its_rate(slope: float) -> None:
    chance, inside, shown = np.random.default_rng(41), [], []
    for _ in range(1000):
        macs = {f"c{i:02d}": 2e6 * 2 ** chance.uniform(-0.15, 0.15) for i in range(9)}
        means = {name: 0.8 + slope * math.log2(value / 2e6) + chance.normal(0, 0.002) for name, value in macs.items()}
        effect = cost_effect(macs, means, chosen="c00", confidence=0.95)
        assert effect is not None
        inside.append(effect.low <= slope <= effect.high)
        shown.append(effect.shown)
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)
    assert np.mean(shown) < 0.08 if slope == 0 else np.mean(shown) > 0.5


def of_cost(*ratios: float) -> list[Candidate]:
    base = 1_000_000
    return [
        dataclasses.replace(c, cost=Cost(round(base * ratio), 10, 10), ratio=round(base * ratio) / base)
        for c, ratio in zip(CANDIDATES, ratios, strict=False)
    ]


def test_what_the_cost_explains_is_taken_off_the_means() -> None:
    # 2 points a doubling, exactly, and one candidate that has 1 point more than it pays for
    ratios = [2 * 2 ** (k / 10) for k in (-2, -1, 0, 1, 2)]
    counts = [round(10_000 * (0.80 + 0.02 * math.log2(ratio / 2))) for ratio in ratios]
    rows = [trial(c, seed, first(n, 10_000)) for c, n in zip(of_cost(*ratios), counts, strict=True) for seed in (0, 1)]
    exact = select(rows, confidence=0.95, macs_ratio=2)
    assert exact.cost_effect is not None
    assert exact.cost_effect.slope == pytest.approx(0.02, rel=0.01)
    assert exact.cost_effect.share == pytest.approx(1, abs=1e-3)
    assert exact.cost_effect.shown
    assert exact.cost_effect.most_expensive
    assert exact.chosen == "c05"
    assert exact.candidates["val_accuracy_corrected"].tolist() == pytest.approx([0.80] * 5, abs=1e-4)

    counts[1] += 60
    rows = [trial(c, seed, first(n, 10_000)) for c, n in zip(of_cost(*ratios), counts, strict=True) for seed in (0, 1)]
    choice = select([*rows, trial(ONE_TIMES, 0, first(7000, 10_000))], confidence=0.95, macs_ratio=2)
    table = choice.candidates.set_index("candidate")
    assert table.loc["c02", "rank_corrected"] == 1
    assert sorted(table["rank_corrected"].dropna()) == [1, 2, 3, 4, 5]
    assert choice.cost_effect is not None
    assert choice.cost_effect.order[0] == "c02"
    assert math.isnan(table.loc[BASELINE, "val_accuracy_corrected"])
    assert pd.isna(table.loc[BASELINE, "rank_corrected"])
    by_slope = table["val_accuracy_mean"] - choice.cost_effect.slope * np.log2(table["macs_ratio"] / 2)
    pd.testing.assert_series_equal(
        by_slope.drop(BASELINE), table["val_accuracy_corrected"].drop(BASELINE), check_names=False
    )


@pytest.mark.parametrize("ratios", [(1.9, 2.1), (2.0, 2.0, 2.0, 2.0)])
def test_of_two_candidates_or_of_one_cost_no_slope_is_given(ratios: tuple[float, ...]) -> None:
    some = of_cost(*ratios)
    choice = select([trial(c, s, first(50 + i + s)) for i, c in enumerate(some) for s in (0, 1)], confidence=0.95)
    assert choice.cost_effect is None
    assert choice.candidates["val_accuracy_corrected"].isna().all()
    assert choice.candidates["rank_corrected"].isna().all()


def test_equal_means_are_explained_by_nothing() -> None:
    rows = [trial(c, s, first(50)) for c in of_cost(1.9, 2.0, 2.1) for s in (0, 1)]
    effect = select(rows, confidence=0.95).cost_effect
    assert effect is not None
    assert effect.slope == 0
    assert math.isnan(effect.share)
    assert not effect.shown
