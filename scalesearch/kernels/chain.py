"""A block's chain as one function of autograd, computed by the library.

Shapes: B images, C channels, H and W rows and columns; memory is channels_last.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from scalesearch.kernels.library import FUNCTIONS, Library
from scalesearch.model import Block, blocks
from scalesearch.model.blocks import GatedBlock

KINDS: dict[type[nn.Module], int] = {nn.ReLU: 1, nn.ReLU6: 2, nn.SiLU: 3, nn.Hardswish: 4}  # as in kernels.c
RELU, SIGMOID, HARDSIGMOID = 1, 5, 6
RAW, NORMALISED, BIASED = 0, 1, 2
_POINTER, _INTEGER = ctypes.c_void_p, ctypes.c_int64


class _Node(ctypes.Structure):
    _fields_ = (
        *((name, _POINTER) for name in ("values", "gradient", "scale", "shift", "mean", "inverse", "slopes")),
        *((name, _POINTER) for name in ("weight", "bias", "running_mean", "running_variance")),
        *((name, _POINTER) for name in ("weight_gradient", "bias_gradient", "gate", "gate_gradient", "sums")),
        *((name, _INTEGER) for name in ("channels", "images", "height", "width", "activation", "normalised")),
        ("epsilon", ctypes.c_double),
        ("momentum", ctypes.c_double),
    )


class _Convolution(ctypes.Structure):
    _fields_ = (
        *((name, _POINTER) for name in ("source", "to", "weight", "weight_gradient")),
        *((name, _INTEGER) for name in ("out_stride", "in_stride", "row_stride", "column_stride")),
        *((name, _INTEGER) for name in ("kernel", "stride", "padding", "depthwise", "wanted", "more", "last")),
    )


class _Chain(ctypes.Structure):
    _fields_ = (
        *((name, _POINTER) for name in ("nodes", "convolutions", "ending")),
        *((name, _INTEGER) for name in ("num_nodes", "num_convolutions")),
        *((name, _POINTER) for name in ("gated", "pooled", "gate")),
    )


class _Ending(ctypes.Structure):
    _fields_ = (("main", _POINTER), ("other", _POINTER), ("raw", _INTEGER), ("activation", _INTEGER))


class Map(NamedTuple):
    """A map between convolutions, and what is done to it where it is read: a norm or a bias, then an activation."""

    channels: int
    norm: nn.BatchNorm2d | None = None
    bias: Tensor | None = None
    activation: int = 0


class Link(NamedTuple):
    """A convolution from one map to another, by their indices."""

    convolution: nn.Conv2d
    source: int
    to: int


class Program(NamedTuple):
    """Maps, of which the first is the input; convolutions in their order; and the end.

    main, other: the maps that are added up; other is None for nothing, and the input as it is where it is 0.
    gated: the map that is multiplied by a gate, None where there is none; the gate's convolutions are the last two of
        `links`, the first of which reads the mean of the gated map over each image.
    """

    maps: tuple[Map, ...]
    links: tuple[Link, ...]
    main: int
    other: int | None
    activation: int
    gated: int | None

    @property
    def parameters(self) -> list[Tensor]:
        """Weights of the convolutions, then weight and bias of each norm, or the bias, of each map."""
        found: list[Tensor] = [link.convolution.weight for link in self.links]
        for one in self.maps:
            found += [one.norm.weight, one.norm.bias] if one.norm is not None else []
            found += [one.bias] if one.bias is not None else []
        return found

    def sizes(self, entering: tuple[int, int, int]) -> list[tuple[int, int, int]]:
        """(B, H, W) of each map, from that of the first; what is not a convolution's output is a mean."""
        sizes = [entering, *[(entering[0], 1, 1)] * (len(self.maps) - 1)]
        for link in self.links:
            images, *sides = sizes[link.source]
            kernel, stride = link.convolution.kernel_size[0], link.convolution.stride[0]
            height, width = ((side + 2 * int(link.convolution.padding[0]) - kernel) // stride + 1 for side in sides)
            sizes[link.to] = images, height, width
        return sizes


def program_of(block: Block) -> Program | None:
    """What the library does for the block's chain; None where it has none, or a layer unknown to the library.

    A block of another package that inherits a chain of ours, and may compute something else, has none.
    """
    own = type(block).__module__.startswith(f"{blocks.__name__}.") or "chain" in vars(type(block))
    chain = block.chain() if own else None
    if chain is None:
        return None
    first = getattr(block, chain.layers[0])
    maps = [Map(first.in_channels if isinstance(first, nn.Conv2d) else first.num_features)]
    reader = _Reader(block, maps, [])
    try:
        after_shared = reader.follow(chain.layers[: chain.shared], start=0)
        main = reader.follow(chain.layers[chain.shared :], start=after_shared)
        other: int | None = None
        if chain.shortcut is not None:
            other = reader.follow(chain.shortcut, start=after_shared) if chain.shortcut else 0
        activation = reader.kind("activation") if chain.activated else 0
        links = [*reader.links, *reader.gate()]
    except _UnknownError:
        return None
    if maps[main].activation and other is None and not activation:  # the last of the branch is the last of the chain
        activation, maps[main] = maps[main].activation, maps[main]._replace(activation=0)
    ends = {main, other or main}
    if not reader.links or main == 0 or any(maps[end].activation or end == reader.gated for end in ends):
        return None
    return Program(tuple(maps), tuple(links), main, other, activation, reader.gated)


class _UnknownError(Exception):
    """A layer that the library does not know, or one at a place where it does not know it."""


class _Reader:
    """Turns names of a block's layers into maps and links."""

    def __init__(self, block: Block, maps: list[Map], links: list[Link]) -> None:
        self.block, self.maps, self.links = block, maps, links
        self.gated: int | None = None

    def kind(self, name: str) -> int:
        found = KINDS.get(type(getattr(self.block, name)))
        if found is None:
            raise _UnknownError
        return found

    def follow(self, names: tuple[str, ...], *, start: int) -> int:
        """Adds the layers of these names, from the map `start` on; the index of the map that they end in."""
        at = start
        for name in names:
            before, module = self.maps[at], getattr(self.block, name)
            if name == "gate" and self.gated is None and before.norm is not None and at > 0:
                self.gated = at
            elif isinstance(module, nn.Conv2d) and _is_known(module):
                if at == self.gated and any(link.source == at for link in self.links):
                    raise _UnknownError
                self.maps.append(Map(module.out_channels))
                self.links.append(Link(module, at, len(self.maps) - 1))
                at = len(self.maps) - 1
            elif isinstance(module, nn.BatchNorm2d) and before == Map(before.channels) and _is_usual(module):
                self.maps[at] = before._replace(norm=module)
            elif before.norm is not None and not before.activation and at != self.gated:
                self.maps[at] = before._replace(activation=self.kind(name))
            else:
                raise _UnknownError
        return at

    def gate(self) -> list[Link]:
        """The gate's convolutions, with maps of their own: what is pooled, squeezed and excited."""
        if self.gated is None:
            return []
        block = self.block
        if not isinstance(block, GatedBlock) or type(block).gate is not GatedBlock.gate:
            raise _UnknownError
        squeeze, excite = block.get_submodule("squeeze"), block.get_submodule("excite")
        if not (isinstance(squeeze, nn.Conv2d) and isinstance(excite, nn.Conv2d)):
            raise _UnknownError
        if squeeze.kernel_size != (1, 1) or excite.kernel_size != (1, 1) or None in (squeeze.bias, excite.bias):
            raise _UnknownError
        inner, outer = (RELU, HARDSIGMOID) if block.hard else (self.kind("activation"), SIGMOID)
        pooled = len(self.maps)
        self.maps.append(Map(squeeze.in_channels))
        self.maps.append(Map(squeeze.out_channels, bias=squeeze.bias, activation=inner))
        self.maps.append(Map(excite.out_channels, bias=excite.bias, activation=outer))
        return [Link(squeeze, pooled, pooled + 1), Link(excite, pooled + 1, pooled + 2)]


def _is_usual(norm: nn.BatchNorm2d) -> bool:
    return norm.affine and norm.track_running_stats and norm.momentum is not None


def _is_known(convolution: nn.Conv2d) -> bool:
    kernel, stride, padding = convolution.kernel_size[0], convolution.stride[0], convolution.padding[0]
    depthwise = convolution.groups == convolution.in_channels == convolution.out_channels
    return (
        (convolution.groups == 1 or depthwise)
        and convolution.bias is None
        and convolution.dilation == (1, 1)
        and convolution.padding_mode == "zeros"
        and convolution.kernel_size == (kernel, kernel)
        and convolution.stride == (stride, stride)
        and convolution.padding == (padding, padding)
        and isinstance(padding, int)
        and padding < kernel
    )


class Fused:
    """A program that runs: (B, C, H, W) of float32 or float64 -> (B, C, H, W), with gradients, as in training mode."""

    def __init__(self, program: Program, library: Library) -> None:
        self.program, self.library, self.parameters = program, library, program.parameters
        self._counters = [
            one.norm.num_batches_tracked
            for one in program.maps
            if one.norm is not None and one.norm.num_batches_tracked is not None
        ]
        self._bound: dict[tuple[torch.Size, torch.dtype], _Bound] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """Raises: TypeError: a parameter is of another type than `x`, or not on the CPU."""
        for counter in self._counters:
            counter.add_(1)
        result: Tensor = _Function.apply(x, self, *self.parameters)
        return result

    def bound(self, x: Tensor) -> _Bound:
        key = (x.shape, x.dtype)
        if key not in self._bound:
            self._bound[key] = _Bound(self.program, self.library, x)
        return self._bound[key]


class _Kept(NamedTuple):
    """What the backward pass needs of the forward pass: the maps, and what their norms came to."""

    values: Tensor
    small: Tensor


class _Bound:
    """A program for inputs of one shape: the library's values, in which only addresses change from call to call."""

    def __init__(self, program: Program, library: Library, x: Tensor) -> None:
        assert library.loaded is not None
        self.program, self.dtype, self.parameters = program, x.dtype, program.parameters
        suffix = "float" if x.dtype == torch.float32 else "double"
        self.functions = {name: getattr(library.loaded, f"{name}_{suffix}") for name in FUNCTIONS}
        lanes = getattr(library.loaded, f"lanes_{suffix}")()
        sizes = program.sizes((x.shape[0], x.shape[2], x.shape[3]))
        self.entering = torch.Size(x.shape)
        self.shape = (x.shape[0], program.maps[program.main].channels, *sizes[program.main][1:])
        widths = [-(-one.channels // lanes) * lanes for one in program.maps]
        self.num_values = sum(math.prod(size) * width for size, width in zip(sizes, widths, strict=True))
        self.num_values += 0 if program.gated is None else x.shape[0] * widths[program.gated]
        self.width = sum(widths)
        self.nodes = (_Node * len(program.maps))()
        for node, one, (images, height, width) in zip(self.nodes, program.maps, sizes, strict=True):
            node.channels, node.images, node.height, node.width = one.channels, images, height, width
            node.activation = one.activation
            node.normalised = RAW if one.bias is None else BIASED
            if one.norm is not None:
                node.normalised, node.epsilon, node.momentum = NORMALISED, one.norm.eps, one.norm.momentum
        self.convolutions = (_Convolution * len(program.links))()
        for convolution, link in zip(self.convolutions, program.links, strict=True):
            module = link.convolution
            convolution.source, convolution.to = self._node(link.source), self._node(link.to)
            convolution.kernel, convolution.stride = module.kernel_size[0], module.stride[0]
            convolution.padding, convolution.depthwise = int(module.padding[0]), module.groups > 1
        # The backward pass goes from the last to the first; a map's gradient is complete with the first that reads it.
        sources = [link.source for link in program.links]
        for index, source in enumerate(sources):
            self.convolutions[index].more = source in sources[index + 1 :]
            self.convolutions[index].last = source not in sources[:index]
        self.chain = self._chain()
        self.addresses: list[int] = []

    def _node(self, index: int) -> int:
        return ctypes.addressof(self.nodes) + index * ctypes.sizeof(_Node)

    def _chain(self) -> _Chain:
        program = self.program
        self.ending = _Ending(
            self._node(program.main),
            None if program.other is None else self._node(program.other),
            program.other == 0,
            program.activation,
        )
        convolutions, ending = ctypes.addressof(self.convolutions), ctypes.addressof(self.ending)
        chain = _Chain(self._node(0), convolutions, ending, len(self.nodes), len(self.convolutions))
        if program.gated is not None:
            chain.num_convolutions -= 2
            chain.gated, chain.pooled = self._node(program.gated), self._node(program.links[-2].source)
            chain.gate = convolutions + chain.num_convolutions * ctypes.sizeof(_Convolution)
        return chain

    def _call(self, name: str, *arguments: Any) -> None:
        if self.functions[name](ctypes.byref(self.chain), *arguments):
            raise MemoryError(f"no memory for a chain of {len(self.program.links)} convolutions")

    def _bind(self, kept: _Kept, gradients: Tensor | None) -> Tensor:
        """Puts the addresses of memory and of parameters in; new sums, which must outlive the calls."""
        addresses = [parameter.data_ptr() for parameter in self.parameters]
        if addresses != self.addresses:
            self._bind_parameters()
            self.addresses = addresses
        sums = torch.zeros(2 * self.width, dtype=torch.float64)
        into = None if gradients is None else gradients.data_ptr()
        self.functions["bind"](
            ctypes.byref(self.chain), kept.values.data_ptr(), kept.small.data_ptr(), sums.data_ptr(), into
        )
        return sums

    def _bind_parameters(self) -> None:
        if any(parameter.dtype != self.dtype or parameter.is_cuda for parameter in self.parameters):
            raise TypeError(f"the images are {self.dtype}, and a parameter is not; all must be, and on the CPU")
        for node, one in zip(self.nodes, self.program.maps, strict=True):
            if (norm := one.norm) is not None:
                assert norm.running_mean is not None
                assert norm.running_var is not None
                node.weight, node.bias = norm.weight.data_ptr(), norm.bias.data_ptr()
                node.running_mean, node.running_variance = norm.running_mean.data_ptr(), norm.running_var.data_ptr()
            elif one.bias is not None:
                node.bias = one.bias.data_ptr()
        for convolution, link in zip(self.convolutions, self.program.links, strict=True):
            weight = link.convolution.weight
            convolution.weight = weight.data_ptr()
            convolution.out_stride, convolution.in_stride = weight.stride()[:2]
            convolution.row_stride, convolution.column_stride = weight.stride()[2:]

    def forward(self, x: Tensor) -> tuple[Tensor, _Kept]:
        kept = _Kept(torch.empty(self.num_values, dtype=self.dtype), torch.empty(6 * self.width, dtype=self.dtype))
        sums = self._bind(kept, None)
        rows = x.contiguous(memory_format=torch.channels_last)
        out = torch.empty(self.shape, dtype=self.dtype, memory_format=torch.channels_last)
        self._call("forward", rows.data_ptr(), out.data_ptr())
        del sums
        return out, kept

    def backward(self, gradient: Tensor, kept: _Kept, *, wanted: bool) -> tuple[Tensor | None, ...]:
        """Gradients of the input and of the parameters, in their order."""
        gradients = torch.empty_like(kept.values)
        sums = self._bind(kept, gradients)
        found = [torch.empty_like(parameter) for parameter in self.parameters]
        for convolution, link, into in zip(self.convolutions, self.program.links, found, strict=False):
            assert into.stride() == link.convolution.weight.stride()
            convolution.weight_gradient = into.data_ptr()
            convolution.wanted = wanted or link.source > 0 or self.program.maps[0].norm is not None
        others = iter(found[len(self.program.links) :])
        for node, one in zip(self.nodes, self.program.maps, strict=True):
            if one.norm is not None:
                node.weight_gradient = next(others).data_ptr()
            if one.norm is not None or one.bias is not None:
                node.bias_gradient = next(others).data_ptr()
        rows = gradient.contiguous(memory_format=torch.channels_last)
        entered = None
        if wanted:
            entered = torch.empty(self.entering, dtype=self.dtype, memory_format=torch.channels_last)
        self._call("backward", rows.data_ptr(), None if entered is None else entered.data_ptr())
        del sums
        return entered, *found


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, fused: Fused, *parameters: Tensor) -> Tensor:
        ctx.bound = fused.bound(x)
        ctx.save_for_backward(*parameters)  # so that torch notices a change of them in between
        out, ctx.kept = ctx.bound.forward(x)
        return out  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors
        x, *others = ctx.bound.backward(gradient, ctx.kept, wanted=ctx.needs_input_grad[0])
        return x, None, *others
