"""The command line that means what a study's settings say: what a report tells its reader to type."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scalesearch.compose import own_values
from scalesearch.config import from_yaml
from scalesearch.text import override
from scalesearch.workspace import conf_dir, is_timm

_GROUPS = ("baseline", "proxy", "rounding", "budget", "grid", "search", "recipe", "data", "selection")


def overrides(settings: Mapping[str, Any], command: str, *, workspace: Path) -> list[str]:
    """The words after `command` ("run" or "train") that make it mean what a study's settings say, as few as will do.

    Of each group the shipped choice that is nearest to the settings, and what differs from it: so a baseline of the
    user's own is spelled out, and a function is named.
    """
    defaults, own = importlib.import_module(f"scalesearch.commands.{command}").GROUPS, own_values(command)
    words = []
    for group in _GROUPS:
        if group not in settings or defaults.get(group) is None:
            continue
        choice, differing = _nearest_choice(group, settings[group], first=defaults[group])
        words += ([] if choice == defaults[group] else [f"{group}={choice}"]) + differing
    words += [
        override(f"target.{key}", value)
        for key, value in settings.get("target", {}).items()
        if "target" in own and value != own["target"][key]
    ]
    for key in ("init", "phis", "study"):
        if key in own and settings.get(key) != own[key]:
            words.append(override(key, settings[key]))
    return words if str(workspace) == own["workspace"] else [*words, override("workspace", str(workspace))]


def _nearest_choice(group: str, wanted: Mapping[str, Any], *, first: str) -> tuple[str, list[str]]:
    """(choice of a group, overrides) that come to `wanted` with the fewest overrides; `first` among equals."""
    files = {path.stem: path for path in sorted((conf_dir() / group).glob("*.yaml"))}
    named = wanted.get("name")
    if "factory" in wanted:
        named = "timm" if is_timm(wanted["factory"]) else "factory"
    names = [named] if named in files else sorted(files, key=lambda name: (name != first, name))
    shipped = {name: files[name] for name in names if "@package _global_" not in files[name].read_text()}
    found = [(name, _differing(group, from_yaml(path), wanted)) for name, path in shipped.items()]
    return min(found, key=lambda one: sum(len(word) for word in one[1]))


def _differing(where: str, given: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    words = [f"~{where}.{key}" for key, value in given.items() if key not in wanted and value is not None]
    for key, value in wanted.items():
        if key not in given:
            words.append(override(f"+{where}.{key}", value))
        elif isinstance(value, Mapping) and isinstance(given[key], Mapping):
            words += _differing(f"{where}.{key}", given[key], value)
        elif value != given[key]:
            words.append(override(f"{where}.{key}", value))
    return words
