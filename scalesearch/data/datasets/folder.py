"""The user's own images: `root`/train/<class>/<image>, with val/ and test/ of the same kind where they are there.

Without val/ validation images are cut from train/, without test/ a fifth of train/ is the test split. Images become
RGB at `resolution` (the shorter side resized, the centre kept). Classes are the names of the folders, sorted. Where
train/ has a labels.csv, an image may have several labels (`labels_csv`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scalesearch.data.duplicates import CheckedImage, repeated
from scalesearch.data.fetch import cache_directory
from scalesearch.data.inspection import Finding, inspect, unreadable
from scalesearch.data.labels_csv import read_labels
from scalesearch.data.layout import ROLES, Layout, read_layout
from scalesearch.data.pixels import decoding, read, why_not
from scalesearch.data.room import refuse_too_large, too_large
from scalesearch.data.spec import DataSpec, Log, Source, Split
from scalesearch.data.splits import cut_test
from scalesearch.text import plural, shown

Files = list[tuple[Path, int]]  # with the label of each


def source(spec: DataSpec, log: Log, roles: Mapping[str, Sequence[str]] = ROLES) -> Source:
    if spec.root is None:
        raise ValueError(
            f"dataset '{spec.name}' needs data.root, the directory that holds train/<class>/<image>; got null"
        )
    if spec.resolution is None:
        raise ValueError(
            f"dataset '{spec.name}' needs data.resolution, the side in px at which images are kept; got null"
        )
    resolution = spec.resolution
    root = _root(spec.root)
    layout = read_labels(root, roles) or read_layout(root, roles)
    found, notes = dict(layout.files), [*layout.notes, *too_large(_used(spec, layout), resolution)]
    if spec.skip_bad:
        found, left_out = _readable(spec, layout, log)
        notes += left_out
    held_out = len(found.get("val", ()))
    files, summary = _cut(spec, layout, found)
    notes.append(summary)

    def open_split(split: str) -> Split:
        paths = [path for path, _ in files[split]]
        labels = torch.tensor([label for _, label in files[split]], dtype=torch.int64)
        if layout.labels is not None:
            labels = torch.zeros(len(paths), len(layout.classes), dtype=torch.uint8)
            for row, path in zip(labels, paths, strict=True):
                row[list(layout.labels[path])] = 1
        return Split(labels, lambda index: _decode([paths[i] for i in index.tolist()], resolution, log))

    def check(used: Mapping[str, Tensor]) -> list[str]:
        refuse_too_large({name: len(index) for name, index in used.items()}, resolution)
        parts = {name: [files["test" if name == "test" else "train"][i] for i in used[name].tolist()] for name in used}
        return _check(spec, parts, log)

    return Source(
        3,
        len(layout.classes),
        resolution,
        len(files["train"]),
        len(files["test"]),
        open_split,
        from_root=True,
        held_out=held_out,
        classes=layout.classes,
        notes=tuple(notes),
        check=check,
    )


def _root(given: str) -> Path:
    try:
        return Path(given).expanduser()
    except RuntimeError:  # ~ of a user who is not known: it is then a name like others
        return Path(given)


def _cut(spec: DataSpec, layout: Layout, found: Mapping[str, Files]) -> tuple[dict[str, Files], str]:
    """Images for "train", the validation images of the user's at its end, and for "test"; and where they come from."""
    train, val = found["train"], found.get("val", [])
    name = {role: f"{shown(path.name)}/" for role, path in layout.folders.items()}
    if val:
        used = min(spec.num_val, len(val))
        part = f"the {plural(used, 'image')}" if used == len(val) else f"{used} of the {len(val)} (data.num_val) images"
        summary = f"validation: {part} of {name['val']}"
    else:
        summary = f"validation: {plural(spec.num_val, 'image')} cut from {name['train']} (data.num_val)"
    if "test" in found:
        test = found["test"]
        summary += f"; test: the {plural(len(test), 'image')} of {name['test']}"
    else:
        first, last = cut_test(np.array([label for _, label in train]), seed=spec.split_seed)
        train, test = [train[i] for i in first], [train[i] for i in last]
        summary += (
            f"; test: {plural(len(test), 'image')} cut from {name['train']}, a fifth, as there is no folder for it"
        )
    return {"train": train + val, "test": test}, summary


