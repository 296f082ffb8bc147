"""All that a search is made of, as one frozen value, and what of it makes two searches different studies."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

from scalesearch.budget import Budget, Limits
from scalesearch.checks import parse, value
from scalesearch.config import ExecutorChoice, Groups, Search, Selection, Tracking, fitted
from scalesearch.data import DataSpec, Description
from scalesearch.network import AnyNetwork
from scalesearch.scaling import Proxy, Rounding
from scalesearch.search import STRATEGIES, Axis, Grid, Plan, Problem, costs_of, problem, ratio_of
from scalesearch.training import Recipe
from scalesearch.workspace import Directory, InitialWeights, Phis, StudyName, Target, study_directory


@dataclasses.dataclass(frozen=True)
class StudySettings:
    """A search. `values` are the settings as they were composed, plain; settings.yaml keeps them.

    init: the source of the weights that trainings start from, as `pretrained.fetch` takes it; None: chance draws them.
    target: the cost that is searched for; None: a search at the cost of the budget.
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
    target: Target | None
    description: Description
    values: Mapping[str, Any]

    @staticmethod
    def of(groups: Groups) -> StudySettings:
        """The settings that these groups make, with the other keys of their values.

        Raises: ValueError, one sentence: the key, what it is, what it must be.
        """
        values = {key: given for key, given in groups.values.items() if key != "retry"}  # of a command, not of a study
        target = parse(Target, values.pop("target", {}))
        if target.given:
            values["target"] = {key: given for key, given in dataclasses.asdict(target).items() if given is not None}
        names = ("baseline", "proxy", "rounding", "budget", "limits", "grid", "search", "selection", "recipe", "seeds")
        read = {name: getattr(groups, name) for name in (*names, "data", "executor", "tracking", "description")}
        _ = groups.proxy_network  # refused here where it cannot be built
        if target.given:
            _check_target(groups, target)
            strategy = STRATEGIES["grid"](seeds=target.seeds)  # type: ignore[call-arg]
            read["search"] = dataclasses.replace(groups.search, name="grid", strategy=strategy)
        digest = hashlib.sha256(json.dumps(decisive_settings(values), sort_keys=True).encode()).hexdigest()[:6]
        given = values.get("study")
        name = f"{groups.baseline.name}-{groups.data.name}-{digest}" if given is None else given
        return StudySettings(
            study=value(name, StudyName, "study"),
            workspace=value(values.get("workspace"), Directory, "workspace"),
            phis=value(values.get("phis"), Phis, "phis"),
            init=value(values.get("init"), InitialWeights | None, "init"),
            target=target if target.given else None,
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

    @property
    def space(self) -> Grid:
        """The ranges of alpha, beta and gamma of its candidates, as Optuna shows them."""
        if self.target is None:
            return self.grid
        axis = Axis(Decimal("0.1"), Decimal(10), Decimal("0.1"))
        return dataclasses.replace(self.grid, alpha=axis, beta=axis, gamma=axis)

    @cached_property
    def target_ratio(self) -> float:
        """The target as a multiple of the baseline's counted multiply-adds."""
        assert self.target is not None
        return ratio_of(self.target, self.baseline)

    def expected(self, plan: Plan) -> list[tuple[int, float]]:
        """(trainings, share of the recipe's epochs) of candidates: about what the strategy will ask for."""
        return self.search.strategy.expected(self.problem(plan))

    def problem(self, plan: Plan) -> Problem:
        """What the strategy knows of the plan."""
        return problem(plan, self.seeds)


def _check_target(groups: Groups, target: Target) -> None:
    """Raises: ValueError where the target cannot be searched for, or something else is asked for beside it."""
    _ = costs_of(target, ratio_of(target, groups.baseline))
    if limits := groups.limits.given():
        name = next(iter(limits))
        raise ValueError(
            f"budget.{name} limits the variant at phi = 1, and with a target only its multiply-adds count; leave "
            f"budget.{name} out, and then: scalesearch variants study=NAME budget.{name}=LIMIT"
        )
    if groups.selection.rule != "posterior":
        raise ValueError(
            f"selection.rule is {groups.selection.rule!r}, which chooses among candidates; with a target none of them "
            "is chosen, but the split that all of them let expect to be the best: leave selection out"
        )
    if groups.search.regret is not None:
        raise ValueError(
            "search.regret ends a search among candidates of one cost; with a target all are trained: leave it out"
        )


def decisive_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two searches different studies: all but seeds, phis, selection, and where and how they run.

    `init`, limits, `target`, `data.skip_bad` and `search.regret` are there only where they are given: studies from
    before they were known keep their digest.
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
    if values.get("target"):
        decisive["target"] = {key: given for key, given in values["target"].items() if key != "seeds"}
    if values.get("init") is not None:
        decisive["init"] = values["init"]
    return json.loads(json.dumps(decisive))  # type: ignore[no-any-return]
