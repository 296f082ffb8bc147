"""One image file as a square of RGB pixels: what a viewer shows, or a refusal that names the mode.

A viewer turns an image as its EXIF says, shows 16 bits of grey as 8, lays what is transparent over white, and follows
a colour profile. What has no range that all viewers agree on (32-bit integers, floating point) is refused.
"""

from __future__ import annotations

import ctypes
import errno
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scalesearch.text import one_line

if TYPE_CHECKING:
    from PIL.Image import Image

# By content a file may be one of these, whatever its suffix: no program is started for it, as EPS would, and a format
# is a picture's, not a document's.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = frozenset(
    (
        *(".apng", ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo"),
        *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
    )
)
VERSION = 2  # raised with every change of what is read: what was checked before goes by it

_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
_REFUSED = {"I": "32-bit integers", "F": "floating point"}
_ORIENTATION = 0x0112  # of EXIF, and the same number in a TIFF
_SPACES = {"L": "GRAY", "RGB": "RGB ", "CMYK": "CMYK", "LAB": "Lab "}  # of a profile that fits the mode


class ModeError(ValueError):
    """The file is whole; its mode is one that viewers show differently."""


class Picture(NamedTuple):
    """pixels: (side, side, 3) uint8. transparent: it shows white where it is. animated: this is its first frame."""

    pixels: NDArray[np.uint8]
    transparent: bool
    animated: bool


def read(path: Path, side: int) -> Picture:
    """The image of a file, the shorter side resized to `side` px and the centre kept.

    Raises: ModeError where it has a mode that viewers show differently. ValueError, OSError and whatever else the
        decoders of Pillow raise where it is no image or is damaged; `why_not` says it in words.
    """
    from PIL import Image

    known = [name for name in FORMATS if name in Image.OPEN]
    with Image.open(path, formats=known) as image:
        animated = image.format != "MPO" and bool(getattr(image, "is_animated", False))
        # Lets the JPEG decoder halve large images: four times faster, and still twice the side that is kept.
        image.draft("RGB", (2 * side, 2 * side))
        image.load()
        return _square(image, side)._replace(animated=animated)


def why_not(error: Exception, path: Path) -> str:
    """Why `read` cannot read that file, of the exception that it raised, as the end of a sentence."""
    from PIL import Image, UnidentifiedImageError

    if of_the_system(error):
        return str(getattr(error, "strerror", error))
    if isinstance(error, ModeError):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        return f"by its header it has more than {most:,} pixels, the most that are read; make it smaller"
    if isinstance(error, UnidentifiedImageError):
        size = path.stat().st_size
        return "it is empty" if size == 0 else f"no image of a format that is read, by its {size:,} bytes"
    return f"it is damaged or not supported: {one_line(error) or type(error).__name__}"


def of_the_system(error: Exception) -> bool:
    """Whether the file system refused the file, which may be another time; else it is what the file holds."""
    # A damaged file may lead its decoder to a place before its beginning: the system calls that an invalid argument.
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)


@contextmanager
def decoding() -> Iterator[None]:
    """Around all calls of `read`, in this thread and in others: decoders are known, and what they write kept back.

    They warn of damaged EXIF, large images and unusual palettes, log what else is odd, and libtiff writes to stderr;
    each without a file's name. What is read all the same is right, and what is not raises.
    """
    from PIL import Image

    Image.init()
    with warnings.catch_warnings(), _quiet_logger(), _quiet_libtiff():  # all are the process's: not for single threads
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _quiet_logger() -> Iterator[None]:
    logger = logging.getLogger("PIL")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _quiet_libtiff() -> Iterator[None]:
    """What libtiff finds wrong it writes to stderr; where that matters Pillow raises as well."""
    from PIL import _imaging

    try:
        set_handler = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler  # of the libtiff that Pillow itself uses
    except (OSError, AttributeError):  # a Pillow without it, or one that does not show it
        yield
        return
    set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
    before = set_handler(None)
    try:
        yield
    finally:
        set_handler(before)


