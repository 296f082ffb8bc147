"""What lies in a folder of images: splits, classes, files, and all that is left out, each with its reason.

`root`/train/<class>/<image> is the form; val/ and test/ of the same form are the user's own splits. Folders in a
class belong to it. Without train/ the folders of the root are the classes.
"""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scalesearch.data.mistaken import refuse_mistaken
from scalesearch.data.pixels import SUFFIXES
from scalesearch.data.spec import SPLITS
from scalesearch.data.walk import Found, kind, walk
from scalesearch.text import listed, near, plural, shown

ROLES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_NAMED = 5  # of many that are alike, so many are named
_FORM = "train/<class>/<image>"


@dataclass(frozen=True)
class Layout:
    """files: (path, label) of the images of "train", and of "val" and "test" where they are there.

    Classes and files are in the order of their names. folders: the folder of each split. notes: sentences on what was
    found that is not the plain form, and on what was left out. labels: of images that may have several, those of each;
    None where each has one class.
    """

    classes: tuple[str, ...]
    files: Mapping[str, list[tuple[Path, int]]]
    folders: Mapping[str, Path]
    notes: tuple[str, ...]
    labels: Mapping[Path, tuple[int, ...]] | None = None


def read_layout(root: Path, roles: Mapping[str, Sequence[str]] = ROLES) -> Layout:
    """The images below `root`, by their names alone: none is opened. `roles`: what the folder of a split may be called.

    Raises: ValueError where it is none of the forms, a class has no image, a folder would be two splits or classes, or
        what should be a folder is none. OSError where a folder cannot be listed.
    """
    folders, notes = find_splits(root, roles)
    classes = _class_names(folders["train"])
    if len(classes) < 2:
        raise ValueError(_too_few(folders["train"], classes, roles))
    refuse_mistaken(folders["train"], classes, roles)
    notes += alike(classes)
    present = {role: _present(folder, classes) for role, folder in folders.items()}
    found = walk([folders[role] / name for role, names in present.items() for name in names])
    files = {}
    for role, folder in folders.items():
        own = {label: found[folder / name] for label, name in enumerate(classes) if name in present[role]}
        files[role], remarks = _images(folder, classes, own, needed=role == "train")
        notes += remarks
    return Layout(tuple(classes), files, folders, tuple(notes))


def find_splits(root: Path, roles: Mapping[str, Sequence[str]] = ROLES) -> tuple[dict[str, Path], list[str]]:
    """The folder of each split that is there, and the remarks on the root; without train/ the root is "train".

    Raises: ValueError where there are no such folders, two for one split, or a split is no folder.
    """
    if (what := kind(root)) != "a folder":
        raise ValueError(_no_root(root, what))
    entries = _visible(root)
    folders: dict[str, Path] = {}
    for role, names in roles.items():
        found = [path for path in entries if path.name.lower() in names]
        for path in found:
            if (what := kind(path)) != "a folder":
                raise ValueError(
                    f"{shown(path)} is {what}; {SPLITS[role]} images must be in a folder there, "
                    f"{shown(path.name)}/<class>/<image>: put it there, or remove what is in its place"
                )
        if len(found) > 1:
            both = listed([f"{shown(path.name)}/" for path in found])
            raise ValueError(f"data.root '{shown(root)}' has {both}, which are the same split; leave one of them there")
        if found:
            folders[role] = found[0]
    others = [path for path in entries if path not in folders.values()]
    notes = []
    if "train" not in folders:
        # A class must not have the name of a split: it is taken for one.
        classes = [path for path in others if kind(path) == "a folder"]
        if folders or not classes:
            raise ValueError(f"data.root '{shown(root)}' has no folder train/; it must hold {_FORM}{_held(root)}")
        notes.append(f"there is no train/: the {plural(len(classes), 'folder')} of {shown(root)} are the classes")
        return {"train": root}, notes
    if others:
        notes.append(_left_out_words(root, {"beside train/": others}))
    return folders, notes


def _no_root(root: Path, what: str) -> str:
    begin = f"data.root '{shown(root)}'"
    if what != "nothing":
        archives = tuple(suffix for _, suffixes, _ in shutil.get_unpack_formats() for suffix in suffixes)
        remedy = "unpack it, and give the folder" if root.name.lower().endswith(archives) else f"it must hold {_FORM}"
        return f"{begin} is {what}, not a folder; {remedy}"
    above = next((one for one in root.absolute().parents if kind(one) != "nothing"), root)
    if (what := kind(above)) != "a folder":
        return f"{begin} does not exist: {shown(above)} is {what}"
    names = [path.name for path in _visible(above) if kind(path) == "a folder"]
    missing = root.absolute().relative_to(above).parts[0]
    return f"{begin} does not exist: {shown(above)} has no {shown(missing)}{near(shown(missing), map(shown, names))}"


def _held(folder: Path) -> str:
    """Of a folder that is not of the form: what it does hold, as the end of a sentence."""
    entries = _visible(folder)
    folders = [f"{shown(path.name)}/" for path in entries if kind(path) == "a folder"]
    files = [path for path in entries if kind(path) != "a folder"]
    has = folders[:_NAMED] + [plural(len(folders) - _NAMED, "other folder")] * (len(folders) > _NAMED)
    for noun, wanted in (("image", True), ("other file", False)):
        if some := [path for path in files if (path.suffix.lower() in SUFFIXES) == wanted]:
            has.append(f"{plural(len(some), noun)} (such as {shown(some[0].name)})")
    return f", and it holds {listed(has)}" if has else ", and it holds neither folders nor images"


