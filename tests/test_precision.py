"""What a training is made in, float32 or bfloat16, and how long it is expected to take: both from timings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import InThisProcess, case, recipe
from tiny import PLAIN, TINY

from scalesearch import machine
from scalesearch.cost import cost
from scalesearch.data import DataSpec, describe, load
from scalesearch.evaluation import Evaluation, Evaluator, Outcome, Work, mixed_machines, mixed_precision
from scalesearch.ledger import Ledger
from scalesearch.network import Network, Stage
from scalesearch.training import Recipe, Result, timing
from scalesearch.training.timing import Pace

DEEPER = replace(PLAIN, stages=(Stage(block="conv_norm", channels=12, repeats=3),))
RECIPE = recipe(batch_size=16, flip=True, autocast="auto")
DIGITS = DataSpec("digits", num_train=64, num_val=50)

pytestmark = pytest.mark.usefixtures("one_thread")


def evaluator(workspace: Path, executor: InThisProcess) -> Evaluator:
    return Evaluator(Ledger(workspace), executor, DIGITS)  # type: ignore[arg-type]


def plant(monkeypatch: pytest.MonkeyPatch, *, found: Sequence[str], bfloat16: float) -> None:
    """A processor with these instructions, on which bfloat16 takes that share of float32's time."""
    monkeypatch.setattr(machine, "instructions", lambda: frozenset(found))
    monkeypatch.setattr(timing.torch.cuda, "is_available", lambda: False)
    seconds = {"float32": 1.0, "bfloat16": bfloat16}
    monkeypatch.setattr(timing, "pace", lambda *_, precision, **__: Pace(seconds[precision], 1.0))


def test_bfloat16_is_taken_where_it_is_measured_to_take_a_tenth_less(monkeypatch: pytest.MonkeyPatch) -> None:
    for share, expected in ((0.5, "bfloat16"), (0.89, "bfloat16"), (0.95, "float32"), (4.0, "float32")):
        plant(monkeypatch, found=["AVX-512", "bfloat16"], bfloat16=share)
        assert timing.faster_precision(PLAIN, RECIPE) == expected, share


def test_without_the_instructions_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, found=["AVX-512"], bfloat16=0.1)
    monkeypatch.setattr(timing, "pace", None)
    assert timing.faster_precision(PLAIN, RECIPE) == "float32"


def test_a_gpu_is_timed_in_the_half_precision_that_it_does_not_emulate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute capabilities from NVIDIA's table: V100, T4, A100, GeForce 4090, H100; the first two have no bfloat16."""
    timed: list[str] = []

    def pace(*_: Any, precision: str, **__: Any) -> Pace:
        timed.append(precision)
        return Pace(1.0 if precision == "float32" else 0.5, 1.0)

    monkeypatch.setattr(timing, "pace", pace)
    monkeypatch.setattr(timing, "torch_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)  # what torch says of all of them
    cards = {(7, 0): "float16", (7, 5): "float16", (8, 0): "bfloat16", (8, 9): "bfloat16", (9, 0): "bfloat16"}
    for capability, half in cards.items():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, capability=capability: capability)
        timed.clear()
        with case(capability):
            assert timing.faster_precision(PLAIN, RECIPE) == half
            assert timed == ["float32", half]


def test_what_the_recipe_asks_for_is_not_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(timing, "pace", None)
    executor = InThisProcess()
    for requested, expected in (("off", "float32"), ("bfloat16", "bfloat16"), ("float16", "float16")):
        assert evaluator(tmp_path, executor).precision(PLAIN, replace(RECIPE, autocast=requested)) == expected
    assert not executor.requested
    assert not (tmp_path / "precision.json").exists()


