"""Folders of images with damages that chance chooses, and what a right reading of each finds.

`make(directory, seed)` is always the same. Nothing here knows how folders are read: a damage says what it did.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from damaged_files import CONTENTS, SIDE, SUFFIXES, Damaged, Picture, picture, saved
from PIL import Image

DAMAGES: dict[str, Callable[[Damaged], bool | None]] = {}  # False: it could not be done to this folder


def damage(function: Callable[[Damaged], bool | None]) -> Callable[[Damaged], bool | None]:
    DAMAGES[function.__name__] = function
    return function


# --- what a file holds


def content(name: str) -> None:
    """A damage that adds files of that content, or writes it over an image."""

    def add(folder: Damaged) -> None:
        for _ in range(folder.chance.randrange(1, 4)):
            add_one(folder)

    def add_one(folder: Damaged) -> None:
        role, own, place = folder.anywhere()
        data, pixels, bad = CONTENTS[name](folder.chance)
        path = place / f"{name} {folder.number()}{folder.chance.choice(SUFFIXES)}"
        pictures = folder.classes[role][own]
        if len(pictures) > 4 and folder.chance.random() < 0.3 and not pictures[0].path.is_symlink():
            path = pictures.pop(0).path
        folder.add(role, own, path, data, pixels, bad)

    DAMAGES[name] = add


for each in CONTENTS:
    content(each)


@damage
def animated(folder: Damaged) -> None:
    role, own, place = folder.anywhere()
    greys = folder.chance.sample(range(256), 3)
    frames = [Image.new("L", (SIDE, SIDE), grey) for grey in greys]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    folder.add(role, own, place / f"{folder.number()}.gif", data, bytes([greys[0]]) * (SIDE**2 * 3))
    folder.notes.append("several frames or pages, of which the first is used")


@damage
def very_large_file(folder: Damaged) -> None:
    role, own, place = folder.anywhere()
    path = place / f"sparse {folder.number()}.png"
    folder.add(role, own, path, b"", bad="no image of a format that is read")
    os.truncate(path, 2**32)


# --- links


@damage
def broken_link(folder: Damaged) -> None:
    role, own, place = folder.anywhere()
    path = place / f"link {folder.number()}.png"
    path.symlink_to(folder.chance.choice(("nowhere", path.name, "/dev/nothing/x.png", "../" * 60 + "x.png")))
    folder.classes[role][own].append(Picture(path, None, ""))


@damage
def links_to_each_other(folder: Damaged) -> None:
    role, own, place = folder.anywhere()
    first, second = (place / f"link {folder.number()}.png" for _ in range(2))
    first.symlink_to(second)
    second.symlink_to(first)
    folder.classes[role][own] += [Picture(first, None, ""), Picture(second, None, "")]


@damage
def link_to_nowhere_in_a_class(folder: Damaged) -> None:
    role, _, place = folder.anywhere()
    (place / f"more {folder.number()}").symlink_to("nowhere")
    folder.leave_out(folder.places[role], "linked to what is not there")


@damage
def link_upward(folder: Damaged) -> None:
    _, _, place = folder.anywhere()
    link = place / f"up {folder.number()}"
    link.symlink_to(folder.chance.choice(("..", "../..", "../../..", "/", str(folder.root))))
    folder.refusals.append(f"{link} is a link to ")


@damage
def link_to_another_class(folder: Damaged) -> bool | None:
    role, own, place = folder.anywhere()
    others = [one for one in folder.classes[role] if one != own and (folder.places[role] / one).is_dir()]
    if not others:
        return False
    other = folder.places[role] / folder.chance.choice(others)
    link, target = place / f"other {folder.number()}", other
    if folder.chance.random() < 0.5 and (images := [path for path in other.glob("0*.png") if not path.is_symlink()]):
        link, target = link.with_suffix(".png"), min(images)
    link.symlink_to(target)
    folder.refusals.append(f"{link} is a link to images of")
    return None


@damage
def link_within_a_class(folder: Damaged) -> None:
    role, own, place = folder.anywhere()
    inner = place / f"inner {folder.number()}"
    folder.good(role, own, inner / "1")
    (inner / "loop").symlink_to(folder.chance.choice((".", "..", str(place))))
    folder.leave_out(folder.places[role], "linked to folders that are read already")


@damage
def link_to_images_elsewhere(folder: Damaged) -> None:
    role, own, place = folder.anywhere()
    elsewhere = folder.root.parent / f"elsewhere {folder.number()}"
    for i in range(2):
        folder.good(role, own, elsewhere / "deep" / f"{i}")
    if folder.chance.random() < 0.5:
        link = place / elsewhere.name
        link.symlink_to(elsewhere)
        for one in folder.classes[role][own][-2:]:
            one.path = link / one.path.relative_to(elsewhere)
    else:
        for one in folder.classes[role][own][-2:]:
            link = place / f"file {folder.number()}.png"
            link.symlink_to(one.path)
            one.path = link


@damage
def root_is_a_link(folder: Damaged) -> bool | None:
    real = folder.root.with_name(f"real {folder.number()}")
    if any(path.is_symlink() for path in folder.root.rglob("*")):
        return False
    folder.root.rename(real)
    folder.root.symlink_to(real.name)
    return None


# --- names and folders

NAMES = (
    *("new\nline", "tab\t", "bell\x07", "\x1b[31mred", "caf\u00e9", "cafe\u0301", "\u65e5\u672c", "\U0001f600", "\x7f"),
    *(
        "\u202eleft",
        "zero\u200bwidth",
        "\udcff\udc80",
        " space ",
        "-rf",
        "'",
        '"',
        "%s%n",
        "{0}",
        "$HOME",
        "*?",
        "a;b#c",
    ),
    *("back\\slash", "x" * 200, "a.b", "\u2028", "~", "None", "scalesearch: error"),
)


@damage
def odd_name(folder: Damaged) -> None:
    role, own, place = folder.anywhere()
    for name in folder.chance.sample(NAMES, 3):
        folder.good(role, own, place / f"{name}{folder.number()}")


@damage
def odd_name_of_a_bad_image(folder: Damaged) -> None:
    role, own, place = folder.anywhere()
    for name in folder.chance.sample(NAMES, 3):
        folder.add(role, own, place / f"{name}{folder.number()}.png", b"no image", bad="no image of a format")


@damage
def odd_class(folder: Damaged) -> bool | None:
    name = folder.chance.choice(NAMES)
    if name in folder.classes["train"]:
        return False
    for role in folder.classes:
        folder.fill(role, name, 4)
    return None


@damage
def class_that_differs_in_case(folder: Damaged) -> bool | None:
    if "CAT" in folder.classes["train"] or "cat" not in folder.classes["train"]:
        return False
    for role in folder.classes:
        folder.fill(role, "CAT", 5)
    folder.notes.append("the names of the classes 'CAT' and 'cat' are alike")
    return None


@damage
def folder_called_like_an_image(folder: Damaged) -> None:
    role, own, place = folder.anywhere()
    inner = place / f"folder {folder.number()}.png"
    if folder.chance.random() < 0.5:
        folder.good(role, own, inner / "deep.jpg" / "1")
        folder.notes.append("lie in sub-folders, such as ")
    else:
        inner.mkdir()
        folder.leave_out(folder.places[role], "empty folders")


@damage
def deep_folders(folder: Damaged) -> None:
    role, own, place = folder.anywhere()
    folder.good(role, own, place.joinpath(*["deep"] * folder.chance.randrange(1, 40), str(folder.number())))


@damage
def other_files(folder: Damaged) -> None:
    role, _, place = folder.anywhere()
    for name, reason in folder.chance.sample(
        (
            *((".DS_Store", "hidden"), ("._1.png", "hidden"), ("notes.txt", "with the suffix .txt")),
            *(("1.HEIC", "with the suffix .HEIC"), ("README", "without a suffix"), ("1.png~", "with the suffix .png~")),
        ),
        3,
    ):
        if not (place / name).exists():
            (place / name).write_bytes(b"x")
            folder.leave_out(folder.places[role], reason)


@damage
def files_beside_the_classes(folder: Damaged) -> None:
    _, _, place = folder.anywhere()
    for name in ("labels.txt", "images.zip", "x.png", "README"):
        if not (place.parent / name).exists():
            (place.parent / name).write_bytes(b"x")
            folder.leave_out(place.parent, "beside the class folders")


@damage
def things_beside_train(folder: Damaged) -> bool | None:
    if folder.root in folder.places.values():
        return False
    for name in ("labels.csv", "train.zip", "dev"):
        if not (folder.root / name).exists():
            (folder.root / name).mkdir() if name == "dev" else (folder.root / name).write_bytes(b"x")
            folder.leave_out(folder.root, "beside train/")
    return None


@damage
def pipe(folder: Damaged) -> None:
    role, _, place = folder.anywhere()
    os.mkfifo(place / f"pipe {folder.number()}.png")
    folder.leave_out(folder.places[role], "no regular files")


@damage
def link_to_a_device(folder: Damaged) -> None:
    role, _, place = folder.anywhere()
    (place / f"zero {folder.number()}.png").symlink_to("/dev/zero")
    folder.leave_out(folder.places[role], "no regular files")


# --- classes and splits


@damage
def class_is_missing(folder: Damaged) -> None:
    role, own, place = folder.anywhere()
    shutil.rmtree(place)
    del folder.classes[role][own]


@damage
def class_is_a_file(folder: Damaged) -> None:
    role, own, place = folder.anywhere()
    shutil.rmtree(place)
    del folder.classes[role][own]
    place.write_bytes(b"x")
    if role == "train":
        folder.leave_out(folder.places[role], "beside the class folders")
    else:
        folder.refusals.append(f"{place} is a file; images of the class '{own}' must be in a folder there")


@damage
def class_is_a_broken_link(folder: Damaged) -> None:
    role = folder.chance.choice(sorted(folder.classes))
    path = folder.places[role] / f"gone {folder.number()}"
    path.symlink_to("nowhere")
    folder.refusals.append("is a broken link to 'nowhere'; if it is a class")


@damage
def class_is_a_link_to_another(folder: Damaged) -> None:
    _, own, place = folder.anywhere()
    (place.parent / f"same {folder.number()}").symlink_to(own)
    folder.refusals += ["an image must be of one class and of one split", "that train/ has not"]


@damage
def one_class(folder: Damaged) -> None:
    for own in sorted(folder.classes["train"])[1:]:
        shutil.rmtree(folder.places["train"] / own)
        del folder.classes["train"][own]


@damage
def no_classes(folder: Damaged) -> None:
    for own in list(folder.classes["train"]):
        shutil.rmtree(folder.places["train"] / own)
        del folder.classes["train"][own]


@damage
def nothing_of_a_class_can_be_read(folder: Damaged) -> None:
    role, own, _ = folder.anywhere()
    for one in folder.classes[role][own]:
        one.path.write_bytes(b"no image")
        one.pixels, one.bad = None, "no image of a format that is read, by its 8 bytes"


@damage
def two_spellings(folder: Damaged) -> bool | None:
    if folder.root in folder.places.values():
        return False
    for name in ("val", "valid", "validation"):
        (folder.root / name / "cat").mkdir(parents=True, exist_ok=True)
    folder.refusals.append("which are the same split; leave one of them there")
    return None


@damage
def folder_of_mac(folder: Damaged) -> None:
    place = folder.places["train"] / "__MACOSX"
    place.mkdir(exist_ok=True)
    (place / "._1.png").write_bytes(b"x")
    folder.refusals.append(f"{place} has no images")


@damage
def empty_class(folder: Damaged) -> bool | None:
    role = folder.chance.choice(sorted(folder.classes))
    name = f"empty {folder.number()}"
    (folder.places[role] / name).mkdir()
    folder.classes[role][name] = []
    return None


@damage
def class_of_few_images(folder: Damaged) -> None:
    folder.fill("train", f"few {folder.number()}", folder.chance.choice((1, 2)))


@damage
def unknown_class(folder: Damaged) -> bool | None:
    if others := sorted(set(folder.classes) - {"train"}):
        folder.fill(folder.chance.choice(others), f"unknown {folder.number()}", 2)
    return bool(others)


def in_place_of(folder: Damaged, path: Path) -> str:
    """Something that is no folder, in the place of one; what it is."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
    what = folder.chance.choice(("a file", "a broken link to ", "a pipe or a device", "a broken link to itself"))
    if what == "a file":
        path.write_bytes(b"PK")
    elif what == "a pipe or a device":
        os.mkfifo(path)
    else:
        path.symlink_to("nowhere" if what == "a broken link to " else path.name)
    return what.removesuffix("itself")


