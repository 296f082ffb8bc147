"""A hundred random networks of a user's end in a right answer or in one clear message (`random_modules`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import factories
import pytest
import random_modules
import torch
from conftest import Ended, case
from torch import nn

from scalesearch.model import build

EACH = 4 * max(len(random_modules.ODDITIES), -(-len(random_modules.FAULTS) // 2))  # each fault and oddity at least once
SIZES = "baseline.resolution=32 data=digits recipe=quick recipe.epochs=1 data.num_train=64 proxy=none"


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    with factories.forgotten():
        yield tmp_path


def written(seed: int) -> tuple[str, random_modules.Written]:
    made = random_modules.written(seed)
    return factories.write(Path(), f"random{seed}", made.body, before=random_modules.BEFORE), made


def macs(module: nn.Module, side: int, channels: int) -> int:
    """Multiply-adds of one image by the shapes that layers get and give, apart from what scalesearch counts with."""
    total = 0

    def count(layer: nn.Module, given: tuple[torch.Tensor, ...], gives: torch.Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.ConvTranspose2d):
            total += given[0][0].numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Conv2d):
            total += gives[0].numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Linear):
            total += gives[0].numel() * layer.in_features
        elif type(layer).__name__ == "Attention":
            tokens = given[0].shape[2] * given[0].shape[3]
            total += 2 * tokens * tokens * given[0].shape[1]

    for layer in module.modules():
        layer.register_forward_hook(count)
    with torch.no_grad():
        module.eval()(torch.rand(1, channels, side, side))
    return total


@pytest.mark.filterwarnings("ignore:odd:UserWarning")
@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_hundred_random_networks_are_counted_right_or_refused_in_one_line(
    every: int, command: Callable[..., Ended]
) -> None:
    for seed in range(0, max(100, EACH), every):
        function, made = written(seed)
        with case(seed, made.what, "\n" + made.body):
            ended = command(f"cost baseline.factory={function} baseline.resolution=32 --json")
            if made.works:
                assert ended.code == 0, ended.output
                network = factories.made(function, resolution=32, num_classes=1000)
                assert ended.answer["macs"] == macs(build(network), 32, 3)
            elif ended.code:
                refused(ended, function)
            else:  # only a training step shows it
                refused(command(f"plan baseline.factory={function} {SIZES}"), function)


def refused(ended: Ended, function: str) -> None:
    (line,) = [line for line in ended.output.splitlines() if line.startswith("scalesearch: ")]
    assert ended.code == 2
    assert function in line
    assert len(line) < 600
    assert line.isprintable()
