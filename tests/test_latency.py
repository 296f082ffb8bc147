from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from conftest import case

from scalesearch.cost import cost
from scalesearch.latency import latency
from scalesearch.network import Network


@pytest.fixture
def small(baselines: dict[str, Network]) -> Network:
    return replace(baselines["mobilenetv2"], resolution=32)


def test_eight_times_the_macs_take_longer(baselines: dict[str, Network]) -> None:
    small = replace(baselines["mobilenetv2"], resolution=64)
    large = replace(small, resolution=192)
    assert cost(large).macs > 8 * cost(small).macs
    assert latency(large, device="cpu", budget_seconds=0.2).median_ms > 2 * (
        latency(small, device="cpu", budget_seconds=0.2).median_ms
    )


def test_a_batch_takes_longer_than_an_image(baselines: dict[str, Network]) -> None:
    network = replace(baselines["mobilenetv2"], resolution=64)
    one, many = (latency(network, device="cpu", batch_size=size, budget_seconds=0.2) for size in (1, 16))
    assert (one.batch_size, many.batch_size) == (1, 16)
    assert many.median_ms > 2 * one.median_ms


def test_the_quartiles_lie_around_the_median(small: Network) -> None:
    found = latency(small, device="cpu", budget_seconds=0.1)
    assert 0 < found.low_ms <= found.median_ms <= found.high_ms
    assert found.num_runs >= 3
    assert (found.device, found.threads) == ("cpu", 1)


def test_milliseconds_are_what_a_clock_outside_says(small: Network) -> None:
    began = time.perf_counter()
    found = latency(small, device="cpu", budget_seconds=0.5)
    outside = 1_000 * (time.perf_counter() - began)
    assert found.num_runs * found.low_ms * 0.7 <= outside  # a quarter of the runs is faster than `low_ms`
    assert found.num_runs * found.high_ms > 0.5 * 500


def test_a_longer_budget_has_more_runs(small: Network) -> None:
    short, long = (latency(small, device="cpu", budget_seconds=seconds) for seconds in (0.02, 0.5))
    assert long.num_runs > short.num_runs >= 1


def test_a_network_slower_than_the_budget_is_measured_once(small: Network) -> None:
    found = latency(replace(small, resolution=64), device="cpu", budget_seconds=1e-5)
    assert found.num_runs == 1
    assert found.low_ms == found.median_ms == found.high_ms > 0


def test_the_threads_are_put_back(small: Network) -> None:
    for before in [1, 2]:
        with case(before):
            usual = torch.get_num_threads()
            torch.set_num_threads(before)
            try:
                assert latency(small, device="cpu", threads=3 - before, budget_seconds=1e-5).threads == 3 - before
                assert torch.get_num_threads() == before
                with pytest.raises(ValueError, match="known blocks"):
                    latency(
                        replace(small, stem=(replace(small.stem[0], block="unknown"),)),
                        device="cpu",
                        threads=3 - before,
                    )
                assert torch.get_num_threads() == before
            finally:
                torch.set_num_threads(usual)


def test_torchs_generator_is_left_alone(small: Network) -> None:
    before = torch.get_rng_state()
    latency(replace(small, dropout=0.5), device="cpu", budget_seconds=1e-5)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_device_is_refused_by_name(small: Network) -> None:
    for device in ["gpu", "cuda:x", "mps", "meta", "", 0.5]:
        with case(device), pytest.raises(ValueError, match=r"device is .*; it must be 'cpu', 'cuda' or one GPU"):
            latency(small, device=device)


def test_a_gpu_that_is_not_there_is_of_the_environment(small: Network) -> None:
    with pytest.raises(OSError, match=f"device is 'cuda:99', but torch sees {torch.cuda.device_count()} GPUs here"):
        latency(small, device="cuda:99")


def test_a_number_out_of_range_is_refused_by_name(small: Network) -> None:
    cases = [
        ({"threads": 0}, "threads is 0; it must be a whole number from 1"),
        ({"threads": 1.5}, "threads is 1.5"),
        ({"batch_size": 0}, "batch_size is 0; it must be a whole number from 1"),
        ({"batch_size": True}, "batch_size is True"),
        ({"budget_seconds": 0}, "budget_seconds is 0; it must be a number above 0"),
        ({"budget_seconds": float("nan")}, "budget_seconds is nan"),
    ]
    for given, said in cases:
        with case(given, said), pytest.raises(ValueError, match=said):
            latency(small, device="cpu", **given)  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_is_waited_for(baselines: dict[str, Network]) -> None:
    """Without waiting, a batch of 256 would seem to take as long as the launching of it."""
    network = baselines["resnet50"]
    one, many = (latency(network, device="cuda", batch_size=size) for size in (1, 256))
    assert one.device.startswith("cuda")
    assert many.median_ms > 4 * one.median_ms
    assert latency(network, budget_seconds=0.1).device.startswith("cuda")
