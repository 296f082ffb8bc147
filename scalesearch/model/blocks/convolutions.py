"""Blocks of one or two layers: stems, heads and MobileNetV1."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from scalesearch.model.blocks.block import Block, Chain, Layer
from scalesearch.model.records import BatchNorm, Convolution, Layers, Linear
from scalesearch.network import Place


class ConvolutionOnly(Block):
    """A convolution without norm or activation: the stem of pre-activation networks."""

    name = "conv"
    fields = ("channels", "kernel", "stride")
    conv: Layer

    @staticmethod
    def layers(place: Place) -> Layers:
        stage = place.stage
        return {"conv": Convolution(place.in_channels, place.channels, place.resolution, stage.kernel, place.stride)}

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class ConvolutionNorm(Block):
    """Convolution, batch norm, activation."""

    name = "conv_norm"
    fields = ("channels", "kernel", "stride", "activation")
    conv: Layer
    norm: Layer

    @staticmethod
    def layers(place: Place) -> Layers:
        return ConvolutionOnly.layers(place) | {"norm": BatchNorm(place.channels, place.norm_epsilon)}

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x)))

    def chain(self) -> Chain:
        return Chain(("conv", "norm", "activation"))


class NormActivation(Block):
    """Batch norm and activation: the head of pre-activation networks."""

    name = "norm"
    fields = ("activation",)
    norm: Layer

    @staticmethod
    def layers(place: Place) -> Layers:
        return {"norm": BatchNorm(place.channels, place.norm_epsilon)}

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(x))


class MaxPooling(Block):
    """Max pooling, padded by half of its kernel: the second row of a ResNet's stem."""

    name = "max_pool"
    fields = ("kernel", "stride")

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.kernel, self.stride = place.stage.kernel, place.stride

    @staticmethod
    def layers(place: Place) -> Layers:
        return Layers()

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, self.kernel, self.stride, self.kernel // 2)


class DepthwiseSeparable(Block):
    """Depthwise and 1x1 convolution, each with norm and activation; no residual (arXiv:1704.04861, section 3.1)."""

    name = "depthwise_separable"
    fields = ("channels", "kernel", "stride", "activation")
    depthwise: Layer
    depthwise_norm: Layer
    pointwise: Layer
    pointwise_norm: Layer

    @staticmethod
    def layers(place: Place) -> Layers:
        entering, side = place.in_channels, place.resolution
        return Layers(
            depthwise=Convolution(entering, entering, side, place.stage.kernel, place.stride, groups=entering),
            depthwise_norm=BatchNorm(entering, place.norm_epsilon),
            pointwise=Convolution(entering, place.channels, side),
            pointwise_norm=BatchNorm(place.channels, place.norm_epsilon),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.depthwise_norm(self.depthwise(x)))
        return self.activation(self.pointwise_norm(self.pointwise(x)))

    def chain(self) -> Chain:
        steps = ("depthwise", "depthwise_norm", "activation", "pointwise", "pointwise_norm", "activation")
        return Chain(steps)


class PooledLinear(Block):
    """Global average pooling, linear layer, activation: the last row of MobileNetV3 (arXiv:1905.02244, section 5.1)."""

    name = "pooled_linear"
    fields = ("channels", "activation")
    gives = "pooled"
    linear: Layer

    @staticmethod
    def layers(place: Place) -> Layers:
        return {"linear": Linear(place.in_channels, place.channels)}

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.linear(x.mean((2, 3))))[:, :, None, None]


class PooledConvolution(Block):
    """Global average pooling, 1x1 convolution, norm, activation: the last row of MobileNetV4 (arXiv:2404.10518)."""

    name = "pooled_conv_norm"
    fields = ("channels", "activation")
    gives = "pooled"
    conv: Layer
    norm: Layer

    @staticmethod
    def layers(place: Place) -> Layers:
        return Layers(
            conv=Convolution(place.in_channels, place.channels, 1), norm=BatchNorm(place.channels, place.norm_epsilon)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x.mean((2, 3), keepdim=True))))
