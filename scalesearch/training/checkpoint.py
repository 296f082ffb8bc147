"""What a training leaves on disk: its weights, and a checkpoint from which it goes on. Nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scalesearch.model import build
from scalesearch.network import AnyNetwork
from scalesearch.text import one_line
from scalesearch.workspace import naming


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the state dict as safetensors, atomically."""
    save(model.state_dict(), path)


def load_weights(network: AnyNetwork, path: Path) -> nn.Module:
    """The module of `network` with the weights of a safetensors file, in evaluation mode.

    Raises:
        ValueError: they do not fit; it names the file.
    """
    model = build(network)
    try:
        model.load_state_dict(load_file(path))
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        why = one_line(error)[:200]  # torch lists every layer
        raise ValueError(f"the weights in {path} are not those of {network.name}: {why}") from None
    return model.eval()


_CHANCE = "chance."


class Progress(NamedTuple):
    """How far a training is.

    curve: an entry for each epoch that is over. seconds: that it has taken. step: steps of the epoch after those, with
    the sum of their losses, and the states of torch's generators after them. scaler: the state of the scaling of the
    loss in float16.
    """

    curve: list[dict[str, float]]
    seconds: float
    step: int = 0
    loss_sum: float = 0.0
    chance: Mapping[str, Tensor] = {}
    scaler: Mapping[str, Any] = {}


def chance_now() -> dict[str, Tensor]:
    """The states of torch's generators: of the CPU, and of the GPU where one is in use."""
    states = {f"{_CHANCE}cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states[f"{_CHANCE}cuda"] = torch.cuda.get_rng_state()
    return states


def set_chance(states: Mapping[str, Tensor]) -> None:
    """As `chance_now` has found them."""
    if (cpu := states.get(f"{_CHANCE}cpu")) is not None:
        torch.set_rng_state(cpu)
    if (cuda := states.get(f"{_CHANCE}cuda")) is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)


class Checkpoint:
    """The state of one training in a file, from which an interrupted one goes on with the same numbers.

    path: None keeps nothing.
    of: what names the training; the file of another one is not used.
    interval_seconds: the least time between two writes.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        of: str,
        modules: Mapping[str, nn.Module | None],
        optimizer: torch.optim.Optimizer,
        interval_seconds: float,
    ) -> None:
        self._path, self._of, self._interval = path, of, interval_seconds
        self._written = time.perf_counter()
        self._state = {  # all tensors by name; they share their memory with what they belong to
            f"{which}.{name}": tensor
            for which, module in modules.items()
            for name, tensor in (module.state_dict() if module is not None else {}).items()
        }
        for index, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            for name, tensor in optimizer.state[parameter].items():
                self._state[f"optimizer.{index}.{name}"] = tensor

    def resume(self) -> Progress:
        """How far it was, the training's tensors set to the file's; nothing where the file is of no use."""
        if self._path is None or not self._path.exists():
            return Progress([], 0.0)
        try:
            with safe_open(self._path, framework="pt") as file:
                meta = file.metadata() or {}
                if meta.get("of") != self._of:
                    raise ValueError("it is of another training")
                tensors = {name: file.get_tensor(name) for name in self._state}
                chance = {name: file.get_tensor(name) for name in file.keys() if name.startswith(_CHANCE)}  # noqa: SIM118
            done = Progress(json.loads(meta["curve"]), float(meta["seconds"]), int(meta.get("step", 0)))
            done = done._replace(loss_sum=float(meta.get("loss_sum", 0.0)), scaler=json.loads(meta.get("scaler", "{}")))
            if meta.get("digest") not in (None, _digest(tensors | chance, meta)):  # older ones have none
                raise ValueError("its content was changed since it was written")
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            warnings.warn(
                f"the checkpoint {self._path} cannot be used ({error}); this training starts over", stacklevel=3
            )
            return Progress([], 0.0)
        with torch.no_grad():
            for name, tensor in tensors.items():
                self._state[name].copy_(tensor)
        return done._replace(chance=chance)

    @property
    def due(self) -> bool:
        """Whether the last time is `interval_seconds` ago."""
        return self._path is not None and time.perf_counter() - self._written > self._interval

    def write(self, done: Progress) -> None:
        """Write the state as it is now."""
        assert self._path is not None
        meta = {"of": self._of, "curve": json.dumps(done.curve), "seconds": repr(done.seconds)}
        if done.step:
            meta |= {"step": str(done.step), "loss_sum": repr(done.loss_sum)}
        if done.scaler:
            meta |= {"scaler": json.dumps(dict(done.scaler))}
        state = self._state | chance_now() if done.step else self._state
        save(state, self._path, meta | {"digest": _digest(state, meta)})
        self._written = time.perf_counter()

    def remove(self) -> None:
        """The training is over."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _digest(tensors: Mapping[str, Tensor], meta: Mapping[str, str]) -> str:
    """Of all that a checkpoint has: a flipped bit would train on, to another result."""
    whole = hashlib.sha256(json.dumps({key: meta[key] for key in sorted(meta) if key != "digest"}).encode())
    for name in sorted(tensors):
        whole.update(name.encode())
        whole.update(tensors[name].detach().contiguous().flatten().view(torch.uint8).cpu().numpy().tobytes())
    return whole.hexdigest()


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each with memory of its own, as safetensors has them: layers may share a weight."""
    found, seen = {}, set()
    for name, tensor in tensors.items():
        whole = tensor.contiguous()
        storage = whole.untyped_storage().data_ptr()
        found[name] = whole.clone() if storage in seen else whole
        seen.add(storage)
    return found


def save(tensors: Mapping[str, Tensor], path: Path, meta: dict[str, str] | None = None) -> None:
    """Write a file that is there whole or not at all; a temporary one that a kill leaves is swept by the ledger."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.temporary")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(_apart(tensors), temporary, meta)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())  # before the record of the evaluation, which says that its weights are here
            temporary.replace(path)
        except SafetensorError as error:  # has the system's number in its words alone
            temporary.unlink(missing_ok=True)
            number = re.search(r"(?:os error|code:) (\d+)", str(error))
            raise (error if number is None else OSError(int(number[1]), str(error))) from error
