"""One forward pass of a user's network, watched: multiply-adds, activations, what no counter knows, what it computes.

It runs on torch's meta device, where a tensor has a shape and no values. What needs values (a branch on them, say) runs
with real tensors on the CPU instead.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from scalesearch.model import FactoryError, build, build_on_meta, unregistered
from scalesearch.network import Factory
from scalesearch.text import one_line


class Forward(NamedTuple):
    """What one image's forward pass came to. `real`: it works with real tensors only."""

    macs: int
    params: int
    activations: int
    uncounted: tuple[tuple[str, int], ...]
    computation: str
    real: bool


@lru_cache(maxsize=4096)
def forward(network: Factory) -> Forward:
    """The forward pass of what a function makes.

    Raises: FactoryError: it raises, it gives no logits, it changes its images, or there is nothing to count or train.
    """
    module, real = build_on_meta(network), False
    try:
        logits, watch, macs = _watched(module, network, real=False)
    except (Exception, SystemExit) as error:  # the user's own code, or an operation that torch has no meta kernel for
        if not _may_be_of_meta(error):
            raise FactoryError.of(network, error, module) from error
        module, real = _built(network), True
        try:
            logits, watch, macs = _watched(module, network, real=True)
        except (Exception, SystemExit) as again:
            raise FactoryError.of(network, again, module) from again
    check_logits(logits, network, 1)
    if watch.operations and (name := _PROBABILITIES.get(watch.operations[-1][0])):
        raise _probabilities(network, name)
    if watch.images_changed:
        raise FactoryError.that(network, "its forward pass changes its images in place; let it work on a copy")
    params = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    if not params:
        raise FactoryError.that(network, "its network has no parameters to train")
    uncounted = tuple(sorted(watch.uncounted.items()))
    if not macs:
        names = f"; not counted are {', '.join(name for name, _ in uncounted)}" if uncounted else ""
        raise FactoryError.that(
            network, f"its network has no multiply-adds that can be counted, and a budget needs some{names}"
        )
    digest = hashlib.sha256(json.dumps(watch.operations).encode()).hexdigest()
    return Forward(macs, params, watch.activations, uncounted, digest, real)


def check_training(network: Factory) -> None:
    """Nothing, where what the function makes can take a training step and is the same when it is made again.

    Raises: FactoryError: with what to do.
    """
    real = forward(network).real
    (one, _), (other, _) = (_seeded(network, seed, real=real) for seed in (1, 2))
    if _shown(one) != _shown(other):
        raise FactoryError.that(
            network,
            "it makes another network when it is called again with the same arguments; it must not depend on chance, "
            "or on what it has left in a global variable",
        )
    if (place := unregistered(one)) is not None:
        raise FactoryError.that(
            network,
            f"its network has layers in {place}, a plain list or mapping, which are not trained; nn.ModuleList and "
            "nn.ModuleDict register them",
        )
    macs = [_watched(one, network, real=real, images=number)[2] for number in (1, 2, 3)]
    if macs[2] - macs[1] != macs[1] - macs[0]:
        raise FactoryError.that(
            network,
            f"its forward pass takes {', '.join(f'{count:,}' for count in macs[:2])} and {macs[2]:,} multiply-adds for "
            "1, 2 and 3 images; what an image costs must not depend on how many there are",
        )
    try:
        _take_step(one, network, real=real)
    except FactoryError as error:
        if real or not isinstance(error.__cause__, Exception):
            raise
        _take_step(_built(network), network, real=True)  # the meta device may be all that is wrong


def _take_step(module: nn.Module, network: Factory, *, real: bool) -> None:
    module.train()
    images = _images(network, 2, real=real)
    try:
        logits = module(images)
        check_logits(logits, network, 2)
        labels = torch.zeros(2, dtype=torch.long, device=images.device)
        if name := _BACKWARD.get(type(logits.grad_fn).__name__):
            raise _probabilities(network, name)
        loss = F.cross_entropy(logits, labels)
    except FactoryError:
        raise
    except (Exception, SystemExit) as error:
        raise FactoryError.of(network, error, module, training=True) from error
    try:
        loss.backward()  # type: ignore[no-untyped-call]
    except (Exception, SystemExit) as error:
        came_from = _forward_lines(module, images, labels)
        raise FactoryError.of(network, error, module, training=True, forward=came_from) from error


