"""The images that every candidate of the grid search is trained and judged on (arXiv:1905.11946, section 3.3).

A dataset is one function of `DATASETS`: it states what is known without reading an image and how to read a split.
Everything after that is the same for all: the validation images are cut from the training set by a fixed seed and
shared by all candidates, the training images are the first of a fixed order, and both are resident uint8 tensors at the
resolution of the dataset. Resizing to a network's resolution belongs to the training.

Shapes: N images, C channels, H = W = side in px.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import http.client
import json
import math
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from scalesearch.data import scenes

Log = Callable[[str], object]


@dataclass(frozen=True)
class DataSpec:
    """What the user asks for, in plain values (JSON-able). Raises ValueError for a value that cannot be meant.

    Args:
        name: a key of `DATASETS`.
        num_train: training images used at most, the first of a fixed order in which every prefix keeps the
            classes' shares; None: all that the validation split leaves.
        num_val: validation images, cut from the training set by `split_seed`; they do not depend on `num_train`.
        root: datasets of class folders only: the directory that holds train/ and, if there is one, test/ (or val/).
        cache: where downloads lie; None: $SCALESEARCH_CACHE, or scalesearch/ in the user's cache directory.
        resolution: datasets of class folders only: side in px at which the images are kept; None: the dataset's own.
    """

    name: str
    num_train: int | None
    num_val: int
    split_seed: int = 0
    root: str | None = None
    cache: str | None = None
    resolution: int | None = None

    def __post_init__(self) -> None:
        if self.name not in DATASETS:
            near = difflib.get_close_matches(str(self.name), DATASETS, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"data.name is {self.name!r}; known datasets: {', '.join(sorted(DATASETS))}{hint}")
        optional = {"num_train": 1, "resolution": 1}
        for name, least in {**optional, "num_val": 1, "split_seed": 0}.items():
            value = getattr(self, name)
            if value is None and name in optional:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                null = " or null" if name in optional else ""
                raise ValueError(f"data.{name} must be a whole number of at least {least}{null}, got {value!r}")
        for name in ("root", "cache"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise ValueError(f"data.{name} must be the path of a directory or null, got {value!r}")


@dataclass(frozen=True)
class Description:
    """What is known before an image is read; `num_train` is the number used, `resolution` the side in px."""

    name: str
    in_channels: int
    num_classes: int
    resolution: int
    num_train: int
    num_val: int
    num_test: int


@dataclass(frozen=True, eq=False)
class Data:
    """The images and labels of one split, resident on the CPU.

    `fingerprint` is the SHA-256 of the training and validation images and labels themselves, wherever they came from:
    two evaluations with the same fingerprint saw the same data. `mean` and `std` are those of the training images used,
    per channel, with pixels in 0..1.
    """

    description: Description
    train_images: Tensor  # (N, C, H, W) uint8
    train_labels: Tensor  # (N,) int64
    val_images: Tensor  # (N, C, H, W) uint8
    val_labels: Tensor  # (N,) int64
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    _open_test: Callable[[], Split] = field(repr=False)

    def test(self) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W) uint8 and labels (N,) int64 of the test split, read now: only the choice needs them."""
        split = self._open_test()
        return split.take(torch.arange(len(split.labels))), split.labels


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def describe(spec: DataSpec) -> Description:
    """The sizes of what `load` would return; fetches nothing and decodes nothing.

    ValueError if the dataset has fewer images than the spec asks for, or if its directory is not what it should be.
    """
    return _describe(spec, _source(spec, lambda line: None))  # `load` repeats what there is to say


def load(spec: DataSpec, *, log: Log = _to_stderr) -> Data:
    """The data of `spec`, fetched and verified first if they are missing in the cache.

    The same spec gives the same images in the same order on every machine. OSError if they cannot be fetched,
    ValueError if the spec does not fit the dataset or an image of the user's cannot be read.
    """
    source = _source(spec, log)
    description = _describe(spec, source)
    split = source.open("train")
    train, val = _cut_val(split.labels.numpy(), spec, source, description)
    train_images, val_images = split.take(train), split.take(val)
    train_labels, val_labels = split.labels[train], split.labels[val]
    assert train_images.shape[1:] == (source.in_channels, source.resolution, source.resolution)
    mean, std = _mean_and_std(train_images)
    return Data(
        description=description,
        train_images=train_images,
        train_labels=train_labels,
        val_images=val_images,
        val_labels=val_labels,
        mean=mean,
        std=std,
        fingerprint=_fingerprint(train_images, train_labels, val_images, val_labels),
        _open_test=lambda: source.open("test"),
    )


