"""What tells two networks apart, and what would."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from made_up import CANDIDATES, drawn, first, trial

from scalesearch.selection import Choice, Comparison, Pairs, select


def test_so_many_more_seeds_separate_half_of_the_time() -> None:
    chance, images, seed_sd, seeds = np.random.default_rng(31), 1000, 0.01, 3
    accuracies = [0.80, 0.79, 0.78, 0.78, 0.78, 0.78]
    deviation = math.sqrt(seed_sd**2 + 0.8 * 0.2 / images)
    part = 2 * deviation**2 / seeds
    pairs = Pairs(drawn(chance, accuracies, seeds=seeds, images=images, seed_sd=seed_sd))
    truth = Comparison(0.01, math.sqrt(part), 10, seeds, images, part, 0.0)
    more, needed, reason = pairs.seeds_to_separate(truth, confidence=0.95, comparisons=1)
    assert (needed, reason) == (None, "more seeds")
    assert more is not None
    assert 8 <= more <= 16  # 2 * 0.0161^2 / 0.01^2 * 1.66^2 is 14.4 seeds

    def separated(number: int) -> float:
        found = []
        for _ in range(150):
            finished = drawn(chance, accuracies, seeds=number, images=images, seed_sd=seed_sd)
            found.append(Pairs(finished).compare(finished["c01"], finished["c02"]).p_value() <= 0.05)
        return float(np.mean(found))

    assert 0.35 <= separated(seeds + more) <= 0.65
    assert separated(seeds) < 0.3


@pytest.mark.parametrize("beyond", [0.5, 0.7, 0.99, 1.01, 1.3, 2.0])
def test_a_number_of_seeds_is_named_up_to_a_hundred_thousand(beyond: float) -> None:
    pairs = Pairs(drawn(np.random.default_rng(31), [0.80, 0.79, 0.78], seeds=3, images=1000, seed_sd=0.01))
    part, z = 1e-4, 1.6448536  # with so many seeds Student's t is the normal distribution
    difference = z * math.sqrt(part * 3 / (beyond * 100_000))
    truth = Comparison(difference, math.sqrt(part), 10, 3, 1000, part, 0.0)
    more, _, reason = pairs.seeds_to_separate(truth, confidence=0.95, comparisons=1)
    if beyond > 1:
        assert (more, reason) == (None, "more than 100,000 seeds: the difference is too small")
    else:
        assert more == pytest.approx(beyond * 100_000, rel=1e-3)


def test_where_images_are_what_is_uncertain_it_takes_more_images() -> None:
    one, other = np.arange(100) < 60, np.arange(100) >= 45  # 60 and 55 right, different ones

    def choice(times: int) -> Choice:
        rows = [trial(CANDIDATES[0], seed, np.tile(one, times)) for seed in range(3)]
        return select(rows + [trial(CANDIDATES[1], seed, np.tile(other, times)) for seed in range(3)], confidence=0.95)

    separation = choice(1).separation
    assert separation is not None
    assert (separation.first, separation.second, separation.seeds) == ("c01", "c02", None)
    assert separation.images is not None
    assert "more validation images" in separation.reason
    variance = float((one.astype(float) - other).var(ddof=1))
    assert separation.images == math.floor(variance * 1.6448536**2 / 0.05**2) + 1
    fewer, enough = separation.images // 100, separation.images // 100 + 2
    assert choice(fewer).tied == ("c02",)
    assert choice(enough).tied == ()
    apart = choice(enough).separation
    assert apart is not None
    assert (apart.seeds, apart.reason) == (0, "they are apart already")


@pytest.mark.parametrize(
    ("counts", "seeds", "reason"),
    [
        ((80, 70), ((0,), (0,)), "one seed says nothing"),
        ((80, 70), ((0, 1), (2, 3)), "they share no seed"),
        ((80, 80), ((0, 1), (0, 1)), "the second one is as good"),
    ],
)
def test_what_cannot_be_known_of_a_separation_has_its_reason(
    counts: tuple[int, int], seeds: tuple[tuple[int, ...], ...], reason: str
) -> None:
    rows = [
        trial(c, seed, first(count + (3 if (seed + i) % 2 else -3)))
        for i, (c, count, mine) in enumerate(zip(CANDIDATES, counts, seeds, strict=False))
        for seed in mine
    ]
    separation = select(rows, confidence=0.95).separation
    assert separation is not None
    assert (separation.seeds, separation.images) == (None, None)
    assert reason in separation.reason


def test_a_lone_candidate_needs_no_separation() -> None:
    choice = select([trial(CANDIDATES[0], seed, first(50 + seed)) for seed in range(2)], confidence=0.95)
    assert choice.separation is None
    assert choice.cost_effect is None


def test_the_interval_of_a_difference_covers_it_and_those_of_many_cover_all() -> None:
    chance, alone, together = np.random.default_rng(51), [], []
    accuracies = [0.80, 0.79, 0.78, 0.80]
    for _ in range(400):
        finished = drawn(chance, accuracies, seeds=3, images=500, seed_sd=0.01)
        pairs, others = Pairs(finished), ["c02", "c03", "c04"]
        truth = {name: 0.80 - accuracy for name, accuracy in zip(("c01", *others), accuracies, strict=True)}

        def covered(number: int, pairs: Pairs = pairs, finished: Any = finished, truth: Any = truth) -> list[bool]:
            bounds = {
                n: pairs.compare(finished["c01"], finished[n]).interval(0.9, pairs=number) for n in truth if n != "c01"
            }
            return [low <= truth[name] <= high for name, (low, high) in bounds.items()]

        alone += covered(1)
        together.append(all(covered(3)))
    assert np.mean(alone) == pytest.approx(0.9, abs=0.03)
    assert np.mean(together) >= 0.88
