"""Inverted residuals: wide inside and narrow outside, as in MobileNetV2 to V4, EfficientNet and EfficientNetV2."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from scalesearch.model.blocks.block import Chain, GatedBlock, Layer, gate_layers
from scalesearch.model.records import BatchNorm, Convolution, Layers
from scalesearch.network import Place
from scalesearch.scaling import round_channels


class InvertedResidual(GatedBlock):
    """MBConv (arXiv:1801.04381, arXiv:1905.11946 section 4): 1x1 expansion, depthwise, squeeze, 1x1 projection.

    The squeezed channels are a share of the block's *input*, as in the TPU reference `efficientnet_model.py`.
    """

    name = "mbconv"
    fields: ClassVar[tuple[str, ...]]
    fields = ("channels", "kernel", "stride", "expand", "squeeze_excite", "activation")
    expand: Layer  # with its norm absent where the row's `expand` is 1
    expand_norm: Layer
    depthwise: Layer  # absent only of a subclass
    depthwise_norm: Layer
    project: Layer
    project_norm: Layer

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.residual = place.stride == 1 and place.in_channels == place.channels
        if self.residual:
            nn.init.zeros_(self.get_parameter("project_norm.weight"))

    @staticmethod
    def layers(place: Place) -> Layers:
        stage = place.stage
        hidden = max(1, round(place.in_channels * stage.expand))
        return _layers(place, hidden, int(place.in_channels * stage.squeeze_excite))

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        return x + y if self.residual else y

    def branch(self, x: Tensor) -> Tensor:
        if hasattr(self, "expand"):
            x = self.activation(self.expand_norm(self.expand(x)))
        if hasattr(self, "depthwise"):
            x = self.activation(self.depthwise_norm(self.depthwise(x)))
        return self.project_norm(self.project(self.gated(x)))

    def chain(self) -> Chain | None:
        steps = (
            ("first", "first_norm"),
            ("expand", "expand_norm", "activation"),
            ("depthwise", "depthwise_norm", "activation"),
            *((("gate",),) if hasattr(self, "squeeze") else ()),
            ("project", "project_norm"),
        )
        layers = tuple(name for step in steps if hasattr(self, step[0]) for name in step)
        return Chain(layers, shortcut=() if self.residual else None)


class HardInvertedResidual(InvertedResidual):
    """MobileNetV3's inverted residual (arXiv:1905.02244, section 5.3).

    Expanded and squeezed channels are multiples of 8, the squeezed ones a share of the expanded; the gate has a
    ReLU inside and is a hard sigmoid, whatever the row's activation.
    """

    name = "bneck"
    hard = True

    @staticmethod
    def layers(place: Place) -> Layers:
        stage, entering = place.stage, place.in_channels
        hidden = entering if stage.expand == 1 else round_channels(entering * stage.expand)
        return _layers(place, hidden, round_channels(hidden * stage.squeeze_excite))


def _layers(place: Place, hidden: int, squeezed: int) -> Layers:
    stage, epsilon, layers = place.stage, place.norm_epsilon, Layers()
    if stage.expand != 1:
        layers["expand"] = Convolution(place.in_channels, hidden, place.in_resolution)
        layers["expand_norm"] = BatchNorm(hidden, epsilon)
    layers["depthwise"] = Convolution(hidden, hidden, place.resolution, stage.kernel, place.stride, hidden)
    layers["depthwise_norm"] = BatchNorm(hidden, epsilon)
    layers |= gate_layers(stage, hidden, squeezed)
    layers["project"] = Convolution(hidden, place.channels, place.resolution)
    layers["project_norm"] = BatchNorm(place.channels, epsilon)
    return layers


class FusedInvertedResidual(GatedBlock):
    """Fused-MBConv (arXiv:2104.00298, section 3.2): one kxk convolution for expansion and depthwise.

    With `expand` 1 it is that convolution alone, norm and activation inside the residual.
    """

    name = "fused_mbconv"
    fields = ("channels", "kernel", "stride", "expand", "squeeze_excite", "activation")
    expand: Layer
    expand_norm: Layer
    project: Layer  # with its norm absent where the row's `expand` is 1
    project_norm: Layer

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.residual = place.stride == 1 and place.in_channels == place.channels
        if self.residual and hasattr(self, "project"):  # a ReLU after a zeroed norm would stop every gradient
            nn.init.zeros_(self.get_parameter("project_norm.weight"))

    @staticmethod
    def layers(place: Place) -> Layers:
        single = place.stage.expand == 1
        hidden = place.channels if single else max(1, round(place.in_channels * place.stage.expand))
        layers = _fused(place, hidden)
        if single:
            del layers["project"], layers["project_norm"]
        return layers

    def forward(self, x: Tensor) -> Tensor:
        y = self.gated(self.activation(self.expand_norm(self.expand(x))))
        if hasattr(self, "project"):
            y = self.project_norm(self.project(y))
        return x + y if self.residual else y

    def chain(self) -> Chain | None:
        if not hasattr(self, "project"):
            gated_or_added = self.residual or hasattr(self, "squeeze")
            return None if gated_or_added else Chain(("expand", "expand_norm", "activation"))
        gate = ("gate",) if hasattr(self, "squeeze") else ()
        layers = ("expand", "expand_norm", "activation", *gate, "project", "project_norm")
        return Chain(layers, shortcut=() if self.residual else None)


class EdgeResidual(FusedInvertedResidual):
    """Fused-MBConv with a projection whatever its `expand`, as in EfficientNet-EdgeTPU and timm's EfficientNetV2-RW."""

    name = "edge_residual"

    @staticmethod
    def layers(place: Place) -> Layers:
        return _fused(place, max(1, round(place.in_channels * place.stage.expand)))


