"""What a network costs, counted on the records that its layers are built from, and the budget it has to meet.

A multiply-add (mac) is one multiplication with its addition, in convolutions and linear layers of one forward
pass of one image: what the paper calls FLOPS, and half of what torch's counter calls flops.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from scalesearch.model import classifier, layers
from scalesearch.network import Network


@dataclass(frozen=True)
class Cost:
    """`macs` of one image's forward pass, trainable `params`, and `activations`: the output elements of all
    convolutions and linear layers for one image (as pycls counts them)."""

    macs: int
    params: int
    activations: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.macs + other.macs, self.params + other.params, self.activations + other.activations)


@dataclass(frozen=True)
class Budget:
    """A candidate's counted multiply-adds must be `macs_ratio` times the 1x network's, within `tolerance` of that."""

    macs_ratio: float
    tolerance: float

    def admits(self, ratio: float) -> bool:
        """Whether a network of `ratio` times the baseline's multiply-adds meets the budget.

        >>> Budget(2.0, 0.1).admits(2.2), Budget(2.0, 0.1).admits(2.21)
        (True, False)
        """
        return abs(ratio / self.macs_ratio - 1) <= self.tolerance + 1e-9


@lru_cache(maxsize=4096)
def cost(network: Network) -> Cost:
    """The whole network's cost. Errors: ValueError for a block that nobody knows."""
    total = Cost(0, 0, 0)
    for _, part in stage_costs(network):
        total += part
    return total


def stage_costs(network: Network) -> list[tuple[str, Cost]]:
    """(row, its cost) for stem, each stage, head and classifier, in the order of the forward pass."""
    rows: dict[str, Cost] = {}
    for place, records in layers(network):
        row = place.name.rsplit(".", 1)[0] if place.name.startswith("stages") else place.name
        macs = params = activations = 0
        for record in records.values():
            macs += record.macs
            params += record.params
            activations += record.activations
        rows[row] = rows.get(row, Cost(0, 0, 0)) + Cost(macs, params, activations)
    last = classifier(network)
    rows["classifier"] = Cost(last.macs, last.params, last.activations)
    return list(rows.items())
