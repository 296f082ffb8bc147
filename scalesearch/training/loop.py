"""The training loop, in one function from top to bottom.

Images stay resident as uint8, are resized once per resolution and augmented in batches on the device
(`images`). A training is a function of (network, recipe, data, seed): on the CPU, with the same
library versions and thread count, it gives the same numbers bit for bit.

Shapes: B images of a batch, N of a split, K classes.
"""

from __future__ import annotations

import base64
import copy
import dataclasses
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from scalesearch.data import Data
from scalesearch.kernels import accelerate
from scalesearch.machine import HALF, PRECISIONS, freed_memory_kept, gpu_settings, torch_device
from scalesearch.model import build, folded, identity
from scalesearch.network import AnyNetwork, Factory
from scalesearch.pretrained import read, start
from scalesearch.training.checkpoint import Checkpoint, Progress, save_weights, set_chance
from scalesearch.training.images import Batches, moved, resident, resize
from scalesearch.training.metrics import ACCURACY, Scored, score
from scalesearch.training.objective import judged, loss_function, probabilities
from scalesearch.training.out_of_memory import out_of_memory_explained
from scalesearch.training.recipe import Recipe, check_average

LEAST_SCALE = 2**-10  # of a loss in float16, which begins at 2^16 and is halved for each step that is left out


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """What a training leaves. Accuracies are fractions; `correct` has a bool per validation image, in their order.

    Where the recipe has another metric than accuracy, `val_accuracy` is its value, and `parts` (N,), `chance` and
    `chance_deviation` are as in `metrics.Scored`.
    """

    val_accuracy: float
    val_loss: float
    correct: np.ndarray[Any, np.dtype[np.bool_]]
    curve: tuple[dict[str, float], ...]  # one entry per epoch: epoch, train_loss, learning_rate
    train_seconds: float
    images_per_second: float
    parts: np.ndarray[Any, np.dtype[np.float32]] | None = None
    chance: float | None = None
    chance_deviation: float | None = None
    kernels: str | None = None  # which blocks were trained by `kernels.accelerate`, in its words

    @property
    def by_image(self) -> np.ndarray[Any, Any]:
        """(N,) what each validation image contributes to `val_accuracy`, which is the mean of these."""
        return self.correct if self.parts is None else self.parts

    def to_json(self) -> dict[str, Any]:
        packed = base64.b64encode(np.packbits(self.correct).tobytes()).decode()
        values = dataclasses.asdict(self) | {"correct": packed, "num_val": len(self.correct), "curve": list(self.curve)}
        if self.parts is not None:
            values["parts"] = base64.b64encode(self.parts.astype("<f4").tobytes()).decode()
        return {name: value for name, value in values.items() if value is not None}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Result:
        bits = np.unpackbits(np.frombuffer(base64.b64decode(values["correct"]), np.uint8), count=values["num_val"])
        rest = {k: v for k, v in values.items() if k not in ("correct", "num_val", "curve", "parts")}
        if "parts" in values:
            rest["parts"] = np.frombuffer(base64.b64decode(values["parts"]), "<f4")
        return Result(**rest, correct=bits.astype(bool), curve=tuple(values["curve"]))


class Diverged(ValueError):  # noqa: N818 - what a training did
    """The loss became nan or infinite: a failure, never a score."""


