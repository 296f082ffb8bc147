"""Plain values in, checked values out: nothing below this file sees a DictConfig.

`Groups` reads each group of a configuration, of a user or of a study's file. Reading one opens no image, database or
process.
"""

from __future__ import annotations

import dataclasses
import io
import math
import typing
from collections.abc import Mapping
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import SkipValidation

from scalesearch.budget import METRICS, Budget, Limits
from scalesearch.budget import parse as parse_quantity
from scalesearch.checks import between, checked, known, parse, value
from scalesearch.cost import check_training, cost
from scalesearch.data import DataSpec, Description, describe
from scalesearch.executor import EXECUTORS
from scalesearch.model import of_timm, trust
from scalesearch.network import AnyNetwork, Factory, checked_yaml, from_table
from scalesearch.probing import proxied, with_grain
from scalesearch.scaling import Proxy, Rounding
from scalesearch.search import STRATEGIES, Grid, Strategy
from scalesearch.text import near, one_line, plural
from scalesearch.training import ACCURACY, Recipe, check_values, metrics
from scalesearch.workspace import is_timm

METRIC = Literal["macs", "params", "memory", "training_memory", "latency_ms", "activations", "train_seconds"]
_GRID_POINTS = 200_000


@checked("search")
class Search:
    """How candidates and seeds are chosen for training, and the confidence of all statements about them."""

    name: str
    strategy: SkipValidation[Strategy]
    confidence: Annotated[float, between(0.5, 0.9999, "of intervals and tests")]

    @property
    def solves_gamma(self) -> bool:
        """Whether its points are those of alpha and beta, and gamma follows from the budget."""
        return self.name == "sampler"

    @property
    def regret(self) -> float | None:
        """Points below which the expected regret ends the search; None where there is no such end."""
        return getattr(self.strategy, "regret", None)


@checked("selection")
class Selection:
    """Which candidate is chosen of those that were trained, as `selection.select` does it.

    rule: "posterior", the highest accuracy that all trainings together let expect; "best", the highest mean; or
    "cheapest_tied": of the best and its ties the one that needs least of `metric`.
    """

    rule: Literal["posterior", "best", "cheapest_tied"]
    metric: METRIC


@checked("tracking")
class Tracking:
    """Where runs are logged: "mlflow" with the URI of a server or database (None: the workspace's own), or "none"."""

    name: Literal["mlflow", "none"]
    uri: str | None = None

    def __post_init__(self) -> None:
        if self.uri is not None and not self.uri.strip():
            raise ValueError(f"tracking.uri is {self.uri!r}; it must be null or the URI of an MLflow")


@dataclasses.dataclass(frozen=True)
class ExecutorChoice:
    """Where trainings run: a name of `EXECUTORS`, with its settings."""

    name: str
    settings: Any

    def open(self) -> Any:
        """The executor, a context manager. Nothing is started before the first training is submitted."""
        return EXECUTORS[self.name](**dataclasses.asdict(self.settings))


