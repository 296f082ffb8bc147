"""Training of one proxy: the step of the grid search that costs the time.

`train` is one flat loop: images stay resident as uint8, are resized once per resolution and augmented in
batches on the device. A training is a function of (network, recipe, data, seed): on the CPU, with the same
library versions and thread count, it gives the same numbers bit for bit.

Shapes: B images of a batch, N of a split, C channels, H and W rows and columns, K classes.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from scalesearch.cost import cost
from scalesearch.data import Data, DataSpec, Description, load
from scalesearch.machine import environment, instructions
from scalesearch.model import build, identity, trust
from scalesearch.network import AnyNetwork, Factory, Network, from_table
from scalesearch.pretrained import read, start


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained. Its values are part of an evaluation's key.

    epochs: passes over the training images; of a part of one, 0.5 say, the first half of its batches.
    schedule: after a linear rise over `warmup` of the steps, "one_cycle" (straight to zero), "cosine", or "steps" (a
        tenth from half of all steps on, a hundredth from three quarters on).
    learning_rate: its highest value, for `batch_size` images a step.
    weight_decay: of convolutions and linear weights, not of norms, biases and learned tokens.
    crop_padding: the padded crop's margin as a share of the resolution; 0 switches it off.
    mixup: alpha of the beta distribution (arXiv:1710.09412); 0 switches it off.
    ema: decay per step of the averaged weights that are then evaluated; 0 switches it off.
    autocast: "auto" (bfloat16 where a short timing finds it faster, see `faster_precision`), "bfloat16" or "off".
    """

    epochs: float
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    label_smoothing: float
    schedule: str
    warmup: float
    flip: bool
    crop_padding: float
    mixup: float
    ema: float
    autocast: str
    channels_last: bool

    def __post_init__(self) -> None:
        for name, low, high in (
            ("epochs", 0.01, 10_000),
            ("batch_size", 2, 65_536),
            ("learning_rate", 1e-8, 100),
            ("momentum", 0, 0.9999),
            ("weight_decay", 0, 1),
            ("label_smoothing", 0, 0.99),
            ("warmup", 0, 0.9),
            ("crop_padding", 0, 0.5),
            ("mixup", 0, 10),
            ("ema", 0, 0.99999),
        ):
            value, whole = getattr(self, name), name == "batch_size"
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                raise ValueError(f"recipe.{name} is {value!r}; it must be a {'whole ' * whole}number")
            if not low <= value <= high:
                raise ValueError(f"recipe.{name} is {value!r}; it must be a number from {low:g} to {high:g}")
            if not whole:  # 1 and 1.0 are equal, but would be two keys
                object.__setattr__(self, name, float(value))
        if float(self.epochs).is_integer():  # as a key has had it since before there were parts of epochs
            object.__setattr__(self, "epochs", int(self.epochs))
        for name, known in (("schedule", ("one_cycle", "cosine", "steps")), ("autocast", ("auto", "bfloat16", "off"))):
            if getattr(self, name) not in known:
                raise ValueError(f"recipe.{name} is {getattr(self, name)!r}; known: {', '.join(known)}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """What a training leaves. Accuracies are fractions; `correct` has a bool per validation image, in their order."""

    val_accuracy: float
    val_loss: float
    correct: np.ndarray[Any, np.dtype[np.bool_]]
    curve: tuple[dict[str, float], ...]  # an entry an epoch: epoch, train_loss, learning_rate
    train_seconds: float
    images_per_second: float

    def to_json(self) -> dict[str, Any]:
        packed = base64.b64encode(np.packbits(self.correct).tobytes()).decode()
        return dataclasses.asdict(self) | {"correct": packed, "num_val": len(self.correct), "curve": list(self.curve)}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Result:
        bits = np.unpackbits(np.frombuffer(base64.b64decode(values["correct"]), np.uint8), count=values["num_val"])
        rest = {k: v for k, v in values.items() if k not in ("correct", "num_val", "curve")}
        return Result(**rest, correct=bits.astype(bool), curve=tuple(values["curve"]))


class Diverged(ValueError):  # noqa: N818 - what a training did
    """The loss became nan or infinite: a failure, never a score."""


def run_specification(specification: dict[str, Any]) -> dict[str, Any]:
    """What a worker runs: plain JSON in, plain JSON out; the trained weights go to the file `weights`."""
    network = _network(specification)
    recipe = Recipe(**specification["recipe"])
    data = _loaded(DataSpec(**specification["data_spec"]))
    if data.fingerprint != specification["data"]:
        raise ValueError(
            f"the worker's {data.description.name} is not the driver's: fingerprint {data.fingerprint[:12]}, "
            f"expected {specification['data'][:12]}. Do both see the same files?"
        )
    result = train(
        network,
        recipe,
        data,
        seed=specification["seed"],
        initial=Path(specification["initial"]) if "initial" in specification else None,
        weights=Path(specification["weights"]),
        checkpoint=Path(specification["checkpoint"]),
        precision=specification["precision"],
    )
    return {"result": result.to_json(), "environment": environment() | {"precision": specification["precision"]}}


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
        precision: "float32" or "bfloat16" (autocast); None is what the recipe says, its "auto" decided by a timing now.
        initial: file of weights by place (`pretrained.read`), which the layers that fit start from.
        weights: safetensors file that the trained weights are written to, atomically.
        checkpoint: safetensors file kept at ends of epochs, `checkpoint_seconds` apart, from which the same
            call goes on after an interruption, with the same numbers; removed at the end. One that is damaged, or
            of another training, is not used: a warning says so, and the training starts over.
    Errors: Diverged for a loss that is not finite.
    """
    place = _place(device)
    started = time.perf_counter()

    torch.manual_seed(seed)
    model = build(network)
    if initial is not None:
        start(model, network, read(initial))
    precision = precision or asked_precision(recipe) or faster_precision(network, recipe, device=str(place))
    autocast = torch.autocast(place.type, torch.bfloat16, enabled=precision == "bfloat16")
    layout = _layout(model, recipe, place, precision)
    model = model.to(place, memory_format=layout)
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
        AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=True) if recipe.ema else None
    )

    images = resized(data, "train", network.resolution).to(place)  # (N, C, H, W) uint8
    labels = data.train_labels.to(place)
    mean, std = (torch.tensor(v, device=place).mul(255).view(1, -1, 1, 1) for v in (data.mean, data.std))
    batch = min(recipe.batch_size, len(images))
    steps = len(images) // batch  # of a whole epoch
    total_steps = max(1, round(recipe.epochs * steps))
    padding = round(recipe.crop_padding * network.resolution)
    padded = F.pad(images, (padding,) * 4) if padding else images
    # (N, C, 2 padding + 1, 2 padding + 1, H, W): every crop there is, as a view
    crops = padded.unfold(2, network.resolution, 1).unfold(3, network.resolution, 1)

    curve: list[dict[str, float]] = []
    seconds_before = 0.0
    what = [identity(network), dataclasses.asdict(recipe), data.fingerprint, seed]
    of = json.dumps(what if initial is None else [*what, initial.stem], sort_keys=True)
    state = _state(model, optimizer, averaged)
    if checkpoint is not None and checkpoint.exists():
        curve, seconds_before = _load_checkpoint(checkpoint, state, of)
    saved = time.perf_counter()

    model.train()
    for epoch in range(len(curve), math.ceil(total_steps / steps)):
        torch.manual_seed(_mixed(seed, epoch))  # dropout; an epoch depends on nothing that came before but weights
        # All chance of an epoch is drawn and moved at once: a copy to a GPU in every step would wait for it each time.
        chance = np.random.default_rng([seed, epoch])
        order = _moved(chance.permutation(len(images))[: steps * batch].reshape(steps, batch), place)
        corner = _moved(chance.integers(0, 2 * padding + 1, (steps, 2, batch)), place)
        mirrored = _moved(chance.random((steps, batch, 1, 1, 1)) < 0.5, place)
        shares = chance.beta(recipe.mixup, recipe.mixup, steps).tolist() if recipe.mixup else ()
        total = torch.zeros((), device=place)
        now = min(steps, total_steps - epoch * steps)
        for step in range(now):
            rate = recipe.learning_rate * _schedule(recipe, (epoch * steps + step) / total_steps)
            for group in optimizer.param_groups:
                group["lr"] = rate

            x, y = crops[order[step], :, corner[step, 0], corner[step, 1]], labels[order[step]]
            if recipe.flip:
                x = torch.where(mirrored[step], x.flip(3), x)
            x = x.to(torch.float32, memory_format=layout).sub_(mean).div_(std)  # (B, C, H, W)
            share = shares[step] if recipe.mixup else 1.0
            if recipe.mixup:
                x = x.mul(share).add_(x.flip(0), alpha=1 - share)

            with autocast:
                logits = model(x).float()  # (B, K)
                loss = F.cross_entropy(logits, y, label_smoothing=recipe.label_smoothing)
                if recipe.mixup:
                    other = F.cross_entropy(logits, y.flip(0), label_smoothing=recipe.label_smoothing)
                    loss = share * loss + (1 - share) * other
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if averaged is not None:
                averaged.update_parameters(model)
            total += loss.detach()

        train_loss = total.item() / now
        if not math.isfinite(train_loss):
            _forget(checkpoint)
            raise Diverged(
                f"diverged: the training loss is {train_loss} in epoch {epoch + 1} of {recipe.epochs:g} "
                f"(seed {seed}). Lower recipe.learning_rate (now {recipe.learning_rate:g})"
            )
        curve.append({"epoch": epoch + 1, "train_loss": train_loss, "learning_rate": rate})
        if (
            checkpoint is not None
            and (epoch + 1) * steps < total_steps
            and time.perf_counter() - saved > checkpoint_seconds
        ):
            spent = seconds_before + time.perf_counter() - started
            _save(state, checkpoint, {"of": of, "curve": json.dumps(curve), "seconds": repr(spent)})
            saved = time.perf_counter()

    final = averaged.module if averaged is not None else model
    seconds = seconds_before + time.perf_counter() - started
    loss_value, correct = evaluate(final, network, data, split="val", device=place)
    if not math.isfinite(loss_value):
        _forget(checkpoint)
        raise Diverged(f"diverged: the validation loss is {loss_value} (seed {seed}). Lower recipe.learning_rate")
    if weights is not None:
        save_weights(final, weights)
    _forget(checkpoint)
    return Result(
        val_accuracy=float(correct.mean()),
        val_loss=loss_value,
        correct=correct,
        curve=tuple(curve),
        train_seconds=seconds,
        images_per_second=total_steps * batch / seconds,
    )


