"""Table 7 and Figure 7 of arXiv:1905.11946: where networks look that were scaled in different ways.

The paper shows class activation maps (arXiv:1512.04150) of a few images. Here they are scored too: on data that knows
where its objects are, the share of a map's energy that lies on the object.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from scipy import stats
from torch import Tensor, nn

from scalesearch.checks import between, checked
from scalesearch.data import Data, load, val_boxes
from scalesearch.figures.paper import Line, Panel, draw_maps, draw_panels
from scalesearch.model import BLOCKS, build_on_meta
from scalesearch.network import AnyNetwork, Factory, Network
from scalesearch.paper.experiment import Cost, Figures, PaperExperiment
from scalesearch.paper.points import BASELINE, COMPOUND, SINGLE, CorrectByKey, Point, Setting, Trainings
from scalesearch.paper.tables import ACCURACY, CONFIDENCE, Difference, cells, published, summarised, with_interval
from scalesearch.scaling import Coefficients
from scalesearch.screen import Screen
from scalesearch.training import load_weights, resized

_SCORES = ("energy", "coarse", "hit", "no_map")
WAYS = (BASELINE, *SINGLE, COMPOUND)


@checked("experiment", kw_only=True)
class Experiment(PaperExperiment):
    """cost, coefficients: as of figure8, at one cost. images: how many are scored; pictures: how many are shown.

    A network of higher resolution has a finer map, which can be sharper whatever the network has learnt. So each map is
    scored twice: as it is, and averaged to the places of the coarsest one (`coarse`).
    """

    cost: Cost
    coefficients: Coefficients
    images: Annotated[int, between(1, 1_000_000)]
    pictures: Annotated[int, between(1, 100)]

    def __post_init__(self) -> None:
        if self.pictures > self.images:
            raise ValueError(
                f"experiment.pictures is {self.pictures}; it must be a whole number from 1 to experiment.images, "
                f"{self.images}"
            )

    def points(self, setting: Setting) -> list[Point]:
        if self.images > setting.data.num_val:
            raise ValueError(
                f"experiment.images is {self.images}, and there are {setting.data.num_val} to validate with"
            )
        num_maps(setting.baseline)
        if setting.data.name != "fashion_scenes":
            raise ValueError(
                f"data.name is {setting.data.name!r}, which does not say where objects are; data=fashion_scenes does"
            )
        return setting.ways([self.cost], self.coefficients, mixes=False)

    def measured(self, trainings: Trainings, results: pd.DataFrame, directory: Path, out: Screen) -> pd.DataFrame:
        """With what the maps of each training come to; maps.npz beside the tables has the pictures.

        energy: mean share of a map's energy in the box, coarse: the same of coarse maps; hit: share of images whose map
        is highest in the box. no_map: images without any energy, which are in no mean. box_share: mean share of the
        image that is the box.
        """
        data = load(trainings.setting.data, log=out.warn)
        boxes = val_boxes(trainings.setting.data, log=out.warn)[: self.images]
        inside = in_boxes(boxes, data.description.resolution)
        shown = first_of_each_class(data.val_labels[: self.images], self.pictures)
        pictures: dict[str, Tensor] = {}
        rows, side = [], data.description.resolution
        fewest = min(map_side(point.network) for point in trainings.points)
        for point in trainings.points:
            for seed in range(trainings.setting.seeds):
                outcome = trainings.outcome(point, seed)
                if outcome.result is None:
                    rows.append(dict.fromkeys(_SCORES, math.nan))
                    continue
                model = load_weights(point.network, trainings.ledger.weights_path(outcome.evaluation.key))
                small = class_maps(model, point.network, data, self.images)
                both = (found[:, None] for found in (small, F.adaptive_avg_pool2d(small, fewest)))
                maps, coarse = (F.interpolate(found, (side, side), mode="bilinear")[:, 0] for found in both)
                rows.append(scores(maps, inside) | {"coarse": scores(coarse, inside)["energy"]})
                if seed == 0:
                    peak = maps[shown].amax((1, 2), keepdim=True).clamp_min(1e-12)
                    pictures[point.curve] = maps[shown] / peak
            out.say(f"maps of {self.images} images: {point.curve} {point.label}")
        for name in _SCORES:
            results[name] = [row[name] for row in rows]
        results["box_share"] = float(inside.float().mean())
        directory.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            directory / "maps.npz",
            images=data.val_images[shown, 0].numpy(),
            boxes=boxes[shown].numpy(),
            names=np.array(list(pictures)),
            maps=np.round(255 * torch.stack(list(pictures.values()), 1).numpy()).astype(np.uint8),
        )
        return results

    def summary(self, results: pd.DataFrame, correct: CorrectByKey) -> pd.DataFrame:
        """As `summarised`, with energy and hit, the paper's top-1, and compound's energy less the best single one's."""
        summary = summarised(results, "energy", "coarse", "hit")
        first = results.groupby("curve", sort=False)
        summary["box_share"] = [float(first.get_group(name)["box_share"].iloc[0]) for name in summary["curve"]]
        summary["no_map"] = [int(first.get_group(name)["no_map"].sum()) for name in summary["curve"]]
        printed = dict(zip(WAYS, published("compound_vs_single_b0")["top1"], strict=True))
        summary["paper_top1"] = summary["curve"].map(printed)
        summary["best_single"] = ""
        singles = summary[summary["curve"].isin(SINGLE)]
        if len(singles) and (summary["curve"] == COMPOUND).any():
            best = singles.to_dict("records")[int(singles["energy_mean"].to_numpy(float).argmax())]["curve"]
            row = summary["curve"] == COMPOUND
            summary.loc[row, "best_single"] = best
            for kind, score in (("single", "energy"), ("single_coarse", "coarse")):
                for column, value in by_seed(results, COMPOUND, best, score).columns(f"less_{kind}").items():
                    summary.loc[row, column] = value
        return summary

    def finding(self, summary: pd.DataFrame) -> str:
        rows = summary.set_index("curve").to_dict("index")
        energies = ", ".join(f"{name} {100 * row['energy_mean']:.1f}" for name, row in rows.items())
        compound = rows.get(COMPOUND)
        uniform = 100 * float(summary["box_share"].iloc[0])
        known = (
            f"percent of a map's energy on the object: {energies}; a map that is the same everywhere has {uniform:.1f}"
        )
        if compound is None or not compound["best_single"]:
            return f"{known}."
        difference = Difference.of(compound, "less_single")
        words = {"better": "more", "worse": "less", "tied": "neither more nor less, as far as these seeds tell,"}
        more = words[difference.verdict]
        coarse = Difference.of(compound, "less_single_coarse")
        return (
            f"compound looks at the object {more} than {compound['best_single']}, {difference}, and {coarse} where all "
            f"maps are averaged to as few places; {known}."
        )

    def table(self, summary: pd.DataFrame) -> list[dict[str, str]]:
        return [
            cells(row, "scaled", "multipliers", "ratio")
            | {
                "energy on the object (%)": with_interval(row, "energy"),
                "of coarse maps (%)": with_interval(row, "coarse"),
                "highest on the object (%)": with_interval(row, "hit"),
                ACCURACY: with_interval(row, "val_accuracy"),
                "the paper's top-1 (%)": f"{row['paper_top1']:.1f}",
            }
            for row in summary.to_dict("records")
        ]

    def draw(self, summary: pd.DataFrame, directory: Path, *, title: str) -> Figures:
        lines = [
            Line(
                str(row["curve"]),
                [100 * row["val_accuracy_mean"]],
                [100 * row["energy_mean"]],
                [100 * row["energy_low"]],
                [100 * row["energy_high"]],
                [str(row["label"])],
            )
            for row in summary.to_dict("records")
        ]
        panel = Panel("", ACCURACY, "energy on the object (%)", lines)
        foot = (
            f"Bars: 95 % intervals. A map that is the same everywhere has {100 * summary['box_share'].iloc[0]:.1f} %."
        )
        figures = {"table7": draw_panels([panel], title=title, foot=foot)}
        with np.load(directory / "maps.npz") as kept:
            figures["table7_maps"] = draw_maps(
                kept["images"],
                kept["maps"].astype(np.float32) / 255,
                kept["names"].tolist(),
                kept["boxes"],
                title=title,
            )
        return figures


