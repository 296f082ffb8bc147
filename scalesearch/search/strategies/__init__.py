"""Which candidate is trained next, with which seed, for how long: one module per strategy, named as it is chosen.

A strategy is a `@checked` dataclass of its options, with defaults, that keeps the protocol `Strategy`. Its `steps` is a
generator: it yields `Request`s; `Stop` for a candidate that is out; None where it must see one more score before it can
go on; and `End` where it ends sooner than it may. `History` shows it the scores in the order of its requests, after
those of the 1x network: each one when `lookahead` requests wait for theirs or the strategy yields None, and never
sooner. So workers do not wait for a round to fill, and the same seeds come to the same end whatever the order in which
trainings finish: after a crash, on a machine with other workers, or replayed on a recorded table."""

from scalesearch.registry import Registry
from scalesearch.search.strategies._base import (
    BASE,
    End,
    Estimate,
    History,
    Problem,
    Request,
    Score,
    Step,
    Stop,
    Strategy,
    estimate,
)

STRATEGIES: Registry[type[Strategy]] = Registry(
    "strategies", package="scalesearch.search.strategies", attribute="Strategy"
)

__all__ = ["BASE", "STRATEGIES", "End", "Estimate", "History", "Problem", "Request", "Score", "Step", "Stop"]
__all__ += ["Strategy", "estimate"]
