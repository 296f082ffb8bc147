"""The surface over several costs: against truths that are known, and on the recorded experiments."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import script

from scalesearch.surface import Network, Split, Surface, fit, lattice, multiples, path, size, spread

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "surface.py"
Truth = Callable[[tuple[float, float, float]], float]


def power_law(generator: np.random.Generator) -> Truth:
    """Error = floor + what each dimension leaves of it, as scaling laws have it; all of it drawn."""
    floor, parts = generator.uniform(0.02, 0.3), generator.dirichlet([2, 2, 2]) * generator.uniform(0.1, 0.3)
    exponents = np.exp(generator.normal(math.log(0.5), 0.5, 3))
    return lambda at: float(1 - floor - (parts * 2 ** (-np.array(at) * exponents)).sum())


def steady(generator: np.random.Generator) -> Truth:
    """The same split is the best at every cost: the cost multiplies what the splits differ by."""
    best, worth = generator.dirichlet([2, 2, 2]), generator.uniform(0.01, 0.05)

    def accuracy(at: tuple[float, float, float]) -> float:
        cost = sum(at)
        apart = 0.0 if cost == 0 else float(((np.array(at) / cost - best) ** 2).sum())
        return 0.6 + cost * (0.02 - worth * apart)

    return accuracy


def crossing(at: tuple[float, float, float]) -> float:
    """Depth is best at first and soon brings nothing more; resolution is worth more the larger the network is."""
    depth, width, resolution = at
    return 0.6 + 0.12 * (1 - 2 ** (-2 * depth)) + 0.01 * width + 0.05 * resolution * min(1.0, sum(at) / 3)


def trained(
    truth: Truth,
    generator: np.random.Generator,
    *,
    costs: Sequence[float] = (2, 4),
    noise: float = 0.004,
    seeds: int = 2,
) -> list[Network]:
    """The 1x network and seven splits of each cost, with noise of their seeds and a part of their own."""
    found = []
    for split, cost in [((0.0, 0.0, 0.0), 1.0), *((split, cost) for cost in costs for split in spread(7))]:
        at = size(multiples(split, math.log2(cost)))
        mean = truth(at) + generator.normal(0, noise / 4)
        found.append(
            Network(
                multiples(split, math.log2(cost)), {s: mean + generator.normal(0, noise) for s in range(seeds)}, cost
            )
        )
    return found


def fitted(networks: Sequence[Network], target: float = 8, parts: int = 3) -> Surface:
    found = fit(networks, target, splits=lattice(parts))
    assert found is not None
    return found


def true_values(truth: Truth, surface: Surface, cost: int = -1) -> np.ndarray:
    return np.array([truth(at) for at in surface.sizes[cost]])


@pytest.mark.parametrize("parts", [1, 2, 3, 6, 12])
def test_a_lattice_has_every_split_once(parts: int) -> None:
    found = lattice(parts)
    assert len(found) == len(set(found)) == (parts + 1) * (parts + 2) // 2
    assert all(math.isclose(sum(split), 1) and min(split) >= 0 for split in found)


def test_splits_are_spread_and_a_larger_number_adds_to_a_smaller_one() -> None:
    every = spread(91)
    assert len(set(every)) == 91
    assert set(every) == set(lattice(12))
    for number in range(1, 91):
        assert spread(number) == every[:number]
    for number in (4, 7, 13):  # no dimension is preferred to another
        assert {tuple(order) for one in every[:number] for order in itertools.permutations(one)} == set(every[:number])
    assert set(spread(91, free=(True, False, True))) == {one for one in lattice(12) if one[1] == 0}


@pytest.mark.parametrize("cost", [1.3, 2, 8, 100])
def test_a_split_costs_what_it_splits(cost: float) -> None:
    for split in lattice():
        depth, width, resolution = multiples(split, math.log2(cost))
        assert depth * width**2 * resolution**2 == pytest.approx(cost)
        assert sum(size((depth, width, resolution))) == pytest.approx(math.log2(cost))


@pytest.mark.parametrize("target", [1.1, 2, 2.5, 8, 9, 64, 1000])
def test_the_path_ends_at_the_target(target: float) -> None:
    costs = path(target)
    assert costs[-1] == target
    assert list(costs) == sorted(set(costs))
    assert len(costs) <= 5
    assert target < 2 or costs[0] == 2


def test_the_optimum_of_a_planted_power_law_lies_in_the_region_as_often_as_it_says() -> None:
    inside, expected, true, raised = [], [], [], []
    for number in range(60):
        generator = np.random.default_rng(number)
        truth = power_law(generator)
        surface = fitted(trained(truth, generator))
        values = true_values(truth, surface)
        inside.append(int(values.argmax()) in surface.as_good(0.95))
        expected.append(surface.regret()[surface.best()])
        true.append(values.max() - values[surface.best()])
        raised.append(values.max() - values[int(surface.expected(0).argmax())])
    assert np.mean(inside) >= 0.92, "of 60 at 95 %"
    assert np.mean(true) <= 1.5 * np.mean(expected) + 1e-4
    assert np.mean(true) <= np.mean(raised), "the split of the target is better than that of twice the cost, raised"


def test_a_constant_split_is_refuted_no_more_often_than_the_test_says() -> None:
    refuted = []
    for number in range(40):
        generator = np.random.default_rng(number)
        refuted.append(fitted(trained(steady(generator), generator)).constant(0.95).p_value < 0.05)
    assert np.mean(refuted) <= 0.05


def test_a_split_that_turns_is_found_and_what_keeping_it_costs() -> None:
    for number in range(3):
        networks = trained(crossing, np.random.default_rng(number), costs=(2, 4, 8), noise=0.001)
        found = fitted(networks)
        constant = found.constant(0.95)
        assert constant.p_value < 0.05
        values = true_values(crossing, found)
        lost = values[found.best()] - values[found.best(0)]
        assert constant.loss_low <= lost <= constant.loss_high
        assert found.beyond == 0


@pytest.mark.parametrize(("most", "target", "doublings"), [(2, 8, 2), (4, 8, 1), (4, 4, 0), (4, 3, 0)])
def test_how_far_the_target_lies_beyond_what_was_trained(most: float, target: float, doublings: float) -> None:
    generator = np.random.default_rng(0)
    networks = trained(power_law(generator), generator, costs=(most,))
    assert fitted(networks, target, 1).beyond == pytest.approx(doublings)


def test_scores_in_other_units_or_another_order_give_the_same_answer() -> None:
    generator = np.random.default_rng(1)
    networks = trained(power_law(generator), generator)
    first = fitted(networks)
    scaled = [one._replace(scores={seed: 0.3 + 0.1 * score for seed, score in one.scores.items()}) for one in networks]
    for other, factor in ((fitted(scaled), 0.1), (fitted(networks[::-1]), 1.0)):
        np.testing.assert_allclose(other.regret(), factor * first.regret(), rtol=0.05, atol=2e-4 * factor)
        assert other.best() == first.best()


def test_more_noise_makes_no_surer_answer() -> None:
    """The same truth with the same draws of noise, of growing size."""
    widths, regions = [], []
    for noise in (0.0005, 0.004, 0.03):
        generator = np.random.default_rng(3)
        found = fitted(trained(power_law(generator), generator, noise=noise))
        low, high = found.interval(found.best(), 0.95)
        widths.append(high - low)
        regions.append(len(found.as_good(0.95)))
    assert widths == sorted(widths)
    assert regions[0] < regions[-1]


def test_splits_that_no_network_has_are_not_compared() -> None:
    generator = np.random.default_rng(0)
    networks = trained(power_law(generator), generator)

    def place(split: Split, cost: float) -> tuple[float, float, float] | None:
        return None if split[0] > 0.5 and cost == 8 else size(multiples(split, math.log2(cost)))

    found = fit(networks, 8, splits=lattice(3), place=place)
    assert found is not None
    assert set(found.splits) == {split for split in lattice(3) if split[0] <= 0.5}
    assert fit(networks, 8, place=lambda *_: None) is None
    assert fit([networks[0]], 8) is None


def test_on_the_recorded_experiments_it_is_nearer_to_the_truth_than_the_best_of_phi_1_raised() -> None:
    benchmark = script(BENCHMARK)
    networks = benchmark.recorded()
    known = [one for one in networks if one.ratio <= benchmark.MOST]
    asked = [one for one in networks if benchmark.HELD_OUT[0] <= one.ratio <= benchmark.HELD_OUT[1]]
    assert len(known) >= 30
    assert len(asked) >= 10
    true = benchmark._rows(asked)[1]
    judged = {
        name: benchmark.judge(predict(known, asked), true)
        for name, predict in benchmark.FORMS.items()
        if "surface" in name or "best of phi" in name
    }
    ours, raised = (next(one for name, one in judged.items() if word in name) for word in ("surface", "raised"))
    assert ours.rank > raised.rank
    assert ours.regret < raised.regret
