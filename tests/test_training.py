from __future__ import annotations

import dataclasses
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from scalesearch import pretrained, training
from scalesearch.data import Data, DataSpec, load
from scalesearch.evaluation import Evaluation
from scalesearch.executor import LocalExecutor, WorkerDied
from scalesearch.machine import instructions
from scalesearch.model import build
from scalesearch.network import Network, Stage, from_table
from scalesearch.training import Diverged, Recipe, Result, evaluate, load_weights, save_weights, train

TINY = Network(
    name="tiny",
    resolution=8,
    in_channels=1,
    num_classes=10,
    activation="relu",
    stem=(Stage(block="conv_norm", channels=8),),
    stages=(Stage(block="mbconv", channels=12, expand=2, stride=2),),
    head=(Stage(block="conv_norm", kernel=1, channels=32),),
)
PLAIN = dataclasses.replace(TINY, stages=(Stage(block="conv_norm", channels=12),))
DROPOUT = dataclasses.replace(TINY, dropout=0.3)
VIT = Network(
    name="vit",
    resolution=8,
    in_channels=1,
    num_classes=10,
    activation="gelu",
    stem=(Stage(block="patch_embed", channels=16, stride=4),),
    stages=(Stage(block="transformer", channels=16, heads=2, expand=2),),
    head=(Stage(block="class_token"),),
)
DIGITS = DataSpec("digits", num_train=600, num_val=101)  # 101 is no multiple of 8
RECIPE = Recipe(
    epochs=2,
    batch_size=64,
    learning_rate=0.2,
    momentum=0.9,
    weight_decay=5e-4,
    label_smoothing=0.1,
    schedule="one_cycle",
    warmup=0.25,
    flip=False,
    crop_padding=0.0,
    mixup=0.0,
    ema=0.0,
    autocast="off",
    channels_last=True,
)


BFLOAT16 = pytest.mark.skipif("bfloat16" not in instructions(), reason="this CPU would emulate bfloat16")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:  # as many as a worker has: sums are added up in the same order
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data() -> Data:
    return load(DIGITS)


@pytest.fixture(scope="module")
def reference(data: Data) -> Result:
    return train(TINY, RECIPE, data, seed=0, device="cpu")


def numbers(result: Result) -> tuple[object, ...]:
    """All of a result but the times."""
    return result.val_accuracy, result.val_loss, result.correct.tobytes(), result.curve


def specification(directory: Path, network: Network, recipe: Recipe, seed: int, name: str = "a") -> dict[str, Any]:
    evaluation = Evaluation(network, recipe, load(DIGITS).fingerprint, seed)
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


class Interrupted(Exception):  # noqa: N818 - it is meant
    pass


@pytest.fixture
def interrupted() -> Iterator[Callable[..., Path]]:
    """Run a training until its first checkpoint is there, stop it at whatever it does then; the checkpoint."""

    def stop(network: Network, recipe: Recipe, data: Data, checkpoint: Path, *, seed: int = 0, **more: Any) -> Path:
        stopped = False

        def look(*_: object) -> None:
            nonlocal stopped
            if not stopped and checkpoint.exists():
                stopped = True  # once: the timer may go off again on the way out
                raise Interrupted

        signal.signal(signal.SIGALRM, look)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        with pytest.raises(Interrupted):
            train(network, recipe, data, seed=seed, device="cpu", checkpoint=checkpoint, checkpoint_seconds=0, **more)
        signal.setitimer(signal.ITIMER_REAL, 0)
        return checkpoint

    before = signal.getsignal(signal.SIGALRM)
    yield stop
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def change(**fields: Any) -> Recipe:
    return dataclasses.replace(RECIPE, **fields)


# --- the same numbers -----------------------------------------------------------------------------------------------


