"""The search at phi = 1: what may be trained (`plan`), what is trained next (`strategies`), and the loop (`trials`)."""

from typing import TYPE_CHECKING, Any

from scalesearch.search.strategies import BASE, STRATEGIES, End, History, Problem, Request, Score, Step, Stop, Strategy

if TYPE_CHECKING:
    from scalesearch.search.optuna_view import OptunaView
    from scalesearch.search.plan import AXES, BASELINE, Axis, Candidate, Grid, Plan, Real, candidates, measured
    from scalesearch.search.target import (
        Realised,
        costs_of,
        every_split,
        multiples_of,
        ratio_of,
        realised,
        size_of,
        targeted,
    )
    from scalesearch.search.trials import Stopped, TrialResult, possible, problem, requests, run, shortened

__all__ = ["BASE", "STRATEGIES", "End", "History", "Problem", "Request", "Score", "Step", "Stop", "Strategy"]
__all__ += ["OptunaView"]
__all__ += ["AXES", "BASELINE", "Axis", "Candidate", "Grid", "Plan", "Real", "candidates", "measured"]
__all__ += ["Realised", "costs_of", "every_split", "multiples_of", "ratio_of", "realised", "size_of", "targeted"]
__all__ += ["Stopped", "TrialResult", "possible", "problem", "requests", "run", "shortened"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # when asked for: torch comes with these, and a strategy needs none
        from scalesearch.search import optuna_view, plan, target, trials

        return next(getattr(one, name) for one in (plan, target, trials, optuna_view) if hasattr(one, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
