"""Networks that a Python function of the user's makes: through the command line, with real files."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import printed_commands
from torch.utils.flop_counter import FlopCounterMode

from scalesearch import template
from scalesearch.cli import main
from scalesearch.cost import cost
from scalesearch.evaluation import Evaluation
from scalesearch.memory import memory
from scalesearch.model import build, identity, trust
from scalesearch.network import Factory, from_table, load
from scalesearch.scaling import Rounding, resize
from scalesearch.training import Recipe

RULE = Rounding(name="nearest", depth="nearest", divisor=8, limit=0.9, resolution="nearest")
SOURCE = """
    from torch import nn

    class Reading(nn.Module):
        def __init__(self, in_channels, channels, num_classes, repeats):
            super().__init__()
            sizes = [in_channels] + [channels] * repeats
            self.layers = nn.Sequential(*[nn.Conv2d(a, b, 3, padding=1) for a, b in zip(sizes, sizes[1:])])
            self.last = nn.Linear(channels, num_classes)

        def forward(self, x):
            return self.last(self.layers(x).relu().mean((2, 3)))

    def make(depth, width, resolution, num_classes, in_channels):
        return Reading(in_channels, max(1, round(8 * width)), num_classes, max(1, round(2 * depth)))

    def raises(**given):
        raise KeyError("no such size")

    def text(**given):
        return "a network"

    def maps(depth, width, resolution, num_classes, in_channels):
        return nn.Conv2d(in_channels, num_classes, 3)

    def looks(depth, width, resolution, num_classes, in_channels):
        made = make(depth, width, resolution, num_classes, in_channels)
        assert made.last.weight.abs().max().item() > 0
        return made

    def exits(**given):
        raise SystemExit(0)

    value = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a module in the working directory, another one for each test."""
    name = f"net_{abs(hash(request.node.nodeid)):x}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(SOURCE))
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield name
    sys.path[:] = before
    sys.modules.pop(name, None)


def factory(module: str, **values: object) -> Factory:
    trust(f"{module}:make")
    return Factory(name="mine", function=f"{module}:make", resolution=16, in_channels=1, num_classes=10, **values)  # type: ignore[arg-type]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    message = capsys.readouterr()
    assert message.out == ""
    assert "Traceback" not in message.err
    assert message.err.count("\n") == 1
    return message.err


def answered(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    with pytest.raises(SystemExit) as exit_:
        main([*arguments, "--json"])
    assert exit_.value.code == 0
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def test_cost_is_what_torch_counts_on_the_made_module(module: str) -> None:
    network = factory(module, depth=2.0, width=1.5)
    made = build(network)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        made(torch.zeros(1, 1, 16, 16))
    counted = cost(network)
    assert counted.macs == counter.get_total_flops() // 2 > 0
    assert counted.params == sum(parameter.numel() for parameter in made.parameters())
    assert counted.activations == 4 * 12 * 16**2 + 10


def test_a_function_may_look_at_its_weights(module: str) -> None:
    trust(f"{module}:looks")
    network = replace(factory(module), function=f"{module}:looks")
    assert cost(network) == cost(factory(module))
    assert memory(network).inference == memory(factory(module)).inference


def test_multipliers_that_make_the_same_layers_are_one_training(module: str) -> None:
    network = factory(module)
    recipe = Recipe(
        **{"epochs": 1, "batch_size": 8, "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.0},
        **{"label_smoothing": 0.0, "schedule": "cosine", "warmup": 0.0, "flip": False, "crop_padding": 0.0},
        **{"mixup": 0.0, "ema": 0.0, "autocast": "off", "channels_last": False},
    )

    def key(**changed: float) -> str:
        return Evaluation(replace(network, **changed), recipe, "data", 0).key  # type: ignore[arg-type]

    assert key() == key(depth=1.1) == key(width=1.05)
    assert len({key(), key(depth=1.5), key(width=1.5), key(resolution=20)}) == 4


def test_an_edited_function_makes_new_networks(module: str, tmp_path: Path) -> None:
    from scalesearch.model.factory import structure

    network = factory(module)
    before = identity(network)
    path = tmp_path / f"{module}.py"
    path.write_text(path.read_text().replace(".relu()", ".tanh()"))
    structure.cache_clear()
    assert identity(network) != before


def test_a_factory_is_scaled_by_its_multipliers_and_its_resolution(module: str) -> None:
    scaled = resize(factory(module), depth=1.2, width=1.1, resolution=1.15, rounding=RULE, name="larger")
    assert isinstance(scaled, Factory)
    assert (scaled.depth, scaled.width, scaled.resolution, scaled.name) == (1.2, 1.1, 18, "larger")


def test_the_yaml_of_a_factory_loads_as_an_equal_one(module: str, tmp_path: Path) -> None:
    network = factory(module, depth=1.25, width=0.5)
    path = tmp_path / "mine.yaml"
    path.write_text(network.to_yaml(comment="mine"))
    assert load(path) == network


def test_what_only_a_file_names_is_not_imported(module: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}.py").write_text("raise SystemExit('this was run')")
    network = from_table({"factory": f"{module}:make", "resolution": 16}, name="theirs")
    with pytest.raises(ValueError, match=f"Name it yourself: baseline.factory={module}:make"):
        build(network)
    assert module not in sys.modules


def test_a_study_of_a_factory_does_not_run_it(module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tmp_path / "workspace" / "studies" / "theirs"
    study.mkdir(parents=True)
    (study / "coefficients.yaml").write_text("alpha: 1.2\nbeta: 1.1\ngamma: 1.15\n")
    (study / "settings.yaml").write_text(
        f"baseline: {{name: theirs, factory: '{module}:make', resolution: 16, in_channels: 1, num_classes: 10}}\n"
        "rounding: {name: nearest, depth: nearest, divisor: 8, limit: 0.9, resolution: nearest}\n"
        "recipe: {batch_size: 64}\n"
    )
    question = ["variants", "study=theirs", "phis=[0,1]"]
    assert f"baseline.factory={module}:make" in refused(question, capsys)
    assert module not in sys.modules
    rows = answered([*question, f"baseline.factory={module}:make"], capsys)["variants"]
    assert [row["resolution"] for row in rows] == [16, 18]  # type: ignore[attr-defined, index]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nowhere_at_all:make", "nowhere_at_all cannot be imported"),
        ("{module}:mak", "has no function 'mak'"),
        ("{module}:value", "has no function 'value'"),
        ("{module}:raises", "raised KeyError: 'no such size' for depth=1, width=1, resolution=32"),
        ("{module}:exits", "raised SystemExit: 0 for depth=1"),
        ("{module}:text", "returned a str; it must return a torch.nn.Module"),
        ("{module}:maps", "gives (1, 1000, 30, 30) for one image; it must give logits of shape (1, 1000)"),
        ("no colon", "must be written like my_package.my_net:make"),
        ("os.path:join", "raised"),
    ],
)
def test_a_function_that_makes_no_network_is_refused(
    module: str, function: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    written = function.format(module=module)
    assert message in refused(["cost", f"baseline.factory='{written}'", "baseline.resolution=32"], capsys)


def test_a_missing_function_and_unknown_fields_are_refused(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "baseline.factory is missing" in refused(["cost", "baseline=factory"], capsys)
    message = refused(["cost", f"baseline.factory={module}:make", "baseline.resolutoin=32"], capsys)
    assert "baseline.resolution" in message


@pytest.mark.usefixtures("in_this_process")
def test_a_search_on_a_function_goes_from_the_plan_to_the_family(
    module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"baseline.factory={module}:make", "data=digits", "recipe=quick", "proxy=none", "baseline.resolution=8"]
    given += ["recipe.epochs=8", "recipe.batch_size=16"]
    given += [
        "recipe.seeds=1",
        "grid.product_tolerance=0.3",
        "budget.tolerance=0.3",
        "executor.workers=1",
        "phis=[0,1]",
    ]
    planned = answered(["plan", *given], capsys)
    first = answered(["run", *given], capsys)
    trained = first["evaluations"]
    assert trained == {"trained": planned["evaluations"], "reused": 0, "failed": 0}
    assert planned["merged"] > 0  # type: ignore[operator] # else the next line shows nothing
    assert len(planned["candidates"]) >= 2  # type: ignore[arg-type]
    assert [row["phi"] for row in first["variants"]] == [0, 1]  # type: ignore[attr-defined, index]
    for row in first["variants"]:  # type: ignore[attr-defined]
        assert isinstance(load(Path(row["file"])), Factory)
    again = answered(["run", *given], capsys)
    assert again["evaluations"] == {"trained": 0, "reused": planned["evaluations"], "failed": 0}
    assert again["chosen"] == first["chosen"]
    commands = printed_commands(answered(["report"], capsys))
    assert len(commands) >= 3
    assert all(f"baseline.factory={module}:make" in one for one in commands), commands


def test_init_writes_what_plan_and_cost_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    files = template.write("written_net", Path())
    table, by_function, function = (path.read_text() for path in files)
    assert "mbconv (channels, kernel, stride, expand, squeeze_excite, activation)" in table
    compile(function, str(files[2]), "exec")
    assert "written_net.written_net:make" in by_function
    for name in ("written_net", "written_net_factory"):
        with pytest.raises(SystemExit) as exit_:
            main(["cost", "--config-dir", "written_net", f"baseline={name}"])
        assert exit_.value.code == 0
    network = load(files[1])
    assert isinstance(network, Factory)
    logits = build(replace(network, resolution=32, depth=0.4, width=0.3))(torch.zeros(2, 3, 32, 32))
    assert logits.shape == (2, 1000)


def test_init_never_overwrites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main(["init", "mine"])
    assert exit_.value.code == 0
    capsys.readouterr()
    path = tmp_path / "mine" / "baseline" / "mine.yaml"
    path.write_text("mine")
    (tmp_path / "mine" / "mine.py").unlink()
    assert "is there already; nothing was written" in refused(["init", "mine"], capsys)
    assert path.read_text() == "mine"
    assert not (tmp_path / "mine" / "mine.py").exists()


@pytest.mark.parametrize("name", ["3x", "a-b", "", "class", "Über", "a/b", "../x", "mobilenetv2"])
def test_init_refuses_what_is_no_module_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refused(["init", f"name='{name}'"], capsys)
    assert "name" in message
    assert list(tmp_path.iterdir()) == []
