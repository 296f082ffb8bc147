"""What lies in the folders of classes, at any depth: each real folder is read once, whatever links lead to it.

Links are followed last, so that what has a path of its own is known by it. A link to the images of another class or
split is refused: they would have a wrong label, or be learnt and measured on.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from scalesearch.data.pixels import SUFFIXES
from scalesearch.text import shown

Identity = tuple[int, int]  # of a folder: device and inode


@dataclass
class Found:
    """Of one class: its images, those of them that lie in folders of its own, and what is left out by its reason."""

    images: list[Path] = field(default_factory=list)
    nested: list[Path] = field(default_factory=list)
    left_out: dict[str, list[Path]] = field(default_factory=dict)

    def leave_out(self, reason: str, path: Path) -> None:
        self.left_out.setdefault(reason, []).append(path)


def kind(path: Path) -> str:
    """What a path is, in words: "a folder", "a file", "a broken link to 'there'", "a pipe or a device", "nothing".

    Raises: OSError where it cannot be looked at.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # of a path with a null byte the latter
        if isinstance(error, OSError) and path.is_symlink():  # or one that leads to itself
            return f"a broken link to '{shown(path.readlink())}'"
        if isinstance(error, FileNotFoundError | NotADirectoryError | ValueError):
            return "nothing"
        raise
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a file" if stat.S_ISREG(mode) else "a pipe or a device"


def walk(classes: Sequence[Path]) -> dict[Path, Found]:
    """What lies in each of these folders, which are those of all classes in all splits.

    Raises: ValueError where a folder would be of two of them, or a link leads to a folder above them. OSError where
        a folder cannot be listed.
    """
    return _Walk(classes).found


class _Step(NamedTuple):
    """A folder or a file: of which class, and by which link it was come to; None: by none."""

    path: Path
    of: Path
    link: Path | None


class _Walk:
    def __init__(self, classes: Sequence[Path]) -> None:
        self.found = {folder: Found() for folder in classes}
        self._owner: dict[Identity, Path] = {}  # which class a folder belongs to
        self._above = {_identity(parent) for one in classes for parent in Path(os.path.realpath(one)).parents}
        self._links: list[_Step] = []  # to folders
        self._linked_images: list[_Step] = []
        steps = [_Step(one, one, one if one.is_symlink() else None) for one in classes]
        for step in steps:
            self._is_new(step)
        for step in steps:
            self._read(step)
        while self._links:
            links, self._links = self._links, []
            for step in links:
                self._enter(step)
        for step in self._linked_images:
            self._refuse_image_of_another(step)

    def _is_new(self, step: _Step) -> bool:
        """Whether its class has not had this folder yet. Raises: ValueError where another class has it."""
        own = _identity(step.path)
        if step.link is not None and own in self._above:
            raise ValueError(
                f"{shown(step.link)} is a link to {shown(os.path.realpath(step.path))}, a folder above its class: all "
                f"that lies there would be of the class '{shown(step.of.name)}'; remove the link"
            )
        if own not in self._owner:
            self._owner[own] = step.of
            return True
        if self._owner[own] != step.of:
            raise ValueError(_of_two(step, self._owner[own]))
        return False

    def _enter(self, step: _Step) -> None:
        if self._is_new(step):
            self._read(step)
        else:
            self.found[step.of].leave_out("linked to folders that are read already", step.path)

    def _read(self, first: _Step) -> None:
        """All below a folder of a class, but for what links in it lead to: they wait."""
        found, waiting = self.found[first.of], [first]
        while waiting:
            step = waiting.pop()
            with os.scandir(step.path) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
            if not entries and step.path != step.of:
                found.leave_out("empty folders", step.path)
            for entry in entries:
                path, linked = step.path / entry.name, entry.is_symlink()
                inner, mode = _Step(path, step.of, path if linked else step.link), _mode(entry)
                if reason := _reason(path, mode):
                    found.leave_out(reason, path)
                elif not stat.S_ISDIR(mode):
                    found.images.append(path)
                    found.nested += [path] * (step.path != step.of)
                    self._linked_images += [inner] * linked
                elif linked:
                    self._links.append(inner)
                elif self._is_new(inner):
                    waiting.append(inner)
                else:
                    found.leave_out("linked to folders that are read already", path)

    def _refuse_image_of_another(self, step: _Step) -> None:
        folder = Path(os.path.realpath(step.path)).parent
        if kind(step.path) == "a file" and (owner := self._owner.get(_identity(folder), step.of)) != step.of:
            raise ValueError(_of_two(step, owner))


def _of_two(step: _Step, other: Path) -> str:
    rule = "an image must be of one class and of one split"
    if step.link is None:
        return f"{shown(step.path)} is a folder of {shown(other)} as well; {rule}: remove one of them"
    return f"{shown(step.link)} is a link to images of {shown(other)}; {rule}: remove the link, or move the images"


def _identity(directory: Path) -> Identity:
    about = directory.stat()
    return about.st_dev, about.st_ino


def _mode(entry: os.DirEntry[str]) -> int:
    """Of what an entry is or leads to, as in `os.stat`, which is called for few; 0 for a link that leads nowhere."""
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    try:
        return entry.stat().st_mode
    except OSError:
        return 0


def _reason(path: Path, mode: int) -> str | None:
    """Why an entry is left out; None for a folder and for a file that is to be read."""
    if path.name.startswith("."):
        return "hidden"
    if stat.S_ISDIR(mode):
        return None
    if path.suffix.lower() in SUFFIXES:
        # An image by its name that is not there: whoever reads it says so. To open a pipe would wait for ever.
        return None if stat.S_ISREG(mode) or not mode else "no regular files"
    if not mode:
        return "linked to what is not there"
    return f"with the suffix {shown(path.suffix)}" if path.suffix else "without a suffix"
