"""Hydra in, one frozen `StudySettings` out: nothing below this file sees a DictConfig.

Every value is checked here or by the value class that it goes into; what is not known is refused with the nearest
known name. Making an `StudySettings` reads no image, opens no database and starts no process.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import io
import json
import keyword
import math
import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from scalesearch.budget import METRICS, Budget, Limits, parse
from scalesearch.cost import cost
from scalesearch.data import DataSpec, Description, describe
from scalesearch.executor import EXECUTORS
from scalesearch.model import trust
from scalesearch.network import AnyNetwork, Factory, from_table
from scalesearch.scaling import Coefficients, Proxy, Rounding, resize, shrink
from scalesearch.search import STRATEGIES, Axis, Grid, Strategy
from scalesearch.training import Recipe

Section = typing.TypeVar("Section")


@dataclass(frozen=True)
class Search:
    """How candidates and seeds are chosen that are trained, and the confidence of what is said about them."""

    name: str
    strategy: Strategy
    confidence: float

    def __post_init__(self) -> None:
        if not 0.5 <= self.confidence <= 0.9999:
            raise ValueError(f"search.confidence is {self.confidence!r}; it must be a number from 0.5 to 0.9999")

    @property
    def solves_gamma(self) -> bool:
        """Whether its points are those of alpha and beta, and gamma follows from the budget."""
        return self.name == "sampler"


@dataclass(frozen=True)
class Selection:
    """Which candidate is chosen of those that were trained, as `selection.select` says; the default is the best mean.

    rule: "best", or "cheapest_tied": of the best and its ties the one that needs least of `metric`.
    """

    rule: str
    metric: str

    def __post_init__(self) -> None:
        rules, metrics = ("best", "cheapest_tied"), (*METRICS, "activations", "train_seconds")
        if self.rule not in rules:
            raise ValueError(f"selection.rule is {self.rule!r}{_nearest(self.rule, rules)}")
        if self.metric not in metrics:
            raise ValueError(f"selection.metric is {self.metric!r}{_nearest(self.metric, metrics)}")


@dataclass(frozen=True)
class Tracking:
    """Where runs are logged: "mlflow" with the URI of a server or database (None: the workspace's own), or "none"."""

    name: str
    uri: str | None = None

    def __post_init__(self) -> None:
        if self.name not in ("mlflow", "none"):
            raise ValueError(f"tracking.name is {self.name!r}; known: mlflow, none")
        if self.uri is not None and not self.uri.strip():
            raise ValueError(f"tracking.uri is {self.uri!r}; it must be null or the URI of an MLflow")


@dataclass(frozen=True)
class StudySettings:
    """All that a search is made of. `executor` are the keyword arguments of `EXECUTORS[executor_name]`."""

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
    executor_name: str
    executor: Mapping[str, Any]
    tracking: Tracking
    phis: tuple[float, ...]
    init: str | None  # the weights that trainings start from, as `pretrained.fetch` takes them
    settings: Mapping[str, Any]  # the composed configuration as plain values

    @property
    def directory(self) -> Path:
        return study_directory(self.workspace, self.study)

    @cached_property
    def description(self) -> Description:
        return describe(self.data)

    @cached_property
    def proxy_network(self) -> tuple[AnyNetwork, Rounding]:
        """The 1x network that the search trains, fitted to the data, and the rounding of its scaling.

        Errors: ValueError where the baseline cannot be made that small.
        """
        return _proxy(self.baseline, self.proxy, self.rounding, self.description)


_GROUPS = ("baseline", "proxy", "rounding", "budget", "grid", "search", "recipe", "data", "executor", "tracking")


def load_experiment(composed: DictConfig) -> StudySettings:
    """The checked experiment of `run`, `plan` and `retry`.

    Errors: ValueError, one message: the key, what it is, what it must be.
    """
    later = ("selection",)  # a study from before it was known has none
    values = _plain(composed, (*_GROUPS, "study", "workspace", "phis", "init"), optional=later)
    recipe = dict(_mapping(values, "recipe"))
    seeds = _number(recipe.pop("seeds", None), "recipe.seeds", int, 1, 1000)
    executor_name, executor = _executor(_mapping(values, "executor"))
    budget, limits = _budget(_mapping(values, "budget"))
    experiment = StudySettings(
        study="",
        workspace=_workspace(values),
        baseline=load_baseline(values),
        proxy=_section(Proxy, values, "proxy"),
        rounding=_section(Rounding, values, "rounding"),
        budget=budget,
        limits=limits,
        grid=_grid(_mapping(values, "grid")),
        search=_search(_mapping(values, "search")),
        selection=_selection(values),
        recipe=_section(Recipe, {"recipe": recipe}, "recipe"),
        seeds=seeds,
        data=_section(DataSpec, values, "data"),
        executor_name=executor_name,
        executor=executor,
        tracking=_section(Tracking, values, "tracking"),
        phis=_phis(values.get("phis")),
        init=_init(values["init"]),
        settings=values,
    )
    _ = experiment.proxy_network
    decisive = decisive_settings(values)
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:6]
    name = values.get("study") or f"{experiment.baseline.name}-{experiment.data.name}-{digest}"
    return dataclasses.replace(experiment, study=_study_name(name))


