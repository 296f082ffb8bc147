"""Every image of a folder is decoded before anything is trained, and what was found is kept: it is done once.

What is kept goes by path, size and times of a file, by the side of the images and by the version of the decoders.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scalesearch.data.fetch import appearing
from scalesearch.data.pixels import VERSION, Picture, decoding, of_the_system, read, why_not
from scalesearch.data.spec import Log
from scalesearch.text import duration, shown

THUMBNAIL = (8, 9)  # rows and columns of grey, which near-identical images share
_LISTED = 20  # unreadable files in a message; a file has all of them
_TOGETHER = 64  # files between two looks at the clock
_EVERY_SECONDS = 5.0  # a line of progress
_SAVED_SECONDS = 60.0


class Finding(NamedTuple):
    """Of one file. digest: of its pixels as they are trained on. thumbnail: `THUMBNAIL` grey values, as hex digits.

    error: why it cannot be read; "" where it can.
    """

    digest: str
    thumbnail: str
    transparent: bool
    animated: bool
    error: str


def inspect(files: Sequence[Path], side: int, *, root: Path, cache: Path, log: Log) -> list[Finding]:
    """What is found in each file, decoded in parallel where it is not known from before; `log` gets the progress.

    side: of the squares in px. cache: the directory where findings are kept; where it cannot be written they are found
    again.
    """
    kept = _Kept(cache, root, side)
    stamps = [kept.stamp(path) for path in files]
    found = [kept.get(path, stamp) for path, stamp in zip(files, stamps, strict=True)]
    missing = [i for i, one in enumerate(found) if one is None]
    began = shown_at = saved = time.monotonic()
    try:
        with decoding(), ThreadPoolExecutor() as pool:
            for start in range(0, len(missing), _TOGETHER):
                part = missing[start : start + _TOGETHER]
                for i, one in zip(part, pool.map(lambda i: _look(files[i], side), part), strict=True):
                    found[i] = kept.put(files[i], stamps[i], *one)
                now, done = time.monotonic(), start + len(part)
                if now - shown_at >= _EVERY_SECONDS and done < len(missing):
                    left = (now - began) / done * (len(missing) - done)
                    log(f"checking the images: {done:,} of {len(missing):,}, {duration(left)} left")
                    shown_at = now
                if now - saved >= _SAVED_SECONDS:
                    kept.save(log)
                    saved = time.monotonic()
    finally:
        if missing:
            kept.save(log)
    return [one for one in found if one is not None]


def unreadable(files: Sequence[Path], findings: Sequence[Finding], *, cache: Path) -> str:
    """The files that cannot be read, each with its reason, as the lines of a message; "" where all can."""
    bad = sorted((path, one.error) for path, one in zip(files, findings, strict=True) if one.error)
    if not bad:
        return ""
    lines = [f"  {shown(path)}: {shown(error)}" for path, error in bad]
    if len(lines) <= _LISTED:
        return "\n".join(lines)
    path = cache / "folder" / "unreadable.txt"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with appearing(path) as part:
            part.write_text("\n".join(line.strip() for line in lines) + "\n", encoding="utf-8")
    except OSError:
        return "\n".join([*lines[:_LISTED], f"  and {len(lines) - _LISTED} others"])
    return "\n".join([*lines[:_LISTED], f"  and {len(lines) - _LISTED} others; all of them are listed in {path}"])


def _look(path: Path, side: int) -> tuple[Finding, bool]:
    """(finding, whether it may be kept: what the file system refused may be there the next time)."""
    try:
        picture = read(path, side)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises what its many decoders raise
        return Finding("", "", False, False, why_not(error, path)), not of_the_system(error)
    return _finding(picture), True


def _finding(picture: Picture) -> Finding:
    digest = hashlib.sha256(picture.pixels.tobytes()).hexdigest()[:32]
    return Finding(digest, thumbnail(picture.pixels).tobytes().hex(), picture.transparent, picture.animated, "")


def thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`THUMBNAIL` means of grey of an image (H, W, 3)."""
    from PIL import Image

    rows, columns = THUMBNAIL
    grey = Image.fromarray(pixels).convert("L").resize((columns, rows), Image.Resampling.BOX)
    return np.asarray(grey)


class _Kept:
    """The findings of a root, in a JSON file of the cache."""

    def __init__(self, cache: Path, root: Path, side: int) -> None:
        import PIL

        self._root = root.absolute()
        what = json.dumps([str(self._root), side, VERSION, PIL.__version__])
        self._path = cache / "folder" / f"{hashlib.sha256(what.encode()).hexdigest()[:16]}.json"
        try:
            rows = json.loads(self._path.read_text())
        except (OSError, ValueError):  # none, or one that was cut off
            rows = {}
        self._rows: dict[str, Any] = rows if isinstance(rows, dict) else {}

    def stamp(self, path: Path) -> list[int]:
        """Changes whenever the file does; [] where there is none."""
        try:
            about = path.stat()
        except OSError:
            return []
        return [about.st_size, about.st_mtime_ns, about.st_ctime_ns]

    def _name(self, path: Path) -> str:
        return os.path.relpath(path.absolute(), self._root)

    def get(self, path: Path, stamp: list[int]) -> Finding | None:
        row: Any = self._rows.get(self._name(path))
        try:
            known, values = row
            return Finding(*values) if stamp and known == stamp else None
        except (TypeError, ValueError):  # none, or not of this kind
            return None

    def put(self, path: Path, stamp: list[int], finding: Finding, keep: bool) -> Finding:
        if keep and stamp:
            self._rows[self._name(path)] = [stamp, list(finding)]
        return finding

    def save(self, log: Log) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with appearing(self._path) as part:
                part.write_text(json.dumps(self._rows))
        except OSError as error:
            log(
                f"what was found in the images cannot be kept in {self._path.parent} ({error.strerror}): they are "
                "checked again the next time"
            )