def _fused(place: Place, hidden: int) -> Layers:
    layers = Layers(
        expand=Convolution(place.in_channels, hidden, place.resolution, place.stage.kernel, place.stride),
        expand_norm=BatchNorm(hidden, place.norm_epsilon),
    )
    layers |= gate_layers(place.stage, hidden, int(place.in_channels * place.stage.squeeze_excite))
    layers["project"] = Convolution(hidden, place.channels, place.resolution)
    layers["project_norm"] = BatchNorm(place.channels, place.norm_epsilon)
    return layers


class UniversalInvertedBottleneck(InvertedResidual):
    """MobileNetV4's block (arXiv:2404.10518): a depthwise convolution before the expansion, behind it, both, or none.

    The one before has `first_kernel`, and no activation; the one behind has `kernel`, and is left out where that is 1.
    The last of them has the stride. Expanded channels are multiples of 8.
    """

    name = "uib"
    fields = ("channels", "kernel", "stride", "expand", "first_kernel", "activation")
    first: Layer  # with its norm absent where the row has no `first_kernel`
    first_norm: Layer

    @staticmethod
    def layers(place: Place) -> Layers:
        stage, epsilon, entering, layers = place.stage, place.norm_epsilon, place.in_channels, Layers()
        hidden, side, stride = round_channels(entering * stage.expand), place.in_resolution, place.stride
        if stride > 1 and stage.kernel == 1 and not stage.first_kernel:
            raise ValueError(f"stride is {stride}; of a uib without a kernel above 1 it must be 1")
        if stage.first_kernel:
            own = 1 if stage.kernel > 1 else stride
            side = place.in_resolution if own == 1 else place.resolution
            layers["first"] = Convolution(entering, entering, side, stage.first_kernel, own, entering)
            layers["first_norm"] = BatchNorm(entering, epsilon)
        layers["expand"] = Convolution(entering, hidden, side)
        layers["expand_norm"] = BatchNorm(hidden, epsilon)
        if stage.kernel > 1:
            layers["depthwise"] = Convolution(hidden, hidden, place.resolution, stage.kernel, stride, hidden)
            layers["depthwise_norm"] = BatchNorm(hidden, epsilon)
        layers["project"] = Convolution(hidden, place.channels, place.resolution)
        layers["project_norm"] = BatchNorm(place.channels, epsilon)
        return layers

    def branch(self, x: Tensor) -> Tensor:
        return super().branch(self.first_norm(self.first(x)) if hasattr(self, "first") else x)
