"""The training loop: what a recipe does to it, what it starts from, and how it scores."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import DATA, DROPOUT, PLAIN, RECIPE, TINY, changed, fit, initial_weights, numbers, reference
from torch import nn

from scalesearch.model import build
from scalesearch.network import Network, Stage
from scalesearch.training import Diverged, Result, evaluate, images, load_weights, loop, train

pytestmark = pytest.mark.usefixtures("one_thread")  # as many as a worker has: sums are added up in the same order
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


def test_another_seed_gives_other_numbers() -> None:
    other = fit(TINY, RECIPE, seed=1)
    assert other.curve != reference().curve
    assert other.val_loss != reference().val_loss


def test_what_a_process_trained_before_changes_nothing() -> None:
    fit(DROPOUT, changed(ema=0.8), seed=5)
    torch.rand(7)
    np.random.seed(3)
    assert numbers(fit(TINY, RECIPE)) == numbers(reference())


def test_a_part_of_an_epoch_is_a_complete_schedule_of_its_first_batches() -> None:
    half, whole = (fit(TINY, changed(epochs=epochs)) for epochs in (0.5, 1))
    images = [result.images_per_second * result.train_seconds for result in (half, whole)]
    batches = [round(number / changed().batch_size) for number in images]
    assert batches[0] == round(batches[1] / 2) < batches[1]
    last_step = changed().learning_rate / batches[0] / (1 - changed().warmup)  # of its own way down, to zero
    assert half.curve[0]["learning_rate"] == pytest.approx(last_step)
    longer = fit(TINY, changed(epochs=1.5))
    assert [row["epoch"] for row in longer.curve] == [1, 2]


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero(schedule: str, warmup: float) -> None:
    recipe = changed(schedule=schedule, warmup=warmup)
    shares = [loop._schedule(recipe, step / 1000) for step in range(1001)]
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


def test_the_curve_has_the_learning_rate_of_each_epoch_s_last_step() -> None:
    recipe = changed(epochs=4, warmup=0.0)
    curve = fit(TINY, recipe).curve
    steps = 600 // 64
    expected = [0.2 * (1 - ((epoch + 1) * steps - 1) / (4 * steps)) for epoch in range(4)]
    assert [entry["learning_rate"] for entry in curve] == pytest.approx(expected)


def left_by_decay(network: Network, directory: Path) -> dict[str, float]:
    """Norm of each tensor after training with weight decay, as a share of the norm after training without it.

    Steps are so small that both trainings see the same gradients: what differs is the decay itself.
    """
    ends = []
    for decay in (0.0, 1.0):
        recipe = changed(epochs=1, momentum=0.0, learning_rate=1e-3, weight_decay=decay, warmup=0.0)
        fit(network, recipe, weights=directory / "w.safetensors")
        ends.append(load_file(directory / "w.safetensors"))
    return {name: float(ends[1][name].norm() / end.norm()) for name, end in ends[0].items() if end.is_floating_point()}


def test_weight_decay_is_for_weights_and_not_for_norms_and_biases(tmp_path: Path) -> None:
    start, kept = build(TINY).state_dict(), left_by_decay(TINY, tmp_path)
    shrunk = 1 - sum(1e-3 * (1 - step / 9) for step in range(9))  # 9 steps, linear to zero
    weights = [name for name, value in start.items() if value.ndim > 1]
    ones = [name for name in start if name.endswith("norm.weight")]  # start at 1
    assert len(weights) >= 5
    assert ones
    for name in (*weights, *ones):
        assert kept[name] == pytest.approx(shrunk if name in weights else 1, abs=1e-3), name


def test_weight_decay_is_not_for_learned_tokens(tmp_path: Path) -> None:
    kept = left_by_decay(VIT, tmp_path)
    for name in ("blocks.0.class_token.weight", "blocks.0.position.weight"):
        assert kept[name] == pytest.approx(1, abs=2e-4), name
    assert kept["classifier.weight"] < 0.999


def test_a_training_starts_from_the_initial_weights(tmp_path: Path) -> None:
    initial, still = initial_weights(tmp_path), changed(epochs=1, momentum=0.0, learning_rate=1e-8, weight_decay=0.0)
    trained = []
    for seed in (0, 1):  # which then draws only the order of the images
        fit(TINY, still, seed=seed, initial=initial, weights=tmp_path / "t.safetensors")
        trained.append(load_file(tmp_path / "t.safetensors"))
    begun = load_file(tmp_path / "tiny.safetensors")
    for name, _ in build(TINY).named_parameters():  # statistics are those of the images
        for after in trained:
            assert torch.allclose(after[name], begun[name], atol=1e-5), name


def test_damaged_initial_weights_are_a_failure_and_no_training(tmp_path: Path) -> None:
    initial = initial_weights(tmp_path)
    initial.write_bytes(initial.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"initial weights in .* are damaged"):
        fit(TINY, RECIPE, initial=initial)


def test_flip_and_crop_leave_the_pixels_of_an_image_alone() -> None:
    # An image that is the same mirrored, and one colour so that a crop only brings in the black margin.
    white = torch.full_like(DATA.train_images, 200)
    white[0] = 0  # a spread, for the norm
    flat = dataclasses.replace(DATA, train_images=white, fingerprint="flat")
    plain, flipped = (train(TINY, changed(flip=flip), flat, seed=0, device="cpu") for flip in (False, True))
    assert plain.curve == flipped.curve
    cropped = train(TINY, changed(crop_padding=0.125), flat, seed=0, device="cpu")
    assert cropped.curve != plain.curve


def test_more_images_a_step_than_there_are_is_one_step_of_all() -> None:
    result = fit(TINY, changed(batch_size=10_000))
    assert len(result.curve) == 2
    assert result.images_per_second * result.train_seconds == pytest.approx(2 * 600)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_training_that_diverges_is_no_score(tmp_path: Path, checkpointed: bool) -> None:
    checkpoint = tmp_path / "c.safetensors" if checkpointed else None
    recipe = changed(learning_rate=100.0, momentum=0.99, weight_decay=1.0, epochs=12, warmup=0.0)
    with pytest.raises(Diverged, match=r"diverged.*loss is (nan|inf).*Lower recipe\.learning_rate"):
        fit(PLAIN, recipe, weights=tmp_path / "w.safetensors", checkpoint=checkpoint, checkpoint_seconds=0)
    assert list(tmp_path.iterdir()) == []


def test_it_learns() -> None:
    result = fit(TINY, changed(epochs=10))
    assert result.val_accuracy > 0.8  # chance is 0.1
    assert result.curve[-1]["train_loss"] < result.curve[0]["train_loss"] * 0.7
    assert result.val_accuracy == result.correct.mean()
    assert len(result.correct) == 101
    assert result.train_seconds > 0


@pytest.mark.parametrize("count", [1, 7, 8, 9, 101])
def test_a_result_survives_json_exactly(count: int) -> None:
    correct = np.random.default_rng(count).random(count) < 0.5
    result = dataclasses.replace(reference(), correct=correct, val_accuracy=float(correct.mean()), val_loss=0.1 + 0.2)
    again = Result.from_json(json.loads(json.dumps(result.to_json(), allow_nan=False)))
    assert again.correct.dtype == np.bool_
    np.testing.assert_array_equal(again.correct, correct)
    assert numbers(again) == numbers(result)
    assert (again.train_seconds, again.images_per_second) == (result.train_seconds, result.images_per_second)


def test_mean_and_std_of_the_training_images_are_applied() -> None:
    class Seen(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.x = x
            return torch.zeros(len(x), 10)

    seen = Seen()
    loss, correct = evaluate(seen, TINY, DATA, split="val", device="cpu")
    expected = (DATA.val_images.float() / 255 - DATA.mean[0]) / DATA.std[0]
    torch.testing.assert_close(seen.x, expected)
    assert loss == pytest.approx(math.log(10))
    np.testing.assert_array_equal(correct, (DATA.val_labels == 0).numpy())


def test_images_of_one_resolution_are_not_taken_for_another_s() -> None:
    sizes = {
        (split, side): images.resized(DATA, split, side).shape for split in ("train", "val") for side in (8, 11, 8)
    }
    assert sizes == {
        (split, side): (count, 1, side, side) for split, count in (("train", 600), ("val", 101)) for side in (8, 11)
    }
    other = dataclasses.replace(DATA, val_images=255 - DATA.val_images, fingerprint="inverted")
    assert not torch.equal(images.resized(other, "val", 11), images.resized(DATA, "val", 11))
    assert images.resized(DATA, "val", 8) is DATA.val_images  # no copy where none is needed
    assert images.resized(DATA, "val", 11) is images.resized(DATA, "val", 11)


def test_what_is_kept_resized_has_a_limit() -> None:
    for side in range(100, 280, 12):
        images.resized(DATA, "train", side)
        assert sum(one.nbytes for one in images._kept.values()) <= images.KEPT_BYTES
    images._kept.clear()


def test_a_narrow_strided_shortcut_overruns_no_buffer() -> None:
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
    recipe = dataclasses.asdict(changed(channels_last=True))
    script = (
        "import json, sys\n"
        "from scalesearch.training.worker import pace_specification\n"
        "networks, recipe = json.loads(sys.argv[1])\n"
        "for table in networks:\n"
        "    print(table['stem'], flush=True)\n"
        "    request = {'network': table, 'name': 'narrow', 'recipe': recipe, 'precision': 'float32'}\n"
        "    assert pace_specification(request)['train_seconds'] > 0\n"
    )
    words = [sys.executable, "-c", script, json.dumps([networks, recipe])]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, f"{ended.stdout}{ended.stderr}"
    assert len(ended.stdout.splitlines()) == len(networks)


def test_channels_last_changes_no_logit() -> None:
    torch.manual_seed(0)
    model = build(TINY).eval()
    _, one = evaluate(model, TINY, DATA, split="val", device="cpu")
    loss_last, two = evaluate(model.to(memory_format=torch.channels_last), TINY, DATA, split="val", device="cpu")
    loss = evaluate(model.to(memory_format=torch.contiguous_format), TINY, DATA, split="val", device="cpu")[0]
    assert loss_last == pytest.approx(loss, rel=1e-5)
    np.testing.assert_array_equal(one, two)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("network", [TINY, PLAIN], ids=["depthwise", "plain"])
def test_a_gpu_trains_with_autocast(network: Network, tmp_path: Path) -> None:
    recipe = changed(autocast="bfloat16", epochs=6, ema=0.5, mixup=0.2, crop_padding=0.125, flip=True)
    result = train(network, recipe, DATA, seed=0, device="cuda", weights=tmp_path / "w.safetensors")
    assert result.val_accuracy > 0.3
    loss, _ = evaluate(load_weights(network, tmp_path / "w.safetensors"), network, DATA, split="val", device="cpu")
    assert loss == pytest.approx(result.val_loss, rel=0.05)
