"""The configuration and the help of a command are those of its module; what is registered is a choice."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import case

from scalesearch import cli, compose
from scalesearch.checks import described
from scalesearch.workspace import conf_dir

COMMANDS = list(cli.commands())


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_lists_the_groups_that_the_command_reads_and_no_other(command: str) -> None:
    module = importlib.import_module(f"scalesearch.commands.{command}")
    text = compose.help_of(command)
    assert text.startswith(f"scalesearch {command}: {cli.commands()[command]}")
    listed = re.findall(r"(?m)^([a-z_@]+)(?: \(usually .*\))?: [a-z0-9_, ]+$", text)
    assert listed == list(module.GROUPS)
    for name, must_be in rows(module.Arguments):
        with case(name):
            assert re.search(rf"(?m)^{re.escape(name)}(=.*)?  # .*{re.escape(must_be)}$", text)
    assert module.EXAMPLE in text


def rows(arguments: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, what it must be) of all arguments, those of groups as well."""
    for row in described(arguments):
        if hasattr(type(row.default), "__section__"):
            yield from rows(type(row.default), f"{prefix}{row.name}.")
        else:
            yield prefix + row.name, row.must_be


def test_every_usual_choice_is_there() -> None:
    for command in COMMANDS:
        for group, usual in importlib.import_module(f"scalesearch.commands.{command}").GROUPS.items():
            with case(command, group):
                assert usual is None or usual in compose.choices(group.partition("@")[0])


def test_every_folder_of_conf_is_a_group_of_some_command() -> None:
    groups = {
        group.partition("@")[0]
        for command in COMMANDS
        for group in importlib.import_module(f"scalesearch.commands.{command}").GROUPS
    }
    assert groups == {path.name for path in conf_dir().iterdir()}


def test_choices_of_the_user_s_own_folder_are_listed(tmp_path: Path) -> None:
    (tmp_path / "baseline").mkdir()
    (tmp_path / "baseline" / "mine.yaml").touch()
    assert "mine" in compose.choices("baseline", [tmp_path])
    assert "mine" not in compose.choices("baseline")
    assert ", mine, " in compose.help_of("cost", [tmp_path])


def test_what_is_registered_without_a_yaml_is_a_choice_with_its_defaults() -> None:
    """`sampler` is a strategy that two YAMLs name, and none is called by its own name."""
    assert not (conf_dir() / "search" / "sampler.yaml").exists()
    assert "sampler" in compose.choices("search")
    search = compose.composed("run", "search=sampler", "search.compute=0.25").search
    assert (search.strategy, search.confidence, search.compute, search.most_seeds) == ("sampler", 0.95, 0.25, 8)


def test_older_and_shorter_words_mean_the_same() -> None:
    for given, meant in (
        (["plan", "experiments=nni_space"], ("plan", ["experiment=nni_space"])),
        (["plan", "nni_space"], ("plan", ["experiment=nni_space"])),
        (["plan", "figure8"], ("reproduce", ["experiment=figure8", "dry_run=true"])),
        (["reproduce", "fidelity", "study=x"], ("fidelity", ["study=x"])),
        (["init", "my_net"], ("init", ["name=my_net"])),
        (["cost", "baseline.factory=a:b"], ("cost", ["baseline.factory=a:b", "baseline=factory"])),
        (["cost", "baseline=timm:dla34"], ("cost", ["baseline=timm", "baseline.factory=timm:dla34"])),
        (["cost", "baseline.factory=timm:dla34"], ("cost", ["baseline.factory=timm:dla34", "baseline=timm"])),
    ):
        with case(given):
            assert cli._understood(*cli._shortened(given)) == meant
