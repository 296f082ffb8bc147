"""The search at phi = 1: what may be trained (`plan`), what is trained next (`strategies`), and doing it (`trials`)."""

from scalesearch.search.plan import BASELINE, Axis, Candidate, Grid, Plan, Real, candidates, measured
from scalesearch.search.replay import Recorded, Replayed, replay
from scalesearch.search.strategies import STRATEGIES, Ask, History, Problem, Step, Stop, Strategy
from scalesearch.search.trials import Stopped, TrialResult, carry_out, possible, problem, shortened, sqlite

__all__ = [
    "BASELINE",
    "STRATEGIES",
    "Ask",
    "Axis",
    "Candidate",
    "Grid",
    "History",
    "Plan",
    "Problem",
    "Real",
    "Recorded",
    "Replayed",
    "Step",
    "Stop",
    "Stopped",
    "Strategy",
    "TrialResult",
    "candidates",
    "carry_out",
    "measured",
    "possible",
    "problem",
    "replay",
    "shortened",
    "sqlite",
]
