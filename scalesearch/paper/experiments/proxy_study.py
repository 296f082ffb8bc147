"""Does what helps a small network help a large one? Squeeze-and-excitation and mixup, on two depths of one ResNet.

After a published study on CIFAR-100 (published/cifar100_proxy.csv) that took pre-activation ResNet-29 for ResNet-164.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from annotated_types import Gt, Le

from scalesearch.checks import Must, checked
from scalesearch.fidelity.agreement import agreement, spearman
from scalesearch.figures.paper import Line, Panel, draw_panels
from scalesearch.paper.experiment import Figures, PaperExperiment
from scalesearch.paper.points import CorrectByKey, Point, Setting
from scalesearch.paper.tables import ACCURACY, CONFIDENCE, Difference, Paired, cells, published, summarised

SIZES = ("small", "large")
VARIANTS = ("plain", "SE", "mixup", "SE + mixup")
PAPERS = {"small": "ResNet29 pre-activation", "large": "ResNet164 pre-activation"}  # its networks


@checked("experiment", kw_only=True)
class Experiment(PaperExperiment):
    """mixup: alpha of the variants that use it (arXiv:1710.09412 takes 1 for CIFAR).

    The baselines are four: the small network, the same with SE, the large one, and that with SE.
    """

    mixup: Annotated[float, Gt(0), Le(10), Must("a number above 0, and 10 at most")]

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

    def summary(self, results: pd.DataFrame, correct: CorrectByKey) -> pd.DataFrame:
        """As `summarised`, with each variant's gain over its size's plain one, and the sizes' rank correlation."""
        paired = Paired(results, correct)
        papers = published("cifar100_proxy")
        papers["label"] = [
            VARIANTS[2 * (row["mixup"] == "yes") + (row["se"] == "yes")] for row in papers.to_dict("records")
        ]
        printed = papers.set_index(["network", "label"])["test_accuracy_in_text"]
        rows = summarised(results).to_dict("records")
        plain = {row["curve"]: row for row in rows if row["at"] == 0}
        for row in rows:
            row["paper_accuracy"] = float(printed[PAPERS[row["curve"]], row["label"]])
            known = row["at"] > 0 and row["curve"] in plain
            gain = paired.difference(row, plain[row["curve"]]) if known else Difference()
            row |= gain.columns("gain")
        sides = [_accuracies(results, size) for size in SIZES]
        both = ~np.isnan(np.stack(sides)).all(2).any(0)
        found = agreement(sides[0][both], sides[1][both], np.zeros(int(both.sum())), confidence=CONFIDENCE).spearman
        for row in rows:
            row |= {"spearman": found.value, "spearman_low": found.low, "spearman_high": found.high}
        return pd.DataFrame(rows)

    def finding(self, summary: pd.DataFrame) -> str:
        rows = summary.set_index(["curve", "label"]).to_dict("index")
        sentences = []
        for name in VARIANTS[1:]:
            gains = [Difference.of(rows[size, name], "gain") for size in SIZES if (size, name) in rows]
            if len(gains) == 2:
                small, large = (f"{gain}, {gain.verdict}" for gain in gains)
                sentences.append(f"{name} against plain: {small} on the small network; {large} on the large one")
        value, low, high = (float(summary[f"spearman{end}"].iloc[0]) for end in ("", "_low", "_high"))
        papers = [[rows[size, name]["paper_accuracy"] for name in VARIANTS if (size, name) in rows] for size in SIZES]
        theirs = float(spearman(*map(np.array, papers))) if len(papers[0]) == len(papers[1]) else math.nan
        rank = "not known" if math.isnan(value) else f"{value:.2f} ({low:.2f} to {high:.2f})"
        return f"{'; '.join(sentences)}; Spearman's rho of the variants {rank}, in the published study {theirs:.2f}."

    def table(self, summary: pd.DataFrame) -> list[dict[str, str]]:
        return [
            {"network": str(row["curve"]), "variant": str(row["label"])}
            | cells(row, "blocks", "seeds", ACCURACY)
            | {
                "over plain (points)": str(Difference.of(row, "gain")),
                "published, CIFAR-100 (%)": f"{row['paper_accuracy']:.2f}",
            }
            for row in summary.to_dict("records")
        ]

    def draw(self, summary: pd.DataFrame, directory: Path, *, title: str) -> Figures:
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


def _accuracies(results: pd.DataFrame, size: str) -> Any:
    """(variants, seeds) of one size; NaN where a training failed."""
    table = results[results["curve"] == size].pivot_table(
        index="label", columns="seed", values="val_accuracy", dropna=False
    )
    return table.reindex(list(VARIANTS)).to_numpy(float)
