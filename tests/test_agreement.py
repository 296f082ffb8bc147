"""The statistics of `reproduce fidelity`, against scipy and by simulation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from scalesearch.fidelity.agreement import (
    Agreement,
    agreement,
    kendall,
    means,
    perfect_limit,
    ranks,
    spearman,
)


def test_rank_correlations_are_scipy_s_ties_included() -> None:
    for levels in (3, 5, 1000):
        chance = np.random.default_rng(levels)
        one, other = chance.integers(0, levels, (2, 60, 9)).astype(float)
        ours = np.stack([kendall(one, other), spearman(one, other)])
        for index in range(60):
            theirs = stats.kendalltau(one[index], other[index])[0], stats.spearmanr(one[index], other[index])[0]
            assert ours[:, index] == pytest.approx(theirs), (levels, index)


def test_without_an_order_there_is_no_correlation() -> None:
    same, rising = np.ones(4), np.arange(4.0)
    for statistic in (kendall, spearman):
        assert math.isnan(statistic(same, rising))
        assert math.isnan(statistic(rising, same))


def test_ranks_are_scipy_s_from_the_highest() -> None:
    accuracies = np.array([0.5, 0.9, 0.5, 0.1])
    assert ranks(accuracies).tolist() == stats.rankdata(-accuracies).tolist() == [2.5, 1, 2.5, 4]


def judged(proxy: Sequence[Sequence[float]], reference: Sequence[Sequence[float]], **more: Any) -> Agreement:
    depth = more.pop("depth", range(len(proxy)))
    sides = (np.array(side, dtype=float) for side in (proxy, reference))
    return agreement(*sides, np.array(depth, dtype=float), confidence=0.95, **more)


def drawn(chance: np.random.Generator, tau: float, candidates: int, *, seeds: int, noise: float) -> Any:
    """Accuracies (C, S) of both sides: normal over the candidates with this Kendall's tau, and noise of the seeds."""
    r = math.sin(math.pi / 2 * tau)
    one, other = chance.standard_normal((2, candidates, 1))
    sides = one, r * one + math.sqrt(1 - r**2) * other
    return [side + noise * chance.standard_normal((candidates, seeds)) for side in sides]


@pytest.mark.parametrize(("draws", "least"), [(40, 0.87), pytest.param(150, 0.9, marks=pytest.mark.slow)])
def test_intervals_hold_the_truth_as_often_as_they_say(draws: int, least: float) -> None:
    for tau, candidates in ((0.0, 8), (0.5, 8), (0.8, 5), (0.95, 5), (0.95, 11)):
        for noise in (0.0, 0.5):
            chance = np.random.default_rng([round(100 * tau), candidates])
            r = math.sin(math.pi / 2 * tau) / (1 + noise**2 / 3)  # what the noise of three seeds leaves of it
            truth = {"kendall": 2 / math.pi * math.asin(r), "spearman": 6 / math.pi * math.asin(r / 2)}
            inside = dict.fromkeys(truth, 0)
            for _ in range(draws):
                sides = drawn(chance, tau, candidates, seeds=3, noise=noise)
                found = agreement(*sides, np.arange(float(candidates)), confidence=0.95, resamples=300)
                for name, true in truth.items():
                    estimate = getattr(found, name)
                    assert estimate.low <= estimate.value <= estimate.high
                    inside[name] += estimate.low <= true <= estimate.high
            assert min(inside.values()) >= least * draws, (tau, candidates, noise, inside)


def test_perfect_agreement_of_a_few_says_less_than_that_of_many() -> None:
    few, many = (judged([[c] for c in range(n)], [[c] for c in range(n)]) for n in (4, 15))
    for one, other in ((few.kendall, many.kendall), (few.spearman, many.spearman)):
        assert one.value == other.value == one.high == other.high == 1
        assert one.low is not None
        assert other.low is not None
        assert one.low < 0 < 0.8 < other.low < 1
    opposite = judged([[c] for c in range(4)], [[-c] for c in range(4)]).kendall
    assert few.kendall.low is not None
    assert (opposite.value, opposite.low, opposite.high) == (-1, -1, -few.kendall.low)


