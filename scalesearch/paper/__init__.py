"""Experiments about a search and about the paper, each a list of evaluations: `scalesearch reproduce NAME`.

Every training is an evaluation of the shared ledger, so an experiment goes on where it stopped, and what a search has
trained is not trained again. Each module of `experiments` is one experiment by its own name; nothing is imported
before it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalesearch.registry import Registry

if TYPE_CHECKING:
    from scalesearch.paper.experiment import PaperExperiment

__all__ = ["EXPERIMENTS"]

EXPERIMENTS: Registry[type[PaperExperiment]] = Registry(
    "experiments", package="scalesearch.paper.experiments", attribute="Experiment"
)
