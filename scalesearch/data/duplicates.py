"""Images that are in two splits, or in two classes: found by what they show, whatever their files are called.

Identical are images of the same pixels, as a network is trained on them. Nearly identical are those whose thumbnails
differ by `_NEAR` grey levels at most: the same picture saved again, or in another size. Of 2,000 images of
Fashion-MNIST and of 300 handwritten digits none is that near to one of 20,000 and of 1,000 others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scalesearch.data.inspection import THUMBNAIL, Finding
from scalesearch.data.spec import SPLITS
from scalesearch.text import plural, shown

_NEAR = 2.0  # root mean square, of 255
_CONTRAST = 10.0  # standard deviation of a thumbnail's grey: flat ones are alike whatever they show
_PAIRS = 2_000_000_000  # that are compared, in about ten seconds; of more images every so manieth is looked at


class CheckedImage(NamedTuple):
    """An image that was checked."""

    path: Path
    label: int
    finding: Finding


def repeated(splits: Mapping[str, Sequence[CheckedImage]]) -> list[str]:
    """A sentence for each two of "train", "val" and "test" that share images, and one on images in two classes."""
    found = []
    for one, other in (("val", "train"), ("test", "train"), ("test", "val")):
        same, near, looked_at = _shared(splits[one], splits[other])
        for words, pairs, number in (("identical", same, len(splits[one])), ("nearly identical", near, looked_at)):
            if pairs:
                here, there = pairs[0]
                compared = plural(number, f"{SPLITS[one]} image") + _sampled(number, splits[one])
                found.append(
                    f"{len(pairs)} of {compared} are {words} to {SPLITS[other]} images, such as "
                    f"{shown(here.path)} to {shown(there.path)}: an accuracy on images seen before is too high"
                )
    return found + _in_two_classes([seen for split in splits.values() for seen in split])


def _sampled(number: int, all_of_them: Sequence[CheckedImage]) -> str:
    return "" if number == len(all_of_them) else f" that were compared, of {len(all_of_them)},"


def _shared(
    some: Sequence[CheckedImage], others: Sequence[CheckedImage]
) -> tuple[list[tuple[CheckedImage, CheckedImage]], list[tuple[CheckedImage, CheckedImage]], int]:
    """(identical pairs, nearly identical ones, how many of `some` were compared for the latter)."""
    by_digest = {seen.finding.digest: seen for seen in reversed(others)}
    same = [(seen, by_digest[seen.finding.digest]) for seen in some if seen.finding.digest in by_digest]
    left = [seen for seen in some if seen.finding.digest not in by_digest]
    step = 1 + len(left) * len(others) // _PAIRS
    left = left[::step]
    return same, _near(left, others), len(same) + len(left)


def _near(some: Sequence[CheckedImage], others: Sequence[CheckedImage]) -> list[tuple[CheckedImage, CheckedImage]]:
    from sklearn.metrics import pairwise_distances_argmin_min

    first, second = _thumbnails(some), _thumbnails(others)
    rough = first.std(axis=1) >= _CONTRAST
    if not rough.any() or not len(second):
        return []
    nearest, distance = pairwise_distances_argmin_min(first[rough], second)
    close = distance / np.sqrt(first.shape[1]) <= _NEAR
    places = np.flatnonzero(rough)
    return [(some[places[i]], others[nearest[i]]) for i in np.flatnonzero(close)]


def _thumbnails(images: Sequence[CheckedImage]) -> NDArray[np.float32]:
    """(N, pixels) of grey."""
    content = b"".join(bytes.fromhex(seen.finding.thumbnail) for seen in images)
    pixels = THUMBNAIL[0] * THUMBNAIL[1]
    return np.frombuffer(content, np.uint8).reshape(-1, pixels).astype(np.float32)


def _in_two_classes(images: Sequence[CheckedImage]) -> list[str]:
    first: dict[str, CheckedImage] = {}
    pairs = []
    for seen in images:
        before = first.setdefault(seen.finding.digest, seen)
        if before.label != seen.label:
            pairs.append((before, seen))
    if not pairs:
        return []
    here, there = pairs[0]
    return [
        f"{plural(len(pairs), 'image')} of {len(images)} are there under another class as well, such as "
        f"{shown(here.path)} and {shown(there.path)}: no network can be right about both"
    ]
