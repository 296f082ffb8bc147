"""The torch module of a network, and the records of its layers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from torch import Tensor, nn

from scalesearch.model.blocks import BLOCKS, Block, Chain, Layer
from scalesearch.model.factory import (
    Imported,
    imported,
    make,
    make_on_meta,
    settings_kept,
    structure,
    trust,
    trusted,
    unchanged,
)
from scalesearch.model.failure import FactoryError
from scalesearch.model.folding import folded
from scalesearch.model.hidden import on_meta, unregistered
from scalesearch.model.records import BatchNorm, Convolution, Layers, Linear
from scalesearch.model.sources import sources, watched
from scalesearch.model.timm_models import of_timm, own_resolution
from scalesearch.network import DEFAULTS, AnyNetwork, Factory, Network, Place, Stage, where
from scalesearch.text import near

__all__ = [
    "BLOCKS",
    "BatchNorm",
    "Block",
    "Chain",
    "Convolution",
    "FactoryError",
    "Imported",
    "Layers",
    "Linear",
    "Model",
    "build",
    "build_on_meta",
    "classifier",
    "folded",
    "identity",
    "imported",
    "layers",
    "of_timm",
    "own_resolution",
    "settings_kept",
    "sources",
    "trust",
    "trusted",
    "unchanged",
    "unregistered",
    "watched",
]

_WORDS = {"image": "feature maps", "tokens": "tokens", "pooled": "pooled features"}


def layers(network: Network) -> Iterator[tuple[Place, Layers]]:
    """(place, records) of every block in the order of the forward pass; the classifier is not among them.

    Raises: ValueError: with the row and the field, for an unknown block, one that cannot stand at its place, or a row
        with a field that its block does not read.
    """
    blocks: dict[str, type[Block]] = {}
    given = "image"
    try:
        for row, stage in network.rows():
            blocks[row] = _fitting(stage, given)
            given = blocks[row].gives
        if given == "tokens":
            raise ValueError(f"block is {stage.block!r}, which leaves tokens; a class_token row must follow")
        for place in network.places():
            row = place.row
            yield place, blocks[row].layers(place)
    except ValueError as error:
        raise ValueError(f"baseline {network.name!r}: {where(row)}.{error}") from None


def classifier(network: Network) -> Linear:
    """The record of the last layer."""
    return Linear(network.features, network.num_classes)


def build(network: AnyNetwork) -> nn.Module:
    """The module: (B, in_channels, resolution, resolution) float images -> (B, num_classes) logits.

    Weights are drawn from torch's global generator: seed that first.
    """
    if isinstance(network, Factory):
        return make(network)
    blocks = [BLOCKS[place.stage.block](place) for place, _ in layers(network)]
    return Model(nn.Sequential(*blocks), network.dropout, classifier(network))


def build_on_meta(network: AnyNetwork) -> nn.Module:
    """As `build`, on torch's meta device: shapes without memory, and nothing is drawn."""
    if isinstance(network, Factory):
        return make_on_meta(network)
    with on_meta():
        return build(network)


def identity(network: AnyNetwork) -> dict[str, Any]:
    """Plain values that two networks share when they are the same network, and so the same training.

    Of a table the table; of a factory what it makes, whatever multipliers it was given.
    """
    if isinstance(network, Factory):
        given = network.table()
        kept = {key: given[key] for key in ("factory", "resolution", "in_channels", "num_classes")}
        return kept | {"structure": structure(network)}
    return network.table()


class Model(nn.Module):
    """Blocks, global average pooling, dropout, linear classifier."""

    classifier: Layer

    def __init__(self, blocks: nn.Sequential, dropout: float, classifier: Linear) -> None:
        super().__init__()
        self.blocks = blocks
        self.dropout = nn.Dropout(dropout)
        self.classifier = classifier.module()

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.blocks(x))

    def classify(self, features: Tensor) -> Tensor:
        """Logits (B, K) of what the blocks give, (B, C, H, W)."""
        return self.classifier(self.dropout(features.mean((2, 3))))


def _fitting(stage: Stage, given: str) -> type[Block]:
    """The row's block, where `given` comes in. Raises: ValueError: the row does not fit its block or its place."""
    try:
        block = BLOCKS[stage.block]
    except KeyError:
        raise ValueError(f"block is {stage.block!r}{near(stage.block, BLOCKS)}") from None
    except ValueError as error:  # of another package, and cannot be imported
        raise ValueError(f"block is {stage.block!r}: {error}") from error
    for name in _unread(block.fields):
        if (value := getattr(stage, name)) != DEFAULTS[name]:
            shown = f"{value:g}" if isinstance(value, float) else value
            raise ValueError(f"{name} is {shown}; a {stage.block} has none: leave it out")
    for name in ("channels", "heads"):
        if name in block.fields and not getattr(stage, name):
            raise ValueError(f"{name} is missing")
    if stage.block != "patch_embed" and stage.stride not in (1, 2, 4):
        raise ValueError(f"stride is {stage.stride}; of a {stage.block} it must be 1, 2 or 4")
    if given != block.takes and not (given == "pooled" and stage.block == "pooled_linear"):
        raise ValueError(f"block is {stage.block!r}, which takes {_WORDS[block.takes]}; it gets {_WORDS[given]}")
    if stage.repeats > 1 and block.gives != block.takes:
        raise ValueError(f"repeats is {stage.repeats}; a {stage.block} gives {_WORDS[block.gives]}: it stands once")
    return block


@cache
def _unread(fields: tuple[str, ...]) -> list[str]:
    """The fields of a row that a block which reads these does not read."""
    return [name for name in DEFAULTS if name not in ("block", "repeats", *fields)]
