from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scalesearch.cost import Cost, cost
from scalesearch.evaluation import Evaluation, Outcome
from scalesearch.network import Network, Stage
from scalesearch.scaling import Coefficients
from scalesearch.search import BASELINE, Candidate, Trained
from scalesearch.selection import Choice, interval, select, trials_table
from scalesearch.training import Recipe, Result

RECIPE = Recipe(
    epochs=1,
    batch_size=2,
    learning_rate=0.1,
    momentum=0.9,
    weight_decay=0.0,
    label_smoothing=0.0,
    schedule="cosine",
    warmup=0.0,
    flip=False,
    crop_padding=0.0,
    mixup=0.0,
    ema=0.0,
    autocast="off",
    channels_last=False,
)


def candidate(name: str, *, width: int = 8) -> Candidate:
    network = Network(
        name=name,
        resolution=8,
        stem=(Stage(block="conv_norm", channels=width),),
        stages=(Stage(block="mbconv", channels=width),),
        head=(Stage(block="conv_norm", kernel=1, channels=16),),
        activation="relu",
    )
    counted: Cost = cost(network)
    return Candidate(name, (Coefficients(1.2, 1.1, 1.15),), network, counted, 2.0)


CANDIDATES = [candidate(f"c{index:02d}", width=8 * (9 - index)) for index in range(1, 9)]  # c01 costs most
ONE_TIMES = candidate(BASELINE)


def trained(which: Candidate, seed: int, correct: Any, *, reason: str = "") -> Trained:
    """One evaluation that had these images right; one that failed where `reason` is given."""
    result = None
    if not reason:
        bits = np.asarray(correct, dtype=bool)
        result = Result(
            val_accuracy=float(bits.mean()),
            val_loss=1.0,
            correct=bits,
            curve=(),
            train_seconds=1.5,
            images_per_second=1.0,
        )
    return Trained(which, Outcome(Evaluation(which.network, RECIPE, "data", seed), result, reason, reused=False))


def first(count: int, of: int = 100) -> np.ndarray[Any, Any]:
    """`count` images right, the first ones."""
    return np.arange(of) < count


def simulate(
    effects: Sequence[float],
    chance: np.random.Generator,
    *,
    seeds: int = 3,
    images: int = 2000,
    seed_sd: float = 0.03,
    image_sd: float = 1.0,
    own_image_sd: float = 0.3,
    shift_sd: float = 0.0,
    lost: int = 0,
) -> list[Trained]:
    """Candidates on made-up images: a margin for each (candidate, seed, image), right where it is above 0.

    The truth is `effects`: what is random is the training (`seed_sd` for it as a whole, 1 for each image in it), how
    hard an image is, and how hard it is for one candidate in particular. The last `lost` trainings have failed.
    """

    def normal(sd: float) -> np.ndarray[Any, Any]:
        return chance.standard_normal(images, dtype=np.float32) * np.float32(sd)

    difficulty, rows = normal(image_sd), []
    shifts = chance.normal(0, shift_sd, seeds)  # what a seed does to all candidates
    for which, effect in zip(CANDIDATES, effects, strict=False):
        own = difficulty + normal(own_image_sd)
        for seed in range(seeds):
            margin = 1.5 + effect + shifts[seed] + chance.normal(0, seed_sd) + own + normal(1)
            rows.append(trained(which, seed, margin > 0))
    for index in range(lost):
        row = rows[-1 - index]
        rows[-1 - index] = trained(row.candidate, row.outcome.evaluation.seed, None, reason="lost")
    return rows


def admitted(choice: Choice) -> set[str]:
    return {choice.chosen, *choice.tied}


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


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_chosen_and_its_ties_hold_the_truly_best(setting: str) -> None:
    values = dict(SETTINGS[setting])
    effects = values.pop("effects")
    chance = np.random.default_rng(7)
    best = CANDIDATES[int(np.argmax(effects))].id  # of equals any one: it must be in as often as a lone best
    held = [best in admitted(select(simulate(effects, chance, **values), confidence=0.95)) for _ in range(300)]
    assert np.mean(held) >= 0.93


def test_the_promise_is_not_kept_by_admitting_everybody() -> None:
    chance = np.random.default_rng(8)
    effects = [0.2] + [0.0] * 6 + [-0.4]
    choices = [select(simulate(effects, chance), confidence=0.95) for _ in range(100)]
    assert np.mean(["c08" not in admitted(choice) for choice in choices]) > 0.95  # clearly worse
    assert np.mean([choice.chosen == "c01" for choice in choices]) > 0.95
    assert np.mean([len(choice.tied) for choice in choices]) < 2


def test_two_that_are_equal_are_reported_as_tied() -> None:
    chance = np.random.default_rng(9)
    effects = [0.3, 0.3] + [-0.3] * 6
    choices = [select(simulate(effects, chance), confidence=0.95) for _ in range(100)]
    assert np.mean([admitted(choice) == {"c01", "c02"} for choice in choices]) > 0.9


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("seeds", [2, 3])
def test_intervals_cover_the_mean_over_seeds_at_their_rate(confidence: float, seeds: int) -> None:
    chance, inside, num_images = np.random.default_rng(10), [], 1000
    for _ in range(150):
        rows, truth = [], {}
        for which in CANDIDATES:
            truth[which.id] = chance.uniform(0.6, 0.9)
            for seed in range(seeds):
                count = round(num_images * (truth[which.id] + chance.normal(0, 0.01)))
                rows.append(trained(which, seed, first(count, num_images)))
        table = select(rows, confidence=confidence).candidates
        inside += [r.val_accuracy_low <= truth[r.candidate] <= r.val_accuracy_high for r in table.itertuples()]
    assert len(inside) == 1200
    assert np.mean(inside) == pytest.approx(confidence, abs=0.035)


