"""How a network is trained: values that are part of an evaluation's key."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from scalesearch.checks import Must, between, checked
from scalesearch.text import plural
from scalesearch.training.metrics import ACCURACY, check_name

_SCHEDULE = (
    'after a linear rise over `warmup` of the steps: "one_cycle" (straight to zero), "cosine", or "steps" (a tenth '
    "from half of all steps on, a hundredth from three quarters on)"
)
_AUTOCAST = (
    '"auto" (bfloat16, or float16 on a GPU without it, where a short timing finds that faster), "bfloat16", "float16" '
    'or "off"'
)


_CLASS_WEIGHTS = (
    'of the loss: "balanced" (each class as much as every other), or a list with a number above 0 for each class; of '
    "images with several labels the weight of a label that is there; null: every image as much"
)
_METRIC = (
    "what candidates are chosen by: accuracy, balanced_accuracy, auroc (the mean of each class against the rest), or "
    "module:function, which takes scores (N, K) and targets (N,) as arrays and returns a number from -1 to 1, the "
    "higher the better; null: accuracy"
)


def _weights(given: object) -> object:
    if given == "balanced":
        return given
    numbers = list(given) if isinstance(given, list | tuple) else []
    if not numbers or not all(type(one) in (int, float) and 0 < one < math.inf for one in numbers):
        raise ValueError("it must be null, balanced, or a list with a number above 0 for each class, such as [1,5]")
    return tuple(float(one) for one in numbers)


ClassWeights = Annotated[Literal["balanced"] | tuple[float, ...], BeforeValidator(_weights), Must("balanced or a list")]
Metric = Annotated[
    str, BeforeValidator(check_name), Must("accuracy, balanced_accuracy, auroc or module:function, or null")
]


@checked("recipe", kw_only=True)
class Recipe:
    """How a network is trained. Each field says what it means."""

    epochs: Annotated[
        float, between(0.01, 10_000, "passes over the training images; 0.5: the first half of the batches of one")
    ]
    batch_size: Annotated[int, between(2, 65_536, "images of a step")]
    learning_rate: Annotated[float, between(1e-8, 100, "its highest value, for `batch_size` images a step")]
    momentum: Annotated[float, between(0, 0.9999, "of SGD, in Nesterov's form; 0: plain SGD")]
    weight_decay: Annotated[float, between(0, 1, "of weights, not of norms, biases and learned tokens")]
    label_smoothing: Annotated[float, between(0, 0.99, "probability that is spread over all classes")]
    schedule: Annotated[Literal["one_cycle", "cosine", "steps"], Field(description=_SCHEDULE)]
    warmup: Annotated[float, between(0, 0.9, "share of the steps in which the learning rate rises")]
    flip: Annotated[bool, Field(description="mirror half of the images")]
    crop_padding: Annotated[float, between(0, 0.5, "margin of a random crop as a share of the resolution; 0: no crop")]
    mixup: Annotated[float, between(0, 10, "alpha of the beta distribution (arXiv:1710.09412); 0: no mixup")]
    ema: Annotated[float, between(0, 0.99999, "decay per step of averaged weights, which are then evaluated; 0: none")]
    autocast: Annotated[Literal["auto", "bfloat16", "float16", "off"], Field(description=_AUTOCAST)]
    channels_last: Annotated[bool, Field(description="layout of images in memory")]
    class_weights: Annotated[ClassWeights | None, Field(description=_CLASS_WEIGHTS)] = None
    metric: Annotated[Metric | None, Field(description=_METRIC)] = None

    def __post_init__(self) -> None:
        if self.epochs.is_integer():  # as keys have had it since before there were parts of epochs
            object.__setattr__(self, "epochs", int(self.epochs))
        if self.metric == ACCURACY:
            object.__setattr__(self, "metric", None)

    def values(self) -> dict[str, Any]:
        """Plain values, for keys: what came after the first release is there only where it is set."""
        values = dataclasses.asdict(self)
        for field in dataclasses.fields(self):
            if field.default is not dataclasses.MISSING and values[field.name] == field.default:
                del values[field.name]
        return values | ({"class_weights": list(self.class_weights)} if isinstance(self.class_weights, tuple) else {})

    def num_steps(self, num_images: int) -> int:
        """Optimiser steps of a training on so many images; an epoch leaves an incomplete last batch out."""
        batch = min(self.batch_size, num_images)
        return max(1, round(self.epochs * (num_images // batch)))

    @property
    def precision(self) -> str | None:
        """The precision that `autocast` sets; None where it leaves it to a timing."""
        return {"off": "float32", "auto": None}.get(self.autocast, self.autocast)


INITIAL_SHARE = 0.05  # of the initial weights, that an average of weights may still have at the end


def check_average(recipe: Recipe, num_images: int) -> None:
    """Raises: ValueError where the averaged weights of a training on `num_images` would still be the initial ones.

    An average of decay d gives the initial weights the share d^steps: 0.9999 over 400 steps is 96 %.
    """
    steps = recipe.num_steps(num_images)
    if recipe.ema**steps <= INITIAL_SHARE:
        return
    most = INITIAL_SHARE ** (1 / steps)
    decay = next((f"{most:.{digits}f}" for digits in range(1, 6) if 0 < float(f"{most:.{digits}f}") <= most), None)
    raise ValueError(
        f"recipe.ema is {recipe.ema:g} and a training has {plural(steps, 'step')} ({plural(num_images, 'image')}): "
        f"{100 * recipe.ema**steps:.0f} % of the averaged weights would be the random initialisation. "
        f"recipe.ema must be {'0' if decay is None else f'{decay} at most, or 0 for no average'}"
    )


FEW_STEPS = 30


def few_steps(recipe: Recipe, num_images: int) -> str | None:
    """A sentence that warns of trainings on `num_images` with too few optimiser steps; None where there are enough."""
    steps = recipe.num_steps(num_images)
    if steps >= FEW_STEPS:
        return None
    return (
        f"a training takes {plural(steps, 'optimiser step')} ({plural(num_images, 'image')}, batches of "
        f"{min(recipe.batch_size, num_images)}, recipe.epochs={recipe.epochs:g}): in fewer than {FEW_STEPS} next to "
        "nothing is learnt. Raise recipe.epochs or data.num_train, or lower recipe.batch_size"
    )