def test_fresh_workers_give_the_same_numbers_bit_for_bit(tmp_path: Path, reference: Result, data: Data) -> None:
    with LocalExecutor(workers=2) as executor:  # two questions at once: two processes
        asked = [
            executor.submit(training.run_specification, specification(tmp_path, TINY, RECIPE, 0, name))
            for name in ("a", "b")
        ]
        one, two = (Result.from_json(future.result()["result"]) for future in asked)
        environments = [future.result()["environment"] for future in asked]
    assert numbers(one) == numbers(two) == numbers(reference)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert environments[0] == environments[1]
    assert environments[0]["torch"] == torch.__version__
    assert environments[0]["threads"] == "1"


def test_another_seed_gives_other_numbers(reference: Result, data: Data) -> None:
    other = train(TINY, RECIPE, data, seed=1, device="cpu")
    assert other.curve != reference.curve
    assert other.val_loss != reference.val_loss


def test_what_a_process_trained_before_changes_nothing(reference: Result, data: Data) -> None:
    train(DROPOUT, change(ema=0.9), data, seed=5, device="cpu")
    torch.rand(7)
    np.random.seed(3)
    assert numbers(train(TINY, RECIPE, data, seed=0, device="cpu")) == numbers(reference)


def test_a_worker_whose_data_differ_says_so(tmp_path: Path) -> None:
    wrong = specification(tmp_path, TINY, RECIPE, 0) | {"data": "0" * 64}
    with pytest.raises(ValueError, match=r"the worker's digits is not the driver's.*expected 000000000000"):
        training.run_specification(wrong)


# --- interruption ---------------------------------------------------------------------------------------------------

ALL_ON = {"ema": 0.9, "flip": True, "crop_padding": 0.125, "mixup": 0.4, "epochs": 8}


def test_a_killed_worker_s_training_is_continued_with_the_same_numbers(tmp_path: Path, data: Data) -> None:
    recipe = change(**ALL_ON | {"epochs": 10})
    with LocalExecutor(workers=1) as executor:
        question = specification(tmp_path, DROPOUT, recipe, 3)
        first = executor.submit(train_with_checkpoints, question)
        checkpoint, pid = Path(question["checkpoint"]), tmp_path / "a.pid"
        while not checkpoint.exists():
            assert not first.done(), first.exception()
            time.sleep(0.002)
        os.kill(int(pid.read_text()), signal.SIGKILL)
        with pytest.raises(WorkerDied, match="SIGKILL"):
            first.result()
        assert checkpoint.exists()
        again = executor.submit(train_with_checkpoints, question).result()
    unbroken = train(DROPOUT, recipe, data, seed=3, device="cpu", weights=tmp_path / "b.safetensors")
    assert numbers(Result.from_json(again)) == numbers(unbroken)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert not checkpoint.exists()


@pytest.mark.parametrize(
    ("network", "recipe"),
    [
        (TINY, change(epochs=8)),
        (DROPOUT, change(**ALL_ON)),
        (DROPOUT, change(**ALL_ON, momentum=0.0, channels_last=False)),
        pytest.param(PLAIN, change(epochs=8, autocast="bfloat16"), marks=BFLOAT16),
    ],
    ids=["plain", "all_on", "no_momentum", "bfloat16"],
)
def test_an_interrupted_training_goes_on_from_its_checkpoint(
    network: Network, recipe: Recipe, data: Data, tmp_path: Path, interrupted: Callable[..., Path]
) -> None:
    unbroken = train(network, recipe, data, seed=0, device="cpu")
    checkpoint = interrupted(network, recipe, data, tmp_path / "c.safetensors")
    reached = len(load_curve(checkpoint))
    assert 0 < reached < recipe.epochs
    continued = train(network, recipe, data, seed=0, device="cpu", checkpoint=checkpoint, checkpoint_seconds=math.inf)
    assert numbers(continued) == numbers(unbroken)
    assert not checkpoint.exists()


def load_curve(checkpoint: Path) -> list[Any]:
    from safetensors import safe_open

    with safe_open(checkpoint, framework="pt") as file:
        return list(json.loads(file.metadata()["curve"]))


