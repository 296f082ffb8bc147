"""Whether a network has learnt anything: is it better than always answering with the most frequent class?

A network of which this cannot be shown is not chosen. Two exact one-sided tests look at its mean accuracy over the
seeds, each at half of the level: a binomial test against the share of the majority class, which sees more where classes
are equally frequent, and a sign test over the images on which the network and the majority class differ (McNemar's),
which sees more where one class is much more frequent. Seeds share the images, so that more of them are no more images:
their mean counts once. The level is divided by the number of networks (Bonferroni): the best of many is looked at.

Another metric than accuracy is compared with its own values for the same answers and shuffled labels, by a normal test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from scalesearch.data import Data
from scalesearch.selection.pairs import Correct
from scalesearch.text import level, metric_title, percent, plural
from scalesearch.training import Recipe, Result, few_steps


@dataclass(frozen=True, eq=False)
class Majority:
    """The answer that is always the most frequent class of these images; labels (N,) of whole numbers."""

    labels: np.ndarray[Any, Any]
    key = "majority_share"  # in JSON and MLflow

    @cached_property
    def correct(self) -> Correct:
        """(N,) which images have the most frequent class; of equally frequent ones the first."""
        classes, numbers = np.unique(self.labels, return_counts=True)
        return np.asarray(self.labels == classes[numbers.argmax()])

    @property
    def value(self) -> float:
        """Its share of all images, 0 to 1."""
        return float(self.correct.mean())

    @property
    def num_images(self) -> int:
        return len(self.labels)

    def words(self, value: float, split: str) -> str:
        """What stands beside accuracies."""
        return f"the most frequent class alone: {percent(value)} % of the {split} images"

    def compared(self, accuracy: float) -> str:
        """A network's accuracy beside it, of which it is no better."""
        return (
            f"is no better than the most frequent class: it is right on {percent(accuracy)} % of "
            f"{plural(self.num_images, 'validation image')}, the most frequent class alone on {percent(self.value)} %"
        )

    def is_constant(self, seeds: Sequence[Result]) -> bool:
        """Whether in every seed all images of one class are right and all others wrong: one answer to everything."""
        return all(
            one.correct.any() and np.array_equal(one.correct, self.labels == self.labels[one.correct.argmax()])
            for one in seeds
        )

    def p_value(self, seeds: Sequence[Result]) -> float:
        """Of "no better than the majority class", one-sided: small where the network has learnt."""
        right = np.stack([one.correct.astype(np.float64) for one in seeds]).mean(0)  # (N,)
        better, worse = float(right[~self.correct].sum()), float((1 - right)[self.correct].sum())
        num_right, slack = float(right.sum()), 1e-9  # slack: the mean of equal seeds is a whole number
        better, worse, num_right = math.floor(better + slack), math.ceil(worse - slack), math.floor(num_right + slack)
        binomial = float(stats.binom.sf(num_right - 1, len(right), self.value))
        signs = float(stats.binom.sf(better - 1, better + worse, 0.5)) if better > worse else 1.0
        return min(1.0, 2 * binomial, 2 * signs)


@dataclass(frozen=True)
class Shuffled:
    """Values of a metric for answers that were given and labels that were shuffled: `value` is their mean."""

    metric: str
    value: float
    num_images: int
    key = "shuffled_labels"

    def words(self, value: float, split: str) -> str:
        """What stands beside the metric's values."""
        return f"{metric_title(self.metric)} with the labels of the {split} images shuffled: {percent(value)} %"

    def compared(self, value: float) -> str:
        """A network's value beside it, of which it is no better."""
        return (
            f"is no better than chance: its {metric_title(self.metric)} is {percent(value)} % on "
            f"{plural(self.num_images, 'validation image')}, and {percent(self.value)} % where these have each other's "
            "labels"
        )

    def is_constant(self, seeds: Sequence[Result]) -> bool:
        """Whether shuffling changes nothing in any seed: one answer to everything."""
        return all(one.chance_deviation == 0 for one in seeds)

    def p_value(self, seeds: Sequence[Result]) -> float:
        """Of "the answers have nothing to do with the labels", one-sided."""
        gain = sum(one.val_accuracy - (one.chance or 0.0) for one in seeds) / len(seeds)
        deviation = sum(one.chance_deviation or 0.0 for one in seeds) / len(seeds)
        return float(stats.norm.sf(gain / deviation)) if deviation > 0 else 1.0


Chance = Majority | Shuffled