@damage
def split_is_no_folder(folder: Damaged) -> bool | None:
    if folder.root in folder.places.values():
        return False
    role = folder.chance.choice(("train", "val", "test"))
    path = folder.places.get(role, folder.root / role)
    folder.refusals.append(f"{path} is {in_place_of(folder, path)}")
    return None


@damage
def no_train(folder: Damaged) -> bool | None:
    if folder.root in folder.places.values():
        return False
    folder.places["train"].rename(folder.root / "dev")
    if len(folder.places) > 1:
        folder.refusals.append(f"data.root '{folder.root}' has no folder train/; it must hold train/<class>/<image>")
    else:
        folder.refusals = ["has 1 class folder, 'dev'; at least 2 are needed", "is a broken link", "class folder"]
    return None


@damage
def root_is_no_folder(folder: Damaged) -> None:
    folder.refusals = [f"data.root '{folder.root}' is {in_place_of(folder, folder.root)}"]


@damage
def root_is_not_there(folder: Damaged) -> None:
    folder.root = folder.root / "not" / "there"
    folder.refusals = [f"data.root '{folder.root}' does not exist"]


@damage
def root_is_empty(folder: Damaged) -> None:
    folder.root = folder.root.parent / f"empty {folder.number()}"
    folder.root.mkdir()
    folder.refusals = ["and it holds neither folders nor images"]


