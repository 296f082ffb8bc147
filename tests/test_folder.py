"""Class folders: which images are for what, which are checked and left out, what is said of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Ended, case, study_settings
from folders import draw, make_folder, planted
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scalesearch.data import Data, DataSpec, describe, duplicates, inspection, load
from scalesearch.data.datasets.folder import _decode
from scalesearch.data.pixels import Picture, read
from scalesearch.data.splits import class_notes, cut_end, stratified_order
from scalesearch.study.settings import decisive_settings
from scalesearch.workspace import DONE, NOTHING_LEARNT


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("SCALESEARCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that checks decode."""
    found: list[Path] = []

    def counted(path: Path, side: int) -> Picture:
        found.append(path)
        return read(path, side)

    monkeypatch.setattr(inspection, "read", counted)
    return found


def quiet(line: str) -> None:
    pass


def spec_of(root: Path, **changes: object) -> DataSpec:
    return replace(DataSpec("folder", None, 4, root=str(root), resolution=8), **changes)  # type: ignore[arg-type]


def loaded(spec: DataSpec) -> tuple[Data, str]:
    """The data, and all that was said of them."""
    lines: list[str] = []
    return load(spec, log=lines.append), "\n".join(lines)


def rows(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


# --- images


def test_a_folder_becomes_rgb_tensors_of_the_resolution_asked_for(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    Image.new("L", (5, 9), 77).save(root / "train" / "cat" / "10.png")
    spec = DataSpec("folder", num_train=15, num_val=6, root=str(root), resolution=8)
    data = load(spec, log=quiet)
    assert data.description == describe(spec)
    assert data.description.classes == ("cat", "dog")
    assert data.description.num_test == 6
    assert data.train_images.shape == (15, 3, 8, 8)
    brightness = data.train_images.float().mean(dim=(1, 2, 3))
    assert torch.equal(brightness > 110, data.train_labels == 1)  # images and labels still belong together
    assert data.test()[1].tolist() == [0, 0, 0, 1, 1, 1]
    assert [sum(data.class_counts(split)) for split in ("train", "val", "test")] == [15, 6, 6]
    assert data.class_counts("test") == [3, 3]


def test_the_shorter_side_is_resized_and_the_centre_kept(tmp_path: Path) -> None:
    pixels = np.zeros((4, 12, 3), np.uint8)
    pixels[:, 4:8] = 200
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    assert _decode([tmp_path / "wide.png"], 4, quiet).eq(200).all()


def test_what_is_shown_otherwise_than_it_is_stored_is_said(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    Image.new("RGBA", (5, 9), (200, 0, 0, 9)).save(root / "test" / "cat" / "clear.png")
    frames = [Image.new("L", (8, 8), level) for level in (10, 200)]
    frames[0].save(root / "train" / "dog" / "moving.gif", save_all=True, append_images=frames[1:])
    _, words = loaded(spec_of(root))
    assert (
        f"1 of 28 images have transparent parts, which are shown in white, such as {root}/test/cat/clear.png" in words
    )
    assert f"1 of 28 images have several frames or pages, of which the first is used, such as {root}" in words


# --- splits


def test_a_folder_without_a_test_split_gives_a_fifth_of_its_images(tmp_path: Path) -> None:
    spec = spec_of(make_folder(tmp_path, held_out=None))
    assert (describe(spec).num_train, describe(spec).num_test) == (12, 4)
    data, words = loaded(spec)
    images, labels = data.test()
    assert labels.bincount().tolist() == [2, 2]
    assert len(rows(images) | rows(data.train_images) | rows(data.val_images)) == 20
    assert "validation: 4 images cut from train/ (data.num_val); test: 4 images cut from train/, a fifth" in words


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val", "VALIDATION"])
def test_a_validation_split_of_the_user_s_own_is_what_networks_are_chosen_by(name: str, tmp_path: Path) -> None:
    root = make_folder(tmp_path, held_out=(name, "test"))
    own = rows(_decode(sorted((root / name).rglob("*.*g")), 8, quiet))
    data, words = loaded(spec_of(root, num_val=1000))
    assert rows(data.val_images) == own
    assert (data.description.num_train, data.description.num_val, data.description.num_test) == (20, 6, 6)
    assert f"validation: the 6 images of {name}/; test: the 6 images of test/" in words
    fewer, words = loaded(spec_of(root, num_val=4))
    assert rows(fewer.val_images) < own
    assert rows(fewer.train_images) == rows(data.train_images)
    assert f"validation: 4 of the 6 (data.num_val) images of {name}/" in words


def test_with_a_validation_split_and_no_test_split_a_fifth_of_train_is_the_test_split(tmp_path: Path) -> None:
    root = make_folder(tmp_path, held_out="validation")
    data, words = loaded(spec_of(root))
    assert (data.description.num_train, data.description.num_val, data.description.num_test) == (16, 4, 4)
    assert rows(data.test()[0]) <= rows(_decode(sorted((root / "train").rglob("*.*g")), 8, quiet))
    assert "test: 4 images cut from train/, a fifth, as there is no folder for it" in words


def test_of_imagenet_the_test_split_is_val_and_test_has_no_labels(tmp_path: Path) -> None:
    classes = [f"n{i:04d}" for i in range(1000)]
    root = make_folder(tmp_path, held_out="val", classes=classes, train=3, others=1)
    planted(root, {"test/1.png": 0})
    spec = spec_of(root, name="imagenet", num_val=1000)
    known = describe(spec)
    assert (known.num_train, known.num_val, known.num_test) == (2000, 1000, 1000)
    assert any("test: the 1000 images of val/" in note for note in known.notes)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=80), st.integers(0, 40), st.integers(1, 4))
def test_every_class_that_can_be_is_in_what_is_cut_off(given_labels: list[int], num: int, least: int) -> None:
    labels = np.array(given_labels)
    order = stratified_order(labels, 1)
    before, end = cut_end(order, labels, num, least=least)
    num = min(num, len(labels))
    assert len(end) == num
    assert sorted([*before, *end]) == list(range(len(labels)))
    plain = order[: len(order) - num], order[len(order) - num :]
    large = {one for one in given_labels if given_labels.count(one) >= max(least, 2)}
    if all({*labels[side]} >= large for side in plain):
        assert np.array_equal(before, plain[0])  # nothing changes where nothing is missing
        assert np.array_equal(end, plain[1])
    for side in (before, end):
        if len(side) >= len(set(given_labels)):
            assert {*labels[side]} >= large


def test_a_small_class_is_in_every_split_that_it_suffices_for_and_else_it_is_named(tmp_path: Path) -> None:
    root = make_folder(tmp_path, held_out=None, train=40)
    for i in range(3):
        draw(root / "train" / "emu" / f"{i}.png", 2, i)
    data, words = loaded(spec_of(root, num_val=6))
    assert [data.class_counts(split)[2] for split in ("train", "val", "test")] == [1, 1, 1]
    assert "classes ha" not in words
    (root / "train" / "emu" / "0.png").unlink()
    data, words = loaded(spec_of(root, num_val=6))
    assert "1 of the 3 classes has no test image, so its accuracy is not measured: 'emu' (2 in all)" in words
    (root / "train" / "emu" / "1.png").unlink()
    _, words = loaded(spec_of(root, num_val=6))
    assert "1 of the 3 classes has no validation image" in words


def test_a_split_of_one_class_is_refused_as_nothing_can_be_measured(tmp_path: Path) -> None:
    root = make_folder(tmp_path, held_out=("val", "test"))
    for split, remedy in (("test", "Add images of these"), ("val", "Raise data.num_val")):
        kept = shutil.move(root / split / "dog", tmp_path / "kept")
        with case(split), pytest.raises(ValueError, match=rf"are of 1 of the 2 classes.* none of 'dog'.*{remedy}"):
            describe(spec_of(root))
        shutil.move(kept, root / split / "dog")
    with pytest.raises(ValueError, match=r"the training images \(1\) are of 1 of the 2 classes.*Raise data\.num_train"):
        describe(spec_of(root, num_train=1))
    with pytest.raises(ValueError, match=r"'c5' \(1 in all\) and 3 others"):
        class_notes([f"c{i}" for i in range(9)], {"training": np.zeros(5, int), "test": np.arange(9)})


# --- what cannot be read


def damage(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def test_all_images_that_cannot_be_read_are_named_before_anything_is_trained(tmp_path: Path) -> None:
    root = make_folder(tmp_path, held_out=("val", "test"))
    bad = [damage(root / split / "cat" / "01.png") for split in ("train", "val", "test")]
    (root / "test" / "dog" / "02.jpg").write_bytes(b"")
    (root / "test" / "dog" / "00.jpg").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match=r"5 of 32 images cannot be read:\n(.*\n)*.*data\.skip_bad=true") as refusal:
        load(spec_of(root, num_val=6), log=quiet)
    for path in bad:
        assert f"{path}: it is damaged or not supported: image file is truncated" in str(refusal.value)
    assert f"{root}/test/dog/02.jpg: it is empty" in str(refusal.value)
    assert f"{root}/test/dog/00.jpg: no image of a format that is read, by its 22 bytes" in str(refusal.value)
    spec = spec_of(root, num_val=6, skip_bad=True)
    data, words = loaded(spec)
    assert data.description == describe(spec)
    assert (data.description.num_train, data.description.num_val, data.description.num_test) == (19, 5, 3)
    assert "5 of 32 images cannot be read and are left out (data.skip_bad=true):" in words
    assert all(str(path) in words for path in bad)
    assert len(data.test()[0]) == 3


def test_of_very_many_bad_images_a_file_has_all(tmp_path: Path, cache: Path) -> None:
    root = make_folder(tmp_path)
    planted(root, {f"train/cat/bad\n{i:03d}.png": b"no image" for i in range(30)})
    with pytest.raises(ValueError, match="30 of 56 images cannot be read") as refusal:
        load(spec_of(root), log=quiet)
    lines = str(refusal.value).splitlines()
    assert len(lines) == 1 + 20 + 1 + 1
    assert "and 10 others; all of them are listed in" in lines[-2]
    listed = (cache / "folder" / "unreadable.txt").read_text().splitlines()
    assert len(listed) == 30
    assert "bad\\n029.png" in listed[-1]


def test_a_class_or_a_split_of_which_nothing_can_be_read_is_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path, train=4)
    for path in (root / "train" / "dog").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match="no training image of the class 'dog' can be read"):
        describe(spec_of(root, skip_bad=True))