def decisive_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two searches different studies: all but seeds, phis, selection, and where and how they run.

    `init` and limits are there only where they are given: studies from before they were known keep their digest.
    """
    parts = {key: _mapping(values, key) for key in ("baseline", "proxy", "rounding", "budget", "grid", "search")}
    parts["budget"] = {key: value for key, value in parts["budget"].items() if value is not None}
    recipe = {key: value for key, value in _mapping(values, "recipe").items() if key != "seeds"}
    data = {key: value for key, value in _mapping(values, "data").items() if key != "cache"}
    init = {} if values.get("init") is None else {"init": values["init"]}
    return json.loads(json.dumps(parts | {"recipe": recipe, "data": data} | init))  # type: ignore[no-any-return]


def load_baseline(values: Mapping[str, Any], *, composed: bool = True) -> AnyNetwork:
    """The network of the group `baseline`, its blocks checked.

    What the user composed may name a function of theirs; what a study's file says may not (`model.trust`).
    """
    table = dict(_mapping(values, "baseline"))
    name = table.pop("name", None)
    if "factory" in table:
        if table["factory"] is None:
            raise ValueError("baseline.factory is missing; it must be written like my_package.my_net:make")
        name = name or str(table["factory"]).partition(":")[0].rpartition(".")[2]
    if not isinstance(name, str) or not name:
        raise ValueError(f"baseline.name is {name!r}; it must be a name, such as mobilenetv2")
    network = from_table(table, name=name)
    if composed and isinstance(network, Factory):
        trust(network.function)
    cost(network)  # refuses a block that nobody knows, a function that makes no network
    return network


@dataclass(frozen=True)
class CostRequest:
    """What `cost` asks: the baseline with depth and width multiplied and, if given, another resolution in px."""

    baseline: AnyNetwork
    rounding: Rounding
    depth: float
    width: float
    resolution: int | None
    batch_size: int


def load_cost(composed: DictConfig) -> CostRequest:
    """The checked question of `cost`."""
    values = _plain(composed, ("baseline", "rounding", "depth", "width", "resolution", "batch_size"))
    return CostRequest(
        baseline=load_baseline(values),
        rounding=_section(Rounding, values, "rounding"),
        depth=_number(values["depth"], "depth", float, 0.01, 100),
        width=_number(values["width"], "width", float, 0.01, 100),
        resolution=_optional(values["resolution"], "resolution", 1, 16_384),
        batch_size=_number(values["batch_size"], "batch_size", int, 1, 65_536),
    )


@dataclass(frozen=True)
class TrainRequest:
    """What `train` asks: `network` is the baseline fitted to the data, as a proxy if asked, and scaled."""

    baseline: AnyNetwork
    network: AnyNetwork
    recipe: Recipe
    seeds: int
    data: DataSpec
    executor_name: str
    executor: Mapping[str, Any]
    init: str | None
    test: bool
    retry: bool
    workspace: Path


def load_train(composed: DictConfig) -> TrainRequest:
    """The checked question of `train`."""
    groups = ("baseline", "proxy", "rounding", "recipe", "data", "executor")
    own = ("depth", "width", "resolution", "init", "test", "retry", "workspace")
    values = _plain(composed, (*groups, *own), optional=("grid",))  # a grid comes with recipe=quick
    baseline, data = load_baseline(values), _section(DataSpec, values, "data")
    proxy, rounding = _section(Proxy, values, "proxy"), _section(Rounding, values, "rounding")
    small, grain = _proxy(baseline, proxy, rounding, describe(data))
    network = resize(
        small,
        depth=_number(values["depth"], "depth", float, 0.01, 100),
        width=_number(values["width"], "width", float, 0.01, 100),
        rounding=grain,
    )
    resolution = _optional(values["resolution"], "resolution", 1, 16_384)
    if resolution is not None:
        network = dataclasses.replace(network, resolution=resolution)
    cost(network)  # refuses a resolution that a patch does not divide
    recipe = dict(_mapping(values, "recipe"))
    seeds = _number(recipe.pop("seeds", None), "recipe.seeds", int, 1, 1000)
    executor_name, executor = _executor(_mapping(values, "executor"))
    return TrainRequest(
        baseline=baseline,
        network=network,
        recipe=_section(Recipe, {"recipe": recipe}, "recipe"),
        seeds=seeds,
        data=data,
        executor_name=executor_name,
        executor=executor,
        init=_init(values["init"]),
        test=_flag(values, "test"),
        retry=_flag(values, "retry"),
        workspace=_workspace(values),
    )


@dataclass(frozen=True)
class VariantsRequest:
    """What `variants` asks: the family at `phis`, or where there are limits the network that meets them.

    coefficients: given or the paper's; None are those of the study, as are baseline and rounding then.
    batch_size: of the step that training_memory is of.
    """

    baseline: AnyNetwork
    rounding: Rounding
    coefficients: Coefficients | None
    study: str | None
    workspace: Path
    phis: tuple[float, ...]
    limits: Limits
    batch_size: int | None


PAPERS = Coefficients(1.2, 1.1, 1.15)  # found for EfficientNet-B0 on ImageNet: arXiv:1905.11946, section 3.3


BATCH_SIZE = 64  # of the step that training_memory is of, where no recipe says; that of recipe=default


def load_variants(composed: DictConfig, *, phis: tuple[float, ...] = (1, 2, 3)) -> VariantsRequest:
    """The checked question of `variants`; `phis` are those of a question that gives neither phis nor limits."""
    keys = ("baseline", "rounding", "study", "workspace", "coefficients", "phis", "budget", "batch_size")
    values = _plain(composed, keys)
    given = {k: v for k, v in _mapping(values, "coefficients").items() if v is not None}
    study, budget = values["study"], _mapping(values, "budget")
    if given and study:
        raise ValueError("coefficients and study=NAME each say which coefficients are meant; give one of them")
    _known(budget, METRICS, "budget")
    limits = _limits(budget)
    if limits.given() and values["phis"] is not None:
        raise ValueError(
            f"phis is {values['phis']!r}, and budget.{next(iter(limits.given()))} asks for the phi that meets it; "
            "give one of them"
        )
    coefficients = _section(Coefficients, {"coefficients": given}, "coefficients") if given else PAPERS
    return VariantsRequest(
        baseline=load_baseline(values),
        rounding=_section(Rounding, values, "rounding"),
        coefficients=None if study else coefficients,
        study=_study_name(study) if study else None,
        workspace=_workspace(values),
        phis=phis if values["phis"] is None else _phis(values["phis"]),
        limits=limits,
        batch_size=_optional(values["batch_size"], "batch_size", 1, 65_536),
    )


@dataclass(frozen=True)
class ExportRequest:
    """What `export` asks: the networks of `variants`, or a candidate that its study has trained, as files.

    The weights of a variant are those of the file `weights`, start from `init`, or are drawn from `seed`.
    """

    variants: VariantsRequest
    candidate: str | None
    weights: Path | None
    init: str | None
    seed: int
    formats: tuple[str, ...]
    directory: Path


_OF_EXPORT = ("candidate", "weights", "init", "seed", "formats", "directory")


def load_export(composed: DictConfig) -> ExportRequest:
    """The checked question of `export`, which has the keys of `variants` and its own."""
    own, others = ([str(key) for key in composed if (key in _OF_EXPORT) is mine] for mine in (True, False))
    values = _plain(OmegaConf.masked_copy(composed, own), _OF_EXPORT)
    question = load_variants(OmegaConf.masked_copy(composed, others), phis=(1,))
    for name, words in (
        ("candidate", "a candidate of the study, such as c03, or chosen, or baseline"),
        ("weights", "the path of a .safetensors file"),
    ):
        if values[name] is not None and not (isinstance(values[name], str) and values[name]):
            raise ValueError(f"{name} is {values[name]!r}; it must be null or {words}")
    given = [name for name in ("candidate", "weights", "init") if values[name] is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} each say which weights are exported; give one of them")
    if values["candidate"] is not None and question.study is None:
        raise ValueError(f"candidate is {values['candidate']!r}; of which study? study=NAME is missing")
    if values["candidate"] is not None and (composed.phis is not None or question.limits.given()):
        raise ValueError(f"candidate {values['candidate']} is exported as it was trained; leave phis and budget out")
    formats = values["formats"]
    if not isinstance(formats, list) or not all(isinstance(name, str) for name in formats):
        raise ValueError(f"formats is {formats!r}; it must be a list, such as formats=[yaml,onnx,torch]")
    return ExportRequest(
        variants=question,
        candidate=values["candidate"],
        weights=None if values["weights"] is None else Path(values["weights"]).expanduser(),
        init=_init(values["init"]),
        seed=_number(values["seed"], "seed", int, 0, 2**32 - 1),
        formats=tuple(formats),
        directory=question.workspace / "exports" if values["directory"] is None else _directory(values, "directory"),
    )


@dataclass(frozen=True)
class InitRequest:
    """What `init` asks: the name of the new network, and where its folder is made."""

    name: str
    directory: Path


def load_init(composed: DictConfig) -> InitRequest:
    """The checked question of `init`."""
    if OmegaConf.is_missing(composed, "name"):
        raise ValueError("a name is missing, such as: scalesearch init my_net")
    values = _plain(composed, ("name", "directory"))
    name = values["name"]
    if not isinstance(name, str) or not re.fullmatch(r"[a-z_][a-z0-9_]{0,63}", name) or keyword.iskeyword(name):
        raise ValueError(f"name is {name!r}; it must be of small letters, digits and '_', as a Python module's")
    shipped = [source.path for source in HydraConfig.get().runtime.config_sources if source.provider == "main"]
    for taken in (name, f"{name}_factory"):
        if any((Path(path) / "baseline" / f"{taken}.yaml").exists() for path in shipped):
            raise ValueError(
                f"name is {name!r}, but there is a baseline {taken!r} already, which would be taken instead"
            )
    return InitRequest(name=name, directory=_directory(values, "directory"))


@dataclass(frozen=True)
class FidelityRequest:
    """What `reproduce fidelity` asks, of a study (None: the only one) of a workspace.

    against: what proxies are judged against, a key of `AGAINST`, made dearer by `factor`.
    candidates, seeds: how many of the study's, and of each; seeds of None are as many as the study's choice has, and 2
        at least.
    function: of a study whose networks a Python function makes, that function, named by the user.
    """

    study: str | None
    workspace: Path
    against: str
    factor: float
    candidates: int
    seeds: int | None
    function: str | None
    dry_run: bool
    retry: bool
    executor_name: str
    executor: Mapping[str, Any]


AGAINST = {"epochs": 4.0, "phi": 2.0, "proxy": 1.5}  # dearer references of a proxy, each with its usual factor


def load_fidelity(composed: DictConfig) -> FidelityRequest:
    """The checked question of `reproduce fidelity`."""
    own = ("study", "workspace", "against", "factor", "candidates", "seeds", "dry_run", "retry", "executor")
    values = _plain(composed, own, optional=("baseline",))
    against = values["against"]
    if against not in list(AGAINST):  # a list has no hash
        raise ValueError(f"against is {against!r}{_nearest(str(against), AGAINST)}")
    factor = AGAINST[against] if values["factor"] is None else values["factor"]
    executor_name, executor = _executor(_mapping(values, "executor"))
    return FidelityRequest(
        study=_study_name(values["study"]) if values["study"] else None,
        workspace=_workspace(values),
        against=against,
        factor=_number(factor, "factor", float, 1.01, 1000),
        candidates=_number(values["candidates"], "candidates", int, 2, 10_000),
        seeds=_optional(values["seeds"], "seeds", 1, 1000),
        function=_function(values),
        dry_run=_flag(values, "dry_run"),
        retry=_flag(values, "retry"),
        executor_name=executor_name,
        executor=executor,
    )


@dataclass(frozen=True)
class ReproduceRequest:
    """What `reproduce NAME` asks: an experiment, of those that `paper` knows, with its options.

    baselines: as they are trained, fitted to the data and as proxies if asked; `rounding` is that of their scaling.
    data, recipe: None where nothing is trained; target: the data that `transfer` tunes on.
    command: the words that asked it.
    """

    name: str
    experiment: Any
    baselines: Mapping[str, AnyNetwork]
    rounding: Rounding
    recipe: Recipe | None
    seeds: int
    data: DataSpec | None
    target: DataSpec | None
    init: str | None
    test: bool
    dry_run: bool
    retry: bool
    workspace: Path
    executor_name: str
    executor: Mapping[str, Any]
    command: str


_OF_REPRODUCE = ("proxy", "rounding", "executor", "experiment", "workspace", "init", "test", "dry_run", "retry")


def load_reproduce(composed: DictConfig, known: Mapping[str, Any]) -> ReproduceRequest:
    """The checked question of `reproduce`; `known` are the classes of the experiments that there are."""
    groups = ("baseline", "baselines", "data", "target", "recipe")
    values = _plain(composed, _OF_REPRODUCE, optional=groups)
    options = dict(_mapping(values, "experiment"))
    name = options.pop("name", None)
    if name not in list(known):
        raise ValueError(f"experiment.name is {name!r}{_nearest(str(name), known)}")
    if values.get("baseline") and values.get("baselines"):
        raise ValueError("baseline and baselines are both given; an experiment has the one or the others")
    tables = values.get("baselines") or ({"baseline": values["baseline"]} if values.get("baseline") else {})
    if not tables:
        raise ValueError("baseline is missing, such as baseline=preresnet_tiny")
    data, target = (_section(DataSpec, values, key) if values.get(key) else None for key in ("data", "target"))
    recipe, seeds = None, 1
    if values.get("recipe"):
        recipe_values = dict(_mapping(values, "recipe"))
        seeds = _number(recipe_values.pop("seeds", None), "recipe.seeds", int, 1, 1000)
        recipe = _section(Recipe, {"recipe": recipe_values}, "recipe")
    if (data is None) != (recipe is None):
        raise ValueError("data and recipe belong together: what is trained needs both, and else there is neither")
    if target is not None and not known[name].tunes:
        raise ValueError(f"target is {target.name!r}, which {name} does not read; only transfer tunes on other data")
    rounding = _section(Rounding, values, "rounding")
    proxy, grain, baselines = _section(Proxy, values, "proxy"), rounding, {}
    for given in tables.values():
        network = load_baseline({"baseline": given})
        if data is not None:
            network, grain = _proxy(network, proxy, rounding, describe(data))
        baselines[network.name] = network
    executor_name, executor = _executor(_mapping(values, "executor"))
    called, words = HydraConfig.get().runtime.choices["experiments"], HydraConfig.get().overrides.task
    silent = ("experiments=", "workspace=", "dry_run=", "retry=", "executor.")
    return ReproduceRequest(
        name=str(called),
        experiment=_experiment(options, known[name], _workspace(values)),
        baselines=baselines,
        rounding=grain,
        recipe=recipe,
        seeds=seeds,
        data=data,
        target=target,
        init=_init(values["init"]),
        test=_flag(values, "test"),
        dry_run=_flag(values, "dry_run"),
        retry=_flag(values, "retry"),
        workspace=_workspace(values),
        executor_name=executor_name,
        executor=executor,
        command=" ".join([f"scalesearch reproduce {called}", *(w for w in words if not w.startswith(silent))]),
    )


def _experiment(options: Mapping[str, Any], cls: type[Section], workspace: Path) -> Section:
    """The experiment with its options; `coefficients` are alpha, beta and gamma, or a study that chose them."""
    types = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    _known(options, names, "experiment")
    given = {key: value for key, value in options.items() if key != "coefficients"}
    checked = _typed(given, {key: types[key] for key in given}, "experiment")
    if "coefficients" in names:
        checked["coefficients"] = _coefficients(options["coefficients"], workspace)
    return cls(**checked)


def _coefficients(value: object, workspace: Path) -> Coefficients:
    if isinstance(value, str):
        path = find_study(workspace, value) / "coefficients.yaml"
        if not path.exists():
            raise ValueError(f"experiment.coefficients is {value!r}, a study without a choice yet: scalesearch run")
        found = from_yaml(path)
        value = [found.get(name) for name in ("alpha", "beta", "gamma")]
    if not isinstance(value, list) or len(value) != 3:
        raise ValueError(
            f"experiment.coefficients is {value!r}; it must be [alpha, beta, gamma] (depth, width, resolution), such "
            "as [1.2, 1.1, 1.15], or the name of a study"
        )
    coefficients = Coefficients(*value)
    if min(value) < 1 or coefficients.product == 1:
        raise ValueError(f"experiment.coefficients is {value!r}; each must be 1 or more, and one above 1")
    return coefficients


def _function(values: Mapping[str, Any]) -> str | None:
    """The function of the group `baseline`, trusted from here on; a study has its tables itself."""
    if "baseline" not in values:
        return None
    table = {key: value for key, value in _mapping(values, "baseline").items() if key != "name"}
    if table.get("factory") is None:
        raise ValueError(
            "baseline is given, and the study has its own; leave it out. Only a Python function is named again: "
            "baseline.factory=my_package.my_net:make"
        )
    network = from_table(table, name="baseline")
    assert isinstance(network, Factory)
    trust(network.function)
    return network.function


@dataclass(frozen=True)
class StudyRequest:
    """What `status`, `report`, `ui` and `sync` ask: a study (None: the only one, or all) of a workspace, where it is
    tracked, the port."""

    study: str | None
    workspace: Path
    tracking: Tracking
    port: int
    rebuild: bool


def load_study(composed: DictConfig) -> StudyRequest:
    """The checked question of `status`, `report`, `ui` and `sync`."""
    values = _plain(composed, ("study", "workspace"), optional=("tracking", "port", "rebuild"))
    return StudyRequest(
        study=_study_name(values["study"]) if values.get("study") else None,
        workspace=_workspace(values),
        tracking=_section(Tracking, values, "tracking") if "tracking" in values else Tracking("mlflow"),
        port=_number(values.get("port", 5000), "port", int, 1024, 65_535),
        rebuild="rebuild" in values and _flag(values, "rebuild"),
    )


def study_directory(workspace: Path, study: str) -> Path:
    """Where a study keeps its tables, figures and settings; it may not be there yet."""
    return workspace / "studies" / study


def load_settings(directory: Path) -> StudySettings:
    """The experiment of a study that exists. A function that its settings name is not imported (`model.trust`)."""
    settings = from_yaml(directory / "settings.yaml")
    load_baseline(settings, composed=False)
    return load_experiment(OmegaConf.create(settings))


def constraints(settings: Mapping[str, Any]) -> tuple[Grid, Budget, Limits]:
    """What the candidates of a study's settings had to meet; the baseline is not looked at."""
    return _grid(_mapping(settings, "grid")), *_budget(_mapping(settings, "budget"))


