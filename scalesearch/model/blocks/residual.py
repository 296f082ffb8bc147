"""Residual blocks of ResNet, ResNeXt, SENet and of the pre-activation ResNet."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from scalesearch.model.blocks.block import Chain, GatedBlock, Layer, gate_layers
from scalesearch.model.records import BatchNorm, Convolution, Layers
from scalesearch.network import Place
from scalesearch.scaling import round_channels


class _Residual(GatedBlock):
    """A branch of convolutions and a shortcut, which is a 1x1 convolution where the shape changes.

    zero: the weight at the end of the branch. It begins at zero, so that the block is its shortcut until it is trained.
    """

    zero: ClassVar[str]
    conv1: Layer
    norm1: Layer
    conv2: Layer
    norm2: Layer
    shortcut: Layer  # absent where the block's output has the shape of its input
    shortcut_norm: Layer

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        nn.init.zeros_(self.get_parameter(self.zero))

    def branch(self, x: Tensor) -> Tensor:
        """From the input, or of a pre-activation block from its activated input, up to the gate."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut_norm(self.shortcut(x)) if hasattr(self, "shortcut") else x
        return self.activation(shortcut + self.gated(self.branch(x)))

    def chain(self) -> Chain | None:
        if hasattr(self, "squeeze"):
            return None
        names = (f"{layer}{number}" for number in (1, 2, 3) for layer in ("conv", "norm"))
        layers = [name for name in names if hasattr(self, name)]
        inner = (part for layer in layers for part in ((layer, "activation") if layer.startswith("norm") else (layer,)))
        shortcut = tuple(name for name in ("shortcut", "shortcut_norm") if hasattr(self, name))
        return Chain(tuple(inner)[:-1], shortcut, activated=True)  # the last activation comes after the sum


class _Preactivation(_Residual):
    """Norm and activation come before each convolution (arXiv:1603.05027).

    The branch ends in a convolution, which begins at zero: zeroing the norm before it would stop every gradient, as
    relu'(0) is 0.
    """

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.norm1(x))
        shortcut = self.shortcut(y) if hasattr(self, "shortcut") else x
        return shortcut + self.gated(self.branch(y))

    def chain(self) -> Chain | None:
        if hasattr(self, "squeeze"):
            return None
        numbers = [number for number in (1, 2, 3) if hasattr(self, f"conv{number}")]
        layers = tuple(name for number in numbers for name in (f"norm{number}", "activation", f"conv{number}"))
        return Chain(layers, ("shortcut",) if hasattr(self, "shortcut") else (), shared=2)


class Basic(_Residual):
    """The basic residual block (arXiv:1512.03385, figure 5 left), with a 1x1 shortcut where the shape changes."""

    name = "basic"
    fields = ("channels", "kernel", "stride", "squeeze_excite", "squeeze_divisor", "activation")
    zero = "norm2.weight"

    @staticmethod
    def layers(place: Place) -> Layers:
        return _layers(place, _two(place))

    def branch(self, x: Tensor) -> Tensor:
        return self.norm2(self.conv2(self.activation(self.norm1(self.conv1(x)))))


class PreactivationBasic(_Preactivation):
    """Basic block with full pre-activation (arXiv:1603.05027): norm and activation come before each convolution."""

    name = "preact_basic"
    fields = Basic.fields
    zero = "conv2.weight"

    @staticmethod
    def layers(place: Place) -> Layers:
        return _layers(place, _two(place), norm_first=True)

    def branch(self, x: Tensor) -> Tensor:
        return self.conv2(self.activation(self.norm2(self.conv1(x))))


class Bottleneck(_Residual):
    """The bottleneck (arXiv:1512.03385, figure 5 right); its kxk convolution has the stride, as in the libraries.

    Inner channels are `expand` of the output; with `groups` it is ResNeXt's (arXiv:1611.05431), with
    `squeeze_excite` SENet's (arXiv:1709.01507).
    """

    name = "bottleneck"
    fields: ClassVar[tuple[str, ...]]
    fields = ("channels", "kernel", "stride", "expand", "groups", "squeeze_excite", "squeeze_divisor", "activation")
    zero = "norm3.weight"
    conv3: Layer
    norm3: Layer

    @staticmethod
    def layers(place: Place) -> Layers:
        return _layers(place, _three(place))

    def branch(self, x: Tensor) -> Tensor:
        y = self.activation(self.norm1(self.conv1(x)))
        y = self.activation(self.norm2(self.conv2(y)))
        return self.norm3(self.conv3(y))