def _forward_lines(module: nn.Module, images: Tensor, labels: Tensor) -> str:
    """The lines of the forward pass whose backward pass fails, as a traceback; "" where torch does not know them."""
    with warnings.catch_warnings(record=True) as warned, ExitStack() as open_until_here:
        warnings.simplefilter("always")
        open_until_here.enter_context(torch.autograd.detect_anomaly(check_nan=False))
        try:
            F.cross_entropy(module(images), labels).backward()  # type: ignore[no-untyped-call]
        except (Exception, SystemExit):
            return "".join(text for one in warned if "forward call" in (text := str(one.message)))
    return ""


_PROBABILITIES = {"aten::_softmax": "softmax", "aten::sigmoid": "sigmoid"}
_BACKWARD = {"SoftmaxBackward0": "softmax", "SigmoidBackward0": "sigmoid"}


def _probabilities(network: Factory, name: str) -> FactoryError:
    return FactoryError.that(
        network,
        f"its network ends in a {name}, and the loss applies one itself, so that it would hardly learn; return the "
        "logits, which go into it",
    )


def check_logits(logits: Any, network: Factory, num_images: int) -> None:
    """Nothing, where these are logits. Raises: FactoryError."""
    expected = (num_images, network.num_classes)
    if isinstance(logits, Tensor) and logits.shape == expected and logits.is_floating_point():
        return
    mode = "" if num_images == 1 else " in training mode"
    images = "one image" if num_images == 1 else f"{num_images} images"
    remedy = ""
    if not isinstance(logits, Tensor):
        remedy = "; let its forward pass return the logits alone, in training mode too, without auxiliary ones"
    elif logits.shape == expected:
        remedy = f" as floating-point numbers, not as {logits.dtype}"
    elif logits.ndim == 2 and len(logits) == num_images:
        remedy = "; pass num_classes on to its last layer"
    elif logits.ndim == 4:
        remedy = "; let it pool over rows and columns, then flatten"
    given = f"its network gives {_described(logits)} for {images}{mode}"
    raise FactoryError.that(network, f"{given}; it must give logits of shape {expected}{remedy}")


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return str(tuple(value.shape))
    shapes = [str(tuple(one.shape)) for one in _tensors(value)]
    return f"a {type(value).__name__}" + (f" of tensors of shapes {', '.join(shapes)}" if shapes else "")


def _built(network: Factory) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(network)


@lru_cache(maxsize=256)
def seeds_itself(network: Factory) -> bool:
    """Whether the function seeds torch's generator: its networks then start alike, whatever the training's seed."""
    (_, chance), (_, another) = (_seeded(network, seed, real=False) for seed in (1, 2))
    return torch.equal(chance, another)