def num_maps(network: AnyNetwork) -> int:
    """Of a network's blocks, one after the other, how many give maps; what follows has no places any more.

    Raises: ValueError for a network without maps.
    """
    if isinstance(network, Factory):
        raise ValueError("a network of a Python function does not say which layer its maps are of; give a table")
    gives = [BLOCKS[row.block].gives for _, row in network.rows() for _ in range(row.repeats)]
    if "tokens" in gives or "image" not in gives:
        raise ValueError(
            f"{network.name} gives no maps before it pools; its blocks give {', '.join(sorted(set(gives)))}"
        )
    return gives.count("image")


def class_maps(model: nn.Module, network: AnyNetwork, data: Data, number: int, *, batch: int = 250) -> Tensor:
    """Grad-CAM of the true class on the first validation images: (number, h, w), one value per place, never below 0.

    Where a network ends in global average pooling and one linear layer, as ours do, this is the paper's class
    activation map but for a factor: the gradient of a class is then the layer's weight over the number of places.
    """
    blocks = model.get_submodule("blocks")
    assert isinstance(blocks, nn.Sequential)
    explain = LayerGradCam(model, blocks[num_maps(network) - 1])
    mean, std = (torch.tensor(v).mul(255).view(1, -1, 1, 1) for v in (data.mean, data.std))
    images = resized(data, "val", network.resolution)[:number]
    maps = []
    for start in range(0, number, batch):
        x, y = images[start : start + batch], data.val_labels[start : min(start + batch, number)]
        small = explain.attribute((x.float() - mean) / std, target=y, relu_attributions=True)  # (B, 1, h, w)
        maps.append(small.detach()[:, 0])
    return torch.cat(maps)


