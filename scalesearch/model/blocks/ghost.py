"""GhostNet's bottleneck: half of the channels of each 1x1 convolution are made of the others by a depthwise one."""

from __future__ import annotations

import torch
from torch import Tensor

from scalesearch.model.blocks.block import GatedBlock, Layer, gate_layers
from scalesearch.model.records import BatchNorm, Convolution, Layers
from scalesearch.network import Place
from scalesearch.scaling import round_channels

_CHEAP = 3  # kernel of the depthwise convolutions that make ghosts: d in arXiv:1911.11907, section 3.2


class GhostBottleneck(GatedBlock):
    """GhostNet's bottleneck (arXiv:1911.11907, figure 3): a wide and a narrow ghost module, and a shortcut.

    Between the modules are a depthwise convolution where there is a stride, and the gate of MobileNetV3. Expanded and
    squeezed channels are multiples of 4, the squeezed ones a share of the expanded. `kernel` is of those convolutions
    that stand where the shape changes.
    """

    name = "ghost"
    hard = True
    fields = ("channels", "kernel", "stride", "expand", "squeeze_excite", "activation")
    expand: Layer
    expand_norm: Layer
    expand_ghosts: Layer
    expand_ghosts_norm: Layer
    depthwise: Layer  # with its norm absent where the stride is 1
    depthwise_norm: Layer
    project: Layer
    project_norm: Layer
    project_ghosts: Layer
    project_ghosts_norm: Layer
    shortcut_depthwise: Layer  # with all of the shortcut absent where the block's output has the shape of its input
    shortcut_depthwise_norm: Layer
    shortcut: Layer
    shortcut_norm: Layer

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.hidden, self.channels = _hidden(place), place.channels

    @staticmethod
    def layers(place: Place) -> Layers:
        stage, entering, side, layers = place.stage, place.in_channels, place.resolution, Layers()
        hidden = _hidden(place)

        def add(name: str, convolution: Convolution) -> None:
            layers[name] = convolution
            layers[f"{name}_norm"] = BatchNorm(convolution.out_channels, place.norm_epsilon)

        def add_ghosts(name: str, given: int, channels: int, resolution: int) -> None:
            half = -(-channels // 2)
            add(name, Convolution(given, half, resolution))
            add(f"{name}_ghosts", Convolution(half, half, resolution, _CHEAP, groups=half))

        add_ghosts("expand", entering, hidden, place.in_resolution)
        if place.stride > 1:
            add("depthwise", Convolution(hidden, hidden, side, stage.kernel, place.stride, hidden))
        layers |= gate_layers(stage, hidden, round_channels(hidden * stage.squeeze_excite, divisor=4))
        add_ghosts("project", hidden, place.channels, side)
        if place.stride > 1 or entering != place.channels:
            add("shortcut_depthwise", Convolution(entering, entering, side, stage.kernel, place.stride, entering))
            add("shortcut", Convolution(entering, place.channels, side))
        return layers

    def forward(self, x: Tensor) -> Tensor:
        own = self.activation(self.expand_norm(self.expand(x)))
        ghosts = self.activation(self.expand_ghosts_norm(self.expand_ghosts(own)))
        y = torch.cat((own, ghosts), dim=1)[:, : self.hidden]  # of an odd number of channels one ghost is left out
        if hasattr(self, "depthwise"):
            y = self.depthwise_norm(self.depthwise(y))
        own = self.project_norm(self.project(self.gated(y)))
        ghosts = self.project_ghosts_norm(self.project_ghosts(own))
        y = torch.cat((own, ghosts), dim=1)[:, : self.channels]
        if hasattr(self, "shortcut"):
            x = self.shortcut_norm(self.shortcut(self.shortcut_depthwise_norm(self.shortcut_depthwise(x))))
        return x + y


def _hidden(place: Place) -> int:
    return round_channels(place.in_channels * place.stage.expand, divisor=4)