def small_baseline(settings: Mapping[str, Any], *, in_channels: int, num_classes: int) -> tuple[AnyNetwork, Rounding]:
    """The 1x network of a study's settings and the rounding of its scaling, without looking at its images.

    A function that the settings name is not called.
    """
    table = dict(_mapping(settings, "baseline"))
    network = from_table({key: value for key, value in table.items() if key != "name"}, name=table.get("name") or "it")
    fitted = dataclasses.replace(network, in_channels=in_channels, num_classes=num_classes)
    return shrink(fitted, _section(Proxy, settings, "proxy"), _section(Rounding, settings, "rounding"))


def overrides(settings: Mapping[str, Any], command: str, *, workspace: Path) -> list[str]:
    """The words after `command` ("run" or "train") that make it mean what a study's settings say, as few as will do.

    Of each group the shipped choice that is nearest to the settings, and what differs from it: so a baseline of the
    user's own is spelled out, and a function is named.
    """
    primary = from_yaml(_shipped() / f"{command}.yaml")
    defaults = {group: choice for row in primary["defaults"] if isinstance(row, dict) for group, choice in row.items()}
    words = []
    for group in (*_GROUPS, "selection"):
        if group in ("executor", "tracking") or group not in settings or defaults.get(group) is None:
            continue
        choice, differing = _nearest_choice(group, settings[group], first=defaults[group])
        words += ([] if choice == defaults[group] else [f"{group}={choice}"]) + differing
    for key in ("init", "phis", "study"):
        if key in primary and settings.get(key) != primary[key]:
            words.append(f"{key}={_word(settings[key])}")
    return words if str(workspace) == primary["workspace"] else [*words, f"workspace={_word(str(workspace))}"]


