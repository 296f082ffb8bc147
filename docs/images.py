"""Which images `data=folder` reads, measured: every mode of Pillow in every container, into docs/images.md.

    python docs/images.py

A picture of four known blocks is written in a mode and read as a training reads it; a cell is "right" only where all
blocks have the colours that a viewer shows.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from scalesearch.data.pixels import decoding, read

PAGE = Path(__file__).with_name("images.md")
CONTAINERS = {
    **{"PNG": {}, "JPEG": {"quality": 100, "subsampling": 0}, "TIFF": {}, "WEBP": {"lossless": True}, "GIF": {}},
    **{"BMP": {}, "MPO": {"quality": 100, "subsampling": 0}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}},
    **{"PPM": {}, "JPEG2000": {}},
}
GREY = ((0, 0, 0), (80, 80, 80), (160, 160, 160), (250, 250, 250))
COLOURS = ((200, 60, 30), (20, 180, 40), (30, 60, 220), (240, 240, 10))
BLACK_AND_WHITE = ((0, 0, 0), (255, 255, 255), (255, 255, 255), (0, 0, 0))
SIDE = 16  # px of a block
# What Pillow may write for a mode without a change of what is seen; any other is its own conversion.
WRITTEN_AS = {
    **{"1": {"L", "RGB", "P"}, "L": {"P", "RGB"}, "P": {"RGB", "RGBA"}, "PA": {"RGBA"}, "LA": {"RGBA"}},
    **{"RGB": {"P"}, "RGBA": {"P"}, "RGBa": {"RGBA"}, "RGBX": {"RGB"}, "YCbCr": {"RGB"}, "CMYK": {"RGB"}},
    **{"HSV": {"RGB"}, "I;16": {"I"}, "I;16B": {"I;16"}, "I;16L": {"I;16"}, "I;16N": {"I;16"}},
}
ALPHA = (255, 128, 0, 255)  # of the blocks, in modes with alpha; the third block's colour is hidden


def blocks(colours: tuple[tuple[int, int, int], ...]) -> Image.Image:
    """Two by two blocks in RGB."""
    pixels = np.array(colours, np.uint8).reshape(2, 2, 3)
    return Image.fromarray(pixels.repeat(SIDE, 0).repeat(SIDE, 1))


def alpha() -> Image.Image:
    return Image.fromarray(np.array(ALPHA, np.uint8).reshape(2, 2).repeat(SIDE, 0).repeat(SIDE, 1))


def over_white(colours: tuple[tuple[int, int, int], ...]) -> tuple[tuple[int, int, int], ...]:
    mixed = [[(c * a + 255 * (255 - a)) / 255 for c in one] for one, a in zip(colours, ALPHA, strict=True)]
    return tuple(tuple(round(value) for value in one) for one in mixed)  # type: ignore[return-value]


def picture(mode: str) -> tuple[Image.Image, tuple[tuple[int, int, int], ...]]:
    """An image of that mode, and the colours of its blocks as a viewer shows them."""
    grey, colour = blocks(GREY), blocks(COLOURS)
    level = np.asarray(grey)[..., 0].astype(np.uint16)
    if mode == "1":
        return blocks(BLACK_AND_WHITE).convert("1"), BLACK_AND_WHITE
    if mode == "L":
        return grey.convert("L"), GREY
    if mode.startswith("I;16"):
        order = ">u2" if mode == "I;16B" else "<u2"
        return Image.frombytes(mode, grey.size, (level * 257).astype(order).tobytes()), GREY
    if mode == "I":
        return Image.fromarray(level.astype(np.int32) * 257), GREY
    if mode == "F":
        return Image.fromarray(level.astype(np.float32) / 255), GREY
    if mode in ("LA", "La"):
        made = grey.convert("L").convert("LA")
        made.putalpha(alpha())
        return made.convert(mode), over_white(GREY)
    if mode == "P":
        return colour.quantize(4), COLOURS
    if mode == "PA":
        made = colour.quantize(4).convert("PA")
        made.putalpha(alpha())
        return made, over_white(COLOURS)
    if mode in ("RGBA", "RGBa"):
        made = colour.convert("RGBA")
        made.putalpha(alpha())
        return made.convert(mode), over_white(COLOURS)
    if mode == "LAB":
        spaces = (ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"))
        return ImageCms.profileToProfile(colour, *spaces, outputMode="LAB"), COLOURS  # type: ignore[return-value]
    return colour.convert(mode), COLOURS


def cell(mode: str, container: str) -> str:
    """ "right", "refused", "wrong", or "-" where Pillow writes no such container with that mode."""
    image, colours = picture(mode)
    stream = io.BytesIO()
    try:
        image.save(stream, container, **CONTAINERS[container])
    except (OSError, ValueError, KeyError):
        return "-"
    with Image.open(io.BytesIO(stream.getvalue())) as kept:
        if kept.mode != mode and kept.mode not in WRITTEN_AS.get(mode, set()):
            return "-"
        if (container, mode) == ("GIF", "RGBA"):  # a GIF's pixels are opaque or not there: half of one is neither
            colours = (colours[0], None, *colours[2:])  # type: ignore[assignment]
    return verdict(stream.getvalue(), colours)


def verdict(content: bytes, colours: tuple[Any, ...], tolerance: int = 10) -> str:
    """How a file with that content is read: "right" where its four blocks have these colours (None: any)."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "picture.img"
        path.write_bytes(content)
        try:
            with decoding():
                pixels = read(path, 2 * SIDE).pixels
        except (ValueError, OSError) as refusal:
            return "refused" if "its mode is" in str(refusal) else f"wrong ({refusal})"
    middle = SIDE // 2
    seen = pixels[middle::SIDE, middle::SIDE].reshape(4, 3).astype(int)
    pairs = [(one, colour) for one, colour in zip(seen, colours, strict=True) if colour is not None]
    right = all(np.abs(one - np.array(colour)).max() <= tolerance for one, colour in pairs)
    return "right" if right else f"wrong ({seen.tolist()}, not {colours})"


def modes() -> list[str]:
    """All of Pillow's."""
    return list(Image.MODES)


def rows() -> Iterator[tuple[str, dict[str, str]]]:
    """Each mode of Pillow with its cell in each container."""
    Image.init()
    here = [name for name in CONTAINERS if name in Image.SAVE]
    for mode in modes():
        yield mode, {name: cell(mode, name) for name in here}


def table() -> str:
    """The rows as Markdown."""
    found = list(rows())
    lines = [f"| mode | {' | '.join(found[0][1])} |", "|---" * (1 + len(found[0][1])) + "|"]
    return "\n".join([*lines, *(f"| `{mode}` | {' | '.join(cells.values())} |" for mode, cells in found), ""])


def page(text: str, name: str, content: str) -> str:
    """The page with the part of that name written anew."""
    begin, end = f"<!-- {name}: python docs/images.py -->\n", f"<!-- end of {name} -->\n"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return before + begin + content + end + after


def main() -> None:
    PAGE.write_text(page(PAGE.read_text(), "modes", table()))


if __name__ == "__main__":
    main()
