"""Images that may have several labels: their table, their cuts, their loss, and a search and a training on them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Ended, case
from learning import SEARCH, TRAIN
from PIL import Image
from tiny import changed

from scalesearch.data import DataSpec, describe, load
from scalesearch.data.labels_csv import TABLE
from scalesearch.data.splits import strata, stratified_order
from scalesearch.training import objective
from scalesearch.workspace import DONE, NOTHING_LEARNT

NAMES = ("red", "green", "blue")  # an image has those in which it is bright
SPLITS = {"train": 500, "test": 60}


def make(root: Path, *, seen: bool = True, splits: dict[str, int] = SPLITS) -> Path:
    same = np.random.default_rng(0).integers(0, 80, (8, 8, 3))
    for split, number in splits.items():
        (root / split / "more").mkdir(parents=True)
        chance = np.random.default_rng([number, 1])
        lines = ["file,labels"]
        for i in range(number):
            there = chance.random(3) < (0.5, 0.3, 0.1)
            pixels = chance.integers(0, 80, (8, 8, 3)) + 150 * there if seen else same
            name = f"{'more/' if i % 2 else ''}{i:03d}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(root / split / name)
            lines.append(f"{name},{';'.join(name for name, one in zip(NAMES, there, strict=True) if one)}")
        (root / split / TABLE).write_text("\n".join(lines) + "\n")
    return root


def spec(root: Path) -> DataSpec:
    return DataSpec(
        "folder", num_train=None, num_val=120, root=str(root), resolution=8, cache=str(root.parent / "cache")
    )


def test_the_labels_of_a_table_are_those_of_its_images(tmp_path: Path) -> None:
    root = make(tmp_path / "images")
    data = load(spec(root))
    known = describe(spec(root))
    assert known == replace(data.description)
    assert (known.num_classes, known.classes) == (3, ("blue", "green", "red"))
    assert (known.num_train, known.num_val, known.num_test) == (380, 120, 60)
    for images, labels in ((data.train_images, data.train_labels), (data.val_images, data.val_labels), data.test()):
        assert labels.dtype == torch.uint8
        bright = images.float().mean((2, 3)).flip(1) > 100  # (N, 3) blue, green, red
        assert torch.equal(bright, labels > 0)
    assert data.class_counts("val") == data.val_labels.sum(0).tolist()


def test_bad_images_are_left_out_with_their_labels(tmp_path: Path) -> None:
    root = make(tmp_path / "images")
    bad = [*sorted((root / "train").glob("*.png"))[:5], *sorted((root / "test" / "more").glob("*.png"))[:2]]
    for path in bad:
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"7 of 560 images cannot be read(?s:.)*data.skip_bad=true") as refused:
        load(spec(root))
    assert all(str(path) in str(refused.value) for path in bad)
    data = load(replace(spec(root), skip_bad=True))
    known = describe(replace(spec(root), skip_bad=True))
    assert (known.num_train, known.num_val, known.num_test) == (375, 120, 58)
    assert known.notes == data.description.notes
    assert all(str(path) in "".join(known.notes) for path in bad)
    for images, labels in ((data.train_images, data.train_labels), (data.val_images, data.val_labels), data.test()):
        assert torch.equal(images.float().mean((2, 3)).flip(1) > 100, labels > 0)

    table = root / "train" / TABLE
    table.write_text(re.sub(rf"^{bad[0].name},.*$", f"{bad[0].name},red;rare", table.read_text(), flags=re.MULTILINE))
    with pytest.raises(ValueError, match=f"no training image with the label 'rare' can be read:(?s:.)*{bad[0].name}"):
        load(replace(spec(root), skip_bad=True))


def test_a_cut_keeps_the_share_of_every_label() -> None:
    chance = np.random.default_rng(0)
    labels = (chance.random((2000, 5)) < (0.6, 0.3, 0.1, 0.03, 0.01)).astype(np.uint8)
    order = stratified_order(strata(labels), 0)
    whole = labels.mean(0)
    for part in (order[:1000], order[-500:]):
        expected = np.sqrt(whole * (1 - whole) / len(part))
        assert (abs(labels[part].mean(0) - whole) < 3 * expected).all()
    rarest = strata(np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 1], [1, 1, 0]]))
    assert rarest.tolist() == [1, 0, 3, 2, 1]
    assert strata(np.array([2, 0, 1])).tolist() == [2, 0, 1]


def test_a_label_that_every_image_has_or_none_shows_nothing(tmp_path: Path) -> None:
    root = make(tmp_path / "images", splits={"train": 60, "val": 20, "test": 20})

    def write(split: str, **every: int) -> None:
        """Each label on every first, second, third... image; 0: on none."""
        names = [line.partition(",")[0] for line in (root / split / TABLE).read_text().splitlines()[1:]]
        labels = [[one for one, step in every.items() if step and i % step == 0] for i in range(len(names))]
        lines = [f"{name},{';'.join(own)}" for name, own in zip(names, labels, strict=True)]
        (root / split / TABLE).write_text("\n".join(["file,labels", *lines]))

    for split, images in (("train", "training"), ("val", "validation"), ("test", "test")):
        done = "learnt" if split == "train" else "measured"
        cases = {
            f"1 of the 2 labels is on every {images} image, so nothing of it is {done}: 'round'": (1, 2),
            f"so nothing can be {done}: all have 'flat' and 'round'.": (1, 1),
        }
        if split != "train":
            cases[f"1 of the 2 labels has no {images} image, so its accuracy is not measured: 'round'"] = (0, 2)
            cases["so nothing can be measured: none has 'flat' ("] = (0, 0)
            cases["so nothing can be measured: all have 'round' and none has 'flat' ("] = (1, 0)
        for other in ("train", "val", "test"):
            write(other, round=2, flat=3)
        for words, (of_round, of_flat) in cases.items():
            write(split, round=of_round, flat=of_flat)
            with case(split, words):
                if "nothing can be" in words:
                    with pytest.raises(ValueError, match=f"no label is on some of the {images} images") as refused:
                        describe(spec(root))
                    assert words in str(refused.value)
                else:
                    assert any(note.startswith(words) for note in describe(spec(root)).notes)


def test_labels_that_are_alike_are_named(tmp_path: Path) -> None:
    root = make(tmp_path / "images")
    table = root / "train" / TABLE
    table.write_text(table.read_text().replace("red", "Caf\u00e9", 100).replace("red", "cafe\u0301"))
    test = root / "test" / TABLE
    test.write_text(test.read_text().replace("red", "cafe\u0301"))
    notes = describe(spec(root)).notes
    assert any(note.startswith("the names of the labels ") and "are alike" in note for note in notes)


def test_a_table_that_is_wrong_is_refused_by_its_line(tmp_path: Path) -> None:
    root = make(tmp_path / "images", splits={"train": 8, "test": 4})
    table = root / "train" / TABLE
    good = table.read_text()
    one, *others = [path.name for path in sorted((root / "train").glob("*.png"))]
    wrong = {
        "its first line must be: file,labels": good.replace("file,labels", "image,tags"),
        "line 10 has 3 cells": good + f"{one},red,blue\n",
        "line 10: '../x.png' is no image in train/": good + "../x.png,red\n",
        "line 10: '/x.png' is no image in train/": good + "/x.png,red\n",
        "line 10: 'notes.txt' is no image": good + "notes.txt,red\n",
        "line 10: there is no file": good + "nothing.png,red\n",
        f"line 10: '{one}' is there a second time": good + f"{one},red\n",
        "has 1 label; at least 2 are needed": f"file,labels\n{one},red\n",
        "names no image": "file,labels\n",
        "has the label 'red|blue' beside 'red' and 'blue': labels are divided by semicolons, such as red;blue": (
            f"file,labels\n{one},red|blue\n{others[0]},red\n{others[1]},blue\n"
        ),
        "has the label 'blue,red' beside 'blue' and 'red'": (
            f'file,labels\n{one},"blue,red"\n{others[0]},red\n{others[1]},blue\n'
        ),
        "has the label 'red blue' beside": f"file,labels\n{one},red blue;red;blue\n",
        "no training image has": f"file,labels\n{one},reed;blu\n",
    }
    for words, content in wrong.items():
        table.write_text(content)
        with case(words), pytest.raises(ValueError, match=TABLE) as refused:
            describe(spec(root))
        assert words in str(refused.value)


def test_the_loss_is_that_of_each_label() -> None:
    logits, labels = (
        torch.randn(40, 3, generator=torch.Generator().manual_seed(0)),
        torch.zeros(40, 3, dtype=torch.uint8),
    )
    labels[::2, 0] = labels[::4, 1] = labels[::8, 2] = 1
    plain = objective.loss_function(changed(label_smoothing=0.0), labels, 3)(logits, labels)
    assert plain == pytest.approx(float(F.binary_cross_entropy(logits.sigmoid(), labels.float())))
    balanced = objective.class_weights(changed(class_weights="balanced"), labels, 3)
    assert balanced is not None
    assert balanced.tolist() == [1.0, 3.0, 7.0]
    loss, right = objective.judged(logits, labels)
    assert loss / 40 == pytest.approx(float(plain))
    assert right.tolist() == [bool(((row > 0) == (of > 0)).all()) for row, of in zip(logits, labels, strict=True)]


WORDS = ("data=folder", "data.resolution=8", "data.num_val=120", "recipe.flip=false")


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("metric", ["accuracy", "auroc"])
@pytest.mark.parametrize("seen", [True, False])
def test_a_training_and_a_search_on_several_labels(
    metric: str, seen: bool, tmp_path: Path, command: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCALESEARCH_CACHE", str(tmp_path / "cache"))
    root = make(tmp_path / "images", seen=seen)
    words: tuple[Any, ...] = (*TRAIN, *WORDS, f"data.root={root}", f"metric={metric}", "recipe.epochs=8")
    words = tuple(word for word in words if word not in ("data=digits", "data.num_val=400", "recipe.epochs=3"))
    for first in (("train", "test=true"), ("run", *SEARCH)) if metric == "auroc" or seen else (("train",),):
        code, answer, message = command(*first, *words)
        assert code == (DONE if seen else NOTHING_LEARNT), message
        assert "shuffled_labels" in answer
        if first[0] == "train":
            name = "val_auroc" if metric == "auroc" else "val_accuracy"
            assert all(row[name] > 0.9 for row in answer["seeds"]) == seen
