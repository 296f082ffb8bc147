"""The vision transformer (arXiv:2010.11929): patches, blocks of attention, and the class token as head."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from scalesearch.model.blocks.block import Block, Layer
from scalesearch.model.records import Attention, Convolution, LayerNorm, Layers, Learned, Linear
from scalesearch.network import Place


class PatchEmbedding(Block):
    """A vision transformer's stem (arXiv:2010.11929, equation 1): patches of `stride` px, class token, positions.

    The class token is the first of the 1 + (resolution / stride)^2 tokens; each has a learned position.
    """

    name = "patch_embed"
    fields = ("channels", "stride")
    gives = "tokens"
    class_token: Callable[[], Tensor]
    position: Callable[[], Tensor]
    patches: Layer

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

    name = "transformer"
    fields = ("channels", "heads", "expand", "activation")
    takes, gives = "tokens", "tokens"
    norm1: Layer
    queries_keys_values: Layer
    attention: Layer
    mixed: Layer
    norm2: Layer
    expand: Layer
    project: Layer

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

    name = "class_token"
    fields = ()
    takes, gives = "tokens", "pooled"
    norm: Layer

    @staticmethod
    def layers(place: Place) -> Layers:
        return {"norm": LayerNorm(place.channels, place.norm_epsilon)}

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x[:, 0])[:, :, None, None]


def _tokens(place: Place) -> int:
    return 1 + place.resolution**2
