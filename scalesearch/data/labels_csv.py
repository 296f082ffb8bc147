"""Images with several labels: `root`/train/labels.csv says which, and val/ and test/ may have one of their own.

    file,labels
    a/one.png,cat;indoors
    two.png,

Files are relative to the folder of the table. An image without labels has none of them.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from scalesearch.data.layout import ROLES, Layout, alike, find_splits
from scalesearch.data.pixels import SUFFIXES
from scalesearch.data.walk import kind
from scalesearch.text import listed, near, plural, shown

TABLE = "labels.csv"
Rows = list[tuple[Path, tuple[str, ...]]]


def read_labels(root: Path, roles: Mapping[str, Sequence[str]] = ROLES) -> Layout | None:
    """The images that tables of labels name; None where the folder of training images has no table.

    Each image's `label` is the rarest of its own, and their number where it has none: what keeps its share in a cut.
    Raises: ValueError: a table is not what it should be; it names the file, the line and what would be right.
    """
    folders, notes = find_splits(root, roles)
    if folders["train"] == root or not (folders["train"] / TABLE).is_file():
        return None
    tables = {}
    for role, folder in folders.items():
        if kind(folder / TABLE) == "nothing":
            raise ValueError(
                f"{shown(folder)} has no {TABLE}, and {shown(folders['train'].name)}/ has one; write one, or remove "
                "the folder: it is then no split"
            )
        tables[role] = _read(folder / TABLE)
        if left := _beside(folder, tables[role]):
            notes.append(f"{shown(folder)}: {plural(left, 'image')} left out that {TABLE} does not name")
    numbers = Counter(label for _, labels in tables["train"] for label in labels)
    names = sorted(numbers)
    if len(names) < 2:
        raise ValueError(
            f"{shown(folders['train'] / TABLE)} has {plural(len(names), 'label')}; at least 2 are needed. For one "
            "label an image class folders are the form: train/<class>/<image>"
        )
    _refuse_joined(folders["train"] / TABLE, numbers)
    notes += alike(names, "labels")
    of_name = {name: index for index, name in enumerate(names)}
    files, labels_of = {}, {}
    for role, rows in tables.items():
        for path, labels in rows:
            if unknown := [label for label in labels if label not in of_name]:
                raise ValueError(
                    f"{shown(folders[role] / TABLE)} has the label {unknown[0]!r} that no training image has"
                    f"{near(unknown[0], names)}"
                )
            labels_of[path] = tuple(of_name[label] for label in labels)
        files[role] = [
            (path, of_name[min(labels, key=lambda name: (numbers[name], name))] if labels else len(names))
            for path, labels in rows
        ]
    return Layout(tuple(names), files, folders, tuple(notes), labels_of)


def _read(table: Path) -> Rows:
    """(file, labels) of each line, files by name."""
    rows: dict[Path, tuple[str, ...]] = {}
    with table.open(newline="", encoding="utf-8-sig") as file:
        try:
            lines = list(csv.reader(file))
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{shown(table)} is no CSV in UTF-8 ({error}); it must be: file,labels") from None
    if not lines or [one.strip() for one in lines[0]] != ["file", "labels"]:
        first = ",".join(lines[0]) if lines else ""
        raise ValueError(f"{shown(table)} begins with {shown(first)!r}; its first line must be: file,labels")
    for number, cells in enumerate(lines[1:], 2):
        if not cells:
            continue
        where = f"{shown(table)}, line {number}"
        if len(cells) != 2:
            raise ValueError(
                f"{where} has {plural(len(cells), 'cell')}; it must have two, such as one.png,cat;indoors: labels are "
                "divided by semicolons"
            )
        given = PurePosixPath(cells[0].strip())
        if given.is_absolute() or ".." in given.parts or given.suffix.lower() not in SUFFIXES:
            raise ValueError(f"{where}: {shown(given)!r} is no image in {shown(table.parent.name)}/")
        path = table.parent / given
        if not path.is_file():
            raise ValueError(f"{where}: there is no file {shown(path)}")
        if path in rows:
            raise ValueError(f"{where}: {shown(given)!r} is there a second time; give all its labels in one line")
        rows[path] = tuple(dict.fromkeys(label for part in cells[1].split(";") if (label := part.strip())))
    if not rows:
        raise ValueError(f"{shown(table)} names no image; it must have a line for each, such as one.png,cat;indoors")
    return sorted(rows.items())


def _refuse_joined(table: Path, numbers: Mapping[str, int]) -> None:
    """Raises: ValueError where a label is others with something else than a semicolon between them."""
    for name in sorted(numbers):
        for divider in (",", "|", "/", "+", "&", "\t", " "):
            parts = [part.strip() for part in name.split(divider)]
            if len(parts) > 1 and all(part in numbers for part in parts):
                others = listed([f"'{shown(part)}'" for part in parts])
                raise ValueError(
                    f"{shown(table)} has the label '{shown(name)}' beside {others}: labels are divided by semicolons, "
                    f"such as {shown(';'.join(parts))}; if it is one label, rename it"
                )


def _beside(folder: Path, rows: Rows) -> int:
    """How many images of the folder the table does not name."""
    named = {path for path, _ in rows}
    return sum(path.suffix.lower() in SUFFIXES and path not in named for path in folder.rglob("*"))
