"""The torch module of a network: one class a block, built from the records that its cost is counted on.

Every block class says in `layers(place)` which convolutions, batch norms and linear layers it has, by
attribute name. The constructor makes exactly these, and `cost` sums exactly these, so that the two cannot
disagree. To add a block: a class, and its name in `BLOCKS`.

Shapes: B images, C channels, H and W rows and columns.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from scalesearch.network import Network, Place


class Convolution(NamedTuple):
    """A record of a 2-d convolution, padded by half of its odd kernel; `resolution` is its output's side in px."""

    in_channels: int
    out_channels: int
    resolution: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    bias: bool = False

    @property
    def macs(self) -> int:
        return self.activations * (self.in_channels // self.groups) * self.kernel**2

    @property
    def params(self) -> int:
        weights = self.out_channels * (self.in_channels // self.groups) * self.kernel**2
        return weights + self.out_channels * self.bias

    @property
    def activations(self) -> int:
        return self.out_channels * self.resolution**2

    def module(self) -> nn.Module:
        return nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel,
            self.stride,
            self.kernel // 2,
            groups=self.groups,
            bias=self.bias,
        )


class BatchNorm(NamedTuple):
    """A record of a batch norm: scale and shift are parameters, the running statistics are not."""

    channels: int
    macs: int = 0
    activations: int = 0

    @property
    def params(self) -> int:
        return 2 * self.channels

    def module(self) -> nn.Module:
        return nn.BatchNorm2d(self.channels)


class Linear(NamedTuple):
    """A record of a linear layer with bias."""

    in_features: int
    out_features: int

    @property
    def macs(self) -> int:
        return self.in_features * self.out_features

    @property
    def params(self) -> int:
        return self.macs + self.out_features

    @property
    def activations(self) -> int:
        return self.out_features

    def module(self) -> nn.Module:
        return nn.Linear(self.in_features, self.out_features)


Layers = dict[str, Convolution | BatchNorm | Linear]

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "relu6": lambda: nn.ReLU6(inplace=True),
    "silu": lambda: nn.SiLU(inplace=True),
    "hardswish": lambda: nn.Hardswish(inplace=True),
    "gelu": nn.GELU,
}


class Block(Protocol):
    """What `BLOCKS` holds: the records of a block at a place, and the module made of them."""

    @staticmethod
    def layers(place: Place) -> Layers: ...

    def __call__(self, place: Place) -> nn.Module: ...


class ConvolutionOnly(nn.Module):
    """A convolution without norm or activation: the stem of pre-activation networks."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        _add(self, self.layers(place))

    @staticmethod
    def layers(place: Place) -> Layers:
        stage = place.stage
        return {"conv": Convolution(place.in_channels, stage.channels, place.resolution, stage.kernel, place.stride)}

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class ConvolutionNorm(nn.Module):
    """Convolution, batch norm, activation."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        _add(self, self.layers(place))
        self.activation = _ACTIVATIONS[place.activation]()

    @staticmethod
    def layers(place: Place) -> Layers:
        return ConvolutionOnly.layers(place) | {"norm": BatchNorm(place.stage.channels)}

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x)))


