"""What lies in a folder of images: splits, classes, files, and all that is left out, each with its reason.

`root`/train/<class>/<image> is the form; val/ and test/ of the same form are the user's own splits. Folders in a
class belong to it. Without train/ the folders of the root are the classes.
"""

from __future__ import annotations

import stat
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scalesearch.data.pixels import SUFFIXES
from scalesearch.text import listed, near, plural, printable

ROLES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_NAMED = 5  # of many that are alike, so many are named


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


def shown(name: object) -> str:
    """A path or a name as it can be printed: what no terminal shows, and no UTF-8 has, is escaped.

    >>> shown("a\\nb"), shown("caf\\u00e9"), shown("\\udcff.png")
    ('a\\\\nb', 'café', '\\\\udcff.png')
    """
    return printable(str(name).replace("\n", "\\n"))


def read_layout(root: Path, roles: Mapping[str, Sequence[str]] = ROLES) -> Layout:
    """The images below `root`, by their names alone: none is opened. `roles`: what the folder of a split may be called.

    Raises: ValueError where it is none of the forms, a class has no image, or two folders would be the same split.
        OSError where a folder cannot be listed.
    """
    folders, notes = _splits(root, roles)
    classes = sorted(path.name for path in _visible(folders["train"]) if path.is_dir())
    if len(classes) < 2:
        raise ValueError(_too_few(folders["train"], classes))
    notes += _alike(classes)
    files = {}
    for role, folder in folders.items():
        files[role], found = _images(folder, classes, needed=role == "train")
        notes += found
    return Layout(tuple(classes), files, folders, tuple(notes))


def _splits(root: Path, roles: Mapping[str, Sequence[str]]) -> tuple[dict[str, Path], list[str]]:
    """The folder of each split that is there, and what is to be said of the root."""
    if not root.is_dir():
        raise ValueError(f"data.root '{shown(root)}' has no folder train/; it must hold train/<class>/<image>")
    entries = _visible(root)
    folders: dict[str, Path] = {}
    for role, names in roles.items():
        found = sorted(path for path in entries if path.name.lower() in names and path.is_dir())
        if len(found) > 1:
            both = listed([f"{shown(path.name)}/" for path in found])
            raise ValueError(f"data.root '{shown(root)}' has {both}, which are the same split; leave one of them there")
        if found:
            folders[role] = found[0]
    others = [path for path in entries if path not in folders.values()]
    notes = []
    if "train" not in folders:
        classes = [path for path in others if path.is_dir()]
        if folders or not classes:
            raise ValueError(_no_train(root, others, folders))
        # Its name must not be one of a split's: a class of that name would have been taken for one.
        notes.append(f"there is no train/: the {plural(len(classes), 'folder')} of {shown(root)} are the classes")
        return {"train": root}, notes
    if others:
        notes.append(_left_out_words(root, {"beside train/": others}))
    return folders, notes


def _no_train(root: Path, others: Sequence[Path], folders: Mapping[str, Path]) -> str:
    images = sum(path.suffix.lower() in SUFFIXES for path in others)
    found = [f"{shown(path.name)}/" for path in (*folders.values(), *(one for one in others if one.is_dir()))][:_NAMED]
    has = [*found, *([plural(images, "image")] if images else [])]
    return (
        f"data.root '{shown(root)}' has no folder train/; it must hold train/<class>/<image>"
        f"{f', and it holds {listed(has)}' if has else ', and it holds neither folders nor images'}"
    )


def _too_few(folder: Path, classes: Sequence[str]) -> str:
    inner = [path.name for path in _visible(folder / classes[0]) if path.is_dir()] if classes else []
    hint = f"; '{shown(classes[0])}' holds {len(inner)} folders: are these the classes?" if len(inner) > 1 else ""
    return f"{shown(folder)} has {len(classes)} class folders; at least 2 are needed{hint}"


def _alike(classes: Sequence[str]) -> list[str]:
    """A word on classes whose names are one and the same on other systems, and to most readers."""
    same: dict[str, list[str]] = {}
    for name in classes:
        same.setdefault(unicodedata.normalize("NFC", name).casefold(), []).append(name)
    pairs = [f"{listed([repr(shown(name)) for name in names])}" for names in same.values() if len(names) > 1]
    return [f"the names of the classes {'; '.join(pairs[:_NAMED])} are alike: they are trained as different ones"] * (
        len(pairs) > 0
    )


def _visible(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if not path.name.startswith(".")]