def _nearest_choice(group: str, wanted: Mapping[str, Any], *, first: str) -> tuple[str, list[str]]:
    """(choice of a group, overrides) that come to `wanted` with the fewest overrides; `first` among equals."""
    files = {path.stem: path for path in sorted((_shipped() / group).glob("*.yaml"))}
    named = "factory" if "factory" in wanted else wanted.get("name")
    names = [named] if named in files else sorted(files, key=lambda name: (name != first, name))
    shipped = {name: files[name] for name in names if "@package _global_" not in files[name].read_text()}
    found = [(name, _differing(group, from_yaml(path), wanted)) for name, path in shipped.items()]
    return min(found, key=lambda one: sum(len(word) for word in one[1]))


def _differing(where: str, given: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    words = [f"~{where}.{key}" for key, value in given.items() if key not in wanted and value is not None]
    for key, value in wanted.items():
        if key not in given:
            words.append(f"+{where}.{key}={_word(value)}")
        elif isinstance(value, Mapping) and isinstance(given[key], Mapping):
            words += _differing(f"{where}.{key}", given[key], value)
        elif value != given[key]:
            words.append(f"{where}.{key}={_word(value)}")
    return words


def _word(value: object, *, inside: bool = False) -> str:
    """A plain value as Hydra reads it; `inside` a list or a mapping a colon would divide it."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_word(inner, inside=True)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_word(inner, inside=True) for inner in value) + "]"
    if isinstance(value, str):
        keyword = value.lower() in ("null", "true", "false", "nan", "inf")
        if re.fullmatch(rf"[A-Za-z_/][\w./{'' if inside else ':'}-]*", value, re.ASCII) and not keyword:
            return value
        # a backslash is one, but before a quote it must be doubled
        return '"' + re.sub(r'(\\*)("|\Z)', lambda found: 2 * found[1] + found[2].replace('"', '\\"'), value) + '"'
    return json.dumps(value)


def _shipped() -> Path:
    """The configuration that ships: in the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    return next(path for path in (package / "conf", package.parent / "conf") if (path / "run.yaml").exists())


def find_study(workspace: Path, study: str | None) -> Path:
    """The directory of a study that exists; the only one where none is named.

    Errors: ValueError that lists the known ones.
    """
    parent = workspace / "studies"
    known = (
        sorted(path.name for path in parent.iterdir() if (path / "settings.yaml").exists()) if parent.exists() else []
    )
    if study is None and len(known) == 1:
        study = known[0]
    if study in known:
        return parent / str(study)
    if not known:
        raise ValueError(f"there is no study in {workspace}; first: scalesearch run, or name another workspace=DIR")
    if study is None:
        raise ValueError(f"study=NAME is missing; the studies in {workspace}: {', '.join(known)}")
    raise ValueError(f"there is no study {study!r} in {workspace}{_nearest(study, known)}")


def to_yaml(values: Mapping[str, Any]) -> str:
    """Plain values as YAML, which `from_yaml` reads back."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(values)))


def from_yaml(path: Path) -> dict[str, Any]:
    """Plain values of a YAML file that this program wrote; interpolations are not resolved, tags are refused.

    Errors: ValueError that names the file where it holds anything else.
    """
    content = path.read_bytes()
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(io.StringIO(content.decode())))
    except (ValueError, OSError, yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged, or was edited ({said})") from None
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds no settings; it may have been edited")
    return typing.cast("dict[str, Any]", loaded)


def _plain(composed: DictConfig, required: tuple[str, ...], *, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    try:
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ValueError(str(error).splitlines()[0]) from None
    plain = typing.cast("dict[str, Any]", values)
    known = (*required, *optional)
    for key in plain:
        if key not in known:
            raise ValueError(f"{key!r} is not a known key{_nearest(str(key), known)}")
    for key in required:
        if key not in plain:
            raise ValueError(f"{key} is missing")
    return plain


def _section(cls: type[Section], values: Mapping[str, Any], section: str) -> Section:
    """The value class of a group: unknown and missing keys refused, types checked strictly, ranges by the class."""
    given = _mapping(values, section)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    required = [f.name for f in fields if f.default is dataclasses.MISSING]
    _known({**given, **{f.name: None for f in fields if f.name not in required}}, [f.name for f in fields], section)
    return cls(**_typed(given, typing.get_type_hints(cls), section))


_PLAIN_WORDS = {
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "a string",
    "a valid boolean": "true or false",
    "an instance of Sequence": "a list",
    "'str' instances are not allowed as a Sequence value": "a list",
}


def _typed(given: Mapping[str, Any], types: Mapping[str, Any], section: str) -> dict[str, Any]:
    for key, value in given.items():
        try:
            TypeAdapter(types[key]).validate_python(value, strict=True)
        except ValidationError as error:
            said = error.errors()[0]["msg"].removeprefix("Input should be ")
            said = _PLAIN_WORDS.get(said, said)
            raise ValueError(f"{section}.{key} is {value!r}; it must be {said}") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{section}.{key} is {value}; it must be finite")
    # 1 where a float belongs becomes 1.0: the two would be different keys in the ledger
    return {key: float(value) if types[key] is float else value for key, value in given.items()}


def _mapping(values: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    found = values.get(section)
    if not isinstance(found, Mapping):
        raise ValueError(f"{section} is {found!r}; it must be a group of settings, such as one of conf/{section}/")
    return found


def _number(value: object, name: str, kind: type, low: float, high: float) -> Any:
    whole = "a whole number" if kind is int else "a number"
    good = isinstance(value, int) or (kind is float and isinstance(value, float) and math.isfinite(value))
    if isinstance(value, bool) or not good or not low <= typing.cast("float", value) <= high:
        raise ValueError(f"{name} is {value!r}; it must be {whole} from {low:g} to {high:g}")
    return kind(value)


def _flag(values: Mapping[str, Any], name: str) -> bool:
    value = values[name]
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}; it must be true or false")
    return value


def _optional(value: object, name: str, low: int, high: int) -> int | None:
    return None if value is None else typing.cast("int", _number(value, name, int, low, high))


def _executor(values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and keyword arguments, which are those that the executor's class takes."""
    given = dict(values)
    if "name" not in given:
        raise ValueError("executor.name is missing")
    name = str(given.pop("name"))
    if name not in EXECUTORS:
        raise ValueError(f"executor.name is {name!r}{_nearest(name, EXECUTORS)}")
    types = typing.get_type_hints(EXECUTORS[name].__init__)
    types = {key: kind for key, kind in types.items() if key not in ("return", "echo")}
    _known(given, types, "executor")
    checked = _typed(given, types, "executor")
    _optional(checked["workers"], "executor.workers", 1, 4096)
    _number(checked["threads"], "executor.threads", int, 1, 1024)
    _number(checked.get("gpus_per_trial", 0), "executor.gpus_per_trial", float, 0, 1024)
    for device in checked.get("devices", ()):
        if not re.fullmatch(r"cuda:\d+", device, re.ASCII):
            raise ValueError(f"executor.devices holds {device!r}; a device is written like 'cuda:0'")
    return name, checked


def _budget(values: Mapping[str, Any]) -> tuple[Budget, Limits]:
    """The two parts of the group; a limit may be left out."""
    _known({**dict.fromkeys(METRICS), **values}, ("macs_ratio", "tolerance", *METRICS), "budget")
    relative = {key: value for key, value in values.items() if key not in METRICS}
    budget = _section(Budget, {"budget": relative}, "budget")
    _number(budget.macs_ratio, "budget.macs_ratio", float, 1e-3, 1e6)
    _number(budget.tolerance, "budget.tolerance", float, 0, 1e6)
    return budget, _limits(values)


def _limits(values: Mapping[str, Any]) -> Limits:
    return Limits(**{name: parse(values[name], name) for name in METRICS if values.get(name) is not None})


def _search(values: Mapping[str, Any]) -> Search:
    _known(values, ("strategy", "confidence", *values), "search")
    name = values["strategy"]
    if not isinstance(name, str) or name not in STRATEGIES:
        raise ValueError(f"search.strategy is {name!r}{_nearest(str(name), STRATEGIES)}")
    options = {key: value for key, value in values.items() if key not in ("strategy", "confidence")}
    strategy = _section(STRATEGIES[name], {"search": options}, "search")
    return Search(name, strategy, _number(values["confidence"], "search.confidence", float, 0.5, 0.9999))


def _selection(values: Mapping[str, Any]) -> Selection:
    if "selection" not in values:
        return Selection("best", "macs")
    selection = _section(Selection, values, "selection")
    if selection.rule == "cheapest_tied" and values["recipe"]["seeds"] == 1 and values["search"]["strategy"] == "grid":
        raise ValueError(
            "selection.rule is 'cheapest_tied' and recipe.seeds is 1, with which all candidates are tied; recipe.seeds "
            "must be 2 at least: recipe.seeds=3"
        )
    return selection


def _grid(values: Mapping[str, Any]) -> Grid:
    _known(values, [f.name for f in dataclasses.fields(Grid)], "grid")
    axes = {name: _axis(values[name], f"grid.{name}") for name in ("alpha", "beta", "gamma")}
    product = _decimal(values["product"], "grid.product", 1e-3, 1e6)
    tolerance = _decimal(values["product_tolerance"], "grid.product_tolerance", 1e-6, 1e6)
    points = math.prod(len(axis.values()) for axis in axes.values())
    if points > 200_000:
        raise ValueError(f"the grid has {points:,} points; 200,000 are the most. Raise a step or narrow an axis")
    return Grid(**axes, product=product, product_tolerance=tolerance)


def _axis(values: object, where: str) -> Axis:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} is {values!r}; it must be start, stop and step")
    _known(values, ["start", "stop", "step"], where)
    start, stop = (_decimal(values[key], f"{where}.{key}", 0.1, 10) for key in ("start", "stop"))
    step = _decimal(values["step"], f"{where}.step", 1e-4, 10)
    if stop < start:
        raise ValueError(f"{where}.stop is {stop}, below its start {start}")
    return Axis(start, stop, step)


