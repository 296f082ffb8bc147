"""A folder of images as a test knows it, and files with damages that chance chooses with what a right reading finds."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from scalesearch.data.pixels import FORMATS

SIDE = 6  # px; images are read in this size, and most are stored in it
Bytes = bytes | None


def picture(chance: random.Random, format: str = "PNG", **options: object) -> tuple[bytes, bytes]:
    """(content, pixels) of an image that no other is."""
    pixels = np.frombuffer(chance.randbytes(SIDE * SIDE * 3), np.uint8).reshape(SIDE, SIDE, 3)
    return saved(Image.fromarray(pixels), format, **options), pixels.tobytes()


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def seen(content: bytes) -> tuple[Bytes, str | None]:
    """(pixels, why it is no image) as Pillow reads a file without more ado; pixels None where a viewer may differ."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            Image.init()
            with Image.open(io.BytesIO(content), formats=[name for name in FORMATS if name in Image.OPEN]) as image:
                image.load()
                plain = image.mode == "RGB" and image.size == (SIDE, SIDE) and image.format in ("PNG", "JPEG", "BMP")
                refused = image.mode in ("F", "I") and image.format not in ("PNG", "PPM")
                return (np.asarray(image).tobytes() if plain else None), ("its mode is" if refused else None)
        except Exception:  # Pillow raises what its many decoders raise
            return None, ""


