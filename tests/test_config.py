from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from conftest import case, command_request, composed
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from scalesearch.budget import METRICS
from scalesearch.checks import described
from scalesearch.cli import commands
from scalesearch.commands.reproduce import request_of
from scalesearch.config import Selection, from_yaml, network_of, to_yaml
from scalesearch.network import Network
from scalesearch.search import STRATEGIES
from scalesearch.study import StudySettings, decisive_settings
from scalesearch.workspace import Target, conf_dir, find_study, study_directory

COEFFICIENTS = ("coefficients.alpha=1.2", "coefficients.beta=1.1", "coefficients.gamma=1.15")
GIVEN = {
    "init": ("name=my_net",),
    "reproduce": ("experiment=figure8",),
}
COMMANDS = tuple(commands())

CHOSEN = ("baseline", "proxy", "rounding", "budget", "grid", "search", "selection", "recipe", "executor", "tracking")

OF_A_BASELINE = {
    f"baseline.{name}"
    for name in ("in_channels", "num_classes", "dropout", "stem.kernel", "stem.stride", "head.kernel")
}

# What may be left out of a group, since its value class has a default: null where it is not said otherwise.
MAY_BE_MISSING = {
    "data.split_seed",  # 0
    "data.cache",
    "tracking.uri",
    "recipe.class_weights",
    "recipe.metric",  # accuracy
    "rounding.resolution_multiple",  # 1
    *(f"budget.{metric}" for metric in METRICS),  # no limit
    *(f"experiment.{name}" for name in ("question", "paper", "caveats")),
    *(f"target.{option.name}" for option in described(Target)),  # there is none
    *(f"coefficients.{name}" for name in ("alpha", "beta", "gamma")),
    *(f"search.{option.name}" for option in described(STRATEGIES["race"])),
    *OF_A_BASELINE,
}


def compose(command: str, *overrides: str) -> DictConfig:
    """What only sets a key is set here, which is quicker; that Hydra sets keys as well is for test_cli.py to say."""
    values = [
        override for override in overrides if re.match(r"[a-z_]+(\.[a-z_]+)+=|(phis|workspace|study|init)=", override)
    ]
    made = copy.deepcopy(composed_once(command, *(override for override in overrides if override not in values)))
    for override in OverridesParser.create().parse_overrides(values):
        OmegaConf.update(made, override.key_or_group, override.value(), merge=False)
    return made


@functools.cache
def composed_once(command: str, *overrides: str) -> DictConfig:
    return composed(command, *overrides)


def question(command: str, configuration: DictConfig) -> Any:
    """What the command makes of its configuration before it does anything: the settings of a study, or its request."""
    arguments, groups = command_request(command, configuration)
    if command in ("run", "plan", "retry"):
        return StudySettings.of(groups)
    if command == "reproduce":
        return request_of(arguments, groups)
    return arguments, groups


def leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything that is not a mapping; rows of a baseline's stages are not entered."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def numeric_keys() -> list[tuple[str, str]]:
    found = []
    for primary in COMMANDS:
        plain = OmegaConf.to_container(compose(primary, *GIVEN.get(primary, ())))
        found += [
            (primary, key)
            for key, value in leaves(plain)
            if isinstance(value, int | float) and not isinstance(value, bool)
        ]
    optional = [("run", key) for key in ("proxy.resolution", "executor.workers", "data.num_train")]
    return sorted({*found, *optional, ("cost", "resolution")})


def all_leaves() -> list[tuple[str, str]]:
    return [
        (primary, key)
        for primary in COMMANDS
        for key, _ in leaves(OmegaConf.to_container(compose(primary, *GIVEN.get(primary, ()))))
    ]


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


@pytest.mark.parametrize("primary", COMMANDS)
def test_every_primary_config_makes_its_question(primary: str) -> None:
    question(primary, compose(primary, *GIVEN.get(primary, ())))


@pytest.mark.parametrize("group", CHOSEN)
def test_every_choice_of_every_group_makes_an_experiment(group: str) -> None:
    for choice in choices(group):
        if choice not in ("factory", "timm"):  # which need a function, or a name
            with case(group, choice):
                made = question("run", compose("run", f"{group}={choice}"))
                assert isinstance(made.proxy_network[0], Network)


def test_every_dataset_makes_an_experiment_before_anything_is_fetched() -> None:
    for choice in [name for name in choices("data") if name != "folder"]:  # which needs a root
        with case(choice):
            made = question("run", compose("run", f"data={choice}"))
            assert made.description.num_train >= 1


