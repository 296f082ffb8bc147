"""Other metrics than accuracy: their values, their parts by image, and a search that chooses by them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import learning
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Ended, case, printed_commands
from learning import SEARCH, SHARES, TRAIN, drawn
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from tiny import DATA as DIGITS
from tiny import TINY, changed, fit

from scalesearch.evaluation import Evaluation
from scalesearch.selection import Shuffled, unlearnt
from scalesearch.text import metric_title
from scalesearch.training import Recipe, Result, loop, metrics, objective
from scalesearch.workspace import DONE, NOTHING_LEARNT

place = learning.place


def answers(shares: list[float], *, images: int, seed: int, skill: float = 1.0) -> tuple[Any, Any]:
    """Probabilities (N, K) with ties, and classes (N,) that they know something of."""
    chance = np.random.default_rng(seed)
    classes = drawn(shares, chance, images=images)
    logits = chance.normal(0, 1, (images, len(shares))) + skill * (classes[:, None] == np.arange(len(shares)))
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return scores.round(2), classes


@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)
def test_values_are_those_of_scikit_learn(shares: list[float]) -> None:
    scores, classes = answers(shares, images=500, seed=0)
    expected = {"balanced_accuracy": balanced_accuracy_score(classes, scores.argmax(1))}
    each = [roc_auc_score(classes == k, scores[:, k]) for k in range(len(shares))]
    expected["auroc"] = np.mean(each)
    for name, value in expected.items():
        with case(name):
            scored = metrics.score(name, scores, classes)
            assert scored.value == pytest.approx(value, abs=1e-6)
            assert scored.by_image.mean(dtype=np.float64) == scored.value
            assert metrics.METRICS[name][0](scores, classes) == pytest.approx(value, abs=1e-12)


def test_of_several_labels_each_is_a_task_of_its_own() -> None:
    chance = np.random.default_rng(0)
    targets = (chance.random((300, 4)) < [0.5, 0.2, 0.1, 0.02]).astype(np.uint8)
    scores = (0.4 * targets + 0.6 * chance.random(targets.shape)).round(2)
    columns = [(targets[:, k], scores[:, k]) for k in range(4)]
    expected = {
        "accuracy": np.mean([np.mean((s > 0.5) == t) for t, s in columns]),
        "balanced_accuracy": np.mean([balanced_accuracy_score(t, s > 0.5) for t, s in columns]),
        "auroc": roc_auc_score(targets, scores),
    }
    assert set(expected) == set(metrics.METRICS)
    for name, value in expected.items():
        with case(name):
            assert metrics.score(name, scores, targets).value == pytest.approx(value, abs=1e-6)


def mean_score(scores: Any, targets: Any) -> float:
    """A function of a user's: Matthews' coefficient, which is no mean over images."""
    return float(np.corrcoef(scores.argmax(1), targets)[0, 1])


@pytest.mark.parametrize("name", ["balanced_accuracy", "auroc", "jackknife"])
def test_the_parts_vary_as_the_metric_does_between_sets_of_images(name: str) -> None:
    value_of = mean_score if name == "jackknife" else metrics.METRICS[name][0]
    by_image: Any = (
        metrics.METRICS[name][1] if name != "jackknife" else lambda *given: metrics.jackknife(mean_score, *given)
    )
    values, expected = [], []
    for seed in range(300):
        given = answers([0.8, 0.2], images=400, seed=seed, skill=1.5)
        values.append(value_of(*given))
        parts = by_image(*given)
        assert parts.mean() == pytest.approx(values[-1], abs=1e-9)
        expected.append(parts.var(ddof=1) / len(parts))
    assert np.sqrt(np.mean(expected)) == pytest.approx(np.std(values), rel=0.15)


def test_shuffled_labels_say_what_was_learnt() -> None:
    for name, level in (("auroc", 0.5), ("balanced_accuracy", 0.5)):
        for skill in (0.0, 1.0):
            scored = metrics.score(name, *answers([0.9, 0.1], images=600, seed=4, skill=skill))
            result = Result(
                **loop.scores(np.zeros(600, bool), scored),
                **{"val_loss": 1.0, "correct": np.zeros(600, bool), "curve": (), "train_seconds": 1.0},
                images_per_second=1.0,
            )
            back = Result.from_json(json.loads(json.dumps(result.to_json())))
            assert back.by_image.tobytes() == result.by_image.tobytes()
            assert scored.chance == pytest.approx(level, abs=0.02)
            found = unlearnt({"c01": [back] * 2}, Shuffled(name, scored.chance, 600), confidence=0.95)
            with case(name, skill):
                assert bool(found) == (skill == 0)


@pytest.mark.parametrize(
    ("name", "several"),
    [(name, several) for name in metrics.METRICS for several in (False, True) if several or name != "accuracy"],
)
def test_one_answer_to_everything_is_no_better_than_chance(name: str, several: bool) -> None:
    chance = np.random.default_rng(5)
    for images in (7, 50, 120, 1013):
        classes: Any = chance.integers(0, 3, images)
        targets = (chance.random((images, 3)) < [0.5, 0.3, 0.1]).astype(np.uint8) if several else classes
        scored = metrics.score(name, np.repeat(chance.random((1, 3)), images, 0), targets)
        with case(images):
            assert scored.chance_deviation == 0
            assert scored.value == pytest.approx(scored.chance, abs=1e-6)


def test_a_name_that_is_none_is_refused_with_the_known_ones() -> None:
    for wrong in ("auc", "f1", "a b:c", "module:", 3, ""):
        with case(wrong), pytest.raises(ValueError, match=r"recipe\.metric is .*balanced_accuracy"):
            changed(metric=wrong)
    assert changed(metric="accuracy") == changed()


# Class weights


def test_weights_are_those_of_the_loss() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    assert objective.class_weights(changed(), labels, 3) is None
    balanced = objective.class_weights(changed(class_weights="balanced"), labels, 3)
    assert balanced is not None
    assert balanced[labels].mean() == pytest.approx(4 / 3 * 2 / 2 * 1, rel=0.5)
    assert balanced[0] * 3 == pytest.approx(float(balanced[1]))
    given = changed(class_weights=[1, 2, 3])
    assert given.values()["class_weights"] == [1.0, 2.0, 3.0]
    assert Recipe(**json.loads(json.dumps(given.values()))) == given
    for wrong in ("even", [], [0, 1], [1, "2"], [1, float("inf")], 3):
        with case(wrong), pytest.raises(ValueError, match=r"recipe\.class_weights is .*balanced"):
            changed(class_weights=wrong)


def test_a_heavy_class_is_answered_more_often() -> None:
    usual = fit(TINY, changed())
    heavy = fit(TINY, changed(class_weights=[1.0] * 9 + [50.0]))
    nines = DIGITS.val_labels.numpy() == 9
    assert heavy.correct[nines].mean() > usual.correct[nines].mean()


def test_what_is_not_set_is_in_no_key() -> None:
    assert {"class_weights", "metric"}.isdisjoint(changed().values())
    keys = {Evaluation(TINY, changed(metric=name), "d", 0).key for name in (None, "accuracy", "auroc")}
    assert len(keys) == 2


# Through the commands

FUNCTION = """
import numpy as np