def test_images_are_checked_once_and_again_when_they_have_changed(tmp_path: Path, decoded: list[Path]) -> None:
    root = make_folder(tmp_path)
    load(spec_of(root), log=quiet)
    assert len(decoded) == 26
    load(spec_of(root, num_val=6), log=quiet)
    assert len(decoded) == 26
    changed = draw(root / "test" / "dog" / "01.png", 1, 77)
    load(spec_of(root), log=quiet)
    assert decoded[26:] == [changed]
    load(spec_of(root, resolution=9), log=quiet)  # other pixels
    assert len(decoded) == 27 + 26
    with pytest.raises(ValueError, match="1 of 26"):
        load(spec_of(damage(changed).parents[2]), log=quiet)


def test_only_what_is_used_is_checked(tmp_path: Path, decoded: list[Path]) -> None:
    root = make_folder(tmp_path, train=50)
    data = load(spec_of(root, num_train=8), log=quiet)
    assert len(data.train_images) == 8
    assert len(decoded) == 8 + 4 + 6


def test_a_check_that_takes_long_shows_how_far_it_is_and_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[Path]
) -> None:
    monkeypatch.setattr(inspection, "_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(inspection, "_TOGETHER", 10)
    root = make_folder(tmp_path)
    _, words = loaded(spec_of(root))
    assert "checking the images: 10 of 26" in words
    assert "checking the images: 20 of 26" in words
    shutil.rmtree(tmp_path / "cache")

    def interrupted(line: str) -> None:
        if "20 of 26" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(spec_of(root), log=interrupted)
    before = len(decoded)
    load(spec_of(root), log=quiet)
    assert len(decoded) == before + 6


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path, cache: Path) -> None:
    cache.write_text("a file in its place")
    _, words = loaded(spec_of(make_folder(tmp_path)))
    assert "cannot be kept" in words


