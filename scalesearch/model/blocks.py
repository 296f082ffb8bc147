"""The blocks that a table's rows name: one class each, built from the records that its cost is counted on.

Every class says in `layers(place)` which layers it has, by attribute name. The constructor makes exactly these, and
`cost` sums exactly these, so that the two cannot disagree. To add a block: a class, and its name in `BLOCKS`.

Shapes: B images, C channels, H and W rows and columns, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalesearch.model.records import Attention, BatchNorm, Convolution, LayerNorm, Layers, Learned, Linear
from scalesearch.network import Place, Stage
from scalesearch.scaling import round_channels

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "relu6": lambda: nn.ReLU6(inplace=True),
    "silu": lambda: nn.SiLU(inplace=True),
    "hardswish": lambda: nn.Hardswish(inplace=True),
    "gelu": nn.GELU,
}


class Block(nn.Module):
    """What all blocks share: layers made of their records, and the row's activation.

    fields: of a row, besides `block` and `repeats`, that the block reads; without "channels" it keeps those it gets.
    takes, gives: "image" (B, C, H, W), "tokens" (B, N, C), or "pooled" (B, C, 1, 1).
    """

    fields: ClassVar[tuple[str, ...]]
    takes: ClassVar[str] = "image"
    gives: ClassVar[str] = "image"

    def __init__(self, place: Place) -> None:
        super().__init__()
        for name, record in self.layers(place).items():
            self.add_module(name, record.module())
        self.activation = ACTIVATIONS[place.activation]()

    @staticmethod
    def layers(place: Place) -> Layers:
        """The records of the block at `place`, by attribute name. Errors: ValueError that begins with the field."""
        raise NotImplementedError


class ConvolutionOnly(Block):
    """A convolution without norm or activation: the stem of pre-activation networks."""

    fields = ("channels", "kernel", "stride")

    @staticmethod
    def layers(place: Place) -> Layers:
        stage = place.stage
        return {"conv": Convolution(place.in_channels, place.channels, place.resolution, stage.kernel, place.stride)}

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class ConvolutionNorm(Block):
    """Convolution, batch norm, activation."""

    fields = ("channels", "kernel", "stride", "activation")

    @staticmethod
    def layers(place: Place) -> Layers:
        return ConvolutionOnly.layers(place) | {"norm": BatchNorm(place.channels, place.norm_epsilon)}

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x)))


class NormActivation(Block):
    """Batch norm and activation: the head of pre-activation networks."""

    fields = ("activation",)

    @staticmethod
    def layers(place: Place) -> Layers:
        return {"norm": BatchNorm(place.channels, place.norm_epsilon)}

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(x))


class MaxPooling(Block):
    """Max pooling, padded by half of its kernel: the second row of a ResNet's stem."""

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

    fields = ("channels", "kernel", "stride", "activation")

    @staticmethod
    def layers(place: Place) -> Layers:
        entering = place.in_channels
        return Layers(
            depthwise=Convolution(
                entering, entering, place.resolution, place.stage.kernel, place.stride, groups=entering
            ),
            depthwise_norm=BatchNorm(entering, place.norm_epsilon),
            pointwise=Convolution(entering, place.channels, place.resolution),
            pointwise_norm=BatchNorm(place.channels, place.norm_epsilon),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.depthwise_norm(self.depthwise(x)))
        return self.activation(self.pointwise_norm(self.pointwise(x)))


class InvertedResidual(Block):
    """MBConv (arXiv:1801.04381, arXiv:1905.11946 section 4): 1x1 expansion, depthwise, squeeze, 1x1 projection.

    The squeezed channels are a share of the block's *input*, as in the TPU reference `efficientnet_model.py`.
    """

    fields = ("channels", "kernel", "stride", "expand", "squeeze_excite", "activation")

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.residual = place.stride == 1 and place.in_channels == place.channels
        if self.residual:
            nn.init.zeros_(self.get_parameter("project_norm.weight"))

    @staticmethod
    def layers(place: Place) -> Layers:
        stage = place.stage
        hidden = max(1, round(place.in_channels * stage.expand))
        return _inverted_residual(place, hidden, int(place.in_channels * stage.squeeze_excite))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if hasattr(self, "expand"):
            y = self.activation(self.expand_norm(self.expand(y)))
        y = self.activation(self.depthwise_norm(self.depthwise(y)))
        y = self.squeezed(y)
        y = self.project_norm(self.project(y))
        return x + y if self.residual else y

    def squeezed(self, y: Tensor) -> Tensor:
        return _squeezed(self, y, self.activation)


