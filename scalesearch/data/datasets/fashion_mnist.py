"""Fashion-MNIST (arXiv:1708.07747): 28 px grey images of ten kinds of clothes, 60,000 + 10,000, MIT licence."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from scalesearch.data.fetch import cache_directory, fetch
from scalesearch.data.spec import DataSpec, Log, Source, Split

# Of the package as well as of the mirrors: all carry the very files that the authors published.
SHA256 = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
MIRRORS = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
)


def source(spec: DataSpec, log: Log) -> Source:
    directory = cache_directory(spec) / "fashion_mnist"

    def open_split(split: str) -> Split:
        fetch(SHA256, directory, MIRRORS, package="dataset-fashion-mnist", log=log)
        stem = {"train": "train", "test": "t10k"}[split]
        images = torch.from_numpy(_read_idx(directory / f"{stem}-images-idx3-ubyte.gz", ndim=3)).unsqueeze(1)
        labels = torch.from_numpy(_read_idx(directory / f"{stem}-labels-idx1-ubyte.gz", ndim=1)).long()
        return Split(labels, lambda index: images[index])

    return Source(1, 10, 28, 60_000, 10_000, open_split)


def _read_idx(path: Path, *, ndim: int) -> NDArray[np.uint8]:
    """The array of a gzipped idx file: two zero bytes, type 8 (bytes), number of dimensions, sizes, values."""
    content = gzip.decompress(path.read_bytes())
    start = 4 + 4 * ndim
    shape = tuple(int(size) for size in np.frombuffer(content[4:start].ljust(4 * ndim, b"\0"), ">u4"))
    if content[:4] != bytes((0, 0, 8, ndim)) or len(content) != start + math.prod(shape):
        raise ValueError(f"{path} is not an idx file of {ndim} dimensions of bytes; delete it to fetch it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()
