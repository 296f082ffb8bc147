"""A block's chain as one function of autograd, computed by the library.

Shapes: B images, C channels, H and W rows and columns; memory is channels_last.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from scalesearch.kernels.library import FUNCTIONS, Library
from scalesearch.model import Block
from scalesearch.model.blocks import GatedBlock

KINDS: dict[type[nn.Module], int] = {nn.ReLU: 1, nn.ReLU6: 2, nn.SiLU: 3, nn.Hardswish: 4}  # as in kernels.c
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
    )


class _Ending(ctypes.Structure):
    _fields_ = (("main", _POINTER), ("other", _POINTER), ("raw", _INTEGER), ("activation", _INTEGER))


class Map(NamedTuple):
    """A map between convolutions, and what is done to it where it is read."""

    channels: int
    norm: nn.BatchNorm2d | None = None
    activation: int = 0
    gated: bool = False


class Link(NamedTuple):
    """A convolution from one map to another, by their indices."""

    convolution: nn.Conv2d
    source: int
    to: int


class Program(NamedTuple):
    """Maps, of which the first is the input; convolutions in their order; and the end.

    main, other: the maps that are added up; other is None for nothing, and the input as it is where it is 0.
    gate: of the map that is gated, from (B, C, 1, 1) to (B, C, 1, 1), with its parameters; None where there is none.
    """

    maps: tuple[Map, ...]
    links: tuple[Link, ...]
    main: int
    other: int | None
    activation: int
    gate: Callable[[Tensor], Tensor] | None
    gate_parameters: tuple[Tensor, ...]

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
    if (
        not links
        or activation < 0
        or main == 0
        or any(maps[end].activation or maps[end].gated for end in {main, other or main})
    ):
        return None
    read = [link.source for link in links]
    if any(one.gated and (index == 0 or read.count(index) != 1) for index, one in enumerate(maps)):
        return None
    gate: Callable[[Tensor], Tensor] | None = None
    own: tuple[Tensor, ...] = ()
    if any(one.gated for one in maps):
        assert isinstance(block, GatedBlock)
        known = {id(parameter) for parameter in _parameters(maps, links)}
        gate = block.gate
        own = tuple(one for one in block.parameters() if id(one) not in known)
    return Program(tuple(maps), tuple(links), main, other, activation, gate, own)


def _parameters(maps: Iterable[Map], links: Iterable[Link]) -> list[Tensor]:
    """Weights of the convolutions, then weight and bias of each norm."""
    norms = [one.norm for one in maps if one.norm is not None]
    return [link.convolution.weight for link in links] + [each for norm in norms for each in (norm.weight, norm.bias)]


class _UnknownError(Exception):
    """A layer that the library does not know."""


def _follow(block: Block, names: tuple[str, ...], maps: list[Map], links: list[Link], *, start: int) -> int:
    """Adds the layers of these names, from the map `start` on; the index of the map that they end in."""
    at = start
    for name in names:
        module, before = getattr(block, name), maps[at]
        if before.gated and not isinstance(module, nn.Conv2d):
            raise _UnknownError
        if (
            name == "gate"
            and isinstance(block, GatedBlock)
            and before.norm is not None
            and not any(one.gated for one in maps)
        ):
            maps[at] = before._replace(gated=True)
        elif isinstance(module, nn.Conv2d) and _is_known(module):
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
        self.parameters = [*_parameters(program.maps, program.links), *program.gate_parameters]
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


class _Kept(NamedTuple):
    """What the backward pass needs of the forward pass: the maps, what their norms came to, and the gate."""

    values: Tensor
    small: Tensor
    gates: Tensor | None = None  # (B, whole planes of C)
    pooled: Tensor | None = None
    factors: Tensor | None = None  # (B, C, 1, 1), of `pooled`, with its graph


class _Bound:
    """A program for inputs of one shape: the library's values, in which only addresses change from call to call."""

    def __init__(self, program: Program, library: Library, x: Tensor) -> None:
        assert library.loaded is not None
        self.program, self.dtype = program, x.dtype
        suffix = "float" if x.dtype == torch.float32 else "double"
        self.functions = {name: getattr(library.loaded, f"{name}_{suffix}") for name in FUNCTIONS}
        lanes = getattr(library.loaded, f"lanes_{suffix}")()
        sizes = program.sizes((x.shape[0], x.shape[2], x.shape[3]))
        self.entering = torch.Size(x.shape)
        self.shape = (x.shape[0], program.maps[program.main].channels, *sizes[program.main][1:])
        self.widths = [-(-one.channels // lanes) * lanes for one in program.maps]
        self.num_values = sum(math.prod(size) * width for size, width in zip(sizes, self.widths, strict=True))
        self.nodes = (_Node * len(program.maps))()
        for node, one, (images, height, width) in zip(self.nodes, program.maps, sizes, strict=True):
            node.channels, node.images, node.height, node.width = one.channels, images, height, width
            node.activation, node.normalised = one.activation, one.norm is not None
            if one.norm is not None:
                node.epsilon, node.momentum = one.norm.eps, one.norm.momentum
        self.convolutions = (_Convolution * len(program.links))()
        for convolution, link in zip(self.convolutions, program.links, strict=True):
            module = link.convolution
            convolution.source, convolution.to = self._address(link.source), self._address(link.to)
            convolution.kernel, convolution.stride = module.kernel_size[0], module.stride[0]
            convolution.padding, convolution.depthwise = int(module.padding[0]), module.groups > 1
        # The backward pass goes from the last to the first; a map's gradient is complete with the first that reads it.
        sources = [link.source for link in program.links]
        for index, source in enumerate(sources):
            self.convolutions[index].more = source in sources[index + 1 :]
            self.convolutions[index].last = source not in sources[:index]
        self.ending = _Ending(
            self._address(program.main),
            None if program.other is None else self._address(program.other),
            program.other == 0,
            program.activation,
        )
        self.chain = _Chain(
            ctypes.addressof(self.nodes),
            ctypes.addressof(self.convolutions),
            ctypes.addressof(self.ending),
            len(self.nodes),
            len(self.convolutions),
        )
        gated = [index for index, one in enumerate(program.maps) if one.gated]
        self.gated = gated[0] if gated else None
        self.middle = sources.index(gated[0]) if gated else 0  # the first convolution behind the gate
        self.addresses: list[int] = []

    def _address(self, index: int) -> int:
        return ctypes.addressof(self.nodes) + index * ctypes.sizeof(_Node)

    def _call(self, name: str, *arguments: Any) -> None:
        if self.functions[name](*arguments):
            raise MemoryError(f"no memory for a chain of {len(self.program.links)} convolutions")

    def _bind(self, kept: _Kept, gradients: Tensor | None) -> Tensor:
        """Puts the addresses of memory and of parameters in; new sums, which must outlive the calls."""
        addresses = [one.data_ptr() for one in _parameters(self.program.maps, self.program.links)]
        if addresses != self.addresses:
            self._bind_parameters()
            self.addresses = addresses
        sums = torch.zeros(2 * sum(self.widths), dtype=torch.float64)
        self._call(
            "bind",
            ctypes.byref(self.chain),
            kept.values.data_ptr(),
            kept.small.data_ptr(),
            sums.data_ptr(),
            None if gradients is None else gradients.data_ptr(),
        )
        return sums

    def _bind_parameters(self) -> None:
        for node, one in zip(self.nodes, self.program.maps, strict=True):
            if (norm := one.norm) is not None:
                assert norm.running_mean is not None
                assert norm.running_var is not None
                node.weight, node.bias = norm.weight.data_ptr(), norm.bias.data_ptr()
                node.running_mean, node.running_variance = norm.running_mean.data_ptr(), norm.running_var.data_ptr()
        for convolution, link in zip(self.convolutions, self.program.links, strict=True):
            weight = link.convolution.weight
            convolution.weight = weight.data_ptr()
            convolution.out_stride, convolution.in_stride = weight.stride()[:2]
            convolution.row_stride, convolution.column_stride = weight.stride()[2:]

    def forward(self, x: Tensor) -> tuple[Tensor, _Kept]:
        kept = _Kept(
            torch.empty(self.num_values, dtype=self.dtype), torch.empty(6 * sum(self.widths), dtype=self.dtype)
        )
        sums = self._bind(kept, None)
        rows = x.contiguous(memory_format=torch.channels_last)
        out = torch.empty(self.shape, dtype=self.dtype, memory_format=torch.channels_last)
        ends = (ctypes.byref(self.chain), rows.data_ptr(), out.data_ptr())
        if self.gated is None:
            self._call("forward", *ends, 0, len(self.convolutions))
        else:
            self._call("forward", *ends, 0, self.middle)
            kept = self._gate(kept)
            self._call("forward", *ends, self.middle, len(self.convolutions))
            self.nodes[self.gated].gate = None
        del sums
        return out, kept

    def _gate(self, kept: _Kept) -> _Kept:
        """The gate of what was pooled, by torch, with a graph for the backward pass."""
        assert self.gated is not None
        assert self.program.gate is not None
        images, channels = self.shape[0], self.program.maps[self.gated].channels
        pooled = torch.empty((images, channels, 1, 1), dtype=self.dtype)
        self._call("pool", self._address(self.gated), pooled.data_ptr())
        with torch.enable_grad():
            factors = self.program.gate(pooled.requires_grad_())
        gates = torch.zeros((images, self.widths[self.gated]), dtype=self.dtype)
        gates[:, :channels] = factors.detach().flatten(1)
        self.nodes[self.gated].gate = gates.data_ptr()
        return kept._replace(gates=gates, pooled=pooled, factors=factors)

    def backward(self, gradient: Tensor, kept: _Kept, *, wanted: bool) -> tuple[Tensor | None, ...]:
        """Gradients of the input, of the convolutions' weights, of weight and bias of each norm, and of the gate."""
        gradients = torch.empty_like(kept.values)
        sums = self._bind(kept, gradients)
        found: list[Tensor] = []
        for convolution, link in zip(self.convolutions, self.program.links, strict=True):
            found.append(torch.empty_like(link.convolution.weight))
            assert found[-1].stride() == link.convolution.weight.stride()
            convolution.weight_gradient = found[-1].data_ptr()
            convolution.wanted = wanted or link.source > 0 or self.program.maps[0].norm is not None
        for node, one in zip(self.nodes, self.program.maps, strict=True):
            if one.norm is not None:
                found += [torch.empty_like(one.norm.weight), torch.empty_like(one.norm.bias)]
                node.weight_gradient, node.bias_gradient = found[-2].data_ptr(), found[-1].data_ptr()
        rows = gradient.contiguous(memory_format=torch.channels_last)
        entered = None
        if wanted:
            entered = torch.empty(self.entering, dtype=self.dtype, memory_format=torch.channels_last)
        into = None if entered is None else entered.data_ptr()
        ends = (ctypes.byref(self.chain), rows.data_ptr(), into)
        if self.gated is None:
            self._call("backward", *ends, len(self.convolutions), 0)
        else:
            node = self.nodes[self.gated]
            assert kept.gates is not None
            of_gates = torch.zeros_like(kept.gates)
            node.gate, node.gate_gradient = kept.gates.data_ptr(), of_gates.data_ptr()
            self._call("backward", *ends, len(self.convolutions), self.middle)
            found += self._gate_backward(kept, of_gates)
            self._call("backward", *ends, self.middle, 0)
            node.gate = None
        del sums
        return entered, *found

    def _gate_backward(self, kept: _Kept, of_gates: Tensor) -> tuple[Tensor, ...]:
        """Gradients of the gate's parameters; that of what was pooled goes on into the map."""
        assert self.gated is not None
        assert kept.factors is not None
        assert kept.pooled is not None
        needed = (kept.pooled, *self.program.gate_parameters)
        of_factors = of_gates[:, : kept.pooled.shape[1]].reshape(kept.pooled.shape)
        of_pooled, *others = torch.autograd.grad(kept.factors, needed, of_factors, retain_graph=True)
        of_pooled = of_pooled.contiguous()
        self._call("gate_backward", self._address(self.gated), of_pooled.data_ptr())
        return tuple(others)


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
