"""A network, images and a recipe that are trained in a fraction of a second."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from conftest import recipe

from scalesearch import pretrained
from scalesearch.data import DataSpec, load
from scalesearch.model import build
from scalesearch.network import Network, Stage
from scalesearch.training import Recipe, Result, save_weights, train

TINY = Network(
    name="tiny",
    resolution=8,
    in_channels=1,
    num_classes=10,
    activation="relu",
    stem=(Stage(block="conv_norm", channels=8),),
    stages=(Stage(block="mbconv", channels=12, expand=2, stride=2),),
    head=(Stage(block="conv_norm", kernel=1, channels=32),),
)
PLAIN = replace(TINY, stages=(Stage(block="conv_norm", channels=12),))
DROPOUT = replace(TINY, dropout=0.3)
DIGITS = DataSpec("digits", num_train=600, num_val=101)  # 101 is no multiple of 8
DATA = load(DIGITS)
RECIPE = recipe(epochs=2, batch_size=64, learning_rate=0.2, weight_decay=5e-4, label_smoothing=0.1)
ALL_ON = {"ema": 0.9, "flip": True, "crop_padding": 0.125, "mixup": 0.4, "epochs": 8}


def changed(**fields: Any) -> Recipe:
    return replace(RECIPE, **fields)


def fit(network: Network, recipe: Recipe, *, seed: int = 0, **more: Any) -> Result:
    return train(network, recipe, DATA, seed=seed, device="cpu", **more)


@functools.cache
def reference() -> Result:
    return fit(TINY, RECIPE)


def numbers(result: Result) -> tuple[object, ...]:
    """All of a result but the times."""
    return result.val_accuracy, result.val_loss, result.correct.tobytes(), result.curve


def initial_weights(directory: Path) -> Path:
    """Weights of TINY by place, in a file named after its digest, as the driver keeps them."""
    torch.manual_seed(99)
    save_weights(build(TINY), directory / "tiny.safetensors")
    weights = pretrained.fetch(str(directory / "tiny.safetensors"), [TINY], warn=print)
    path = directory / f"{weights.digest}.safetensors"
    path.write_bytes(weights.content)
    return path
