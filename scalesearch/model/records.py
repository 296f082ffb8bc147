"""The layers that blocks are made of, as records: what each costs, and the module that it becomes.

Shapes: B images, C channels, H and W rows and columns, N tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Convolution(NamedTuple):
    """A record of a 2-d convolution; `resolution` is its output's side in px.

    It is padded by half of its odd kernel; by an even one as TensorFlow does; or, where it cuts an image into patches,
    not at all.
    """

    in_channels: int
    out_channels: int
    resolution: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    bias: bool = False
    padded: bool = True

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
        even = self.padded and self.kernel % 2 == 0
        made = (_EvenConvolution if even else nn.Conv2d)(
            self.in_channels,
            self.out_channels,
            self.kernel,
            self.stride,
            self.kernel // 2 if self.padded and not even else 0,
            groups=self.groups,
            bias=self.bias,
        )
        if not made.weight.is_meta:  # where there is nothing to draw, torch takes 2 ms to draw nothing
            nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
        if made.bias is not None:
            nn.init.zeros_(made.bias)
        return made


class BatchNorm(NamedTuple):
    """A record of a batch norm: scale and shift are parameters, the running statistics are not."""

    channels: int
    epsilon: float
    macs: int = 0
    activations: int = 0

    @property
    def params(self) -> int:
        return 2 * self.channels

    def module(self) -> nn.Module:
        return nn.BatchNorm2d(self.channels, eps=self.epsilon)


class LayerNorm(NamedTuple):
    """A record of a layer norm over the channels of each token."""

    channels: int
    epsilon: float
    macs: int = 0
    activations: int = 0

    @property
    def params(self) -> int:
        return 2 * self.channels

    def module(self) -> nn.Module:
        return nn.LayerNorm(self.channels, eps=self.epsilon)


class Linear(NamedTuple):
    """A record of a linear layer with bias, applied to each of `tokens`."""

    in_features: int
    out_features: int
    tokens: int = 1

    @property
    def macs(self) -> int:
        return self.in_features * self.out_features * self.tokens

    @property
    def params(self) -> int:
        return self.in_features * self.out_features + self.out_features

    @property
    def activations(self) -> int:
        return self.out_features * self.tokens

    def module(self) -> nn.Module:
        return nn.Linear(self.in_features, self.out_features)


class Attention(NamedTuple):
    """A record of scaled dot-product attention: two products of N x N by C, no parameters."""

    channels: int
    heads: int
    tokens: int
    params: int = 0
    activations: int = 0

    @property
    def macs(self) -> int:
        return 2 * self.tokens**2 * self.channels

    def module(self) -> nn.Module:
        return _Attention(self.heads)


class Learned(NamedTuple):
    """A record of learned tokens: (1, tokens, channels), drawn with a standard deviation of 0.02."""

    tokens: int
    channels: int
    macs: int = 0
    activations: int = 0

    @property
    def params(self) -> int:
        return self.tokens * self.channels

    def module(self) -> nn.Module:
        return _Learned(self.tokens, self.channels)


class LayerScale(NamedTuple):
    """A record of a learned factor of each channel, the last axis; all begin at `initial` (arXiv:2103.17239)."""

    channels: int
    initial: float
    macs: int = 0
    activations: int = 0

    @property
    def params(self) -> int:
        return self.channels

    def module(self) -> nn.Module:
        return _LayerScale(self.channels, self.initial)


Record = Convolution | BatchNorm | LayerNorm | Linear | Attention | Learned | LayerScale
Layers = dict[str, Record]


class _EvenConvolution(nn.Conv2d):
    """Padded so that ceil(side / stride) remains, by one pixel more at the right and the lower edge where it is odd."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        rows, columns = (max(0, (-(-side // stride) - 1) * stride + kernel - side) for side in x.shape[2:])
        around = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
        return super().forward(F.pad(x, around))


class _Attention(nn.Module):
    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, queries_keys_values: Tensor) -> Tensor:
        """(B, N, 3 C) -> (B, N, C)"""
        images, tokens, _ = queries_keys_values.shape
        parts = queries_keys_values.view(images, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        queries, keys, values = parts.unbind(0)  # (B, heads, N, C / heads) each
        mixed = F.scaled_dot_product_attention(queries, keys, values)
        return mixed.transpose(1, 2).reshape(images, tokens, -1)


class _LayerScale(nn.Module):
    def __init__(self, channels: int, initial: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class _Learned(nn.Module):
    def __init__(self, tokens: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, tokens, channels))
        if not self.weight.is_meta:
            nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self) -> Tensor:
        return self.weight