def _seeded(network: Factory, seed: int, *, real: bool) -> tuple[nn.Module, Tensor]:
    """The module, made after torch's generator was seeded, and the state of that afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(network) if real else build_on_meta(network), torch.get_rng_state()


def _shown(module: nn.Module) -> Any:
    printed = re.sub(r" at 0x[0-9a-f]+", "", str(module))
    return printed, [(name, tuple(tensor.shape)) for name, tensor in module.state_dict().items()]


def _images(network: Factory, number: int, *, real: bool) -> Tensor:
    shape = (number, network.in_channels, network.resolution, network.resolution)
    if not real:
        return torch.empty(shape, device="meta", dtype=torch.float32)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)


def _watched(module: nn.Module, network: Factory, *, real: bool, images: int = 1) -> tuple[Any, _Watch, int]:
    from torch.utils.flop_counter import FlopCounterMode  # for functions alone, as it takes a quarter of a second

    module.eval()
    given = _images(network, images, real=real)
    watch = _Watch(module)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as open_:
        open_.enter_context(torch.no_grad())
        for weight in module.parameters():  # torch's counter refuses a weight, or a view of one, that a module is given
            if weight.requires_grad:
                open_.callback(weight.requires_grad_, True)
                weight.requires_grad_(False)
        if real:  # the fused forms of attention on the CPU are not in torch's table of counts
            open_.enter_context(sdpa_kernel(SDPBackend.MATH))
            open_.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
            torch.backends.mha.set_fastpath_enabled(False)
        open_.enter_context(watch)
        counter = open_.enter_context(FlopCounterMode(display=False))  # innermost: takes apart what it does not know
        before = given._version
        logits = module(given)
    watch.images_changed = given._version != before
    return logits, watch, counter.get_total_flops() // 2  # torch counts a multiply-add as two


def _may_be_of_meta(error: BaseException) -> bool:
    """Whether the error may be only that there are no values; real tensors then say what is true."""
    words = f"{type(error).__name__}: {one_line(error)}"
    return isinstance(error, NotImplementedError) or bool(
        re.search(r"\bmeta\b|data.dependent|DataDependent|\.item\(\)|nonzero|same device|fake tensor", words, re.I)
    )


_CONVOLUTIONS = {"aten::convolution", "aten::_convolution", "aten::convolution_overrideable", "aten::conv_tbc"}
_PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::mv", "aten::addmv", "aten::linear"}
_NOT_COUNTED = re.compile(
    r"aten::_?(fft_.*|linalg_.*|cdist.*|pdist.*|trilinear|dot|vdot|mv|addmv|ger|addr|addbmm|.*rnn.*|.*lstm.*|.*gru.*|"
    r"cholesky.*|.*solve.*|.*inverse.*|matrix_exp|conv_tbc|int_mm|.*sparse.*|grid_sampler.*|.*qr|.*svd.*|lu_.*|native_.*attention|"
    r"transformer_.*|embedding_bag.*|scaled_dot_product_.*|thnn.*|conv_depthwise.*)"
)
_ORDINARY = {"aten", "prim", "prims", "profiler", "inductor_prims", "higher_order"}


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation below autograd. A matrix product is a layer where a factor is made of weights alone."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: nothing is compiled here, and to be skipped torch would import its compiler first, for two seconds."""
        return False

    def __init__(self, module: nn.Module) -> None:
        from torch.utils.flop_counter import flop_registry

        super().__init__()  # type: ignore[no-untyped-call]
        self._counted = flop_registry
        self.activations = 0
        self.uncounted: Counter[str] = Counter()
        self.operations: list[Any] = []
        self.images_changed = False
        self._of_weights = {_address(tensor) for tensor in (*module.parameters(), *module.buffers())}
        self._kept: list[Tensor] = []  # else another tensor could come to lie at its address

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        name = operation._schema.name
        given, made = list(_tensors(args)), list(_tensors(result))
        of_weights = [_address(tensor) in self._of_weights for tensor in given]
        if given and all(of_weights):
            self._of_weights |= {_address(tensor) for tensor in made}
            self._kept += made
        elif name in _CONVOLUTIONS or (name in _PRODUCTS and any(of_weights[-2:])):
            self.activations += sum(tensor.numel() for tensor in made[:1])
        if name.startswith("aten::") and operation._overloadpacket in self._counted:
            pass
        elif name.partition("::")[0] not in _ORDINARY or _NOT_COUNTED.fullmatch(name) or _is_outer(name, given, made):
            self.uncounted[name.replace("::", ".")] += 1
        self.operations.append([name, [list(tensor.shape) for tensor in made]])
        return result


def _is_outer(name: str, given: list[Tensor], made: list[Tensor]) -> bool:
    """Whether elements are multiplied with each other as in a product of matrices, which is summed afterwards."""
    if name not in ("aten::mul", "aten::div") or len(given) < 2 or not made:
        return False
    return made[0].numel() > 1_000 and made[0].numel() >= 4 * max(tensor.numel() for tensor in given)


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif hasattr(value, "__dataclass_fields__"):
        yield from _tensors(list(vars(value).values()))
