"""Folders with damages that chance chooses: each is read right or refused with one message, `skip_bad` both ways."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from damaged_files import SIDE, Damaged, Picture
from damaged_folders import make
from torch import Tensor

from scalesearch.data import Data, DataSpec, load
from scalesearch.text import plural, shown

SEEDS = 300
BY_DEFAULT = 60  # at least one of each damage
CUT = 4  # validation images, where they are cut from the training images


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("SCALESEARCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def spec_of(folder: Damaged, skip_bad: bool) -> DataSpec:
    """Every image that is there is used: of validation images of the folder's own all."""
    num_val = 1000 if "val" in folder.places else CUT
    return DataSpec("folder", None, num_val, root=str(folder.root), resolution=SIDE, skip_bad=skip_bad)


@contextmanager
def permissions_hold() -> Iterator[None]:
    """Root may read what nobody may: without its capabilities this thread, and those that it starts, may not."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # of version 3, for this thread
    before = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    assert libc.capget(header, before) == 0
    without = (ctypes.c_uint32 * 6)(*before)
    without[0] = without[3] = 0
    assert libc.capset(header, without) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0


# --- what must become of a folder


def pictures(folder: Damaged, role: str) -> list[Picture]:
    return [one for own in folder.classes[role].values() for one in own]


def bad_ones(folder: Damaged) -> list[Picture]:
    return [one for role in folder.classes for one in pictures(folder, role) if one.bad is not None]


def must_be_refused(folder: Damaged, skip_bad: bool) -> list[str]:
    """Words, one of which is in the message; [] where the folder can be read."""
    words = list(folder.refusals)
    train = folder.classes["train"]
    if len(train) < 2:
        words += [
            "at least 2 are needed",
            f"{shown(folder.places['train'])} has no class folders",
            "has no folder train/",
        ]
    words += [f"{shown(folder.places['train'] / name)} has no images" for name, own in train.items() if not own]
    for role, classes in folder.classes.items():
        place = shown(folder.places[role])
        words += [f"{place} has the class '{shown(name)}' that train/ has not" for name in classes if name not in train]
        if not any(classes.values()):
            words.append(f"{place} has no images in class folders")
        usable = {name: [one for one in own if one.bad is None] if skip_bad else own for name, own in classes.items()}
        if not any(usable.values()):
            words.append(f"no image of {place} can be read")
        if role == "train":
            words += [
                f"no training image of the class '{shown(name)}' can be read" for name in train if not usable[name]
            ]
        elif sum(map(bool, usable.values())) < 2:
            words.append(
                f"the {'test' if role == 'test' else 'validation'} images ({sum(map(len, usable.values()))}) are of"
            )
    if not skip_bad and (bad := bad_ones(folder)):
        every = sum(len(pictures(folder, role)) for role in folder.classes)
        words.append(f"{len(bad)} of {plural(every, 'image')} cannot be read:")
    return words


def may_be_refused(folder: Damaged) -> list[str]:
    """Words on splits that are cut from few training images."""
    if {"val", "test"} <= set(folder.places):
        return []
    numbers = [sum(one.bad is None for one in own) for own in folder.classes["train"].values()]
    few = sum(numbers) < 12 or sum(number >= 4 for number in numbers) < 2
    return ["with fewer than 2 nothing can be", "leaves none of the"] if few else []


def assert_message(message: str, folder: Damaged, skip_bad: bool, cache: Path) -> None:
    assert_printable(message)
    expected = must_be_refused(folder, skip_bad) or may_be_refused(folder)
    assert any(words in message for words in expected), f"{message}\nnone of {expected}"
    if "cannot be read:" in message or "can be read:" in message:
        assert_all_named(message, folder, cache)


def assert_printable(words: str) -> None:
    assert words.strip()
    assert all(one.isprintable() or one == "\n" for one in words), ascii(words)
    words.encode()


def assert_all_named(words: str, folder: Damaged, cache: Path) -> None:
    """Each image that cannot be read, with its reason: in the words or, of many, in the file that they name."""
    lines = words.splitlines()
    if any("others; all of them are listed in" in line for line in lines):
        lines = (cache / "folder" / "unreadable.txt").read_text().splitlines()
    for one in bad_ones(folder):
        found = [line.strip() for line in lines if line.strip().startswith(f"{shown(one.path)}: ")]
        assert len(found) == 1, (one, words)
        reason = found[0].removeprefix(f"{shown(one.path)}: ")
        assert len(reason) > 5, found
        assert (one.bad or "") in reason, (one, found)


# --- what was read


def assert_read(data: Data, said: list[str], folder: Damaged, skip_bad: bool, cache: Path) -> None:
    """The labels and pixels of every image, and all that was left out."""
    expected = must_be_refused(folder, skip_bad)
    assert not expected, f"read, and should have been refused: {expected}"
    assert set(data.description.classes) == set(folder.classes["train"])
    got = {"train": content(data.train_images, data.train_labels, data)}
    got["val"], got["test"] = content(data.val_images, data.val_labels, data), content(*data.test(), data)
    for role in ("val", "test"):
        if role not in folder.places:  # cut from the training images
            got["train"] += got.pop(role)
    assert set(got) == set(folder.places)
    for role, images in got.items():
        for name, own in folder.classes[role].items():
            good = [one for one in own if one.bad is None]
            here = Counter({pixels: number for (of, pixels), number in images.items() if of == name})
            assert here.total() == len(good), (role, name)
            missing = Counter(one.pixels for one in good if one.pixels is not None) - here
            assert not missing, [one.path for one in good if one.pixels in missing]
    for line in said:
        assert_printable(line)
    assert_said(said, folder)
    if bad := bad_ones(folder):
        line = next(line for line in said if "cannot be read and are left out (data.skip_bad=true)" in line)
        assert line.startswith(f"{len(bad)} of ")
        assert_all_named(line, folder, cache)


def content(images: Tensor, labels: Tensor, data: Data) -> Counter[tuple[str, bytes]]:
    """How often each (class, pixels) is there."""
    pixels = [image.permute(1, 2, 0).contiguous().numpy().tobytes() for image in images]
    return Counter(zip([data.description.classes[i] for i in labels.tolist()], pixels, strict=True))


def assert_said(said: list[str], folder: Damaged) -> None:
    for words in folder.notes:
        assert any(words in line for line in said), (words, said)
    lines = [line for line in said if re.search(r": \d+ left out: ", line)]
    for place, reasons in folder.left_out.items():
        (line,) = [one for one in lines if one.startswith(f"{shown(place)}: {reasons.total()} left out: ")]
        for reason, number in reasons.items():
            assert f"{number} {reason} (such as " in line, (number, reason, line)
    assert len(lines) == len(folder.left_out), said


# --- the tests


def outcome(spec: DataSpec) -> tuple[Data | None, list[str], str]:
    """(data, all that was said, the refusal)."""
    said: list[str] = []
    try:
        with permissions_hold():
            return load(spec, log=said.append), said, ""
    except ValueError as refusal:
        if type(refusal) is not ValueError:  # such as one of Unicode or of JSON, which speaks of Python
            raise
        return None, said, str(refusal)
    except PermissionError as refusal:
        return None, said, str(refusal)


def read_both_ways(folder: Damaged, cache: Path) -> None:
    for skip_bad in (False, True):
        data, said, refusal = outcome(spec_of(folder, skip_bad))
        if data is None:
            assert_message(refusal, folder, skip_bad, cache)
        else:
            assert_read(data, said, folder, skip_bad, cache)
        again, _, the_same = outcome(spec_of(folder, skip_bad))  # with what is known of the images from before
        assert (again and again.fingerprint, the_same) == (data and data.fingerprint, refusal)


@pytest.mark.parametrize(
    "seed", [pytest.param(i, marks=[] if i < BY_DEFAULT else pytest.mark.slow) for i in range(SEEDS)]
)
@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow other names and links")
def test_a_damaged_folder_is_read_right_or_refused_with_one_message(
    seed: int, tmp_path: Path, cache: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = make(tmp_path, seed)
    capfd.readouterr()  # what Pillow says to the generator
    caplog.clear()
    try:
        read_both_ways(folder, cache)
    except BaseException as failure:
        failure.add_note(f"damages: {', '.join(folder.damages)}")
        raise
    assert capfd.readouterr() == ("", "")  # all that there is to say goes to `log`
    assert not caplog.records
