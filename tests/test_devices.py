"""What a training does with the device that it is on: half precision, where images lie, how much memory there is."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import case
from safetensors import safe_open
from tiny import ALL_ON, DATA, PLAIN, RECIPE, TINY, changed, fit, numbers, reference

from scalesearch import machine
from scalesearch.memory import memory
from scalesearch.network import Network
from scalesearch.training import Diverged, images, loop, out_of_memory, train
from scalesearch.training.out_of_memory import OutOfMemory, Room, explanation

pytestmark = pytest.mark.usefixtures("one_thread")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
MIB = 1 << 20


def test_a_training_in_float16_learns_as_one_in_float32() -> None:
    half = fit(TINY, RECIPE, precision="float16")
    assert half.val_loss == pytest.approx(reference().val_loss, rel=0.1)
    assert numbers(half) != numbers(reference())
    assert numbers(half) == numbers(fit(TINY, changed(autocast="float16")))


def test_the_scale_of_a_loss_in_float16_is_in_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a training that never overflowed does not begin again at the usual scale."""
    first = torch.amp.GradScaler("cpu", init_scale=2.0**40).state_dict()  # overflows until it has been halved often
    monkeypatch.setattr(loop.Checkpoint, "resume", lambda _: loop.Progress([], 0.0, scaler=first))
    checkpoint, seen = tmp_path / "c.safetensors", []
    write = loop.Checkpoint.write

    def look(self: loop.Checkpoint, done: loop.Progress) -> None:
        write(self, done)
        with safe_open(checkpoint, framework="pt") as file:
            seen.append(file.metadata()["scaler"])

    monkeypatch.setattr(loop.Checkpoint, "write", look)
    fit(TINY, RECIPE, precision="float16", checkpoint=checkpoint, checkpoint_seconds=0)
    scales = [float(re.findall(r'"scale": ([\d.]+)', one)[0]) for one in seen]
    assert scales == sorted(scales, reverse=True)
    assert scales[0] <= 2.0**39
    assert scales[-1] < 2.0**36


def test_gradients_that_never_fit_into_float16_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "LEAST_SCALE", 2.0**17)
    with pytest.raises(Diverged, match=r"not finite in float16, epoch 1 of 2 \(seed 0\)\. recipe.autocast=off trains"):
        fit(TINY, RECIPE, precision="float16")


@pytest.mark.parametrize("precision", ["int8", "half", "fp16", "FLOAT32", "16"])
def test_another_precision_is_refused(precision: str) -> None:
    with pytest.raises(ValueError, match=f"precision is '{precision}'; it must be one of float32, bfloat16, float16"):
        fit(TINY, RECIPE, precision=precision)


def test_tf32_and_the_choice_of_convolutions_hold_for_a_training_and_are_set_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def now() -> tuple[bool, bool, bool]:
        cudnn = torch.backends.cudnn
        return torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark

    before = now()
    with machine.gpu_settings():
        assert now() == before  # no GPU, no change
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with machine.gpu_settings(), machine.gpu_settings():
        assert now() == (True, True, True)
    assert now() == before
    with pytest.raises(KeyError), machine.gpu_settings():
        raise KeyError
    assert now() == before
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    for override, expected in ((None, "on"), ("0", "off"), ("1", "on")):
        monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
        if override is not None:
            monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", override)
        here = machine.environment()
        assert (here["device"], here["tf32"], here["cudnn_benchmark"]) == ("Tesla T4", expected, "on")


def test_what_is_recorded_of_a_cpu_is_what_it_was() -> None:
    names = {"torch", "python", "host", "machine", "processor", "threads", "device"}
    assert torch.cuda.is_available() or machine.environment().keys() == names