def test_a_kept_check_that_is_damaged_is_made_again(tmp_path: Path, cache: Path, decoded: list[Path]) -> None:
    root = make_folder(tmp_path)
    load(spec_of(root), log=quiet)
    (kept,) = (cache / "folder").glob("*.json")
    for content in ("", "[1, 2]", kept.read_text()[:100], json.dumps({"train/cat/00.jpg": [3]}), "{}"):
        kept.write_text(content)
        decoded.clear()
        load(spec_of(root), log=quiet)
        assert len(decoded) == 26, content


def test_a_folder_that_does_not_fit_into_memory_is_refused_before_it_is_decoded(
    tmp_path: Path, decoded: list[Path]
) -> None:
    root = make_folder(tmp_path)
    for skip_bad in (False, True):
        with pytest.raises(
            ValueError,
            match=r"26 images of 10000000 px \(16 for training, 4 for validation and 6 for test\) take 7800000\.0 GB.*"
            r"lower data\.resolution or data\.num_train",
        ):
            load(spec_of(root, resolution=10_000_000, skip_bad=skip_bad))
    assert not decoded


# --- what is there twice


def photo(number: int) -> Image.Image:
    """A smooth picture, as a camera makes it and no other number has."""
    rough = np.random.default_rng(number).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize((96, 80), Image.Resampling.BICUBIC)


