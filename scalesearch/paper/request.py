"""What `reproduce NAME` is asked for: an experiment with its options, and what it is run on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scalesearch.checks import parse
from scalesearch.data import DataSpec
from scalesearch.network import AnyNetwork
from scalesearch.paper import EXPERIMENTS
from scalesearch.paper.experiment import PaperExperiment
from scalesearch.scaling import Coefficients, Rounding
from scalesearch.study import Study
from scalesearch.training import Recipe
from scalesearch.workspace import experiment_directory


@dataclass(frozen=True, kw_only=True)
class ExperimentRequest:
    """An experiment and what it is run on.

    baselines: as they are trained, fitted to the data and as proxies if asked for; `rounding` is that of their scaling.
    data, recipe: None where nothing is trained; target: the data that `transfer` tunes on. command: what a user typed.
    """

    name: str
    experiment: PaperExperiment
    baselines: Mapping[str, AnyNetwork]
    rounding: Rounding
    recipe: Recipe | None
    seeds: int
    data: DataSpec | None
    target: DataSpec | None
    init: str | None
    test: bool
    dry_run: bool
    workspace: Path
    command: str

    @property
    def directory(self) -> Path:
        return experiment_directory(self.workspace, self.name)

    @property
    def metric(self) -> str | None:
        """What networks are judged by; None is accuracy."""
        return None if self.recipe is None else self.recipe.metric

    @property
    def title(self) -> str:
        return f"{self.name}: {', '.join(self.baselines)}" + ("" if self.data is None else f" on {self.data.name}")


def experiment_of(name: str, options: Mapping[str, Any], workspace: Path) -> PaperExperiment:
    """The experiment with its options; `coefficients` are alpha, beta and gamma, or a study that chose them."""
    given = dict(options)
    if "coefficients" in given:
        given["coefficients"] = _coefficients(given["coefficients"], workspace)
    return parse(EXPERIMENTS[name], given)


def _coefficients(value: object, workspace: Path) -> Coefficients:
    if isinstance(value, str):
        found = Study.read(workspace, value).coefficients
        value = [found.alpha, found.beta, found.gamma]
    if not isinstance(value, list) or len(value) != 3:
        raise ValueError(
            f"experiment.coefficients is {value!r}; it must be [alpha, beta, gamma] (depth, width, resolution), such "
            "as [1.2, 1.1, 1.15], or the name of a study"
        )
    coefficients = Coefficients(*value)
    if min(value) < 1 or coefficients.product == 1:
        raise ValueError(f"experiment.coefficients is {value!r}; each must be 1 or more, and one above 1")
    return coefficients