class Groups:
    """The groups of a configuration as checked values, each read when it is first used.

    `trusted` values were composed by the user and may name a Python function; a study's file may not (`model.trust`).
    Raises: ValueError, one sentence: the key, what it is, what it must be.
    """

    def __init__(self, values: Mapping[str, Any], *, trusted: bool = True) -> None:
        self.values, self._trusted = values, trusted

    def check(self, groups: Mapping[str, str | None]) -> None:
        """Read a command's groups, so that nothing is trained before one is refused; null ones may be missing."""
        also = {"budget": ("budget", "limits"), "recipe": ("recipe", "seeds")}
        for name, usual in groups.items():
            key = name.partition("@")[2] or name
            own = usual is None and key in ("baseline", "experiment")  # such a command reads it itself
            if (usual is not None or self.values.get(key) is not None) and not own:
                for part in also.get(key, (key,)):
                    getattr(self, part)

    def group(self, name: str) -> Mapping[str, Any]:
        """The plain values of a group."""
        if name not in self.values:
            raise ValueError(f"{name} is missing")
        found = self.values[name]
        if not isinstance(found, Mapping):
            raise ValueError(f"{name} is {found!r}; it must be a group of settings, such as one of conf/{name}/")
        return found

    @cached_property
    def baseline(self) -> AnyNetwork:
        network = network_of(self.group("baseline"), trusted=self._trusted)
        cost(network)  # refuses a block that nobody knows, a function that makes no network
        if isinstance(network, Factory):
            check_training(network)
        return network

    @cached_property
    def proxy(self) -> Proxy:
        return parse(Proxy, self.group("proxy"))

    @cached_property
    def rounding(self) -> Rounding:
        return parse(Rounding, self.group("rounding"))

    @cached_property
    def recipe(self) -> Recipe:
        recipe = parse(Recipe, {key: given for key, given in self.group("recipe").items() if key != "seeds"})
        if isinstance(recipe.class_weights, tuple) and self.values.get("data"):
            given, wanted = len(recipe.class_weights), self.description.num_classes
            if given != wanted:
                raise ValueError(
                    f"recipe.class_weights has {plural(given, 'number')}, and data={self.data.name} {wanted} classes; "
                    "give one for each class, or recipe.class_weights=balanced"
                )
        if self._trusted and ":" in (recipe.metric or ""):
            metrics.trust(str(recipe.metric))
        return recipe

    @cached_property
    def seeds(self) -> int:
        return int(value(self.group("recipe").get("seeds"), Annotated[int, between(1, 1000)], "recipe.seeds"))

    @cached_property
    def data(self) -> DataSpec:
        return parse(DataSpec, self.group("data"), "data")

    @cached_property
    def target(self) -> DataSpec:
        """The data that `transfer` tunes on."""
        return parse(DataSpec, self.group("target"), "target")

    @cached_property
    def executor(self) -> ExecutorChoice:
        given = dict(self.group("executor"))
        name = given.pop("name", None)
        if name not in EXECUTORS:
            raise ValueError(f"executor.name is {name!r}{near(name, EXECUTORS)}")
        return ExecutorChoice(str(name), parse(EXECUTORS[str(name)].Settings, given))

    @cached_property
    def tracking(self) -> Tracking:
        return parse(Tracking, self.group("tracking"))

    @cached_property
    def budget(self) -> Budget:
        given = self.group("budget")
        known(given, ["macs_ratio", "tolerance", *METRICS], "budget")
        return parse(Budget, {key: one for key, one in given.items() if key not in METRICS})

    @cached_property
    def limits(self) -> Limits:
        """A limit may be left out."""
        return limits_of(self.group("budget"))

    @cached_property
    def grid(self) -> Grid:
        grid = parse(Grid, _decimals(self.group("grid")))
        points = math.prod(len(axis.values()) for axis in (grid.alpha, grid.beta, grid.gamma))
        if points > _GRID_POINTS:
            raise ValueError(
                f"the grid has {points:,} points; {_GRID_POINTS:,} are the most. Raise a step or narrow an axis"
            )
        return grid

    @cached_property
    def search(self) -> Search:
        given = dict(self.group("search"))
        name, confidence = given.pop("strategy", None), given.pop("confidence", None)
        if name not in STRATEGIES:
            raise ValueError(f"search.strategy is {name!r}{near(name, STRATEGIES)}")
        return Search(str(name), parse(STRATEGIES[str(name)], given, "search"), confidence)

    @cached_property
    def selection(self) -> Selection:
        """The usual one for a study from before there was a choice."""
        selection = parse(Selection, self.values.get("selection", {"rule": "best", "metric": "macs"}))
        if selection.rule == "cheapest_tied" and self.seeds == 1 and self.search.name == "grid":
            raise ValueError(
                "selection.rule is 'cheapest_tied' and recipe.seeds is 1, with which all candidates are tied; "
                "recipe.seeds must be 2 at least: recipe.seeds=3"
            )
        return selection

    @cached_property
    def description(self) -> Description:
        return describe(self.data)

    @cached_property
    def baselines(self) -> tuple[dict[str, AnyNetwork], Rounding]:
        """Of an experiment, which has one or several: by name, fitted to its data if it has any, and their rounding."""
        one, several = self.values.get("baseline"), self.values.get("baselines")
        if one and several:
            raise ValueError("baseline and baselines are both given; an experiment has the one or the others")
        if not one and not several:
            raise ValueError("baseline is missing, such as baseline=preresnet_tiny")
        networks, rounding = {}, self.rounding
        for group in several.values() if several else [one]:
            network = Groups({"baseline": group}, trusted=self._trusted).baseline
            if self.values.get("data"):
                network, rounding = fitted(network, self.proxy, self.rounding, self.description)
            networks[network.name] = network
        return networks, rounding

    @cached_property
    def proxy_network(self) -> tuple[AnyNetwork, Rounding]:
        """The 1x network that is trained, fitted to the data, and the rounding of its scaling.

        Raises: ValueError where the baseline cannot be made that small.
        """
        return fitted(self.baseline, self.proxy, self.rounding, self.description)


