"""The setting of the paper's experiments, and results of theirs that are made up: for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scalesearch.config import from_yaml
from scalesearch.data import DataSpec
from scalesearch.network import from_table
from scalesearch.paper.points import Setting, point_values
from scalesearch.scaling import Coefficients, Rounding
from scalesearch.training import Recipe

ROOT = Path(__file__).resolve().parent.parent
THIRDS = Coefficients(1.26, 1.122, 1.122)


def network(name: str = "preresnet_tiny") -> Any:
    table = from_yaml(ROOT / "conf" / "baseline" / f"{name}.yaml")
    table.pop("name")
    return from_table(table, name=name)


def rounding(name: str = "fine") -> Rounding:
    return Rounding(**from_yaml(ROOT / "conf" / "rounding" / f"{name}.yaml"))


def setting(*names: str, rule: str = "fine") -> Setting:
    recipe = {key: value for key, value in from_yaml(ROOT / "conf/recipe/scenes.yaml").items() if key != "seeds"}
    return Setting(
        baselines={name: network(name) for name in names or ("preresnet_tiny",)},
        rounding=rounding(rule),
        recipe=Recipe(**recipe),
        seeds=3,
        data=DataSpec("fashion_scenes", None, 10_000),
        target=None,
        init={},
    )


def planted(
    points: list[Any], accuracy: dict[tuple[str, float], float], *, seeds: int = 3, images: int = 4000
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """results.csv and what is right, as if each (curve, at) had that accuracy on images equally hard for all."""
    hardness = np.random.default_rng(0).permutation(images) / images
    rows, right = [], {}
    for point in points:
        for seed in range(seeds):
            noise = 0.004 * (seed - (seeds - 1) / 2) * (1 if len(rows) % 2 else -1)
            key = f"{len(rows):064x}"
            right[key] = hardness < accuracy[point.curve, point.at] + noise
            rows.append(
                point_values(point)
                | {"seed": seed, "state": "finished", "val_accuracy": float(right[key].mean()), "key": key}
                | {"train_seconds": 1.0, "reason": ""}
            )
    return pd.DataFrame(rows), right