def test_a_number_that_is_none_is_refused_by_its_name() -> None:
    for (primary, key), bad in product(numeric_keys(), ["nan", "inf", "abc", "true", "[1]", "'1'"]):
        with case(primary, key, bad):
            composed = compose_with(
                primary, key, {"nan": float("nan"), "inf": float("inf"), "true": True}.get(bad, bad)
            )
            if bad == "[1]":
                OmegaConf.update(composed, key, [1])
            with pytest.raises(ValueError, match=rf"\b{last(key)}\b"):
                question(primary, composed)


def test_a_negative_number_is_refused_by_its_name() -> None:
    for primary, key in numeric_keys():
        with case(primary, key), pytest.raises(ValueError, match=rf"\b{last(key)}\b"):
            question(primary, compose_with(primary, key, -1))


def test_every_setting_is_read_and_so_is_missed() -> None:
    """What nothing reads could be taken away unseen. A default of a value class is the exception, listed above."""
    for primary, key in all_leaves():
        with case(primary, key):
            composed = compose(primary, *GIVEN.get(primary, ()))
            parent, _, name = key.rpartition(".")
            with open_dict(composed):
                del (OmegaConf.select(composed, parent) if parent else composed)[name]
            if key in MAY_BE_MISSING:
                question(primary, composed)
            else:
                with pytest.raises(ValueError, match=rf"\b{name}\b.* (is missing|is None)"):
                    question(primary, composed)


def test_a_setting_that_nobody_knows_is_refused_beside_each() -> None:
    for primary, key in all_leaves():
        with case(primary, key):
            composed = compose_with(primary, f"{key}x", 1, add=True)
            with pytest.raises(ValueError, match=rf"\b{last(key)}x\b.* is not a known"):
                question(primary, composed)


def test_a_group_that_is_no_group_is_refused_with_words() -> None:
    groups = [
        "baseline",
        "proxy",
        "rounding",
        "budget",
        "grid",
        "grid.alpha",
        "search",
        "selection",
        "recipe",
        "data",
        "executor",
        "tracking",
    ]
    for group, value in product(groups, [3, "abc", [], None, True]):
        with case(group, value):
            composed = compose("run")
            OmegaConf.update(composed, group, value, merge=False, force_add=True)
            with pytest.raises(ValueError, match=rf"{group} is .*; it must be"):
                question("run", composed)


def test_a_value_out_of_its_range_is_refused_by_its_name() -> None:
    cases = [
        ("recipe.seeds=1001",),
        ("recipe.epochs=0",),
        ("recipe.flip=1",),
        ("recipe.schedule=linear",),
        ("data.num_val=60000",),
        ("executor.threads=0",),
        ("executor.devices=[gpu0]",),
        ("executor.devices=3",),
        ("+executor.echo=true",),
        ("executor=ray", "executor.gpus_per_trial=-1"),
        ("executor=ray", "executor.address=3"),
        ("tracking.uri=''",),
        ("budget.macs_ratio=0",),
        ("grid.alpha.start=0.01",),
        ("grid.alpha.stop=0.5",),
        ("grid.alpha.step=0",),
        ("search.confidence=1",),
        ("search.strategy=random",),
        ("selection.rule=worst",),
        ("selection.metric=flops",),
        ("phis=[]",),
        ("phis=3",),
        ("phis=[1,null]",),
        ("workspace=",),
        ("workspace=null",),
        ("study=../x",),
        ("study=true",),
        ("study=1e5",),
        ("study=.hidden",),
        (f"study={'x' * 101}",),
        ("baseline.name=../x",),
        ("baseline.name=null",),
        ("baseline.resolution=4", "proxy=none"),
    ]
    for overrides in cases:
        with case(overrides):
            words = [last(word.lstrip("+").partition("=")[0]) for word in overrides]
            with pytest.raises(ValueError, match="|".join(words)):
                question("run", compose("run", *overrides))


def test_a_grid_too_large_to_enumerate_is_refused() -> None:
    with pytest.raises(ValueError, match=r"points; 200,000 are the most"):
        question("run", compose("run", "grid.alpha.step=0.0001", "grid.beta.step=0.0001"))


