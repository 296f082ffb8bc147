"""Scenes rendered from Fashion-MNIST's garments: one garment to be named, and scraps of others to be seen past.

In a scene the garment is 62 to 86 px large, turned and mirrored, so that a network has something to gain from more
pixels, from more layers and from wider ones alike. Where the garment lies is known, which tells whether a network looks
at it (Table 7 and Figure 7 of arXiv:1905.11946).

Everything random comes from the raw stream of a bit generator, and all that follows the rounding of an angle's sine and
cosine is whole numbers: a scene has the same bytes on every machine, with every version of torch.

Shapes: n scenes of a split, C = `CANVAS` px, G = 28 px.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

VERSION = 1  # of the rendering, raised with every change of what it makes: the cache goes by it
CANVAS = 96  # px, the side of a scene
SIZES = (62, 86)  # px, of a garment's 28 px square before it is turned; log-uniform
SCRAPS = 6  # of other garments
SCRAP, ENLARGED = 10, 17  # px, the side of a scrap when it is cut, and when it is pasted
_GARMENT = 28  # px
_SEEDS = {"train": 1, "val": 2, "test": 3}
_ONE = 1 << 16  # of the fixed point that coordinates are in
_PER_SCENE = 5 + 5 * SCRAPS  # numbers drawn


class Scenes(NamedTuple):
    """Images (n, 1, C, C) uint8, and boxes (n, 4) int64: left, top, right, bottom of the garment's pixels in px.

    The last two are exclusive. The box is that of the pixels that are not black in the garment's own drawing; scraps
    may cover them.
    """

    images: Tensor
    boxes: Tensor


def render(garments: Tensor, index: Tensor, split: str) -> Scenes:
    """The scenes of these indices. Scene i shows garment i modulo their number, so there may be more than garments.

    Args:
        garments: (N, 28, 28) uint8, all of a split's, from which scraps are cut as well.
        index: (n,) int64, of the scenes.
        split: "train", "val" or "test"; each has a seed.
    """
    last = int(index.max()) + 1 if len(index) else 0
    raw = np.random.PCG64(_SEEDS[split]).random_raw(last * _PER_SCENE).reshape(last, _PER_SCENE)
    chance = (raw[index.numpy()] >> np.uint64(11)).astype(np.float64) / 2.0**53  # (n, _PER_SCENE) in 0..1
    images = torch.empty(len(index), 1, CANVAS, CANVAS, dtype=torch.uint8)
    boxes = torch.empty(len(index), 4, dtype=torch.int64)
    for start in range(0, len(index), 256):
        part = slice(start, start + 256)
        which = index[part] % len(garments)
        scene, boxes[part] = _placed(garments[which], chance[part, :5])
        images[part, 0] = _scrapped(scene, garments, which, chance[part, 5:].reshape(-1, SCRAPS, 5))
    return Scenes(images, boxes)


def _placed(garments: Tensor, chance: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
    """Garments (n, G, G) turned, enlarged, mirrored and put somewhere: images (n, C, C) int32 and boxes (n, 4)."""
    angle = 2 * math.pi * (chance[:, 0] - 0.5)  # up to half a turn either way
    size = SIZES[0] * np.exp(chance[:, 1] * math.log(SIZES[1] / SIZES[0]))
    mirror = np.where(chance[:, 2] < 0.5, -1.0, 1.0)
    # A pixel of the canvas is sought in the garment: turned back and made smaller, with its own step in either axis.
    step = _ONE * _GARMENT / size
    along, across = (_whole(values) for values in (step * np.cos(angle), step * np.sin(angle)))
    sign = _whole(mirror)
    # The turned square must lie on the canvas as far as it can: its centre is drawn from where half its side fits.
    room = np.maximum(0.0, CANVAS - size)
    centre = [_whole(_ONE * (size / 2 + room * chance[:, 3 + axis])) for axis in (0, 1)]
    pixel = (torch.arange(CANVAS, dtype=torch.int64) * _ONE + _ONE // 2)[None, :]
    x, y = pixel - centre[0][:, None], pixel - centre[1][:, None]  # (n, C) from the centre

    def turned(by_x: Tensor, by_y: Tensor) -> Tensor:
        """(n, C, C) place in the garment, in steps of 1/256 px, rows first."""
        sums = by_y[:, None] * (y >> 8)
        others = by_x[:, None] * (x >> 8)
        return ((sums[:, :, None] + others[:, None, :]) >> 16).to(torch.int32)

    half = _GARMENT * 128 - 128  # the middle of the garment, of which the first pixel's centre is 0
    column = turned(sign * along, sign * across) + half
    row = turned(-across, along) + half
    left, top = column >> 8, row >> 8
    of_x, of_y = column & 255, row & 255
    padded = torch.zeros(len(garments), _GARMENT + 2, _GARMENT + 2, dtype=torch.int32)
    padded[:, 1:-1, 1:-1] = garments
    flat, wide = padded.flatten(1), _GARMENT + 2

    def corner(down: int, right: int) -> Tensor:
        r, c = (top + down + 1).clamp_(0, wide - 1), (left + right + 1).clamp_(0, wide - 1)
        return flat.gather(1, (r * wide + c).flatten(1).long()).view(-1, CANVAS, CANVAS)

    upper = corner(0, 0) * (256 - of_x) + corner(0, 1) * of_x
    lower = corner(1, 0) * (256 - of_x) + corner(1, 1) * of_x
    image = (upper * (256 - of_y) + lower * of_y + (1 << 15)) >> 16
    return image, _boxes(image)


def _boxes(images: Tensor) -> Tensor:
    seen = images > 0
    sides = []
    for lit in (seen.any(1), seen.any(2)):  # columns, rows
        first = lit.int().argmax(1)
        last = CANVAS - lit.flip(1).int().argmax(1)
        sides.append((first, last))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], 1)


def _scrapped(scenes: Tensor, garments: Tensor, own: Tensor, chance: NDArray[np.float64]) -> Tensor:
    """The scenes (n, C, C) with scraps pasted over them by maximum, uint8."""
    # of another garment than the scene's own: any but that one
    other = (own[:, None] + 1 + torch.from_numpy((chance[:, :, 0] * (len(garments) - 1)).astype(np.int64))) % len(
        garments
    )
    cut = torch.from_numpy((chance[:, :, 1:3] * (_GARMENT - SCRAP + 1)).astype(np.int64))
    put = torch.from_numpy((chance[:, :, 3:5] * (CANVAS - ENLARGED + 1)).astype(np.int64))
    inside = torch.arange(SCRAP)
    rows, columns = (cut[:, :, axis, None] + inside for axis in (0, 1))  # (n, SCRAPS, 10)
    scraps = garments[other[:, :, None, None], rows[:, :, :, None], columns[:, :, None, :]]
    enlarged = _enlarged(scraps.int())  # (n, SCRAPS, 17, 17)
    over = torch.arange(ENLARGED)
    scene = torch.arange(len(scenes))[:, None, None]
    for number in range(SCRAPS):  # one by one, as they may lie on each other
        r = put[:, number, 0, None, None] + over[:, None]
        c = put[:, number, 1, None, None] + over
        scenes[scene, r, c] = torch.maximum(scenes[scene, r, c], enlarged[:, number])
    return scenes.to(torch.uint8)


def _enlarged(scraps: Tensor) -> Tensor:
    """(..., 10, 10) to (..., 17, 17), bilinear with the corners' pixels kept at the corners; int32."""
    at = torch.arange(ENLARGED) * (SCRAP - 1)
    low, of = at // (ENLARGED - 1), (at % (ENLARGED - 1)).int()
    high, whole = (low + 1).clamp(max=SCRAP - 1), ENLARGED - 1
    rows = scraps[..., low, :] * (whole - of)[:, None] + scraps[..., high, :] * of[:, None]
    both = rows[..., low] * (whole - of) + rows[..., high] * of
    return (both + whole * whole // 2) // (whole * whole)


def _whole(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.rint(values).astype(np.int64))
