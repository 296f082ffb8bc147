"""The time that a network's forward pass takes, measured on the device at hand.

Multiply-adds predict it badly: the paper measures it too (arXiv:1905.11946, section 5.2 and Table 4: one image at a
time, on one core of a CPU), and so do the defaults here.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import nn

from scalesearch.checks import between, value
from scalesearch.machine import torch_device
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

    Raises:
        ValueError: a device of another kind, or a number out of range.
        OSError: a GPU that is not there.
    """
    place = torch_device(device)
    for name, number in (("threads", threads), ("batch_size", batch_size)):
        value(number, Annotated[int, between(1, 65_536)], name)
    value(budget_seconds, Annotated[float, between(1e-9, 3_600)], "budget_seconds")

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