@torch.no_grad()
def evaluate(
    model: nn.Module, network: AnyNetwork, data: Data, *, split: str, device: str | torch.device
) -> tuple[float, np.ndarray[Any, np.dtype[np.bool_]]]:
    """(mean cross entropy, a bool per image whether it is right) on "val" or "test", in float32."""
    model.eval()
    if split == "val":
        images, labels = resized(data, "val", network.resolution), data.val_labels
    else:
        images, labels = data.test()
        images = _resize(images, network.resolution)
    mean, std = (torch.tensor(v, device=device).mul(255).view(1, -1, 1, 1) for v in (data.mean, data.std))
    loss, correct = torch.zeros((), device=device, dtype=torch.float64), []
    batch = max(1, min(500, 2**22 // network.resolution**2))  # 83 of 224 px: less memory than their training took
    for x, y in zip(images.split(batch), labels.to(device).split(batch), strict=True):
        logits = model((x.to(device).float() - mean) / std)
        loss += F.cross_entropy(logits, y, reduction="sum")
        correct.append(logits.argmax(1) == y)
    return loss.item() / len(labels), torch.cat(correct).cpu().numpy()


def test_specification(specification: dict[str, Any]) -> dict[str, Any]:
    """What a worker runs for the test split: the saved `weights` of an evaluation, scored once."""
    network = _network(specification)
    device = _place(None)
    model = load_weights(network, Path(specification["weights"])).to(device)
    data = _loaded(DataSpec(**specification["data_spec"]))
    loss, correct = evaluate(model, network, data, split="test", device=device)
    return {"test_accuracy": float(correct.mean()), "test_loss": loss, "num_test": len(correct)}


def _network(specification: Mapping[str, Any]) -> AnyNetwork:
    network = from_table(specification["network"], name=specification["name"])
    if isinstance(network, Factory):
        trust(network.function)  # the driver's word, which had it from the user
    return network


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the state dict as safetensors, atomically."""
    _save(model.state_dict(), path)


def load_weights(network: AnyNetwork, path: Path) -> nn.Module:
    """The module of `network` with the weights of a safetensors file, in evaluation mode.

    Errors: ValueError naming the file where they do not fit.
    """
    model = build(network)
    try:
        model.load_state_dict(load_file(path))
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        why = " ".join(str(error).split())[:200]  # torch lists every layer
        raise ValueError(f"the weights in {path} are not those of {network.name}: {why}") from None
    return model.eval()


class Pace(NamedTuple):
    """Seconds an image: of training on it once, all that goes with a step included, and of scoring it."""

    train_seconds: float
    score_seconds: float


def pace_specification(specification: dict[str, Any]) -> dict[str, Any]:
    """What a worker runs to say how long a training would take there: `pace`, in plain JSON."""
    network, recipe = _network(specification), Recipe(**specification["recipe"])
    return pace(network, recipe, precision=specification["precision"])._asdict()


def precision_specification(specification: dict[str, Any]) -> dict[str, Any]:
    """What a worker runs before the first training with recipe.autocast=auto: `faster_precision`, in plain JSON."""
    return {"precision": faster_precision(_network(specification), Recipe(**specification["recipe"]))}


def pace(
    network: AnyNetwork,
    recipe: Recipe,
    *,
    precision: str,
    device: str | None = None,
    budget_seconds: float = 0.15,
) -> Pace:
    """How fast `network` trains and is scored on this device, measured by training it on a few made-up images.

    `train` itself is timed with few and with more steps, so that what a training does once does not count. A large
    network is timed with few images of a lower resolution and the time raised in proportion to the multiply-adds.
    """
    place = _place(device)
    most = 5e7 if place.type == "cpu" else 5e9  # multiply-adds of an image; four times as many a step
    timed, share = network, 1.0
    # A user's function may make networks for one resolution only, and knows no total stride.
    while isinstance(timed, Network) and cost(timed).macs > most and timed.resolution >= 2 * timed.total_stride:
        timed = replace(timed, resolution=timed.resolution // 2)
        share = cost(network).macs / cost(timed).macs
    batch = max(2, min(recipe.batch_size, int(4 * most / cost(timed).macs)))
    short = replace(recipe, epochs=1, batch_size=batch, learning_rate=1e-4)  # noise must not diverge

    def seconds(steps: int) -> float:
        data = _made_up(timed, steps * batch)
        return train(timed, short, data, seed=0, device=str(place), precision=precision).train_seconds

    def fastest(steps: int) -> float:
        return min(seconds(steps) for _ in range(2))

    seconds(2)  # kernels are chosen and compiled
    few = fastest(2)
    more = max(2, min(12, int(budget_seconds * 2 / few)))
    step = max(1e-9, fastest(2 + more) - few) / more
    model, images = build(timed).to(place), _made_up(timed, 4 * batch)
    evaluate(model, timed, images, split="val", device=place)
    began = time.perf_counter()
    evaluate(model, timed, images, split="val", device=place)
    return Pace(share * step / batch, share * (time.perf_counter() - began) / (4 * batch))


def asked_precision(recipe: Recipe) -> str | None:
    """The precision that the recipe asks for; None where it leaves it to a timing."""
    return {"off": "float32", "bfloat16": "bfloat16"}.get(recipe.autocast)


def faster_precision(network: AnyNetwork, recipe: Recipe, *, device: str | None = None) -> str:
    """What `network` trains faster in: "bfloat16" where it is measured to take a tenth less time, else "float32".

    Without bfloat16 instructions nothing is measured: emulated, it was 4.3 times slower (preresnet_tiny, AVX2 alone).
    """
    place = _place(device)
    has = (
        "bfloat16" in instructions()
        if place.type == "cpu"
        else torch.cuda.get_device_capability(place) >= (8, 0)  # older ones emulate it
    )
    if not has:
        return "float32"
    single, half = (
        pace(network, recipe, precision=name, device=str(place)).train_seconds for name in ("float32", "bfloat16")
    )
    return "bfloat16" if half < 0.9 * single else "float32"


def _made_up(network: AnyNetwork, num_images: int) -> Data:
    """Noise of a network's size, to time it on."""
    shape = (num_images, network.in_channels, network.resolution, network.resolution)
    chance = torch.Generator().manual_seed(0)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=chance)
    labels = torch.randint(network.num_classes, (num_images,), generator=chance)
    sizes = Description(
        "noise", network.in_channels, network.num_classes, network.resolution, num_images, num_images, num_images
    )
    halves = (0.5,) * network.in_channels
    return Data(sizes, images, labels, images, labels, halves, halves, f"noise {shape}", lambda: None)  # type: ignore[arg-type,return-value]


@lru_cache(maxsize=2)
def _loaded(spec: DataSpec) -> Data:
    return load(spec)


_RESIZED: dict[tuple[str, str, int], Tensor] = {}
_RESIZED_BYTES = 1 << 30


def resized(data: Data, split: str, resolution: int) -> Tensor:
    """The images of "train" or "val" at this resolution; the last 1 GiB of them is kept for the next training."""
    key = (data.fingerprint, split, resolution)
    if key not in _RESIZED:
        images = _resize(data.train_images if split == "train" else data.val_images, resolution)
        while _RESIZED and sum(kept.nbytes for kept in _RESIZED.values()) + images.nbytes > _RESIZED_BYTES:
            del _RESIZED[next(iter(_RESIZED))]
        _RESIZED[key] = images
    return _RESIZED[key]


def _resize(images: Tensor, resolution: int) -> Tensor:  # uint8 (N, C, H, W) to uint8 (N, C, resolution, resolution)
    size = (resolution, resolution)
    if images.shape[2:] == size:
        return images
    return torch.cat([F.interpolate(part, size, mode="bilinear", antialias=True) for part in images.split(2048)])


def _moved(values: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(device)


def _place(device: str | None) -> torch.device:
    """The device of that name; None is a GPU where there is one."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


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


def _layout(model: nn.Module, recipe: Recipe, device: torch.device, precision: str) -> torch.memory_format:
    """The layout of images in memory that `model` is trained in.

    Never channels_last in float32 on a CPU with a strided 1 x 1 convolution of few channels: the gradient of its
    weights is written past the end of a buffer (oneDNN issue 6035; fewer than 8 channels with AVX2, than 16 with
    AVX-512), which ends the process, hangs it or, at worst, changes numbers elsewhere.
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
    return torch.channels_last


def _mixed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _state(model: nn.Module, optimizer: torch.optim.Optimizer, averaged: AveragedModel | None) -> dict[str, Tensor]:
    """All tensors that a training goes on from, by name; they share their memory with what they belong to."""
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        for name, tensor in optimizer.state[parameter].items():
            state[f"optimizer.{index}.{name}"] = tensor
    if averaged is not None:
        state |= {f"averaged.{name}": tensor for name, tensor in averaged.state_dict().items()}
    return state


def _load_checkpoint(path: Path, state: dict[str, Tensor], of: str) -> tuple[list[dict[str, float]], float]:
    """(curve, seconds spent) of the checkpoint, its tensors copied into `state`; of none where it cannot be used."""
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            if meta.get("of") != of:
                raise ValueError("it is of another training")
            tensors = {name: file.get_tensor(name) for name in state}
        curve, seconds = json.loads(meta["curve"]), float(meta["seconds"])
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        warnings.warn(f"the checkpoint {path} cannot be used ({error}); this training starts over", stacklevel=3)
        return [], 0.0
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)
    return curve, seconds


def _forget(checkpoint: Path | None) -> None:
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)


def _save(tensors: Mapping[str, Tensor], path: Path, meta: dict[str, str] | None = None) -> None:
    """Write a file that is there whole or not at all; a temporary one that a kill leaves is swept by the ledger."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.temporary")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, meta)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())  # before the record of the evaluation, which says that its weights are here
    temporary.replace(path)