class RegNetBottleneck(Bottleneck):
    """RegNetY's bottleneck (arXiv:2003.13678, section 5): the gate comes before the last convolution, not after it.

    The squeezed channels are a share of the block's *input*, and inner channels are usually all of the output's
    (`expand` 1). Without `squeeze_excite` it is RegNetX's, which is a `bottleneck` too.
    """

    name = "regnet"
    fields = ("channels", "kernel", "stride", "expand", "groups", "squeeze_excite", "activation")

    @staticmethod
    def layers(place: Place) -> Layers:
        convolutions = _three(place)
        inner = convolutions[1].out_channels
        gate = gate_layers(place.stage, inner, round(place.in_channels * place.stage.squeeze_excite))
        layers = _layers(place, convolutions, gate=Layers())
        after = ("conv3", "norm3", "shortcut", "shortcut_norm")
        ends = {name: layers.pop(name) for name in after if name in layers}
        return layers | gate | ends

    def branch(self, x: Tensor) -> Tensor:
        y = self.activation(self.norm1(self.conv1(x)))
        y = self.activation(self.norm2(self.conv2(y)))
        return self.norm3(self.conv3(super().gated(y)))

    def gated(self, y: Tensor) -> Tensor:
        return y

    def chain(self) -> Chain:
        gate = ("gate",) if hasattr(self, "squeeze") else ()
        shortcut = ("shortcut", "shortcut_norm") if hasattr(self, "shortcut") else ()
        first = ("conv1", "norm1", "activation", "conv2", "norm2", "activation")
        return Chain((*first, *gate, "conv3", "norm3"), shortcut, activated=True)


class PreactivationBottleneck(_Preactivation):
    """Bottleneck with full pre-activation (arXiv:1603.05027): norm and activation come before each convolution.

    Inner channels are `expand` (1/4) of the block's output; the 3x3 convolution has the stride.
    """

    name = "preact_bottleneck"
    fields = ("channels", "kernel", "stride", "expand", "squeeze_excite", "squeeze_divisor", "activation")
    zero = "conv3.weight"
    conv3: Layer
    norm3: Layer

    @staticmethod
    def layers(place: Place) -> Layers:
        return _layers(place, _three(place), norm_first=True)

    def branch(self, x: Tensor) -> Tensor:
        y = self.conv2(self.activation(self.norm2(self.conv1(x))))
        return self.conv3(self.activation(self.norm3(y)))


def _two(place: Place) -> tuple[Convolution, ...]:
    out, side, kernel = place.channels, place.resolution, place.stage.kernel
    first = Convolution(place.in_channels, out, side, kernel, place.stride)
    return first, Convolution(out, out, side, kernel)


def _three(place: Place) -> tuple[Convolution, ...]:
    stage, out, side = place.stage, place.channels, place.resolution
    inner = max(1, round(out * stage.expand))
    if inner % stage.groups:
        raise ValueError(f"groups is {stage.groups}; it must divide the {inner} inner channels (channels * expand)")
    return (
        Convolution(place.in_channels, inner, place.in_resolution),
        Convolution(inner, inner, side, stage.kernel, place.stride, stage.groups),
        Convolution(inner, out, side),
    )


def _layers(
    place: Place, convolutions: tuple[Convolution, ...], *, norm_first: bool = False, gate: Layers | None = None
) -> Layers:
    """conv1, norm1, conv2, ... or norm1, conv1, norm2, ...; then the gate, and the shortcut where the shape changes."""
    layers, out = Layers(), place.channels
    for number, conv in enumerate(convolutions, start=1):
        if norm_first:
            layers[f"norm{number}"] = BatchNorm(conv.in_channels, place.norm_epsilon)
        layers[f"conv{number}"] = conv
        if not norm_first:
            layers[f"norm{number}"] = BatchNorm(conv.out_channels, place.norm_epsilon)
    layers |= gate_layers(place.stage, out, _squeezed(place)) if gate is None else gate
    if place.stride != 1 or place.in_channels != out:
        layers["shortcut"] = Convolution(place.in_channels, out, place.resolution, 1, place.stride)
        if not norm_first:
            layers["shortcut_norm"] = BatchNorm(out, place.norm_epsilon)
    return layers


def _squeezed(place: Place) -> int:
    share, divisor = place.channels * place.stage.squeeze_excite, place.stage.squeeze_divisor
    return int(share) if divisor == 1 else round_channels(share, divisor=divisor, limit=0)
