"""The first row of EfficientNet-X: an inverted residual on patches that a learned convolution folded into channels."""

from __future__ import annotations

from torch import Tensor

from scalesearch.model.blocks.block import Chain, Layer, gate_layers
from scalesearch.model.blocks.inverted import InvertedResidual
from scalesearch.model.records import BatchNorm, Convolution, Layers
from scalesearch.network import Place


class FoldedInvertedResidual(InvertedResidual):
    """MBConv of `expand` 1 whose stride is a space-to-depth convolution in front (arXiv:2102.05610, section 4.1).

    It folds patches of `stride` px into as many times the channels, and the depthwise kernel is divided by `stride`.
    Where the stride is 1, it is an `mbconv`.
    """

    name = "folded_mbconv"
    fields = ("channels", "kernel", "stride", "squeeze_excite", "activation")
    fold: Layer  # with its norm absent where the stride is 1
    fold_norm: Layer

    @staticmethod
    def layers(place: Place) -> Layers:
        stage, entering, stride, side = place.stage, place.in_channels, place.stride, place.resolution
        if stride == 1:
            return InvertedResidual.layers(place)
        folded = entering * stride**2
        return Layers(
            fold=Convolution(entering, folded, side, stride, stride),
            fold_norm=BatchNorm(folded, place.norm_epsilon),
            depthwise=Convolution(folded, folded, side, -(-stage.kernel // stride), groups=folded),
            depthwise_norm=BatchNorm(folded, place.norm_epsilon),
            **gate_layers(stage, folded, int(entering * stage.squeeze_excite)),
            project=Convolution(folded, place.channels, side),
            project_norm=BatchNorm(place.channels, place.norm_epsilon),
        )

    def branch(self, x: Tensor) -> Tensor:
        return super().branch(self.activation(self.fold_norm(self.fold(x))) if hasattr(self, "fold") else x)

    def chain(self) -> Chain | None:
        return None if hasattr(self, "fold") else super().chain()