SUFFIXES = (".png", ".PNG", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tar.png")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes) -> bytes:
    """A PNG whose header says a size that its data do not have."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(50)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + data + chunk(b"IEND", b"")


def one_of(chance: random.Random) -> bytes:
    """A good image in any container."""
    format, options = chance.choice(
        (
            *(("PNG", {}), ("JPEG", {}), ("GIF", {}), ("BMP", {}), ("WEBP", {"lossless": True}), ("PPM", {})),
            *(("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "tiff_adobe_deflate"})),
        )
    )
    return picture(chance, format, **options)[0]


def cut(chance: random.Random) -> tuple[bytes, Bytes, str | None]:
    data = one_of(chance)
    data = data[: chance.randrange(1, len(data))]
    return data, *seen(data)


def flipped(chance: random.Random) -> tuple[bytes, Bytes, str | None]:
    data = bytearray(one_of(chance))
    for _ in range(chance.choice((1, 3, 20))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data), *seen(bytes(data))


def overwritten(chance: random.Random) -> tuple[bytes, Bytes, str | None]:
    data = bytearray(one_of(chance))
    start, size = chance.randrange(len(data)), chance.randrange(1, 40)
    data[start : start + size] = chance.randbytes(size)
    return bytes(data), *seen(bytes(data))


def thin(chance: random.Random) -> tuple[bytes, Bytes, str | None]:
    size = chance.choice(((1, 20_000), (20_000, 1), (1, 1), (2, 3000)))
    colour = tuple(chance.randbytes(3))
    return saved(Image.new("RGB", size, colour), "PNG"), bytes(colour) * SIDE**2, None


def whole(chance: random.Random) -> tuple[bytes, Bytes, str | None]:
    """Unusual, and right: garbage behind it, EXIF and profiles that are damaged."""
    options = chance.choice(({}, {"exif": b"Exif\0\0" + chance.randbytes(30)}, {"icc_profile": b"no profile"}))
    data, pixels = picture(chance, "PNG", **options)
    return data + chance.choice((b"", b"\0" * 500, b"<html>")), pixels, None


def mode(chance: random.Random) -> tuple[bytes, Bytes, str | None]:
    """Of another mode, with the pixels that a viewer shows."""
    grey = np.frombuffer(chance.randbytes(SIDE * SIDE), np.uint8).reshape(SIDE, SIDE)
    shown = grey[..., None].repeat(3, 2)
    clear = np.dstack([shown, grey // 128 * 255])
    white = np.where(clear[..., 3:] > 0, shown, 255).astype(np.uint8)
    image, container, pixels = chance.choice(
        (
            (Image.fromarray(grey), "PNG", shown),
            (Image.fromarray(grey), "GIF", shown),
            (Image.fromarray(grey.astype(np.uint16) * 257), "PNG", shown),
            (Image.fromarray(clear, "RGBA"), "PNG", white),
            (Image.fromarray(grey).convert("P"), "PNG", shown),
            (Image.fromarray((grey > 127).astype(np.uint8) * 255).convert("1"), "TIFF", (shown > 127) * np.uint8(255)),
            (Image.fromarray(grey).convert("F"), "TIFF", None),
            (Image.fromarray(grey.astype(np.int32)), "TIFF", None),
        )
    )
    return (
        saved(image, container),
        None if pixels is None else pixels.tobytes(),
        "its mode is" if pixels is None else None,
    )


CONTENTS: dict[str, Callable[[random.Random], tuple[bytes, Bytes, str | None]]] = {
    "truncated": cut,
    "bits flipped": flipped,
    "bytes overwritten": overwritten,
    "empty": lambda chance: (b"", None, "it is empty"),
    "random bytes": lambda chance: (b"\0" + chance.randbytes(chance.randrange(1, 3000)), None, ""),
    "a page in its place": lambda chance: (b"<html>404</html>", None, "no image of a format that is read"),
    "huge in its header": lambda chance: (
        png(2**31 - 1, 2**31 - 1),
        None,
        "by its header it has more than 178,956,970 pixels",
    ),
    "large in its header": lambda chance: (png(13_000, 13_000), None, ""),
    "of no size": lambda chance: (png(*chance.choice(((0, 5), (5, 0), (0, 0)))), None, ""),
    "a bomb of text": lambda chance: (png(5, 5, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**7)))), None, ""),
    "thin": thin,
    "whole": whole,
    "another mode": mode,
    "another suffix": lambda chance: (*picture(chance, chance.choice(("BMP", "PNG", "PPM"))), None),
}


@dataclass
class Picture:
    """A file that is taken for an image. pixels: (SIDE, SIDE, 3) as bytes; None: any. bad: a word on why it is none."""

    path: Path
    pixels: bytes | None = None
    bad: str | None = None


@dataclass
class Damaged:
    """What lies in a folder.

    places: the folder of each split. classes: of each split and class the pictures. left_out: of the root and the
    splits how many entries are left out by which reason. refusals: words, one of which the folder must be refused
    with; none: it is not, but for its numbers. notes: words that must be said where it is read.
    """

    root: Path
    chance: random.Random
    places: dict[str, Path] = field(default_factory=dict)
    classes: dict[str, dict[str, list[Picture]]] = field(default_factory=dict)
    left_out: dict[Path, Counter[str]] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    damages: list[str] = field(default_factory=list)
    _number: int = 0

    def number(self) -> int:
        self._number += 1
        return self._number

    def anywhere(self) -> tuple[str, str, Path]:
        """A split, a class and its folder, all of which are there."""
        places = [(role, name) for role, own in self.classes.items() for name in own]
        role, name = self.chance.choice(sorted(places))
        return role, name, self.places[role] / name

    def leave_out(self, folder: Path, reason: str) -> None:
        self.left_out.setdefault(folder, Counter())[reason] += 1

    def add(
        self, role: str, name: str, path: Path, content: bytes, pixels: Bytes = None, bad: str | None = None
    ) -> None:
        """A file that is taken for an image, at a path below its class."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.classes[role][name].append(Picture(path, pixels, bad))

    def good(self, role: str, name: str, path: Path, suffix: str = ".png") -> None:
        content, pixels = picture(self.chance)
        self.add(role, name, path.with_name(path.name + suffix), content, pixels)

    def fill(self, role: str, name: str, number: int) -> None:
        """A class of so many good images, which was not there."""
        self.classes[role][name] = []
        for _ in range(number):
            self.good(role, name, self.places[role] / name / f"{self.number():03d}")