def test_a_continued_training_trains_only_the_epochs_that_are_missing(
    data: Data, tmp_path: Path, interrupted: Callable[..., Path]
) -> None:
    recipe = change(epochs=8)
    checkpoint = interrupted(TINY, recipe, data, tmp_path / "c.safetensors")
    # A mark in the checkpoint's own curve comes out again: these epochs were not trained a second time.
    from safetensors import safe_open

    with safe_open(checkpoint, framework="pt") as file:
        meta, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    curve = json.loads(meta["curve"])
    curve[0]["train_loss"] = 99.0
    save_file(tensors, checkpoint, meta | {"curve": json.dumps(curve)})
    result = train(TINY, recipe, data, seed=0, device="cpu", checkpoint=checkpoint)
    assert result.curve[0]["train_loss"] == 99.0
    assert [entry["epoch"] for entry in result.curve] == list(range(1, 9))
    assert result.train_seconds > float(meta["seconds"])


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "pickle", "no_meta", "other_seed", "other_recipe"])
def test_a_checkpoint_that_cannot_be_used_costs_a_warning_and_not_the_training(
    damage: str, data: Data, tmp_path: Path, interrupted: Callable[..., Path]
) -> None:
    recipe, ran = change(epochs=8), tmp_path / "unpickled"
    wrong = change(epochs=8, weight_decay=0.1) if damage == "other_recipe" else recipe
    checkpoint = interrupted(TINY, wrong, data, tmp_path / "c.safetensors", seed=damage == "other_seed")
    content = checkpoint.read_bytes()
    if damage == "no_meta":
        save_file(load_file(checkpoint), checkpoint)
    elif not damage.startswith("other"):
        broken = {"empty": b"", "cut": content[: len(content) // 2], "text": b"not at all" * 99}
        checkpoint.write_bytes(broken.get(damage) or (pickle.dumps(Trap(str(ran))) if damage == "pickle" else b""))
    with pytest.warns(UserWarning, match=r"checkpoint .*c\.safetensors cannot be used .*starts over"):
        result = train(TINY, recipe, data, seed=0, device="cpu", checkpoint=checkpoint)
    assert numbers(result) == numbers(train(TINY, recipe, data, seed=0, device="cpu"))
    assert not checkpoint.exists()
    assert not ran.exists()


class Trap:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.path),)


def test_the_trap_for_unpickling_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Trap(str(tmp_path / "sprung"))))
    assert (tmp_path / "sprung").exists()


def test_what_a_kill_leaves_of_a_half_written_file_is_swept_by_the_ledger(data: Data, tmp_path: Path) -> None:
    from scalesearch.ledger import Ledger

    ledger = Ledger(tmp_path)
    weights = ledger.weights_path("ab" * 32)
    training._save({"a": torch.zeros(2_000_000)}, weights)
    leftover = weights.with_name(f".{weights.name}.{os.getpid()}.temporary")  # the name that `_save` writes to
    assert [path.name for path in weights.parent.iterdir()] == [weights.name]
    leftover.write_bytes(b"half")
    os.utime(leftover, (0, 0))
    Ledger(tmp_path)
    assert not leftover.exists()
    assert weights.exists()


# --- the recipe -----------------------------------------------------------------------------------------------------

OTHER_VALUES = {
    "epochs": 3,
    "batch_size": 50,
    "learning_rate": 0.1,
    "momentum": 0.5,
    "weight_decay": 0.05,
    "label_smoothing": 0.0,
    "schedule": "cosine",
    "warmup": 0.5,
    "flip": True,
    "crop_padding": 0.125,
    "mixup": 0.5,
    "ema": 0.5,
    "autocast": "bfloat16",
    "channels_last": False,
}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Recipe)])
def test_every_field_of_a_recipe_changes_the_key_and_the_training(field: str, reference: Result, data: Data) -> None:
    recipe = change(**{field: OTHER_VALUES[field]})
    assert Evaluation(TINY, recipe, data.fingerprint, 0).key != Evaluation(TINY, RECIPE, data.fingerprint, 0).key
    if field == "autocast" and "bfloat16" not in instructions():
        return  # emulated it would be slow
    result = train(TINY, recipe, data, seed=0, device="cpu")
    if field == "channels_last":  # another order of additions, the same training
        assert result.val_loss == pytest.approx(reference.val_loss, rel=0.02)
    elif field == "ema":  # the training is the same, its average is evaluated
        assert result.curve == reference.curve
        assert result.val_loss != reference.val_loss
    else:
        assert result.curve != reference.curve


