"""A block's chain as one function of autograd, computed by the library.

Shapes: B images, C channels, H and W rows and columns; memory is channels_last.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from scalesearch.kernels.library import Library
from scalesearch.model import Block

KINDS: dict[type[nn.Module], int] = {nn.ReLU: 1, nn.ReLU6: 2, nn.SiLU: 3, nn.Hardswish: 4}  # as in kernels.c
_POINTER, _INTEGER = ctypes.c_void_p, ctypes.c_int64


class _Node(ctypes.Structure):
    _fields_ = (
        *((name, _POINTER) for name in ("values", "gradient", "scale", "shift", "mean", "inverse", "slopes")),
        *((name, _POINTER) for name in ("weight", "bias", "running_mean", "running_variance")),
        *((name, _POINTER) for name in ("weight_gradient", "bias_gradient", "gate", "sums")),
        *((name, _INTEGER) for name in ("channels", "images", "height", "width", "activation", "normalised")),
        ("epsilon", ctypes.c_double),
        ("momentum", ctypes.c_double),
    )


class _Convolution(ctypes.Structure):
    _fields_ = (
        *((name, _POINTER) for name in ("source", "to", "weight", "weight_gradient")),
        *((name, _INTEGER) for name in ("out_stride", "in_stride", "row_stride", "column_stride")),
        *((name, _INTEGER) for name in ("kernel", "stride", "padding", "wanted", "more", "last")),
    )


class _Ending(ctypes.Structure):
    _fields_ = (("main", _POINTER), ("other", _POINTER), ("raw", _INTEGER), ("activation", _INTEGER))


class Map(NamedTuple):
    """A map between convolutions, and what is done to it where it is read."""

    channels: int
    norm: nn.BatchNorm2d | None = None
    activation: int = 0


class Link(NamedTuple):
    """A convolution from one map to another, by their indices."""

    convolution: nn.Conv2d
    source: int
    to: int


class Program(NamedTuple):
    """Maps, of which the first is the input; convolutions in their order; and the end.

    main, other: the maps that are added up; other is None for nothing, and the input as it is where it is 0.
    """

    maps: tuple[Map, ...]
    links: tuple[Link, ...]
    main: int
    other: int | None
    activation: int

    def sizes(self, entering: tuple[int, int, int]) -> list[tuple[int, int, int]]:
        """(B, H, W) of each map, from that of the first."""
        sizes = [entering] * len(self.maps)
        for link in self.links:
            images, *sides = sizes[link.source]
            kernel, stride = link.convolution.kernel_size[0], link.convolution.stride[0]
            height, width = ((side + 2 * int(link.convolution.padding[0]) - kernel) // stride + 1 for side in sides)
            sizes[link.to] = images, height, width
        return sizes


def program_of(block: Block) -> Program | None:
    """What the library does for the block's chain; None where it has none, or a layer unknown to the library."""
    chain = block.chain()
    if chain is None:
        return None
    first = getattr(block, chain.layers[0])
    maps = [Map(first.in_channels if isinstance(first, nn.Conv2d) else first.num_features)]
    links: list[Link] = []
    try:
        after_shared = _follow(block, chain.layers[: chain.shared], maps, links, start=0)
        main = _follow(block, chain.layers[chain.shared :], maps, links, start=after_shared)
        other: int | None = None
        if chain.shortcut is not None:
            other = _follow(block, chain.shortcut, maps, links, start=after_shared) if chain.shortcut else 0
    except _UnknownError:
        return None
    activation = KINDS.get(type(block.get_submodule("activation")), -1) if chain.activated else 0
    if maps[main].activation and other is None and not activation:  # the last of the branch is the last of the chain
        activation, maps[main] = maps[main].activation, maps[main]._replace(activation=0)
    if not links or activation < 0 or main == 0 or any(maps[end].activation for end in {main, other or main}):
        return None
    return Program(tuple(maps), tuple(links), main, other, activation)


class _UnknownError(Exception):
    """A layer that the library does not know."""