def test_images_that_take_too_much_of_a_gpu_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of what is free, or reserved by this process and unused, is where it ends."""
    size = DATA.train_images.nbytes
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: size)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: size // 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3 * size, 100 * size))
    assert images._placed(DATA.train_images, torch.device("cuda")) is DATA.train_images
    cpu = torch.device("cpu")
    assert images.moved(DATA.train_images, cpu) is DATA.train_images
    assert images.resident(DATA, "train", 8, cpu) is images.resized(DATA, "train", 8)


def explained(network: Network, room: Room, **fields: Any) -> str:
    return explanation(network, changed(**fields), DATA, room)


def test_what_is_said_to_fit_fits_and_twice_of_it_does_not() -> None:
    """For a table of rooms: the batch size, the number of trainings and the resolution, each by the estimate."""

    def asked(network: Network, batch: int, there: int) -> float:
        number = 600 + 101 if 701 * large.resolution**2 <= images.SHARE * there else 0
        return (number * large.resolution**2 + memory(network, batch_size=batch).training) / out_of_memory.SHARE

    large = replace(TINY, resolution=64)
    for total, others in [(800, 0), (40, 0), (40, 20), (10, 0), (10, 8), (6, 1), (1, 0), (0, 0)]:
        room = Room("Tesla T4", total * MIB, others * MIB)
        words, left = explained(large, room), room.total - room.others
        with case(room):
            assert words.startswith("a training of tiny at 64 px with recipe.batch_size=64 takes about ")
            assert f"Tesla T4 has {total:.1f} MiB" in words
            assert words.endswith("Then give the same command with retry=true")
            batches = [int(one) for one in re.findall(r"fit: recipe\.batch_size=(\d+)", words)]
            for batch in batches:
                assert asked(large, batch, room.total) <= left
                assert batch == 32 or asked(large, 2 * batch, room.total) > left
            if not batches:
                assert asked(large, 2, room.total) > left
            for number in re.findall(r"(\d+) such trainings? at a time", words):
                assert others
                assert int(number) * asked(large, 64, room.total) <= room.total
            for side in re.findall(r"a proxy of (\d+) px", words):
                assert asked(replace(large, resolution=int(side)), 64, room.total) <= left
            assert ("A smaller proxy is needed" in words) == ("would fit" not in words)


def test_torch_s_words_of_too_little_memory_become_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a GPU, of the CPU (made by asking it for an exbyte), and Python's; any other error stays what it is."""

    def on_cpu(*_: Any) -> torch.Tensor:
        return torch.empty(1 << 60, dtype=torch.uint8)

    def on_gpu(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    def in_python(*_: Any) -> torch.Tensor:
        raise MemoryError

    for fault in (on_cpu, on_gpu, in_python):
        monkeypatch.setattr(images, "resident", fault)
        with case(fault.__name__), pytest.raises(OutOfMemory, match="a training of tiny at 8 px with"):
            fit(TINY, RECIPE)

    def other(*_: Any) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(images, "resident", other)
    with pytest.raises(RuntimeError, match="an illegal memory access"):
        fit(TINY, RECIPE)


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("precision", machine.PRECISIONS)
def test_a_gpu_gives_the_same_numbers_wherever_the_images_lie(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    recipe = changed(**ALL_ON)
    for network in (TINY, PLAIN):
        images._kept.clear()
        there = train(network, recipe, DATA, seed=0, device="cuda", precision=precision)
        assert {one.device.type for one in images._kept.values()} == {"cuda"}
        monkeypatch.setattr(images, "SHARE", 0.0)
        images._kept.clear()
        here = train(network, recipe, DATA, seed=0, device="cuda", precision=precision)
        assert {one.device.type for one in images._kept.values()} == {"cpu"}
        monkeypatch.undo()
        assert here.val_loss == pytest.approx(there.val_loss, rel=0.05)
    images._kept.clear()


@pytest.mark.gpu
@GPU
def test_images_are_brought_to_a_gpu_once() -> None:
    place = torch.device("cuda")
    first = images.resident(DATA, "train", 11, place)
    assert first.device.type == "cuda"
    assert images.resident(DATA, "train", 11, place) is first
    assert torch.equal(first.cpu(), images.resized(DATA, "train", 11))


@pytest.mark.gpu
@GPU
def test_a_gpu_without_room_says_what_would_fit_and_trains_it_afterwards() -> None:
    large = replace(TINY, resolution=64)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(48 * MIB / total)
    try:
        with pytest.raises(OutOfMemory, match=r"recipe\.batch_size="):
            train(large, changed(batch_size=512), DATA, seed=0, device="cuda")
        assert train(large, changed(batch_size=8, epochs=1), DATA, seed=0, device="cuda").val_loss > 0
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
