"""The machine at hand: what is recorded beside everything that is measured, and what its processor can do."""

from __future__ import annotations

import os
import platform
from functools import lru_cache
from pathlib import Path

import torch


def environment() -> dict[str, str]:
    """Versions and machine: recorded with every evaluation, no part of its key."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "host": platform.node(),
        "machine": platform.machine(),
        "processor": processor(),
        "threads": str(torch.get_num_threads()),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def processor() -> str:
    """The processor's name with those of its instructions that decide how fast it trains."""
    about = _about_cpu()
    name = about.get("model name") or about.get("CPU part") or platform.processor() or "unknown"
    return f"{name} ({', '.join(sorted(instructions())) or 'neither AVX-512 nor bfloat16'})"


def instructions() -> frozenset[str]:
    """Which of "AVX-512" and "bfloat16" oneDNN uses: the processor has them, and ONEDNN_MAX_CPU_ISA allows them."""
    flags = set((_about_cpu().get("flags") or _about_cpu().get("Features") or "").split())
    most = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if most.startswith(("SSE", "AVX2")) or most == "AVX":
        return frozenset()
    found = {"AVX-512"} if "avx512f" in flags else set()
    if flags & {"avx512_bf16", "amx_bf16", "bf16"} and most not in ("AVX512_CORE", "AVX512_CORE_VNNI"):
        found.add("bfloat16")
    return frozenset(found)


def torch_device(name: str | None) -> torch.device:
    """The device of that name; None is a GPU where there is one.

    Raises:
        ValueError: a device of another kind than a CPU or a CUDA GPU.
        OSError: a GPU that is not there.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {name!r}; it must be 'cpu', 'cuda' or one GPU, such as 'cuda:0'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise OSError(f"device is {name!r}, but torch sees {torch.cuda.device_count()} GPUs here; 'cpu' always works")
    return device


@lru_cache(maxsize=1)
def _about_cpu() -> dict[str, str]:
    """The first processor as Linux describes it; empty on another system."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    rows = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in rows}
