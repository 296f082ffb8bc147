"""Functions of the kinds that people write: weights that layers share, settings of torch's, closures, objects."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import factories
import pytest
import torch
from conftest import case
from safetensors.torch import save_file

from scalesearch.cost import cost, seed_words
from scalesearch.model import build, identity, structure
from scalesearch.training import load_weights, save_weights


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    with factories.forgotten():
        yield tmp_path


def test_layers_that_share_a_weight_are_saved_read_and_known_to_share_it(tmp_path: Path) -> None:
    body = (
        "one, other = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)\n{tie}\n"
        "return nn.Sequential(one, other, one, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))"
    )
    apart = factories.made(factories.write(Path(), "untied", body.format(tie="")))
    network = factories.made(factories.write(Path(), "tied", body.format(tie="other.weight = one.weight")))
    model = build(network)
    save_weights(model, tmp_path / "weights.safetensors")
    again = load_weights(network, tmp_path / "weights.safetensors")
    assert again[1].weight is again[0].weight  # type: ignore[index]
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert cost(network).params == cost(apart).params - 81
    function = factories.write(Path(), "by_width", body.format(tie="if width > 1: other.weight = one.weight"))
    narrow, wide = (factories.made(function, width=width) for width in (1.0, 2.0))
    assert identity(narrow) != identity(wide)


def test_what_a_function_sets_for_all_of_torch_is_set_back() -> None:
    sets = "torch.set_num_threads(3)\nos.chdir('/')\n"
    body = f"{sets}torch.set_grad_enabled(False)\ntorch.set_default_dtype(torch.float64)\nreturn nn.Linear(1, 1)"
    function = factories.write(Path(), "settings", body, before=f"import os\n{sets}")
    before = torch.get_default_dtype(), torch.get_num_threads(), Path.cwd(), torch.is_grad_enabled()
    build(factories.made(function))
    assert (torch.get_default_dtype(), torch.get_num_threads(), Path.cwd(), torch.is_grad_enabled()) == before


def test_weights_that_a_function_reads_without_python_are_part_of_its_key() -> None:
    reads = (
        "from safetensors.torch import load_file\n"
        "net = nn.Sequential(nn.Conv2d(in_channels, 8, 3), nn.Flatten())\n{how}\nreturn net"
    )
    hows = {
        "copied": "with torch.no_grad():\n    net[0].weight.copy_(load_file('w.safetensors')['weight'])",
        "loaded": "net[0].load_state_dict(load_file('w.safetensors'), strict=False)",
        "assigned": "net[0].weight = nn.Parameter(load_file('w.safetensors')['weight'])",
        "only narrow": "if width == 1:\n    net[0].weight = nn.Parameter(load_file('w.safetensors')['weight'])",
    }
    for number, (how, code) in enumerate(hows.items()):
        function = factories.write(Path(), f"reads{number}", reads.format(how=code))
        keys = []
        for seed in (0, 1, 0):
            weight = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
            save_file({"weight": weight}, "w.safetensors")
            structure.cache_clear()
            keys.append([structure(factories.made(function, width=width)) for width in (1.0, 2.0)])
        with case(how):
            assert keys[0] == keys[2]
            assert keys[0][0] != keys[1][0]
            assert (keys[0][1] == keys[1][1]) == (how == "only narrow")


def test_that_a_function_seeds_itself_is_told() -> None:
    seeded = factories.write(Path(), "seeded", "torch.manual_seed(3)\nreturn nn.Linear(1, 1)")
    (line,) = seed_words(factories.made(seeded))
    assert line.startswith("seeded:make seeds torch's generator")
    assert not seed_words(factories.made(factories.write(Path(), "unseeded", "return nn.Linear(1, 1)")))


def test_variables_of_the_environment_that_the_code_names_are_part_of_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = ("os.environ['SLOPE']", "os.environ.get('SLOPE', 1)", 'os.getenv( "SLOPE" )', "environ . get('SLOPE')")
    for number, reading in enumerate(readings):
        before = f"import os\nfrom os import environ\ndef slope():\n    return float({reading} or 1)\n"
        body = "return Net(lambda self, x: slope() * self.layers[0](x), nn.Conv2d(in_channels, 8, 3))"
        function = factories.write(Path(), f"variable{number}", body, before=before)
        keys = []
        for value in ("1", "2", "1", None):
            monkeypatch.setenv("SLOPE", value) if value else monkeypatch.delenv("SLOPE")
            structure.cache_clear()
            keys.append(structure(factories.made(function)))
        with case(reading):
            assert keys[0] == keys[2]
            assert len(set(keys)) == 3