def _readable(spec: DataSpec, layout: Layout, log: Log) -> tuple[dict[str, Files], list[str]]:
    """The images of each split that can be read, and a sentence on the others.

    Raises: ValueError where a class or a split has none.
    """
    files = [pair for pairs in layout.files.values() for pair in pairs]
    refuse_too_large(_used(spec, layout), spec.resolution or 0)
    findings = dict(zip(files, _inspect(spec, [path for path, _ in files], log), strict=True))
    good = {split: [pair for pair in pairs if not findings[pair].error] for split, pairs in layout.files.items()}
    bad = [(path, finding) for (path, _), finding in findings.items() if finding.error]
    if not bad:
        return good, []
    lines = unreadable([path for path, _ in bad], [one for _, one in bad], cache=cache_directory(spec))
    left = {one for path, label in good["train"] for one in (layout.labels[path] if layout.labels else (label,))}
    for label, name in enumerate(layout.classes):
        if label not in left:
            kind = "of the class" if layout.labels is None else "with the label"
            raise ValueError(f"no training image {kind} '{shown(name)}' can be read:\n{lines}\nreplace them")
    for split, pairs in good.items():
        if not pairs:
            raise ValueError(f"no image of {shown(layout.folders[split])} can be read:\n{lines}\nreplace them")
    return good, [f"{len(bad)} of {len(files)} images cannot be read and are left out (data.skip_bad=true):\n{lines}"]


def _used(spec: DataSpec, layout: Layout) -> dict[str, int]:
    """About how many images of each split are used, before those that cannot be read are known."""
    found = {split: len(pairs) for split, pairs in layout.files.items()}
    test = found.get("test", found["train"] // 5)
    left = found["train"] - (0 if "test" in found else test) - (0 if "val" in found else spec.num_val)
    train = left if spec.num_train is None else min(left, spec.num_train)
    return {"train": max(0, train), "val": min(spec.num_val, found.get("val", spec.num_val)), "test": test}


def _inspect(spec: DataSpec, paths: Sequence[Path], log: Log) -> list[Finding]:
    assert spec.root is not None
    assert spec.resolution is not None
    return inspect(paths, spec.resolution, root=_root(spec.root), cache=cache_directory(spec), log=log)


def _check(spec: DataSpec, parts: Mapping[str, Files], log: Log) -> list[str]:
    """What there is to say of the images of "train", "val" and "test". Raises: ValueError: some cannot be read."""
    paths = [path for pairs in parts.values() for path, _ in pairs]
    findings = _inspect(spec, paths, log)
    if lines := unreadable(paths, findings, cache=cache_directory(spec)):
        number = sum(bool(one.error) for one in findings)
        raise ValueError(
            f"{number} of {len(paths)} images cannot be read:\n{lines}\n"
            "replace or remove them, or have them left out with data.skip_bad=true"
        )
    seen = iter(findings)
    splits = {name: [CheckedImage(path, label, next(seen)) for path, label in pairs] for name, pairs in parts.items()}
    return [*_appearance(paths, findings), *repeated(splits)]


def _appearance(paths: Sequence[Path], findings: Sequence[Finding]) -> list[str]:
    kinds = {
        "have transparent parts, which are shown in white": [one.transparent for one in findings],
        "have several frames or pages, of which the first is used": [one.animated for one in findings],
    }
    return [
        f"{sum(which)} of {len(paths)} images {words}, such as {shown(paths[which.index(True)])}"
        for words, which in kinds.items()
        if any(which)
    ]


def _decode(paths: Sequence[Path], resolution: int, log: Log) -> Tensor:
    """Images (N, 3, resolution, resolution) uint8. Raises: ValueError: names the first file that cannot be read."""
    out = np.empty((len(paths), 3, resolution, resolution), np.uint8)

    def decode(i: int) -> None:
        try:
            out[i] = read(paths[i], resolution).pixels.transpose(2, 0, 1)
        except Exception as error:  # Pillow raises what its many decoders raise
            raise ValueError(
                f"cannot read the image {shown(paths[i])}: {why_not(error, paths[i])}; replace it or remove it"
            ) from error

    with decoding(), ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), 10_000):  # one future per image is too much for a million of them
            if start:
                log(f"{start} of {len(paths)} images read")
            list(pool.map(decode, range(start, min(start + 10_000, len(paths)))))
    return torch.from_numpy(out)
