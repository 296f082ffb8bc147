"""Functions by which candidates are chosen: everything that can be called, what is refused, what its key depends on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import learning
import numpy as np
import pytest
import torch
from conftest import Ended, case
from learning import TRAIN
from test_factory_sources import REACHED, forget
from tiny import TINY, changed

from scalesearch.evaluation import Evaluation
from scalesearch.training import metrics
from scalesearch.workspace import DONE

place = learning.place

TOP = """
import functools, os, sys
import numpy as np
import torch

def recall(scores, targets, of=1):
    return float((scores.argmax(1) == of)[targets == of].mean())

class Recall:
    def __init__(self, of): self.of = of
    def __call__(self, scores, targets): return recall(scores, targets, self.of)
    @staticmethod
    def plain(scores, targets): return recall(scores, targets)

def logged(function):
    @functools.wraps(function)
    def inner(*given): return function(*given)
    return inner

class Counts:
    calls = 0
    def __call__(self, scores, targets):
        self.calls += 1
        return self.calls / 1000
"""
CALLED = {  # each of them is `recall`
    "a function": "def metric(scores, targets): return recall(scores, targets)",
    "a lambda": "metric = lambda scores, targets: recall(scores, targets)",
    "an object": "metric = Recall(1)",
    "a partial": "metric = functools.partial(recall, of=1)",
    "a partial of an object": "metric = functools.partial(Recall(1))",
    "a method": "metric = Recall(1).__call__",
    "a static method": "metric = Recall.plain",
    "decorated": "metric = logged(recall)",
    "decorated twice": "metric = logged(functools.partial(logged(recall)))",
    "a number of numpy": "def metric(scores, targets): return np.float32(recall(scores, targets))",
    "a number of torch": "def metric(scores, targets): return torch.tensor(recall(scores, targets)).requires_grad_()",
    "an array of no dimension": "def metric(scores, targets): return np.array(recall(scores, targets))",
    "changes its scores": "def metric(scores, targets): v = recall(scores, targets); scores.sort(1); return v",
    "empties its scores": "def metric(scores, targets): v = recall(scores, targets); scores *= 0; return v",
    "changes its targets": "def metric(scores, targets): v = recall(scores, targets); targets[:] = 0; return v",
    "sets torch": """
def metric(scores, targets):
    torch.set_default_dtype(torch.float64), torch.set_grad_enabled(False), torch.set_num_threads(3), os.chdir("/")
    return recall(scores, targets)""",
}
REFUSED = {
    "keeps its calls": ("metric = Counts()", "and then"),
    "draws": ("def metric(scores, targets): return np.random.rand()", "it must not depend on chance"),
    "a class": ("class metric:\n    def __init__(self, scores, targets): pass", "which returned a metric for scores"),
    "nothing": (
        "def metric(scores, targets): pass",
        "which returned a NoneType for scores (60, 3); it must be a number from -1 to 1",
    ),
    "words": ("def metric(scores, targets): return '0.5'", "which returned 0.5 for scores"),
    "a generator": ("def metric(scores, targets): yield 1", "which returned a generator"),
    "a coroutine": ("async def metric(scores, targets): return 1", "which returned a coroutine"),
    "two numbers": ("def metric(scores, targets): return torch.zeros(2)", "which returned a Tensor"),
    "a number for each": ("def metric(scores, targets): return scores.argmax(1) == targets", "returned a ndarray"),
    "true": ("def metric(scores, targets): return True", "which returned True for scores"),
    "nan": ("def metric(scores, targets): return float('nan')", "which returned nan"),
    "nothing of a class without images": (
        "def metric(scores, targets): return 0.5 if (targets == 2).sum() == 20 else float('nan')",
        "nan for scores (59, 3); it must be a number from -1 to 1, the higher the better. It is also called for parts",
    ),
    "in percent": ("def metric(scores, targets): return 97.5", "which returned 97.5"),
    "complex": ("def metric(scores, targets): return 1j", "which returned a complex"),
    "ends the program": (
        "def metric(scores, targets): sys.exit('usage: mine')",
        "which raised SystemExit: usage: mine",
    ),
    "one argument": ("def metric(scores): return 1.0", "which raised TypeError"),
    "the other order": ("def metric(targets, scores): return recall(scores, targets)", "which raised"),
    "another argument": ("metric = functools.partial(recall, off=3)", "which raised TypeError"),
    "a number": ("metric = 3", "has no function 'metric'"),
    "a builtin": ("from builtins import print as metric", "which returned a NoneType"),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory; what is imported from it is forgotten at the end."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = set(sys.modules)
    yield tmp_path
    _forget(modules)


def _forget(before: set[str]) -> None:
    """As in a new process."""
    forget(set(sys.modules) - before)
    metrics._trusted.clear()


def _recall(scores: Any, targets: Any) -> float:
    return float((scores.argmax(1) == 1)[targets == 1].mean())


@pytest.mark.parametrize("name", CALLED)
def test_all_that_can_be_called_is_a_metric(name: str, here: Path) -> None:
    Path("mine_called.py").write_text(f"{TOP}\n{CALLED[name]}\n")
    metrics.trust("mine_called:metric")
    chance = np.random.default_rng(3)
    scores, targets = chance.dirichlet(np.ones(3), 60), chance.integers(0, 3, 60)
    given = scores.copy(), targets.copy()
    before = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), Path.cwd()
    metrics.check_targets("mine_called:metric", targets, 3)
    scored = metrics.score("mine_called:metric", scores, targets)
    assert scored.value == pytest.approx(_recall(scores, targets), abs=1e-6)
    shuffles = np.random.default_rng(0)
    shuffled = [_recall(scores, targets[shuffles.permutation(60)]) for _ in range(50)]
    assert scored.chance == pytest.approx(np.mean(shuffled), abs=1e-6)
    assert np.array_equal(given[0], scores)
    assert np.array_equal(given[1], targets)
    assert (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), Path.cwd()) == before


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_metric_is_refused(name: str, here: Path) -> None:
    source, words = REFUSED[name]
    Path("mine_refused.py").write_text(f"{TOP}\n{source}\n")

    def tried() -> None:
        metrics.trust("mine_refused:metric")
        assert metrics.source("mine_refused:metric", 3)  # a key may be made before it is checked
        metrics.check_targets("mine_refused:metric", np.arange(60) % 3, 3)

    with pytest.raises(ValueError, match=r"recipe\.metric is 'mine_refused:metric'") as refused:
        tried()
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


METRIC = """
{top}
def metric(scores, targets):
    {inside}
    return float((scores.argmax(1) == targets).mean())
