"""The best split at a cost that nothing was trained at: accuracy over depth, width and resolution, fitted over several
costs at once.

A *split* of a cost says which share of its doublings each dimension brings: at 8 times the cost of the 1x network, a
third each is depth * 2, width * sqrt(2), resolution * sqrt(2) (arXiv:1905.11946, equation 3, with phi = 3). The paper
finds one split at twice the cost and keeps it; here the costs that were trained say whether that holds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from scalesearch.posterior import Array, Posterior, Size, posterior

Split = tuple[float, float, float]  # shares of depth, width and resolution in the doublings of the cost; their sum is 1
Multiples = tuple[float, float, float]  # of the 1x network's depth, width and resolution
PARTS = 6  # the splits that are compared have shares in sixths
MOST_COSTS = 5  # at which the path over phi is followed


def lattice(parts: int = PARTS) -> list[Split]:
    """All splits with shares in so many parts, depth alone first.

    >>> len(lattice(6)), lattice(1)
    (28, [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
    """
    shares = [(parts - rest, rest - last, last) for rest in range(parts + 1) for last in range(rest + 1)]
    return [(depth / parts, width / parts, resolution / parts) for depth, width, resolution in shares]


def spread(number: int, free: tuple[bool, ...] = (True, True, True)) -> list[Split]:
    """So many splits, spread over all that there are: equal shares, one dimension alone, two in equal parts, and so on.

    Of equal denominators the one that is farthest from those before comes first. free: whether depth, width and
    resolution may have a share.

    >>> [tuple(round(share, 2) for share in split) for split in spread(4)]
    [(0.33, 0.33, 0.33), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
    """
    found = [min((one for one in lattice(12) if _within(one, free)), key=max)]
    for parts in (1, 2, 3, 4, 6, 12):
        new = [one for one in lattice(parts) if _within(one, free) and one not in found]
        while new and len(found) < number:
            found.append(max(new, key=lambda split: round(min(math.dist(split, one) for one in found), 9)))
            new.remove(found[-1])
    return found


def _within(split: Split, free: tuple[bool, ...]) -> bool:
    return all(may or share == 0 for may, share in zip(free, split, strict=True))


def multiples(split: Split, doublings: float) -> Multiples:
    """(depth, width, resolution) that together cost 2^doublings: the cost grows with the square of the last two.

    >>> [round(value, 3) for value in multiples((1 / 3, 1 / 3, 1 / 3), 3)]
    [2.0, 1.414, 1.414]
    """
    depth, width, resolution = split
    return 2 ** (depth * doublings), 2 ** (width * doublings / 2), 2 ** (resolution * doublings / 2)


def size(of: Multiples) -> Size:
    """Doublings of the cost that each dimension brings."""
    depth, width, resolution = (math.log2(value) for value in of)
    return depth, 2 * width, 2 * resolution


class Network(NamedTuple):
    """A trained network: its multiples of the 1x network, seed to score, and how often it costs the 1x network."""

    of: Multiples
    scores: Mapping[int, float]
    ratio: float


class Constant(NamedTuple):
    """The test whether one split is the best at every cost, within the error.

    split: the one that fits best. p_value: the largest over all splits of the probability that the trainings speak as
    much against a split which is the best at every cost; a constant split is refuted where it is below 0.05. loss: what
    the best split at twice the cost is expected to lose at the target, with its interval at the confidence.
    """

    split: Split
    p_value: float
    loss: float
    loss_low: float
    loss_high: float


@dataclass(frozen=True, eq=False)
class Surface:
    """What the trainings say of every split of a lattice at several costs, of which the last one is the target.

    costs: multiples of the 1x network's. sizes: of each cost the sizes of the splits. `posterior` has first the
    `num_trained` networks, then for each cost the splits.
    """

    posterior: Posterior
    num_trained: int
    most_trained: float
    costs: tuple[float, ...]
    splits: tuple[Split, ...]
    sizes: tuple[tuple[Size, ...], ...]

    def places(self, cost: int) -> list[int]:
        """Those of the splits at a cost (by its place in `costs`) in the posterior."""
        first = self.num_trained + cost % len(self.costs) * len(self.splits)
        return list(range(first, first + len(self.splits)))

    def expected(self, cost: int = -1) -> Array:
        """(splits,) expected accuracies at a cost."""
        return self.posterior.mean[self.places(cost)]

    def interval(self, split: int, confidence: float, cost: int = -1) -> tuple[float, float]:
        """Of the accuracy of a split, by its place in `splits`; the model does not know that it is 1 at most."""
        low, high = self.posterior.interval(self.places(cost)[split], confidence)
        return max(-1.0, low), min(1.0, high)

    def best(self, cost: int = -1) -> int:
        """The split of the highest expected accuracy."""
        return int(self.expected(cost).argmax())

    def regret(self, cost: int = -1) -> Array:
        """(splits,) by how much each is expected to fall behind the best one at a cost."""
        return self.posterior.regret(self.places(cost))

    def as_good(self, confidence: float, cost: int = -1) -> list[int]:
        """The region: the fewest splits that include the best one with this probability."""
        places = self.places(cost)
        return [places.index(place) for place in self.posterior.best_set(places, confidence)]

    @property
    def beyond(self) -> float:
        """How many doublings of the cost lie between the most expensive network that was trained and the target."""
        return max(0.0, math.log2(self.costs[-1] / self.most_trained))

    def constant(self, confidence: float) -> Constant:
        """Whether one split is the best at every cost; see `Constant`.

        By the largest standardised difference to a better split at any cost, against the distribution of that
        largest one (as multiple comparisons with the best do it; Hsu 1984, doi:10.1214/aos/1176346806).
        """
        means, drawn = self.posterior.mean, self.posterior.draws
        everywhere = [self.places(cost) for cost in range(len(self.costs))]
        found = []
        for split in range(len(self.splits)):
            better = [(place, places[split]) for places in everywhere for place in places if place != places[split]]
            others, own = (list(one) for one in zip(*better, strict=True))
            apart, noise = means[others] - means[own], drawn[:, others] - drawn[:, own]
            noise -= noise.mean(0)
            scale = np.maximum(noise.std(0), 1e-12)
            found.append(float(((noise / scale).max(1) >= (apart / scale).max()).mean()))
        fits = int(np.argmax(found))
        target, first = self.places(-1), self.best(0)
        loss = drawn[:, target[self.best()]] - drawn[:, target[first]]
        low, high = np.quantile(loss, [(1 - confidence) / 2, (1 + confidence) / 2])
        return Constant(self.splits[fits], found[fits], float(loss.mean()), float(low), float(high))


def fit(
    networks: Sequence[Network],
    target: float,
    *,
    images: Array | None = None,
    splits: Sequence[Split] | None = None,
    place: Callable[[Split, float], Size | None] | None = None,
) -> Surface | None:
    """The surface, at the costs of `path(target)`; None where the trainings are too few.

    Args:
        images: as `posterior.posterior` has it.
        splits: that are compared; None: `lattice()`.
        place: the size of a split at a cost, for one whose counted cost is not the product of its multiples; None
            where no network is both. A split must have one at each cost to be compared.
    """
    costs = path(target)
    place = place or (lambda split, cost: size(multiples(split, math.log2(cost))))
    rows = [(split, [place(split, cost) for cost in costs]) for split in splits or lattice()]
    there = [(split, [one for one in sizes if one is not None]) for split, sizes in rows if None not in sizes]
    if not there:
        return None
    sizes = tuple(tuple(of[index] for _, of in there) for index in range(len(costs)))
    found = posterior(
        [size(network.of) for network in networks],
        [network.scores for network in networks],
        images,
        points=list(itertools.chain(*sizes)),
        across_costs=True,
    )
    if found is None:
        return None
    most = max(network.ratio for network in networks if network.scores)
    return Surface(found, len(networks), most, costs, tuple(split for split, _ in there), sizes)


def path(target: float) -> tuple[float, ...]:
    """The costs at which splits are compared: of phi = 1, 2, ... up to the target, or fewer, evenly spaced in phi.

    >>> path(8), path(3), path(1.5)
    ((2.0, 4.0, 8.0), (2.0, 3.0), (1.5,))
    """
    top = math.log2(target)
    whole = [float(phi) for phi in range(1, math.ceil(top - 1e-9))]
    if len(whole) >= MOST_COSTS:
        whole = [1 + step * (top - 1) / (MOST_COSTS - 1) for step in range(MOST_COSTS - 1)]
    return (*(2**phi for phi in whole), float(target))
