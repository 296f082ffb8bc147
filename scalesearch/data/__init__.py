"""The images that every candidate of the grid search is trained and judged on (arXiv:1905.11946, section 3.3).

A data set states what is known without reading an image and how to read a split (`spec.Source`). Everything after that
is the same for all: the validation images are cut from the training set by a fixed seed and shared by all candidates,
the training images are the first of a fixed order, and both are resident uint8 tensors at the resolution of the data
set. Resizing to a network's resolution belongs to the training.

Shapes: N images, C channels, H = W = side in px.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from scalesearch.data.spec import DATASETS, DataSpec, Description, Log, Source, Split, defaults

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DATASETS", "Data", "DataSpec", "Description", "defaults", "describe", "load", "val_boxes"]


@dataclass(frozen=True, eq=False)
class Data:
    """The images and labels of one split, resident on the CPU.

    `fingerprint` is the SHA-256 of the training and validation images and labels themselves, wherever they came from:
    two evaluations with the same fingerprint saw the same data. `mean` and `std` are those of the training images used,
    per channel, with pixels in 0..1.
    """

    description: Description
    train_images: Tensor  # (N, C, H, W) uint8
    train_labels: Tensor  # (N,) int64, or (N, K) uint8 of 0 and 1 where images may have several labels
    val_images: Tensor  # (N, C, H, W) uint8
    val_labels: Tensor  # the same
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    _open_test: Callable[[], Split] = field(repr=False)

    def test(self) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W) uint8 and labels of the test split, read now: only the choice needs them."""
        import torch

        split = self._open_test()
        return split.take(torch.arange(len(split.labels))), split.labels

    def test_labels(self) -> Tensor:
        """Labels of the test split, read now; no image is looked at."""
        return self._open_test().labels

    def class_counts(self, split: str) -> list[int]:
        """How many images each class has in "train", "val" or "test", by label; reads no image of a folder."""
        from scalesearch.data.splits import class_counts

        kept = {"train": self.train_labels, "val": self.val_labels}
        labels = kept[split] if split in kept else self.test_labels()
        return [int(one) for one in class_counts(labels.numpy(), self.description.num_classes)]


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def describe(spec: DataSpec) -> Description:
    """The sizes of what `load` would return; fetches nothing and decodes nothing, but for `skip_bad`.

    Raises: ValueError: the data set has fewer images than the spec wants, or its directory is not what it should be.
    """
    return _describe(spec, _source(spec, _to_stderr))


def load(spec: DataSpec, *, log: Log = _to_stderr, check: bool = True) -> Data:
    """The data of `spec`, fetched and verified first if they are missing in the cache.

    The same spec gives the same images in the same order on every machine. With `check` every image of a folder that
    is used is decoded first, those of the test split as well, and `log` gets what there is to say of them; without, it
    has been done.
    Raises: OSError: they cannot be fetched, or a folder cannot be listed. ValueError: the spec does not fit the data
        set, or images of the user's cannot be read: all of these are named.
    """
    from scalesearch.data.splits import cut_val, fingerprint, mean_and_std

    source = _source(spec, log)
    description = _describe(spec, source)
    split = source.open("train")
    train, val = cut_val(split.labels.numpy(), spec, source, description)
    if check:
        for line in (*description.notes, *_checked(source, train, val)):
            log(line)
    images = split.take(train), split.take(val)
    labels = split.labels[train], split.labels[val]
    assert images[0].shape[1:] == (source.in_channels, source.resolution, source.resolution)
    mean, std = mean_and_std(images[0])
    return Data(
        description=description,
        train_images=images[0],
        train_labels=labels[0],
        val_images=images[1],
        val_labels=labels[1],
        mean=mean,
        std=std,
        fingerprint=fingerprint(images[0], labels[0], images[1], labels[1]),
        _open_test=lambda: source.open("test"),
    )


def _checked(source: Source, train: Tensor, val: Tensor) -> Sequence[str]:
    if source.check is None:
        return ()
    import torch

    return source.check({"train": train, "val": val, "test": torch.arange(source.num_test)})


def val_boxes(spec: DataSpec, *, log: Log = _to_stderr) -> Tensor:
    """Where the object lies in each validation image, in the order of `Data.val_images`.

    (N, 4) int64: left, top, right, bottom in px of the data set's resolution, the last two exclusive.
    Raises: ValueError: the data set does not know its objects' places.
    """
    from scalesearch.data.splits import cut_val

    source = _source(spec, log)
    if source.boxes is None:
        raise ValueError(
            f"data.name is {spec.name!r}, which does not know where its objects are; data=fashion_scenes does"
        )
    _, val = cut_val(source.open("train").labels.numpy(), spec, source, _describe(spec, source))
    return source.boxes(val)


def _source(spec: DataSpec, log: Log) -> Source:
    source = DATASETS[spec.name](spec, log)
    if not source.from_root:
        if spec.root is not None:
            raise ValueError(
                f"data.root is {spec.root!r}, but '{spec.name}' lies in the cache; did you mean data=folder?"
            )
        if spec.skip_bad:
            raise ValueError(f"data.skip_bad is true, but '{spec.name}' lies in the cache; it is for data=folder alone")
        if spec.resolution not in (None, source.resolution):
            raise ValueError(
                f"data.resolution is {spec.resolution}, but the images of '{spec.name}' have {source.resolution} px; "
                "leave it null (the network's own resolution is set elsewhere)"
            )
    return source


def _describe(spec: DataSpec, source: Source) -> Description:
    own = source.held_out if source.from_root else 0  # a validation split of the user's: as much as there is
    num_val = min(spec.num_val, own) if own else spec.num_val
    if source.held_out and num_val > source.held_out:
        raise ValueError(
            f"data.num_val is {spec.num_val}; '{spec.name}' has {source.held_out} images for validation, which share "
            "nothing with the others"
        )
    left = source.num_train - (source.held_out or num_val)
    num_train = left if spec.num_train is None else min(left, spec.num_train)
    if num_train < 1:
        raise ValueError(
            f"data.num_val {spec.num_val} leaves none of the {source.num_train} training images of '{spec.name}' to "
            f"train on; lower data.num_val"
        )
    known = Description(
        name=spec.name,
        in_channels=source.in_channels,
        num_classes=source.num_classes,
        resolution=source.resolution,
        num_train=num_train,
        num_val=num_val,
        num_test=source.num_test,
        classes=source.classes,
        notes=source.notes,
    )
    return replace(known, notes=(*known.notes, *_class_notes(spec, source, known))) if source.classes else known


def _class_notes(spec: DataSpec, source: Source, known: Description) -> list[str]:
    """On classes without images in a split. Raises: ValueError where a split has but one class."""
    from scalesearch.data.splits import class_notes, cut_val

    labels = source.open("train").labels
    train, val = cut_val(labels.numpy(), spec, source, known)
    parts = {"training": labels[train], "validation": labels[val], "test": source.open("test").labels}
    return class_notes(known.classes, {name: one.numpy() for name, one in parts.items()})
