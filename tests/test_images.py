"""What an image shows: every mode of Pillow in every container; turned, transparent, deep, and with a profile."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import case, script
from PIL import Image, ImageCms, ImageMode

from scalesearch.data.pixels import FORMATS, SUFFIXES, Picture, _square, decoding, read

DOCS = Path(__file__).parent.parent / "docs"
images = script(DOCS / "images.py")


@pytest.fixture(autouse=True)
def _decoding() -> Iterator[None]:
    with decoding():
        yield


def verdict(colours: Any, **saved: Any) -> str:
    """How the image that is `saved` in PNG, or with `format=`, is read."""
    image, stream = saved.pop("image"), io.BytesIO()
    image.save(stream, saved.pop("format", "PNG"), **saved)
    return str(images.verdict(stream.getvalue(), colours))


def test_every_mode_in_every_container_is_right_or_refused_and_the_page_says_which() -> None:
    found = dict(images.rows())
    assert set(found) == set(Image.MODES)
    assert {"PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "MPO"} <= set(found["L"])
    for mode, cells in found.items():
        for container, cell in cells.items():
            with case(mode, container):
                assert cell in ("right", "refused", "-")
                assert (cell == "refused") == (mode in ("I", "F") and cell != "-" and (mode, container) != ("I", "PPM"))
    page = (DOCS / "images.md").read_text()
    if len(found["L"]) == len(images.CONTAINERS):  # else this Pillow has no AVIF
        assert images.page(page, "modes", images.table()) == page, "python docs/images.py"


def test_every_mode_that_pillow_knows_is_right_or_refused_by_its_name() -> None:
    """Those too that no container has: straight from memory."""
    for mode in {*Image.MODES, *(str(ImageMode.getmode(mode)) for mode in Image.MODES)}:
        with case(mode):
            image, colours = images.picture(mode)
            if mode in ("I", "F"):
                with pytest.raises(ValueError, match=rf"its mode is {mode} \("):
                    _square(image, 2)
                continue
            pixels = _square(image, 32).pixels[8::16, 8::16].reshape(4, 3).astype(int)
            assert np.abs(pixels - np.array(colours)).max() <= 10


@pytest.mark.parametrize("container", ["JPEG", "PNG", "TIFF", "WEBP", "MPO", "AVIF"])
def test_an_image_is_turned_as_its_exif_says(container: str) -> None:
    if container not in Image.SAVE:
        pytest.skip(f"this Pillow has no {container}")
    stored = np.array(images.COLOURS).reshape(2, 2, 3)
    shown = {  # of the blocks as they are stored, what EXIF 2.3 says is seen, by its rows and columns
        **{1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1]},
        **{5: stored.swapaxes(0, 1), 6: np.rot90(stored, -1), 7: stored[::-1, ::-1].swapaxes(0, 1)},
        **{8: np.rot90(stored)},
    }
    for orientation, expected in shown.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = images.CONTAINERS[container] | {"exif": exif}
        with case(container, orientation):
            colours = [tuple(one) for one in expected.reshape(4, 3).tolist()]
            assert verdict(colours, image=images.blocks(images.COLOURS), format=container, **options) == "right"


def test_damaged_exif_turns_nothing_and_stops_nothing() -> None:
    for exif in (b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0", b"rubbish", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12"):
        image = images.blocks(images.COLOURS)
        assert verdict(images.COLOURS, image=image, format="JPEG", quality=100, subsampling=0, exif=exif) == "right"


def test_a_turned_tiff_of_16_bits_is_turned_and_shown() -> None:
    image, _ = images.picture("I;16")
    exif = Image.Exif()
    exif[0x0112] = 3
    assert verdict(images.GREY[::-1], image=image, format="TIFF", exif=exif) == "right"


def test_what_is_transparent_shows_white_and_no_hidden_colour() -> None:
    white = (255, 255, 255)
    colour, grey = images.blocks(images.COLOURS), images.blocks(images.GREY).convert("L")
    assert verdict((*images.COLOURS[:3], white), image=colour, transparency=images.COLOURS[3]) == "right"
    assert verdict((images.GREY[0], white, *images.GREY[2:]), image=grey, transparency=80) == "right"
    deep, _ = images.picture("I;16")
    assert verdict((images.GREY[0], white, *images.GREY[2:]), image=deep, transparency=80 * 257) == "right"
    palette = colour.quantize(4)
    index = palette.getpixel((1, 1))
    for container in ("PNG", "GIF"):
        got = verdict((white, *images.COLOURS[1:]), image=palette, format=container, transparency=index)
        assert got == "right", container
    opaque = _square(colour.convert("RGBA"), 2)
    assert not opaque.transparent
    assert _square(images.picture("RGBA")[0], 2).transparent


def tiff(values: np.ndarray[Any, Any], bits: int, photometric: int) -> bytes:
    """A grey TIFF as few programs write it; `values` are packed already."""
    height, width, content = 32, 32, values.tobytes()
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height}
    entries[279] = len(content)
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    return struct.pack("<2sHI", b"II", 42, 8 + len(content)) + content + struct.pack("<H", 9) + directory + bytes(4)


@pytest.mark.parametrize("photometric", [0, 1], ids=["white is 0", "black is 0"])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_grey_of_8_12_and_16_bits_is_shown_whichever_way_white_is_counted(bits: int, photometric: int) -> None:
    level = np.asarray(images.blocks(images.GREY))[..., 0].astype(np.uint32)
    values = (level * (2**bits - 1) + 127) // 255
    values = 2**bits - 1 - values if photometric == 0 else values
    if bits == 12:
        pairs = values.reshape(-1, 2)
        parts = (pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255)
        packed = np.stack(parts, 1).astype(np.uint8)
    else:
        packed = values.astype("<u2" if bits == 16 else "u1")
    read_as = images.verdict(tiff(packed, bits, photometric), images.GREY, 2)
    if (bits, photometric) == (12, 0):  # which Pillow knows nothing of
        assert "cannot identify image file" in read_as
    else:
        assert read_as == "right"


def test_a_colour_profile_is_followed() -> None:
    """In the space of XYZ, which is linear, the very same numbers are brighter than in sRGB."""
    colour = images.blocks(images.COLOURS)
    for profile in (ImageCms.createProfile("sRGB"), b"no profile"):
        content = profile if isinstance(profile, bytes) else ImageCms.ImageCmsProfile(profile).tobytes()
        assert verdict(images.COLOURS, image=colour, icc_profile=content) == "right"
    linear = linear_rgb()
    expected = [[round(255 * gamma(value / 255)) for value in one] for one in images.COLOURS]
    assert verdict(expected, image=colour, icc_profile=linear) == "right"
    assert verdict(images.COLOURS, image=colour, icc_profile=linear) != "right"
    grey = images.blocks(images.GREY).convert("L")  # a profile of another space is left out of account
    assert verdict(images.GREY, image=grey, icc_profile=linear) == "right"


def gamma(value: float) -> float:
    """What sRGB stores for linear light."""
    return 12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055


def linear_rgb() -> bytes:
    """The profile of sRGB with its three curves made straight: `curv` of no entries is the identity."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    (number,) = struct.unpack(">I", content[128:132])
    for i in range(number):
        tag, offset, _ = struct.unpack(">4sII", content[132 + 12 * i : 144 + 12 * i])
        if tag in (b"rTRC", b"gTRC", b"bTRC"):
            content[offset : offset + 12] = b"curv" + bytes(8)
        if tag == b"desc":
            at = content.index("sRGB".encode("utf-16-be"), offset)
            content[at : at + 8] = "mine".encode("utf-16-be")
    return bytes(content)