def fitted(baseline: AnyNetwork, proxy: Proxy, rounding: Rounding, data: Description) -> tuple[AnyNetwork, Rounding]:
    """`baseline` for the channels and classes of the data, made small by `proxy`, and its rounding."""
    network = dataclasses.replace(baseline, in_channels=data.in_channels, num_classes=data.num_classes)
    try:
        made = proxied(network, proxy, rounding)
    except ValueError as error:
        raise ValueError(f"the proxy of baseline {baseline.name!r} cannot be built: {error}") from None
    if isinstance(made.network, Factory):
        check_values(made.network)
    return made.network, made.rounding


def network_of(group: Mapping[str, Any], *, trusted: bool, name: str | None = None) -> AnyNetwork:
    """The network of a group `baseline`; a function that it names is trusted from here on if `trusted`."""
    table = dict(group)
    given = table.pop("name", None)
    if "factory" in table:
        if table["factory"] is None:
            raise ValueError(
                "baseline.factory is missing; it must be written like my_package.my_net:make, or, for a network of "
                "timm, like timm:convnext_atto"
            )
        if is_timm(str(table["factory"])):
            table |= of_timm(table)
        given = given or _function_name(str(table["factory"]))
    named = given or name
    if not isinstance(named, str):
        raise ValueError(f"baseline.name is {given!r}; it must be a name, such as mobilenetv2")
    network = from_table(table, name=named)
    if trusted and isinstance(network, Factory):
        trust(network.function)
    return with_grain(network)


def _function_name(function: str) -> str:
    """What the network of a function is called: two functions never share a name. `make` is what most are called."""
    module, _, name = function.partition(":")
    return module if name == "make" else f"{module}-{name}"


def limits_of(group: Mapping[str, Any]) -> Limits:
    """What a network may need at most, of those metrics of the group that are not null."""
    return Limits(**{name: parse_quantity(group[name], name) for name in METRICS if group.get(name) is not None})


def request(module: Any, composed: DictConfig) -> tuple[Any, Groups]:
    """The checked arguments of a command, and its groups, all of which were read once.

    module: of `scalesearch.commands`. Raises: ValueError, one sentence.
    """
    values = plain(composed)
    names = [field.name for field in dataclasses.fields(module.Arguments)]
    groups = [group.partition("@")[2] or group for group in module.GROUPS]
    known(values, [*names, *groups, *getattr(module, "MORE", ())], "")
    if missing := [name for name in names if name not in values]:
        raise ValueError(f"{missing[0]} is missing")
    arguments = parse(module.Arguments, {name: values[name] for name in names}, "")
    read = Groups(values)
    read.check(module.GROUPS)
    return arguments, read


def plain(composed: DictConfig) -> dict[str, Any]:
    """The composed configuration as plain values. Raises: ValueError for a missing one."""
    try:
        values = typing.cast("dict[str, Any]", OmegaConf.to_container(composed, resolve=True, throw_on_missing=True))
    except OmegaConfBaseException as error:
        raise ValueError(str(error).splitlines()[0]) from None
    if isinstance(values.get("recipe"), dict):  # studies from before these were known have the same settings
        usual = {"class_weights": (None,), "metric": (None, ACCURACY)}
        values["recipe"] = {key: one for key, one in values["recipe"].items() if one not in usual.get(key, ())}
    return values


def to_yaml(values: Mapping[str, Any]) -> str:
    """Plain values as YAML, which `from_yaml` reads back."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(values)))


def from_yaml(path: Path) -> dict[str, Any]:
    """Plain values of a YAML file that this program wrote; interpolations are not resolved, tags are refused.

    Raises: ValueError that names the file where it holds anything else.
    """
    content = path.read_bytes()
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(io.StringIO(checked_yaml(content.decode()))))
    except (ValueError, OSError, yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
        raise ValueError(f"{path} is damaged, or was edited ({one_line(error)})") from None
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds no settings; it may have been edited")
    return typing.cast("dict[str, Any]", loaded)


def _decimals(values: Any) -> Any:
    """Numbers as exact decimals: (1.9, 1, 1) is 0.1 from 2, whatever binary floats say."""
    if isinstance(values, Mapping):
        return {key: _decimals(one) for key, one in values.items()}
    return Decimal(str(values)) if type(values) in (int, float) and math.isfinite(values) else values