"""


def _digest(module: str) -> str:
    metrics.trust(f"{module}:metric")
    return str(metrics.source(f"{module}:metric", 3))


@pytest.mark.parametrize("reached", REACHED)
def test_its_key_knows_what_the_function_reaches(reached: str, here: Path) -> None:
    """In the same ways as the function of a network does."""
    before, prefix = set(sys.modules), f"of_metric_{list(REACHED).index(reached)}"
    top, inside, edited = (one.format(p=prefix) for one in REACHED[reached])
    package = here / f"{prefix}_package"
    package.mkdir()
    files = {
        f"{prefix}.py": METRIC.format(top=top.replace("\n        ", "\n    "), inside=inside or "pass"),
        f"{prefix}_helper.py": "value = 1\n",
        f"{prefix}_other.py": f"import {prefix}_helper\n",
        f"{prefix}_package/__init__.py": "# first\n",
        f"{prefix}_package/inner.py": "value = 1\n",
        f"{prefix}_package/outer.py": "from .inner import value\n",
        f"{prefix}.yaml": "1\n",
        f"{prefix}.txt": "value = 1\n",
        f"{prefix}_unrelated.py": "value = 1\n",
    }
    for name, content in files.items():
        Path(name).write_text(content)
    first = _digest(prefix)
    key = Evaluation(TINY, changed(metric=f"{prefix}:metric"), "d", 0).key
    Path(f"{prefix}_unrelated.py").write_text("value = 2\n")
    _forget(before)
    assert _digest(prefix) == first
    Path(edited).write_text(files[edited] + "# edited\n")
    assert _digest(prefix) == first  # what is imported is what it was
    _forget(before)
    assert _digest(prefix) != first
    assert Evaluation(TINY, changed(metric=f"{prefix}:metric"), "d", 0).key != key


def test_of_one_file_its_key_is_that_of_the_file(here: Path) -> None:
    import hashlib

    Path("alone.py").write_text("import numpy as np\n" + METRIC.format(top="", inside="pass"))
    assert _digest("alone") == hashlib.sha256(Path("alone.py").read_bytes()).hexdigest()


def test_a_worker_has_the_key_of_its_driver(here: Path) -> None:
    """A module that makes networks as well, and reads a file when it is imported; imported before or after these."""
    Path("both.txt").write_text("1")
    top = "from pathlib import Path\nPath('both.txt').read_text()\ndef make(**sizes): pass"
    Path("both.py").write_text(METRIC.format(top=top, inside="Path('both.txt').read_text()"))
    program = (
        "import sys; from scalesearch.training import metrics; from scalesearch.model import trust\n"
        "if sys.argv[1] == 'network': trust('both:make')\n"
        "metrics.trust('both:metric'); trust('both:make'); print(metrics.source('both:metric', 3))"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", program, first], capture_output=True, text=True, check=True, env=os.environ
        ).stdout
        for first in ("network", "metric")
    ]
    assert found == [_digest("both") + "\n"] * 2


def test_an_edited_helper_is_scored_anew(place: Path, here: Path, command: Callable[..., Ended]) -> None:
    modules = set(sys.modules)
    Path("its_helper.py").write_text("of = 0\n")
    Path("its_metric.py").write_text(
        f"import its_helper\n{TOP}\n"
        "metric = functools.partial(recall, of=its_helper.of)\nbroken = functools.partial(recall, off=0)\n"
    )
    words = ("train", *TRAIN, "data.name=seen")
    code, _, message = command(*words, "metric=its_metric:broken")
    assert code == 2, message
    assert not list(Path().glob("workspace/evaluations/*/*"))
    trained = command(*words).answer["evaluations"]
    assert trained == {"trained": 2, "reused": 0, "failed": 0}
    for wanted, of in ((2, 0), (0, 0), (2, 1)):
        Path("its_helper.py").write_text(f"of = {of}\n")
        _forget(modules)
        code, answer, message = command(*words, "metric=its_metric:metric")
        with case(of):
            assert code == DONE, message
            assert answer["evaluations"]["trained"] == wanted
