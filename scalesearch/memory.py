"""The memory that a network needs: bytes at the peak of a forward pass, and of a training step.

Equation 2 of the paper bounds memory as it bounds multiply-adds. Here the network's own module runs once on torch's
meta device, where a tensor has a shape and no data, and every storage is followed from the operation that makes it to
the moment its last tensor goes. Views, operations in place, what autograd keeps for the backward pass and what
checkpointing gives up are therefore as in a real run, while nothing is computed or allocated.

A user's network that works with real tensors only runs on the CPU instead, a training step of it with two and with
three images, from which that of a batch follows.

Counted is an eager run on the CPU, contiguous and in the module's type (float32), with the copies that oneDNN's
convolutions make while they run: up to two thirds of a forward pass, next to nothing of a training step. Not counted
are workspaces of other operations and devices (cuDNN's, say), the allocator's rounding and fragmentation, and what
Python and torch take before any network is there. With channels_last a training step's activations are within a tenth
of what is stated here; with bfloat16 autocast they are 0.5 to 0.9 of it.

What a convolution copies depends on the CPU's instructions: on a map smaller than its kernel the gradient of its
weights falls to oneDNN's matrix product, which takes four times the weights for itself; with AVX-512 only where a group
has fewer than 16 channels, with AVX2 always (24 of the 83 MB of a training step of ResNet-18 with 8 images of 64 px).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from scalesearch.checks import at_least, value
from scalesearch.cost import cost, needs_values
from scalesearch.machine import instructions
from scalesearch.model import FactoryError, build, build_on_meta
from scalesearch.network import AnyNetwork, Factory

aten = torch.ops.aten


@dataclass(frozen=True)
class Memory:
    """Bytes that `network` needs for `batch_size` images at once on `threads` threads of a CPU with or without AVX-512,
    computed on first use."""

    network: AnyNetwork
    batch_size: int
    threads: int
    avx512: bool

    @cached_property
    def weights(self) -> int:
        """Parameters and buffers, such as the statistics of batch norms."""
        module = _module(self.network)
        tensors = (*module.parameters(), *module.buffers())
        return sum({t.untyped_storage()._cdata: t.nbytes for t in tensors}.values())

    @cached_property
    def activations(self) -> int:
        """The most that one forward pass allocates at a time, in evaluation mode and without gradients."""
        return self._peak(training=False)

    @cached_property
    def training_activations(self) -> int:
        """The most that a forward and a backward pass allocate at a time, the gradients of the weights among it.

        Raises:
            ValueError: a batch norm would get one value per channel: one image, of which one pixel is left.
        """
        try:
            return self._peak(training=True)
        except FactoryError:
            raise
        except Exception as error:  # torch's, of the images' shape, or of a user's own module
            if isinstance(self.network, Factory):
                raise FactoryError.of(self.network, error, _module(self.network), training=True) from error
            raise ValueError(
                f"network {self.network.name!r} cannot take a training step with batch_size {self.batch_size}: {error}"
            ) from error

    @property
    def inference(self) -> int:
        """The peak of one forward pass: weights, images, activations."""
        return self.weights + self._images.nbytes + self.activations

    @property
    def training(self) -> int:
        """The peak of one step of SGD with momentum: weights, momentum, images, labels, gradients, activations.

        Averaged weights (the recipe's `ema`) would be `weights` more. Raises: as `training_activations`.
        """
        momentum = 4 * cost(self.network).params
        labels = 8 * self.batch_size
        return self.weights + momentum + self._images.nbytes + labels + self.training_activations

    def _peak(self, *, training: bool) -> int:
        real = needs_values(self.network)
        try:
            return self._peak_of(training=training, real=real)
        except Exception:  # the meta device may be all that is wrong with a user's own module
            if real or not isinstance(self.network, Factory):
                raise
            return self._peak_of(training=training, real=True)

    def _peak_of(self, *, training: bool, real: bool) -> int:
        def of(number: int) -> int:
            images = self._batch(number, real)
            return peak(module, images, training=training, threads=self.threads, avx512=self.avx512, real=real)

        module = _module(self.network, real=real)
        if real and training and self.batch_size > 3:  # a whole batch would take its time, and the memory itself
            two = of(2)
            return two + (of(3) - two) * (self.batch_size - 2)
        return of(self.batch_size)

    @property
    def _images(self) -> Tensor:
        return self._batch(self.batch_size, False)

    def _batch(self, number: int, real: bool) -> Tensor:
        side, made = self.network.resolution, torch.rand if real else torch.empty
        return made(number, self.network.in_channels, side, side, device="cpu" if real else "meta")


def memory(
    network: AnyNetwork, *, batch_size: int = 1, threads: int | None = None, avx512: bool | None = None
) -> Memory:
    """What `network` needs for `batch_size` images at once; kept, so that a second call costs nothing.

    Args:
        threads: of the CPU, of which all that matters is whether there is more than one: one runs 1x1 convolutions of
            stride 1 on less than 16 images without copies. None: as many as torch has now.
        avx512: whether the CPU has AVX-512 instructions, or AVX2 alone. None: what oneDNN finds here.

    Raises:
        ValueError: less than one image or thread.

    >>> from scalesearch.network import from_table
    >>> row = {"block": "conv_norm", "channels": 8}
    >>> net = from_table({"resolution": 32, "activation": "relu", "stem": row, "stages": [row]}, name="net")
    >>> memory(net, batch_size=2).inference < memory(net, batch_size=2).training
    True
    """
    threads = torch.get_num_threads() if threads is None else threads
    for name, number in (("batch_size", batch_size), ("threads", threads)):
        value(number, Annotated[int, at_least(1)], name)
    return _memory(network, batch_size, min(threads, 2), "AVX-512" in instructions() if avx512 is None else avx512)


_memory = lru_cache(maxsize=4096)(Memory)


@lru_cache(maxsize=1)  # for the questions about one network, which follow each other
def _module(network: AnyNetwork, *, real: bool = False) -> nn.Module:
    if real or needs_values(network):  # names what is wrong with a forward pass of the user's
        with torch.random.fork_rng(devices=[]):
            return build(network)
    return build_on_meta(network)


def peak(
    module: nn.Module,
    images: Tensor,
    *,
    training: bool = False,
    threads: int = 1,
    avx512: bool | None = None,
    real: bool = False,
) -> int:
    """The most bytes allocated at one time beyond `module` and `images`, in one forward pass without gradients.

    Args:
        module: any (B, C, H, W) -> (B, K) module on the meta device: made under `torch.device("meta")`, or moved there
            by `to("meta")`. Its mode and its gradients are left as after a step.
        images: their shape and type, on the meta device.
        training: a step in training mode instead: forward pass, cross entropy, backward pass to the weights' gradients.
        threads, avx512: as of `memory`.
        real: module and images are on the CPU instead, and are computed with.

    Raises:
        ValueError: a tensor is on another device.
    """
    follower = _Follower(threads, "AVX-512" in instructions() if avx512 is None else avx512, {} if real else _SHORTCUTS)
    device = "cpu" if real else "meta"
    for tensor in (*module.parameters(), *module.buffers(), images):
        if tensor.device.type != device:
            raise ValueError(
                f"a tensor is on the device {tensor.device}; module and images must be on the {device} device"
            )
        follower.leave_out(tensor)
    module.train(training)
    module.zero_grad(set_to_none=True)
    labels = torch.zeros(len(images), dtype=torch.long, device=device)
    with _FusedAttention(), follower, torch.set_grad_enabled(training):
        if training:
            F.cross_entropy(module(images), labels).backward()  # type: ignore[no-untyped-call]
        else:
            module(images)
    return follower.peak


class _Follower(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation below autograd, and follows the storages that they make."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: nothing is compiled here, and to be skipped torch would import its compiler first, for two seconds."""
        return False

    def __init__(self, threads: int, avx512: bool, shortcuts: Mapping[Any, Callable[..., Any]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._now = 0
        self._threads = threads
        self._shortcuts = shortcuts
        self._avx512 = avx512
        self._alive: dict[int, object] = {}  # by address, which torch gives again only after `gone`

    def leave_out(self, tensor: Tensor) -> None:
        self._alive[tensor.untyped_storage()._cdata] = None

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shortcut = self._shortcuts.get(operation)
        result = shortcut(*args) if shortcut else operation(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._follow(tensor)
        if operation in _CONVOLUTIONS:
            self.peak = max(self.peak, self._now + _copies(args, result, self._threads, self._avx512))
        return result

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        if address in self._alive:
            return

        def gone(_: object) -> None:
            del self._alive[address]
            self._now -= size

        self._alive[address] = weakref.ref(storage, gone)
        self._now += size
        self.peak = max(self.peak, self._now)


_CONVOLUTIONS = (aten.convolution.default, aten.convolution_backward.default)


def _copies(args: Any, result: Any, threads: int, avx512: bool) -> int:
    """Bytes that a convolution, or its backward pass, has for itself on the CPU beside its `result`.

    oneDNN works on copies of images, weights and result in a layout of its own, where channels are padded to the width
    of a vector, and then copies the result back. That images of few channels are read as they are, and what the matrix
    product of a map smaller than the kernel takes, was measured with both sets of instructions;
    when torch does not use it is decided in `ConvolutionParams::use_mkldnn` (torch's ATen/native/Convolution.cpp).
    """
    backward = isinstance(result, tuple)
    (output, images, weight), groups = (args[:3], args[9]) if backward else ((result, *args[:2]), args[8])
    stride = max(args[4 if backward else 3])
    kernel, channels = max(weight.shape[2:]), images.shape[1]
    pointwise = kernel == stride == 1
    few = len(images) == 1 and groups == 1 and kernel <= 3 and images.numel() <= 20_480
    if few or (pointwise and len(images) < 16 and threads == 1):  # without oneDNN, on windows laid out as columns
        columns = 0 if pointwise else weight[0].numel() * output[0, 0].numel()
        return int(columns * output.element_size())

    lanes = 16 if avx512 else 8

    def padded(tensor: Tensor, *dims: int) -> int:
        size = tensor.nbytes
        for dim in dims if groups in (1, channels) else ():
            size = size // tensor.shape[dim] * (-(-tensor.shape[dim] // lanes) * lanes)
        return size

    copied = padded(weight, *((0, 1) if groups == 1 and channels >= 16 else (0,)))
    if groups > 1 or kernel == 1 or channels >= 16:
        copied += padded(images, 1)
    copy = padded(output, 1)
    if not backward:
        return max(copied + copy - int(output.nbytes), copy)
    product = 0
    if min(images.shape[2:]) < kernel and len(images) > 1 and (channels // groups < 16 or not avx512):
        product = threads * (4 * weight.nbytes + weight[0].numel() * output[0, 0].numel() * output.element_size())
    return max(copied + copy, product)


def _tensors(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, tuple | list):
        for part in result:
            yield from _tensors(part)


class _FusedAttention(TorchFunctionMode):
    """Attention as CPU and GPU run it: on the meta device torch would make the N x N weights that those never hold."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        attend = _attention if function is F.scaled_dot_product_attention else function
        return attend(*args, **(kwargs or {}))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **rest: Any,
) -> Tensor:
    alike = query.ndim == 4 and query.shape[1] == key.shape[1] and query.shape[-1] == value.shape[-1]
    if not alike or dropout_p > 0 or (attn_mask is not None and attn_mask.requires_grad):
        return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, **rest)
    fused = aten._scaled_dot_product_flash_attention_for_cpu.default
    result: Tensor = fused(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=rest.get("scale"))[0]
    return result


def _norm(x: Tensor, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, *_: Any) -> tuple[Tensor, ...]:
    channels = x.shape[1] if training else 0
    return torch.empty_like(x), x.new_empty(channels), x.new_empty(channels)


def _norm_backward(gradient: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor | None, ...]:
    wanted = rest[-1]  # whose gradients: of x, weight and bias
    made = (torch.empty_like(x), x.new_empty(x.shape[1]), x.new_empty(x.shape[1]))
    return tuple(tensor if want else None for tensor, want in zip(made, wanted, strict=True))


def _elementwise(x: Any, y: Any, *_: Any, **__: Any) -> Tensor:
    shapes = [one.shape for one in (x, y) if isinstance(one, Tensor)]
    kind = torch.result_type(x, y)
    if isinstance(x, Tensor) and all(shape == x.shape for shape in shapes):
        return torch.empty_like(x, dtype=kind)
    return torch.empty(torch.broadcast_shapes(*shapes), dtype=kind, device="meta")  # type: ignore[no-untyped-call]


def _mean(x: Tensor, axes: Sequence[int] | None, keep: bool = False, **_: Any) -> Tensor:
    gone = {axis % x.ndim for axis in axes or range(x.ndim)}
    sizes = [1 if axis in gone else size for axis, size in enumerate(x.shape) if keep or axis not in gone]
    return x.new_empty(sizes)


def _convolution(x: Tensor, weight: Tensor, _: Any, *how: Any) -> Tensor:
    stride, padding, dilation, transposed, _outer, groups = how
    if transposed or x.shape[1] != weight.shape[1] * groups:  # which torch refuses
        return aten.convolution.default(x, weight, _, *how)  # type: ignore[no-any-return]
    sizes = [
        (size + 2 * pad - apart * (kernel - 1) - 1) // step + 1
        for size, kernel, step, pad, apart in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    ]
    return x.new_empty((len(x), len(weight), *sizes))


def _convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, *how: Any) -> tuple[Tensor | None, ...]:
    wanted = how[-1]
    bias = weight.new_empty(gradient.shape[1]) if wanted[2] else None
    return torch.empty_like(x) if wanted[0] else None, torch.empty_like(weight) if wanted[1] else None, bias


# torch has these in Python for the meta device, and they take nine tenths of the time; the last ones would import its
# compiler, for two seconds.
_SHORTCUTS: dict[Any, Callable[..., Any]] = {
    aten.native_batch_norm.default: _norm,
    aten.native_batch_norm_backward.default: _norm_backward,
    aten.hardtanh_.default: lambda x, *_: x,
    aten.hardswish_.default: lambda x: x,
    aten.hardtanh_backward.default: lambda gradient, x, *_: torch.empty_like(x),
    aten.hardswish_backward.default: lambda gradient, x: torch.empty_like(x),
    aten.convolution.default: _convolution,
    aten.convolution_backward.default: _convolution_backward,
    aten.add.Tensor: _elementwise,
    aten.mul.Tensor: _elementwise,
    aten.div.Tensor: _elementwise,
    aten.div.Scalar: _elementwise,
    aten.sigmoid.default: torch.empty_like,
    aten.silu_.default: lambda x: x,
    aten.silu_backward.default: lambda gradient, x: torch.empty_like(x),
    aten.sigmoid_backward.default: lambda gradient, x: torch.empty_like(x),
    aten.mean.dim: _mean,
    aten.addmm.default: lambda bias, x, weight, **_: x.new_empty(len(x), weight.shape[1]),
    aten._log_softmax.default: lambda x, *_: torch.empty_like(x),
    aten._log_softmax_backward_data.default: lambda gradient, *_: torch.empty_like(gradient),
    aten.nll_loss_backward.default: lambda _, x, *__: torch.empty_like(x),
    aten.nll_loss_forward.default: lambda x, *_: (x.new_empty(()), x.new_empty(())),
}
