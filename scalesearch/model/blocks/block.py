"""What all blocks share: layers made of their records, and the gate that many may have.

Shapes: B images, C channels, H and W rows and columns, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalesearch.model.records import Convolution, Layers
from scalesearch.network import Place, Stage

Layer = Callable[[Tensor], Tensor]
"""How a block calls a layer. Which one it is, the record of the same name in `layers` says."""

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "relu6": lambda: nn.ReLU6(inplace=True),
    "silu": lambda: nn.SiLU(inplace=True),
    "hardswish": lambda: nn.Hardswish(inplace=True),
    "gelu": nn.GELU,
}


class Chain(NamedTuple):
    """What a block computes, as names of its layers in their order, for a form that computes it in fewer passes.

    layers: convolutions, norms, "activation" and at most one "gate", each applied to what the one before gives.
    shortcut: what is added to the last: () the block's input, or the layers of a shortcut; None: nothing.
    shared: how many of `layers` come before the layers of the shortcut, too.
    activated: whether the row's activation comes after the sum.
    """

    layers: tuple[str, ...]
    shortcut: tuple[str, ...] | None = None
    shared: int = 0
    activated: bool = False


class Block(nn.Module):
    """A block of a row: the layers of its records, in their order, and the row's activation.

    name: of the block in a table; a base of others has none.
    fields: of a row, besides `block` and `repeats`, that the block reads; without "channels" it keeps those it gets.
    takes, gives: "image" (B, C, H, W), "tokens" (B, N, C), or "pooled" (B, C, 1, 1).
    """

    name: ClassVar[str]
    fields: ClassVar[tuple[str, ...]]
    takes: ClassVar[str] = "image"
    gives: ClassVar[str] = "image"
    activation: Layer

    def __init__(self, place: Place) -> None:
        super().__init__()
        for name, record in self.layers(place).items():
            self.add_module(name, record.module())
        self.activation = ACTIVATIONS[place.activation]()

    @staticmethod
    def layers(place: Place) -> Layers:
        """The records of the block at `place`, by attribute name. Raises: ValueError: begins with the row's field."""
        raise NotImplementedError

    def chain(self) -> Chain | None:
        """The block as a chain; None where it is none, and `forward` is the only way."""
        return None


class GatedBlock(Block):
    """A block with a squeeze-and-excitation gate (arXiv:1709.01507) where its row has `squeeze_excite`.

    hard: whether the gate has a ReLU inside and is a hard sigmoid, whatever the row's activation (arXiv:1905.02244).
    """

    hard: ClassVar[bool] = False
    squeeze: Layer
    excite: Layer

    def gated(self, y: Tensor) -> Tensor:
        return y * self.gate(y.mean((2, 3), keepdim=True)) if hasattr(self, "squeeze") else y

    def gate(self, pooled: Tensor) -> Tensor:
        """What each channel is multiplied by, of its mean: (B, C, 1, 1) both."""
        if self.hard:
            return F.hardsigmoid(self.excite(F.relu(self.squeeze(pooled))))
        return torch.sigmoid(self.excite(self.activation(self.squeeze(pooled))))


def gate_layers(stage: Stage, channels: int, squeezed: int) -> Layers:
    """Records of the gate, none where the row has none; `squeezed` channels, and at least 1."""
    if not stage.squeeze_excite:
        return Layers()
    inner = max(1, squeezed)
    return Layers(squeeze=Convolution(channels, inner, 1, bias=True), excite=Convolution(inner, channels, 1, bias=True))
