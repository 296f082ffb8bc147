"""Which images and folders `data=folder` reads, measured: modes, containers and layouts, into docs/images.md.

    python docs/images.py

A picture of four known blocks is written in a mode and read as a training reads it; a cell is "right" only where all
blocks have the colours that a viewer shows. A folder of each layout is made and read; it is "right" only where every
image has the labels that are meant, and each split as many images as it should have, of the folders that are its own.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageCms

from scalesearch.data import Data, DataSpec, load
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


def filled(*folders: str, number: int = 10, suffix: str = "png") -> dict[str, bytes]:
    """So many pictures, each another, in each folder."""
    return {f"{folder}/{i:02d}.{suffix}": drawn(f"{folder} {i}") for folder in folders for i in range(number)}


def drawn(seed: str) -> bytes:
    pixels = np.random.default_rng(list(seed.encode())).integers(0, 256, (RESOLUTION, RESOLUTION, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


class Splits(NamedTuple):
    """Of a folder that is read: images of each split, with the folders that they are of."""

    training: str
    validation: str
    test: str


RESOLUTION = 6
TRAIN = filled("train/cat", "train/dog")
VAL, TEST = filled("val/cat", "val/dog", number=3), filled("test/cat", "test/dog", number=2)
CUT = Splits("12 of train/", "4 of train/", "4 of train/")  # 20 images of train/ and nothing else
LINK = "link to "  # a file of this content and a target is made a link
TABLE = b"file,labels\n" + b"\n".join(b"%02d.png,%s" % (i, (b"big;red", b"red", b"")[i % 3]) for i in range(20))
TABLE_OF_TEST = b"file,labels\n00.png,red\n01.png,big\n"


def link(target: str) -> bytes:
    return (LINK + target).encode()


# Of each layout its files, and what it becomes with data.num_val=4: its splits, or a part of the refusal.
LAYOUTS: dict[str, tuple[dict[str, bytes], Splits | str]] = {
    "train, val and test": (TRAIN | VAL | TEST, Splits("20 of train/", "4 of val/", "4 of test/")),
    "train and validation": (
        TRAIN | filled("validation/cat", "validation/dog", number=2),
        Splits("16 of train/", "4 of validation/", "4 of train/"),
    ),
    "train and valid": (
        TRAIN | filled("valid/cat", "valid/dog", number=1),
        Splits("16 of train/", "2 of valid/", "4 of train/"),
    ),
    "train and test": (TRAIN | TEST, Splits("16 of train/", "4 of train/", "4 of test/")),
    "train only": (TRAIN, CUT),
    "Training and VALID, in capitals": (
        filled("Training/cat", "Training/dog") | filled("VALID/cat", "VALID/dog", number=2),
        Splits("16 of Training/", "4 of VALID/", "4 of Training/"),
    ),
    "val and valid": (TRAIN | VAL | filled("valid/cat", "valid/dog"), "which are the same split"),
    "class folders alone": (filled("cat", "dog"), Splits(*["12 of cat/ and dog/", *["4 of cat/ and dog/"] * 2])),
    "val without train": (VAL, "has no folder train/"),
    "images without folders": ({"1.png": drawn("1")}, "has no folder train/"),
    "an empty root": ({"": b""}, "neither folders nor images"),
    "a root that is not there": ({}, "does not exist"),
    "a root that is a file": ({"": b"x"}, "is a file, not a folder"),
    "an empty train": ({"train/": b""}, "has no class folders"),
    "images without class folders": (filled("train"), "has no class folders"),
    "test is a file": (TRAIN | {"test": b"x"}, "test is a file"),
    "images in folders of a class": (filled("train/cat/a", "train/cat/b/c", number=5) | filled("train/dog"), CUT),
    "classes one folder too deep": (filled("train/animals/cat", "train/animals/dog"), "are these the classes?"),
    "one class": (filled("train/cat"), "has 1 class folder, 'cat'; at least 2 are needed"),
    "an empty class": (TRAIN | {"train/emu/": b""}, "emu has no images"),
    "a class of suffixes that are not read": (TRAIN | filled("train/emu", suffix="heic"), "emu has no images"),
    "a class of one image": (TRAIN | filled("train/emu", number=1), Splits("13 of train/", *["4 of train/"] * 2)),
    "a class that is missing in val and test": (
        TRAIN | filled("train/emu") | VAL | TEST,
        Splits("30 of train/", "4 of val/", "4 of test/"),
    ),
    "a class of test that train lacks": (TRAIN | TEST | filled("test/emu"), "has the class 'emu' that train/ has not"),
    "classes that differ in case alone": (
        TRAIN | filled("train/Cat"),
        Splits("20 of train/", "4 of train/", "6 of train/"),
    ),
    "hidden files and folders": (TRAIN | filled("train/cat/.cache", "train/.git") | {"train/.DS_Store": b"x"}, CUT),
    "links to a class and to an image beside train": (
        filled("beside/cat", "train/dog", number=9)
        | {"beside/dog/9.png": drawn("9"), "train/dog/9.png": link("../../beside/dog/9.png")}
        | {"train/cat": link("../beside/cat")},
        Splits(*["12 of beside/ and train/", "4 of beside/ and train/", "3 of beside/ and train/"]),
    ),
    "a link to a folder above": (TRAIN | TEST | {"train/cat/up": link("../..")}, "a folder above its class"),
    "a link to another class": (TRAIN | {"train/cat/more": link("../dog")}, "an image must be of one class"),
    "a link to an image of another split": (
        TRAIN | TEST | {"test/cat/x.png": link("../../train/cat/00.png")},
        "an image must be of one class and of one split",
    ),
    "links to each other within a class": (
        TRAIN | {"train/cat/up": link("."), "train/cat/a/b": link("../a"), "train/cat/c": link("a")},
        CUT,
    ),
    "a class that is a broken link": (TRAIN | {"train/emu": link("nowhere")}, "emu is a broken link to 'nowhere'"),
    "an image that is a broken link": (TRAIN | {"train/cat/x.png": link("nowhere")}, "1 of 21 images cannot be read"),
    "a CSV beside train": (TRAIN | {"labels.csv": b"x"}, CUT),
    "a CSV and an archive in train": (TRAIN | {"train/about.csv": b"x", "train/images.zip": b"x"}, CUT),
    "train with a labels.csv": (
        filled("train", number=20)
        | filled("test", number=2)
        | {"train/labels.csv": TABLE, "test/labels.csv": TABLE_OF_TEST},
        Splits("16 of train/", "4 of train/", "2 of test/"),
    ),
    "a labels.csv in train alone": (
        filled("train", number=20) | TEST | {"train/labels.csv": TABLE},
        "has no labels.csv",
    ),
    "mixed suffixes": (
        filled("train/cat", number=5) | filled("train/dog") | {f"train/cat/{i}.webp": drawn(f"{i}") for i in range(5)},
        CUT,
    ),
    "suffixes in capitals": (filled("train/cat", "train/dog", suffix="PNG"), CUT),
    "suffixes that are not read": (TRAIN | filled("train/cat", suffix="heic"), CUT),
    "an image beside the classes": (TRAIN | {"train/x.png": drawn("x")}, CUT),
    "an empty folder called like an image": (TRAIN | {"train/cat/x.png/": b""}, CUT),
    "a folder and an archive beside train": (TRAIN | filled("dev/cat") | {"test.zip": b"x"}, CUT),
    "splits in the classes": (
        filled("cat/train", "dog/train") | filled("cat/test", "dog/test", number=2),
        "splits must be outermost, test/cat/<image>",
    ),
    "splits in the classes of train": (
        filled("train/cat", "train/dog") | filled("train/cat/val", "train/dog/val", number=2),
        "holds val/, whose images would be of one split",
    ),
    "splits of other names": (
        filled("training_set/cat", "training_set/dog") | filled("test_set/cat", "test_set/dog", number=2),
        "would be classes, and look like splits: call them test/ and train/",
    ),
    "images of splits of other names": (
        filled("train_images") | filled("val_images", number=2),
        "would be classes, and look like splits",
    ),
    "images and masks": (filled("train/images", "train/masks"), "images/ and masks/, which would be the classes"),
    "classes called like a split": (
        filled("train/test_tube", "train/train_station", "train/cat"),
        Splits("20 of train/", "4 of train/", "6 of train/"),
    ),
    "the root one folder too high": (filled("data/train/cat", "data/train/dog"), "did you mean data.root="),
    "an image in two splits and two classes": (
        TRAIN | VAL | {name: drawn("x") for name in ("val/cat/00.png", "train/cat/00.png", "train/dog/00.png")},
        Splits("16 of train/", "4 of val/", "4 of train/"),
    ),
}


def planted(root: Path, files: Mapping[str, bytes]) -> Path:
    """The files of a layout; a name that ends in a slash is an empty folder, and so is "" without content."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content.startswith(LINK.encode()):
            path.symlink_to(content.decode().removeprefix(LINK))
        elif not content and (name.endswith("/") or not name):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.write_bytes(content)
    return root