class HardInvertedResidual(InvertedResidual):
    """MobileNetV3's inverted residual (arXiv:1905.02244, section 5.3).

    Expanded and squeezed channels are multiples of 8, the squeezed ones a share of the expanded; the gate has a
    ReLU inside and is a hard sigmoid, whatever the row's activation.
    """

    @staticmethod
    def layers(place: Place) -> Layers:
        stage, entering = place.stage, place.in_channels
        hidden = entering if stage.expand == 1 else round_channels(entering * stage.expand)
        return _inverted_residual(place, hidden, round_channels(hidden * stage.squeeze_excite))

    def squeezed(self, y: Tensor) -> Tensor:
        return _squeezed(self, y, F.relu, F.hardsigmoid)


class FusedInvertedResidual(Block):
    """Fused-MBConv (arXiv:2104.00298, section 3.2): one kxk convolution for expansion and depthwise.

    With `expand` 1 it is that convolution alone, norm and activation inside the residual.
    """

    fields = ("channels", "kernel", "stride", "expand", "squeeze_excite", "activation")

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.residual = place.stride == 1 and place.in_channels == place.channels
        if self.residual and hasattr(self, "project"):  # a ReLU after a zeroed norm would stop every gradient
            nn.init.zeros_(self.get_parameter("project_norm.weight"))

    @staticmethod
    def layers(place: Place) -> Layers:
        stage = place.stage
        single = stage.expand == 1
        hidden = place.channels if single else max(1, round(place.in_channels * stage.expand))
        layers = Layers(
            expand=Convolution(place.in_channels, hidden, place.resolution, stage.kernel, place.stride),
            expand_norm=BatchNorm(hidden, place.norm_epsilon),
        )
        layers |= _squeeze_excite(stage, hidden, int(place.in_channels * stage.squeeze_excite))
        if not single:
            layers["project"] = Convolution(hidden, place.channels, place.resolution)
            layers["project_norm"] = BatchNorm(place.channels, place.norm_epsilon)
        return layers

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.expand_norm(self.expand(x)))
        y = _squeezed(self, y, self.activation)
        if hasattr(self, "project"):
            y = self.project_norm(self.project(y))
        return x + y if self.residual else y


class Basic(Block):
    """The basic residual block (arXiv:1512.03385, figure 5 left), with a 1x1 shortcut where the shape changes."""

    fields = ("channels", "kernel", "stride", "squeeze_excite", "activation")

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        nn.init.zeros_(self.get_parameter("norm2.weight"))

    @staticmethod
    def layers(place: Place) -> Layers:
        stage, out = place.stage, place.channels
        layers = Layers(
            conv1=Convolution(place.in_channels, out, place.resolution, stage.kernel, place.stride),
            norm1=BatchNorm(out, place.norm_epsilon),
            conv2=Convolution(out, out, place.resolution, stage.kernel),
            norm2=BatchNorm(out, place.norm_epsilon),
        )
        return layers | _squeeze_excite(stage, out, int(out * stage.squeeze_excite)) | _shortcut(place)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return self.activation(_shortcut_of(self, x) + _squeezed(self, y, self.activation))


