"""Scenes of Fashion-MNIST's garments on a canvas of 96 px (`scenes`): 100,000, 10,000 to validate, 20,000 to test.

The first 50,000 garments of the training set are shown in two training scenes each, its last 10,000 in one
validation scene, and the test set's in two test scenes each. Rendered once and kept in the cache.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from scalesearch.data.datasets.fashion_mnist import source as fashion_mnist
from scalesearch.data.fetch import appearing, cache_directory
from scalesearch.data.scenes import CANVAS, VERSION, Scenes, render
from scalesearch.data.spec import DataSpec, Log, Source, Split


def source(spec: DataSpec, log: Log) -> Source:
    garments = fashion_mnist(replace(spec, name="fashion_mnist", resolution=None), log)

    def opened(split: str) -> tuple[Tensor, Tensor]:
        labels, take = garments.open(split)
        return take(torch.arange(len(labels)))[:, 0], labels

    def shown(images: Tensor, index: Tensor) -> Scenes:
        """Training and validation scenes, which share no garment."""
        boxes = torch.empty(len(index), 4, dtype=torch.int64)
        made = Scenes(torch.empty(len(index), 1, CANVAS, CANVAS, dtype=torch.uint8), boxes)
        parts = (("train", index < 100_000, images[:50_000], 0), ("val", index >= 100_000, images[50_000:], 100_000))
        for split, here, own, first in parts:
            if here.any():
                made.images[here], made.boxes[here] = _rendered(spec, own, index[here] - first, split, log)
        return made

    def open_split(split: str) -> Split:
        images, labels = opened(split)
        if split == "test":
            return Split(labels.repeat(2), lambda index: _rendered(spec, images, index, "test", log).images)
        return Split(torch.cat([labels[:50_000].repeat(2), labels[50_000:]]), lambda index: shown(images, index).images)

    def boxes(index: Tensor) -> Tensor:
        return shown(opened("train")[0], index).boxes

    return Source(1, 10, CANVAS, 110_000, 20_000, open_split, held_out=10_000, boxes=boxes)


def _rendered(spec: DataSpec, garments: Tensor, index: Tensor, split: str, log: Log) -> Scenes:
    """The scenes of these indices, from the cache where they have been rendered before."""
    what = hashlib.sha256(f"{VERSION} {split} ".encode() + index.numpy().astype("<i8").tobytes())
    path = cache_directory(spec) / spec.name / f"{split}-{len(index)}-{what.hexdigest()[:16]}.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            known = Scenes(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
            digest = (file.metadata() or {}).get("digest")
        if digest in (None, _digest(known)):  # a cache from before there were digests has none
            return known
        log(f"{path} is damaged; it is rendered again")
    except (OSError, SafetensorError, TypeError):
        if len(index) > 20_000:
            log(f"rendering {len(index):,} scenes, once: about {round(len(index) / 1500)} s")
    made = render(garments, index, split)
    path.parent.mkdir(parents=True, exist_ok=True)
    with appearing(path) as part:
        save_file(made._asdict(), part, {"digest": _digest(made)})
    return made


def _digest(scenes: Scenes) -> str:
    whole = hashlib.sha256()
    for tensor in scenes:
        whole.update(tensor.numpy().tobytes())
    return whole.hexdigest()