def chance_level(metric: str | None, labels: np.ndarray[Any, Any], results: Sequence[Result]) -> Chance:
    """What a network must be better than: for accuracy the majority class, for another metric shuffled labels.

    metric: None is accuracy. labels: of the validation images, (N,), or (N, K) where they may have several.
    """
    if metric is None and labels.ndim == 1:
        return Majority(labels)
    values = [one.chance for one in results if one.chance is not None]
    return Shuffled(metric or "accuracy", float(np.mean(values)) if values else math.nan, len(labels))


def levels_of(chance: Chance, data: Data) -> dict[str, float]:
    """Its value on "validation" images and, for the majority class, on "test" images, whose labels are read now."""
    levels = {"validation": chance.value}
    if isinstance(chance, Majority):
        levels["test"] = Majority(data.test_labels().numpy()).value
    return levels


class Unlearnt(NamedTuple):
    """A network that is no better than chance.

    accuracy: mean over its seeds. p_value: corrected for the number of networks. constant: it has one answer to
    everything.
    """

    name: str
    accuracy: float
    p_value: float
    constant: bool


def unlearnt(finished: Mapping[str, Sequence[Result]], chance: Chance, *, confidence: float) -> dict[str, Unlearnt]:
    """Those of the networks that cannot be shown to be better than chance, by name; `finished` has their trainings."""
    found = {}
    for name, seeds in finished.items():
        p_value = min(1.0, chance.p_value(seeds) * len(finished))
        if p_value > 1 - confidence:
            accuracy = sum(one.val_accuracy for one in seeds) / len(seeds)
            found[name] = Unlearnt(name, accuracy, p_value, chance.is_constant(seeds))
    return found


def nothing_learnt(finished: Mapping[str, Sequence[Result]], chance: Chance, *, confidence: float) -> str | None:
    """Why none of the networks is better than chance; None where one is, and where no training has finished."""
    found = unlearnt(finished, chance, confidence=confidence)
    if not finished or len(found) < len(finished):
        return None
    best = max(found.values(), key=lambda one: one.accuracy)
    return unlearnt_words(best, chance, num_networks=len(finished), confidence=confidence, kind="networks")


def unlearnt_words(
    one: Unlearnt, chance: Chance, *, num_networks: int, confidence: float, kind: str = "candidates"
) -> str:
    """Why nothing was learnt, in one sentence, of the best network; `kind`: what the networks are."""
    which = f"the best of {num_networks} {kind}, {one.name}," if num_networks > 1 else one.name
    constant = "has one answer to every image, and " if one.constant else ""
    return (
        f"nothing was learnt: {which} {constant}{chance.compared(one.accuracy)} (p = {one.p_value:.2g}; below "
        f"{1 - confidence:.2g} it would be better at {level(confidence)})"
    )


def remedy(recipe: Recipe, num_train: int, labels: np.ndarray[Any, Any]) -> str:
    """What to try where nothing was learnt, in a sentence or two; labels: of the validation images, (N,) or (N, K)."""
    tried = few_steps(recipe, num_train) or _usual_remedy(recipe)
    return ". ".join([tried[0].upper() + tried[1:], *_against_imbalance(recipe, labels)])


def _usual_remedy(recipe: Recipe) -> str:
    return (
        f"Check the labels; raise recipe.epochs (now {recipe.epochs:g}) or data.num_train, try another "
        f"recipe.learning_rate (now {recipe.learning_rate:g}); a small gain is shown by more images in data.num_val"
    )


def _against_imbalance(recipe: Recipe, labels: np.ndarray[Any, Any]) -> list[str]:
    """What to try where classes, or an image's having a label and not having it, are unequally frequent."""
    classes = labels.T if labels.ndim == 2 else labels[None]
    shares = [np.unique(one, return_counts=True)[1] / len(labels) for one in classes]
    share = max(float(one.max()) for one in shares)
    # A quarter more than its part, and more than chance draws, at three deviations.
    part = 1 / max(2, max(len(one) for one in shares))
    if share <= 1.25 * part or share <= part + 3 * math.sqrt(part * (1 - part) / len(labels)):
        return []
    words = []
    if recipe.class_weights is None:
        words.append("recipe.class_weights=balanced lets each class count as much as every other in training")
    if recipe.metric is None:
        words.append("metric=balanced_accuracy or metric=auroc does so where networks are compared")
    what = "images that have a label and those that do not" if labels.ndim == 2 else "the classes"
    return [f"As {what} are unequally frequent ({percent(share)} %): {'; '.join(words)}"] if words else []
