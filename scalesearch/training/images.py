"""The images of a training: where they lie, resized once, and the batches that are made of them.

Shapes: B images of a batch, N of a split, C channels, H and W rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scalesearch.data import Data
from scalesearch.training.recipe import Recipe

KEPT_BYTES = 1 << 30  # of resized images on a device, for the next training
SHARE = 0.25  # of the memory that is free on a GPU, which images may take: crops are cut from a padded copy

_kept: dict[tuple[str, str, int, str], Tensor] = {}


def resized(data: Data, split: str, resolution: int) -> Tensor:
    """The images of "train" or "val" at this resolution, on the CPU; the last 1 GiB of them is kept."""
    return resident(data, split, resolution, torch.device("cpu"))


def resident(data: Data, split: str, resolution: int, device: torch.device) -> Tensor:
    """As `resized`, on `device`, where the last 1 GiB is kept; on the CPU where a GPU has no room for them.

    The tensor (N, C, H, W) uint8 says where it is: what is taken from it goes to the device with `moved`.
    """
    key = (data.fingerprint, split, resolution, str(device))
    if key not in _kept:
        images = resize(data.train_images if split == "train" else data.val_images, resolution)
        there = [other for other in _kept if other[3] == key[3]]
        while there and sum(_kept[other].nbytes for other in there) + images.nbytes > KEPT_BYTES:
            del _kept[there.pop(0)]
        _kept[key] = images if device.type == "cpu" else _placed(images, device)
    return _kept[key]


def _placed(images: Tensor, device: torch.device) -> Tensor:
    """On the GPU, copied in parts through pinned memory; as they are where they take too much of what is free there."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if images.nbytes > SHARE * (torch.cuda.mem_get_info(device)[0] + unused):
        return images
    placed = torch.empty_like(images, device=device)
    for there, part in zip(placed.split(4096), images.split(4096), strict=True):  # type: ignore[no-untyped-call]
        there.copy_(part.pin_memory(), non_blocking=True)
    return placed


def moved(values: Tensor, device: torch.device) -> Tensor:
    """On `device`; to a GPU through pinned memory, from which the copy runs beside what the GPU does."""
    if values.device.type == "cpu" and device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def resize(images: Tensor, resolution: int) -> Tensor:
    """uint8 (N, C, H, W) to uint8 (N, C, resolution, resolution); the images themselves where they have that size."""
    size = (resolution, resolution)
    if images.shape[2:] == size:
        return images
    return torch.cat([F.interpolate(part, size, mode="bilinear", antialias=True) for part in images.split(2048)])  # type: ignore[no-untyped-call]


class Batches:
    """The batches of a training: order, crops, mirroring and mixup depend on the seed and the epoch alone.

    size: images of a batch. steps: batches of an epoch; it leaves an incomplete last one out.
    """

    def __init__(
        self, data: Data, recipe: Recipe, resolution: int, device: torch.device, layout: torch.memory_format
    ) -> None:
        self._recipe, self._device, self._layout = recipe, device, layout
        images = resident(data, "train", resolution, device)
        self._labels = data.train_labels.to(images.device)
        self.size = min(recipe.batch_size, len(images))
        self.steps = len(images) // self.size
        self._mean, self._std = (
            torch.tensor(values, device=device).mul(255).view(1, -1, 1, 1) for values in (data.mean, data.std)
        )
        self._padding = round(recipe.crop_padding * resolution)
        padded = F.pad(images, (self._padding,) * 4) if self._padding else images
        # (N, C, 2 padding + 1, 2 padding + 1, H, W): every crop there is, as a view
        self._crops = padded.unfold(2, resolution, 1).unfold(3, resolution, 1)

    def epoch(self, seed: int, epoch: int, first: int, end: int) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Images (B, C, H, W) float32, normalised, labels, and the share of the images' own labels, from step `first`.

        With mixup the rest of the share is that of the labels in reverse order; without it the share is 1.
        """
        recipe, home, size, steps = self._recipe, self._crops.device, self.size, self.steps
        # All chance of an epoch is drawn and moved at once: a copy to a GPU in every step would wait for it each time.
        chance = np.random.default_rng([seed, epoch])
        permuted = chance.permutation(len(self._labels))[: steps * size].reshape(steps, size)
        order = moved(torch.from_numpy(permuted), home)
        corner = moved(torch.from_numpy(chance.integers(0, 2 * self._padding + 1, (steps, 2, size))), home)
        mirrored = moved(torch.from_numpy(chance.random((steps, size, 1, 1, 1)) < 0.5), self._device)
        shares = chance.beta(recipe.mixup, recipe.mixup, steps).tolist() if recipe.mixup else [1.0] * steps
        for step in range(first, end):
            x = moved(self._crops[order[step], :, corner[step, 0], corner[step, 1]], self._device)
            if recipe.flip:
                x = torch.where(mirrored[step], x.flip(3), x)
            x = x.to(torch.float32, memory_format=self._layout).sub_(self._mean).div_(self._std)
            if recipe.mixup:
                x = x.mul(shares[step]).add_(x.flip(0), alpha=1 - shares[step])
            yield x, moved(self._labels[order[step]], self._device), shares[step]
