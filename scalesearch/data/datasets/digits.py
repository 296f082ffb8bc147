"""The 1,797 8 px grey digits inside scikit-learn (UCI optical digits); a fifth of them is the test split."""

from __future__ import annotations

import numpy as np
import torch

from scalesearch.data.spec import DataSpec, Log, Source, Split
from scalesearch.data.splits import cut_test


def source(spec: DataSpec, log: Log) -> Source:
    def open_split(split: str) -> Split:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        train, test = cut_test(labels, seed=0)
        index = torch.from_numpy({"train": train, "test": test}[split])
        pixels = torch.from_numpy(np.rint(images * (255 / 16)).astype(np.uint8)).reshape(-1, 1, 8, 8)[index]
        return Split(torch.from_numpy(labels).long()[index], lambda index: pixels[index])

    return Source(1, 10, 8, 1797 - 359, 359, open_split)