def _follow(block: Block, names: tuple[str, ...], maps: list[Map], links: list[Link], *, start: int) -> int:
    """Adds the layers of these names, from the map `start` on; the index of the map that they end in."""
    at = start
    for name in names:
        module = getattr(block, name)
        before = maps[at]
        if isinstance(module, nn.Conv2d) and _is_known(module):
            maps.append(Map(module.out_channels))
            links.append(Link(module, at, len(maps) - 1))
            at = len(maps) - 1
        elif (
            isinstance(module, nn.BatchNorm2d)
            and before == Map(before.channels)
            and module.affine
            and module.track_running_stats
            and module.momentum is not None
        ):
            maps[at] = before._replace(norm=module)
        elif type(module) in KINDS and before.norm is not None and not before.activation:
            maps[at] = before._replace(activation=KINDS[type(module)])
        else:
            raise _UnknownError
    return at


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
        self.program, self.library = program, library
        self.parameters = [link.convolution.weight for link in program.links]
        for one in program.maps:
            if one.norm is not None:
                self.parameters += [one.norm.weight, one.norm.bias]
        self._bound: dict[tuple[torch.Size, torch.dtype], _Bound] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """Raises: TypeError: a parameter is of another type than `x`, or not on the CPU."""
        if any(parameter.dtype != x.dtype or parameter.is_cuda for parameter in (*self.parameters, x)):
            raise TypeError(f"the images are {x.dtype}, and a parameter is not; all must be, and on the CPU")
        for one in self.program.maps:
            if one.norm is not None and one.norm.num_batches_tracked is not None:
                one.norm.num_batches_tracked.add_(1)
        result: Tensor = _Function.apply(x, self, *self.parameters)
        return result

    def bound(self, x: Tensor) -> _Bound:
        key = (x.shape, x.dtype)
        if key not in self._bound:
            self._bound[key] = _Bound(self.program, self.library, x)
        return self._bound[key]