def test_a_part_of_an_epoch_is_a_complete_schedule_of_its_first_batches(data: Data) -> None:
    half, whole = (train(TINY, change(epochs=epochs), data, seed=0, device="cpu") for epochs in (0.5, 1))
    images = [result.images_per_second * result.train_seconds for result in (half, whole)]
    batches = [round(number / change().batch_size) for number in images]
    assert batches[0] == round(batches[1] / 2) < batches[1]
    last_step = change().learning_rate / batches[0] / (1 - change().warmup)  # of its own way down, to zero
    assert half.curve[0]["learning_rate"] == pytest.approx(last_step)
    longer = train(TINY, change(epochs=1.5), data, seed=0, device="cpu")
    assert [row["epoch"] for row in longer.curve] == [1, 2]


def test_whole_epochs_have_one_spelling() -> None:
    assert json.dumps(dataclasses.asdict(change(epochs=2.0))) == json.dumps(dataclasses.asdict(change(epochs=2)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"epochs": 0.001},
        {"epochs": "1"},
        {"epochs": True},
        {"batch_size": 1},
        {"learning_rate": 0},
        {"learning_rate": math.nan},
        {"learning_rate": "0.1"},
        {"momentum": 1},
        {"warmup": 1},
        {"ema": 1},
        {"schedule": "step"},
        {"autocast": "float16"},
    ],
    ids=str,
)
def test_a_wrong_value_is_named(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"recipe\.{name} is .*(must be a|known: )"):
        change(**wrong)


def test_equal_recipes_have_one_key() -> None:
    whole, decimal = change(mixup=1, learning_rate=1), change(mixup=1.0, learning_rate=1.0)
    assert whole == decimal
    assert Evaluation(TINY, whole, "d", 0).key == Evaluation(TINY, decimal, "d", 0).key


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero(schedule: str, warmup: float) -> None:
    recipe = change(schedule=schedule, warmup=warmup)
    shares = [training._schedule(recipe, step / 1000) for step in range(1001)]
    assert shares[0] == (1.0 if warmup == 0 else 0.04)
    assert max(shares) == shares[int(warmup * 1000)] == 1.0
    assert shares[-1] == pytest.approx(0, abs=1e-12)
    rise, fall = shares[: int(warmup * 1000) + 1], shares[int(warmup * 1000) :]
    assert rise == sorted(rise)
    assert fall == sorted(fall, reverse=True)
    middle = shares[int((warmup + 1) / 2 * 1000)]
    assert middle == pytest.approx(0.5, abs=0.01)
    quarter = shares[round((warmup + (1 - warmup) / 4) * 1000)]
    assert quarter == pytest.approx(0.75 if schedule == "one_cycle" else 0.5 + 0.5 * math.cos(math.pi / 4), abs=0.01)


def test_the_curve_has_the_learning_rate_of_each_epoch_s_last_step(data: Data) -> None:
    recipe = change(epochs=4, warmup=0.0)
    curve = train(TINY, recipe, data, seed=0, device="cpu").curve
    steps = 600 // 64
    expected = [0.2 * (1 - ((epoch + 1) * steps - 1) / (4 * steps)) for epoch in range(4)]
    assert [entry["learning_rate"] for entry in curve] == pytest.approx(expected)


