"""What a module is beside the names and shapes of its weights and what it prints: values that its code may use."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_COMMON = {*vars(nn.Module()), "training"}
_MOST_VALUES = 64  # of a tensor that is no weight: a table of sines differs between processors in its last digits
_DEPTH = 6


def hidden(module: nn.Module) -> dict[str, Any]:
    """By place: attributes of the user's own classes, what their functions close over, hooks, small buffers.

    Of torch's classes what they print says all. Values are plain JSON; {} where there are none.
    """
    found: dict[str, Any] = {}
    for place, part in module.named_modules():
        values = dict(_of_module(part))
        if values:
            found[place] = values
    return found


def unregistered(module: nn.Module) -> str | None:
    """The place of a plain list, tuple or mapping with layers that the module does not know, and so does not train."""
    known = {id(part) for part in module.modules()} | {id(weight) for weight in module.parameters()}
    for place, part in module.named_modules():
        for name, value in vars(part).items():
            if name not in _COMMON and isinstance(value, list | tuple | dict):
                for one in _flat(value):
                    trained = isinstance(one, nn.Parameter) or (isinstance(one, nn.Module) and list(one.parameters()))
                    if trained and id(one) not in known:
                        return ".".join(filter(None, (place, name)))
    return None


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for one in value:
            yield from _flat(one)
    else:
        yield value


def needs_values(module: nn.Module) -> bool:
    """Whether there are small tensors, beside the weights, whose values only a module off the meta device has."""
    return any(tensor.is_meta for tensor in _small_tensors(module))


class Foreign(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While a network is made on the meta device: whether tensors with values go into it, which are from elsewhere.

    A library may read a file without Python, which then knows nothing of that file (`sources.watched`).
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as `cost.forward._Watch`

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen = self.seen or any(
            isinstance(one, Tensor) and not one.is_meta and one.numel() > 1 for one in _flat(list(args))
        )
        return operation(*args, **(kwargs or {}))


@contextmanager
def on_meta() -> Iterator[None]:
    """What is made in here lies on the meta device; weights are not drawn, which takes torch milliseconds each."""
    with torch.device("meta"), _Undrawn():  # type: ignore[no-untyped-call]
        yield


class _Undrawn(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operations that only give values to a tensor, of which one on the meta device has none, are left out."""

    operations = frozenset(
        f"aten::{name}_"
        for name in ("uniform", "normal", "bernoulli", "random", "fill", "zero", "clamp", "erfinv", "mul", "add")
    )

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as `cost.forward._Watch`

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Two tensors may not fit together, or be from elsewhere: that is for the operation to say, and for `Foreign`.
        if operation._schema.name in self.operations and args[0].is_meta and not _tensors(args[1:], kwargs):
            return args[0]
        return operation(*args, **(kwargs or {}))


def _tensors(args: Any, kwargs: Any) -> bool:
    return any(isinstance(one, Tensor) for one in (*args, *(kwargs or {}).values()))


def fixed_weights(one: nn.Module, other: nn.Module) -> dict[str, str]:
    """Digests of weights and buffers that two networks share which were made with different seeds.

    Those that are all 0 or all 1, as layers of torch start with, are left out.
    """
    theirs, found = other.state_dict(), {}
    for name, tensor in one.state_dict().items():
        value = tensor.detach().cpu()
        if torch.equal(value, theirs[name].cpu()) and not bool((value == 0).all() or (value == 1).all()):
            found[name] = hashlib.sha256(value.contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
    return found


def _small_tensors(module: nn.Module) -> Iterator[Tensor]:
    for part in module.modules():
        if not _is_torchs(type(part)):
            for value in (*part._buffers.values(), *vars(part).values()):
                if isinstance(value, Tensor) and value.numel() <= _MOST_VALUES:
                    yield value


def _of_module(part: nn.Module) -> Iterator[tuple[str, Any]]:
    if not _is_torchs(type(part)):
        for name, value in vars(part).items():
            if name not in _COMMON and not isinstance(value, nn.Module):
                yield name, _plain(value)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                yield name, _plain(buffer)
        if "<locals>" in type(part).__qualname__:
            yield "class", _of_class(type(part))
    for kind in ("_forward_hooks", "_forward_pre_hooks"):
        if hooks := list(getattr(part, kind).values()):
            yield kind, _plain(hooks)


def _is_torchs(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "torch"


def _of_class(kind: type) -> Any:
    return {name: _plain(value) for name, value in vars(kind).items() if inspect.isfunction(value)}


def _plain(value: Any, depth: int = 0) -> Any:
    """Plain JSON that is the same for the same value in every process: no address, no order of a set."""
    if value is None or isinstance(value, bool | int | str):
        return value if type(value) in (type(None), bool, int, str) else str(value)
    if isinstance(value, float):
        return repr(value)
    if depth > _DEPTH:
        return _name(type(value))
    inner = functools.partial(_plain, depth=depth + 1)
    if isinstance(value, dict):
        return [[inner(key), inner(one)] for key, one in value.items()]
    if isinstance(value, set | frozenset):
        return sorted((inner(one) for one in value), key=repr)
    if isinstance(value, list | tuple):
        return [inner(one) for one in value]
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, functools.partial):
        return ["partial", inner(value.func), inner(value.args), inner(value.keywords)]
    if inspect.ismethod(value):
        return ["method", value.__qualname__]
    if inspect.isfunction(value):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_full(cell)]
        given = [inner(one) for one in (*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())]
        return ["function", value.__qualname__, given]
    if inspect.isclass(value) or inspect.isbuiltin(value) or inspect.ismodule(value):
        return _name(value)
    if isinstance(value, nn.Module):
        return [_name(type(value)), str(value)]
    state = getattr(value, "__dict__", None)
    return [_name(type(value)), inner(state) if isinstance(state, dict) else type(value).__name__]


def _is_full(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', getattr(value, '__name__', ''))}"


def _tensor(tensor: Tensor) -> list[Any]:
    """Type, shape and, of a small one, its values to five digits."""
    described: list[Any] = [str(tensor.dtype), list(tensor.shape)]
    if isinstance(tensor, nn.Parameter) or tensor.is_meta or tensor.numel() > _MOST_VALUES:
        return described
    values = tensor.detach().cpu().reshape(-1).to(torch.complex128 if tensor.is_complex() else torch.float64).tolist()
    written = ",".join(f"{value:.5g}" for value in values)
    return [*described, hashlib.sha256(written.encode()).hexdigest()]