class Split(NamedTuple):
    """The labels of a split and a way to its images; only folders read images one by one."""

    labels: Tensor  # (N,) int64
    take: Callable[[Tensor], Tensor]  # indices (n,) -> images (n, C, H, W) uint8


class Source(NamedTuple):
    """A dataset as its function states it: sizes known in advance, and `open`, which reads "train" or "test".

    held_out: of its training images the last so many are for validation; 0: any may be, as `split_seed` says.
    """

    in_channels: int
    num_classes: int
    resolution: int
    num_train: int
    num_test: int
    open: Callable[[str], Split]
    from_root: bool = False
    held_out: int = 0


def _source(spec: DataSpec, log: Log) -> Source:
    source = DATASETS[spec.name](spec, log)
    if not source.from_root:
        if spec.root is not None:
            raise ValueError(
                f"data.root is {spec.root!r}, but '{spec.name}' lies in the cache; did you mean data=folder?"
            )
        if spec.resolution not in (None, source.resolution):
            raise ValueError(
                f"data.resolution is {spec.resolution}, but the images of '{spec.name}' have {source.resolution} px; "
                "leave it null (the network's own resolution is set elsewhere)"
            )
    return source


def _describe(spec: DataSpec, source: Source) -> Description:
    if source.held_out and spec.num_val > source.held_out:
        raise ValueError(
            f"data.num_val is {spec.num_val}; '{spec.name}' has {source.held_out} images for validation, which share "
            "nothing with the others"
        )
    left = source.num_train - (source.held_out or spec.num_val)
    num_train = left if spec.num_train is None else min(left, spec.num_train)
    if num_train < 1:
        raise ValueError(
            f"data.num_val {spec.num_val} leaves none of the {source.num_train} training images of '{spec.name}' to "
            f"train on; lower data.num_val"
        )
    return Description(
        name=spec.name,
        in_channels=source.in_channels,
        num_classes=source.num_classes,
        resolution=source.resolution,
        num_train=num_train,
        num_val=spec.num_val,
        num_test=source.num_test,
    )


def _cut_val(labels: NDArray[Any], spec: DataSpec, source: Source, sizes: Description) -> tuple[Tensor, Tensor]:
    """Indices of the training and of the validation images among a source's training images."""
    if source.held_out:
        first = len(labels) - source.held_out
        order = _stratified_order(labels[:first], spec.split_seed)
        val = first + _stratified_order(labels[first:], spec.split_seed)[: sizes.num_val]
        return torch.from_numpy(order[: sizes.num_train]), torch.from_numpy(val)
    order = _stratified_order(labels, spec.split_seed)
    # Training images from the front, validation images from the end: neither changes when the other is made larger.
    return torch.from_numpy(order[: sizes.num_train]), torch.from_numpy(order[len(order) - sizes.num_val :])


def _stratified_order(labels: NDArray[Any], *seed: int) -> NDArray[np.int64]:
    """A fixed random order of the indices of which each prefix and suffix keeps the classes' shares, to about an image.

    The raw stream of a bit generator is guaranteed never to change; numpy and torch promise that of no permutation.
    """
    noise = np.random.PCG64(seed).random_raw(len(labels))
    by_class = np.lexsort((noise, labels))
    counts = np.unique(labels, return_counts=True)[1]
    place = np.empty(len(labels))  # of an image among those of its class: 0..1
    place[by_class] = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    return np.lexsort((noise, place))


def _mean_and_std(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
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


def _fingerprint(*tensors: Tensor) -> str:
    digest = hashlib.sha256(json.dumps([list(tensor.shape) for tensor in tensors]).encode())
    for tensor in tensors:
        values = tensor.numpy()
        digest.update(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data)
    return digest.hexdigest()


# --- the datasets ---------------------------------------------------------------------------------------------------


def fashion_mnist(spec: DataSpec, log: Log) -> Source:
    """Fashion-MNIST (arXiv:1708.07747): 28 px grey images of ten kinds of clothes, 60,000 + 10,000, MIT licence."""
    directory = _cache(spec) / "fashion_mnist"

    def open_split(split: str) -> Split:
        _fetch(FASHION_MNIST_SHA256, directory, FASHION_MNIST_MIRRORS, package="dataset-fashion-mnist", log=log)
        stem = {"train": "train", "test": "t10k"}[split]
        images = torch.from_numpy(_read_idx(directory / f"{stem}-images-idx3-ubyte.gz", ndim=3)).unsqueeze(1)
        labels = torch.from_numpy(_read_idx(directory / f"{stem}-labels-idx1-ubyte.gz", ndim=1)).long()
        return Split(labels, lambda index: images[index])

    return Source(1, 10, 28, 60_000, 10_000, open_split)


# Of the package as well as of the mirrors: all carry the very files that the authors published.
FASHION_MNIST_SHA256 = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
FASHION_MNIST_MIRRORS = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
)