class NormActivation(nn.Module):
    """Batch norm and activation: the head of pre-activation networks."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        _add(self, self.layers(place))
        self.activation = _ACTIVATIONS[place.activation]()

    @staticmethod
    def layers(place: Place) -> Layers:
        stage = place.stage
        if stage.channels != place.in_channels or place.stride != 1:
            raise ValueError(
                f"{place.name}: channels is {stage.channels}; a norm keeps the {place.in_channels} it gets"
            )
        return {"norm": BatchNorm(stage.channels)}

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(x))


class InvertedResidual(nn.Module):
    """MBConv (arXiv:1801.04381, arXiv:1905.11946 section 4): 1x1 expansion, depthwise, squeeze, 1x1 projection.

    The squeezed channels are a share of the block's *input*, as in the TPU reference `efficientnet_model.py`.
    """

    def __init__(self, place: Place) -> None:
        super().__init__()
        _add(self, self.layers(place))
        self.activation = _ACTIVATIONS[place.activation]()
        self.residual = place.stride == 1 and place.in_channels == place.stage.channels
        if self.residual:
            nn.init.zeros_(self.get_parameter("project_norm.weight"))

    @staticmethod
    def layers(place: Place) -> Layers:
        stage, layers = place.stage, Layers()
        hidden = max(1, round(place.in_channels * stage.expand))
        if stage.expand != 1:
            layers["expand"] = Convolution(place.in_channels, hidden, place.in_resolution)
            layers["expand_norm"] = BatchNorm(hidden)
        layers["depthwise"] = Convolution(hidden, hidden, place.resolution, stage.kernel, place.stride, hidden)
        layers["depthwise_norm"] = BatchNorm(hidden)
        layers |= _squeeze_excite(hidden, place.in_channels * stage.squeeze_excite)
        layers["project"] = Convolution(hidden, stage.channels, place.resolution)
        layers["project_norm"] = BatchNorm(stage.channels)
        return layers

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if hasattr(self, "expand"):
            y = self.activation(self.expand_norm(self.expand(y)))
        y = self.activation(self.depthwise_norm(self.depthwise(y)))
        y = _squeezed(self, y, self.activation)
        y = self.project_norm(self.project(y))
        return x + y if self.residual else y


class PreactivationBottleneck(nn.Module):
    """Bottleneck with full pre-activation (arXiv:1603.05027): norm and activation come before each convolution.

    Inner channels are `expand` (1/4) of the block's output; the 3x3 convolution has the stride.
    """

    def __init__(self, place: Place) -> None:
        super().__init__()
        _add(self, self.layers(place))
        self.activation = _ACTIVATIONS[place.activation]()
        # The branch ends in a convolution. Zeroing the norm before it would stop every gradient: relu'(0) is 0.
        nn.init.zeros_(self.get_parameter("conv3.weight"))

    @staticmethod
    def layers(place: Place) -> Layers:
        stage = place.stage
        inner = max(1, round(stage.channels * stage.expand))
        layers = Layers(
            norm1=BatchNorm(place.in_channels),
            conv1=Convolution(place.in_channels, inner, place.in_resolution),
            norm2=BatchNorm(inner),
            conv2=Convolution(inner, inner, place.resolution, stage.kernel, place.stride),
            norm3=BatchNorm(inner),
            conv3=Convolution(inner, stage.channels, place.resolution),
        )
        layers |= _squeeze_excite(stage.channels, stage.channels * stage.squeeze_excite)
        if place.stride != 1 or place.in_channels != stage.channels:
            layers["shortcut"] = Convolution(place.in_channels, stage.channels, place.resolution, 1, place.stride)
        return layers

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.norm1(x))
        shortcut = self.shortcut(y) if hasattr(self, "shortcut") else x
        y = self.conv1(y)
        y = self.conv2(self.activation(self.norm2(y)))
        y = self.conv3(self.activation(self.norm3(y)))
        return shortcut + _squeezed(self, y, self.activation)


BLOCKS: dict[str, Block] = {
    "conv": ConvolutionOnly,
    "conv_norm": ConvolutionNorm,
    "norm": NormActivation,
    "mbconv": InvertedResidual,
    "preact_bottleneck": PreactivationBottleneck,
}


def layers(network: Network) -> Iterator[tuple[Place, Layers]]:
    """(place, records) of every block in the order of the forward pass; the classifier is not among them.

    Errors: ValueError for a block that nobody knows, or that cannot stand at its place.
    """
    for row, stage in network.rows():
        if stage.block not in BLOCKS:
            close = difflib.get_close_matches(stage.block, BLOCKS, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(
                f"baseline {network.name!r}: {row}.block is {stage.block!r}; {hint}known blocks: {', '.join(BLOCKS)}"
            )
    for place in network.places():
        try:
            yield place, BLOCKS[place.stage.block].layers(place)
        except ValueError as error:
            raise ValueError(f"baseline {network.name!r}: {error}") from None


def classifier(network: Network) -> Linear:
    """The record of the last layer."""
    return Linear(network.head.channels, network.num_classes)


def build(network: Network) -> nn.Module:
    """The module: (B, in_channels, resolution, resolution) float images -> (B, num_classes) logits.

    Weights are drawn from torch's global generator: seed that first.
    """
    blocks = [BLOCKS[place.stage.block](place) for place, _ in layers(network)]
    return Model(nn.Sequential(*blocks), network.dropout, classifier(network))


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


def _add(module: nn.Module, layers: Layers) -> None:
    for name, layer in layers.items():
        made = layer.module()
        if isinstance(made, nn.Conv2d):
            nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
            if made.bias is not None:
                nn.init.zeros_(made.bias)
        module.add_module(name, made)


def _squeeze_excite(channels: int, squeezed: float) -> Layers:
    """Records of a squeeze-and-excitation gate (arXiv:1709.01507), none where `squeezed` is 0."""
    if squeezed == 0:
        return Layers()
    inner = max(1, int(squeezed))
    return Layers(
        squeeze=Convolution(channels, inner, 1, bias=True),
        excite=Convolution(inner, channels, 1, bias=True),
    )


def _squeezed(module: nn.Module, y: Tensor, activation: nn.Module) -> Tensor:
    if not hasattr(module, "squeeze"):
        return y
    pooled = y.mean((2, 3), keepdim=True)  # (B, C, 1, 1)
    gate = module.excite(activation(module.squeeze(pooled)))
    return y * torch.sigmoid(gate)
