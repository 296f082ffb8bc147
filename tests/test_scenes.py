"""data=fashion_scenes: what is rendered, where the garment lies, and that the splits share no garment."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from scalesearch.data import Data, DataSpec, describe, load, scenes, val_boxes

SMALL = DataSpec("fashion_scenes", 300, 200)


def squares(number: int) -> torch.Tensor:
    """Garments that are bright all over, each of its own grey."""
    greys = 100 + torch.arange(number) % 156
    return greys.to(torch.uint8)[:, None, None].expand(number, 28, 28).contiguous()


def test_a_scene_has_the_same_bytes_everywhere() -> None:
    made = scenes.render(squares(50), torch.arange(40), "train")
    digest = hashlib.sha256(made.images.numpy().tobytes() + made.boxes.numpy().tobytes()).hexdigest()
    assert digest == "a04ef4cd9e9e590b7cb87d0d97b7c60b85d8a39385a17c87bd609041f1d8bc1e"


def test_a_scene_does_not_depend_on_which_others_are_rendered() -> None:
    garments = squares(30)
    whole = scenes.render(garments, torch.arange(600), "val")
    some = torch.tensor([599, 3, 290])
    part = scenes.render(garments, some, "val")
    assert torch.equal(part.images, whole.images[some])
    assert torch.equal(part.boxes, whole.boxes[some])


def without_scraps(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (n, 96, 96) and boxes (n, 4) of squares."""
    return scenes._placed(squares(number), np.random.default_rng(0).random((number, 5)))


def test_garments_are_of_the_stated_sizes_turned_and_everywhere() -> None:
    images, boxes = without_scraps(800)
    # The area of a square tells its side whatever it is turned by; all of it is on the canvas where it lies straight.
    left, top, right, bottom = boxes.T
    width, height = right - left, bottom - top
    straight = (width - height).abs() <= 1
    sides = (images > 50).sum(dim=(1, 2)).sqrt()
    whole = straight & (width < 90) & (sides > width - 4)
    assert whole.sum() > 8
    assert 60 <= sides[whole].min() <= 66
    assert 80 <= sides[whole].max() <= 88
    assert (width > 90).any(), "a square that stands on its corner is wider than the canvas"
    assert left[whole].unique().numel() > 8
    assert top[whole].unique().numel() > 8


def test_the_box_holds_the_garment_and_nothing_less() -> None:
    images, boxes = without_scraps(100)
    for image, box in zip(images, boxes.tolist(), strict=True):
        rows, columns = np.nonzero(image.numpy())
        assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_scraps_are_pasted_by_maximum_and_come_from_others() -> None:
    garments = torch.zeros(2, 28, 28, dtype=torch.uint8)
    garments[1] = 200
    made = scenes.render(garments, torch.arange(0, 400, 2), "train")  # all of the black garment
    lit = (made.images == 200).sum(dim=(1, 2, 3))
    assert (lit > 17 * 17).all(), "six scraps of the other one, which may lie on each other"
    assert (lit <= 6 * 17 * 17).all()
    bright = torch.full((2, 28, 28), 255, dtype=torch.uint8)
    bright[1] = 7
    shown = scenes.render(bright, torch.arange(0, 100, 2), "train")
    assert ((shown.images == 255).sum(dim=(1, 2, 3)) > 50 * 50).all(), "a darker scrap does not cover the garment"


def test_the_enlarged_scrap_keeps_its_corners() -> None:
    scrap = torch.arange(100).reshape(10, 10).int()
    large = scenes._enlarged(scrap)
    assert large.shape == (17, 17)
    assert large[0, 0] == 0
    assert large[-1, -1] == 99
    assert large[0, -1] == 9
    assert (large.diff(dim=1) >= 0).all()


def test_the_splits_are_those_that_are_documented() -> None:
    sizes = describe(DataSpec("fashion_scenes", None, 10_000))
    assert (sizes.num_train, sizes.num_val, sizes.num_test, sizes.resolution) == (100_000, 10_000, 20_000, 96)
    with pytest.raises(ValueError, match="10000 images for validation"):
        describe(DataSpec("fashion_scenes", None, 10_001))


def test_small_ones_are_prefixes_with_all_classes_and_boxes_in_their_order() -> None:
    data = load(SMALL)
    assert data.train_images.shape == (300, 1, 96, 96)
    assert torch.bincount(data.train_labels).tolist() == [30] * 10
    assert torch.bincount(data.val_labels).min() >= 15
    boxes = val_boxes(SMALL)
    assert boxes.shape == (200, 4)
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    shares = [
        float(image[top:bottom, left:right].sum() / image.sum())
        for image, (left, top, right, bottom) in zip(data.val_images[:, 0], boxes.tolist(), strict=True)
    ]
    assert np.mean(shares) > 0.75, "most of what is lit is the garment, or lies on it"
    assert np.mean(shares) > _elsewhere(data, boxes) + 0.05, "and that of another image holds less"
    again = load(SMALL)
    assert again.fingerprint == data.fingerprint
    images, labels = data.test()
    assert images.shape == (20_000, 1, 96, 96)
    assert torch.equal(labels[:10_000], labels[10_000:])


def _elsewhere(data: Data, boxes: torch.Tensor) -> float:
    """Mean share of an image's light that lies in the next image's box."""
    shares = [
        float(image[top:bottom, left:right].sum() / image.sum())
        for image, (left, top, right, bottom) in zip(data.val_images[:, 0], boxes.roll(1, 0).tolist(), strict=True)
    ]
    return float(np.mean(shares))


def test_data_without_places_is_refused() -> None:
    with pytest.raises(ValueError, match="data=fashion_scenes does"):
        val_boxes(DataSpec("fashion_mnist", 300, 200))