def _read_idx(path: Path, *, ndim: int) -> NDArray[np.uint8]:
    """The array of a gzipped idx file: two zero bytes, type 8 (bytes), number of dimensions, sizes, values."""
    content = gzip.decompress(path.read_bytes())
    start = 4 + 4 * ndim
    shape = tuple(int(size) for size in np.frombuffer(content[4:start].ljust(4 * ndim, b"\0"), ">u4"))
    if content[:4] != bytes((0, 0, 8, ndim)) or len(content) != start + math.prod(shape):
        raise ValueError(f"{path} is not an idx file of {ndim} dimensions of bytes; delete it to fetch it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def fashion_scenes(spec: DataSpec, log: Log) -> Source:
    """Scenes of Fashion-MNIST's garments on a canvas of 96 px (`scenes`): 100,000, 10,000 to validate, 20,000 to test.

    The first 50,000 garments of the training set are shown in two training scenes each, its last 10,000 in one
    validation scene, and the test set's in two test scenes each. Rendered once and kept in the cache.
    """
    garments = fashion_mnist(replace(spec, name="fashion_mnist", resolution=None), log)

    def open_split(split: str) -> Split:
        opened = garments.open(split)
        images = opened.take(torch.arange(len(opened.labels)))[:, 0]
        if split == "test":
            return Split(opened.labels.repeat(2), lambda index: _rendered(spec, images, index, "test", log).images)

        def take(index: Tensor) -> Tensor:  # of training and validation scenes, which share no garment
            made = torch.empty(len(index), 1, scenes.CANVAS, scenes.CANVAS, dtype=torch.uint8)
            for here, own, name in (
                (index < 100_000, images[:50_000], "train"),
                (index >= 100_000, images[50_000:], "val"),
            ):
                if here.any():
                    first = 0 if name == "train" else 100_000
                    made[here] = _rendered(spec, own, index[here] - first, name, log).images
            return made

        return Split(torch.cat([opened.labels[:50_000].repeat(2), opened.labels[50_000:]]), take)

    return Source(1, 10, scenes.CANVAS, 110_000, 20_000, open_split, held_out=10_000)


def val_boxes(spec: DataSpec, *, log: Log = _to_stderr) -> Tensor:
    """Where the garment lies in each validation image of fashion_scenes, in the order of `Data.val_images`.

    (N, 4) int64: left, top, right, bottom in px of the 96 px canvas, the last two exclusive.
    Errors: ValueError for a dataset that does not know its objects' places.
    """
    if spec.name != "fashion_scenes":
        raise ValueError(
            f"data.name is {spec.name!r}, which does not say where its objects are; data=fashion_scenes does"
        )
    source = _source(spec, log)
    garments = fashion_mnist(replace(spec, name="fashion_mnist", resolution=None), log).open("train")
    _, val = _cut_val(source.open("train").labels.numpy(), spec, source, _describe(spec, source))
    images = garments.take(torch.arange(50_000, 60_000))[:, 0]
    return _rendered(spec, images, val - 100_000, "val", log).boxes


def _rendered(spec: DataSpec, garments: Tensor, index: Tensor, split: str, log: Log) -> scenes.Scenes:
    """The scenes of these indices, from the cache where they have been rendered before."""
    what = hashlib.sha256(f"{scenes.VERSION} {split} ".encode() + index.numpy().astype("<i8").tobytes())
    path = _cache(spec) / spec.name / f"{split}-{len(index)}-{what.hexdigest()[:16]}.safetensors"
    try:
        return scenes.Scenes(**load_file(path))
    except (OSError, SafetensorError, TypeError):
        if len(index) > 20_000:
            log(f"rendering {len(index):,} scenes, once: about {round(len(index) / 1500)} s")
    made = scenes.render(garments, index, split)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        save_file(made._asdict(), part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return made


def digits(spec: DataSpec, log: Log) -> Source:
    """The 1,797 8 px grey digits inside scikit-learn (UCI optical digits); a fifth of them is the test split."""

    def open_split(split: str) -> Split:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        train, test = _cut_test(labels, seed=0)
        index = torch.from_numpy({"train": train, "test": test}[split])
        pixels = torch.from_numpy(np.rint(images * (255 / 16)).astype(np.uint8)).reshape(-1, 1, 8, 8)[index]
        return Split(torch.from_numpy(labels).long()[index], lambda index: pixels[index])

    return Source(1, 10, 8, 1797 - 359, 359, open_split)


def _cut_test(labels: NDArray[Any], *, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices (train, test) where the dataset has no test split of its own; the second number keeps this cut and the
    validation cut of the same seed independent."""
    order = _stratified_order(labels, seed, 1)
    num_test = len(order) // 5
    return np.sort(order[: len(order) - num_test]), np.sort(order[len(order) - num_test :])


def cifar10(spec: DataSpec, log: Log) -> Source:
    """CIFAR-10 (Krizhevsky 2009): 32 px colour images of ten kinds, 50,000 + 10,000, from the binary archive."""
    members = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
    return _cifar(spec, log, "cifar-10-binary.tar.gz", members, num_classes=10, label_bytes=1)


def cifar100(spec: DataSpec, log: Log) -> Source:
    """CIFAR-100 (Krizhevsky 2009): as CIFAR-10 with a hundred kinds, the fine labels."""
    members = {"train": ["train.bin"], "test": ["test.bin"]}
    return _cifar(spec, log, "cifar-100-binary.tar.gz", members, num_classes=100, label_bytes=2)


# As published in the checksums of TensorFlow Datasets; the pickles that other libraries read are never touched.
CIFAR_SHA256 = {
    "cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    "cifar-100-binary.tar.gz": "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
}
CIFAR_MIRRORS = ("https://www.cs.toronto.edu/~kriz",)


def _cifar(
    spec: DataSpec, log: Log, archive: str, members: Mapping[str, list[str]], *, num_classes: int, label_bytes: int
) -> Source:
    def open_split(split: str) -> Split:
        directory = _cache(spec) / spec.name
        _fetch({archive: CIFAR_SHA256[archive]}, directory, CIFAR_MIRRORS, log=log)
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


def folder(spec: DataSpec, log: Log) -> Source:
    """The user's own images: `root`/train/<class>/<image>, and test/ (or val/) of the same kind.

    Without test/ and val/ a fifth of train/ is cut as the test split by `split_seed`. Images become RGB at `resolution`
    (the shorter side resized, the centre kept). Classes are the names of the folders, sorted.
    """
    if spec.root is None:
        raise ValueError(
            f"dataset '{spec.name}' needs data.root, the directory that holds train/<class>/<image>; got null"
        )
    if spec.resolution is None:
        raise ValueError(
            f"dataset '{spec.name}' needs data.resolution, the side in px at which images are kept; got null"
        )
    resolution = spec.resolution
    root = Path(spec.root).expanduser()
    if not (root / "train").is_dir():
        raise ValueError(f"data.root '{spec.root}' has no folder train/; it must hold train/<class>/<image>")
    classes = sorted(path.name for path in _visible(root / "train") if path.is_dir())
    if len(classes) < 2:
        raise ValueError(f"{root / 'train'} has {len(classes)} class folders; at least 2 are needed")
    held_out = next((name for name in ("test", "val") if (root / name).is_dir()), None)
    files = {"train": _list_images(root / "train", classes, log)}
    if held_out is not None:
        files["test"] = _list_images(root / held_out, classes, log)
    else:
        train, test = _cut_test(np.array([label for _, label in files["train"]]), seed=spec.split_seed)
        listed = files["train"]
        files = {"train": [listed[i] for i in train], "test": [listed[i] for i in test]}

    def open_split(split: str) -> Split:
        paths = [path for path, _ in files[split]]
        labels = torch.tensor([label for _, label in files[split]], dtype=torch.int64)
        used = (spec.num_train or len(paths) - spec.num_val) + spec.num_val if split == "train" else len(paths)
        _check_fits(used, resolution)
        return Split(labels, lambda index: _decode([paths[i] for i in index.tolist()], resolution, log))

    return Source(3, len(classes), resolution, len(files["train"]), len(files["test"]), open_split, from_root=True)


def imagenet(spec: DataSpec, log: Log) -> Source:
    """ImageNet-1k (ILSVRC 2012) as class folders. Its sizes are known, so planning needs no `root`; reading does."""
    resolution = spec.resolution or 224
    if spec.root is not None:
        source = folder(replace(spec, resolution=resolution), log)
        if source.num_classes != 1000:
            raise ValueError(
                f"data.root '{spec.root}' has {source.num_classes} classes, ImageNet has 1000; use data=folder"
            )
        return source

    def open_split(split: str) -> Split:
        raise ValueError(
            "dataset 'imagenet' needs data.root, the directory that holds train/<class>/<image> and val/; got null"
        )

    return Source(3, 1000, resolution, 1_281_167, 50_000, open_split, from_root=True)


DATASETS: dict[str, Callable[[DataSpec, Log], Source]] = {
    "fashion_mnist": fashion_mnist,
    "fashion_scenes": fashion_scenes,
    "digits": digits,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "folder": folder,
    "imagenet": imagenet,
}


# --- class folders --------------------------------------------------------------------------------------------------

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def _visible(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if not path.name.startswith(".")]


def _list_images(directory: Path, classes: Sequence[str], log: Log) -> list[tuple[Path, int]]:
    """(file, label) of each image, classes and files by name; other files are skipped with a word."""
    unknown = sorted(path.name for path in _visible(directory) if path.is_dir() and path.name not in classes)
    if unknown:
        raise ValueError(f"{directory} has the class '{unknown[0]}' that train/ has not; train/ must have every class")
    images: list[tuple[Path, int]] = []
    num_skipped = 0
    for label, name in enumerate(classes):
        listed = sorted(_visible(directory / name)) if (directory / name).is_dir() else []
        found = [(path, label) for path in listed if path.suffix.lower() in IMAGE_SUFFIXES]
        if not found and directory.name == "train":
            raise ValueError(
                f"{directory / name} has no images ({', '.join(sorted(IMAGE_SUFFIXES))}); remove it or fill it"
            )
        num_skipped += len(listed) - len(found)
        images += found
    if not images:
        raise ValueError(
            f"{directory} has no images in class folders; fill it, or remove it to have a test split cut from train/"
        )
    if num_skipped:
        log(f"{directory}: {num_skipped} entries are no images by their suffix and were skipped")
    return images


def _check_fits(num_images: int, resolution: int) -> None:
    needed, available = num_images * 3 * resolution**2, _available_memory()
    if needed > 0.6 * available:
        raise ValueError(
            f"{num_images} images of {resolution} px take {needed / 1e9:.1f} GB, more than 60 % of the "
            f"{available / 1e9:.1f} GB of memory available; lower data.resolution or data.num_train"
        )


def _available_memory() -> int:
    """Bytes that can be taken without swapping; the limit of the control group counts (containers, cluster jobs)."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").exists() and (limit := (group / "memory.max").read_text().strip()) != "max":
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(stat["inactive_file"])  # file cache is given up
        available = min(available, int(limit) - used)
    return available


def _decode(paths: Sequence[Path], resolution: int, log: Log) -> Tensor:
    """Images (N, 3, resolution, resolution) uint8 of the files. ValueError names the first that cannot be read."""
    from PIL import Image, ImageOps

    out = np.empty((len(paths), 3, resolution, resolution), np.uint8)

    def decode(i: int) -> None:
        try:
            with Image.open(paths[i]) as image:
                # Lets the JPEG decoder halve large images: four times faster, and still twice the side that is kept.
                image.draft("RGB", (2 * resolution, 2 * resolution))
                square = ImageOps.fit(image.convert("RGB"), (resolution, resolution), Image.Resampling.BILINEAR)
        except Exception as error:  # Pillow raises what its many decoders raise
            raise ValueError(f"cannot read the image {paths[i]}: {error}; replace it or remove it") from error
        out[i] = np.asarray(square).transpose(2, 0, 1)

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), 10_000):  # a future an image is too much for a million of them
            if start:
                log(f"{start} of {len(paths)} images read")
            list(pool.map(decode, range(start, min(start + 10_000, len(paths)))))
    return torch.from_numpy(out)


