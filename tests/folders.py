"""Folders of images that tests make: each picture is another, and its class can be seen in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog")


def draw(path: Path, label: int, number: int, size: tuple[int, int] = (12, 20)) -> Path:
    """Noise that no other number has, brighter by the label; its folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    chance = np.random.default_rng([label, number])
    pixels = chance.integers(0, 120, (*size, 3), dtype=np.uint8) + np.uint8(100 * min(label, 1))
    Image.fromarray(pixels).save(path, {".jpg": "JPEG", ".png": "PNG", ".tif": "TIFF"}.get(path.suffix.lower(), "PNG"))
    return path


def make_folder(
    directory: Path,
    *,
    held_out: str | Iterable[str] | None = "test",
    train: int = 10,
    others: int = 3,
    classes: Iterable[str] = CLASSES,
) -> Path:
    """`directory`/images with train/ and the folders `held_out`; so many images of each class in each."""
    root = directory / "images"
    names = [held_out] if isinstance(held_out, str) else list(held_out or ())
    for place, split in enumerate(("train", *names)):
        for label, name in enumerate(classes):
            for i in range(train if split == "train" else others):
                draw(root / split / name / f"{i:02d}.{'png' if i % 2 else 'jpg'}", label, 1000 * place + i)
    return root


def planted(root: Path, files: Mapping[str, int | bytes | Path | None]) -> Path:
    """Files by path: a picture of that label, such bytes, a link to a path, or a folder (None)."""
    for number, (name, what) in enumerate(files.items()):
        path = root / name
        if what is None:
            path.mkdir(parents=True, exist_ok=True)
        elif isinstance(what, bytes | Path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(what) if isinstance(what, Path) else path.write_bytes(what)
        else:
            draw(path, what, 5000 + number)
    return root