def test_of_an_animation_the_first_frame_is_read_and_it_is_known_to_be_one(tmp_path: Path) -> None:
    first, second = images.blocks(images.COLOURS), images.blocks(images.GREY)
    for container in ("GIF", "PNG", "WEBP", "TIFF"):
        path = tmp_path / f"moving.{container}"
        first.save(path, container, save_all=True, append_images=[second])
        picture = read(path, 32)
        with case(container):
            assert picture.animated
            assert np.abs(picture.pixels[8::16, 8::16].reshape(4, 3).astype(int) - images.COLOURS).max() <= 10
    first.save(tmp_path / "still.gif")
    assert not read(tmp_path / "still.gif", 4).animated
    first.save(tmp_path / "photo.mpo", "MPO", save_all=True, append_images=[second])  # a photograph and its preview
    assert not read(tmp_path / "photo.mpo", 4).animated


def test_what_is_no_picture_is_refused_whatever_its_suffix(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "page.png", "EPS")
    with pytest.raises(OSError, match="cannot identify image file"):
        read(tmp_path / "page.png", 4)
    Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "photo.png", "JPEG")
    assert isinstance(read(tmp_path / "photo.png", 4), Picture)


def test_every_suffix_belongs_to_a_format_that_is_read() -> None:
    kinds = {suffix: kind for suffix, kind in Image.registered_extensions().items() if suffix in SUFFIXES}
    assert set(kinds) == SUFFIXES
    assert {kind.replace("MPO", "JPEG").replace("DIB", "BMP") for kind in kinds.values()} <= set(FORMATS)