def _square(image: Image, side: int) -> Picture:
    from PIL import ImageOps
    from PIL.Image import Resampling

    profile = image.info.get("icc_profile")
    shown, transparent = _shown(_upright(image), keep=bool(profile))
    square = ImageOps.fit(shown, (side, side), Resampling.BILINEAR)
    if shown.mode != "RGB" or profile:
        square = _managed(square, profile)
    return Picture(np.asarray(square), transparent, animated=False)


def _upright(image: Image) -> Image:
    """Turned as EXIF says. Pillow's own `exif_transpose` also writes EXIF anew, and fails where that is damaged."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        turn = turns.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF, which no viewer follows either; Pillow raises what its parsers raise
        return image
    return image if turn is None else _transposed(image, turn)


def _transposed(image: Image, turn: Any) -> Image:
    turned = image.transpose(turn)
    turned.info = image.info
    if "tag_v2" in vars(image):
        turned.tag_v2 = image.tag_v2  # type: ignore[attr-defined]
    turned.format = image.format
    return turned


def _shown(image: Image, *, keep: bool) -> tuple[Image, bool]:
    """(the image without transparency, whether it had any): in RGB, or in its own mode where a profile may follow."""
    from PIL.Image import alpha_composite, fromarray, new

    if image.mode in _SIXTEEN_BITS or (image.mode == "I" and image.format in ("PNG", "PPM")):
        grey, clear = _eight_bits(image)
        image = fromarray(np.where(clear, np.uint8(255), grey) if clear.any() else grey)
        return (image if keep else image.convert("RGB")), bool(clear.any())
    if image.mode in _REFUSED:
        raise ModeError(
            f"its mode is {image.mode} ({_REFUSED[image.mode]}), which viewers show differently; save it with 8 or 16 "
            "bits per channel"
        )
    if _may_be_transparent(image):
        colours = image.convert("LA") if image.mode == "La" else image
        colours = colours.convert("RGBA")
        if np.asarray(colours)[..., 3].min() < 255:
            white = new("RGBA", colours.size, "white")
            return alpha_composite(white, colours).convert("RGB"), True
        return colours.convert("RGB"), False
    if image.mode == "LAB" or (keep and image.mode in ("L", "CMYK")):
        return image, False
    return image.convert("RGB"), False


def _may_be_transparent(image: Image) -> bool:
    bands = image.getbands()
    return "A" in bands or "a" in bands or "transparency" in image.info or image.mode == "PA"


def _eight_bits(image: Image) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Grey of 16 bits as 8, (H, W), and which pixels are transparent."""
    values, most = np.asarray(image).astype(np.int64), 65535
    tags = getattr(image, "tag_v2", {})
    if bits := tags.get(258):  # BitsPerSample: 12 bits of grey come in 16
        most = 2 ** (bits[0] if isinstance(bits, tuple) else bits) - 1
    if tags.get(262) == 0:  # PhotometricInterpretation: 0 is white, which Pillow follows for 8 bits alone
        values = most - values
    clear = values == image.info.get("transparency", -1)
    return np.clip((values * 255 + most // 2) // most, 0, 255).astype(np.uint8), clear


def _managed(image: Image, profile: bytes | None) -> Image:
    """In sRGB, as the colour profile says where there is one that fits the mode; it needs few pixels."""
    from PIL import ImageCms

    to_lab = image.mode == "LAB"
    try:
        # A TIFF's LAB needs no profile: it is the space that profiles are defined in.
        source: Any = ImageCms.createProfile("LAB") if to_lab else ImageCms.ImageCmsProfile(io.BytesIO(profile or b""))
        own = source if to_lab else source.profile
        name = "" if to_lab else str(own.profile_description or "")
        if not to_lab and (own.xcolor_space != _SPACES.get(image.mode) or "sRGB" in name):
            return image.convert("RGB")
        made = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):  # a damaged profile, which viewers leave out of account
        if to_lab:
            raise
        return image.convert("RGB")
    return image.convert("RGB") if made is None else made
