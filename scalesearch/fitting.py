"""From limits to a variant: equation 2 of arXiv:1905.11946, solved for phi.

`fit` finds the largest phi whose rounded network meets the limits, and trims that network until one of them is used up.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple

from scalesearch.budget import Limits, Profiler
from scalesearch.cost import cost
from scalesearch.model import BLOCKS
from scalesearch.network import MAX_CHANNELS, MAX_REPEATS, MAX_RESOLUTION, AnyNetwork, Factory, Network, Stage, where
from scalesearch.scaling import Coefficients, Rounding, patch_of, resize, round_resolution, scale
from scalesearch.variants import Move, Variant

ENOUGH = 0.98  # of the budget that binds; a network that uses less is trimmed


@dataclass(frozen=True)
class Fit:
    """The variant that limits lead to, and for each metric the share of its limit that is used.

    A share above 1 means that no network meets the limits; the variant is then the smallest one that the rule gives.
    """

    variant: Variant
    use: dict[str, float]

    @property
    def binding(self) -> str:
        """The metric of which the largest share is used."""
        return max(self.use, key=lambda metric: self.use[metric])

    @property
    def share(self) -> float:
        return self.use[self.binding]


def fit(
    network: AnyNetwork, coefficients: Coefficients, limits: Limits, *, rounding: Rounding, profiler: Profiler
) -> Fit:
    """The variant at the largest phi whose rounded network meets all `limits`, trimmed where it leaves room.

    Rounded cost is a step function of phi, and may step down: the answer is sought from the first phi too large on up
    to a network of a fifth more, a twentieth where memory is limited; of a latency, which is noise as well as steps,
    the first is taken. Where the network uses less than `ENOUGH` of every limit, the knob that departs least from
    the rule is turned: the resolution if that is enough, else a row's channels or repeats, else two or three of these.

    Raises: ValueError: a coefficient is below 1, or all are 1: a larger phi would not be a larger network.
    """
    if min(coefficients.alpha, coefficients.beta, coefficients.gamma) < 1 or coefficients.product == 1:
        raise ValueError(
            f"coefficients are alpha {coefficients.alpha:g}, beta {coefficients.beta:g}, gamma {coefficients.gamma:g}; "
            "to meet a budget each must be 1 or more, and one above 1"
        )

    @cache
    def share(candidate: AnyNetwork) -> float:
        """The largest share of a limit; infinite for a network that cannot be."""
        try:
            return limits.most(candidate, profiler)[0]
        except ValueError:
            return math.inf

    phi, scaled = _largest(network, coefficients, rounding, share, reach=_reach(limits))
    moves: tuple[Move, ...] = ()
    if 0.3 < share(scaled) < ENOUGH:  # less is left at the end of what tables can hold, where no move helps
        knobs = partial(_knobs, baseline=network, rounding=rounding, limits=limits)
        quick = isinstance(scaled, Network) and limits.given().keys() <= {"macs", "params"}  # thousands in a second
        moves, scaled = _trimmed(scaled, share, knobs, every=quick)
    scaled = replace(scaled, name=f"{network.name}_{limits}")
    variant = Variant(phi, scaled, cost(scaled), cost(scaled).macs / cost(network).macs, moves)
    return Fit(variant, limits.use(scaled, profiler))


# From limits to phi

Share = Callable[[AnyNetwork], float]


def _reach(limits: Limits) -> float:
    """Up to which nominal cost beyond the first one too large a network is sought that fits again; see `fit`."""
    given = limits.given()
    return 1.0 if "latency_ms" in given else 1.05 if {"memory", "training_memory"} & given.keys() else 1.2


def _largest(
    network: AnyNetwork, coefficients: Coefficients, rounding: Rounding, share: Share, *, reach: float
) -> tuple[float, AnyNetwork]:
    """The largest phi of a share up to 1 and its network, or the smallest phi that has a network at all.

    phi is sought among multiples of a power of ten so small that a step changes the nominal cost by 0.01 % at most.
    """
    octave = math.log(coefficients.product)
    digits = max(0, math.ceil(math.log10(octave / 1e-4)))
    doubling = max(1, math.floor(math.log(2) / octave * 10**digits))

    @cache
    def at(number: int) -> AnyNetwork | None:
        try:
            return scale(network, coefficients, _phi(number, digits), rounding=rounding)
        except ValueError:
            return None

    def fits(number: int) -> bool:
        scaled = at(number)
        return scaled is not None and share(scaled) <= 1

    def is_there(number: int) -> bool:
        scaled = at(number)
        return scaled is not None and share(scaled) < math.inf

    low = high = 0
    if fits(0):
        while fits(high):
            low, high = high, high + doubling
    else:
        while not fits(low) and is_there(low) and low > -40 * doubling:
            low, high = low - doubling, low
        if not is_there(low):  # a resolution below the total stride, say
            low = bisect.bisect_left(range(low, high), True, key=is_there) + low
    if fits(low):
        low += bisect.bisect_left(range(low, high), True, key=lambda number: not fits(number)) - 1
    beyond = low + round(doubling * math.log2(reach))
    for first, last in reversed(list(itertools.pairwise(_steps(at, low, beyond)))):
        if fits(last):
            low = last
            break
        if fits(first):
            low = bisect.bisect_left(range(first, last), True, key=lambda number: not fits(number)) + first - 1
            break
    found = at(low)
    if found is None or not is_there(low):
        raise ValueError(f"no network of {network.name} can be built near its own size")
    return _phi(low, digits), found


def _phi(number: int, digits: int) -> float:
    return round(number / 10.0**digits, digits) + 0.0  # -0.0 is 0


def _steps(at: Callable[[int], AnyNetwork | None], low: int, high: int) -> list[int]:
    """Numbers from `low` to `high`, one at least of every network between them.

    A `Factory` differs at every number: of its networks there are nine.
    """
    numbers, levels = sorted({low, high}), 3 if not isinstance(at(low), Network) else 64
    for _ in range(levels):
        middles = [(a + b) // 2 for a, b in itertools.pairwise(numbers) if b - a > 1 and at(a) != at(b)]
        if not middles:
            break
        numbers = sorted([*numbers, *middles])
    return numbers


# Trimming


class _Knob(NamedTuple):
    """A number of a network that may be turned: `values` are what it may become, rising, `now` among them."""

    what: str
    now: float
    values: Sequence[float]
    turn: Callable[[Any], AnyNetwork]


class _Trim(NamedTuple):
    """Moves, the network that they lead to and its share."""

    moves: tuple[Move, ...]
    network: AnyNetwork
    share: float

    @property
    def departure(self) -> float:
        """How far the moves lead away from the rule: the sum of their relative changes."""
        return sum(abs(math.log(move.after / move.before)) for move in self.moves)

    def has_moved(self, what: str) -> bool:
        return any(move.what == what for move in self.moves)


def _trimmed(
    network: AnyNetwork, share: Share, knobs: Callable[[AnyNetwork], list[_Knob]], *, every: bool
) -> tuple[tuple[Move, ...], AnyNetwork]:
    """The fewest and smallest moves that use a limit up, else those that come nearest to that; three at most.

    After the first move, `every` step of a knob is followed by a further move, or else only what came nearest so far.
    """
    start = _Trim((), network, share(network))
    tried, frontier = [start], [start]
    resolution = knobs(network)[0]
    if _matters(start, resolution, share):
        tried += _turned(start, resolution, share)
    for _ in range(3):
        if _best(tried) or len(frontier) > 200:  # what is left would take more than seconds
            break
        turnable = [
            (trim, knob)
            for trim in frontier
            for knob in knobs(trim.network)
            if not trim.has_moved(knob.what) and _matters(trim, knob, share)
        ]
        tried += [turned for trim, knob in turnable for turned in _turned(trim, knob, share)]
        if every:
            steps = (_moved(trim, knob, value, share) for trim, knob in turnable for value in _neighbours(knob))
            frontier = [trim for trim in steps if trim.share < math.inf]
        else:
            frontier = [_nearest(tried)]
    chosen = _best(tried) or _nearest(tried)
    return chosen.moves, chosen.network


def _nearest(tried: list[_Trim]) -> _Trim:
    return max((trim for trim in tried if trim.share <= 1), key=lambda trim: (trim.share, -len(trim.moves)))


def _best(tried: list[_Trim]) -> _Trim | None:
    good = [trim for trim in tried if ENOUGH <= trim.share <= 1]
    return min(good, key=lambda trim: (len(trim.moves), trim.departure), default=None)


def _matters(start: _Trim, knob: _Knob, share: Share) -> bool:
    """Whether the share depends on the knob; hardly, say, on the position embeddings of a larger resolution."""
    far = max(knob.values, key=lambda value: abs(math.log(value / knob.now)))
    return abs(math.log(share(knob.turn(far)) / start.share)) > 0.05 * abs(math.log(far / knob.now))


def _turned(start: _Trim, knob: _Knob, share: Share) -> Iterator[_Trim]:
    """The knob turned until the share crosses into what is enough: that value, and upwards the last one before."""
    here = bisect.bisect_left(knob.values, knob.now)
    if start.share < ENOUGH:
        ahead = knob.values[here + 1 :]
        place = bisect.bisect_left(ahead, True, key=lambda value: share(knob.turn(value)) >= ENOUGH)
        found = ahead[max(0, place - 1) : place + 1]
    else:
        ahead = knob.values[:here][::-1]
        place = bisect.bisect_left(ahead, True, key=lambda value: share(knob.turn(value)) <= 1)
        found = ahead[place : place + 1]
    for value in found:
        yield _moved(start, knob, value, share)


def _moved(start: _Trim, knob: _Knob, value: float, share: Share) -> _Trim:
    turned = knob.turn(value)
    return _Trim((*start.moves, Move(knob.what, knob.now, value)), turned, share(turned))


def _neighbours(knob: _Knob) -> list[float]:
    here = bisect.bisect_left(knob.values, knob.now)
    return [*knob.values[max(0, here - 1) : here], *knob.values[here + 1 : here + 2]]


def _knobs(network: AnyNetwork, baseline: AnyNetwork, rounding: Rounding, limits: Limits) -> list[_Knob]:
    """The resolution first, then of a table the channels and repeats of each row, as far as the rule scales them, and
    of a function's network depth and width in steps of half a percent.

    Of a latency, which has to be measured for every value, there is the resolution alone.
    """
    knobs = [_resolution(network, rounding)]
    if "latency_ms" in limits.given():
        return knobs
    if isinstance(network, Factory) or isinstance(baseline, Factory):
        return [*knobs, *(_multiplier(network, name) for name in ("depth", "width"))]
    rows, rule, deeper = _rows(network), _rows(baseline), _rows(resize(baseline, depth=2, rounding=rounding))
    tokens = [name for name, row in rows.items() if BLOCKS[row.block].gives == "tokens"]
    alone = [[name] for name, row in rows.items() if row.channels is not None and name not in tokens]
    wide = [_channels(network, names, baseline, rounding) for names in (tokens, *alone) if names]
    deep = [_repeats(network, name) for name in rows if deeper[name].repeats != rule[name].repeats]
    return [*knobs, *(knob for knob in (*wide, *deep) if len(knob.values) > 1)]


def _resolution(network: AnyNetwork, rounding: Rounding) -> _Knob:
    now, patch = network.resolution, patch_of(network)
    least = network.total_stride if isinstance(network, Network) else 1
    sides = range(least, min(2 * now + 256, MAX_RESOLUTION) + 1)
    kept = [px for px in sides if round_resolution(px, rounding, patch=patch) == px]
    return _Knob("resolution", now, _near(now, kept), lambda px: replace(network, resolution=px))


def _multiplier(network: AnyNetwork, name: str) -> _Knob:
    now = getattr(network, name)
    values = [now if step == 0 else round(now * (1 + step / 200), 4) for step in range(-50, 51)]
    return _Knob(name, now, values, lambda value: replace(network, **{name: value}))


def _channels(network: Network, names: Sequence[str], baseline: Network, rounding: Rounding) -> _Knob:
    """Of one row, or of all transformers, which are as wide as each other."""
    rows = _rows(network)
    now: int = rows[names[0]].channels or 0
    multiples = range(rounding.divisor, min(2 * now + 256, MAX_CHANNELS) + 1, rounding.divisor)
    given = {count: [_wide(baseline, name, count, rounding) for name in names] for count in _near(now, multiples)}

    def turn(count: int) -> Network:
        wide = zip(names, given[count], strict=True)
        return _with(
            network,
            {
                name: replace(rows[name], channels=count, groups=row.groups, heads=row.heads)
                for name, row in wide
                if row is not None
            },
        )

    values = [count for count in given if count == now or None not in given[count]]
    return _Knob(f"{', '.join(map(where, names))}.channels", now, values, turn)


@lru_cache(maxsize=4096)
def _wide(baseline: Network, name: str, channels: int, rounding: Rounding) -> Stage | None:
    """The row where the rule makes it so wide, with groups and heads that fit; None where it never does."""
    width = channels / (_rows(baseline)[name].channels or channels)
    row = _rows(resize(baseline, width=width, rounding=rounding))[name]
    return row if row.channels == channels else None


def _repeats(network: Network, name: str) -> _Knob:
    row = _rows(network)[name]
    counts = range(1, min(2 * row.repeats, MAX_REPEATS) + 1)
    return _Knob(
        f"{where(name)}.repeats",
        row.repeats,
        _near(row.repeats, counts),
        lambda count: _with(network, {name: replace(row, repeats=count)}),
    )


def _near(now: int, values: Sequence[int]) -> list[int]:
    """`now` and the values that differ from it by a quarter at most, or are the next ones; rising."""
    below, above = [value for value in values if value < now], [value for value in values if value > now]
    near = [value for value in (*below, *above) if 0.8 * now <= value <= 1.25 * now]
    return sorted({now, *below[-1:], *above[:1], *near})


def _rows(network: AnyNetwork) -> dict[str, Stage]:
    return dict(network.rows()) if isinstance(network, Network) else {}


def _with(network: Network, rows: Mapping[str, Stage]) -> Network:
    """The network with these rows instead of those of the same names."""
    changed = iter([rows.get(name, row) for name, row in network.rows()])
    stem, stages, head = (
        tuple(itertools.islice(changed, len(part))) for part in (network.stem, network.stages, network.head)
    )
    return replace(network, stem=stem, stages=stages, head=head)
