"""The torch module of a network, and the records of its layers."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from scalesearch.model.blocks import BLOCKS
from scalesearch.model.factory import make, make_on_meta, structure, trust
from scalesearch.model.records import BatchNorm, Convolution, Layers, Linear
from scalesearch.network import AnyNetwork, Factory, Network, Place, Stage, where

__all__ = [
    "BLOCKS",
    "BatchNorm",
    "Convolution",
    "Layers",
    "Linear",
    "Model",
    "build",
    "build_on_meta",
    "classifier",
    "identity",
    "layers",
    "trust",
]

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Stage)}


def layers(network: Network) -> Iterator[tuple[Place, Layers]]:
    """(place, records) of every block in the order of the forward pass; the classifier is not among them.

    Errors: ValueError, with the row and the field, for a block that nobody knows, that cannot stand at its place,
    or whose row holds what it does not read.
    """
    try:
        given = "image"
        for row, stage in network.rows():
            given = _checked(where(row), stage, given)
        if given == "tokens":
            raise ValueError(
                f"{where(row)}.block is {stage.block!r}, which leaves tokens; a class_token row must follow"
            )
    except ValueError as error:
        raise ValueError(f"baseline {network.name!r}: {error}") from None
    for place in network.places():
        try:
            yield place, BLOCKS[place.stage.block].layers(place)
        except ValueError as error:
            raise ValueError(f"baseline {network.name!r}: {where(place.row)}.{error}") from None


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
    with torch.device("meta"):
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

    def __init__(self, blocks: nn.Sequential, dropout: float, classifier: Linear) -> None:
        super().__init__()
        self.blocks = blocks
        self.dropout = nn.Dropout(dropout)
        self.classifier = classifier.module()

    def forward(self, x: Tensor) -> Tensor:
        features = self.blocks(x)  # (B, C, H, W)
        return self.classifier(self.dropout(features.mean((2, 3))))


def _checked(row: str, stage: Stage, given: str) -> str:
    """What the row's block gives to the next one. Errors: ValueError where the row does not fit its block."""
    if stage.block not in BLOCKS:
        close = difflib.get_close_matches(stage.block, BLOCKS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"{row}.block is {stage.block!r}; {hint}known blocks: {', '.join(BLOCKS)}")
    block = BLOCKS[stage.block]
    for name, default in _DEFAULTS.items():
        value = getattr(stage, name)
        if name not in ("block", "repeats", *block.fields) and value != default:
            raise ValueError(f"{row}.{name} is {value}; a {stage.block} has none: leave it out")
    for name in ("channels", "heads"):
        if name in block.fields and not getattr(stage, name):
            raise ValueError(f"{row}.{name} is missing")
    if stage.block != "patch_embed" and stage.stride not in (1, 2, 4):
        raise ValueError(f"{row}.stride is {stage.stride}; of a {stage.block} it must be 1, 2 or 4")
    if given != block.takes and not (given == "pooled" and stage.block == "pooled_linear"):
        raise ValueError(f"{row}.block is {stage.block!r}, which takes {_WORDS[block.takes]}; it gets {_WORDS[given]}")
    if stage.repeats > 1 and block.gives != block.takes:
        raise ValueError(
            f"{row}.repeats is {stage.repeats}; a {stage.block} gives {_WORDS[block.gives]}: it stands once"
        )
    return block.gives


_WORDS = {"image": "feature maps", "tokens": "tokens", "pooled": "pooled features"}