def test_the_limit_of_perfect_agreement_is_met_by_chance_as_rarely_as_it_says() -> None:
    for candidates in (3, 5, 9):
        tau, rho = perfect_limit(candidates, confidence=0.9)
        chance = np.random.default_rng(7)
        r = math.sin(math.pi / 2 * tau)
        one, other = chance.standard_normal((2, 20_000, candidates))
        perfect = kendall(one, r * one + math.sqrt(1 - r**2) * other) > 1 - 1e-9
        assert perfect.mean() == pytest.approx(0.05, abs=0.006), candidates
        one, other = chance.standard_normal((2, 1, 4000))
        assert spearman(one, r * one + math.sqrt(1 - r**2) * other)[0] == pytest.approx(rho, abs=0.05), candidates


def test_seeds_that_differ_more_widen_the_interval() -> None:
    steady = np.repeat(np.linspace(0.80, 0.89, 10)[:, None], 2, axis=1)
    unsteady = steady + np.array([-0.1, 0.1]) * np.array([1, -1] * 5)[:, None]  # the same means
    few, more = (judged(steady.tolist(), side.tolist()).kendall for side in (steady, unsteady))
    assert few.value == more.value == 1
    assert few.low is not None
    assert more.low is not None
    assert more.low < few.low - 0.3


def test_a_seed_counts_on_both_sides_at_once() -> None:
    """Seeds turn the order of both sides together: within every seed they agree, and only pairing can know it."""
    order = np.linspace(-0.09, 0.09, 10)[:, None]
    turning = 0.5 + order * np.array([2.0, -1.0])
    agreed = judged(turning.tolist(), turning.tolist()).kendall
    assert (agreed.value, agreed.high) == (1, 1)
    assert agreed.low == perfect_limit(10, confidence=0.95)[0]  # unpaired draws would give -1 in half of all resamples


def test_a_seed_that_failed_is_left_out() -> None:
    nan = math.nan
    assert means(np.array([[0.5, nan, 0.7], [nan, nan, 0.4]])).tolist() == [0.6, 0.4]
    whole = judged([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], [[0.1, 0.1], [0.4, 0.4], [0.3, 0.3]])
    holes = judged([[0.1, 0.2, nan], [0.35, nan, nan], [0.5, 0.6, nan]], [[0.1, nan, nan], [nan, 0.4, nan], [0.3] * 3])
    assert holes.kendall.value == whole.kendall.value == pytest.approx(1 / 3)


def test_sums_that_differ_in_the_last_digit_are_equal() -> None:
    assert np.mean([0.1, 0.2, 0.3]) != np.mean([0.3, 0.2, 0.1])
    agreed = judged([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.5] * 3], [[0.3] * 3, [0.3] * 3, [0.4] * 3])
    assert agreed.kendall.value == pytest.approx(1)


def test_deeper_ones_that_rise_and_fall() -> None:
    falling = [[0.9], [0.8], [0.7], [0.6]]
    assert judged(falling, falling[::-1]).depth_gain.value == pytest.approx(1)
    assert judged(falling, falling[::-1], depth=[4, 3, 2, 1]).depth_gain.value == pytest.approx(-1)
    assert judged(falling, falling).depth_gain.reason == "the change of rank is the same for all 4 candidates"
    assert (
        judged(falling, falling[::-1], depth=[3] * 4).depth_gain.reason == "the depth is the same for all 4 candidates"
    )


def test_what_cannot_be_known_is_none_with_its_reason() -> None:
    two = judged([[0.1], [0.2]], [[0.1], [0.2]])
    assert set(two) == {(None, None, None, "2 candidates; a rank correlation needs at least 3")}
    equal = judged([[0.5]] * 3, [[0.1], [0.2], [0.3]])
    assert equal.kendall == (None, None, None, "the proxy accuracy is the same for all 3 candidates")
    assert judged([[0.1], [0.2], [0.3]], [[0.5]] * 3).spearman.reason == (
        "the reference accuracy is the same for all 3 candidates"
    )


def test_the_same_numbers_give_the_same_interval() -> None:
    sides = [side.tolist() for side in drawn(np.random.default_rng(3), 0.4, 7, seeds=3, noise=0.3)]
    assert judged(*sides) == judged(*sides)
