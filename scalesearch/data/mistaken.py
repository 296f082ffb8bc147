"""Folders that would be taken for classes and look like something else: splits, splits in classes, images and masks."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from scalesearch.text import listed, shown

_WORDS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing", "tst"),
}
_IMAGES = {"image", "images", "img", "imgs", "jpegimages", "photos", "rgb"}
_MASKS = {"mask", "masks", "label", "labels", "annotation", "annotations", "gt", "groundtruth", "segmentation", "depth"}


def refuse_mistaken(folder: Path, classes: Sequence[str], roles: Mapping[str, Sequence[str]]) -> None:
    """Raises: ValueError where class folders are no classes, by their names: what would be learnt is not what is meant.

    folder: of the training images. roles: what the folder of a split may be called.
    """
    words = {name.lower() for name in classes}
    if words <= _IMAGES | _MASKS and words & _IMAGES and words & _MASKS:
        raise ValueError(
            f"{shown(folder)} holds {_folders(classes)}, which would be the classes: images must be in "
            "train/<class>/<image>, and masks in no such folder; rename these if they are classes"
        )
    inner = {name: _sub_folders(folder / name) for name in classes}
    for one, other in itertools.pairwise(name for name in classes if _role(name)):
        if _role(one) != _role(other):
            alike = inner[one] == inner[other] and len(inner[one]) > 1
            if alike or all(map(_role, classes)):
                raise ValueError(
                    f"{_folders([one, other])} of {shown(folder)} would be classes, and look like splits: call them "
                    f"{_role(one)}/ and {_role(other)}/; or, if they are classes, rename them"
                )
    splits = {name: [sub for sub in subs if _is_split(sub, roles)] for name, subs in inner.items()}
    within = {name: subs for name, subs in splits.items() if subs}
    if len(within) > 1 or any(len(subs) > 1 for subs in within.values()):
        name, subs = next(iter(within.items()))
        raise ValueError(
            f"{shown(folder / name)} holds {_folders(subs)}, whose images would be of one split: splits must be "
            f"outermost, {subs[0]}/{shown(name)}/<image>; or, if they are none, rename them"
        )


def _role(name: str) -> str | None:
    """The split that a name speaks of, such as "training_set" or "val-images"."""
    parts = set(re.split(r"[^a-z]+", name.lower()))
    return next((role for role, words in _WORDS.items() if parts & set(words)), None)


def _is_split(name: str, roles: Mapping[str, Sequence[str]]) -> bool:
    return any(name.lower() in names for names in roles.values())


def _sub_folders(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))


def _folders(names: Sequence[str]) -> str:
    return listed([f"{shown(name)}/" for name in names])
