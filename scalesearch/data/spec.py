"""What is wanted of a data set, and what it offers. Nothing here imports torch.

A data set is a module of `scalesearch.data.datasets` with a function `source(spec, log) -> Source`, and its name is the
module's; or, in another package, an entry point of the group "scalesearch.datasets" that is such a function. Its
settings are a YAML in conf/data, or where there is none the module's mapping `DEFAULTS`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field

from scalesearch.checks import Must, at_least, checked
from scalesearch.registry import Registry
from scalesearch.text import near

if TYPE_CHECKING:
    from torch import Tensor

Log = Callable[[str], object]
SPLITS = {"train": "training", "val": "validation", "test": "test"}  # with their names in sentences
Directory = Annotated[str | None, Must("null or the path of a directory")]


@checked("data")
class DataSpec:
    """The images that a training uses, in plain values (JSON-able).

    num_train: the first of a fixed order in which every prefix keeps the classes' shares.
    root: data sets of class folders only: the directory that holds train/ and, where they are there, val/ and test/.
    cache: where downloads lie; None: $SCALESEARCH_CACHE, or scalesearch/ in the user's cache directory.
    num_val: of a validation split of the user's own at most so many; else so many are cut from the training set.
    """

    name: str
    num_train: Annotated[int, at_least(1, "training images at most; null: all that validation leaves")] | None
    num_val: Annotated[int, at_least(1, "validation images, cut from the training set; independent of num_train")]
    split_seed: Annotated[int, at_least(0, "decides which images are for validation")] = 0
    root: Directory = None
    cache: Directory = None
    resolution: Annotated[int, at_least(1, "class folders only: side in px at which images are kept")] | None = None
    skip_bad: Annotated[bool, Field(description="class folders only: leave out images that cannot be read")] = False

    def __post_init__(self) -> None:
        if self.name not in DATASETS:
            raise ValueError(f"data.name is {self.name!r}{near(self.name, DATASETS)}")
        for name in ("root", "cache"):
            if getattr(self, name) == "":
                raise ValueError(f"data.{name} is ''; it must be null or the path of a directory")


@dataclass(frozen=True)
class Description:
    """What is known before an image is read; `num_train` is the number used, `resolution` the side in px.

    classes: their names, by label; () where the data set does not know them. notes: sentences on where the images of a
    folder come from, what was left out, and which classes are small.
    """

    name: str
    in_channels: int
    num_classes: int
    resolution: int
    num_train: int
    num_val: int
    num_test: int
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Split(NamedTuple):
    """The labels of a split and a way to its images; only folders read images one by one."""

    labels: Tensor  # (N,) int64, or (N, K) uint8 of 0 and 1 where images may have several labels
    take: Callable[[Tensor], Tensor]  # indices (n,) -> images (n, C, H, W) uint8


class Source(NamedTuple):
    """What a data set offers: sizes known in advance, and `open`, which reads "train" or "test".

    from_root: it lies in `DataSpec.root`, and not in the cache.
    held_out: of its training images the last so many are for validation; 0: any may be, as `split_seed` decides.
    boxes: where objects lie, for indices (n,) of training images: (n, 4) int64; None where it does not know.
    classes: names by label, where labels are known before an image is read; each has images for validation then.
    notes: what there is to say of how it was found.
    check: decodes the images that are used, "train" and "val" (indices of training images) and "test"; gives what there
        is to say of them. Raises: ValueError that lists all that cannot be read, or their size where it is too large.
    """

    in_channels: int
    num_classes: int
    resolution: int
    num_train: int
    num_test: int
    open: Callable[[str], Split]
    from_root: bool = False
    held_out: int = 0
    boxes: Callable[[Tensor], Tensor] | None = None
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    check: Callable[[Mapping[str, Tensor]], Sequence[str]] | None = None


DATASETS: Registry[Callable[[DataSpec, Log], Source]] = Registry(
    "datasets", package="scalesearch.data.datasets", attribute="source"
)


def defaults(name: str) -> dict[str, Any]:
    """The settings of a data set that has no YAML in conf/data: its module's `DEFAULTS` over what all have."""
    own = getattr(sys.modules[DATASETS[name].__module__], "DEFAULTS", {})
    return {"name": name, "num_train": None, "num_val": 1000, "split_seed": 0} | own
