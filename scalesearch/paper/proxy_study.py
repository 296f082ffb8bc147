"""Does what helps a small network help a large one? Squeeze-and-excitation and mixup, on two depths of one ResNet.

After a published study on CIFAR-100 (published/cifar100_proxy.csv) that took pre-activation ResNet-29 for ResNet-164.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from scalesearch.fidelity.agreement import agreement, spearman
from scalesearch.paper.experiment import Experiment, with_interval
from scalesearch.paper.panels import ACCURACY
from scalesearch.paper.points import Correct, Point, Setting
from scalesearch.paper.summaries import CONFIDENCE, Difference, Paired, published, summarised

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

SIZES = ("small", "large")
VARIANTS = ("plain", "SE", "mixup", "SE + mixup")
PAPERS = {"small": "ResNet29 pre-activation", "large": "ResNet164 pre-activation"}  # its networks


@dataclass(frozen=True, kw_only=True)
class ProxyStudy(Experiment):
    """mixup: alpha of the variants that use it (arXiv:1710.09412 takes 1 for CIFAR).

    The baselines are four: the small network, the same with SE, the large one, and that with SE.
    """

    mixup: float

    asks: ClassVar[str] = "Do improvements that are found on a small network hold on a large one?"
    paper: ClassVar[str] = (
        "no figure of the paper; published elsewhere on CIFAR-100, one run each: 71.19, 71.62, 72.34, 74.72 % "
        "on ResNet-29 and 75.09, 76.70, 78.47, 79.40 % on ResNet-164 (plain, SE, mixup, both)"
    )
    rests_on: ClassVar[Sequence[str]] = (
        "four variants: a rank correlation of so few is uncertain whatever it is",
        "the published study trained each once, on CIFAR-100 for 160 epochs, and does not say which alpha mixup had",
    )

    def __post_init__(self) -> None:
        if not 0 < self.mixup <= 10:
            raise ValueError(f"experiment.mixup is {self.mixup}; it must be a number above 0, and 10 at most")

    def points(self, setting: Setting) -> list[Point]:
        networks = list(setting.baselines.values())
        if len(networks) != 4:
            raise ValueError(
                f"proxy_study compares four networks, and {len(networks)} are given; baselines has small, small with "
                "SE, large, large with SE"
            )
        mixed = replace(setting.recipe, mixup=self.mixup)
        found = []
        for size, (plain, gated) in zip(SIZES, (networks[:2], networks[2:]), strict=True):
            for number, name in enumerate(VARIANTS):
                network = gated if "SE" in name else plain
                recipe = mixed if "mixup" in name else setting.recipe
                init = setting.init.get(network.name)
                found.append(
                    setting.point(size, name, float(number), network, base=networks[0], recipe=recipe, init=init)
                )
        return found

    def summary(self, results: pd.DataFrame, correct: Mapping[str, Correct]) -> pd.DataFrame:
        """As `summarised`, with each variant's gain over its size's plain one, and the sizes' rank correlation."""
        import pandas as pd

        summary, paired = summarised(results), Paired(results, correct)
        papers = published("cifar100_proxy")
        papers["label"] = [_variant(row["se"] == "yes", row["mixup"] == "yes") for row in papers.to_dict("records")]
        printed = papers.set_index(["network", "label"])["test_accuracy_in_text"]
        rows: list[dict[Any, Any]] = summary.to_dict("records")
        there = {(row["curve"], row["at"]) for row in rows}
        for row in rows:
            row["paper_accuracy"] = float(printed[PAPERS[row["curve"]], row["label"]])
            known = row["at"] > 0 and (row["curve"], 0.0) in there
            gain = paired.difference((row["curve"], row["at"]), (row["curve"], 0.0)) if known else None
            row |= {f"gain_{end}": getattr(gain, end) if gain else math.nan for end in Difference._fields}
        sides = [_accuracies(results, size) for size in SIZES]
        both = ~np.isnan(np.stack(sides)).all(2).any(0)
        found = agreement(sides[0][both], sides[1][both], np.zeros(int(both.sum())), confidence=CONFIDENCE).spearman
        for row in rows:
            row |= {"spearman": found.value, "spearman_low": found.low, "spearman_high": found.high}
        return pd.DataFrame(rows)

    def finding(self, summary: pd.DataFrame) -> str:
        rows = summary.set_index(["curve", "label"]).to_dict("index")
        said = []
        for name in VARIANTS[1:]:
            gains = [
                Difference(*(float(rows[size, name][f"gain_{end}"]) for end in Difference._fields))
                for size in SIZES
                if (size, name) in rows
            ]
            if len(gains) == 2:
                small, large = (f"{gain}, {gain.verdict}" for gain in gains)
                said.append(f"{name} against plain: {small} on the small network; {large} on the large one")
        value, low, high = (float(summary[f"spearman{end}"].iloc[0]) for end in ("", "_low", "_high"))
        papers = [[rows[size, name]["paper_accuracy"] for name in VARIANTS if (size, name) in rows] for size in SIZES]
        theirs = float(spearman(*map(np.array, papers))) if len(papers[0]) == len(papers[1]) else math.nan
        rank = "not known" if math.isnan(value) else f"{value:.2f} ({low:.2f} to {high:.2f})"
        return f"{'; '.join(said)}; Spearman's rho of the variants {rank}, in the published study {theirs:.2f}."

    def shown(self, summary: pd.DataFrame) -> list[dict[str, str]]:
        rows = []
        for row in summary.to_dict("records"):
            gain = Difference(*(float(row[f"gain_{end}"]) for end in Difference._fields))
            rows.append(
                {
                    "network": str(row["curve"]),
                    "variant": str(row["label"]),
                    "blocks": f"{row['blocks']:g}",
                    "seeds": str(row["seeds"]),
                    "validation accuracy (%)": with_interval(row, "val_accuracy"),
                    "over plain (points)": "-" if math.isnan(gain.value) else str(gain),
                    "published, CIFAR-100 (%)": f"{row['paper_accuracy']:.2f}",
                }
            )
        return rows

    def draw(self, summary: pd.DataFrame, directory: Path, *, title: str) -> dict[str, Figure]:
        from scalesearch.figures.paper import Line, Panel, draw_panels

        rows = summary.set_index(["curve", "label"]).to_dict("index")
        both = [name for name in VARIANTS if all((size, name) in rows for size in SIZES)]
        panels = []
        for heading, score in (("ours", "val_accuracy_mean"), ("published, CIFAR-100", "paper_accuracy")):
            times = 100 if score == "val_accuracy_mean" else 1
            x, y = ([times * rows[size, name][score] for name in both] for size in SIZES)
            low, high = (
                [100 * rows["large", name][f"val_accuracy_{end}"] for name in both]
                if times == 100
                else [math.nan] * len(x)
                for end in ("low", "high")
            )
            line = Line("variants", x, y, low, high, both, joined=False)
            panels.append(Panel(heading, f"small network: {ACCURACY}", f"{heading}: large network (%)", [line]))
        return {"proxy_study": draw_panels(panels, title=title, foot="Bars: 95 % intervals of the large network.")}


def _variant(gated: bool, mixed: bool) -> str:
    return VARIANTS[2 * mixed + gated]


def _accuracies(results: pd.DataFrame, size: str) -> Any:
    """(variants, seeds) of one size; NaN where a training failed."""
    table = results[results["curve"] == size].pivot_table(
        index="label", columns="seed", values="val_accuracy", dropna=False
    )
    return table.reindex(list(VARIANTS)).to_numpy(float)
