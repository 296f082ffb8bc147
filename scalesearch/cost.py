"""What a network costs, counted on the records that its layers are built from, and the budget it has to meet.

A multiply-add (mac) is one multiplication with its addition, in convolutions and linear layers of one forward
pass of one image: what the paper calls FLOPS, and half of what torch's counter calls flops.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from scalesearch.model import build_on_meta, classifier, layers
from scalesearch.network import AnyNetwork, Factory
from scalesearch.text import raised


@dataclass(frozen=True)
class Cost:
    """`macs` of one image's forward pass, trainable `params`, and `activations`: the output elements of all
    convolutions and linear layers for one image (as pycls counts them)."""

    macs: int
    params: int
    activations: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.macs + other.macs, self.params + other.params, self.activations + other.activations)


@lru_cache(maxsize=4096)
def cost(network: AnyNetwork) -> Cost:
    """The whole network's cost. Raises: ValueError: a row does not fit its block or its place."""
    total = Cost(0, 0, 0)
    for _, part in stage_costs(network):
        total += part
    return total


def stage_costs(network: AnyNetwork) -> list[tuple[str, Cost]]:
    """(row, its cost) for stem, each stage, head and classifier, in the order of the forward pass.

    A `Factory` has one row, "network": torch's counter and hooks see its forward pass on the meta device.
    """
    if isinstance(network, Factory):
        return [("network", _counted(network))]
    rows: dict[str, Cost] = {}
    for place, records in layers(network):
        macs = params = activations = 0
        for record in records.values():
            macs += record.macs
            params += record.params
            activations += record.activations
        rows[place.row] = rows.get(place.row, Cost(0, 0, 0)) + Cost(macs, params, activations)
    last = classifier(network)
    rows["classifier"] = Cost(last.macs, last.params, last.activations)
    return list(rows.items())


def _counted(network: Factory) -> Cost:
    module = build_on_meta(network).eval()
    activations = 0

    def add(_: nn.Module, __: object, output: Tensor) -> None:
        nonlocal activations
        activations += output.numel()

    for layer in module.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            layer.register_forward_hook(add)
    side = network.resolution
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            logits = module(torch.empty(1, network.in_channels, side, side, device="meta"))
    except (Exception, SystemExit) as error:  # the user's own code, or an operation that torch has no meta kernel for
        raise ValueError(
            f"{network.function}: its forward pass on {network.in_channels} x {side} x {side} images raised "
            f"{raised(error)}"
        ) from error
    if not isinstance(logits, Tensor) or logits.shape != (1, network.num_classes):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"{network.function}: its network gives {shape} for one image; it must give logits of shape "
            f"(1, {network.num_classes})"
        )
    params = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    return Cost(counter.get_total_flops() // 2, params, activations)  # torch counts a multiply-add as two