@damage
def may_not_be_read(folder: Damaged) -> None:
    role, own, place = folder.anywhere()
    path = place / f"secret {folder.number()}.png"
    folder.add(role, own, path, picture(folder.chance)[0], bad="Permission denied")
    path.chmod(0)


@damage
def may_not_be_listed(folder: Damaged) -> None:
    path = folder.chance.choice([*folder.places.values(), folder.root, folder.anywhere()[2]])
    path.chmod(folder.chance.choice((0, 0o100, 0o200)))
    folder.refusals = ["Permission denied"]


FIRST = ("class_is_missing", "class_is_a_file", "one_class", "no_classes", "nothing_of_a_class_can_be_read")
LAST = (
    *("split_is_no_folder", "no_train", "root_is_no_folder", "root_is_not_there", "root_is_empty", "may_not_be_listed"),
)


def make(directory: Path, seed: int) -> Damaged:
    """A folder in `directory` with one to four damages; seeds take all of them in turn for the first."""
    chance = random.Random(seed)
    folder = Damaged(directory / "images", chance)
    roles = chance.choice((("train",), ("train", "test"), ("train", "val"), ("train", "val", "test")))
    flat = roles == ("train",) and chance.random() < 0.5
    spelling = {"train": ("train", "Train"), "val": ("val", "valid", "validation"), "test": ("test", "TEST")}
    for role in roles:
        folder.places[role] = folder.root if flat else folder.root / chance.choice(spelling[role])
        folder.classes[role] = {}
        for name in ("cat", "dog", "emu")[: chance.choice((2, 3))] if role == "train" else folder.classes["train"]:
            folder.fill(role, name, 6 if role == "train" else 3)
    names = list(DAMAGES)
    chosen = [names[seed % len(names)], *chance.choices(names, k=chance.randrange(4))]
    for name in sorted(chosen, key=lambda name: (name in LAST, name not in FIRST)):
        again = name in FIRST and folder.damages  # two of these would undo what the other says of the folder
        if again or (name not in LAST and not any(folder.classes.values())):
            continue
        if DAMAGES[name](folder) is not False:
            folder.damages.append(name)
            if name in LAST:
                break
    return folder