def _class_names(folder: Path) -> list[str]:
    """The names of the class folders of a split, sorted. Raises: ValueError where one may be lost."""
    names = []
    for path in _visible(folder):
        if (what := kind(path)) == "a folder":
            names.append(path.name)
        elif what.startswith("a broken link") and path.suffix.lower() not in SUFFIXES:
            raise ValueError(f"{shown(path)} is {what}; if it is a class, it has no images: mend the link or remove it")
    return names


def _present(folder: Path, classes: Sequence[str]) -> set[str]:
    """The classes that have a folder in a split. Raises: ValueError where there are others, or one is no folder."""
    names = _class_names(folder)
    if unknown := [name for name in names if name not in set(classes)]:
        raise ValueError(
            f"{shown(folder)} has the class '{shown(unknown[0])}' that train/ has not; train/ must have every class"
            f"{near(shown(unknown[0]), map(shown, classes)) if len(classes) < 100 else ''}"
        )
    for path in _visible(folder):
        if path.name in set(classes) - set(names):
            raise ValueError(
                f"{shown(path)} is {kind(path)}; images of the class '{shown(path.name)}' must be in a folder there"
            )
    return set(names)


def _too_few(folder: Path, classes: Sequence[str], roles: Mapping[str, Sequence[str]]) -> str:
    if not classes:
        return (
            f"{shown(folder)} has no class folders; it must hold <class>/<image> of at least 2 classes{_held(folder)}"
        )
    inner = [path for path in _visible(folder / classes[0]) if kind(path) == "a folder"]
    hint = f"; '{shown(classes[0])}' holds {len(inner)} folders: are these the classes?" if len(inner) > 1 else ""
    if any(path.name.lower() in roles["train"] for path in inner):
        hint = f"; did you mean data.root={shown(folder / classes[0])}?"
    return f"{shown(folder)} has 1 class folder, '{shown(classes[0])}'; at least 2 are needed{hint}"


def alike(classes: Sequence[str], kind: str = "classes") -> list[str]:
    """A word on classes whose names are one and the same on other systems, and to most readers."""
    same: dict[str, list[str]] = {}
    for name in classes:
        same.setdefault(" ".join(unicodedata.normalize("NFC", name).casefold().split()), []).append(f"'{shown(name)}'")
    pairs = [listed(names) for names in same.values() if len(names) > 1]
    return [f"the names of the {kind} {'; '.join(pairs[:_NAMED])} are alike: they are trained as different ones"] * (
        len(pairs) > 0
    )


def _visible(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if not path.name.startswith("."))


def _images(
    folder: Path, classes: Sequence[str], own: Mapping[int, Found], *, needed: bool
) -> tuple[list[tuple[Path, int]], list[str]]:
    """(file, label) of each image of a split, classes and files by name, and the remarks on it.

    own: what lies in the folder of each class that has one, by its label.
    """
    images: list[tuple[Path, int]] = []
    nested: list[Path] = []
    left_out: dict[str, list[Path]] = {}
    for path in folder.iterdir():
        if path.name.startswith("."):
            left_out.setdefault("hidden", []).append(path)
        elif not path.is_dir():
            left_out.setdefault("beside the class folders", []).append(path)
    for label, found in own.items():
        if not found.images and needed:
            raise ValueError(_empty(folder / classes[label], found))
        images += [(path, label) for path in sorted(found.images)]
        nested += found.nested
        for reason, paths in found.left_out.items():
            left_out.setdefault(reason, []).extend(paths)
    notes = [_left_out_words(folder, left_out)] if left_out else []
    if not images:
        remark = f"; {notes[0]}" if notes else ""
        raise ValueError(
            f"{shown(folder)} has no images in class folders{remark}; fill it, or remove it: it is then no split"
        )
    if nested:
        notes.append(
            f"{len(nested)} of the {len(images)} images of {shown(folder)} lie in sub-folders, such as "
            f"{shown(min(nested).relative_to(folder))}: their class is the folder directly in {shown(folder.name)}/"
        )
    return images, notes


def _empty(directory: Path, found: Found) -> str:
    remark = f"; it has {_reasons(directory, found.left_out)}" if found.left_out else ""
    return f"{shown(directory)} has no images ({', '.join(sorted(SUFFIXES))}){remark}; remove it or fill it"


def _left_out_words(folder: Path, left_out: Mapping[str, list[Path]]) -> str:
    number = sum(map(len, left_out.values()))
    return f"{shown(folder)}: {number} left out: {_reasons(folder, left_out)}"


def _reasons(folder: Path, left_out: Mapping[str, list[Path]]) -> str:
    """The number of each, with an example; of suffixes the most frequent."""
    ordered = sorted(left_out.items(), key=lambda item: (-len(item[1]), item[0]))
    rare = [reason for reason, _ in ordered if "suffix" in reason][_NAMED:]
    words = [
        f"{len(paths)} {reason} (such as {shown(min(paths).relative_to(folder))})"
        for reason, paths in ordered
        if reason not in rare
    ]
    if rare:
        words.append(f"{sum(len(left_out[reason]) for reason in rare)} of {len(rare)} other suffixes")
    return listed(words)