def test_weight_decay_is_for_weights_and_not_for_norms_and_biases(data: Data, tmp_path: Path) -> None:
    # Steps so small that both trainings see the same gradients: what differs is the decay itself.
    start = {name: value.clone() for name, value in build(TINY).state_dict().items()}
    kept = change(epochs=1, momentum=0.0, learning_rate=1e-3, weight_decay=0.0, warmup=0.0)
    train(TINY, kept, data, seed=0, device="cpu", weights=tmp_path / "a.safetensors")
    decayed = dataclasses.replace(kept, weight_decay=1.0)
    train(TINY, decayed, data, seed=0, device="cpu", weights=tmp_path / "b.safetensors")
    without, with_decay = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    shrunk = 1 - sum(1e-3 * (1 - step / 9) for step in range(9))  # 9 steps, linear to zero
    weights = [name for name, value in start.items() if value.ndim > 1]
    assert len(weights) >= 5
    for name in weights:
        ratio = float(with_decay[name].norm() / without[name].norm())
        assert ratio == pytest.approx(shrunk, abs=1e-3), name
    ones = [name for name, value in start.items() if name.endswith("norm.weight")]  # start at 1
    assert ones
    for name in ones:
        assert float(with_decay[name].norm() / without[name].norm()) == pytest.approx(1, abs=1e-3), name


def test_weight_decay_is_not_for_learned_tokens(data: Data, tmp_path: Path) -> None:
    kept = change(epochs=1, momentum=0.0, learning_rate=1e-3, weight_decay=0.0, warmup=0.0)
    train(VIT, kept, data, seed=0, device="cpu", weights=tmp_path / "a.safetensors")
    decayed = dataclasses.replace(kept, weight_decay=1.0)
    train(VIT, decayed, data, seed=0, device="cpu", weights=tmp_path / "b.safetensors")
    without, with_decay = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    for name in ("blocks.0.class_token.weight", "blocks.0.position.weight"):
        assert float(with_decay[name].norm() / without[name].norm()) == pytest.approx(1, abs=2e-4), name
    assert float(with_decay["classifier.weight"].norm() / without["classifier.weight"].norm()) < 0.999


@pytest.fixture
def initial(tmp_path: Path) -> Path:
    """Weights of TINY by place in a file named after its digest, as the driver keeps them."""
    torch.manual_seed(99)
    save_weights(build(TINY), tmp_path / "tiny.safetensors")
    weights = pretrained.fetch(str(tmp_path / "tiny.safetensors"), [TINY], warn=print)
    path = tmp_path / f"{weights.digest}.safetensors"
    path.write_bytes(weights.content)
    return path


def test_a_training_starts_from_the_initial_weights(initial: Path, data: Data, tmp_path: Path) -> None:
    still = change(epochs=1, momentum=0.0, learning_rate=1e-8, weight_decay=0.0)
    trained = []
    for seed in (0, 1):  # which then draws only the order of the images
        train(TINY, still, data, seed=seed, device="cpu", initial=initial, weights=tmp_path / "t.safetensors")
        trained.append(load_file(tmp_path / "t.safetensors"))
    begun = load_file(tmp_path / "tiny.safetensors")
    for name, _ in build(TINY).named_parameters():  # statistics are those of the images
        for after in trained:
            assert torch.allclose(after[name], begun[name], atol=1e-5), name


def test_an_interrupted_training_goes_on_from_its_checkpoint_and_not_from_the_initial_weights(
    initial: Path, data: Data, tmp_path: Path, interrupted: Callable[..., Path]
) -> None:
    recipe, checkpoint = change(epochs=20, ema=0.99), tmp_path / "c.safetensors"
    whole = train(TINY, recipe, data, seed=0, device="cpu", initial=initial)
    assert numbers(whole) != numbers(train(TINY, recipe, data, seed=0, device="cpu"))
    interrupted(TINY, recipe, data, checkpoint, initial=initial)
    assert 1 <= len(load_curve(checkpoint)) < 20
    assert numbers(train(TINY, recipe, data, seed=0, device="cpu", initial=initial, checkpoint=checkpoint)) == numbers(
        whole
    )


def test_a_checkpoint_of_other_initial_weights_is_not_used(
    initial: Path, data: Data, tmp_path: Path, interrupted: Callable[..., Path]
) -> None:
    recipe = change(epochs=8)
    checkpoint = interrupted(TINY, recipe, data, tmp_path / "c.safetensors")
    with pytest.warns(UserWarning, match="another training"):
        result = train(TINY, recipe, data, seed=0, device="cpu", initial=initial, checkpoint=checkpoint)
    assert numbers(result) == numbers(train(TINY, recipe, data, seed=0, device="cpu", initial=initial))


