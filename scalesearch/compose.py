"""Hydra: a command's primary configuration and its help, both made of the command's own module.

In a module of `scalesearch.commands`, GROUPS are the groups that it reads, each with its usual choice, and Arguments
its own keys, each with its default, its range and its meaning. Choices are the YAMLs of conf/, and what is registered
without one: a data set, a strategy or an executor that is a module of ours or somebody else's entry point.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import itertools
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from scalesearch.checks import described
from scalesearch.network import checked_yaml
from scalesearch.text import near, one_line
from scalesearch.workspace import conf_dir

if TYPE_CHECKING:
    from omegaconf import DictConfig


def _registered(group: str) -> Mapping[str, Any]:
    """What is registered as a choice of a group, beside its YAMLs."""
    if group not in ("data", "search", "executor"):  # whose rooms take a moment to import
        return {}
    from scalesearch.data.spec import DATASETS
    from scalesearch.executor import EXECUTORS
    from scalesearch.search.strategies import STRATEGIES

    return DATASETS if group == "data" else STRATEGIES if group == "search" else EXECUTORS


def _settings(group: str, name: str) -> dict[str, Any]:
    """The settings of a registered choice, where no YAML has them."""
    from scalesearch.data.spec import defaults

    if group == "data":
        return defaults(name)
    if group == "search":
        return {"strategy": name, "confidence": 0.95} | _field_defaults(_registered(group)[name])
    return {"name": name} | _field_defaults(_registered(group)[name].Settings)


def run(command: str, task: Callable[[DictConfig], object]) -> None:
    """Compose the configuration of `sys.argv` with a real `hydra.main` and give it to `task`, once for each job."""
    import hydra

    store(command, sys.argv[1:])
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=f"scalesearch_{command}")(task)()


_LOGGING = ("hydra_logging", "job_logging")
# Hydra's own "disabled" switches off every logger that was there before it, the warnings of this package with them.
_QUIET = {"version": 1, "root": {"level": "ERROR"}, "disable_existing_loggers": False}


def composed(command: str, *overrides: str) -> DictConfig:
    """What the overrides of a command come to, without a command line."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra.compose(store(command, overrides), overrides=list(overrides))


def store(command: str, overrides: Sequence[str] = ()) -> str:
    """The name under which Hydra then finds the command's configuration, and the registered choices among overrides."""
    from hydra.core.config_store import ConfigStore

    known = ConfigStore.instance()
    for word in overrides:
        group, _, choice = word.partition("=")
        if choice in _registered(group) and not (conf_dir() / group / f"{choice}.yaml").exists():
            known.store(group=group, name=choice, node=_settings(group, choice))
    help_wanted = any(word in ("--help", "-h") for word in overrides)
    extra = _directories(overrides)
    for file in (file for directory in extra for file in sorted(directory.rglob("*.yaml")) if file.is_file()):
        try:
            checked_yaml(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file} cannot be read: {one_line(error)}") from None
        except (OSError, yaml.YAMLError):  # Hydra says what is wrong with it, if it is the one that is chosen
            continue
    for group in _LOGGING:
        known.store(group=f"hydra/{group}", name="quiet", node=_QUIET, package=f"hydra.{group}")
    name = f"scalesearch_{command}"
    known.store(name=name, node=primary(command, help_text=help_of(command, extra) if help_wanted else "-"))
    return name


def _directories(words: Sequence[str]) -> list[Path]:
    """Where the user's own groups lie."""
    options = ("--config-dir", "-cd", "--config-path", "-cp")
    apart = [given for option, given in itertools.pairwise(words) if option in options]
    joined = [word.partition("=")[2] for word in words if word.partition("=")[0] in options and "=" in word]
    return [Path(given) for given in (*apart, *joined)]


def primary(command: str, *, help_text: str = "") -> dict[str, Any]:
    """The primary configuration: its list of defaults, its own values, and what Hydra is told."""
    module = importlib.import_module(f"scalesearch.commands.{command}")
    groups = [{group: choice} for group, choice in module.GROUPS.items()]
    silent = [{f"override hydra/{group}": "quiet"} for group in _LOGGING]
    hydra = {
        "run": {"dir": "."},
        "output_subdir": None,
        "job": {"chdir": False},
        "sweep": {"dir": ".", "subdir": "."},
        "help": {"app_name": "scalesearch", "template": help_text},
    }
    return {"defaults": ["_self_", *groups, *silent], **own_values(command), "hydra": hydra}


def command_words(group: str) -> tuple[str, list[str]]:
    """(the choice of `group`, the overrides) of the command that Hydra runs now."""
    from hydra.core.hydra_config import HydraConfig

    running = HydraConfig.get() if HydraConfig.initialized() else None
    if running is None or group not in running.runtime.choices:  # composed by `composed`
        return "", []
    return str(running.runtime.choices[group]), list(running.overrides.task)


def own_values(command: str) -> dict[str, Any]:
    """The command's own keys with their defaults, as plain values."""
    module = importlib.import_module(f"scalesearch.commands.{command}")
    return {row.name: _plain(row.default) for row in described(module.Arguments)}


def choices(group: str, more: Sequence[Path] = ()) -> list[str]:
    """The choices of a group: YAMLs that ship or lie in `more`, and what is registered."""
    folders = [conf_dir() / group, *(path / group for path in more)]
    files = {path.stem for folder in folders for path in folder.glob("*.yaml")}
    return sorted({*files, *_registered(group)})