class _Bound:
    """A program for inputs of one shape: the library's values, in which only addresses change from call to call."""

    def __init__(self, program: Program, library: Library, x: Tensor) -> None:
        assert library.loaded is not None
        self.program, self.dtype = program, x.dtype
        self.suffix = "float" if x.dtype == torch.float32 else "double"
        self.loaded, self.size = library.loaded, x.element_size()
        lanes = self.loaded.lanes_float() if self.size == 4 else self.loaded.lanes_double()
        sizes = program.sizes((x.shape[0], x.shape[2], x.shape[3]))
        self.shape = (x.shape[0], program.maps[program.main].channels, *sizes[program.main][1:])
        self.nodes = (_Node * len(program.maps))()
        self.widths = [-(-one.channels // lanes) * lanes for one in program.maps]
        self.counts = [images * height * width for images, height, width in sizes]
        for node, one, (images, height, width) in zip(self.nodes, program.maps, sizes, strict=True):
            node.channels, node.images, node.height, node.width = one.channels, images, height, width
            node.activation, node.normalised = one.activation, one.norm is not None
            if one.norm is not None:
                node.epsilon, node.momentum = one.norm.eps, one.norm.momentum
        self.convolutions = (_Convolution * len(program.links))()
        consumers: set[int] = set()
        for index, link in reversed(list(enumerate(program.links))):  # the order of the backward pass
            convolution, weight = self.convolutions[index], link.convolution
            convolution.source, convolution.to = self._address(link.source), self._address(link.to)
            convolution.kernel, convolution.stride = weight.kernel_size[0], weight.stride[0]
            convolution.padding = int(weight.padding[0])
            convolution.more, convolution.last = link.source in consumers, 1
            consumers.add(link.source)
            for other in range(index + 1, len(program.links)):
                if program.links[other].source == link.source:
                    self.convolutions[other].last = 0
        self.ending = _Ending(
            self._address(program.main),
            None if program.other is None else self._address(program.other),
            program.other == 0,
            program.activation,
        )

    def _address(self, index: int) -> int:
        return ctypes.addressof(self.nodes) + index * ctypes.sizeof(_Node)

    def call(self, name: str, *arguments: Any) -> None:
        if getattr(self.loaded, f"{name}_{self.suffix}")(*arguments):
            raise MemoryError(f"no memory for {name} of a chain of {len(self.program.links)} convolutions")

    def place(self) -> tuple[Tensor, Tensor]:
        """Memory for the values of all maps, and for what their norms come to."""
        values = torch.empty(sum(c * w for c, w in zip(self.counts, self.widths, strict=True)), dtype=self.dtype)
        return values, torch.empty(6 * sum(self.widths), dtype=self.dtype)

    def bind(self, values: Tensor, small: Tensor) -> Tensor:
        """Puts the addresses of the memory and of the parameters in; new sums, which are zero."""
        sums = torch.zeros(2 * sum(self.widths), dtype=torch.float64)
        at, beside, summed = values.data_ptr(), small.data_ptr(), sums.data_ptr()
        for node, one, width, count in zip(self.nodes, self.program.maps, self.widths, self.counts, strict=True):
            node.values, node.sums = at, summed
            at += count * width * self.size
            summed += 16 * width
            if one.norm is not None:
                step = width * self.size
                node.scale, node.shift, node.mean = beside, beside + step, beside + 2 * step
                node.inverse, node.slopes = beside + 3 * step, beside + 4 * step
                norm = one.norm
                assert norm.running_mean is not None
                assert norm.running_var is not None
                node.weight, node.bias = norm.weight.data_ptr(), norm.bias.data_ptr()
                node.running_mean, node.running_variance = norm.running_mean.data_ptr(), norm.running_var.data_ptr()
            beside += 6 * width * self.size
        for convolution, link in zip(self.convolutions, self.program.links, strict=True):
            weight = link.convolution.weight
            convolution.weight = weight.data_ptr()
            convolution.out_stride, convolution.in_stride, convolution.row_stride, convolution.column_stride = (
                weight.stride()
            )
        return sums

    def forward(self, x: Tensor, values: Tensor, small: Tensor) -> Tensor:
        sums = self.bind(values, small)
        rows = x.contiguous(memory_format=torch.channels_last)
        self.call("enter", self._pointer(0), _POINTER(rows.data_ptr()))
        self._normalise(0)
        for convolution, link in zip(self.convolutions, self.program.links, strict=True):
            name = "depthwise_forward" if link.convolution.groups > 1 else "dense_forward"
            self.call(name, ctypes.byref(convolution))
            self._normalise(link.to)
        out = torch.empty(self.shape, dtype=self.dtype, memory_format=torch.channels_last)
        self.call("leave", ctypes.byref(self.ending), _POINTER(out.data_ptr()))
        del sums
        return out

    def _pointer(self, index: int) -> ctypes.c_void_p:
        return _POINTER(self._address(index))

    def _normalise(self, index: int) -> None:
        if self.nodes[index].normalised:
            self.call("normalise", self._pointer(index))

    def backward(self, gradient: Tensor, values: Tensor, small: Tensor, *, wanted: bool) -> tuple[Tensor | None, ...]:
        """Gradients of the input, of the convolutions' weights, and of weight and bias of each norm."""
        sums = self.bind(values, small)
        gradients = torch.empty_like(values)
        at = gradients.data_ptr()
        found: list[Tensor] = [torch.empty_like(link.convolution.weight) for link in self.program.links]
        for convolution, link, into in zip(self.convolutions, self.program.links, found, strict=True):
            convolution.weight_gradient = into.data_ptr()
            convolution.out_stride, convolution.in_stride, convolution.row_stride, convolution.column_stride = (
                into.stride()
            )
            assert into.stride() == link.convolution.weight.stride()
            convolution.wanted = wanted or link.source > 0 or self.program.maps[0].norm is not None
        for node, one, width, count in zip(self.nodes, self.program.maps, self.widths, self.counts, strict=True):
            node.gradient = at
            at += count * width * self.size
            if one.norm is not None:
                found += [torch.empty_like(one.norm.weight), torch.empty_like(one.norm.bias)]
                node.weight_gradient, node.bias_gradient = found[-2].data_ptr(), found[-1].data_ptr()
        rows = gradient.contiguous(memory_format=torch.channels_last)
        self.call("leave_backward", ctypes.byref(self.ending), _POINTER(rows.data_ptr()))
        for convolution, link in zip(reversed(self.convolutions), reversed(self.program.links), strict=True):
            self._differentiate(link.to)
            name = "depthwise_backward" if link.convolution.groups > 1 else "dense_backward"
            self.call(name, ctypes.byref(convolution))
        self._differentiate(0)
        entered = None
        if wanted:
            entered = torch.empty(
                (self.nodes[0].images, self.nodes[0].channels, self.nodes[0].height, self.nodes[0].width),
                dtype=self.dtype,
                memory_format=torch.channels_last,
            )
            added = ctypes.byref(self.ending) if self.program.other == 0 else None
            self.call("enter_backward", self._pointer(0), added, _POINTER(entered.data_ptr()))
        del sums
        return entered, *found

    def _differentiate(self, index: int) -> None:
        if self.nodes[index].normalised:
            self.call("differentiate", self._pointer(index))


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, fused: Fused, *parameters: Tensor) -> Tensor:
        ctx.bound = fused.bound(x)
        ctx.memory = ctx.bound.place()
        ctx.save_for_backward(*parameters)  # so that torch notices a change of them in between
        return ctx.bound.forward(x, *ctx.memory)  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors
        x, *others = ctx.bound.backward(gradient, *ctx.memory, wanted=ctx.needs_input_grad[0])
        return x, None, *others
