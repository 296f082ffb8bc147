"""Experiments about a search and about the paper, each a list of evaluations: `scalesearch reproduce NAME`.

Every training is an evaluation of the shared ledger, so an experiment goes on where it stopped, and what a search has
trained is not trained again.
"""

from __future__ import annotations

from collections.abc import Callable

from scalesearch.config import ReproduceQuestion
from scalesearch.screen import Screen
from scalesearch.studies.fidelity import fidelity

__all__ = ["STUDIES", "fidelity", "reproduce"]


def reproduce(question: ReproduceQuestion, out: Screen) -> int:
    """`scalesearch reproduce`: the exit code of the experiment of that name."""
    return STUDIES[question.name](question, out)


STUDIES: dict[str, Callable[[ReproduceQuestion, Screen], int]] = {"fidelity": fidelity}
