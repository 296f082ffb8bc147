"""The scripts of benchmarks/: each says what it does, is short, and what it compares with does the same work."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import case
from tiny import DATA, TINY, changed

from scalesearch.cost import cost

FOLDER = Path(__file__).parent.parent / "benchmarks"
SCRIPTS = sorted(FOLDER.glob("*.py"))
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder as a script there sees it, and no module of it left behind."""
    monkeypatch.syspath_prepend(FOLDER)
    for path in SCRIPTS:
        monkeypatch.delitem(sys.modules, path.stem, raising=False)


def loaded(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.mark.usefixtures("benchmarks")
@pytest.mark.parametrize("name", [path.stem for path in SCRIPTS])
def test_every_benchmark_says_what_it_does(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        loaded(name).main()
    assert ended.value.code == 0
    assert f"python benchmarks/{name}.py" in capsys.readouterr().out


def test_benchmarks_are_short() -> None:
    for path in (*SCRIPTS, *(FOLDER / "others").glob("*.py")):
        with case(path.name):
            assert len(path.read_text().splitlines()) <= 250
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef):
                    assert (node.end_lineno or 0) - node.lineno <= 60, node.name


@pytest.mark.usefixtures("benchmarks")
@pytest.mark.parametrize("form", ["plain", "expert", "timm", "lightning"])
def test_the_loops_of_others_learn_what_ours_learns(form: str) -> None:
    if form in ("timm", "lightning"):
        pytest.importorskip(form)
    recipe = changed(epochs=20, warmup=0.25, flip=False)
    loop = getattr(loaded("others.loops"), form)
    assert loop(TINY, recipe, DATA, 0, "float32", CPU) > 0.5  # chance is 0.1
    again = [loop(TINY, changed(epochs=1), DATA, 0, "float32", CPU) for _ in range(2)]
    assert again[0] == again[1]


@pytest.mark.usefixtures("benchmarks")
def test_the_learning_rate_of_the_others_is_that_of_the_recipe() -> None:
    from scalesearch.training.loop import _schedule

    recipe, rate = changed(warmup=0.25, schedule="one_cycle"), loaded("others.loops").rate
    for step in range(187):
        assert rate(recipe, step, 187) == pytest.approx(_schedule(recipe, step / 187), abs=1e-12), step


@pytest.mark.usefixtures("benchmarks")
def test_counters_count_at_least_the_convolutions_and_linear_layers() -> None:
    counting = loaded("counting")
    own = cost(TINY).macs
    for name, (package, count) in counting.COUNTERS.items():
        if importlib.util.find_spec(package) is None:
            continue
        with case(name):
            found = count(TINY)
            assert own <= found < 1.5 * own
            assert found == own or name not in ("scalesearch.cost", "torch FlopCounterMode")


@pytest.mark.usefixtures("benchmarks")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which it would measure")
def test_without_a_gpu_nothing_is_claimed_of_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    loaded("gpu").main()
    assert capsys.readouterr().out == "torch sees no CUDA GPU here: nothing was measured\n"
