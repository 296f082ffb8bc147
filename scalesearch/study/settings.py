"""All that a search is made of, as one frozen value, and what of it makes two searches different studies."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from scalesearch.budget import Budget, Limits
from scalesearch.checks import value
from scalesearch.config import ExecutorChoice, Groups, Search, Selection, Tracking, fitted
from scalesearch.data import DataSpec, Description
from scalesearch.network import AnyNetwork
from scalesearch.scaling import Proxy, Rounding
from scalesearch.search import Grid, Plan, Problem, problem
from scalesearch.training import Recipe
from scalesearch.workspace import Directory, InitialWeights, Phis, StudyName, study_directory


@dataclasses.dataclass(frozen=True)
class StudySettings:
    """A search. `values` are the settings as they were composed, plain; settings.yaml keeps them.

    init: the source of the weights that trainings start from, as `pretrained.fetch` takes it; None: chance draws them.
    """

    study: str
    workspace: Path
    baseline: AnyNetwork
    proxy: Proxy
    rounding: Rounding
    budget: Budget
    limits: Limits
    grid: Grid
    search: Search
    selection: Selection
    recipe: Recipe
    seeds: int
    data: DataSpec
    executor: ExecutorChoice
    tracking: Tracking
    phis: tuple[float, ...]
    init: str | None
    description: Description
    values: Mapping[str, Any]

    @staticmethod
    def of(groups: Groups) -> StudySettings:
        """The settings that these groups make, with the other keys of their values.

        Raises: ValueError, one sentence: the key, what it is, what it must be.
        """
        values = {key: given for key, given in groups.values.items() if key != "retry"}  # of a command, not of a study
        names = ("baseline", "proxy", "rounding", "budget", "limits", "grid", "search", "selection", "recipe", "seeds")
        read = {name: getattr(groups, name) for name in (*names, "data", "executor", "tracking", "description")}
        _ = groups.proxy_network  # refused here where it cannot be built
        digest = hashlib.sha256(json.dumps(decisive_settings(values), sort_keys=True).encode()).hexdigest()[:6]
        given = values.get("study")
        name = f"{groups.baseline.name}-{groups.data.name}-{digest}" if given is None else given
        return StudySettings(
            study=value(name, StudyName, "study"),
            workspace=value(values.get("workspace"), Directory, "workspace"),
            phis=value(values.get("phis"), Phis, "phis"),
            init=value(values.get("init"), InitialWeights | None, "init"),
            values=values,
            **read,
        )

    @property
    def directory(self) -> Path:
        return study_directory(self.workspace, self.study)

    @cached_property
    def proxy_network(self) -> tuple[AnyNetwork, Rounding]:
        """As `Groups.proxy_network`."""
        return fitted(self.baseline, self.proxy, self.rounding, self.description)

    def expected(self, plan: Plan) -> list[tuple[int, float]]:
        """(trainings, share of the recipe's epochs) of candidates: about what the strategy will ask for."""
        return self.search.strategy.expected(self.problem(plan))

    def problem(self, plan: Plan) -> Problem:
        """What the strategy knows of the plan."""
        return problem(plan, self.seeds)


def decisive_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two searches different studies: all but seeds, phis, selection, and where and how they run.

    `init`, limits, `data.skip_bad` and `search.regret` are there only where they are given: studies from before they
    were known keep their digest.
    """
    groups = Groups(values)
    decisive = {key: dict(groups.group(key)) for key in ("baseline", "proxy", "rounding", "budget", "grid", "search")}
    decisive["budget"] = {key: given for key, given in decisive["budget"].items() if given is not None}
    decisive["search"] = {key: given for key, given in decisive["search"].items() if (key, given) != ("regret", None)}
    decisive["recipe"] = {key: given for key, given in groups.group("recipe").items() if key != "seeds"}
    decisive["data"] = {
        key: given
        for key, given in groups.group("data").items()
        if key != "cache" and (key, given) != ("skip_bad", False)
    }
    if values.get("init") is not None:
        decisive["init"] = values["init"]
    return json.loads(json.dumps(decisive))  # type: ignore[no-any-return]
