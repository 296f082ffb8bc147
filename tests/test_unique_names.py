"""No network takes the name of another: of functions, exports, families and the files of `init`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Ended, case

import scalesearch
from scalesearch.config import network_of
from scalesearch.network import load
from scalesearch.variants import free_name

Command = Callable[..., Ended]

SMALL = """\
import torch


def {name}(depth, width, resolution, in_channels, num_classes):
    pooled = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    first, last = torch.nn.Conv2d(in_channels, {channels}, 3), torch.nn.Linear({channels}, num_classes)
    return torch.nn.Sequential(first, *pooled, last)


"""


def exported(command: Command, *given: str) -> dict[str, Any]:
    """The export of the baseline itself."""
    ended = command("export", *given, "phis=[0]", "formats=[yaml]", "--json")
    assert ended.code == 0, ended.output
    return ended.answer["networks"][0]  # type: ignore[no-any-return]


def test_a_function_names_its_network_by_module_and_function() -> None:
    for function, name in {
        "net:make": "net",
        "net:small": "net-small",
        "one.net:make": "one.net",
        "two.net:make": "two.net",
        "two.net:large": "two.net-large",
    }.items():
        with case(function):
            described = network_of({"factory": function, "resolution": 32}, trusted=False)
            assert described.name == name
            given = network_of({"factory": function, "resolution": 32, "name": "mine"}, trusted=False)
            assert given.name == "mine"


def test_functions_of_one_module_are_exported_side_by_side(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SMALL.format(name="small", channels=4) + SMALL.format(name="large", channels=9)
    (tmp_path / "two_in_one.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = {}
    for name, channels in (("small", 4), ("large", 9)):
        made[name] = exported(command, f"baseline.factory=two_in_one:{name}", "baseline.resolution=16")
        assert made[name]["name"] == f"two_in_one-{name}"
        module = scalesearch.load(made[name]["directory"], factory=f"two_in_one:{name}")
        assert module.state_dict()["0.weight"].shape[0] == channels
    first = scalesearch.load(made["small"]["directory"], factory="two_in_one:small")
    assert first.state_dict()["0.weight"].shape[0] == 4  # the second has not replaced it


def test_another_network_of_a_name_that_is_taken_is_exported_beside_it(command: Command, tmp_path: Path) -> None:
    """Also that the same network gets its name again, and that other weights are not replaced in silence."""
    given = ("baseline=preresnet_tiny", f"directory={tmp_path}")
    first = exported(command, *given)
    kept = {path: path.read_bytes() for path in Path(first["directory"]).iterdir()}
    second = exported(command, *given, "baseline.dropout=0.25")
    third = exported(command, *given, "baseline.dropout=0.25")
    assert (first["name"], second["name"][:-8]) == ("preresnet_tiny", "preresnet_tiny-")
    assert (third["name"], third["directory"]) == (second["name"], second["directory"])
    assert load(Path(second["files"]["yaml"])).dropout == 0.25  # type: ignore[union-attr]
    assert {path: path.read_bytes() for path in Path(first["directory"]).iterdir()} == kept

    again = command("export", *given, "phis=[0]", "formats=[yaml]", "--json")
    assert "other weights" not in again.output
    others = command("export", *given, "phis=[0]", "formats=[yaml]", "seed=1", "--json")
    assert "preresnet_tiny.safetensors of an earlier export had other weights; it was replaced" in others.output


def test_families_of_other_coefficients_are_written_side_by_side(command: Command, tmp_path: Path) -> None:
    given = ("variants", "baseline=preresnet_tiny", "phis=[0,1]", f"workspace={tmp_path}", "--json")
    other = ("coefficients.alpha=1.5", "coefficients.beta=1", "coefficients.gamma=1")
    papers, others = (command(*given, *more).answer["variants"] for more in ((), other))
    assert [row["name"] for row in papers] == ["preresnet_tiny", "preresnet_tiny_phi1"]
    assert others[0]["name"] == "preresnet_tiny"  # the baseline itself is the same network
    assert others[1]["name"].startswith("preresnet_tiny_phi1-")
    for row in (*papers, *others):
        assert load(Path(row["file"])).name == row["name"]
        assert load(Path(row["file"])).depth == row["depth"]


def test_a_file_that_cannot_be_read_is_not_replaced(tmp_path: Path) -> None:
    network = network_of({"factory": "net:make", "resolution": 32}, trusted=False)
    assert free_name(network, lambda name: tmp_path / name) == "net"
    for text in ("", "[", "factory: net:make\n"):
        (tmp_path / "net").write_text(text)
        assert free_name(network, lambda name: tmp_path / name).startswith("net-")
    (tmp_path / "net").write_text(network.to_yaml())
    assert free_name(network, lambda name: tmp_path / name) == "net"