def help_of(command: str, more: Sequence[Path] = ()) -> str:
    """The help of a command, for Hydra to put the composed values in at $CONFIG."""
    module = importlib.import_module(f"scalesearch.commands.{command}")
    about = " ".join((module.__doc__ or "").split())
    lines = [f"scalesearch {command}: {about}", ""]
    if module.GROUPS:
        lines += ["== Groups and their choices (group=choice) ==", ""]
        for group, usual in module.GROUPS.items():
            name = group.partition("@")[0]
            shown = "" if usual is None else f" (usually {usual})"
            lines.append(f"{group}{shown}: {', '.join(choices(name, more))}")
        lines.append("")
    lines += ["== Values (key=value) ==", "", *_argument_lines(module.Arguments), ""]
    if module.GROUPS:
        lines += ["== The composed configuration ==", "", "$CONFIG", ""]
    if hasattr(module, "notes"):
        lines += [module.notes(), ""]
    lines += [f"Example: {module.EXAMPLE}"]
    lines.append(
        "--cfg job shows the composed configuration, --config-dir DIR adds your own groups, --multirun sweeps."
    )
    return "\n".join(lines)


def _argument_lines(arguments: type[Any], prefix: str = "") -> Iterator[str]:
    for row in described(arguments):
        if hasattr(type(row.default), "__section__"):
            yield f"{prefix}{row.name}.*  # {row.about}"
            yield from _argument_lines(type(row.default), f"{prefix}{row.name}.")
            continue
        default = "" if row.default is dataclasses.MISSING else f"={_word(_plain(row.default))}"
        yield f"{prefix}{row.name}{default}  # {row.about + '; ' if row.about else ''}{row.must_be}"


def _word(plain: object) -> str:
    return "null" if plain is None else yaml.safe_dump(plain, default_flow_style=True).strip().removesuffix("\n...")


def _plain(value: object) -> Any:
    if value is dataclasses.MISSING:
        return "???"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _field_defaults(cls: Any) -> dict[str, Any]:
    return {row.name: _plain(row.default) for row in described(cls)}


def sentence(error: Exception, command: str, overrides: Sequence[str]) -> str:
    """Hydra's complaint in one message, with the nearest known word."""
    from hydra.errors import OverrideParseException

    text = str(error)
    if isinstance(error, OverrideParseException):
        return cannot_read(error.override)
    if missing := re.search(
        r"Could not (?:override|append to config\. An item is already at|delete from config\.) ?'?([^'\s]+)'?", text
    ):
        key = missing[1].rstrip(".")
        if "append" in text.split(".")[0]:
            return f"{key!r} is there already; leave the '+' away: {key}=VALUE"
        known = _keys(command, overrides)
        return f"{key!r} is needed" if key in known else f"{key!r} is not a known key{_near_key(key, known)}"
    if twice := re.match(r"(\S+) appears more than once in the final defaults list", text):
        return f"{twice[1]!r} is there already; leave the '+' away: {twice[1]}=CHOICE"
    if choice := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        group, name = choice.groups()
        listed = re.search(r"Available options in '[^']+':\n((?:\t.*\n?)+)", text)
        names = [line.strip() for line in listed[1].splitlines()] if listed else []
        return f"{group}={name}: there is no {group} {name!r}{near(name, names)}"
    if "Ambiguous value" in text:
        first = re.search(r"argument '([^']+)'", text)
        return f"{first[1] if first else 'an override'}: several values need --multirun (a list is written [1,2,3])"
    if "Config group override must be a string" in text:
        groups = [word for word in overrides if "." not in word.split("=")[0]]
        return f"a group takes the name of a choice, such as baseline=mobilenetv2; given: {' '.join(groups)}"
    if "Cannot find primary config" in text:
        return text.split(". ")[0]
    return " ".join(line.strip() for line in text.splitlines() if line.strip() and "full_key" not in line)


def cannot_read(override: str) -> str:
    """That a word is no override."""
    return f"cannot read {override!r}; write key=value, and quote a value of other signs: \"key='a=b'\""


def _keys(command: str, overrides: Sequence[str]) -> list[str]:
    """Every dotted key, and every group, of a command's configuration, with the groups' choices of the user."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    def walk(values: Any, prefix: str) -> list[str]:
        if not isinstance(values, dict):
            return []
        return [key for name, value in values.items() for key in (prefix + name, *walk(value, f"{prefix}{name}."))]

    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        experiment = [word for word in overrides if word.startswith("experiment=")]  # without it reproduce has nothing
        primary = store(command, overrides)
        try:
            plain = hydra.compose(primary, overrides=experiment)
        except HydraException:  # a command without that group, or no such experiment
            experiment, plain = [], hydra.compose(primary)
        groups = [*experiment, *(word for word in overrides if word.partition("=")[0] in plain)]
        with contextlib.suppress(HydraException, ValueError):  # a choice of the user's own directory, say
            plain = hydra.compose(primary, overrides=groups)
        return walk(OmegaConf.to_container(plain), "")


def _near_key(key: str, known: list[str]) -> str:
    """As `near`, by the parts of a dotted key: `data.rot` is near to keys of `data`, `epochs` is `recipe.epochs`."""
    group, _, last = key.rpartition(".")
    if group in known:
        return near(
            last, [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == group], prefix=f"{group}."
        )
    short = [name for name in known if "." not in name]
    if not group and not near(key, short).startswith(";"):
        same = [name for name in known if name.rpartition(".")[2] == key]
        return f"; did you mean {same[0]!r}?" if same else near(key, short)
    return near(key, known)
