"""The choice: what it promises, by simulation; its edges, tables and rules."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_up import CANDIDATES, ONE_TIMES, first, simulate, trial

from scalesearch.budget import Footprint
from scalesearch.cost import Cost
from scalesearch.search import BASELINE, Candidate, TrialResult
from scalesearch.selection import Choice, interval, select, trials_table, words


def admitted(choice: Choice) -> set[str]:
    return {choice.best, *choice.tied}


# --- what it promises, by simulation ----------------------------------------------------------------------------------

SETTINGS: dict[str, dict[str, Any]] = {
    "one_best": {"effects": [0.05] + [0.0] * 7},
    "all_equal": {"effects": [0.0] * 8},
    "noisy_seeds": {"effects": [0.0] * 8, "seed_sd": 0.1},
    "images_that_suit_one": {"effects": [0.0] * 8, "seed_sd": 0.0, "own_image_sd": 1.0},
    "seeds_that_shift_all": {"effects": [0.0] * 8, "shift_sd": 0.2},
    "two_seeds": {"effects": [0.0] * 8, "seeds": 2},
    "lost_seeds": {"effects": [0.0] * 8, "own_image_sd": 1.0, "seed_sd": 0.0, "lost": 5},
}


@pytest.mark.parametrize(("draws", "least"), [(50, 0.92), pytest.param(300, 0.93, marks=pytest.mark.slow)])
def test_the_chosen_and_its_ties_hold_the_truly_best(draws: int, least: float) -> None:
    for setting, given in SETTINGS.items():
        values = dict(given)
        effects = values.pop("effects")
        chance = np.random.default_rng(7)
        best = CANDIDATES[int(np.argmax(effects))].id  # of equals any one: it must be in as often as a lone best
        right = [best in admitted(select(simulate(effects, chance, **values), confidence=0.95)) for _ in range(draws)]
        assert np.mean(right) >= least, setting


def test_the_promise_is_not_kept_by_admitting_everybody() -> None:
    chance = np.random.default_rng(8)
    effects = [0.2] + [0.0] * 6 + [-0.4]
    choices = [select(simulate(effects, chance), confidence=0.95) for _ in range(40)]
    assert np.mean(["c08" not in admitted(choice) for choice in choices]) >= 0.95  # clearly worse
    assert np.mean([choice.chosen == "c01" for choice in choices]) >= 0.95
    assert np.mean([len(choice.tied) for choice in choices]) < 2


def test_two_that_are_equal_are_reported_as_tied() -> None:
    chance = np.random.default_rng(9)
    effects = [0.3, 0.3] + [-0.3] * 6
    choices = [select(simulate(effects, chance), confidence=0.95) for _ in range(40)]
    assert np.mean([admitted(choice) == {"c01", "c02"} for choice in choices]) > 0.9


@pytest.mark.parametrize(("draws", "near"), [(50, 0.045), pytest.param(150, 0.035, marks=pytest.mark.slow)])
def test_intervals_cover_the_mean_over_seeds_at_their_rate(draws: int, near: float) -> None:
    for confidence, seeds in itertools.product((0.8, 0.95), (2, 3)):
        chance, inside, num_images = np.random.default_rng(10), [], 1000
        for _ in range(draws):
            rows, truth = [], {}
            for which in CANDIDATES:
                truth[which.id] = chance.uniform(0.6, 0.9)
                for seed in range(seeds):
                    count = round(num_images * (truth[which.id] + chance.normal(0, 0.01)))
                    rows.append(trial(which, seed, first(count, num_images)))
            table = select(rows, confidence=confidence).candidates
            inside += [r.val_accuracy_low <= truth[r.candidate] <= r.val_accuracy_high for r in table.itertuples()]
        assert len(inside) == draws * len(CANDIDATES)
        assert np.mean(inside) == pytest.approx(confidence, abs=near), (confidence, seeds)


def test_the_standard_error_is_that_of_the_difference() -> None:
    chance = np.random.default_rng(11)
    differences, errors = [], []
    for _ in range(200):
        rows = simulate([0.0, 0.0], chance, seeds=3, images=500, own_image_sd=1.0, seed_sd=0.05)
        choice = select(rows, confidence=0.95)
        means = choice.candidates.set_index("candidate")["val_accuracy_mean"]
        differences.append(means["c01"] - means["c02"])
        errors.append(choice.comparisons["standard_error"].iloc[0])
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(differences), rel=0.12)


# --- edges ------------------------------------------------------------------------------------------------------------


def test_with_a_single_seed_all_are_tied_and_no_interval_is_given() -> None:
    choice = select([trial(c, 0, first(90 - 10 * i)) for i, c in enumerate(CANDIDATES[:3])], confidence=0.95)
    assert choice.chosen == "c01"
    assert choice.tied == ("c02", "c03")
    assert choice.candidates[["val_accuracy_low", "val_accuracy_high", "val_accuracy_std"]].isna().all(axis=None)
    assert choice.comparisons["p_corrected"].tolist() == [1.0, 1.0]


def test_numbers_of_seeds_may_differ() -> None:
    rows = [trial(CANDIDATES[0], seed, first(90 + seed)) for seed in range(3)]
    rows += [trial(CANDIDATES[1], 2, first(60)), trial(CANDIDATES[1], 1, None, reason="killed")]
    rows += [trial(CANDIDATES[2], seed, first(89 + seed)) for seed in (7, 8)]  # no seed in common with the others
    choice = select(rows, confidence=0.95)
    assert choice.chosen == "c03"  # 96.5 on its two against 91 of three
    table = choice.candidates.set_index("candidate")
    assert table["num_seeds"].to_dict() == {"c01": 3, "c02": 1, "c03": 2}
    # c03 shares no seed with the others: what looks better by far may be its seeds
    assert choice.tied == ("c01", "c02")
    assert choice.comparisons["p_corrected"].tolist() == [1.0, 1.0]
    widths = table["val_accuracy_high"] - table["val_accuracy_low"]
    assert widths["c02"] == pytest.approx(widths["c01"] * math.sqrt(3))


def test_what_a_seed_does_to_all_candidates_hides_no_difference() -> None:
    chance = np.random.default_rng(9)
    apart = [
        len(select(simulate([0.4] + [0.0] * 3, chance, seed_sd=0.01, shift_sd=0.5), confidence=0.95).tied) == 0
        for _ in range(20)
    ]
    assert sum(apart) >= 18  # unpaired, the spread between seeds would drown it


def test_seeds_that_agree_do_not_hide_that_images_differ() -> None:
    # Seeds agree to the image; what is uncertain is only which images the two have right.
    one, other = np.arange(100) < 60, np.arange(100) >= 45  # 60 and 55 right, different ones
    rows = [trial(CANDIDATES[0], seed, one) for seed in (0, 1)]
    rows += [trial(CANDIDATES[1], seed, other) for seed in (0, 1)]
    choice = select(rows, confidence=0.95)
    difference = one.astype(float) - other
    expected = difference.std(ddof=1) / 10
    assert choice.comparisons["standard_error"].iloc[0] == pytest.approx(expected)
    assert choice.tied == ("c02",)


def test_equal_accuracies_everywhere_are_all_tied() -> None:
    rows = [trial(c, seed, first(80)) for c in CANDIDATES[:4] for seed in range(3)]
    choice = select(rows, confidence=0.95)
    assert choice.chosen == "c04"  # the cheapest
    assert sorted(choice.tied) == ["c01", "c02", "c03"]
    assert choice.candidates["val_accuracy_low"].tolist() == pytest.approx([0.8] * 4)


def test_of_equal_means_the_cheaper_is_chosen_whatever_the_order_of_seeds() -> None:
    # 0.7, 0.1, 0.2 and 0.2, 0.7, 0.1 have float sums that differ in the last digit
    rows = [trial(CANDIDATES[0], seed, first(count)) for seed, count in enumerate((10, 20, 70))]
    rows += [trial(CANDIDATES[1], seed, first(count)) for seed, count in enumerate((70, 20, 10))]
    for order in (rows, rows[::-1]):
        choice = select(order, confidence=0.95)
        assert choice.chosen == "c02"
        assert choice.comparisons["difference"].tolist() == [0.0]


def test_the_baseline_is_neither_chosen_nor_compared() -> None:
    rows = [trial(c, seed, first(70 - 9 * i + seed)) for i, c in enumerate(CANDIDATES[:3]) for seed in range(2)]
    without = select(rows, confidence=0.95)
    choice = select(rows + [trial(ONE_TIMES, seed, first(98 + seed)) for seed in range(2)], confidence=0.95)
    assert choice.chosen == "c01"
    assert set(choice.comparisons["candidate"]) == {"c02", "c03"}
    both = choice.comparisons
    np.testing.assert_allclose(both["p_corrected"], np.minimum(1, both["p_value"] * 2))
    assert len(without.comparisons) == len(both)
    row = choice.candidates.set_index("candidate").loc[BASELINE]
    assert row["val_accuracy_mean"] == pytest.approx(0.985)
    assert not row["chosen"]
    assert not row["tied"]


def test_failed_candidates_stand_in_the_tables() -> None:
    rows = [trial(CANDIDATES[0], seed, first(70 + seed)) for seed in range(2)]
    rows += [trial(CANDIDATES[1], seed, None, reason="diverged") for seed in range(2)]
    choice = select(rows, confidence=0.95)
    assert (choice.chosen, choice.tied) == ("c01", ())
    row = choice.candidates.set_index("candidate").loc["c02"]
    assert row["num_seeds"] == 0
    assert math.isnan(row["val_accuracy_mean"])
    assert math.isnan(row["val_accuracy_low"])
    assert not row["chosen"]
    assert not row["tied"]
    failed = trials_table(rows).query("candidate == 'c02'")
    assert failed["state"].tolist() == ["failed", "failed"]
    assert failed["reason"].tolist() == ["diverged", "diverged"]
    assert failed["val_accuracy"].isna().all()


def test_without_a_finished_candidate_there_is_nothing_to_choose() -> None:
    rows = [trial(ONE_TIMES, 0, first(50)), trial(CANDIDATES[0], 0, None, reason="killed")]
    with pytest.raises(ValueError, match="no candidate finished"):
        select(rows, confidence=0.95)


def test_a_lone_candidate_is_chosen() -> None:
    choice = select([trial(CANDIDATES[0], seed, first(50 + seed)) for seed in range(2)], confidence=0.95)
    assert (choice.chosen, choice.tied, len(choice.comparisons)) == ("c01", (), 0)


# --- tables -----------------------------------------------------------------------------------------------------------


def test_the_order_in_which_outcomes_come_changes_nothing() -> None:
    rows = simulate([0.0] * 8, np.random.default_rng(12), images=100)
    rows += [trial(ONE_TIMES, seed, first(80 + seed)) for seed in range(3)]
    expected = select(rows, confidence=0.95)
    for seed in range(5):
        shuffled = list(rows)
        random.Random(seed).shuffle(shuffled)
        choice = select(shuffled, confidence=0.95)
        assert (choice.chosen, choice.tied) == (expected.chosen, expected.tied)
        pd.testing.assert_frame_equal(choice.candidates, expected.candidates, check_exact=True)
        pd.testing.assert_frame_equal(choice.comparisons, expected.comparisons, check_exact=True)
        pd.testing.assert_frame_equal(trials_table(shuffled), trials_table(rows), check_exact=True)


def test_trials_have_one_row_per_evaluation_in_order() -> None:
    rows = [trial(c, seed, first(50 + seed)) for seed in (1, 0) for c in (CANDIDATES[1], ONE_TIMES, CANDIDATES[0])]
    table = trials_table(rows)
    assert list(zip(table["candidate"], table["seed"], strict=True)) == [
        (name, seed) for name in (BASELINE, "c01", "c02") for seed in (0, 1)
    ]
    assert table["val_accuracy"].tolist() == [0.5, 0.51] * 3
    assert table["key"].nunique() == 5 + 1
    assert set(table["state"]) == {"finished"}
    assert table["train_seconds"].tolist() == [1.5] * 6
    one = table.iloc[2]
    assert one["macs"] == CANDIDATES[0].cost.macs
    assert (one["alpha"], one["beta"], one["gamma"]) == (1.2, 1.1, 1.15)
    assert one["triples"] == "[[1.2, 1.1, 1.15]]"


def test_ties_are_listed_best_first() -> None:
    rows = [
        trial(c, s, first(80 - i + (6 if (i + s) % 2 else -6))) for i, c in enumerate(CANDIDATES[:4]) for s in range(2)
    ]
    choice = select(rows, confidence=0.95)
    assert choice.tied == ("c02", "c03", "c04")
    assert choice.candidates.set_index("candidate").loc["c02":"c04", "tied"].all()


def test_an_interval_is_student_s_over_the_seeds() -> None:
    mean, low, high = interval([0.8, 0.9, 0.7], confidence=0.95)
    assert mean == pytest.approx(0.8)
    assert high - mean == pytest.approx(mean - low)
    assert high - mean == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)  # t of two degrees of freedom
    mean, low, high = interval([0.8], confidence=0.95)
    assert mean == 0.8
    assert math.isnan(low)
    assert math.isnan(high)


# --- candidates that were stopped early -------------------------------------------------------------------------------


def without(rows: Sequence[TrialResult], name: str, *, seeds: int) -> list[TrialResult]:
    """The rows of a race that stopped a candidate after so many seeds."""
    return [row for row in rows if row.candidate.id != name or row.outcome.evaluation.seed < seeds]


def test_a_stopped_candidate_is_not_chosen_and_stays_in_the_tables() -> None:
    rows = [trial(c, seed, first(90 - 10 * i + seed)) for i, c in enumerate(CANDIDATES[:3]) for seed in range(3)]
    choice = select(without(rows, "c01", seeds=2), confidence=0.95, contenders=["c02", "c03"])
    assert (choice.chosen, choice.best) == ("c02", "c02")
    table = choice.candidates.set_index("candidate")
    assert table["stopped"].to_dict() == {"c01": True, "c02": False, "c03": False}
    assert table.loc["c01", "num_seeds"] == 2
    # it is better on the seeds that both have, so it cannot be told to be worse
    assert choice.tied == ("c01",)
    compared = choice.comparisons.set_index("candidate")
    assert compared.loc["c01", "num_seeds"] == 2
    assert compared.loc["c01", "difference"] == pytest.approx(-0.1)
    assert not select(rows, confidence=0.95).candidates["stopped"].any()


@pytest.mark.parametrize(("draws", "least"), [(60, 0.92), pytest.param(200, 0.93, marks=pytest.mark.slow)])
def test_the_ties_hold_a_stopped_candidate_that_is_as_good(draws: int, least: float) -> None:
    chance, tied, out = np.random.default_rng(21), [], []
    names = [c.id for c in CANDIDATES]
    for _ in range(draws):
        rows = without(simulate([0.0] * 7 + [-0.5], chance, seeds=4), "c03", seeds=2)
        rows = without(rows, "c08", seeds=2)
        choice = select(rows, confidence=0.95, contenders=[name for name in names if name not in ("c03", "c08")])
        tied.append("c03" in choice.tied)
        out.append("c08" not in choice.tied)
    assert np.mean(tied) >= least
    assert np.mean(out) >= 0.9  # and what is clearly worse is out although it had two seeds only


def test_where_only_stopped_candidates_finished_that_is_the_error() -> None:
    rows = [trial(CANDIDATES[0], 0, first(50)), trial(CANDIDATES[1], 0, None, reason="killed")]
    with pytest.raises(ValueError, match=r"may be chosen has finished \(c02\), only c01, .*stopped.*scalesearch retry"):
        select(rows, confidence=0.95, contenders=["c02"])


# --- the rule ---------------------------------------------------------------------------------------------------------


def needing(which: Candidate, **sizes: Any) -> Candidate:
    footprint = Footprint(**({"memory": 1, "training_memory": 1, "latency_ms": 1.0} | sizes))
    return dataclasses.replace(which, footprint=footprint)


def of_three(*counts: int, latencies: Sequence[float | None] = (3.0, 2.0, 1.0)) -> list[TrialResult]:
    """Three candidates, of which the first costs most, with noisy seeds about so many of 100 images right."""
    names = [needing(c, latency_ms=ms) for c, ms in zip(CANDIDATES, latencies, strict=False)]
    return [
        trial(c, seed, first(count + shift))
        for c, count, order in zip(names, counts, ((0, 3, -3), (3, -3, 0), (-3, 0, 3)), strict=True)
        for seed, shift in enumerate(order)
    ]


def test_the_cheapest_of_the_ties_is_chosen_and_the_best_still_named() -> None:
    choice = select(of_three(80, 79, 40), confidence=0.95, rule="cheapest_tied")
    assert (choice.chosen, choice.best, choice.tied) == ("c02", "c01", ("c02",))
    table = choice.candidates.set_index("candidate")
    assert (table.loc["c02", "chosen"], table.loc["c02", "best"], table.loc["c02", "tied"]) == (True, False, True)
    assert (table.loc["c01", "chosen"], table.loc["c01", "best"]) == (False, True)
    # the ties and the comparisons are against the best, whatever the rule
    same = select(of_three(80, 79, 40), confidence=0.95)
    assert (same.chosen, same.best, same.tied) == ("c01", "c01", ("c02",))
    pd.testing.assert_frame_equal(same.comparisons, choice.comparisons)


def test_the_cheapest_is_never_one_that_was_stopped() -> None:
    rows = of_three(80, 79, 78)
    assert select(rows, confidence=0.95, rule="cheapest_tied").chosen == "c03"
    choice = select(rows, confidence=0.95, rule="cheapest_tied", contenders=["c01", "c02"])
    assert choice.chosen == "c02"
    assert set(choice.tied) == {"c02", "c03"}


@pytest.mark.parametrize("metric", ["macs", "params", "memory", "training_memory", "latency_ms", "activations"])
def test_the_metric_decides_what_is_cheap(metric: str) -> None:
    small, large = dict.fromkeys(("memory", "training_memory"), 5), dict.fromkeys(("memory", "training_memory"), 9)
    costs = [Cost(9, 9, 9), Cost(5, 5, 5), Cost(7, 7, 7)]
    some = [
        needing(c, latency_ms=ms, **sizes)
        for c, ms, sizes in zip(CANDIDATES, (9.0, 5.0, 7.0), (large, small, large), strict=False)
    ]
    some = [dataclasses.replace(c, cost=counted) for c, counted in zip(some, costs, strict=True)]
    rows = [trial(c, seed, first(80 + (seed + i) % 3)) for i, c in enumerate(some) for seed in range(3)]
    assert select(rows, confidence=0.95, rule="cheapest_tied", metric=metric).chosen == "c02"
    more_expensive = dataclasses.replace(some[1], cost=Cost(99, 99, 99), footprint=Footprint(99, 99, 99.0))
    rows = [row._replace(candidate=more_expensive) if row.candidate.id == "c02" else row for row in rows]
    assert select(rows, confidence=0.95, rule="cheapest_tied", metric=metric).chosen != "c02"


def test_seconds_of_training_are_a_metric_too() -> None:
    rows = of_three(80, 79, 78)
    slow = dataclasses.replace(rows[-1].outcome.result, train_seconds=9.0)  # type: ignore[type-var]
    rows[-1] = rows[-1]._replace(outcome=rows[-1].outcome._replace(result=slow))
    # c01 and c02 take 1.5 s each, of which c01 has the better mean; c03 4 s in the mean
    assert select(rows, confidence=0.95, rule="cheapest_tied", metric="train_seconds").chosen == "c01"


def test_a_network_too_large_to_be_timed_is_not_the_cheapest() -> None:
    rows = of_three(80, 79, 78, latencies=(3.0, 2.0, None))
    assert select(rows, confidence=0.95, rule="cheapest_tied", metric="latency_ms").chosen == "c02"
    with pytest.raises(ValueError, match=r"selection\.metric is 'latency_ms'.*no candidate.*selection\.metric=macs"):
        select(of_three(80, 79, 78, latencies=(None,) * 3), confidence=0.95, metric="latency_ms")


def test_a_metric_or_a_rule_that_nobody_knows_is_refused_with_those_that_are_known() -> None:
    rows = [trial(CANDIDATES[0], seed, first(50)) for seed in range(2)]
    with pytest.raises(
        ValueError, match=r"'latency_ms', which candidates do not have; they have product, macs, .*train"
    ):
        select(rows, confidence=0.95, metric="latency_ms")
    with pytest.raises(ValueError, match=r"rule is 'worst' .known: posterior, best, cheapest_tied."):
        select(rows, confidence=0.95, rule="worst")


def test_the_rules_are_those_of_the_configuration() -> None:
    from scalesearch.config import Selection

    for rule in ("best", "cheapest_tied"):
        Selection(rule, "macs")
    with pytest.raises(ValueError, match=r"selection\.rule is 'cheapest_tie'; did you mean 'cheapest_tied'"):
        Selection("cheapest_tie", "macs")
    with pytest.raises(ValueError, match=r"selection\.metric is 'flops' .known: macs, .*train_seconds"):
        Selection("best", "flops")


# The decision.


def made_scores(truth: list[float], seeds: int, images: int = 4000, start: int = 0) -> list[TrialResult]:
    """Trainings of the first candidates, with each image right by chance."""
    chance = np.random.default_rng(start)
    return [
        trial(CANDIDATES[place], seed, chance.random(images) < accuracy)
        for place, accuracy in enumerate(truth)
        for seed in range(seeds)
    ]


def test_a_clear_winner_is_decided_for_and_nothing_is_as_good() -> None:
    choice = select(made_scores([0.7, 0.9, 0.7, 0.7], 3), confidence=0.95, rule="posterior", workers=2)
    decision = choice.decision
    assert decision is not None
    assert (decision.chosen, choice.chosen, choice.best) == (CANDIDATES[1].id,) * 3
    assert decision.as_good == ()
    assert decision.probability > 0.99
    assert decision.regret <= decision.regret_bound < 1e-2
    assert "no other candidate may be the best" in words(decision.values(), asdict(CANDIDATES[1].coefficients))
    assert sum(decision.table["probability_best"]) == pytest.approx(1)
    assert decision.table["candidate"].iloc[0] == decision.chosen


def test_where_nothing_differs_all_are_as_good_and_the_text_names_their_range() -> None:
    choice = select(made_scores([0.8] * 4, 2), confidence=0.95, rule="posterior")
    decision = choice.decision
    assert decision is not None
    assert len(decision.as_good) >= 2
    coefficients = [one.coefficients for one in CANDIDATES[:4] if one.id in (decision.chosen, *decision.as_good)]
    assert decision.spans["alpha"] == (min(c.alpha for c in coefficients), max(c.alpha for c in coefficients))
    text = words(decision.values(), asdict(coefficients[0]))
    assert "the best may as well be" in text
    assert "A further 10 minutes" in text


def test_the_decision_is_about_the_choice_whatever_rule_made_it() -> None:
    rows = made_scores([0.80, 0.805, 0.79, 0.8], 3)
    of = {
        rule: select(rows, confidence=0.95, rule=rule, metric="params")
        for rule in ("posterior", "best", "cheapest_tied")
    }
    for rule, choice in of.items():
        assert choice.decision is not None
        assert choice.decision.chosen == choice.chosen, rule
    regrets = {rule: choice.decision.regret for rule, choice in of.items() if choice.decision is not None}
    assert regrets["posterior"] == min(regrets.values())


def test_a_stopped_candidate_is_not_decided_for_and_counts_as_what_was_missed() -> None:
    rows = made_scores([0.7, 0.9, 0.7, 0.7], 3)
    free = [one.id for one in CANDIDATES[:4] if one.id != CANDIDATES[1].id]
    choice = select(rows, confidence=0.95, rule="posterior", contenders=free)
    assert choice.decision is not None
    assert choice.decision.chosen in free
    assert choice.decision.regret == pytest.approx(0.2, abs=0.02)


def test_a_single_training_is_no_decision_and_the_best_is_chosen() -> None:
    choice = select(made_scores([0.7, 0.9], 1), confidence=0.95, rule="posterior")
    assert choice.decision is None
    assert choice.chosen == choice.best == CANDIDATES[1].id


def test_more_workers_and_shorter_trainings_buy_more() -> None:
    rows = made_scores([0.80, 0.803, 0.79, 0.8], 2)
    further = []
    for workers in (1, 4, 64):
        decision = select(rows, confidence=0.95, rule="posterior", workers=workers).decision
        assert decision is not None
        assert decision.further is not None
        further.append(decision.further)
    trainings, regrets = [one.trainings for one in further], [one.regret for one in further]
    assert trainings == sorted(trainings)
    assert trainings[0] * 4 == pytest.approx(trainings[1], abs=4)
    assert regrets == sorted(regrets, reverse=True)
