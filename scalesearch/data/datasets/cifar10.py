"""CIFAR-10 (Krizhevsky 2009): 32 px colour images of ten kinds, 50,000 + 10,000.

From the binary archive; the pickles that other libraries read are never touched.
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scalesearch.data.fetch import cache_directory, fetch
from scalesearch.data.spec import DataSpec, Log, Source, Split

MIRRORS = ("https://www.cs.toronto.edu/~kriz",)
# As published in the checksums of TensorFlow Datasets.
SHA256 = {"cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"}


def source(spec: DataSpec, log: Log) -> Source:
    members = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
    return cifar(spec, log, SHA256, members, num_classes=10)


def cifar(
    spec: DataSpec, log: Log, sha256: Mapping[str, str], members: Mapping[str, Sequence[str]], *, num_classes: int
) -> Source:
    """The source of a binary archive: `sha256` is of its one file, `members` name those of each split in it."""
    label_bytes = 1 if num_classes == 10 else 2  # CIFAR-100's coarse label stands before the fine one
    (archive,) = sha256

    def open_split(split: str) -> Split:
        directory = cache_directory(spec) / spec.name
        fetch(sha256, directory, MIRRORS, log=log)
        images, labels = _read_cifar(directory / archive, members[split], label_bytes=label_bytes)
        return Split(labels, lambda index: images[index])

    return Source(3, num_classes, 32, 50_000, 10_000, open_split)


def _read_cifar(archive: Path, members: Sequence[str], *, label_bytes: int) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) uint8 and labels (N,) int64 of the members, in their order.

    A record is the label (CIFAR-100: the coarse, then the fine label) and the red, green, blue plane, 1,024 bytes each.
    """
    found: dict[str, NDArray[np.uint8]] = {}
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:  # in one pass, as going back in a gzip stream means to start again
            name = member.name.rpartition("/")[2]
            if name in members and (file := tar.extractfile(member)) is not None:
                found[name] = np.frombuffer(file.read(), np.uint8)
    for name in members:
        if name not in found or found[name].size == 0 or found[name].size % (label_bytes + 3072):
            raise ValueError(
                f"{archive} has no '{name}' made of records of {label_bytes + 3072} bytes; delete it to fetch it again"
            )
    records = np.concatenate([found[name] for name in members]).reshape(-1, label_bytes + 3072)
    images = np.ascontiguousarray(records[:, label_bytes:]).reshape(-1, 3, 32, 32)
    return torch.from_numpy(images), torch.from_numpy(records[:, label_bytes - 1].astype(np.int64))
