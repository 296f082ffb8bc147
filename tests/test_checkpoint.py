"""What trainings leave on disk: checkpoints that they go on from, and weights."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import ALL_ON, DATA, DROPOUT, PLAIN, TINY, changed, fit, initial_weights, numbers

from scalesearch.ledger import Ledger
from scalesearch.machine import instructions
from scalesearch.model import build
from scalesearch.network import Network, Stage
from scalesearch.training import Recipe, evaluate, load_weights, save_weights
from scalesearch.training.checkpoint import save

pytestmark = pytest.mark.usefixtures("one_thread")  # as many as a worker has: sums are added up in the same order
BFLOAT16 = pytest.mark.skipif("bfloat16" not in instructions(), reason="this CPU would emulate bfloat16")


class Interrupted(Exception):  # noqa: N818 - it is meant
    pass


@pytest.fixture
def interrupted() -> Iterator[Callable[..., Path]]:
    """Run a training until a checkpoint has so many epochs, stop it at whatever it does then; the checkpoint."""

    def stop(
        network: Network, recipe: Recipe, checkpoint: Path, *, seed: int = 0, epochs: int = 1, **more: Any
    ) -> Path:
        stopped = False

        def look(*_: object) -> None:
            nonlocal stopped
            if not stopped and checkpoint.exists() and len(load_curve(checkpoint)) >= epochs:
                stopped = True  # once: the timer may go off again on the way out
                raise Interrupted

        signal.signal(signal.SIGALRM, look)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        with pytest.raises(Interrupted):
            fit(network, recipe, seed=seed, checkpoint=checkpoint, checkpoint_seconds=0, **more)
        signal.setitimer(signal.ITIMER_REAL, 0)
        return checkpoint

    before = signal.getsignal(signal.SIGALRM)
    yield stop
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def load_curve(checkpoint: Path) -> list[Any]:
    with safe_open(checkpoint, framework="pt") as file:
        return list(json.loads(file.metadata()["curve"]))


@pytest.mark.parametrize(
    ("network", "recipe"),
    [
        (TINY, changed(epochs=8)),
        (DROPOUT, changed(**ALL_ON)),
        (DROPOUT, changed(**ALL_ON, momentum=0.0, channels_last=False)),
        pytest.param(PLAIN, changed(epochs=8, autocast="bfloat16"), marks=BFLOAT16),
        (PLAIN, changed(epochs=8, autocast="float16")),
    ],
    ids=["plain", "all_on", "no_momentum", "bfloat16", "float16"],
)
def test_an_interrupted_training_goes_on_from_its_checkpoint(
    network: Network, recipe: Recipe, tmp_path: Path, interrupted: Callable[..., Path]
) -> None:
    unbroken = fit(network, recipe)
    checkpoint = interrupted(network, recipe, tmp_path / "c.safetensors")
    assert 0 < len(load_curve(checkpoint)) < recipe.epochs
    continued = fit(network, recipe, checkpoint=checkpoint, checkpoint_seconds=math.inf)
    assert numbers(continued) == numbers(unbroken)
    assert not checkpoint.exists()


def test_a_training_that_is_interrupted_in_an_epoch_goes_on_in_it(
    tmp_path: Path, interrupted: Callable[..., Path]
) -> None:
    recipe = changed(**ALL_ON)
    unbroken = fit(DROPOUT, recipe)
    checkpoint = interrupted(DROPOUT, recipe, tmp_path / "c.safetensors", epochs=0)
    with safe_open(checkpoint, framework="pt") as file:
        meta = file.metadata()
    assert json.loads(meta["curve"]) == []
    assert int(meta["step"]) >= 1
    assert numbers(fit(DROPOUT, recipe, checkpoint=checkpoint)) == numbers(unbroken)


def test_a_checkpoint_with_a_flipped_bit_is_not_gone_on_from(tmp_path: Path, interrupted: Callable[..., Path]) -> None:
    recipe = changed(epochs=8)
    unbroken = fit(TINY, recipe)
    checkpoint = interrupted(TINY, recipe, tmp_path / "c.safetensors")
    content = bytearray(checkpoint.read_bytes())
    content[-5] ^= 0x40  # in the tensors, where no reader of the file looks twice
    checkpoint.write_bytes(content)
    with pytest.warns(UserWarning, match=r"c.safetensors cannot be used \(its content was changed"):
        result = fit(TINY, recipe, checkpoint=checkpoint)
    assert numbers(result) == numbers(unbroken)


def test_a_continued_training_trains_only_the_epochs_that_are_missing(
    tmp_path: Path, interrupted: Callable[..., Path]
) -> None:
    recipe = changed(epochs=8)
    checkpoint = interrupted(TINY, recipe, tmp_path / "c.safetensors")
    # A mark in the checkpoint's own curve comes out again: these epochs were not trained a second time.
    with safe_open(checkpoint, framework="pt") as file:
        meta, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    curve = json.loads(meta["curve"])
    curve[0]["train_loss"] = 99.0
    del meta["digest"]  # as one from before has none
    save_file(tensors, checkpoint, meta | {"curve": json.dumps(curve)})
    result = fit(TINY, recipe, checkpoint=checkpoint)
    assert result.curve[0]["train_loss"] == 99.0
    assert [entry["epoch"] for entry in result.curve] == list(range(1, 9))
    assert result.train_seconds > float(meta["seconds"])


class Trap:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.path),)


def test_the_trap_for_unpickling_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Trap(str(tmp_path / "sprung"))))
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "pickle", "no_meta", "other_seed", "other_recipe"])
def test_a_checkpoint_that_cannot_be_used_costs_a_warning_and_not_the_training(
    damage: str, tmp_path: Path, interrupted: Callable[..., Path]
) -> None:
    recipe, ran = changed(epochs=8), tmp_path / "unpickled"
    wrong = changed(epochs=8, weight_decay=0.1) if damage == "other_recipe" else recipe
    checkpoint = interrupted(TINY, wrong, tmp_path / "c.safetensors", seed=damage == "other_seed")
    content = checkpoint.read_bytes()
    if damage == "no_meta":
        save_file(load_file(checkpoint), checkpoint)
    elif not damage.startswith("other"):
        broken = {"empty": b"", "cut": content[: len(content) // 2], "text": b"not at all" * 99}
        checkpoint.write_bytes(broken.get(damage) or (pickle.dumps(Trap(str(ran))) if damage == "pickle" else b""))
    with pytest.warns(UserWarning, match=r"checkpoint .*c\.safetensors cannot be used .*starts over"):
        result = fit(TINY, recipe, checkpoint=checkpoint)
    assert numbers(result) == numbers(fit(TINY, recipe))
    assert not checkpoint.exists()
    assert not ran.exists()


def test_an_interrupted_training_goes_on_from_its_checkpoint_and_not_from_the_initial_weights(
    tmp_path: Path, interrupted: Callable[..., Path]
) -> None:
    recipe, checkpoint = changed(epochs=20, ema=0.98), tmp_path / "c.safetensors"
    initial = initial_weights(tmp_path)
    whole = fit(TINY, recipe, initial=initial)
    assert numbers(whole) != numbers(fit(TINY, recipe))
    interrupted(TINY, recipe, checkpoint, initial=initial)
    assert 1 <= len(load_curve(checkpoint)) < 20
    assert numbers(fit(TINY, recipe, initial=initial, checkpoint=checkpoint)) == numbers(whole)


def test_a_checkpoint_of_other_initial_weights_is_not_used(tmp_path: Path, interrupted: Callable[..., Path]) -> None:
    recipe, initial = changed(epochs=8), initial_weights(tmp_path)
    checkpoint = interrupted(TINY, recipe, tmp_path / "c.safetensors")
    with pytest.warns(UserWarning, match="another training"):
        result = fit(TINY, recipe, initial=initial, checkpoint=checkpoint)
    assert numbers(result) == numbers(fit(TINY, recipe, initial=initial))


def test_what_a_kill_leaves_of_a_half_written_file_is_swept_by_the_ledger(tmp_path: Path) -> None:
    weights = Ledger(tmp_path).weights_path("ab" * 32)
    save({"a": torch.zeros(2_000_000)}, weights)
    assert [path.name for path in weights.parent.iterdir()] == [weights.name]
    leftover = weights.with_name(f".{weights.name}.{os.getpid()}.temporary")  # the name that `save` writes to
    leftover.write_bytes(b"half")
    os.utime(leftover, (0, 0))
    Ledger(tmp_path)
    assert [path.name for path in weights.parent.iterdir()] == [weights.name]


def test_weights_come_back_with_the_same_logits(tmp_path: Path) -> None:
    path = tmp_path / "new" / "w.safetensors"
    result = fit(DROPOUT, changed(ema=0.5), weights=path)
    model = load_weights(DROPOUT, path)
    assert not model.training
    loss, correct = evaluate(model.to(memory_format=torch.channels_last), DROPOUT, DATA, split="val", device="cpu")
    assert loss == result.val_loss
    np.testing.assert_array_equal(correct, result.correct)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("damage", ["other_network", "other_width", "missing", "cut", "pickle"])
def test_weights_that_do_not_fit_are_refused_by_name(damage: str, tmp_path: Path) -> None:
    path, ran = tmp_path / "w.safetensors", tmp_path / "unpickled"
    wider = dataclasses.replace(TINY, head=(Stage(block="conv_norm", kernel=1, channels=40),))
    save_weights(build({"other_network": PLAIN, "other_width": wider}.get(damage, TINY)), path)
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "pickle":
        torch.save({"blocks": Trap(str(ran))}, path)
    with pytest.raises(ValueError, match=r"the weights in .*w\.safetensors are not those of tiny") as caught:
        load_weights(TINY, path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(path))
    assert not ran.exists()
