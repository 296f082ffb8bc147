"""Table 5 of arXiv:1905.11946, in small: networks tuned from another set's weights against those from scratch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar

import pandas as pd
from annotated_types import MinLen

from scalesearch.checks import Must, between, checked
from scalesearch.data import describe
from scalesearch.figures.paper import Panel, draw_panels
from scalesearch.paper.experiment import Cost, Figures, PaperExperiment
from scalesearch.paper.panels import INTERVALS, curve, present
from scalesearch.paper.points import BASELINE, COMPOUND, CorrectByKey, Point, Setting
from scalesearch.paper.tables import ACCURACY, Difference, Paired, cells, published, summarised
from scalesearch.scaling import Coefficients

PRETRAINED, TUNED, SCRATCH = "pretrained", "tuned", "from scratch"


@checked("experiment", kw_only=True)
class Experiment(PaperExperiment):
    """The baseline and the compound variant of `cost`, trained on `data` and tuned on `target`, or trained there anew.

    epochs, batch_size, learning_rate: on the target, the same for tuned networks and for those from scratch. With
    `init` the baseline starts from those weights and is not trained on `data`.
    """

    cost: Cost
    coefficients: Coefficients
    epochs: Annotated[  # whole numbers stay so: they are in the keys of what is trained
        list[Annotated[int | float, between(0.01, 10_000)]],
        MinLen(1),
        Must("a list of numbers from 0.01 to 10000, one at least"),
    ]
    batch_size: int
    learning_rate: float
    tunes: ClassVar[bool] = True

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

    def summary(self, results: pd.DataFrame, correct: CorrectByKey) -> pd.DataFrame:
        """As `summarised`, with what tuning gains over training from scratch, and compound over the baseline."""
        first = results["curve"].str.endswith(PRETRAINED)
        # Seeds vary more after few epochs than after many, and on one set more than on another: none are pooled.
        parts = [results[first], *(rows for _, rows in results[~first].groupby("at"))]
        summary = pd.concat([summarised(part) for part in parts if len(part)], ignore_index=True)
        paired = {float(part["at"].iloc[0]): Paired(part, correct) for part in parts[1:]}
        rows = summary.to_dict("records")
        there = {(row["curve"], row["at"]): row for row in rows}
        for row in rows:
            name, how = row["curve"].split(", ")
            others = {
                "gain": _curve(name, SCRATCH) if how == TUNED else "",
                "scaled": _curve(BASELINE, how) if name == COMPOUND and how != PRETRAINED else "",
            }
            for column, curve_name in others.items():
                other = there.get((curve_name, row["at"]))
                difference = paired[row["at"]].difference(row, other) if other is not None else Difference()
                row |= difference.columns(column)
        return pd.DataFrame(rows)

    def finding(self, summary: pd.DataFrame) -> str:
        tuned = summary[summary["curve"].str.endswith(TUNED)]
        sentences = []
        for name in (BASELINE, COMPOUND):
            rows = tuned[tuned["curve"] == _curve(name, TUNED)].to_dict("records")
            gains = "; ".join(f"{row['label']} {Difference.of(row, 'gain')}" for row in rows)
            if gains:
                sentences.append(f"tuned less from scratch, {name}: {gains}")
        last = tuned[tuned["curve"] == _curve(COMPOUND, TUNED)].to_dict("records")
        if last:
            sentences.append(
                f"compound less baseline, both tuned for {last[-1]['label']}: {Difference.of(last[-1], 'scaled')}"
            )
        return "; ".join(sentences) + "." if sentences else "no tuned network has a finished training."

    def table(self, summary: pd.DataFrame) -> list[dict[str, str]]:
        printed = published("transfer_table5").set_index("dataset")["efficientnet_acc_vs_public"].to_dict()
        rows = [
            dict(zip(("network", "how"), str(row["curve"]).split(", "), strict=True))
            | {"on": str(row["data"])}
            | cells(row, "epochs", "ratio", "seeds", ACCURACY)
            | {"less from scratch (points)": str(Difference.of(row, "gain"))}
            for row in summary.to_dict("records")
        ]
        for name in ("CIFAR-10", "CIFAR-100"):
            one = dict.fromkeys(rows[0], "-") | {"network": "EfficientNet-B0, the paper's Table 5", "how": TUNED}
            rows.append(one | {"on": name, ACCURACY: f"{printed[name]:.1f}"})
        return rows

    def draw(self, summary: pd.DataFrame, directory: Path, *, title: str) -> Figures:
        there = summary[~summary["curve"].str.endswith(PRETRAINED)]
        names = [_curve(name, how) for name in (BASELINE, COMPOUND) for how in (TUNED, SCRATCH)]
        lines = [curve(there, name, x="at", labelled=False) for name in present(there, *names)]
        panel = Panel("", "epochs on the target", ACCURACY, lines, sorted(set(there["at"])))
        return {"transfer": draw_panels([panel], title=title, foot=INTERVALS)}


def _curve(network: str, how: str) -> str:
    return f"{network}, {how}"