def test_a_target_is_an_unknown_key_anywhere(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    target = {"_target_": "pathlib.Path.touch", "_args_": [str(mark)]}
    for where in ("", "baseline", "recipe", "executor", "grid.alpha"):
        composed = compose("run")
        with open_dict(composed):
            (OmegaConf.select(composed, where) if where else composed).update(target)
        with pytest.raises(ValueError, match=r"_target_.*is not a known"):
            question("run", composed)
    assert not mark.exists()


def test_a_whole_number_for_a_float_makes_the_same_experiment() -> None:
    whole, point = (question("run", compose("run", f"budget.macs_ratio={text}")) for text in ("2", "2.0"))
    assert whole.budget == point.budget
    assert json.dumps(whole.budget.macs_ratio) == "2.0"


def test_a_study_is_named_by_what_decides_it_and_nothing_else() -> None:
    name = question("run", compose("run")).study
    same = ("recipe.seeds=1", "phis=[1]", "executor.threads=2", "tracking=none", "data.cache=/x", "workspace=w")
    same = (*same, "selection=cheapest_tied", "selection.metric=params")
    for override in (*same, "init=null"):
        assert question("run", compose("run", override)).study == name
    other = ("recipe.epochs=3", "data.num_val=9000", "budget.tolerance=0.2", "grid=nni", "search.confidence=0.9")
    for override in (*other, "init=timm:mobilenetv2_100"):
        assert question("run", compose("run", override)).study != name
    assert question("run", compose("run", "study=7")).study == "7"


def test_settings_from_before_there_was_a_rule_mean_the_best_mean() -> None:
    composed = compose("run")
    with open_dict(composed):
        del composed["selection"]
    made = question("run", composed)
    assert made.selection == Selection("best", "macs") != question("run", compose("run")).selection
    assert made.study == question("run", compose("run")).study


def test_the_cheapest_tie_of_one_seed_each_is_refused_with_what_to_give() -> None:
    words = ("selection=cheapest_tied", "recipe.seeds=1")
    with pytest.raises(ValueError, match=r"selection\.rule is 'cheapest_tied' and recipe\.seeds is 1.*recipe\.seeds=3"):
        question("run", compose("run", "search=grid", *words))
    question("run", compose("run", "search=race", *words))  # gives seeds where they help, whatever the recipe says


def test_making_an_experiment_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for primary in COMMANDS:
        question(primary, compose(primary, *GIVEN.get(primary, ())))
    assert list(tmp_path.iterdir()) == []


def test_settings_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    made = question("run", compose("run"))
    path = tmp_path / "settings.yaml"
    path.write_text(to_yaml(made.values))
    assert decisive_settings(from_yaml(path)) == decisive_settings(made.values)
    assert network_of(from_yaml(path)["baseline"], trusted=False) == made.baseline


GARBAGE = {
    "tag": "a: !!python/object/apply:pathlib.Path.touch ['{mark}']",
    "unfinished": "a: [1, ",
    "tabs": "a:\n\t- 1",
    "interpolation": "a: ${{",
    "list": "- 1",
    "word": "word",
    "empty": "",
    "binary": "\udcff\udcfe",
}


def test_a_damaged_file_is_named_and_nothing_in_it_runs(tmp_path: Path) -> None:
    for name, text in GARBAGE.items():
        with case(name):
            path, mark = tmp_path / "settings.yaml", tmp_path / "mark"
            path.write_bytes(text.replace("{mark}", str(mark)).encode(errors="surrogateescape"))
            with pytest.raises(ValueError, match=r"settings\.yaml|is None|is missing"):
                decisive_settings(from_yaml(path))
            assert not mark.exists()


def test_an_interpolation_in_a_saved_file_is_not_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "resolved")
    path = tmp_path / "settings.yaml"
    path.write_text("a: ${oc.env:SECRET}\nb: ${a}")
    assert from_yaml(path) == {"a": "${oc.env:SECRET}", "b": "${a}"}


def test_the_only_study_needs_no_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no study in"):
        find_study(tmp_path, None)
    for name in ("one", "two"):
        directory = study_directory(tmp_path, name)
        directory.mkdir(parents=True)
        if name == "two":
            assert find_study(tmp_path, None).name == "one"
        (directory / "settings.yaml").touch()
    with pytest.raises(ValueError, match=r"study=NAME is missing; .*one, two"):
        find_study(tmp_path, None)
    with pytest.raises(ValueError, match="did you mean 'two'"):
        find_study(tmp_path, "twos")
    assert find_study(tmp_path, "two") == study_directory(tmp_path, "two")


def test_variants_wants_all_coefficients_or_a_study() -> None:
    for given in [COEFFICIENTS[:2], (*COEFFICIENTS, "study=x")]:
        with case(given), pytest.raises(ValueError, match=r"give one of them|gamma is missing"):
            question("variants", compose("variants", *given))


def compose_with(primary: str, key: str, value: object, *, add: bool = False) -> DictConfig:
    composed = compose(primary, *GIVEN.get(primary, ()))
    OmegaConf.update(composed, key, value, merge=False, force_add=add)
    return composed


def last(key: str) -> str:
    return key.rpartition(".")[2]
