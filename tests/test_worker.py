"""What workers run: the same numbers as in this process, bit for bit, and after a kill."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ALL_ON, DATA, DIGITS, DROPOUT, RECIPE, TINY, changed, fit, numbers, reference

from scalesearch.data import DataSpec, load
from scalesearch.evaluation import Evaluation
from scalesearch.executor import LocalExecutor
from scalesearch.network import Network, from_table
from scalesearch.training import Recipe, Result, train, worker

pytestmark = pytest.mark.usefixtures("one_thread")  # as many as a worker has: sums are added up in the same order


def specification(directory: Path, network: Network, recipe: Recipe, seed: int, name: str = "a") -> dict[str, Any]:
    evaluation = Evaluation(network, recipe, DATA.fingerprint, seed)
    return evaluation.specification() | {
        "name": network.name,
        "data_spec": dataclasses.asdict(DIGITS),
        "weights": str(directory / f"{name}.safetensors"),
        "checkpoint": str(directory / f"{name}.checkpoint.safetensors"),
        "precision": "float32",
    }


def train_with_checkpoints(specification: dict[str, Any]) -> dict[str, Any]:
    """What a worker runs here: a training that keeps a checkpoint of every epoch and says which process it is."""
    Path(specification["weights"]).with_suffix(".pid").write_text(str(os.getpid()))
    return train(
        from_table(specification["network"], name=specification["name"]),
        Recipe(**specification["recipe"]),
        load(DataSpec(**specification["data_spec"])),
        seed=specification["seed"],
        device="cpu",
        weights=Path(specification["weights"]),
        checkpoint=Path(specification["checkpoint"]),
        checkpoint_seconds=0.0,
    ).to_json()


def test_fresh_workers_give_the_same_numbers_bit_for_bit(tmp_path: Path) -> None:
    with LocalExecutor(workers=2) as executor:  # two requests at once: two processes
        futures = [
            executor.submit(worker.run_specification, specification(tmp_path, TINY, RECIPE, 0, name))
            for name in ("a", "b")
        ]
        one, two = (Result.from_json(future.result()["result"]) for future in futures)
        environments = [future.result()["environment"] for future in futures]
    assert numbers(one) == numbers(two) == numbers(reference())
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert environments[0] == environments[1]
    assert environments[0]["torch"] == torch.__version__
    assert environments[0]["threads"] == "1"


def test_a_worker_whose_data_differ_says_so(tmp_path: Path) -> None:
    wrong = specification(tmp_path, TINY, RECIPE, 0) | {"data": "0" * 64}
    with pytest.raises(ValueError, match=r"the worker's digits is not the driver's.*expected 000000000000"):
        worker.run_specification(wrong)


def test_a_killed_worker_s_training_is_continued_with_the_same_numbers(tmp_path: Path) -> None:
    recipe = changed(**ALL_ON | {"epochs": 10})
    with LocalExecutor(workers=1) as executor:
        request = specification(tmp_path, DROPOUT, recipe, 3)
        first = executor.submit(train_with_checkpoints, request)
        checkpoint, pid = Path(request["checkpoint"]), tmp_path / "a.pid"
        while not checkpoint.exists():
            assert not first.done(), first.exception()
            time.sleep(0.002)
        killed = pid.read_text()
        os.kill(int(killed), signal.SIGKILL)
        again = first.result()
        assert pid.read_text() != killed, "another process has done it"
    unbroken = fit(DROPOUT, recipe, seed=3, weights=tmp_path / "b.safetensors")
    assert numbers(Result.from_json(again)) == numbers(unbroken)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert not checkpoint.exists()


def test_the_test_split_is_scored_from_saved_weights(tmp_path: Path) -> None:
    request = specification(tmp_path, TINY, changed(epochs=6), 0)
    worker.run_specification(request)
    answer = worker.test_specification(request)
    assert answer["num_test"] == 359
    assert answer["test_accuracy"] > 0.5
    assert math.isfinite(answer["test_loss"])
