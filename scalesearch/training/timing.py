"""How fast a training is on a device, and in which precision it is faster: both from training on noise."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import NamedTuple

import torch

from scalesearch.cost import cost
from scalesearch.data import Data, Description
from scalesearch.machine import native_precisions, torch_device
from scalesearch.model import build
from scalesearch.network import AnyNetwork, Network
from scalesearch.training.loop import evaluate, train
from scalesearch.training.recipe import Recipe


class Pace(NamedTuple):
    """Seconds per image: of training on it once, with all that belongs to a step, and of scoring it."""

    train_seconds: float
    score_seconds: float


def pace(
    network: AnyNetwork,
    recipe: Recipe,
    *,
    precision: str,
    device: str | None = None,
    budget_seconds: float = 0.15,
) -> Pace:
    """How fast `network` trains and is scored on this device, measured by training it on a few images of noise.

    `train` itself is timed with few and with more steps, so that what a training does once does not count. A large
    network is timed with few images of a lower resolution and the time raised in proportion to the multiply-adds.
    """
    place = torch_device(device)
    most = 5e7 if place.type == "cpu" else 5e9  # multiply-adds of an image; four times as many a step
    timed, share = network, 1.0
    # A user's function may make networks for one resolution only, and knows no total stride.
    while isinstance(timed, Network) and cost(timed).macs > most and timed.resolution >= 2 * timed.total_stride:
        timed = replace(timed, resolution=timed.resolution // 2)
        share = cost(network).macs / cost(timed).macs
    batch = max(2, min(recipe.batch_size, int(4 * most / cost(timed).macs)))
    short = replace(recipe, epochs=1, batch_size=batch, learning_rate=1e-4)  # noise must not diverge

    def seconds(steps: int) -> float:
        data = _noise(timed, steps * batch)
        return train(timed, short, data, seed=0, device=str(place), precision=precision).train_seconds

    def fastest(steps: int) -> float:
        return min(seconds(steps) for _ in range(2))

    seconds(2)  # kernels are chosen and compiled
    few = fastest(2)
    more = max(2, min(12, int(budget_seconds * 2 / few)))
    step = max(1e-9, fastest(2 + more) - few) / more
    model, images = build(timed).to(place), _noise(timed, 4 * batch)
    evaluate(model, timed, images, split="val", device=place)
    began = time.perf_counter()
    evaluate(model, timed, images, split="val", device=place)
    return Pace(share * step / batch, share * (time.perf_counter() - began) / (4 * batch))


def faster_precision(network: AnyNetwork, recipe: Recipe, *, device: str | None = None) -> str:
    """What `network` trains faster in: half precision where it is measured to take a tenth less time, else "float32".

    Half precision is "bfloat16", or "float16" on a GPU that has no bfloat16 (`machine.native_precisions`). Where the
    device has neither nothing is measured: emulated, bfloat16 was 4.3 times slower (preresnet_tiny, AVX2 alone).
    """
    place = torch_device(device)
    names = native_precisions(place)
    if len(names) == 1:
        return "float32"
    single, half = (pace(network, recipe, precision=name, device=str(place)).train_seconds for name in names)
    return names[1] if half < 0.9 * single else "float32"


def _noise(network: AnyNetwork, num_images: int) -> Data:
    """Images and labels by chance, of the size that `network` takes."""
    shape = (num_images, network.in_channels, network.resolution, network.resolution)
    chance = torch.Generator().manual_seed(0)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=chance)
    labels = torch.randint(network.num_classes, (num_images,), generator=chance)
    sizes = Description(
        "noise", network.in_channels, network.num_classes, network.resolution, num_images, num_images, num_images
    )
    halves = (0.5,) * network.in_channels
    return Data(sizes, images, labels, images, labels, halves, halves, f"noise {shape}", lambda: None)  # type: ignore[arg-type,return-value]
