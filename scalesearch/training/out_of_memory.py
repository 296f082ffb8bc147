"""What is said when a training finds no memory: what it asked for, what there is, and what would fit."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, ParamSpec, TypeVar

import torch

from scalesearch.data import Data
from scalesearch.data.room import available_memory
from scalesearch.machine import torch_device
from scalesearch.memory import memory
from scalesearch.network import AnyNetwork, Network
from scalesearch.text import plural
from scalesearch.training.images import SHARE as IMAGES_SHARE
from scalesearch.training.recipe import Recipe

P = ParamSpec("P")
R = TypeVar("R")
SHARE = 0.9  # of the memory, which a training may take by the estimate: workspaces and fragments take the rest


class OutOfMemory(ValueError):  # noqa: N818 - what a training ran into
    """A training takes more memory than its device has; the message says what would fit."""


class Room(NamedTuple):
    """Bytes of a device's memory: all of it, and what other processes have of that."""

    device: str
    total: int
    others: int


def out_of_memory_explained(train: Callable[P, R]) -> Callable[P, R]:
    """`loop.train`, with what torch says of too little memory as `OutOfMemory`."""

    @functools.wraps(train)
    def explained(*given: P.args, **named: P.kwargs) -> R:
        try:
            return train(*given, **named)
        except (MemoryError, RuntimeError) as error:  # torch's OutOfMemoryError is of the latter
            if not _of_memory(error):
                raise
            what = inspect.signature(train).bind(*given, **named).arguments
            place = torch_device(what.get("device"))
            words = explanation(what["network"], what["recipe"], what["data"], room(place))
        # Behind the block, where the error no longer holds the training's tensors.
        if place.type == "cuda":
            torch.cuda.empty_cache()
        raise OutOfMemory(words)

    return explained


def _of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def room(device: torch.device) -> Room:
    """The memory of `device`, at the moment."""
    if device.type == "cpu":
        return Room("this machine", available_memory(), 0)
    free, total = torch.cuda.mem_get_info(device)
    own = torch.cuda.memory_reserved(device)
    return Room(torch.cuda.get_device_name(device), total, max(0, total - free - own))


def explanation(network: AnyNetwork, recipe: Recipe, data: Data, room: Room) -> str:
    """What a training of `network` asks for by `scalesearch.memory`, what the device has, and what would fit."""
    sizes = data.description
    copies = 2 if recipe.crop_padding else 1  # crops are cut from a padded one
    images = (copies * sizes.num_train + sizes.num_val) * network.in_channels * network.resolution**2
    if images > IMAGES_SHARE * room.total:
        images = 0  # they stay where they are
    batch = min(recipe.batch_size, sizes.num_train)

    def needed(network: AnyNetwork, batch: int) -> float:
        found = memory(network, batch_size=batch)
        return (images + found.training + (found.weights if recipe.ema else 0)) / SHARE

    asked, left = needed(network, batch), room.total - room.others
    held = f", of which other processes hold {_size(room.others)}" if room.others else ""
    fitting = []
    smaller = batch // 2
    while smaller >= 2 and needed(network, smaller) > left:
        smaller //= 2
    if smaller >= 2:
        fitting.append(f"recipe.batch_size={smaller}")
    if room.others and asked <= room.total:
        at_once = int(room.total / asked)
        fitting.append(f"{plural(at_once, 'such training')} at a time on it (executor.workers)")
    if isinstance(network, Network):
        side = network.resolution // 2
        while side >= network.total_stride and needed(replace(network, resolution=side), batch) > left:
            side //= 2
        if side >= network.total_stride:
            fitting.append(f"a proxy of {side} px (proxy.resolution), or one with less proxy.width")
    would = f"By the same estimate would fit: {'; '.join(fitting)}" if fitting else "A smaller proxy is needed"
    return (
        f"a training of {network.name} at {network.resolution} px with recipe.batch_size={batch} takes "
        f"about {_size(asked)} in float32 ({_size(images)} of it images); {room.device} has {_size(room.total)}{held}. "
        f"{would}. Then give the same command with retry=true"
    )


def _size(number: float) -> str:
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"
