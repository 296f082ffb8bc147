"""Strategies as they are shipped, and recorded trainings to replay them on: for the tests of both."""

from __future__ import annotations

import functools
import sys

from conftest import CONF, study_settings

from scalesearch.search import Strategy
from scalesearch.study import StudySettings

TABULAR = CONF.parent / "benchmarks" / "tabular"
sys.path.append(str(TABULAR))
import replay as script  # noqa: E402 - a script, beside which `recorded` lies
from recorded import Recorded, replay  # noqa: E402

__all__ = ["NOISE", "SHIPPED", "TABULAR", "Recorded", "composed", "replay", "script", "strategy_of"]

SHIPPED = sorted(path.stem for path in (CONF / "search").glob("*.yaml"))
NOISE = 0.004  # between seeds, as a proxy of the default search has it


def composed(*overrides: str) -> StudySettings:
    return study_settings(*overrides)


@functools.cache
def strategy_of(name: str, *overrides: str) -> Strategy:
    return composed(f"search={name}", *overrides).search.strategy
