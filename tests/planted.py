"""A planted study: it goes through the real command line, plan, ledger and selection; its executor makes results up."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Ended
from safetensors.torch import save_file

from scalesearch.executor import EXECUTORS, LocalExecutor
from scalesearch.network import from_table
from scalesearch.training import Result

SCALESEARCH = str(Path(sys.executable).with_name("scalesearch"))
STUDY = "digits"
# Five candidates, of 9, 9, 9, 13 and 17 blocks, and the 1x network; as in test_run.
SEARCH = (
    *("baseline=mobilenetv2", "proxy.width=0.25", "proxy.depth=0.5", "proxy.resolution=8", "proxy.total_stride=4"),
    *("data=digits", "data.num_train=320", "data.num_val=400", "recipe.batch_size=16", "recipe.learning_rate=0.2"),
    *(
        "recipe.seeds=2",
        "recipe.epochs=2",
        "recipe.flip=false",
        "recipe.autocast=off",
        "grid.alpha={start:1,stop:1.9,step:0.45}",
    ),
    *("grid.beta={start:1,stop:1.4,step:0.1}", "grid.gamma={start:1,stop:1.4,step:0.1}", "search=grid"),
    *("grid.product_tolerance=0.15", "budget.tolerance=0.12", "phis=[1]", "tracking=none", f"study={STUDY}"),
)
NUM_TRAIN, NUM_VAL, EPOCHS = 320, 400, 2


def made_up(accuracy: float, *, num_val: int = NUM_VAL, curve: Sequence[float] = (2.0, 1.0), start: int = 0) -> Result:
    correct = np.roll(np.arange(num_val) < round(accuracy * num_val), start)
    return Result(
        val_accuracy=float(correct.mean()),
        val_loss=1.0,
        correct=correct,
        curve=tuple({"epoch": i + 1, "train_loss": loss, "learning_rate": 0.1} for i, loss in enumerate(curve)),
        train_seconds=2.0,
        images_per_second=100.0,
    )


Plant = Callable[[Mapping[str, Any]], Result]


class Planted(Executor):
    """An executor whose trainings end at once, as `plant` says for their specification; it notes the seeds it trained.

    The arguments are those of `LocalExecutor`, for the settings of executor=local.
    """

    Settings = LocalExecutor.Settings
    plant: ClassVar[Plant]
    trained: ClassVar[list[Mapping[str, Any]]] = []

    def __init__(self, workers: int | None = None, *, threads: int = 1, devices: Sequence[str] = ()) -> None:
        self.slots = 2

    def submit(self, function: Any, specification: Any) -> Future[dict[str, Any]]:  # type: ignore[override]
        future: Future[dict[str, Any]] = Future()
        if function.__name__ == "test_specification":
            future.set_result({"test_accuracy": 0.5, "test_loss": 1.0, "num_test": 100})
            return future
        if function.__name__ == "pace_specification":
            future.set_result({"train_seconds": 1e-4, "score_seconds": 1e-5})
            return future
        self.trained.append(specification)
        try:
            result = type(self).plant(specification)
        except ValueError as error:
            future.set_exception(error)
            return future
        path = Path(specification["weights"])
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"weight": torch.zeros(1)}, path)
        future.set_result({"result": result.to_json(), "environment": {}})
        return future


def blocks(specification: Mapping[str, Any]) -> float:
    return from_table(specification["network"], name="planted").depth


def known_bias(specification: Mapping[str, Any]) -> Result:
    """Short training punishes depth and long training rewards it; a px is worth a tenth of a block."""
    sign = -1 if specification["recipe"]["epochs"] <= EPOCHS else 1
    noise = 0.0025 * specification["seed"]
    accuracy = 0.6 + sign * 0.01 * blocks(specification) + 0.0025 * specification["network"]["resolution"] + noise
    return made_up(accuracy, start=specification["seed"])


def honest(specification: Mapping[str, Any]) -> Result:
    """Deeper is better, however long the training."""
    return made_up(0.4 + 0.02 * blocks(specification) + 0.0025 * specification["network"]["resolution"])


Call = Callable[[Path, Sequence[str]], Ended]


class Place:
    """A directory with a workspace; commands run in this process, with the planted executor."""

    def __init__(self, path: Path, call: Call) -> None:
        self.path, self._call = path, call
        self.workspace = path / "workspace"
        self.study = self.workspace / "studies" / STUDY

    def gives(self, *words: str) -> Ended:
        return self._call(self.path, [*words, "executor.name=planted", "--json"])

    def fidelity(self, *words: str) -> Ended:
        return self.gives("reproduce", "fidelity", "tracking=none", *words)

    def answers(self) -> list[dict[str, Any]]:
        return json.loads((self.study / "fidelity.json").read_text())  # type: ignore[no-any-return]

    def files(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted(self.workspace.rglob("*")) if path.is_file()}


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, command: Callable[..., Ended]) -> Call:
    """A command in a directory, in this process."""
    monkeypatch.setitem(EXECUTORS._loaded, "planted", Planted)  # type: ignore[arg-type]
    monkeypatch.setattr(Planted, "plant", staticmethod(known_bias), raising=False)
    Planted.trained.clear()

    def in_directory(place: Path, words: Sequence[str]) -> Ended:
        monkeypatch.chdir(place)
        return command(*words)

    return in_directory


_SEARCHED: dict[str, Path] = {}


@pytest.fixture
def searched(
    call: Call,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Place]:
    """A study of its own for every test, searched once for each way of planting it."""

    def copied(plant: Plant = known_bias, *more: str) -> Place:
        name = " ".join([plant.__name__, *more])
        monkeypatch.setattr(Planted, "plant", staticmethod(plant))
        if name not in _SEARCHED:
            first = Place(tmp_path_factory.mktemp("searched"), call)
            ended = first.gives("run", *SEARCH, *more)
            assert ended.code == 0, ended.output
            _SEARCHED[name] = first.path
        shutil.copytree(_SEARCHED[name] / "workspace", tmp_path / "workspace")
        Planted.trained.clear()
        return Place(tmp_path, call)

    return copied


@pytest.fixture
def place(searched: Callable[..., Place]) -> Place:
    return searched()


def of_table(entry: Mapping[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(entry["table"]).set_index("candidate")
