"""The machine at hand: what is recorded beside everything that is measured, and what its processor can do."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
PRECISIONS = ("float32", *HALF)
"""What trainings are made in."""


def environment() -> dict[str, str]:
    """Versions and machine: recorded with every evaluation, no part of its key."""
    found = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "host": platform.node(),
        "machine": platform.machine(),
        "processor": processor(),
        "threads": str(torch.get_num_threads()),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    if not torch.cuda.is_available():
        return found
    return found | {
        "cuda": str(torch.version.cuda or torch.version.hip),
        "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
        "tf32": "off" if os.environ.get("NVIDIA_TF32_OVERRIDE") == "0" else "on",
        "cudnn_benchmark": "on",
    }


def processor() -> str:
    """The processor's name with those of its instructions that decide how fast it trains."""
    about = _about_cpu()
    name = about.get("model name") or about.get("CPU part") or platform.processor() or "unknown"
    return f"{name} ({', '.join(sorted(instructions())) or 'neither AVX-512 nor bfloat16'})"


def instructions() -> frozenset[str]:
    """Which of "AVX-512" and "bfloat16" oneDNN uses: the processor has them, and ONEDNN_MAX_CPU_ISA allows them."""
    flags = cpu_flags()
    most = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if most.startswith(("SSE", "AVX2")) or most == "AVX":
        return frozenset()
    found = {"AVX-512"} if "avx512f" in flags else set()
    if flags & {"avx512_bf16", "amx_bf16", "bf16"} and most not in ("AVX512_CORE", "AVX512_CORE_VNNI"):
        found.add("bfloat16")
    return frozenset(found)


def native_precisions(device: torch.device) -> tuple[str, ...]:
    """What `device` computes in without emulating it: "float32", and the half precision that may be faster, if any.

    GPUs have bfloat16 from compute capability 8.0 on. `torch.cuda.is_bf16_supported()` says yes of older ones too, such
    as T4 and V100, which emulate it; what they have is float16.
    """
    if device.type == "cpu":
        return ("float32", "bfloat16") if "bfloat16" in instructions() else ("float32",)
    return ("float32", "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16")


@contextmanager
def gpu_settings() -> Iterator[None]:
    """How a GPU computes inside: float32 by TF32, with the convolutions that cuDNN finds fastest for each shape.

    TF32 takes products of 10 bits of the mantissa and adds them up in float32; torch's default has it for convolutions
    alone. All images of a training have one shape, so a choice by timing is made once a layer. Two processes may choose
    differently, so that a GPU, other than a CPU, may give other last bits. `environment` records both. Without a GPU
    nothing changes.
    """
    if not torch.cuda.is_available():
        yield
        return
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    try:
        matmul.allow_tf32 = True
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True):
            yield
    finally:
        matmul.allow_tf32 = before


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Freed memory stays with this process inside, and goes back to the system at the end.

    Each training step takes the megabytes that the last one freed. Given back in between, they come as thousands of
    page faults. This is about malloc of the GNU C library; with another one nothing changes.
    """
    library = ctypes.CDLL(None) if os.name == "posix" else None
    malloc = library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
    if malloc is not None:
        for setting in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
            malloc.mallopt(setting, 1 << 30)
    try:
        yield
    finally:
        if malloc is not None:
            malloc.malloc_trim(0)


def cpu_flags() -> frozenset[str]:
    """What the processor can do, in the words of the system, such as "avx2"; empty where it does not say."""
    return frozenset((_about_cpu().get("flags") or _about_cpu().get("Features") or "").split())


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