# --- downloads ------------------------------------------------------------------------------------------------------


def _cache(spec: DataSpec) -> Path:
    if given := spec.cache or os.environ.get("SCALESEARCH_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "scalesearch"


def _fetch(
    sha256: Mapping[str, str], directory: Path, mirrors: Sequence[str], *, package: str | None = None, log: Log
) -> None:
    """Brings the files (name -> SHA-256) into `directory`: from a mirror, then from the Debian package.

    What lies there already is verified too, and fetched again if it is not what it should be. A file appears under its
    name only when it is whole and verified, so any number of processes may do this at once.
    """
    bad = [name for name in sha256 if not _is_good(directory / name, sha256[name])]
    if not bad:
        return
    for name in bad:
        if (directory / name).exists():
            log(f"{directory / name} is damaged (wrong SHA-256) and will be fetched again")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK):  # else every mirror would be blamed for it
            raise PermissionError("no permission to write")
    except OSError as error:
        raise OSError(
            f"cannot write the cache {directory}: {error}; name another with data.cache or SCALESEARCH_CACHE"
        ) from error
    reasons = []
    for mirror in mirrors:
        try:
            for name in list(bad):
                log(f"fetching {mirror}/{name}")
                with urllib.request.urlopen(f"{mirror}/{name}", timeout=10) as response:
                    _put(response, directory / name, sha256[name])
                bad.remove(name)
            return
        except (OSError, http.client.HTTPException) as error:
            reasons.append(f"{mirror}: {error}")
            log(f"  failed: {error}")
    if package is not None:
        try:
            _fetch_package(package, {name: sha256[name] for name in bad}, directory, log)
            return
        except (OSError, subprocess.SubprocessError) as error:
            reasons.append(f"Debian package {package}: {error}")
            log(f"  failed: {error}")
    raise OSError(
        f"cannot download {', '.join(bad)} ({'; '.join(reasons)}). "
        f"Connect to the network and repeat, or put the files into {directory} yourself"
    )


