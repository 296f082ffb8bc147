"""Table 5 of arXiv:1905.11946, in small: networks tuned from another set's weights against those from scratch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from scalesearch.data import describe
from scalesearch.paper.dimensions import BASELINE, COMPOUND
from scalesearch.paper.experiment import Experiment, at_least_one, with_interval
from scalesearch.paper.panels import ACCURACY, curve
from scalesearch.paper.points import Correct, Point, Setting
from scalesearch.paper.summaries import Difference, Paired, published, summarised
from scalesearch.scaling import Coefficients

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PRETRAINED, TUNED, SCRATCH = "pretrained", "tuned", "from scratch"


@dataclass(frozen=True, kw_only=True)
class Transfer(Experiment):
    """The baseline and the compound variant of `cost`, trained on `data` and tuned on `target`, or trained there anew.

    epochs, batch_size, learning_rate: on the target, the same for tuned networks and for those from scratch. With
    `init` the baseline starts from those weights and is not trained on `data`.
    """

    cost: float
    coefficients: Coefficients
    epochs: Sequence[float]
    batch_size: int
    learning_rate: float

    asks: ClassVar[str] = (
        "Do weights from another set help, at equal epochs, and the scaled network as much as its baseline?"
    )
    paper: ClassVar[str] = (
        "EfficientNet-B0, tuned from ImageNet, has 98.1 % on CIFAR-10 and 88.1 % on CIFAR-100 (Table 5); "
        "nothing from scratch is printed"
    )
    rests_on: ClassVar[Sequence[str]] = (
        "one pair of sets; the recipe on the target is the same with and without weights, and was tuned for neither",
        "the paper's Table 5 tunes networks of ImageNet on eight sets: B0 98.1 % on CIFAR-10 and 88.1 % on CIFAR-100",
        "the epochs on the first set are not counted to those of a tuned network",
    )
    tunes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        at_least_one("cost", [self.cost], least=1.05)
        at_least_one("epochs", self.epochs, least=0.01, most=10_000)

    def points(self, setting: Setting) -> list[Point]:
        if setting.target is None:
            raise ValueError("data@target is missing: the set that networks are tuned on, such as data@target=digits")
        source, target = describe(setting.data), describe(setting.target)
        if source.in_channels != target.in_channels:
            raise ValueError(
                f"images of {source.name} have {source.in_channels} channels, those of {target.name} "
                f"{target.in_channels}; weights fit only where they are as many"
            )
        base = setting.baseline
        init = setting.init.get(base.name)
        tuning = replace(setting.recipe, batch_size=self.batch_size, learning_rate=self.learning_rate)
        found = []
        for name in (BASELINE, COMPOUND):
            if name == BASELINE:
                first = setting.point(_curve(name, PRETRAINED), "1x", 1.0, base)
            else:
                first = setting.matched(_curve(name, PRETRAINED), self.cost, base, self.coefficients)
            given = init if name == BASELINE else None
            if given is None:
                found.append(first)
            network = replace(first.network, num_classes=target.num_classes)
            for epochs in sorted(set(self.epochs)):
                there = replace(
                    first,
                    label=f"{epochs:g} epochs",
                    at=float(epochs),
                    network=network,
                    recipe=replace(tuning, epochs=epochs),
                    data=setting.target,
                )
                start = {"init": given} if given is not None else {"after": first}
                found.append(replace(there, curve=_curve(name, TUNED), **start))
                found.append(replace(there, curve=_curve(name, SCRATCH)))
        return found

    def summary(self, results: pd.DataFrame, correct: Mapping[str, Correct]) -> pd.DataFrame:
        """As `summarised`, with what tuning gains over training from scratch, and compound over the baseline."""
        import pandas as pd

        first = results["curve"].str.endswith(PRETRAINED)
        # Seeds vary more after few epochs than after many, and on one set more than on another: none are pooled.
        parts = [results[first], *(rows for _, rows in results[~first].groupby("at"))]
        summary = pd.concat([summarised(part) for part in parts if len(part)], ignore_index=True)
        paired = {float(part["at"].iloc[0]): Paired(part, correct) for part in parts[1:]}
        rows: list[dict[Any, Any]] = summary.to_dict("records")
        there = {(row["curve"], row["at"]) for row in rows}
        for row in rows:
            name, how = row["curve"].split(", ")
            for column, other in (("gain", _curve(name, SCRATCH)), ("scaled", _curve(BASELINE, how))):
                meant = how == TUNED if column == "gain" else name == COMPOUND and how != PRETRAINED
                known = meant and (other, row["at"]) in there
                one = (row["curve"], row["at"])
                difference = (
                    paired[row["at"]].difference(one, (other, row["at"])) if known else Difference(*(math.nan,) * 3)
                )
                row |= {f"{column}_{end}": value for end, value in difference._asdict().items()}
        return pd.DataFrame(rows)

    def finding(self, summary: pd.DataFrame) -> str:
        tuned = summary[summary["curve"].str.endswith(TUNED)]
        said = []
        for name in (BASELINE, COMPOUND):
            rows = tuned[tuned["curve"] == _curve(name, TUNED)].to_dict("records")
            gains = "; ".join(f"{row['label']} {_difference(row, 'gain')}" for row in rows)
            if gains:
                said.append(f"tuned less from scratch, {name}: {gains}")
        last = tuned[tuned["curve"] == _curve(COMPOUND, TUNED)].to_dict("records")
        if last:
            said.append(
                f"compound less baseline, both tuned for {last[-1]['label']}: {_difference(last[-1], 'scaled')}"
            )
        return "; ".join(said) + "." if said else "no tuned network has a finished training."

    def shown(self, summary: pd.DataFrame) -> list[dict[str, str]]:
        printed = published("transfer_table5").set_index("dataset")["efficientnet_acc_vs_public"].to_dict()
        rows = [
            {
                "network": str(row["curve"]).split(", ")[0],
                "how": str(row["curve"]).split(", ")[1],
                "on": str(row["data"]),
                "epochs": f"{row['epochs']:g}",
                "ratio": f"{row['macs_ratio']:.3f}",
                "seeds": str(row["seeds"]),
                "validation accuracy (%)": with_interval(row, "val_accuracy"),
                "less from scratch (points)": _difference(row, "gain"),
            }
            for row in summary.to_dict("records")
        ]
        for name in ("CIFAR-10", "CIFAR-100"):
            one = dict.fromkeys(rows[0], "-") | {"network": "EfficientNet-B0, the paper's Table 5", "how": TUNED}
            rows.append(one | {"on": name, "validation accuracy (%)": f"{printed[name]:.1f}"})
        return rows

    def draw(self, summary: pd.DataFrame, directory: Path, *, title: str) -> dict[str, Figure]:
        from scalesearch.figures.paper import Panel, draw_panels

        there = summary[~summary["curve"].str.endswith(PRETRAINED)]
        names = [_curve(name, how) for name in (BASELINE, COMPOUND) for how in (TUNED, SCRATCH)]
        lines = [curve(there, name, x="at", labelled=False) for name in names if (there["curve"] == name).any()]
        panel = Panel("", "epochs on the target", ACCURACY, lines, sorted(set(there["at"])))
        return {"transfer": draw_panels([panel], title=title, foot="Bars: 95 % intervals.")}


def _curve(network: str, how: str) -> str:
    return f"{network}, {how}"


def _difference(row: Mapping[Any, Any], column: str) -> str:
    difference = Difference(*(float(row[f"{column}_{end}"]) for end in Difference._fields))
    return "-" if math.isnan(difference.value) else str(difference)
