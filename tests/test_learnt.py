"""Whether anything was learnt: the tests that decide it, and what commands do where nothing was."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import learning
import numpy as np
import pytest
from conftest import Ended, case, recipe
from learning import DATA, SEARCH, SHARES, TRAIN, Labels, drawn
from made_up import CANDIDATES, first, trial

from scalesearch.selection import Majority, interval, remedy, select, unlearnt
from scalesearch.training import FEW_STEPS, Result, check_average, few_steps
from scalesearch.workspace import DONE, NOTHING_LEARNT

place = learning.place
OF_A_CHOICE = ("coefficients.yaml", "candidates.csv", "family.csv", "report.md", "variants", "figures")


def guesses(labels: Labels, shares: list[float], chance: np.random.Generator) -> Any:
    """Right where an answer drawn without a look at the image happens to be."""
    return labels == chance.choice(len(shares), len(labels), p=shares)


def result(correct: Any) -> Result:
    found = trial(CANDIDATES[0], 0, correct).outcome.result
    assert found is not None
    return found


@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)
def test_one_answer_to_everything_is_never_learnt(shares: list[float]) -> None:
    labels = drawn(shares, np.random.default_rng(0))
    majority = Majority(labels)
    for answer in range(len(shares)):
        seeds = [result(labels == answer)] * 3
        assert majority.p_value(seeds) > 0.5
        assert majority.is_constant(seeds)
        assert unlearnt({"c01": seeds}, majority, confidence=0.95)["c01"].constant
    assert majority.value == pytest.approx(max(np.bincount(labels)) / len(labels))


@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)
def test_of_searches_that_guess_at_most_one_in_twenty_has_learnt(shares: list[float]) -> None:
    chance, learnt, searches = np.random.default_rng(1), 0, 300
    for _ in range(searches):
        labels = drawn(shares, chance, images=400)
        finished = {one.id: [result(guesses(labels, shares, chance))] for one in CANDIDATES}
        learnt += len(unlearnt(finished, Majority(labels), confidence=0.95)) < len(finished)
    assert learnt / searches <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / searches)


def test_what_has_learnt_is_known_by_either_test() -> None:
    chance = np.random.default_rng(2)
    for name, shares, wrong in (
        ("ten equal classes", SHARES["ten equal classes"], 0.7),
        ("95:5", SHARES["95:5"], 0.01),
    ):
        labels = drawn(shares, chance)
        seeds = [result(chance.random(len(labels)) >= wrong) for _ in range(2)]
        with case(name):
            assert not unlearnt({f"c{i}": seeds for i in range(20)}, Majority(labels), confidence=0.95)


def test_all_images_of_one_class_can_show_nothing() -> None:
    majority = Majority(np.zeros(50, int))
    assert majority.value == 1
    assert majority.p_value([result(np.ones(50, bool))]) == 1


def test_more_seeds_of_the_same_images_are_no_more_images() -> None:
    labels = drawn(SHARES["two equal classes"], np.random.default_rng(3), images=100)
    one = result(first(58))
    assert Majority(labels).p_value([one]) == Majority(labels).p_value([one] * 9)


@pytest.mark.parametrize("rule", ["best", "cheapest_tied"])
def test_only_what_has_learnt_is_chosen_and_all_are_compared(rule: str) -> None:
    results = [trial(one, seed, first(60 + index, 100)) for index, one in enumerate(CANDIDATES) for seed in range(2)]
    choice = select(results, confidence=0.95, rule=rule, not_learnt=["c08", "c07"])
    assert choice.best == "c06"
    assert choice.chosen not in ("c07", "c08")
    assert choice.not_learnt == ("c07", "c08")
    assert set(choice.comparisons["candidate"]) == {one.id for one in CANDIDATES} - {"c06"}
    with pytest.raises(ValueError, match="learnt"):
        select(results, confidence=0.95, rule=rule, not_learnt=[one.id for one in CANDIDATES])


def test_an_interval_of_more_than_100_points_is_none() -> None:
    assert all(math.isnan(end) for end in interval([0.1, 0.9], confidence=0.95)[1:])
    assert interval([0.50, 0.52], confidence=0.95)[1:] == pytest.approx((0.383, 0.637), abs=1e-3)
    results = [
        trial(one, seed, first(count))
        for one, counts in zip(CANDIDATES, ((10, 90), (50, 52)), strict=False)
        for seed, count in enumerate(counts)
    ]
    choice = select(results, confidence=0.95)
    assert choice.without_interval == ["c01", "c02"]  # the deviation is pooled
    again = select([one for one in results if one.candidate.id == "c02"], confidence=0.95)
    assert again.without_interval == []
    assert select([results[0], results[2]], confidence=0.95).without_interval == ["c01", "c02"]  # a seed each


def test_steps_are_those_that_a_training_takes() -> None:
    for epochs, batch, images, steps in ((1, 32, 64, 2), (0.5, 32, 64, 1), (0.01, 64, 64, 1), (3, 100, 40, 3)):
        given = recipe(epochs=epochs, batch_size=batch)
        assert given.num_steps(images) == steps
        warning = few_steps(given, images)
        assert warning is not None
        assert f"{steps} optimiser step" in warning
    assert few_steps(recipe(epochs=FEW_STEPS, batch_size=50), 50) is None


REMEDIES = ("recipe.class_weights=balanced", "metric=balanced_accuracy", "metric=auroc")


def test_the_remedy_for_unequal_classes_is_to_balance_them() -> None:
    chance, few, enough = np.random.default_rng(8), recipe(epochs=1), recipe(epochs=100)
    unequal = {
        "95:5": drawn(SHARES["95:5"], chance),
        "two of three": drawn([0.65, 0.25, 0.1], chance),
        "a rare label": (chance.random((400, 3)) < (0.5, 0.4, 0.05)).astype(np.uint8),
        "a frequent label": (chance.random((400, 2)) < (0.5, 0.9)).astype(np.uint8),
    }
    equal = {
        "ten": drawn(SHARES["ten equal classes"], chance),
        "two": drawn(SHARES["two equal classes"], chance, images=50),
        "a hundred, by chance": drawn([0.01] * 100, chance, images=100),
        "labels of half of the images": (chance.random((400, 3)) < 0.5).astype(np.uint8),
    }
    for given, images, begin in ((few, 100, "optimiser steps"), (enough, 10_000, "Check the labels")):
        for name, labels in (unequal | equal).items():
            words = remedy(given, images, labels)
            with case(name, begin):
                assert begin in words
                assert [one in words for one in REMEDIES] == [name in unequal] * 3
        balanced = replace(given, class_weights="balanced")
        left = remedy(balanced, images, unequal["95:5"])
        assert [one in left for one in REMEDIES] == [False, True, True]
        assert not any(one in remedy(replace(balanced, metric="auroc"), images, unequal["95:5"]) for one in REMEDIES)


# Through the commands


def written(place: Path) -> set[str]:
    return {name for name in OF_A_CHOICE if (place / name).exists()}


@pytest.mark.parametrize("name", DATA)
def test_a_search_chooses_where_something_was_learnt(name: str, place: Path, command: Callable[..., Ended]) -> None:
    learnt = DATA[name][1]
    code, answer, message = command("run", *TRAIN, *SEARCH, f"data.name={name}")
    assert code == (DONE if learnt else NOTHING_LEARNT), message
    share = answer["majority_share"]["validation"]
    assert f"{100 * share:.2f} %" in message
    assert json.loads((place / "result.json").read_text()) == answer
    if learnt:
        assert answer["chosen"]["val_accuracy_mean"] > share
        assert answer["chosen"]["id"] not in answer["not_learnt"]
        assert written(place) == set(OF_A_CHOICE)
        assert "The most frequent class alone is right on" in (place / "report.md").read_text()
        return
    assert answer["chosen"] is None
    assert answer["variants"] == []
    assert written(place) == set()
    assert "nothing was learnt: the best of 3 candidates" in message
    assert "chosen: " not in message
    assert "recipe.epochs" in answer["nothing_learnt"]["remedy"]
    assert all((one in message) == name.startswith("skewed") for one in REMEDIES)


@pytest.mark.parametrize("name", DATA)
def test_a_training_says_whether_it_has_learnt(name: str, place: Path, command: Callable[..., Ended]) -> None:
    learnt = DATA[name][1]
    code, answer, message = command("train", *TRAIN, f"data.name={name}", "test=true")
    assert code == (DONE if learnt else NOTHING_LEARNT), message
    assert (answer["nothing_learnt"] is None) == learnt
    assert all((one in message) == (not learnt and name.startswith("skewed")) for one in REMEDIES)
    shares = answer["majority_share"]
    for split in ("validation", "test"):
        (line,) = [line for line in message.splitlines() if line.startswith(f"{split} accuracy: ")]
        assert f"the most frequent class alone: {100 * shares[split]:.2f} %" in line


TWO_STEPS = ("data.num_train=64", "recipe.batch_size=32", "recipe.epochs=1")


def test_two_steps_are_warned_of_before_and_are_nothing_learnt_after(
    place: Path, command: Callable[..., Ended]
) -> None:
    code, answer, message = command("plan", *TRAIN, *SEARCH, *TWO_STEPS)
    assert (code, answer["steps"]) == (DONE, 2)
    assert answer["few_steps"] in message
    for words in (("run", *TRAIN, *SEARCH, *TWO_STEPS), ("train", *TRAIN, *TWO_STEPS)):
        code, _, message = command(*words)
        assert code == NOTHING_LEARNT, message
        assert "a training takes 2 optimiser steps" in message
    assert command("plan", *TRAIN, *SEARCH).answer["few_steps"] is None


def test_a_study_that_has_chosen_nothing_goes_on_and_says_so_to_all_who_ask(
    place: Path, command: Callable[..., Ended]
) -> None:
    words = ("run", *TRAIN, *SEARCH, "data.name=random_labels")
    code, before, _ = command(*words)
    assert code == NOTHING_LEARNT
    for name in OF_A_CHOICE:  # as a version would have left them that chose all the same
        (place / name).mkdir() if "." not in name else (place / name).write_text("of a choice")
    code, again, _ = command(*words)
    assert code == NOTHING_LEARNT
    assert again["evaluations"]["trained"] == 0
    assert {**again, "evaluations": before["evaluations"]} == before
    assert written(place) == set()
    status = command("status", "--json")
    assert (status.code, status.answer["state"]) == (DONE, "finished")
    assert status.answer["nothing_learnt"] == before["nothing_learnt"]
    for asked in ("report", "variants", "export candidate=chosen", "reproduce fidelity"):
        code, _, message = command(*asked.split(), "study=s", "workspace=workspace")
        with case(asked):
            assert code == 2
            assert before["nothing_learnt"]["reason"] in message
            assert before["nothing_learnt"]["remedy"] in message
    code, more, _ = command(*words, "recipe.seeds=3")
    assert (code, more["evaluations"]["trained"]) == (NOTHING_LEARNT, 4)


# Averaged weights.


def test_an_average_of_weights_that_would_be_the_initial_ones_is_refused(
    place: Path, command: Callable[..., Ended]
) -> None:
    """92.5 % became 9.6 % with the decay of a long recipe in a short training."""
    for images, epochs, batch, decay in ((640, 2, 16, 0.9999), (64, 1, 64, 0.9), (640, 1, 64, 0.999)):
        made = recipe(epochs=epochs, batch_size=batch, ema=decay)
        with pytest.raises(ValueError, match=r"of the averaged weights would be the random initialisation") as refused:
            check_average(made, images)
        most = re.search(r"must be ([\d.]+)( at most)?", str(refused.value))
        assert most is not None
        check_average(replace(made, ema=float(most[1].rstrip("."))), images)
    for words in ("plan", "run"):
        ended = command(words, *TRAIN, *SEARCH, "recipe.ema=0.9999")
        assert ended.code == 2
        assert "recipe.ema must be" in ended.output
    ended = command("train", *TRAIN, "recipe.ema=0.9999")
    assert ended.code == 2
    assert not list(place.rglob("evaluations"))
