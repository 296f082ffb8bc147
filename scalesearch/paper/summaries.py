"""Means, intervals and paired differences of an experiment's trainings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scipy import stats

from scalesearch.paper.points import Correct
from scalesearch.selection import Pairs

if TYPE_CHECKING:
    import pandas as pd

CONFIDENCE = 0.95
_PLACE = ["curve", "label", "at"]


def summarised(results: pd.DataFrame, score: str = "val_accuracy") -> pd.DataFrame:
    """A row a point, in the order of the results: means over the seeds that finished, with 95 % intervals.

    How much seeds vary is pooled over all points, as three seeds alone say little of it. `low` and `high` are NaN where
    no point has two seeds.
    """
    scores = [name for name in ("val_accuracy", "test_accuracy", score) if name in results.columns]
    rows: list[dict[str, Any]] = []
    finished = results[results["state"] == "finished"]
    groups = [group for _, group in finished.groupby(_PLACE, sort=False)]
    apart = {tuple(sorted(group["key"])): group for group in groups}.values()  # several points may be one network
    reach = {name: _reach([group[name].to_numpy(float) for group in apart]) for name in dict.fromkeys(scores)}
    kept = [
        "curve",
        "label",
        "at",
        "depth",
        "width",
        "resolution",
        "pixels",
        "blocks",
        "macs",
        "macs_ratio",
        "params",
        "moves",
    ]
    for group in groups:
        row = {name: group[name].iloc[0] for name in [*kept, "data", "epochs"]}
        row["moves"] = "" if isinstance(row["moves"], float) else row["moves"]
        row["seeds"] = len(group)
        for name in dict.fromkeys(scores):
            mean = float(group[name].mean())
            row |= {
                f"{name}_mean": mean,
                f"{name}_low": mean - reach[name] / math.sqrt(len(group)),
                f"{name}_high": mean + reach[name] / math.sqrt(len(group)),
            }
        row["train_seconds"] = float(group["train_seconds"].median())
        rows.append(row)
    import pandas as pd

    return pd.DataFrame(rows)


def _reach(groups: list[Any]) -> float:
    """Half the width of the interval of one training's score; NaN where no group has two."""
    freedom = sum(len(values) - 1 for values in groups)
    if freedom < 1:
        return math.nan
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in groups)
    return float(stats.t.isf((1 - CONFIDENCE) / 2, freedom)) * math.sqrt(squares / freedom)


class Difference(NamedTuple):
    """Mean accuracy of one point less another's, with its 95 % interval; fractions. NaN where seeds say nothing."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        return "better" if self.low > 0 else "worse" if self.high < 0 else "tied"

    def __str__(self) -> str:
        return f"{100 * self.value:+.2f} points ({100 * self.low:+.2f} to {100 * self.high:+.2f})"


class Paired:
    """Compares points seed by seed and image by image, as `selection.Pairs` does candidates."""

    def __init__(self, results: pd.DataFrame, correct: Mapping[str, Correct]) -> None:
        self._seeds: dict[tuple[str, float], dict[int, Correct]] = {}
        apart: dict[str, dict[int, Correct]] = {}  # by network: several points may be one
        for row in results[results["state"] == "finished"].sort_values("seed", kind="stable").to_dict("records"):
            seeds = self._seeds.setdefault((row["curve"], float(row["at"])), {})
            seeds[int(row["seed"])] = correct[row["key"]]
            if int(row["seed"]) == min(seeds):
                apart[row["key"]] = seeds
        sizes = {len(right) for seeds in apart.values() for right in seeds.values()}
        self._pairs = Pairs(apart) if len(sizes) == 1 else None

    def difference(
        self, one: tuple[str, float], other: tuple[str, float], *, confidence: float = CONFIDENCE
    ) -> Difference:
        """`one` less `other`, each (curve, at). Errors: KeyError where one has no finished training."""
        if self._pairs is None:
            raise ValueError("points that were scored on different images cannot be compared image by image")
        compared = self._pairs.compare(self._seeds[one], self._seeds[other])
        return Difference(compared.difference, *compared.interval(confidence))


def published(name: str) -> pd.DataFrame:
    """Published figures of the paper, of `published/<name>.csv`; its README says where each is from."""
    import pandas as pd

    return pd.read_csv(Path(__file__).parent / "published" / f"{name}.csv")


def percent(value: float) -> str:
    return "-" if not math.isfinite(value) else f"{100 * value:.2f}"
