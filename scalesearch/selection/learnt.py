"""Whether a network has learnt anything: is it better than always answering with the most frequent class?

A network of which this cannot be shown is not chosen. Two exact one-sided tests look at its mean accuracy over the
seeds, each at half of the level: a binomial test against the share of the majority class, which sees more where classes
are equally frequent, and a sign test over the images on which the network and the majority class differ (McNemar's),
which sees more where one class is much more frequent. Seeds share the images, so that more of them are no more images:
their mean counts once. The level is divided by the number of networks (Bonferroni): the best of many is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from scalesearch.selection.pairs import Correct, Seeds, mean
from scalesearch.text import level, percent, plural
from scalesearch.training import Recipe, few_steps


@dataclass(frozen=True, eq=False)
class Majority:
    """The answer that is always the most frequent class of these images; labels (N,) of whole numbers."""

    labels: np.ndarray[Any, Any]

    @cached_property
    def correct(self) -> Correct:
        """(N,) which images have the most frequent class; of equally frequent ones the first."""
        classes, numbers = np.unique(self.labels, return_counts=True)
        return np.asarray(self.labels == classes[numbers.argmax()])

    @property
    def share(self) -> float:
        """Of all images, 0 to 1."""
        return float(self.correct.mean())

    def is_constant(self, seeds: Seeds) -> bool:
        """Whether in every seed all images of one class are right and all others wrong: one answer to everything."""
        return all(
            correct.any() and np.array_equal(correct, self.labels == self.labels[correct.argmax()])
            for correct in seeds.values()
        )

    def p_value(self, seeds: Seeds) -> float:
        """Of "no better than the majority class", one-sided: small where the network has learnt."""
        right = np.stack([correct.astype(np.float64) for correct in seeds.values()]).mean(0)  # (N,)
        better, worse = float(right[~self.correct].sum()), float((1 - right)[self.correct].sum())
        num_right, slack = float(right.sum()), 1e-9  # slack: the mean of equal seeds is a whole number
        better, worse, num_right = math.floor(better + slack), math.ceil(worse - slack), math.floor(num_right + slack)
        binomial = float(stats.binom.sf(num_right - 1, len(right), self.share))
        signs = float(stats.binom.sf(better - 1, better + worse, 0.5)) if better > worse else 1.0
        return min(1.0, 2 * binomial, 2 * signs)


class Unlearnt(NamedTuple):
    """A network that is no better than the majority class.

    accuracy: mean over its seeds. p_value: corrected for the number of networks. constant: it has one answer to
    everything.
    """

    name: str
    accuracy: float
    p_value: float
    constant: bool


def unlearnt(finished: Mapping[str, Seeds], majority: Majority, *, confidence: float) -> dict[str, Unlearnt]:
    """Those of the networks that cannot be shown to be better than the majority class, by name."""
    found = {}
    for name, seeds in finished.items():
        p_value = min(1.0, majority.p_value(seeds) * len(finished))
        if p_value > 1 - confidence:
            found[name] = Unlearnt(name, mean(seeds), p_value, majority.is_constant(seeds))
    return found


def unlearnt_words(one: Unlearnt, majority: Majority, *, num_networks: int, confidence: float) -> str:
    """Why nothing was learnt, in one sentence, of the best network."""
    which = f"the best of {num_networks} candidates, {one.name}," if num_networks > 1 else one.name
    answer = "has one answer to every image and" if one.constant else "is no better than the most frequent class: it"
    return (
        f"nothing was learnt: {which} {answer} is right on {percent(one.accuracy)} % of "
        f"{plural(len(majority.labels), 'validation image')}, the most frequent class alone on "
        f"{percent(majority.share)} % (p = {one.p_value:.2g}; below {1 - confidence:.2g} it would be better at "
        f"{level(confidence)})"
    )


def remedy(recipe: Recipe, num_train: int) -> str:
    """What to try where nothing was learnt, in one sentence."""
    few = few_steps(recipe, num_train)
    if few is not None:
        return few[0].upper() + few[1:]
    return (
        f"Check the labels; raise recipe.epochs (now {recipe.epochs:g}) or data.num_train, try another "
        f"recipe.learning_rate (now {recipe.learning_rate:g}); a small gain is shown by more images in data.num_val"
    )
