"""Which images are for training, validation and test, and what is known of them; the same on every machine."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scalesearch.data.spec import DataSpec, Description, Source
from scalesearch.text import listed, shown


def cut_val(labels: NDArray[Any], spec: DataSpec, source: Source, sizes: Description) -> tuple[Tensor, Tensor]:
    """Indices of the training and of the validation images among a source's training images; labels (N,) or (N, K)."""
    labels = strata(labels)
    if source.held_out:
        first = len(labels) - source.held_out
        order = stratified_order(labels[:first], spec.split_seed)
        val = first + stratified_order(labels[first:], spec.split_seed)[: sizes.num_val]
        return torch.from_numpy(order[: sizes.num_train]), torch.from_numpy(val)
    order = stratified_order(labels, spec.split_seed)
    # Training images from the front, validation images from the end: neither changes when the other is made larger.
    if not source.classes:
        return torch.from_numpy(order[: sizes.num_train]), torch.from_numpy(order[len(order) - sizes.num_val :])
    rest, val = cut_end(order, labels, sizes.num_val, least=2)
    return torch.from_numpy(rest[: sizes.num_train]), torch.from_numpy(val)


def strata(labels: NDArray[Any]) -> NDArray[Any]:
    """(N,) classes whose shares a cut keeps; of several labels (N, K) the rarest that an image has, and K for none."""
    if labels.ndim == 1:
        return labels
    rarity = np.argsort(np.argsort(labels.sum(0, dtype=np.int64), kind="stable"), kind="stable")
    rank = np.where(labels > 0, rarity, labels.shape[1]).min(1)
    return np.asarray(np.append(np.argsort(rarity, kind="stable"), labels.shape[1])[rank])


def class_counts(labels: NDArray[Any], num_classes: int) -> NDArray[np.int64]:
    """(K,) how many images each class has; of several labels (N, K) how many have each."""
    counts = labels.sum(0, dtype=np.int64) if labels.ndim == 2 else np.bincount(labels, minlength=num_classes)
    return np.asarray(counts)


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
    train, test = cut_end(stratified_order(labels, seed, 1), labels, len(labels) // 5, least=3)
    return np.sort(train), np.sort(test)


def cut_end(
    order: NDArray[np.int64], labels: NDArray[Any], num: int, *, least: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The last `num` of a stratified order, and what is before them; (before, end), both in that order.

    A class of `least` images or more, 2 at least, that would have none at one side gets one there, in place of one of
    the class that has most there, as long as that has two.
    """
    chosen = np.arange(len(order)) >= len(order) - num
    of = labels[order]
    enough = np.bincount(of, minlength=1) >= max(least, 2)
    _fill(chosen, of, enough)
    _fill(left := ~chosen[::-1], of[::-1], enough)  # in the other direction: what stays is changed at its end
    chosen = ~left[::-1]
    return order[~chosen], order[chosen]


def _fill(chosen: NDArray[np.bool_], of: NDArray[Any], enough: NDArray[np.bool_]) -> None:
    """Changes `chosen` so that classes which have `enough` images are in it; `of`: the class of each."""
    counts = np.bincount(of[chosen], minlength=len(enough))
    for one in np.flatnonzero((counts == 0) & enough):
        most = int(counts.argmax())
        if counts[most] < 2:
            break
        chosen[np.flatnonzero(chosen & (of == most))[0]] = False
        chosen[np.flatnonzero(of == one)[-1]] = True
        counts[most] -= 1
        counts[one] += 1


def class_notes(classes: Sequence[str], splits: Mapping[str, NDArray[Any]]) -> list[str]:
    """A sentence for each split that lacks classes, with some of these; `splits`: the labels of each, by its name.

    Of several labels (N, K) also those that every image of a split has.
    Raises: ValueError where a split has images of one class alone, or no label that some images have and others lack:
        nothing can be learnt there, or measured.
    """
    counts = {name: class_counts(labels, len(classes)) for name, labels in splits.items()}
    total = np.sum(list(counts.values()), axis=0)
    notes = []
    for name, own in counts.items():
        several, num_images = splits[name].ndim == 2, len(splits[name])
        without = np.flatnonzero(own == 0).tolist()
        always = np.flatnonzero(own == num_images).tolist() if several else []
        some = _some([f"'{shown(classes[i])}' ({total[i]} in all)" for i in without])
        all_have = _some([f"'{shown(classes[i])}'" for i in always])
        done = "learnt" if name == "training" else "measured"
        if several and len(without) + len(always) == len(classes):
            found = [f"all have {all_have}"] * bool(always) + [f"none has {some}"] * bool(without)
            raise ValueError(
                f"no label is on some of the {name} images ({num_images}) and not on others, so nothing can be {done}: "
                f"{listed(found)}. {_REMEDIES[name]}"
            )
        if not several and len(classes) - len(without) < 2:
            raise ValueError(
                f"the {name} images ({own.sum()}) are of {len(classes) - len(without)} of the {len(classes)} classes; "
                f"with fewer than 2 nothing can be {done}. There are none of {some}. {_REMEDIES[name]}"
            )
        kind = "labels" if several else "classes"
        if without:
            has, they, their = ("has", "it", "its") if len(without) == 1 else ("have", "they", "their")
            effect = f"{they} cannot be learnt" if name == "training" else f"{their} accuracy is not measured"
            notes.append(f"{len(without)} of the {len(classes)} {kind} {has} no {name} image, so {effect}: {some}")
        if always:
            are, them = ("is", "it") if len(always) == 1 else ("are", "them")
            effect = f"{are} on every {name} image, so nothing of {them} is {done}"
            notes.append(f"{len(always)} of the {len(classes)} labels {effect}: {all_have}")
    return notes


def _some(names: Sequence[str]) -> str:
    """The first of these names; "" where there are none."""
    more = [f"{len(names) - _NAMED} others"] if len(names) > _NAMED else []
    return listed([*names[:_NAMED], *more]) if names else ""


_NAMED = 5  # classes in a sentence
_REMEDIES = {
    "training": "Raise data.num_train, lower data.num_val, or add images of these",
    "validation": "Raise data.num_val, or add images of these",
    "test": "Add images of these; without a folder for it, the test split is cut from the training images",
}


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
