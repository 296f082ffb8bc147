"""ImageNet-1k (ILSVRC 2012) as class folders. Its sizes are known, so planning needs no `root`; reading does."""

from __future__ import annotations

from dataclasses import replace

from scalesearch.data.datasets.folder import source as folder
from scalesearch.data.layout import ROLES as TRAIN_AND_VAL
from scalesearch.data.spec import DataSpec, Log, Source, Split

# The 50,000 images that papers report are those of val/; the test images of ILSVRC come without labels.
ROLES = {"train": TRAIN_AND_VAL["train"], "test": TRAIN_AND_VAL["val"]}


def source(spec: DataSpec, log: Log) -> Source:
    resolution = spec.resolution or 224
    if spec.root is not None:
        images = folder(replace(spec, resolution=resolution), log, ROLES)
        if images.num_classes != 1000:
            raise ValueError(
                f"data.root '{spec.root}' has {images.num_classes} classes, ImageNet has 1000; use data=folder"
            )
        return images

    def open_split(split: str) -> Split:
        raise ValueError(
            "dataset 'imagenet' needs data.root, the directory that holds train/<class>/<image> and val/; got null"
        )

    return Source(3, 1000, resolution, 1_281_167, 50_000, open_split, from_root=True)