class Bottleneck(Block):
    """The bottleneck (arXiv:1512.03385, figure 5 right); its kxk convolution has the stride, as in the libraries.

    Inner channels are `expand` of the output; with `groups` it is ResNeXt's (arXiv:1611.05431), with
    `squeeze_excite` SENet's (arXiv:1709.01507).
    """

    fields = ("channels", "kernel", "stride", "expand", "groups", "squeeze_excite", "activation")

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        nn.init.zeros_(self.get_parameter("norm3.weight"))

    @staticmethod
    def layers(place: Place) -> Layers:
        stage, out, epsilon = place.stage, place.channels, place.norm_epsilon
        inner = max(1, round(out * stage.expand))
        if inner % stage.groups:
            raise ValueError(f"groups is {stage.groups}; it must divide the {inner} inner channels (channels * expand)")
        layers = Layers(
            conv1=Convolution(place.in_channels, inner, place.in_resolution),
            norm1=BatchNorm(inner, epsilon),
            conv2=Convolution(inner, inner, place.resolution, stage.kernel, place.stride, stage.groups),
            norm2=BatchNorm(inner, epsilon),
            conv3=Convolution(inner, out, place.resolution),
            norm3=BatchNorm(out, epsilon),
        )
        return layers | _squeeze_excite(stage, out, int(out * stage.squeeze_excite)) | _shortcut(place)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.norm1(self.conv1(x)))
        y = self.activation(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        return self.activation(_shortcut_of(self, x) + _squeezed(self, y, self.activation))


class PreactivationBasic(Block):
    """Basic block with full pre-activation (arXiv:1603.05027): norm and activation come before each convolution."""

    fields = ("channels", "kernel", "stride", "squeeze_excite", "activation")

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        # The branch ends in a convolution. Zeroing the norm before it would stop every gradient: relu'(0) is 0.
        nn.init.zeros_(self.get_parameter("conv2.weight"))

    @staticmethod
    def layers(place: Place) -> Layers:
        stage, out, epsilon = place.stage, place.channels, place.norm_epsilon
        layers = Layers(
            norm1=BatchNorm(place.in_channels, epsilon),
            conv1=Convolution(place.in_channels, out, place.resolution, stage.kernel, place.stride),
            norm2=BatchNorm(out, epsilon),
            conv2=Convolution(out, out, place.resolution, stage.kernel),
        )
        layers |= _squeeze_excite(stage, out, int(out * stage.squeeze_excite))
        return layers | _shortcut(place, norm=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.norm1(x))
        shortcut = self.shortcut(y) if hasattr(self, "shortcut") else x
        y = self.conv1(y)
        y = self.conv2(self.activation(self.norm2(y)))
        return shortcut + _squeezed(self, y, self.activation)


class PreactivationBottleneck(Block):
    """Bottleneck with full pre-activation (arXiv:1603.05027): norm and activation come before each convolution.

    Inner channels are `expand` (1/4) of the block's output; the 3x3 convolution has the stride.
    """

    fields = ("channels", "kernel", "stride", "expand", "squeeze_excite", "activation")

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        nn.init.zeros_(self.get_parameter("conv3.weight"))  # for the reason given in PreactivationBasic

    @staticmethod
    def layers(place: Place) -> Layers:
        stage, out, epsilon = place.stage, place.channels, place.norm_epsilon
        inner = max(1, round(out * stage.expand))
        layers = Layers(
            norm1=BatchNorm(place.in_channels, epsilon),
            conv1=Convolution(place.in_channels, inner, place.in_resolution),
            norm2=BatchNorm(inner, epsilon),
            conv2=Convolution(inner, inner, place.resolution, stage.kernel, place.stride),
            norm3=BatchNorm(inner, epsilon),
            conv3=Convolution(inner, out, place.resolution),
        )
        layers |= _squeeze_excite(stage, out, int(out * stage.squeeze_excite))
        return layers | _shortcut(place, norm=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.norm1(x))
        shortcut = self.shortcut(y) if hasattr(self, "shortcut") else x
        y = self.conv1(y)
        y = self.conv2(self.activation(self.norm2(y)))
        y = self.conv3(self.activation(self.norm3(y)))
        return shortcut + _squeezed(self, y, self.activation)


class PatchEmbedding(Block):
    """A vision transformer's stem (arXiv:2010.11929, equation 1): patches of `stride` px, class token, positions.

    The class token is the first of the 1 + (resolution / stride)^2 tokens; each has a learned position.
    """

    fields = ("channels", "stride")
    gives = "tokens"

    @staticmethod
    def layers(place: Place) -> Layers:
        patch, out = place.stride, place.channels
        if place.in_resolution % patch:
            raise ValueError(f"stride is {patch}; the resolution, {place.in_resolution} px, must be a multiple of it")
        return Layers(
            class_token=Learned(1, out),
            position=Learned(_tokens(place), out),
            patches=Convolution(place.in_channels, out, place.resolution, patch, patch, bias=True, padded=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)  # (B, N - 1, C)
        first = self.class_token().expand(x.shape[0], -1, -1)  # len(x) would fix the batch size of an export
        return torch.cat((first, patches), dim=1) + self.position()


class Transformer(Block):
    """A transformer's block with the norms first (arXiv:2010.11929, equations 2 and 3): attention, then the MLP.

    `expand` is the ratio of the MLP's inner features to the channels.
    """

    fields = ("channels", "heads", "expand", "activation")
    takes, gives = "tokens", "tokens"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        for name in ("queries_keys_values", "mixed", "expand", "project"):
            nn.init.trunc_normal_(self.get_parameter(f"{name}.weight"), std=0.02)
            nn.init.zeros_(self.get_parameter(f"{name}.bias"))

    @staticmethod
    def layers(place: Place) -> Layers:
        stage, channels, tokens = place.stage, place.channels, _tokens(place)
        if channels != place.in_channels:
            raise ValueError(f"channels is {channels}; a transformer keeps the {place.in_channels} that it gets")
        if channels % stage.heads:
            raise ValueError(f"heads is {stage.heads}; it must divide the {channels} channels")
        hidden = max(1, round(channels * stage.expand))
        return Layers(
            norm1=LayerNorm(channels, place.norm_epsilon),
            queries_keys_values=Linear(channels, 3 * channels, tokens),
            attention=Attention(channels, stage.heads, tokens),
            mixed=Linear(channels, channels, tokens),
            norm2=LayerNorm(channels, place.norm_epsilon),
            expand=Linear(channels, hidden, tokens),
            project=Linear(hidden, channels, tokens),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixed(self.attention(self.queries_keys_values(self.norm1(x))))
        return x + self.project(self.activation(self.expand(self.norm2(x))))


class ClassToken(Block):
    """A vision transformer's head: the layer norm of the class token, which alone goes on."""

    fields = ()
    takes, gives = "tokens", "pooled"

    @staticmethod
    def layers(place: Place) -> Layers:
        return {"norm": LayerNorm(place.channels, place.norm_epsilon)}

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x[:, 0])[:, :, None, None]


class PooledLinear(Block):
    """Global average pooling, linear layer, activation: the last row of MobileNetV3 (arXiv:1905.02244, section 5.1)."""

    fields = ("channels", "activation")
    gives = "pooled"

    @staticmethod
    def layers(place: Place) -> Layers:
        return {"linear": Linear(place.in_channels, place.channels)}

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.linear(x.mean((2, 3))))[:, :, None, None]


BLOCKS: dict[str, type[Block]] = {
    "conv": ConvolutionOnly,
    "conv_norm": ConvolutionNorm,
    "norm": NormActivation,
    "max_pool": MaxPooling,
    "depthwise_separable": DepthwiseSeparable,
    "mbconv": InvertedResidual,
    "fused_mbconv": FusedInvertedResidual,
    "bneck": HardInvertedResidual,
    "basic": Basic,
    "bottleneck": Bottleneck,
    "preact_basic": PreactivationBasic,
    "preact_bottleneck": PreactivationBottleneck,
    "patch_embed": PatchEmbedding,
    "transformer": Transformer,
    "class_token": ClassToken,
    "pooled_linear": PooledLinear,
}


def _inverted_residual(place: Place, hidden: int, squeezed: int) -> Layers:
    stage, epsilon, layers = place.stage, place.norm_epsilon, Layers()
    if stage.expand != 1:
        layers["expand"] = Convolution(place.in_channels, hidden, place.in_resolution)
        layers["expand_norm"] = BatchNorm(hidden, epsilon)
    layers["depthwise"] = Convolution(hidden, hidden, place.resolution, stage.kernel, place.stride, hidden)
    layers["depthwise_norm"] = BatchNorm(hidden, epsilon)
    layers |= _squeeze_excite(stage, hidden, squeezed)
    layers["project"] = Convolution(hidden, place.channels, place.resolution)
    layers["project_norm"] = BatchNorm(place.channels, epsilon)
    return layers


def _squeeze_excite(stage: Stage, channels: int, squeezed: int) -> Layers:
    """Records of a squeeze-and-excitation gate (arXiv:1709.01507), none where the row has none."""
    if not stage.squeeze_excite:
        return Layers()
    inner = max(1, squeezed)
    return Layers(
        squeeze=Convolution(channels, inner, 1, bias=True),
        excite=Convolution(inner, channels, 1, bias=True),
    )


def _squeezed(
    module: nn.Module,
    y: Tensor,
    activation: Callable[[Tensor], Tensor],
    gate: Callable[[Tensor], Tensor] = torch.sigmoid,
) -> Tensor:
    if not hasattr(module, "squeeze"):
        return y
    pooled = y.mean((2, 3), keepdim=True)  # (B, C, 1, 1)
    return y * gate(module.excite(activation(module.squeeze(pooled))))


def _shortcut(place: Place, *, norm: bool = True) -> Layers:
    """Records of the 1x1 shortcut, none where the block's output has the shape of its input."""
    if place.stride == 1 and place.in_channels == place.channels:
        return Layers()
    layers = Layers(shortcut=Convolution(place.in_channels, place.channels, place.resolution, 1, place.stride))
    if norm:
        layers["shortcut_norm"] = BatchNorm(place.channels, place.norm_epsilon)
    return layers


def _shortcut_of(module: nn.Module, x: Tensor) -> Tensor:
    return module.shortcut_norm(module.shortcut(x)) if hasattr(module, "shortcut") else x


def _tokens(place: Place) -> int:
    return 1 + place.resolution**2