def recall(scores, targets):
    return float((scores.argmax(1) == 1)[targets == 1].mean())

def raises(scores, targets):
    raise KeyError("no such class")

def outside(scores, targets):
    return 7
"""


@pytest.fixture
def mine(place: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working directory."""
    Path("mine_metrics.py").write_text(FUNCTION)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(metrics, "_trusted", {})
    monkeypatch.delitem(sys.modules, "mine_metrics", raising=False)
    return "mine_metrics"


def _is_compared_with_references_by_it(metric: str, place: Path, command: Callable[..., Ended]) -> None:
    words = ("reproduce", "fidelity", "study=s", "candidates=2", "seeds=1", "factor=1.34", "tracking=none", "--json")
    named = [f"metric={metric}"] if ":" in metric else []
    metrics._trusted.clear()  # as another command finds it
    if named:
        for wrong in ([], ["metric=mine_metrics:raises"]):
            refused = command(*words, *wrong)
            assert refused.code == 2
            assert f"Name it yourself: metric={metric}" in refused.output
    else:
        assert "leave it out" in command(*words, "metric=mine_metrics:recall").output
    code, answer, message = command(*words, *named)
    assert code == DONE, message
    assert f"Means of validation {metric_title(metric)}" in message
    assert (f"metric={metric}" in answer["fidelity"]["command"]) == bool(named)
    table = pd.read_csv(place / "fidelity-epochs-1.34.csv").groupby(["side", "candidate"])[f"val_{name_of(metric)}"]
    for row in answer["fidelity"]["table"]:
        for side in ("proxy", "reference"):
            assert table.mean()[side, row["candidate"]] == pytest.approx(row[f"{side}_accuracy_mean"])


name_of = metrics.metric_name