def _decimal(value: object, name: str, low: float, high: float) -> Decimal:
    _number(value, name, float, low, high)
    return Decimal(str(value))


def _phis(values: object) -> tuple[float, ...]:
    if not isinstance(values, list) or not values:
        raise ValueError(f"phis is {values!r}; it must be a list of numbers, such as phis=[1,2,3]")
    return tuple(float(_number(value, "phis", float, -20, 20)) for value in values)


def _proxy(baseline: AnyNetwork, proxy: Proxy, rounding: Rounding, data: Description) -> tuple[AnyNetwork, Rounding]:
    fitted = dataclasses.replace(baseline, in_channels=data.in_channels, num_classes=data.num_classes)
    try:
        return shrink(fitted, proxy, rounding)
    except ValueError as error:
        raise ValueError(f"the proxy of baseline {baseline.name!r} cannot be built: {error}") from None


def _init(given: object) -> str | None:
    """The source of initial weights; whether there are such weights is seen when they are fetched."""
    if given is None:
        return None
    library = isinstance(given, str) and re.fullmatch(r"timm:[\w.]+(@.+)?|torchvision:[\w.]+", given)
    path = str(given).partition("@")[2] if library else given
    if not library and not (isinstance(given, str) and given.endswith(".safetensors") and "\0" not in given):
        raise ValueError(
            f"init is {given!r}; it must be null, timm:NAME, torchvision:NAME, or the path of a .safetensors file"
        )
    if path and not Path(str(path)).is_file():
        raise ValueError(f"init is {given!r}; there is no file {path}")
    return str(given)