def _is_good(path: Path, sha256: str) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except (FileNotFoundError, NotADirectoryError):
        return False


def _put(stream: IO[bytes], path: Path, sha256: str) -> None:
    """Writes the stream to `path` in one step if it has that SHA-256, else OSError and nothing is left behind."""
    part = path.with_name(
        f".{path.name}.{uuid.uuid4().hex}.part"
    )  # in the same directory, or the replacing were not atomic
    try:
        with part.open("xb") as file:
            shutil.copyfileobj(stream, file, 2**20)
        if not _is_good(part, sha256):
            raise OSError(f"what came for {path.name} has the wrong SHA-256")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _fetch_package(package: str, sha256: Mapping[str, str], directory: Path, log: Log) -> None:
    """Takes the files out of a Debian package without installing it; needs apt-get, not root."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise OSError("this system has no apt-get")
    with tempfile.TemporaryDirectory(prefix="scalesearch-") as temporary:
        work = Path(temporary)
        for made in ("state/lists/partial", "cache/archives/partial", "tree"):
            (work / made).mkdir(parents=True)
        apt = ["apt-get", "-qq", "-o", "Acquire::http::Timeout=10", "-o", "Acquire::https::Timeout=10"]
        if os.geteuid() == 0:  # else apt drops to a user who cannot read this directory, and warns
            apt += ["-o", "APT::Sandbox::User=root"]
        log(f"fetching the Debian package {package}")
        try:
            _call([*apt, "download", package], work)
        except OSError:
            # No list of packages yet, or an old one: into a list of our own, as the system's belongs to root.
            log("  no package list knows it; fetching a list")
            apt += ["-o", f"Dir::State::Lists={work / 'state/lists'}", "-o", f"Dir::Cache={work / 'cache'}"]
            _call([*apt, "update"], work)
            _call([*apt, "download", package], work)
        _call(["dpkg", "-x", str(next(work.glob("*.deb"))), str(work / "tree")], work)
        found = {path.name: path for path in (work / "tree").rglob("*") if path.name in sha256}
        for name, expected in sha256.items():
            if name not in found:
                raise OSError(f"the package holds no {name}")
            with found[name].open("rb") as file:
                _put(file, directory / name, expected)


def _call(command: Sequence[str], directory: Path) -> None:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise OSError(f"{' '.join([command[0], *command[-2:]])} failed: {lines[-1]}")