@freed_memory_kept()
@gpu_settings()
@out_of_memory_explained
def train(
    network: AnyNetwork,
    recipe: Recipe,
    data: Data,
    *,
    seed: int,
    device: str | None = None,
    precision: str | None = None,
    initial: Path | None = None,
    weights: Path | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 30.0,
) -> Result:
    """Train `network` on the training split and score it once on the validation split.

    Args:
        device: torch device; None takes a GPU where there is one.
        precision: "float32", "bfloat16" (autocast) or "float16" (autocast, the loss scaled so that gradients do not
            vanish); None is what the recipe says, its "auto" decided by a timing now.
        initial: file of weights by place (`pretrained.read`), which the layers that fit start from.
        weights: safetensors file that the trained weights are written to, atomically.
        checkpoint: safetensors file written every `checkpoint_seconds`, in the midst of an epoch too, from which the
            same call goes on after an interruption, with the same numbers; removed at the end. One that is damaged,
            or of another training, is not used: a warning says so, and the training starts over.

    Raises:
        Diverged: a loss is not finite.
        OutOfMemory: the device has less memory than it takes; it says what would fit.
        ValueError: another precision.
    """
    from scalesearch.training.timing import faster_precision  # here, since it trains to time

    place = torch_device(device)
    started = time.perf_counter()

    # The network, its optimizer and the average of its weights.
    torch.manual_seed(seed)
    model = build(network)
    if initial is not None:
        start(model, network, read(initial))
    precision = precision or recipe.precision or faster_precision(network, recipe, device=str(place))
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
    autocast = torch.autocast(place.type, HALF.get(precision), enabled=precision in HALF)
    scaler = torch.amp.GradScaler(place.type, enabled=precision == "float16")
    layout = _layout(model, network, recipe, place, precision)
    model = model.to(place).to(memory_format=layout)
    accelerated = accelerate(model, layout) if place.type == "cpu" and precision == "float32" else None
    decayed = [p for p in model.parameters() if _is_decayed(p)]
    others = [p for p in model.parameters() if not _is_decayed(p)]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
        fused=True,
    )
    if recipe.momentum:
        # What torch starts from as well; made here, so that a checkpoint finds the place of every tensor.
        for parameter in (*decayed, *others):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    averaged = (
        AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=True) if recipe.ema else None  # type: ignore[no-untyped-call]
    )

    # The images, augmented in batches on the device, and the steps.
    loss_of = loss_function(recipe, data.train_labels.to(place), network.num_classes)
    batches = Batches(data, recipe, network.resolution, place, layout)
    steps, num_images = batches.steps, len(data.train_images)
    total_steps = recipe.num_steps(num_images)
    check_average(recipe, num_images)

    # What an interrupted training goes on from.
    what = [identity(network), recipe.values(), data.fingerprint, seed]
    kept = Checkpoint(
        checkpoint,
        of=json.dumps(what if initial is None else [*what, initial.stem], sort_keys=True),
        modules={"model": model, "averaged": averaged},
        optimizer=optimizer,
        interval_seconds=checkpoint_seconds,
    )
    resumed = kept.resume()
    curve, seconds_before = resumed.curve, resumed.seconds
    if resumed.scaler:
        scaler.load_state_dict(dict(resumed.scaler))

    model.train()
    for epoch in range(len(curve), math.ceil(total_steps / steps)):
        torch.manual_seed(_mixed(seed, epoch))  # dropout; an epoch depends on nothing that came before but weights
        loss_sum = torch.zeros((), device=place) + resumed.loss_sum
        steps_now = min(steps, total_steps - epoch * steps)
        set_chance(resumed.chance)
        first, resumed = resumed.step, Progress([], 0.0)
        for step, (x, y, share) in enumerate(batches.epoch(seed, epoch, first, steps_now), first):
            rate = recipe.learning_rate * _schedule(recipe, (epoch * steps + step) / total_steps)
            for group in optimizer.param_groups:
                group["lr"] = rate

            with autocast:
                logits = (accelerated or model)(x).float()  # (B, K)
                loss = loss_of(logits, y)
                if recipe.mixup:
                    other = loss_of(logits, y.flip(0))
                    loss = share * loss + (1 - share) * other
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)  # none where a gradient of float16 is not finite, and the scale is halved
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            if averaged is not None:
                averaged.update_parameters(model)
            loss_sum += loss.detach()
            if kept.due and step + 1 < steps_now:
                spent = seconds_before + time.perf_counter() - started
                kept.write(Progress(curve, spent, step + 1, loss_sum.item(), scaler=scaler.state_dict()))

        train_loss = loss_sum.item() / steps_now
        if not math.isfinite(train_loss):
            kept.remove()
            raise Diverged(
                f"diverged: the training loss is {train_loss} in epoch {epoch + 1} of {recipe.epochs:g} "
                f"(seed {seed}). Lower recipe.learning_rate (now {recipe.learning_rate:g})"
            )
        if scaler.get_scale() < LEAST_SCALE:
            kept.remove()
            raise Diverged(
                f"diverged: gradients are not finite in float16, epoch {epoch + 1} of {recipe.epochs:g} (seed {seed}). "
                "recipe.autocast=off trains in float32"
            )
        curve.append({"epoch": epoch + 1, "train_loss": train_loss, "learning_rate": rate})
        if kept.due and (epoch + 1) * steps < total_steps:
            spent = seconds_before + time.perf_counter() - started
            kept.write(Progress(curve, spent, scaler=scaler.state_dict()))

    final = averaged.module if averaged is not None else model
    seconds = seconds_before + time.perf_counter() - started
    loss_value, correct, scored = assess(final, network, recipe, data, split="val", device=place)
    if not math.isfinite(loss_value):
        kept.remove()
        raise Diverged(f"diverged: the validation loss is {loss_value} (seed {seed}). Lower recipe.learning_rate")
    if weights is not None:
        save_weights(final, weights)
    kept.remove()
    return Result(
        **scores(correct, scored),
        val_loss=loss_value,
        correct=correct,
        curve=tuple(curve),
        train_seconds=seconds,
        images_per_second=total_steps * batches.size / seconds,
        kernels=None if accelerated is None else accelerated.used,
    )


def scores(correct: np.ndarray[Any, np.dtype[np.bool_]], scored: Scored | None) -> dict[str, Any]:
    """The fields of a `Result` that say what the answers are worth; `scored` is None for plain accuracy."""
    if scored is None:
        return {"val_accuracy": float(correct.mean())}
    return {
        "val_accuracy": scored.value,
        "parts": scored.by_image,
        "chance": scored.chance,
        "chance_deviation": scored.chance_deviation,
    }


