"""What a network costs, counted on the records that its layers are built from, and the budget it has to meet.

A multiply-add (mac) is one multiplication with its addition, in convolutions and linear layers of one forward
pass of one image: what the paper calls FLOPS, and half of what torch's counter calls flops.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from scalesearch.cost.forward import check_training, forward, seeds_itself
from scalesearch.model import classifier, layers
from scalesearch.network import AnyNetwork, Factory
from scalesearch.text import listed, plural

__all__ = ["Cost", "check_training", "computation", "cost", "needs_values", "stage_costs", "uncounted"]
__all__ += ["seed_words", "uncounted_words"]


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

    A `Factory` has one row, "network": its forward pass is watched (`forward`).
    """
    if isinstance(network, Factory):
        found = forward(network)
        return [("network", Cost(found.macs, found.params, found.activations))]
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


def uncounted(network: AnyNetwork) -> dict[str, int]:
    """Operations of one forward pass whose multiply-adds are in no count, with how often each runs.

    All of a table's are counted. Of a function's network torch's counter knows convolutions, matrix products and
    attention; Fourier transforms, solvers, recurrent cells and operators of other packages it does not.
    """
    return dict(forward(network).uncounted) if isinstance(network, Factory) else {}


def computation(network: Factory) -> str:
    """A digest of the operations of a forward pass, with the shapes of what each gives: two networks of a function
    with equal structures that share it compute the same layers, whatever their resolutions."""
    return forward(network).computation


def needs_values(network: AnyNetwork) -> bool:
    """Whether the forward pass works only with real tensors: it branches on values, say."""
    return isinstance(network, Factory) and forward(network).real


def seed_words(network: AnyNetwork) -> list[str]:
    """A line on a function that seeds torch's generator itself; none for others."""
    if not isinstance(network, Factory) or not seeds_itself(network):
        return []
    return [
        f"{network.function} seeds torch's generator: its weights start alike with every seed, and intervals over "
        "seeds are too narrow; leave the seed to scalesearch"
    ]


def uncounted_words(operations: Mapping[str, int]) -> list[str]:
    """A line that names operations which no number of multiply-adds includes; none where there are none."""
    if not operations:
        return []
    found = listed([f"{name} ({plural(number, 'call')})" for name, number in operations.items()])
    return [f"not counted: {found}; their multiply-adds are in no number here, and no budget limits them"]
