"""Blocks that cut their input into patches of `stride` px: ConvNeXt's, and the space-to-depth stem.

Pixels at the right and the lower edge that fill no patch are left out.
"""

from __future__ import annotations

from torch import Tensor, nn

from scalesearch.model.blocks.block import Block, Layer
from scalesearch.model.records import BatchNorm, Convolution, LayerNorm, Layers, LayerScale, Linear
from scalesearch.network import Place

_FIRST_SCALE = 1e-6  # of a block's branch: arXiv:2201.03545, appendix A.1


class PatchNorm(Block):
    """ConvNeXt's stem (arXiv:2201.03545, section 2.2): a convolution of patches of `stride` px, and a layer norm."""

    name = "patch_norm"
    fields = ("channels", "stride")
    patches: Layer
    norm: Layer

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        _draw(self, "patches")

    @staticmethod
    def layers(place: Place) -> Layers:
        return Layers(patches=_patches(place, place.in_channels), norm=LayerNorm(place.channels, place.norm_epsilon))

    def forward(self, x: Tensor) -> Tensor:
        return _over_channels(self.norm, self.patches(x))


class ConvNeXt(Block):
    """ConvNeXt's block (arXiv:2201.03545, figure 4): depthwise convolution, layer norm, and an MLP at every pixel.

    Inner features are `expand` times the channels, and the branch ends in a learned factor of each channel. Where the
    shape changes, a layer norm and a convolution of patches of `stride` px come before it (section 2.6).
    """

    name = "convnext"
    fields = ("channels", "kernel", "stride", "expand", "activation")
    downsample_norm: Layer  # with its convolution absent where the block's output has the shape of its input
    downsample: Layer
    scale: Layer
    depthwise: Layer
    norm: Layer
    expand: Layer
    project: Layer

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        _draw(self, "depthwise", "expand", "project", *["downsample"] * hasattr(self, "downsample"))

    @staticmethod
    def layers(place: Place) -> Layers:
        out, side, layers = place.channels, place.resolution, Layers()
        if place.stride != 1 or place.in_channels != out:
            layers["downsample_norm"] = LayerNorm(place.in_channels, place.norm_epsilon)
            layers["downsample"] = _patches(place, place.in_channels)
        hidden = max(1, round(out * place.stage.expand))
        return layers | Layers(
            scale=LayerScale(out, _FIRST_SCALE),
            depthwise=Convolution(out, out, side, place.stage.kernel, groups=out, bias=True),
            norm=LayerNorm(out, place.norm_epsilon),
            expand=Linear(out, hidden, side**2),
            project=Linear(hidden, out, side**2),
        )

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "downsample"):
            x = self.downsample(_over_channels(self.downsample_norm, x))
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))  # (B, H, W, C)
        y = self.scale(self.project(self.activation(self.expand(y))))
        return x + y.permute(0, 3, 1, 2)


class PooledNorm(Block):
    """Global average pooling and layer norm: ConvNeXt's head."""

    name = "pooled_norm"
    fields = ()
    gives = "pooled"
    norm: Layer

    @staticmethod
    def layers(place: Place) -> Layers:
        return {"norm": LayerNorm(place.channels, place.norm_epsilon)}

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.mean((2, 3)))[:, :, None, None]


class SpaceToDepth(Block):
    """Patches of `stride` px as channels, then convolution, batch norm, activation (arXiv:2003.13630, section 2)."""

    name = "space_to_depth"
    fields = ("channels", "kernel", "stride", "activation")
    conv: Layer
    norm: Layer

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.stride = place.stride

    @staticmethod
    def layers(place: Place) -> Layers:
        folded = place.in_channels * place.stride**2
        return Layers(
            conv=Convolution(folded, place.channels, place.resolution, place.stage.kernel),
            norm=BatchNorm(place.channels, place.norm_epsilon),
        )

    def forward(self, x: Tensor) -> Tensor:
        images, channels, rows, columns = x.shape
        side = self.stride
        high, wide = rows // side, columns // side
        cut = x[:, :, : high * side, : wide * side].reshape(images, channels, high, side, wide, side)
        folded = cut.permute(0, 3, 5, 1, 2, 4).reshape(images, channels * side**2, high, wide)
        return self.activation(self.norm(self.conv(folded)))


def _patches(place: Place, entering: int) -> Convolution:
    return Convolution(entering, place.channels, place.resolution, place.stride, place.stride, bias=True, padded=False)


def _over_channels(norm: Layer, x: Tensor) -> Tensor:
    """A layer norm over the channels of each pixel. (B, C, H, W) -> (B, C, H, W)"""
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _draw(block: nn.Module, *names: str) -> None:
    for name in names:
        nn.init.trunc_normal_(block.get_parameter(f"{name}.weight"), std=0.02)
        nn.init.zeros_(block.get_parameter(f"{name}.bias"))
