"""What a network may need: the right-hand sides of equation 2 of arXiv:1905.11946, FLOPS(N) <= .. and Memory(N) <= ...

`Budget` is that of a search's candidates, relative to their 1x network. `Limits` are absolute, in any of `METRICS`.
`Profiler` says what a network does need; counts and bytes are computed, a latency is measured once and remembered.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, NamedTuple

from scalesearch.checks import between, checked
from scalesearch.cost import cost
from scalesearch.latency import latency
from scalesearch.ledger import Measured
from scalesearch.machine import environment
from scalesearch.memory import Memory, memory
from scalesearch.model import identity
from scalesearch.network import AnyNetwork


@checked("budget")
class Budget:
    """A candidate's counted multiply-adds must be `macs_ratio` times the 1x network's, within `tolerance` of that."""

    macs_ratio: Annotated[float, between(1e-3, 1e6, "multiply-adds of a candidate, as a multiple of the 1x network's")]
    tolerance: Annotated[float, between(0, 1e6, "how far from that they may be, as a share of it")]

    def admits(self, ratio: float) -> bool:
        """Whether a network of `ratio` times the baseline's multiply-adds meets the budget.

        >>> Budget(2.0, 0.1).admits(2.2), Budget(2.0, 0.1).admits(2.21)
        (True, False)
        """
        return self.near(ratio, self.macs_ratio)

    def near(self, ratio: float, wanted: float) -> bool:
        """Whether a cost is within the tolerance of another."""
        return abs(ratio / wanted - 1) <= self.tolerance + 1e-9


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most that a network may need of each of `METRICS`; None is no limit."""

    macs: float | None = None
    params: float | None = None
    memory: float | None = None
    training_memory: float | None = None
    latency_ms: float | None = None

    def given(self) -> dict[str, float]:
        """Metric to limit, of those that have one; the ones that cost least to find out come first."""
        return {name: limit for name in METRICS if (limit := getattr(self, name)) is not None}

    def use(self, network: AnyNetwork, profiler: Profiler) -> dict[str, float]:
        """Metric to the share of its limit that `network` needs: 1 is all of it."""
        return {name: METRICS[name](network, profiler) / limit for name, limit in self.given().items()}

    def most(self, network: AnyNetwork, profiler: Profiler) -> tuple[float, str]:
        """The largest share and its metric; as soon as one is above 1, that one: the others are not looked at."""
        largest = (0.0, "")
        for name, limit in self.given().items():
            largest = max(largest, (METRICS[name](network, profiler) / limit, name))
            if largest[0] > 1:
                break
        return largest

    def __str__(self) -> str:
        """The limits in short words, fit for the name of a file.

        >>> str(Limits(macs=150e6, memory=512 * 2**20))
        'macs150M_memory512MiB'
        """
        return "_".join(f"{name}{written(name, limit)}" for name, limit in self.given().items())


class Footprint(NamedTuple):
    """What a network needs beside its `cost.Cost`, as all tables show it.

    Bytes of one image's inference and of one step of training, and the latency of one image, None for a network that
    is too large to be timed for a table.
    """

    memory: int
    training_memory: int
    latency_ms: float | None


class Profiler:
    """Computes and measures what networks need.

    Args:
        batch_size: images of the step that `training_memory` is of.
        workspace: latencies are read from and kept in its latency.json, so that a command that is given again shows
            the same numbers and measures nothing twice; None: they are forgotten with this object.
        times: whether a footprint has a latency that is not known yet; else only what was measured before.
    """

    def __init__(self, *, batch_size: int, workspace: Path | None = None, times: bool = True) -> None:
        self.batch_size, self._times = batch_size, times
        self._path = None if workspace is None else workspace / "latency.json"

    def footprint(self, network: AnyNetwork) -> Footprint:
        """What tables show.

        Raises:
            ValueError: as `memory.Memory.training_activations`.
        """
        known = self._latencies.get(_key(network))
        timed = self._times and cost(network).macs <= _MOST_TIMED_MACS and _fits(network)
        return Footprint(
            memory=round(METRICS["memory"](network, self)),
            training_memory=round(METRICS["training_memory"](network, self)),
            latency_ms=self.latency_ms(network) if timed else known if isinstance(known, float) else None,
        )

    def latency_ms(self, network: AnyNetwork) -> float:
        """Median milliseconds of one image: on one thread of the CPU, or on the GPU where there is one.

        Raises:
            ValueError: this machine has no memory for the network.
        """
        key = _key(network)
        known = self._latencies.get(key)
        if isinstance(known, float):
            return known
        if not _fits(network):
            raise ValueError(f"{network.name} cannot be timed: it needs more than half of this machine's memory")
        seconds = min(0.3, 0.02 + cost(network).macs / 1e9)  # proxies, of which a plan has many, take little
        measured = round(latency(network, budget_seconds=seconds).median_ms, 4)
        self._latencies.put(key, measured)
        return measured

    @cached_property
    def _latencies(self) -> Measured:
        here = environment()
        return Measured(self._path, f"{here['host']}, {here['device']}, torch {here['torch']}")