def test_the_standard_error_is_that_of_the_difference() -> None:
    chance = np.random.default_rng(11)
    differences, errors = [], []
    for _ in range(400):
        rows = simulate([0.0, 0.0], chance, seeds=3, images=500, own_image_sd=1.0, seed_sd=0.05)
        choice = select(rows, confidence=0.95)
        means = choice.candidates.set_index("candidate")["val_accuracy_mean"]
        differences.append(means["c01"] - means["c02"])
        errors.append(choice.comparisons["standard_error"].iloc[0])
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(differences), rel=0.12)


# --- edges ------------------------------------------------------------------------------------------------------------


def test_with_a_single_seed_all_are_tied_and_no_interval_is_given() -> None:
    choice = select([trained(c, 0, first(90 - 10 * i)) for i, c in enumerate(CANDIDATES[:3])], confidence=0.95)
    assert choice.chosen == "c01"
    assert choice.tied == ("c02", "c03")
    assert choice.candidates[["val_accuracy_low", "val_accuracy_high", "val_accuracy_std"]].isna().all(axis=None)
    assert choice.comparisons["p_corrected"].tolist() == [1.0, 1.0]


def test_numbers_of_seeds_may_differ() -> None:
    rows = [trained(CANDIDATES[0], seed, first(90 + seed)) for seed in range(3)]
    rows += [trained(CANDIDATES[1], 2, first(60)), trained(CANDIDATES[1], 1, None, reason="killed")]
    rows += [trained(CANDIDATES[2], seed, first(89 + seed)) for seed in (7, 8)]  # no seed in common with the others
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
    rows = [trained(CANDIDATES[0], seed, one) for seed in (0, 1)]
    rows += [trained(CANDIDATES[1], seed, other) for seed in (0, 1)]
    choice = select(rows, confidence=0.95)
    difference = one.astype(float) - other
    expected = difference.std(ddof=1) / 10
    assert choice.comparisons["standard_error"].iloc[0] == pytest.approx(expected)
    assert choice.tied == ("c02",)


def test_equal_accuracies_everywhere_are_all_tied() -> None:
    rows = [trained(c, seed, first(80)) for c in CANDIDATES[:4] for seed in range(3)]
    choice = select(rows, confidence=0.95)
    assert choice.chosen == "c04"  # the cheapest
    assert sorted(choice.tied) == ["c01", "c02", "c03"]
    assert choice.candidates["val_accuracy_low"].tolist() == pytest.approx([0.8] * 4)


def test_of_equal_means_the_cheaper_is_chosen_whatever_the_order_of_seeds() -> None:
    # 0.7, 0.1, 0.2 and 0.2, 0.7, 0.1 have float sums that differ in the last digit
    rows = [trained(CANDIDATES[0], seed, first(count)) for seed, count in enumerate((10, 20, 70))]
    rows += [trained(CANDIDATES[1], seed, first(count)) for seed, count in enumerate((70, 20, 10))]
    for order in (rows, rows[::-1]):
        choice = select(order, confidence=0.95)
        assert choice.chosen == "c02"
        assert choice.comparisons["difference"].tolist() == [0.0]


def test_the_baseline_is_neither_chosen_nor_compared() -> None:
    rows = [trained(c, seed, first(70 - 9 * i + seed)) for i, c in enumerate(CANDIDATES[:3]) for seed in range(2)]
    without = select(rows, confidence=0.95)
    choice = select(rows + [trained(ONE_TIMES, seed, first(98 + seed)) for seed in range(2)], confidence=0.95)
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
    rows = [trained(CANDIDATES[0], seed, first(70 + seed)) for seed in range(2)]
    rows += [trained(CANDIDATES[1], seed, None, reason="diverged") for seed in range(2)]
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
    rows = [trained(ONE_TIMES, 0, first(50)), trained(CANDIDATES[0], 0, None, reason="killed")]
    with pytest.raises(ValueError, match="no candidate finished"):
        select(rows, confidence=0.95)


def test_a_lone_candidate_is_chosen() -> None:
    choice = select([trained(CANDIDATES[0], seed, first(50 + seed)) for seed in range(2)], confidence=0.95)
    assert (choice.chosen, choice.tied, len(choice.comparisons)) == ("c01", (), 0)


# --- tables -----------------------------------------------------------------------------------------------------------


def test_the_order_in_which_outcomes_come_changes_nothing() -> None:
    rows = simulate([0.0] * 8, np.random.default_rng(12), images=100)
    rows += [trained(ONE_TIMES, seed, first(80 + seed)) for seed in range(3)]
    expected = select(rows, confidence=0.95)
    for seed in range(5):
        shuffled = list(rows)
        random.Random(seed).shuffle(shuffled)
        choice = select(shuffled, confidence=0.95)
        assert (choice.chosen, choice.tied) == (expected.chosen, expected.tied)
        pd.testing.assert_frame_equal(choice.candidates, expected.candidates, check_exact=True)
        pd.testing.assert_frame_equal(choice.comparisons, expected.comparisons, check_exact=True)
        pd.testing.assert_frame_equal(trials_table(shuffled), trials_table(rows), check_exact=True)


def test_trials_have_a_row_an_evaluation_in_order() -> None:
    rows = [trained(c, seed, first(50 + seed)) for seed in (1, 0) for c in (CANDIDATES[1], ONE_TIMES, CANDIDATES[0])]
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
        trained(c, s, first(80 - i + (6 if (i + s) % 2 else -6)))
        for i, c in enumerate(CANDIDATES[:4])
        for s in range(2)
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
