"""The time that a network's forward pass takes, measured on the device at hand.

Multiply-adds predict it badly: the paper measures it too (arXiv:1905.11946, section 5.2 and Table 4: one image at a
time, on one core of a CPU), and so do the defaults here.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from scalesearch.model import build, build_on_meta
from scalesearch.network import AnyNetwork, Factory

WARM_UP_RUNS = 10  # at most; most networks have settled after two


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a forward pass of `batch_size` images: the median and the quartiles of `num_runs` of them."""

    median_ms: float
    low_ms: float
    high_ms: float
    num_runs: int
    device: str
    threads: int
    batch_size: int


def latency(
    network: AnyNetwork,
    *,
    device: str | None = None,
    threads: int = 1,
    batch_size: int = 1,
    budget_seconds: float = 1.0,
) -> Latency:
    """The measured time of a forward pass in inference mode, in float32 and the usual (contiguous) layout.

    A table is built with weights that are all alike, which is quicker than drawing them; what a user's function draws
    leaves torch's generators as they were. To warm up it runs until a run is no longer faster than the one before; then
    it is measured until `budget_seconds` have gone, three times at least, or once where a single run takes longer.

    Args:
        device: "cpu", "cuda" or one GPU such as "cuda:1"; None takes a GPU where there is one.
        threads: of the CPU, set for as long as this takes.
    Errors: ValueError for a device of another kind, or a number out of range; OSError for a GPU that is not there.
    """
    place = _device(device)
    for name, value in (("threads", threads), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65_536:
            raise ValueError(f"{name} is {value!r}; it must be a whole number from 1 to 65536")
    if not 0 < budget_seconds <= 3_600:
        raise ValueError(f"budget_seconds is {budget_seconds!r}; it must be a number above 0, and 3600 at most")

    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]):
            module = _module(network, place).eval()
            images = torch.rand(batch_size, network.in_channels, network.resolution, network.resolution).to(place)
        with torch.inference_mode():
            times = _times(lambda: module(images), place, budget_seconds)
    finally:
        torch.set_num_threads(threads_before)
    low, median, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return Latency(median, low, high, len(times), str(place), threads, batch_size)


def _module(network: AnyNetwork, device: torch.device) -> nn.Module:
    if isinstance(network, Factory):
        return build(network).to(device)
    module = build_on_meta(network).to_empty(device=device)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):  # of means, since denormal numbers would take longer
            tensor.fill_(1 / tensor[0].numel() if tensor.ndim > 1 else 1)
    return module


def _device(given: str | None) -> torch.device:
    if given is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(given)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {given!r}; it must be 'cpu', 'cuda' or one GPU, such as 'cuda:0'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise OSError(f"device is {given!r}, but torch sees {torch.cuda.device_count()} GPUs here; 'cpu' always works")
    return device


def _times(run: Callable[[], object], device: torch.device, budget_seconds: float) -> list[float]:
    """Milliseconds of each run that counts."""
    timed = _timed_on_gpu if device.type == "cuda" else _timed
    budget = 1_000 * budget_seconds
    warm_up = [timed(run, device)]
    while len(warm_up) < WARM_UP_RUNS and sum(warm_up) < budget:
        warm_up.append(timed(run, device))
        if warm_up[-1] > 0.95 * warm_up[-2]:
            break
    times: list[float] = []
    while len(times) < 3 or sum(times) < budget:
        times.append(timed(run, device))
        if times[-1] > budget:
            break
    return times


def _timed(run: Callable[[], object], _: torch.device) -> float:
    began = time.perf_counter()
    run()
    return 1_000 * (time.perf_counter() - began)


def _timed_on_gpu(run: Callable[[], object], device: torch.device) -> float:
    with torch.cuda.device(device):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        began.record()
        run()
        ended.record()
        ended.synchronize()
    return float(began.elapsed_time(ended))
