from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import case
from torch import nn

from scalesearch import latency as measuring
from scalesearch.cost import cost
from scalesearch.latency import latency
from scalesearch.network import Network


@pytest.fixture
def small(baselines: dict[str, Network]) -> Network:
    return replace(baselines["mobilenetv2"], resolution=32)


class Clock:
    """A clock that forward passes move and nothing else: each by the next of `milliseconds`, then by the last of them.

    It keeps the modules that ran, and the shapes that went in.
    """

    def __init__(self, milliseconds: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.left = 0.0, milliseconds
        self.modules: list[nn.Module] = []
        self.shapes: list[tuple[int, ...]] = []
        make = measuring._module

        def made(network: Network, device: torch.device) -> nn.Module:
            module = make(network, device)
            module.register_forward_hook(self.passed)
            return module

        monkeypatch.setattr(measuring, "_module", made)
        monkeypatch.setattr(measuring, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def passed(self, module: nn.Module, given: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        self.now += (self.left.pop(0) if len(self.left) > 1 else self.left[0]) / 1_000
        self.modules.append(module)
        self.shapes.append(tuple(given[0].shape))


def test_milliseconds_are_those_of_the_passes_after_the_warm_up(
    small: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is warm once a pass is no faster than the one before, and measured until the budget is used up."""
    clock = Clock([9, 5, 5, 3, 1, 2, 4, 10, 100], monkeypatch)
    found = latency(small, device="cpu", budget_seconds=0.0199)
    assert clock.left == [100]
    assert found.num_runs == 5
    assert (found.low_ms, found.median_ms, found.high_ms) == pytest.approx((2, 3, 4))


def test_what_is_timed_is_the_whole_network_on_a_batch_of_its_images(
    small: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock([1], monkeypatch)
    for resolution, batch_size in ((32, 1), (64, 1), (32, 16)):
        network = replace(small, resolution=resolution)
        with case(resolution, batch_size):
            found = latency(network, device="cpu", batch_size=batch_size, budget_seconds=1e-5)
            assert found.batch_size == batch_size
            assert clock.shapes[-1] == (batch_size, 3, resolution, resolution)
            assert sum(part.numel() for part in clock.modules[-1].parameters()) == cost(network).params
            assert not clock.modules[-1].training


def test_the_quartiles_lie_around_the_median(small: Network) -> None:
    found = latency(small, device="cpu", budget_seconds=0.1)
    assert 0 < found.low_ms <= found.median_ms <= found.high_ms
    assert found.num_runs >= 3
    assert (found.device, found.threads) == ("cpu", 1)


def test_a_longer_budget_has_more_runs_and_three_are_the_fewest(
    small: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock([10], monkeypatch)
    runs = [latency(small, device="cpu", budget_seconds=seconds).num_runs for seconds in (0.011, 0.0399, 0.0799)]
    assert runs == [3, 4, 8]


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
                with pytest.raises(ValueError, match="known: conv"):
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


def test_a_number_out_of_range_is_refused_by_name(small: Network) -> None:
    cases = [
        ({"threads": 0}, "threads is 0; it must be a whole number from 1"),
        ({"threads": 1.5}, "threads is 1.5"),
        ({"batch_size": 0}, "batch_size is 0; it must be a whole number from 1"),
        ({"batch_size": True}, "batch_size is True"),
        ({"budget_seconds": 0}, "budget_seconds is 0; it must be a number from 1e-09 to 3600"),
        ({"budget_seconds": float("nan")}, "budget_seconds is nan"),
    ]
    for given, message in cases:
        with case(given, message), pytest.raises(ValueError, match=message):
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