def evaluate(
    model: nn.Module, network: AnyNetwork, data: Data, *, split: str, device: str | torch.device
) -> tuple[float, np.ndarray[Any, np.dtype[np.bool_]]]:
    """(mean loss, a bool per image whether it is right) on "val" or "test", in float32; see `objective.judged`."""
    loss, correct, _, _ = _answers(model, network, data, split=split, device=device, scored=False)
    return loss, correct


def assess(
    model: nn.Module, network: AnyNetwork, recipe: Recipe, data: Data, *, split: str, device: str | torch.device
) -> tuple[float, np.ndarray[Any, np.dtype[np.bool_]], Scored | None]:
    """As `evaluate`, and what the recipe's metric says; None for plain accuracy. Raises: ValueError, as `score`."""
    scored = recipe.metric is not None or data.val_labels.ndim == 2
    loss, correct, logits, labels = _answers(model, network, data, split=split, device=device, scored=scored)
    if not scored or not math.isfinite(loss):
        return loss, correct, None
    return loss, correct, score(recipe.metric or ACCURACY, probabilities(logits, labels).numpy(), labels.numpy())


@gpu_settings()
@torch.no_grad()
def _answers(
    model: nn.Module, network: AnyNetwork, data: Data, *, split: str, device: str | torch.device, scored: bool
) -> tuple[float, np.ndarray[Any, np.dtype[np.bool_]], Tensor, Tensor]:
    """(mean loss, whether each image is right (N,), logits (N, K), labels), the latter two on the CPU.

    Logits take 4 GB for a million images of a thousand classes: unless they are `scored` there are none, (0, K).
    """
    model = folded(model.eval())
    device = torch.device(device)
    if split == "val":
        images, labels = resident(data, "val", network.resolution, device), data.val_labels
    else:
        images, labels = data.test()
        images = resize(images, network.resolution)
    mean, std = (torch.tensor(v, device=device).mul(255).view(1, -1, 1, 1) for v in (data.mean, data.std))
    loss, correct, given = torch.zeros((), device=device, dtype=torch.float64), [], []
    batch = max(1, min(500, 2**22 // network.resolution**2))  # 83 of 224 px: less memory than their training took
    for x, y in zip(images.split(batch), labels.to(device).split(batch), strict=True):  # type: ignore[no-untyped-call]
        logits = model((moved(x, device).float() - mean) / std)
        loss_here, right = judged(logits, y)
        loss += loss_here
        correct.append(right)
        given.append(logits if scored else logits[:0])
    return loss.item() / len(labels), torch.cat(correct).cpu().numpy(), torch.cat(given).cpu(), labels


def _is_decayed(parameter: nn.Parameter) -> bool:
    learned = parameter.ndim == 3 and len(parameter) == 1  # (1, N, C): a class token, positions
    return parameter.ndim > 1 and not learned


def _schedule(recipe: Recipe, progress: float) -> float:
    """The learning rate's share of its highest value at `progress`, 0 to 1."""
    if progress < recipe.warmup:
        return max(0.04, progress / recipe.warmup)
    if recipe.schedule == "steps":
        return 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01
    rest = (progress - recipe.warmup) / (1 - recipe.warmup)
    return 0.5 + 0.5 * math.cos(math.pi * rest) if recipe.schedule == "cosine" else 1 - rest


def _layout(
    model: nn.Module, network: AnyNetwork, recipe: Recipe, device: torch.device, precision: str
) -> torch.memory_format:
    """The layout of images in memory that `model` is trained in.

    Never channels_last in float32 on a CPU with a strided 1 x 1 convolution of few channels: the gradient of its
    weights is written past the end of a buffer (oneDNN issue 6035; fewer than 8 channels with AVX2, than 16 with
    AVX-512), which ends the process, hangs it or, at worst, changes numbers elsewhere. Nor with a network of the user's
    that has a `view` which needs the other layout.
    """
    overruns = any(
        isinstance(part, nn.Conv2d)
        and part.kernel_size == (1, 1)
        and part.stride != (1, 1)
        and part.in_channels // part.groups < 16
        for part in model.modules()
    )
    if not recipe.channels_last or (overruns and device.type == "cpu" and precision == "float32"):
        return torch.contiguous_format
    if isinstance(network, Factory) and not _takes_channels_last(model, network):
        return torch.contiguous_format
    return torch.channels_last


def _takes_channels_last(model: nn.Module, network: Factory) -> bool:
    """Whether a forward pass of a copy that works with images in the usual layout works in this one.

    No backward pass: that of a strided 1 x 1 convolution is what `_layout` keeps from this layout in float32.
    """

    def works(layout: torch.memory_format) -> bool:
        try:
            copied = copy.deepcopy(model).to(memory_format=layout).eval()
            side = network.resolution
            images = torch.zeros(2, network.in_channels, side, side).contiguous(memory_format=layout)
            copied(images)
        except Exception:  # whatever code of the user's raises
            return False
        return True

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        return works(torch.channels_last) or not works(torch.contiguous_format)


def _mixed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> np.uint64(1))
