from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest
import torch
from conftest import case

from scalesearch import machine


def test_the_instructions_are_those_that_the_processor_has_and_onednn_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    cases: list[tuple[str, str, set[str]]] = [
        ("avx2 fma", "", set()),
        ("avx2 avx512f", "", {"AVX-512"}),
        ("avx2 avx512f avx512_bf16", "", {"AVX-512", "bfloat16"}),
        ("avx2 avx512f avx512_bf16", "AVX2", set()),
        ("avx2 avx512f avx512_bf16", "avx512_core_vnni", {"AVX-512"}),
        ("avx2 avx512f avx512_bf16 amx_bf16", "AVX512_CORE_BF16", {"AVX-512", "bfloat16"}),
        ("asimd bf16", "", {"bfloat16"}),
    ]
    for flags, most, expected in cases:
        monkeypatch.setattr(machine, "_about_cpu", lambda flags=flags: {"flags": flags, "model name": "X1"})
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", most)
        with case(flags, most):
            assert machine.instructions() == expected
            assert machine.processor().startswith("X1 (")


def test_another_device_is_refused_by_name() -> None:
    for device in ["gpu", "cuda:x", "mps", "meta", "", 0.5]:
        with case(device), pytest.raises(ValueError, match=r"device is .*; it must be 'cpu', 'cuda' or one GPU"):
            machine.torch_device(device)  # type: ignore[arg-type]


def test_a_gpu_that_is_not_there_is_of_the_environment() -> None:
    with pytest.raises(OSError, match=f"device is 'cuda:99', but torch sees {torch.cuda.device_count()} GPUs here"):
        machine.torch_device("cuda:99")


TAKE_AND_FREE = """
import resource, torch
from contextlib import nullcontext
from scalesearch.machine import freed_memory_kept

def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident() -> int:
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

def step() -> None:
    kept = [torch.ones(1 << 20) for _ in range(12)]  # 4 MiB each, all alive at once, as maps wait for the backward pass
    for one in kept:
        one.mul_(2)

for inside in (nullcontext(), freed_memory_kept()):
    with inside:
        step()
        before = faults()
        for _ in range(20):
            step()
        print(faults() - before)
        if inside.__class__ is not nullcontext:
            print(resident())
print(resident())
"""


@pytest.mark.skipif(
    os.name != "posix" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="malloc is not that of the GNU C library"
)
def test_freed_memory_is_taken_again_without_page_faults_and_goes_back_at_the_end() -> None:
    ran = subprocess.run([sys.executable, "-c", TAKE_AND_FREE], capture_output=True, text=True, check=True)
    usual, kept, inside, after = map(int, ran.stdout.split())
    assert kept < 500 < 5_000 < usual
    assert inside - after > 12 << 22