def test_damaged_initial_weights_are_a_failure_and_no_training(initial: Path, data: Data) -> None:
    initial.write_bytes(initial.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"initial weights in .* are damaged"):
        train(TINY, RECIPE, data, seed=0, device="cpu", initial=initial)


def test_flip_and_crop_leave_the_pixels_of_an_image_alone(data: Data) -> None:
    # An image that is the same mirrored, and one colour so that a crop only brings in the black margin.
    white = torch.full_like(data.train_images, 200)
    white[0] = 0  # a spread, for the norm
    flat = dataclasses.replace(data, train_images=white, fingerprint="flat")
    plain, flipped = (train(TINY, change(flip=flip), flat, seed=0, device="cpu") for flip in (False, True))
    assert plain.curve == flipped.curve
    cropped = train(TINY, change(crop_padding=0.125), flat, seed=0, device="cpu")
    assert cropped.curve != plain.curve


def test_more_images_a_step_than_there_are_is_one_step_of_all(data: Data) -> None:
    result = train(TINY, change(batch_size=10_000), data, seed=0, device="cpu")
    assert len(result.curve) == 2
    assert result.images_per_second * result.train_seconds == pytest.approx(2 * 600)


# --- scores ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_training_that_diverges_is_no_score(data: Data, tmp_path: Path, checkpointed: bool) -> None:
    checkpoint = tmp_path / "c.safetensors" if checkpointed else None
    recipe = change(learning_rate=100.0, momentum=0.99, weight_decay=1.0, epochs=12, warmup=0.0)
    with pytest.raises(Diverged, match=r"diverged.*loss is (nan|inf).*Lower recipe\.learning_rate"):
        train(
            PLAIN,
            recipe,
            data,
            seed=0,
            device="cpu",
            weights=tmp_path / "w.safetensors",
            checkpoint=checkpoint,
            checkpoint_seconds=0,
        )
    assert list(tmp_path.iterdir()) == []


def test_it_learns(data: Data) -> None:
    result = train(TINY, change(epochs=10), data, seed=0, device="cpu")
    assert result.val_accuracy > 0.8  # chance is 0.1
    assert result.curve[-1]["train_loss"] < result.curve[0]["train_loss"] * 0.7
    assert result.val_accuracy == result.correct.mean()
    assert len(result.correct) == 101
    assert result.train_seconds > 0


@pytest.mark.parametrize("count", [1, 7, 8, 9, 101])
def test_a_result_survives_json_exactly(count: int, reference: Result) -> None:
    correct = np.random.default_rng(count).random(count) < 0.5
    result = dataclasses.replace(reference, correct=correct, val_accuracy=float(correct.mean()), val_loss=0.1 + 0.2)
    again = Result.from_json(json.loads(json.dumps(result.to_json(), allow_nan=False)))
    assert again.correct.dtype == np.bool_
    np.testing.assert_array_equal(again.correct, correct)
    assert numbers(again) == numbers(result)
    assert (again.train_seconds, again.images_per_second) == (result.train_seconds, result.images_per_second)