def photos(tmp_path: Path, held_out: tuple[str, ...] = ("val", "test")) -> Path:
    root = tmp_path / "photos"
    for place, split in enumerate(("train", *held_out)):
        for label, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for i in range(12 if split == "train" else 10):
                photo(1000 * place + 100 * label + i).save(root / split / name / f"{i:02d}.png")
    return root


def test_images_of_two_splits_are_found_by_what_they_show(tmp_path: Path) -> None:
    root = photos(tmp_path)
    assert "identical" not in loaded(spec_of(root, num_val=20, resolution=32))[1]
    for i in range(8):  # 16 of the 20 validation images, under other names
        for name in ("cat", "dog"):
            shutil.copy(root / "train" / name / f"{i:02d}.png", root / "val" / name / f"{9 - i:02d}.png")
    with Image.open(root / "train" / "cat" / "11.png") as again:
        again.save(root / "test" / "cat" / "00.jpg", quality=70)
        again.resize((60, 50)).save(root / "test" / "cat" / "01.png")
    _, words = loaded(spec_of(root, num_val=20, resolution=32))
    assert "16 of 20 validation images are identical to training images, such as " in words
    assert "2 of 21 test images are nearly identical to training images, such as " in words
    assert f"{root}/test/cat/00.jpg to {root}/train/cat/11.png" in words
    assert "identical to validation images" not in words


def test_images_of_two_classes_are_found(tmp_path: Path) -> None:
    root = photos(tmp_path)
    shutil.copy(root / "train" / "cat" / "00.png", root / "train" / "dog" / "copy.png")
    _, words = loaded(spec_of(root, num_val=20))
    assert "1 image of 65 are there under another class as well" in words
    assert "copy.png" in words


def test_flat_images_are_near_nothing_and_of_very_many_some_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = photos(tmp_path)
    for i, split in enumerate(("train", "val", "test")):
        Image.new("RGB", (9, 9), (100 + i, 90, 90)).save(root / split / "cat" / "flat.png")
    assert "identical" not in loaded(spec_of(root, num_val=21))[1]
    monkeypatch.setattr(duplicates, "_PAIRS", 100)
    for i in range(10):
        with Image.open(root / "train" / "cat" / f"{i:02d}.png") as again:
            again.save(root / "val" / "cat" / f"{i:02d}.jpg", quality=80)
    words = loaded(spec_of(root, num_val=31))[1]
    assert "that were compared, of 31, are nearly identical to training images" in words


def test_skip_bad_is_for_folders_and_no_part_of_a_study_that_does_without(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.skip_bad is true, but 'digits' lies in the cache"):
        describe(DataSpec("digits", None, 100, skip_bad=True))
    root = make_folder(tmp_path)
    values = study_settings("data=folder", f"data.root={root}", "data.num_val=4").values
    assert "skip_bad" not in decisive_settings(values)["data"]
    others = study_settings("data=folder", f"data.root={root}", "data.num_val=4", "data.skip_bad=true").values
    assert decisive_settings(others)["data"]["skip_bad"] is True


@pytest.mark.usefixtures("in_this_process")
def test_a_command_ends_with_one_message_before_it_trains(
    tmp_path: Path, command: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = make_folder(tmp_path)
    bad = damage(root / "test" / "cat" / "01.png")
    words = ["train", "baseline=preresnet_tiny", "data=folder", f"data.root={root}", "data.num_val=4", "tracking=none"]
    words += ["data.resolution=8", "resolution=8", "recipe=quick", "recipe.epochs=1"]
    ended = command(*words)
    assert ended.code == 2
    assert ended.output.count("scalesearch:") - ended.output.count("scalesearch: validation") == 1, ended.output
    assert (
        f"1 of 26 images cannot be read:\n  {bad}: it is damaged or not supported: image file is truncated"
        in ended.output
    )
    assert not list(tmp_path.glob("workspace/evaluations/*/*"))
    ended = command(*words, "data.skip_bad=true", "test=true", "--json")
    assert ended.code in (DONE, NOTHING_LEARNT), ended.output  # so few images teach nothing
    assert str(bad) in ended.output


def test_errors_of_a_folder_name_the_place(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    spec = spec_of(root)
    with pytest.raises(ValueError, match=r"needs data\.resolution"):
        describe(replace(spec, resolution=None))
    with pytest.raises(ValueError, match="has 2 classes, ImageNet has 1000; use data=folder"):
        describe(replace(spec, name="imagenet"))
    (root / "train" / "emu").mkdir()
    with pytest.raises(ValueError, match="emu has no images"):
        describe(spec)
    shutil.rmtree(root / "train" / "emu")
    (root / "test" / "Dog").mkdir()
    with pytest.raises(ValueError, match=r"the class 'Dog' that train/ has not; .*did you mean 'dog'\?"):
        describe(spec)
