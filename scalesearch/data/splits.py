"""Which images are for training, validation and test, and what is known of them; the same on every machine."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scalesearch.data.spec import DataSpec, Description, Source


def cut_val(labels: NDArray[Any], spec: DataSpec, source: Source, sizes: Description) -> tuple[Tensor, Tensor]:
    """Indices of the training and of the validation images among a source's training images."""
    if source.held_out:
        first = len(labels) - source.held_out
        order = stratified_order(labels[:first], spec.split_seed)
        val = first + stratified_order(labels[first:], spec.split_seed)[: sizes.num_val]
        return torch.from_numpy(order[: sizes.num_train]), torch.from_numpy(val)
    order = stratified_order(labels, spec.split_seed)
    # Training images from the front, validation images from the end: neither changes when the other is made larger.
    return torch.from_numpy(order[: sizes.num_train]), torch.from_numpy(order[len(order) - sizes.num_val :])


def stratified_order(labels: NDArray[Any], *seed: int) -> NDArray[np.int64]:
    """A fixed random order of the indices of which each prefix and suffix keeps the classes' shares, to about an image.

    The raw stream of a bit generator is guaranteed never to change; numpy and torch promise that of no permutation.
    """
    noise = np.random.PCG64(seed).random_raw(len(labels))
    by_class = np.lexsort((noise, labels))
    counts = np.unique(labels, return_counts=True)[1]
    place = np.empty(len(labels))  # of an image among those of its class: 0..1
    place[by_class] = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    return np.lexsort((noise, place))


def cut_test(labels: NDArray[Any], *, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices (train, test) where the dataset has no test split of its own; the second number keeps this cut and the
    validation cut of the same seed independent."""
    order = stratified_order(labels, seed, 1)
    num_test = len(order) // 5
    return np.sort(order[: len(order) - num_test]), np.sort(order[len(order) - num_test :])


def mean_and_std(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    # In whole numbers up to the last division: float sums would depend on the number of threads.
    total = squares = torch.zeros(images.shape[1], dtype=torch.int64)
    step = max(1, 2**22 // images[0].numel())
    for start in range(0, len(images), step):
        values = images[start : start + step].to(torch.int32)
        total = total + values.sum(dim=(0, 2, 3), dtype=torch.int64)
        squares = squares + (values * values).sum(dim=(0, 2, 3), dtype=torch.int64)
    num = images.numel() // images.shape[1]
    pairs = [(int(t), num * int(s) - int(t) ** 2) for t, s in zip(total.tolist(), squares.tolist(), strict=True)]
    if any(spread == 0 for _, spread in pairs):
        raise ValueError(f"the {len(images)} training images are all of one colour in a channel; nothing can be learnt")
    return tuple(t / num / 255 for t, _ in pairs), tuple(math.sqrt(spread) / num / 255 for _, spread in pairs)


def fingerprint(*tensors: Tensor) -> str:
    digest = hashlib.sha256(json.dumps([list(tensor.shape) for tensor in tensors]).encode())
    for tensor in tensors:
        values = tensor.numpy()
        digest.update(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data)
    return digest.hexdigest()