def test_mean_and_std_of_the_training_images_are_applied(data: Data) -> None:
    class Seen(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.x = x
            return torch.zeros(len(x), 10)

    seen = Seen()
    loss, correct = evaluate(seen, TINY, data, split="val", device="cpu")
    expected = (data.val_images.float() / 255 - data.mean[0]) / data.std[0]
    torch.testing.assert_close(seen.x, expected)
    assert loss == pytest.approx(math.log(10))
    np.testing.assert_array_equal(correct, (data.val_labels == 0).numpy())


def test_images_of_one_resolution_are_not_taken_for_another_s(data: Data) -> None:
    sizes = {
        (split, side): training.resized(data, split, side).shape for split in ("train", "val") for side in (8, 11, 8)
    }
    assert sizes == {
        (split, side): (count, 1, side, side) for split, count in (("train", 600), ("val", 101)) for side in (8, 11)
    }
    other = dataclasses.replace(data, val_images=255 - data.val_images, fingerprint="inverted")
    assert not torch.equal(training.resized(other, "val", 11), training.resized(data, "val", 11))
    assert training.resized(data, "val", 8) is data.val_images  # no copy where none is needed
    assert training.resized(data, "val", 11) is training.resized(data, "val", 11)


def test_what_is_kept_resized_has_a_limit(data: Data) -> None:
    for side in range(100, 280, 12):
        training.resized(data, "train", side)
        kept = sum(images.nbytes for images in training._RESIZED.values())
        assert kept <= training._RESIZED_BYTES
    training._RESIZED.clear()


def test_a_narrow_strided_shortcut_overruns_no_buffer(tmp_path: Path) -> None:
    """In a process of its own, which oneDNN issue 6035 ends, or hangs: 1 x 1, stride 2, float32, channels_last."""
    networks = [
        dataclasses.replace(
            TINY,
            resolution=16,
            stem=(Stage(block="conv", channels=channels),),
            stages=(Stage(block="preact_basic", channels=2 * channels, stride=2),),
            head=(Stage(block="norm"),),
        ).table()
        for channels in (1, 2, 6, 8, 15)
    ]
    recipe = dataclasses.asdict(change(channels_last=True))
    script = (
        "import json, sys\n"
        "from scalesearch.training import pace_specification\n"
        "networks, recipe = json.loads(sys.argv[1])\n"
        "for table in networks:\n"
        "    print(table['stem'], flush=True)\n"
        "    asked = {'network': table, 'name': 'narrow', 'recipe': recipe, 'precision': 'float32'}\n"
        "    assert pace_specification(asked)['train_seconds'] > 0\n"
    )
    words = [sys.executable, "-c", script, json.dumps([networks, recipe])]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, f"{ended.stdout}{ended.stderr}"
    assert len(ended.stdout.splitlines()) == len(networks)


def test_channels_last_changes_no_logit(data: Data) -> None:
    torch.manual_seed(0)
    model = build(TINY).eval()
    _, one = evaluate(model, TINY, data, split="val", device="cpu")
    loss_last, two = evaluate(model.to(memory_format=torch.channels_last), TINY, data, split="val", device="cpu")
    loss = evaluate(model.to(memory_format=torch.contiguous_format), TINY, data, split="val", device="cpu")[0]
    assert loss_last == pytest.approx(loss, rel=1e-5)
    np.testing.assert_array_equal(one, two)


def test_the_test_split_is_scored_from_saved_weights(data: Data, tmp_path: Path) -> None:
    question = specification(tmp_path, TINY, change(epochs=6), 0)
    training.run_specification(question)
    answer = training.test_specification(question)
    assert answer["num_test"] == 359
    assert answer["test_accuracy"] > 0.5
    assert math.isfinite(answer["test_loss"])


# --- autocast -------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("network", [TINY, PLAIN], ids=["depthwise", "plain"])
def test_a_gpu_trains_with_autocast(network: Network, data: Data, tmp_path: Path) -> None:
    recipe = change(autocast="bfloat16", epochs=6, ema=0.5, mixup=0.2, crop_padding=0.125, flip=True)
    result = train(network, recipe, data, seed=0, device="cuda", weights=tmp_path / "w.safetensors")
    assert result.val_accuracy > 0.3
    loss, _ = evaluate(load_weights(network, tmp_path / "w.safetensors"), network, data, split="val", device="cpu")
    assert loss == pytest.approx(result.val_loss, rel=0.05)


# --- weights --------------------------------------------------------------------------------------------------------


def test_weights_come_back_with_the_same_logits(data: Data, tmp_path: Path) -> None:
    path = tmp_path / "new" / "w.safetensors"
    result = train(DROPOUT, change(ema=0.5), data, seed=0, device="cpu", weights=path)
    model = load_weights(DROPOUT, path)
    assert not model.training
    loss, correct = evaluate(model.to(memory_format=torch.channels_last), DROPOUT, data, split="val", device="cpu")
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