def map_side(network: AnyNetwork) -> int:
    """Places along a side of the last map."""
    assert isinstance(network, Network)
    blocks = build_on_meta(network).get_submodule("blocks")
    assert isinstance(blocks, nn.Sequential)
    image = torch.empty(1, network.in_channels, network.resolution, network.resolution, device="meta")
    return int(blocks[: num_maps(network)](image).shape[-1])


def in_boxes(boxes: Tensor, side: int) -> Tensor:
    """(N, side, side) bool: whether a pixel is in its image's box."""
    at = torch.arange(side)
    left, top, right, bottom = (values[:, None] for values in boxes.T)
    across, down = (at >= left) & (at < right), (at >= top) & (at < bottom)
    both: Tensor = down[:, :, None] & across[:, None, :]
    return both


def scores(maps: Tensor, inside: Tensor) -> dict[str, float]:
    """energy, hit and no_map of maps (N, C, C) and boxes of the same shape; see `Table7.measured`."""
    total = maps.sum((1, 2))
    seen = total > 0
    if not seen.any():
        return {"energy": math.nan, "hit": math.nan, "no_map": float(len(maps))}
    energy = (maps * inside).sum((1, 2))[seen] / total[seen]
    highest = maps[seen].flatten(1).argmax(1, keepdim=True)
    hit = inside[seen].flatten(1).gather(1, highest).float()
    return {"energy": float(energy.mean()), "hit": float(hit.mean()), "no_map": float((~seen).sum())}


def first_of_each_class(labels: Tensor, number: int) -> Tensor:
    """Indices of the first images of different classes; of all classes again where there are fewer."""
    order: list[int] = []
    while len(order) < number:
        met: set[int] = set()
        for index, label in enumerate(labels.tolist()):
            if index not in order and label not in met and len(order) < number:
                order.append(index)
                met.add(label)
    return torch.tensor(order)


def by_seed(results: pd.DataFrame, one: str, other: str, score: str) -> Difference:
    """Mean difference of a score over the seeds that both have, with a t interval over them."""
    table = (
        results[results["curve"].isin((one, other))].pivot_table(index="seed", columns="curve", values=score).dropna()
    )
    values = (table[one] - table[other]).to_numpy(float)
    if len(values) < 2:
        return Difference(float(values.mean()) if len(values) else math.nan)
    mean, deviation = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
    reach = float(stats.t.isf((1 - CONFIDENCE) / 2, len(values) - 1)) * deviation
    return Difference(mean, mean - reach, mean + reach)
