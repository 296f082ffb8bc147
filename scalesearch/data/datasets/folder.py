"""The user's own images: `root`/train/<class>/<image>, and test/ (or val/) of the same kind.

Without test/ and val/ a fifth of train/ is cut as the test split by `split_seed`. Images become RGB at `resolution`
(the shorter side resized, the centre kept). Classes are the names of the folders, sorted.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scalesearch.data.pixels import SUFFIXES, decoding, read
from scalesearch.data.spec import DataSpec, Log, Source, Split
from scalesearch.data.splits import cut_test


def source(spec: DataSpec, log: Log) -> Source:
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
        train, test = cut_test(np.array([label for _, label in files["train"]]), seed=spec.split_seed)
        listed = files["train"]
        files = {"train": [listed[i] for i in train], "test": [listed[i] for i in test]}

    def open_split(split: str) -> Split:
        paths = [path for path, _ in files[split]]
        labels = torch.tensor([label for _, label in files[split]], dtype=torch.int64)
        used = (spec.num_train or len(paths) - spec.num_val) + spec.num_val if split == "train" else len(paths)
        _check_fits(used, resolution)
        return Split(labels, lambda index: _decode([paths[i] for i in index.tolist()], resolution, log))

    return Source(3, len(classes), resolution, len(files["train"]), len(files["test"]), open_split, from_root=True)


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
        found = [(path, label) for path in listed if path.suffix.lower() in SUFFIXES]
        if not found and directory.name == "train":
            raise ValueError(f"{directory / name} has no images ({', '.join(sorted(SUFFIXES))}); remove it or fill it")
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
    """Images (N, 3, resolution, resolution) uint8. Raises: ValueError: names the first file that cannot be read."""
    out = np.empty((len(paths), 3, resolution, resolution), np.uint8)

    def decode(i: int) -> None:
        try:
            out[i] = read(paths[i], resolution).pixels.transpose(2, 0, 1)
        except Exception as error:  # Pillow raises what its many decoders raise
            raise ValueError(f"cannot read the image {paths[i]}: {error}; replace it or remove it") from error

    with decoding(), ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), 10_000):  # one future per image is too much for a million of them
            if start:
                log(f"{start} of {len(paths)} images read")
            list(pool.map(decode, range(start, min(start + 10_000, len(paths)))))
    return torch.from_numpy(out)
