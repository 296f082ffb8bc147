"""ShuffleNetV2's unit: half of the channels pass, the others go through a branch, and both are shuffled together."""

from __future__ import annotations

import torch
from torch import Tensor

from scalesearch.model.blocks.block import Block, Layer
from scalesearch.model.records import BatchNorm, Convolution, Layers
from scalesearch.network import Place


class Shuffle(Block):
    """ShuffleNetV2's unit (arXiv:1807.11164, figure 3 c and d): half of the output by 1x1, depthwise and 1x1.

    The other half is the first half of the input; where the shape changes, a depthwise and a 1x1 convolution make it of
    all of the input, and the branch gets all of it too. Of an odd number of channels the branch has one more.
    """

    name = "shuffle"
    fields = ("channels", "kernel", "stride", "activation")
    pass_depthwise: Layer  # with all that passes absent where the block's output has the shape of its input
    pass_depthwise_norm: Layer
    pass_pointwise: Layer
    pass_pointwise_norm: Layer
    expand: Layer
    expand_norm: Layer
    depthwise: Layer
    depthwise_norm: Layer
    project: Layer
    project_norm: Layer

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.passing = place.channels // 2

    @staticmethod
    def layers(place: Place) -> Layers:
        entering, side, kernel, layers = place.in_channels, place.resolution, place.stage.kernel, Layers()
        passing = place.channels // 2
        branch = place.channels - passing

        def add(name: str, convolution: Convolution) -> None:
            layers[name] = convolution
            layers[f"{name}_norm"] = BatchNorm(convolution.out_channels, place.norm_epsilon)

        if passing and (place.stride != 1 or entering != place.channels):
            add("pass_depthwise", Convolution(entering, entering, side, kernel, place.stride, entering))
            add("pass_pointwise", Convolution(entering, passing, side))
        else:
            entering -= passing
        add("expand", Convolution(entering, branch, place.in_resolution))
        add("depthwise", Convolution(branch, branch, side, kernel, place.stride, branch))
        add("project", Convolution(branch, branch, side))
        return layers

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "pass_depthwise"):
            passed = self.pass_depthwise_norm(self.pass_depthwise(x))
            passed = self.activation(self.pass_pointwise_norm(self.pass_pointwise(passed)))
        else:
            passed, x = x[:, : self.passing], x[:, self.passing :]
        y = self.activation(self.expand_norm(self.expand(x)))
        y = self.depthwise_norm(self.depthwise(y))
        y = self.activation(self.project_norm(self.project(y)))
        even = torch.stack((passed, y[:, : self.passing]), dim=2).flatten(1, 2)  # one of each in turn
        return torch.cat((even, y[:, self.passing :]), dim=1) if y.shape[1] > self.passing else even