def _workspace(values: Mapping[str, Any]) -> Path:
    return _directory(values, "workspace")


def _directory(values: Mapping[str, Any], name: str) -> Path:
    given = values.get(name)
    if not isinstance(given, str) or not given or "\0" in given:
        raise ValueError(f"{name} is {given!r}; it must be the path of a directory")
    path = Path(given).expanduser()
    for part in (path, *path.parents):
        if part.exists() and not part.is_dir():
            which = "which" if part == path else f"where {part}"
            raise ValueError(f"{name} is {given!r}, {which} is a file; it must be the path of a directory")
    return path


def _study_name(name: object) -> str:
    # a number is a name as it stands, but true, 1e5 and 1.10 would not come out as they were written
    whole = isinstance(name, int) and not isinstance(name, bool)
    if not (isinstance(name, str) or whole) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", str(name)):
        raise ValueError(f"study is {name!r}; a name has letters, digits, '.', '_' and '-' only, 100 at most")
    return str(name)


def _known(values: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    names = list(known)
    for key in values:
        if key not in names:
            raise ValueError(f"{where}.{key} is not a known key{_nearest(str(key), names)}")
    for key in names:
        if key not in values:
            raise ValueError(f"{where}.{key} is missing")


def _nearest(word: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1)
    return (f"; did you mean {close[0]!r}?" if close else "") + f" (known: {', '.join(names)})"