def test_networks_of_the_same_blocks_are_decided_once_and_for_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Noise in a timing must not train one candidate in another precision than the next, nor a resumed search."""
    executor = InThisProcess()
    plant(monkeypatch, found=["bfloat16"], bfloat16=0.5)
    assert evaluator(tmp_path, executor).precision(PLAIN, RECIPE) == "bfloat16"
    plant(monkeypatch, found=["bfloat16"], bfloat16=2.0)
    assert evaluator(tmp_path, executor).precision(DEEPER, RECIPE) == "bfloat16"
    assert executor.requested == [("precision_specification", PLAIN.name)]
    assert evaluator(tmp_path, executor).precision(TINY, RECIPE) == "float32"
    (kept,) = json.loads((tmp_path / "precision.json").read_text()).values()
    assert sorted(kept.values()) == ["bfloat16", "float32"]
    monkeypatch.setattr("scalesearch.evaluation.environment", lambda: machine.environment() | {"processor": "another"})
    assert evaluator(tmp_path, executor).precision(PLAIN, RECIPE) == "float32"


def test_what_was_decided_stands_in_the_record_and_not_in_the_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    evaluation = Evaluation(PLAIN, RECIPE, load(DIGITS).fingerprint, 0)
    plant(monkeypatch, found=["bfloat16"], bfloat16=2.0)
    for reused in (False, True):
        (outcome,) = evaluator(tmp_path, InThisProcess()).run([evaluation])
        assert (outcome.precision, outcome.reused) == ("float32", reused)
    record = Ledger(tmp_path).get(evaluation.key)
    assert record is not None
    assert record["environment"]["precision"] == "float32"
    assert record["environment"]["processor"] == machine.processor()
    assert record["specification"]["recipe"]["autocast"] == "auto"


def outcome(precision: str, *, failed: bool = False) -> Outcome:
    right = np.ones(2, bool)
    result = Result(val_accuracy=1, val_loss=1, correct=right, curve=(), train_seconds=1, images_per_second=1)
    return Outcome(Evaluation(PLAIN, RECIPE, "data", 0), None if failed else result, "", True, precision)


def test_trainings_of_two_precisions_are_never_compared_in_silence() -> None:
    assert mixed_precision([]) is None
    assert mixed_precision([outcome("float32"), outcome("float32"), outcome("", failed=True)]) is None
    words = mixed_precision([outcome("float32"), outcome("bfloat16"), outcome("bfloat16")])
    assert words is not None
    assert "2 in bfloat16 and 1 in float32" in words
    assert "recipe.autocast=off" in words
    words = mixed_precision([outcome("float32"), outcome("")])
    assert words is not None
    assert "1 in a precision that was not recorded" in words


def test_a_pace_is_what_more_steps_take_longer_and_what_is_done_once_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def planted(network: Network, recipe: Recipe, data: Any, **_: Any) -> Any:
        """A training that takes a second for its start, and one for each image."""
        assert recipe.epochs == 1
        return SimpleNamespace(train_seconds=1.0 + len(data.train_images))

    assert timing.pace(PLAIN, RECIPE, precision="float32", budget_seconds=0.02) > (0, 0)
    monkeypatch.setattr(timing, "train", planted)
    found = timing.pace(PLAIN, RECIPE, precision="float32")
    assert found.train_seconds == pytest.approx(1)
    large = replace(PLAIN, resolution=512, stages=(Stage(block="conv_norm", channels=256),))
    share = cost(large).macs / 5e7  # of what is timed of it, at a lower resolution
    assert timing.pace(large, RECIPE, precision="float32").train_seconds >= share


def test_expected_seconds_add_up_what_each_network_takes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plant(monkeypatch, found=[], bfloat16=1.0)
    executor, sizes = InThisProcess(), describe(DIGITS)
    work = [Work(PLAIN, RECIPE, sizes, 3), Work(TINY, replace(RECIPE, epochs=2), sizes, 1)]
    images = 3 * (64 + 50) + (2 * 64 + 50)  # a second each, planted, one worker
    assert evaluator(tmp_path, executor).expected_seconds(work) == pytest.approx(images)


def test_machines_that_differ_are_counted() -> None:
    def on(machine: str) -> Outcome:
        return outcome("float32")._replace(machine=machine)

    assert mixed_machines([]) is None
    assert mixed_machines([on("torch 2.5 on cpu"), on("torch 2.5 on cpu"), on("")]) is None
    words = mixed_machines([on("torch 2.5 on cpu"), on("torch 2.6 on cpu"), on("torch 2.6 on cpu")])
    assert words is not None
    assert "1 with torch 2.5 on cpu and 2 with torch 2.6 on cpu" in words
