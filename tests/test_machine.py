from __future__ import annotations

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
