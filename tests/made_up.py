"""Trainings that are made up, for the tests of what is chosen from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from scalesearch.cost import cost
from scalesearch.evaluation import Evaluation, Outcome
from scalesearch.network import Network, Stage
from scalesearch.scaling import Coefficients
from scalesearch.search import BASELINE, Candidate, TrialResult
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
    return Candidate(name, (Coefficients(1.2, 1.1, 1.15),), network, cost(network), 2.0)


CANDIDATES = [candidate(f"c{index:02d}", width=8 * (9 - index)) for index in range(1, 9)]  # c01 costs most
ONE_TIMES = candidate(BASELINE)


def trial(which: Candidate, seed: int, correct: Any, *, reason: str = "") -> TrialResult:
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
    return TrialResult(which, Outcome(Evaluation(which.network, RECIPE, "data", seed), result, reason, reused=False))


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
) -> list[TrialResult]:
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
            rows.append(trial(which, seed, margin > 0))
    for index in range(lost):
        row = rows[-1 - index]
        rows[-1 - index] = trial(row.candidate, row.outcome.evaluation.seed, None, reason="lost")
    return rows


def drawn(
    chance: np.random.Generator, accuracies: Sequence[float], *, seeds: int, images: int, seed_sd: float
) -> dict[str, dict[int, Any]]:
    """Networks that have each image right by chance alone: the images are uncertain by nothing that seeds leave."""
    return {
        c.id: {s: chance.random(images) < accuracy + chance.normal(0, seed_sd) for s in range(seeds)}
        for c, accuracy in zip(CANDIDATES, accuracies, strict=False)
    }