def _key(network: AnyNetwork) -> str:
    return hashlib.sha256(json.dumps(identity(network), sort_keys=True).encode()).hexdigest()


def parse(value: object, metric: str, *, key: str | None = None) -> float:
    """The number that a person wrote as the limit of a metric: 300M, 1.5G, 512MiB, 2GB, 20, or a plain number.

    key: where it was written; None: budget.METRIC.

    Raises:
        ValueError: with the key and what would be right.

    >>> parse("300M", "macs"), parse("512MiB", "memory"), parse(20, "latency_ms")
    (300000000.0, 536870912.0, 20.0)
    """
    units = {unit.lower(): size for unit, size in _READ[metric].items()}
    found = re.fullmatch(r"([0-9]+\.?[0-9]*(?:e[+-]?[0-9]{1,2})?|\.[0-9]+) ?([a-z]*)", str(value).strip().lower())
    if found and not isinstance(value, bool) and found[2] in units:
        number = float(found[1]) * units[found[2]]
        if 0 < number <= 1e24:
            return number
    right = {"macs": "a number such as 300M or 1.5G", "params": "a number such as 800k or 5.3M"}
    right |= dict.fromkeys(("memory", "training_memory"), "bytes such as 512MiB or 2GB")
    wanted = right.get(metric, "milliseconds such as 20 or 0.5")
    raise ValueError(f"{key or f'budget.{metric}'} is {value!r}; it must be {wanted}")


def written(metric: str, value: float) -> str:
    """`value` of a metric as `parse` reads it, in the unit that makes it shortest.

    >>> written("macs", 1.5e9), written("memory", 512 * 2**20), written("memory", 2e9), written("latency_ms", 20.0)
    ('1.5G', '512MiB', '2GB', '20')
    """
    fitting = [f"{value / size:.15g}{unit}" for unit, size in _READ[metric].items() if size <= value]
    return min(fitting or [f"{value:.15g}"], key=len)


def words(metric: str, value: float | None) -> str:
    """`value` of a metric for a person, to three digits; "-" for None.

    >>> words("params", 5_288_548), words("memory", 39_000_000), words("latency_ms", 19.31)
    ('5.29 M', '37.2 MiB', '19.3 ms')
    """
    if value is None:
        return "-"
    shown = list(_SHOWN[metric].items())
    unit, size = next(((unit, size) for unit, size in reversed(shown) if size <= value), shown[0])
    number = value / size
    return (f"{number:.0f} {unit}" if number >= 100 else f"{number:.3g} {unit}").rstrip()


METRICS: dict[str, Callable[[AnyNetwork, Profiler], float]] = {
    "macs": lambda network, _: cost(network).macs,
    "params": lambda network, _: cost(network).params,
    "memory": lambda network, _: _memory(network).inference,
    "training_memory": lambda network, profiler: _memory(network, profiler.batch_size).training,
    "latency_ms": lambda network, profiler: profiler.latency_ms(network),
}


def _memory(network: AnyNetwork, batch_size: int = 1) -> Memory:
    """Of one thread, as `latency_ms`, of a CPU with AVX2 alone: the same on every machine, and the most where maps are
    smaller than kernels."""
    return memory(network, batch_size=batch_size, threads=1, avx512=False)


_MOST_TIMED_MACS = 1e11  # a forward pass of several seconds on one thread

_COUNTS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BYTES = {"B": 1.0, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40}
_SHOWN = {
    "macs": _COUNTS,
    "params": _COUNTS,
    "memory": _BYTES,
    "training_memory": _BYTES,
    "latency_ms": {"ms": 1.0},
}
_DECIMAL_BYTES = {"": 1.0, "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
_READ = _SHOWN | {
    "memory": _DECIMAL_BYTES | _BYTES,
    "training_memory": _DECIMAL_BYTES | _BYTES,
    "latency_ms": {"": 1.0, "ms": 1.0},
}


def _fits(network: AnyNetwork) -> bool:
    """Whether this machine has twice the memory that a forward pass of `network` needs."""
    return 2 * _memory(network).inference <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
