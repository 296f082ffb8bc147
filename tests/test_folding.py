"""Batch norms folded into convolutions: the same numbers in fewer passes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from scalesearch.model import build, folded
from scalesearch.network import Network, load
from scalesearch.scaling import Proxy, Rounding, shrink

BASELINES = [
    path
    for path in sorted((Path(__file__).parent.parent / "conf" / "baseline").glob("*.yaml"))
    if path.stem not in ("factory", "timm")  # which name no network
]
ROUNDING = Rounding(name="nearest", depth="nearest", divisor=8, limit=0.9, resolution="nearest", resolution_multiple=1)


def unlike_new(model: nn.Module) -> nn.Module:
    """The model with statistics, scales and shifts as after some training: new ones fold to nearly nothing."""
    generator = torch.Generator().manual_seed(0)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor, low, high in (
                (part.running_mean, -1, 1),
                (part.running_var, 0.2, 2),
                (part.weight.data, -1, 1.5),
                (part.bias.data, -1, 1),
            ):
                assert tensor is not None
                tensor.uniform_(low, high, generator=generator)
    return model.double().eval()


@pytest.mark.parametrize("path", BASELINES, ids=lambda path: path.stem)
def test_every_baseline_gives_the_same_logits_folded(path: Path) -> None:
    network = load(path)
    assert isinstance(network, Network)
    small = Proxy(width=0.25, depth=0.65, resolution=32, total_stride=8)
    network = shrink(network, small, ROUNDING)[0]
    torch.manual_seed(0)
    model = unlike_new(build(network))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(2, network.in_channels, network.resolution, network.resolution, dtype=torch.float64)
    with torch.no_grad():
        faster = folded(model)
        torch.testing.assert_close(faster(x), model(x), rtol=1e-8, atol=1e-8)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def norms(whole: nn.Module) -> int:
        return sum(isinstance(part, nn.BatchNorm2d) for part in whole.modules())

    assert norms(faster) < norms(model) or norms(model) == 0 or faster is model


def test_what_has_no_such_pair_is_itself() -> None:
    plain = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))  # of a user's function, whose order is not known
    assert folded(plain) is plain