class Outcome(NamedTuple):
    """found: "right", "refused" or what is wrong. words: all remarks but for the sizes of the splits."""

    found: str
    splits: Splits
    words: str


def outcome(files: Mapping[str, bytes], expected: Splits | str) -> Outcome:
    """What becomes of a layout."""
    with tempfile.TemporaryDirectory() as directory:
        root = planted(Path(directory) / "root", files)
        spec = DataSpec("folder", None, 4, root=str(root), resolution=RESOLUTION, cache=str(Path(directory) / "cache"))
        remarks: list[str] = []
        splits = Splits("-", "-", "-")
        try:
            splits, mistaken = provenance(load(spec, log=remarks.append), files)
            found = "right" if splits == expected and not mistaken else f"wrong ({splits}, {mistaken})"
        except ValueError as error:
            remarks.append(str(error))
            found = "refused" if isinstance(expected, str) and expected in str(error) else f"wrong ({error})"
        words = "; ".join(" ".join(line.split()) for line in remarks if not line.startswith("validation: "))
        words = words.replace(f"{root}/", "").replace(str(root), "ROOT").replace(str(directory), "ABOVE")
        return Outcome(found, splits, words.replace("|", "/").replace("<", "&lt;"))


def provenance(data: Data, files: Mapping[str, bytes]) -> tuple[Splits, list[str]]:
    """Each split's number of images with the folders that they are of, by their pixels; and images of a wrong label."""
    names: dict[bytes, list[str]] = {}
    for name, content in files.items():
        if content.startswith(b"\x89PNG"):
            pixels = np.asarray(Image.open(io.BytesIO(content)))
            names.setdefault(pixels.transpose(2, 0, 1).tobytes(), []).append(name)
    classes, remarks, mistaken = data.description.classes, [], []
    for images, labels in ((data.train_images, data.train_labels), (data.val_images, data.val_labels), data.test()):
        folders = set()
        for image, label in zip(images, labels, strict=True):
            known = names[image.numpy().tobytes()]
            own = {one for one, there in zip(classes, label.tolist(), strict=True) if there} if label.ndim else None
            meant = [labels_of(name, files, classes) for name in known]
            mistaken += known if (own if own is not None else {classes[int(label)]}) not in meant else []
            folders |= {PurePosixPath(known[0]).parts[0]} if len(known) == 1 else set()
        remarks.append(f"{len(images)} of {' and '.join(f'{one}/' for one in sorted(folders))}")
    return Splits(*remarks), mistaken