@dataclass
class _Found:
    """Of one class: its images, how many lie in folders of its own, and what is left out by its reason."""

    images: list[Path] = field(default_factory=list)
    nested: list[Path] = field(default_factory=list)
    left_out: dict[str, list[Path]] = field(default_factory=dict)


def _images(folder: Path, classes: Sequence[str], *, needed: bool) -> tuple[list[tuple[Path, int]], list[str]]:
    """(file, label) of each image of a split, classes and files by name, and what is to be said of it."""
    entries = list(folder.iterdir())
    unknown = sorted(
        path.name for path in entries if path.is_dir() and path.name not in classes and not path.name.startswith(".")
    )
    if unknown:
        raise ValueError(
            f"{shown(folder)} has the class '{shown(unknown[0])}' that train/ has not; train/ must have every class"
            f"{near(unknown[0], classes) if len(classes) < 100 else ''}"
        )
    images: list[tuple[Path, int]] = []
    nested: list[Path] = []
    left_out: dict[str, list[Path]] = {}
    for path in entries:
        if path.name.startswith("."):
            left_out.setdefault("hidden", []).append(path)
        elif not path.is_dir():
            left_out.setdefault("beside the class folders", []).append(path)
    for label, name in enumerate(classes):
        found = _walk(folder / name) if (folder / name).is_dir() else _Found()
        if not found.images and needed:
            raise ValueError(_empty(folder / name, found))
        images += [(path, label) for path in sorted(found.images)]
        nested += found.nested
        for reason, paths in found.left_out.items():
            left_out.setdefault(reason, []).extend(paths)
    if not images:
        raise ValueError(f"{shown(folder)} has no images in class folders; fill it, or remove it: it is then no split")
    notes = [_left_out_words(folder, left_out)] if left_out else []
    if nested:
        notes.append(
            f"{len(nested)} of the {len(images)} images of {shown(folder)} lie in sub-folders, such as "
            f"{shown(min(nested).relative_to(folder))}: their class is the folder directly in {shown(folder.name)}/"
        )
    return images, notes


def _walk(directory: Path) -> _Found:
    """All below a class folder; links are followed, but not back to a folder that they lie in."""
    found = _Found()
    waiting: list[tuple[Path, tuple[tuple[int, int], ...]]] = [(directory, (_identity(directory),))]
    while waiting:
        folder, above = waiting.pop()
        for path in folder.iterdir():
            reason = _reason(path)
            if reason is None and path.is_dir():
                if (own := _identity(path)) in above:
                    reason = "linked back to a folder above"
                else:
                    waiting.append((path, (*above, own)))
                    continue
            if reason is not None:
                found.left_out.setdefault(reason, []).append(path)
                continue
            found.images.append(path)
            if folder != directory:
                found.nested.append(path)
    return found


def _identity(directory: Path) -> tuple[int, int]:
    about = directory.stat()
    return about.st_dev, about.st_ino


def _reason(path: Path) -> str | None:
    """Why an entry is left out; None for a folder and for a file that is to be read."""
    if path.name.startswith("."):
        return "hidden"
    try:
        kind = path.stat().st_mode
    except OSError:  # a broken link, say: by its name it is an image, and whoever reads it says that it is not there
        kind = stat.S_IFREG
    if stat.S_ISDIR(kind):
        return None
    if path.suffix.lower() not in SUFFIXES:
        return f"with the suffix {shown(path.suffix)}" if path.suffix else "without a suffix"
    return None if stat.S_ISREG(kind) else "no regular files"  # to open a pipe would wait for ever


def _empty(directory: Path, found: _Found) -> str:
    held = f"; it holds {_reasons(directory, found.left_out)}" if found.left_out else ""
    return f"{shown(directory)} has no images ({', '.join(sorted(SUFFIXES))}){held}; remove it or fill it"


def _left_out_words(folder: Path, left_out: Mapping[str, list[Path]]) -> str:
    number = sum(map(len, left_out.values()))
    return f"{shown(folder)}: {number} left out: {_reasons(folder, left_out)}"


def _reasons(folder: Path, left_out: Mapping[str, list[Path]]) -> str:
    def each() -> Iterator[str]:
        ordered = sorted(left_out.items(), key=lambda item: (-len(item[1]), item[0]))
        for reason, paths in ordered[:_NAMED]:
            yield f"{len(paths)} {reason} (such as {shown(min(paths).relative_to(folder))})"
        if more := sum(len(paths) for _, paths in ordered[_NAMED:]):
            yield f"{more} of {len(ordered) - _NAMED} other suffixes"

    return listed(list(each()))
