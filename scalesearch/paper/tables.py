"""Means, intervals and paired differences of an experiment's trainings, and the cells of its tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scalesearch import text
from scalesearch.paper.points import Correct, CorrectByKey
from scalesearch.selection import Pairs

if TYPE_CHECKING:
    import pandas as pd

Row = Mapping[Any, Any]
ACCURACY = "validation accuracy (%)"
CONFIDENCE = 0.95
_KEPT = (
    *("curve", "label", "at", "depth", "width", "resolution", "pixels", "blocks"),
    *("macs", "macs_ratio", "params", "moves", "data", "epochs"),
)


def summarised(results: pd.DataFrame, *scores: str) -> pd.DataFrame:
    """One row per point, in the order of the results: means over the seeds that finished, with 95 % intervals.

    Of accuracies and of other `scores`. How much seeds vary is pooled over all points, as three seeds alone say little
    of it. `low` and `high` are NaN where no point has two seeds.
    """
    import pandas as pd

    finished = results[results["state"] == "finished"]
    groups = [group for _, group in finished.groupby(["curve", "label", "at"], sort=False)]
    apart = {tuple(sorted(group["key"])): group for group in groups}.values()  # several points may be one network
    accuracies = [name for name in ("val_accuracy", "test_accuracy") if name in results.columns]
    reach = {name: _reach([group[name].to_numpy(float) for group in apart]) for name in (*accuracies, *scores)}

    def interval(group: pd.DataFrame, name: str) -> dict[str, float]:
        mean, around = float(group[name].mean()), reach[name] / math.sqrt(len(group))
        return {f"{name}_mean": mean, f"{name}_low": mean - around, f"{name}_high": mean + around}

    rows: list[dict[str, Any]] = []
    for group in groups:
        row = {name: group[name].iloc[0] for name in _KEPT}
        row["moves"] = "" if isinstance(row["moves"], float) else row["moves"]
        row["seeds"] = len(group)
        for name in accuracies:
            row |= interval(group, name)
        row["train_seconds"] = float(group["train_seconds"].median())
        for name in scores:
            row |= interval(group, name)
        rows.append(row)
    return pd.DataFrame(rows)


def _reach(groups: list[Any]) -> float:
    """Half the width of the interval of one training's score; NaN where no group has two."""
    from scipy import stats

    freedom = sum(len(values) - 1 for values in groups)
    if freedom < 1:
        return math.nan
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in groups)
    return float(stats.t.isf((1 - CONFIDENCE) / 2, freedom)) * math.sqrt(squares / freedom)


class Difference(NamedTuple):
    """Mean accuracy of one point less another's, with its 95 % interval; fractions. NaN where it is not known."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan

    @classmethod
    def of(cls, row: Row, column: str) -> Difference:
        """The one that `columns` has put into a row."""
        return cls(*(float(row[f"{column}_{end}"]) for end in cls._fields))

    def columns(self, column: str) -> dict[Any, Any]:
        return {f"{column}_{end}": value for end, value in self._asdict().items()}

    @property
    def verdict(self) -> str:
        return "better" if self.low > 0 else "worse" if self.high < 0 else "tied"

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "-"
        known = math.isfinite(self.low) and math.isfinite(self.high)
        around = f"{100 * self.low:+.2f} to {100 * self.high:+.2f}" if known else "no interval: one seed"
        return f"{100 * self.value:+.2f} points ({around})"


class Paired:
    """Compares points seed by seed and image by image, as `selection.Pairs` does candidates."""

    def __init__(self, results: pd.DataFrame, correct: CorrectByKey) -> None:
        self._seeds: dict[tuple[str, float], dict[int, Correct]] = {}
        apart: dict[str, dict[int, Correct]] = {}  # by network: several points may be one
        for row in results[results["state"] == "finished"].sort_values("seed", kind="stable").to_dict("records"):
            seeds = self._seeds.setdefault((row["curve"], float(row["at"])), {})
            seeds[int(row["seed"])] = correct[row["key"]]
            if int(row["seed"]) == min(seeds):
                apart[row["key"]] = seeds
        sizes = {len(right) for seeds in apart.values() for right in seeds.values()}
        self._pairs = Pairs(apart) if len(sizes) == 1 else None

    def difference(self, one: Row, other: Row) -> Difference:
        """`one` less `other`, rows of a summary by their "curve" and "at".

        Raises: KeyError where one has no finished training.
        """
        if self._pairs is None:
            raise ValueError("points that were scored on different images cannot be compared image by image")
        left, right = (self._seeds[row["curve"], float(row["at"])] for row in (one, other))
        compared = self._pairs.compare(left, right)
        return Difference(compared.difference, *compared.interval(CONFIDENCE))

    def over_best(self, kind: str, row: Row, others: Sequence[Row], *, name: str = "curve") -> dict[Any, Any]:
        """The columns best_<kind>, the most accurate of `others`, and less_<kind>_*, `row` less it."""
        if not others:
            return {f"best_{kind}": "", **Difference().columns(f"less_{kind}")}
        best = max(others, key=lambda one: float(one["val_accuracy_mean"]))
        return {f"best_{kind}": best[name], **self.difference(row, best).columns(f"less_{kind}")}


def published(name: str) -> pd.DataFrame:
    """Published figures of the paper, of `published/<name>.csv`; its README says where each is from."""
    import pandas as pd

    return pd.read_csv(Path(__file__).parent / "published" / f"{name}.csv")


def number(value: float, form: str) -> str:
    """In that format; "-" where it is not known."""
    return "-" if math.isnan(value) else format(value, form)


def with_interval(row: Row, score: str) -> str:
    """A mean in percent with its interval, as far as they are known."""
    mean, low, high = (row[f"{score}_{end}"] for end in ("mean", "low", "high"))
    around = f" ({text.percent(low)} to {text.percent(high)})" if math.isfinite(mean) and math.isfinite(low) else ""
    return text.percent(mean) + around


_CELLS: dict[str, Callable[[Row], str]] = {
    "scaled": lambda row: str(row["curve"]),
    "multipliers": lambda row: str(row["label"]),
    "px": lambda row: str(row["pixels"]),
    "blocks": lambda row: f"{row['blocks']:g}",
    "multiply-adds": lambda row: text.count(row["macs"]),
    "ratio": lambda row: f"{row['macs_ratio']:.3f}",
    "epochs": lambda row: f"{row['epochs']:g}",
    "seeds": lambda row: str(row["seeds"]),
    "departures from the rule": lambda row: str(row["moves"]),
    ACCURACY: lambda row: with_interval(row, "val_accuracy"),
    "test accuracy (%)": lambda row: with_interval(row, "test_accuracy"),
}


def cells(row: Row, *headings: str) -> dict[str, str]:
    """Heading to cell of what all summaries, and `point_values`, say in the same words."""
    return {heading: _CELLS[heading](row) for heading in headings}
