"""Which blocks the library computes: each where a short timing on this machine finds it faster than torch."""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from scalesearch.kernels.chain import Fused, Program, program_of
from scalesearch.kernels.library import Library, cache_directory, mode
from scalesearch.machine import processor
from scalesearch.model import Block

ROUNDS, SECONDS = 5, 1.0
"""Each form is timed so often in turn, or until so much time has gone."""
GAIN = 0.95
"""The library's form must take at most this share of torch's time."""

_known: dict[tuple[str, str], bool] = {}


def faster(block: Block, program: Program, library: Library, x: Tensor, *, learned: bool) -> bool:
    """Whether the library's form of `block` takes less time than torch's, forward and backward, for inputs such as `x`.

    The first timing of a machine, a library and a shape decides for all later ones: it is kept in the user's cache, so
    that the same training takes the same way, and gives the same bits, in another process. Where the cache cannot be
    written, it holds for this process.

    With SCALESEARCH_KERNELS=on nothing is timed, and the library's form is taken.

    learned: whether the gradient of the input is needed.
    """
    if mode() == "on":
        return True
    key = _key(program, library, x, learned)
    path = cache_directory() / "choices.jsonl"
    if (str(path), key) not in _known:
        choice = _kept(path, key)
        if choice is None:
            plain_ms, fused_ms = _timed(block, library, x, learned)
            choice = fused_ms <= GAIN * plain_ms
            line = {"key": key, "fused": choice, "plain_ms": round(plain_ms, 4), "fused_ms": round(fused_ms, 4)}
            choice = _keep(path, key, line, choice)
        _known[str(path), key] = choice
    return _known[str(path), key]


def _key(program: Program, library: Library, x: Tensor, learned: bool) -> str:
    maps = [f"{one.channels}{'n' if one.norm else ''}{one.activation}" for one in program.maps]
    links = [
        f"{one.source}-{one.to}:{one.convolution.kernel_size[0]}/{one.convolution.stride[0]}+"
        f"{one.convolution.padding[0]}x{one.convolution.groups}"
        for one in program.links
    ]
    layout = "last" if x.is_contiguous(memory_format=torch.channels_last) else "first"
    return " ".join(
        [
            *(library.digest[:16], f"torch-{torch.__version__}", torch.backends.cpu.get_cpu_capability()),
            *(processor(), f"threads-{torch.get_num_threads()}", str(x.dtype), layout),
            *("x".join(map(str, x.shape)), f"{'learned' if learned else 'given'}", *maps, *links),
            f"{program.main}+{program.other}:{program.activation}",
        ]
    )


def _kept(path: Path, key: str) -> bool | None:
    """The first choice in the file for this key; lines that are no choices, such as a torn one, do not count."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        if key in line:
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict) and value.get("key") == key and isinstance(value.get("fused"), bool):
                return bool(value["fused"])
    return None


def _keep(path: Path, key: str, line: dict[str, object], choice: bool) -> bool:
    """Append the line at once; what holds is the first of its key, which may be another process's."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(handle, f"\n{json.dumps(line)}\n".encode())  # its own line, even behind a torn one
        finally:
            os.close(handle)
    except OSError:
        return choice
    first = _kept(path, key)
    return choice if first is None else first


def _timed(block: Block, library: Library, x: Tensor, learned: bool) -> tuple[float, float]:
    """Least milliseconds of torch's form and of the library's, taking turns, on a copy that nothing else sees."""
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(x.shape, dtype=x.dtype, generator=generator)
    given = (given.contiguous(memory_format=torch.channels_last) if _is_last(x) else given).requires_grad_(learned)
    copied = copy.deepcopy(block)
    program = program_of(copied)
    assert program is not None
    forms: list[Callable[[Tensor], Tensor]] = [copied, Fused(program, library)]
    times: list[list[float]] = [[], []]
    began = time.perf_counter()
    with torch.enable_grad():
        gradient = torch.randn(copied(given).shape, dtype=x.dtype, generator=generator)
        gradient = gradient.contiguous(memory_format=torch.channels_last) if _is_last(x) else gradient
        for turn in range(ROUNDS + 1):  # the first one warms up
            for form, spent in zip(forms, times, strict=True):
                start = time.perf_counter()
                form(given).backward(gradient)  # type: ignore[no-untyped-call]
                if turn:
                    spent.append(1_000 * (time.perf_counter() - start))
                given.grad = None
                copied.zero_grad(set_to_none=True)
            if turn and time.perf_counter() - began > SECONDS:
                break
    return min(times[0]), min(times[1])


def _is_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)