def labels_of(name: str, files: Mapping[str, bytes], classes: tuple[str, ...]) -> set[str]:
    """The labels that are meant: of the table beside an image, or the folder that has a class's name."""
    path = PurePosixPath(name)
    if table := files.get(f"{path.parent}/labels.csv"):
        line = next(line for line in table.decode().splitlines() if line.startswith(path.name))
        return set(filter(None, line.partition(",")[2].split(";")))
    return {next(part for part in path.parts if part in classes)}


def layout_table() -> str:
    """Each layout with what becomes of it, and the remarks, as Markdown."""
    lines = ["| layout | is | training | validation | test | remarks |", "|---" * 6 + "|"]
    for name, (files, expected) in LAYOUTS.items():
        found, splits, words = outcome(files, expected)
        lines.append(f"| {name} | {found} | {' | '.join(splits)} | {words} |")
    return "\n".join([*lines, ""])


def page(text: str, name: str, content: str) -> str:
    """The page with the part of that name written anew."""
    begin, end = f"<!-- {name}: python docs/images.py -->\n", f"<!-- end of {name} -->\n"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return before + begin + content + end + after


def main() -> None:
    PAGE.write_text(page(page(PAGE.read_text(), "modes", table()), "layouts", layout_table()))


if __name__ == "__main__":
    main()