@pytest.mark.parametrize("metric", ["balanced_accuracy", "auroc", "mine_metrics:recall"])
def test_a_search_chooses_by_it_and_calls_it_by_its_name(
    metric: str,
    mine: str,
    place: Path,
    command: Callable[..., Ended],
) -> None:
    name = metrics.metric_name(metric)
    words = (*TRAIN, *SEARCH, "data.name=skewed_seen", "recipe.class_weights=balanced", f"metric={metric}")
    code, answer, message = command("run", *words)
    assert code == DONE, message
    assert {f"val_{name}_mean", f"val_{name}_low"} <= answer["chosen"].keys()
    assert "accuracy" not in json.dumps(answer).replace("balanced_accuracy", "")
    assert json.loads((place / "result.json").read_text()) == answer
    trials = pd.read_csv(place / "trials.csv")
    candidates = pd.read_csv(place / "candidates.csv").set_index("candidate")
    means = trials.groupby("candidate")[f"val_{name}"].mean()
    assert means.to_numpy() == pytest.approx(candidates.loc[means.index, f"val_{name}_mean"].to_numpy())
    assert means.drop("baseline").max() == pytest.approx(answer["best"][f"val_{name}_mean"])
    title = metric_title(metric)
    assert f"test {title}: " in message
    assert f"{title} with the labels of the validation images shuffled" in message
    again = command("run", *words)
    assert (again.code, again.answer["evaluations"]["trained"]) == (DONE, 0)
    status = command("status", "study=s", "--json")
    assert status.answer["best"][f"val_{name}_mean"] == pytest.approx(answer["best"][f"val_{name}_mean"])
    code, report, message = command("report", "study=s", "--json")
    assert code == DONE, message
    commands = printed_commands(report)
    assert len(commands) >= 3
    of_fidelity = [one for one in commands if "fidelity" in one]
    assert all(f"metric={metric}" in one for one in commands if ":" in metric or one not in of_fidelity), commands
    _is_compared_with_references_by_it(metric, place, command)
    assert f"Accuracy is {title} on this page" in (place / "report.md").read_text()


def test_a_metric_of_random_labels_chooses_nothing(place: Path, command: Callable[..., Ended]) -> None:
    for words in (("run", *TRAIN, *SEARCH), ("train", *TRAIN)):
        code, answer, message = command(*words, "data.name=random_labels", "metric=auroc")
        assert code == NOTHING_LEARNT, message
        assert "is no better than chance: its AUROC is" in message
        assert answer["shuffled_labels"]["validation"] == pytest.approx(0.5, abs=0.05)


def test_a_training_for_accuracy_is_scored_by_another_metric_and_not_trained_again(
    place: Path,
    command: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from scalesearch.training import worker

    first = command("train", *TRAIN, "data.name=skewed_seen").answer
    monkeypatch.setattr(worker, "train", None)
    code, answer, message = command("train", *TRAIN, "data.name=skewed_seen", "metric=auroc")
    assert code == DONE, message
    assert [row["key"] for row in answer["seeds"]] != [row["key"] for row in first["seeds"]]
    assert all(Path(row["weights"]).exists() for row in answer["seeds"])
    assert answer["val_auroc_mean"] > 0.9


def test_a_function_that_fails_is_refused_before_anything_is_trained(
    mine: str,
    place: Path,
    command: Callable[..., Ended],
) -> None:
    for wrong, words in (
        (f"{mine}:raises", "which raised KeyError"),
        (f"{mine}:outside", "which returned 7.0 for scores (400, 2); it must be a number from -1 to 1"),
        (f"{mine}:nothing", "has no function 'nothing'"),
        ("no_such_module:f", "cannot be imported"),
    ):
        for first in (("run", *SEARCH), ("train",)):
            code, _, message = command(*first, *TRAIN, "data.name=seen", f"metric={wrong}")
            with case(first[0], wrong):
                assert code == 2, message
                assert words in message
                assert not list(Path().glob("workspace/evaluations/*/*"))
    code, _, message = command("run", *SEARCH, *TRAIN, "recipe.class_weights=[1,2]")
    assert code == 2
    assert "recipe.class_weights has 2 numbers, and data=digits 10 classes" in message


def test_a_function_that_a_file_alone_names_is_not_run(
    mine: str,
    place: Path,
    command: Callable[..., Ended],
) -> None:
    words = (*TRAIN, *SEARCH, "data.name=skewed_seen", f"metric={mine}:recall")
    assert command("run", *words).code == DONE
    metrics._trusted.clear()
    Path(f"{mine}.py").write_text("raise SystemExit('it was run')")
    sys.modules.pop(mine, None)
    code, _, message = command("report", "study=s")
    assert code == DONE, message
    code, _, message = command("reproduce", "fidelity", "study=s", "dry_run=true")
    assert code == 2
    assert "what a file names is not run" in message
