"""Data with and without anything to learn, and the smallest training and search on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scalesearch.data import DATASETS
from scalesearch.data.spec import DataSpec, Source, Split

Labels = np.ndarray[Any, np.dtype[np.int64]]
SHARES = {"ten equal classes": [0.1] * 10, "two equal classes": [0.5, 0.5], "95:5": [0.95, 0.05]}


def drawn(shares: list[float], chance: np.random.Generator, *, images: int = 1000) -> Labels:
    return chance.choice(len(shares), images, p=shares)


def planted(shares: list[float], *, seen: bool) -> Callable[[DataSpec, Any], Source]:
    """Images of 8 px of noise, in which a class can be seen by its brightness, or all the same one.

    Of images that differ, a network is right on more than chance in one of twenty searches, and on which processor.
    """

    def source(spec: DataSpec, log: Any) -> Source:
        sizes = {"train": 1200, "test": 200}

        def open_split(split: str) -> Split:
            chance = np.random.default_rng([sizes[split], len(shares)])
            labels = drawn(shares, chance, images=sizes[split])
            noise = chance.integers(0, 100, (len(labels), 1, 8, 8))
            bright = noise + 150 * labels.reshape(-1, 1, 1, 1)
            pixels = torch.from_numpy((bright if seen else noise[:1].repeat(len(labels), 0)).astype(np.uint8))
            return Split(torch.from_numpy(labels), lambda index: pixels[index])

        return Source(1, len(shares), 8, sizes["train"], sizes["test"], open_split)

    return source


DATA = {
    "skewed_noise": (planted(SHARES["95:5"], seen=False), False),
    "random_labels": (planted(SHARES["two equal classes"], seen=False), False),
    "skewed_seen": (planted(SHARES["95:5"], seen=True), True),
    "seen": (planted(SHARES["two equal classes"], seen=True), True),
}
TRAIN = (
    *("baseline=mobilenetv2", "proxy=small", "proxy.width=0.25", "proxy.depth=0.5", "proxy.resolution=8"),
    *("proxy.total_stride=4", "data=digits", "data.num_val=400", "recipe=quick", "recipe.epochs=3", "recipe.seeds=2"),
    *("recipe.batch_size=40", "recipe.autocast=off", "tracking=none", "--json"),
)
SEARCH = (
    *("grid.alpha={start:1,stop:1.9,step:0.9}", "grid.beta={start:1,stop:1.4,step:0.4}", "phis=[1]", "study=s"),
    *("grid.gamma={start:1,stop:1.4,step:0.4}", "grid.product_tolerance=0.15", "budget.tolerance=0.12", "search=grid"),
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_this_process: None) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, (source, _) in DATA.items():
        monkeypatch.setitem(DATASETS._loaded, name, source)
    return tmp_path / "workspace" / "studies" / "s"
