"""Whether the network that a user's function makes is what its weights say, and answers for each image by itself.

The meta device has no values, so that `cost.check_training` cannot know. Here the network runs with real tensors: the
small one that a search trains, before anything is trained.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from scalesearch.machine import torch_device
from scalesearch.model import FactoryError, build
from scalesearch.network import Factory
from scalesearch.training.checkpoint import load_weights, save_weights
from scalesearch.workspace import is_timm

_IMAGES = 2
_CLOSE = 0.01  # of the largest logit: what sums in another order come to, is far below


@lru_cache(maxsize=256)
def check_values(network: Factory) -> None:
    """Nothing, where a network of the user's function, read from the file of its weights, is the one that was trained.

    Raises: FactoryError: it shares weights with networks made before, it draws when it is evaluated, its answer for an
        image depends on others, its weights cannot be written, or it has values that are not among them.
    """
    if is_timm(network.function):
        return
    place = torch_device(None)  # that of the trainings: a network may have operations that no CPU has
    with torch.random.fork_rng(devices=[]), torch.no_grad(), tempfile.TemporaryDirectory() as directory:
        torch.manual_seed(1)
        one, other = build(network), build(network)
        if shared := _shared(one, other):
            raise FactoryError.that(
                network,
                f"it returns weights that it has returned before ({shared}), so that a training would go on from "
                "another one's; let it make all layers anew in each call",
            )
        side = network.resolution
        images = torch.randn(_IMAGES, network.in_channels, side, side).to(place)
        one.to(place).train()
        answers = _answers(network, one)
        with torch.enable_grad():
            answers(images)  # as a training does: statistics move
        one.eval()
        logits = answers(images)
        if not _close(logits, torch.cat([answers(image[None]) for image in images])):
            raise FactoryError.that(network, _why_apart(answers, images, logits))
        file = Path(directory) / "weights.safetensors"
        try:
            save_weights(one, file)
            again = load_weights(network, file).to(place)
        except (Exception, SystemExit) as error:
            raise FactoryError.of(network, error) from error
        again.eval()
        if not _close(logits, _answers(network, again)(images)):
            raise FactoryError.that(
                network,
                "its network gives other logits when it is made again and reads the weights of the first: it computes "
                "with values that are no parameters or buffers, and so are not kept with the weights; what is drawn or "
                "counted must be a buffer: self.register_buffer(name, tensor)",
            )


def _answers(network: Factory, module: nn.Module) -> Callable[[Tensor], Tensor]:
    def answers(images: Tensor) -> Tensor:
        try:
            logits: Tensor = module(images.clone())
        except (Exception, SystemExit) as error:
            raise FactoryError.of(network, error, module) from error
        return logits.float()

    return answers


def _shared(one: nn.Module, other: nn.Module) -> str | None:
    """The name of a weight or buffer that is the same tensor in both; None where there is none."""
    known = {tensor.data_ptr() for tensor in one.state_dict(keep_vars=True).values() if tensor.numel()}
    found = (name for name, tensor in other.state_dict(keep_vars=True).items() if tensor.data_ptr() in known)
    return next(found, None)


def _why_apart(answers: Callable[[Tensor], Tensor], images: Tensor, logits: Tensor) -> str:
    if not _close(logits, answers(images)):
        return (
            "its network draws random numbers when it is evaluated as well, so that its accuracy would be another one "
            "each time; draw in training alone, such as F.dropout(x, p, training=self.training)"
        )
    return (
        "its network gives an image other logits when it is alone than beside others, also when it is evaluated: "
        "images must not mix, as they do in a softmax or a norm over the first dimension, or in an attention without "
        "batch_first=True; a norm over a batch is for training alone, as nn.BatchNorm2d does it"
    )


def _close(one: Tensor, other: Tensor) -> bool:
    """Whether logits are the same but for rounding; where one is not a number, as in a network that diverges, so is it
    in the other."""
    finite = one.isfinite()
    if not torch.equal(finite, other.isfinite()):
        return False
    apart = (one - other)[finite].abs()
    return not apart.numel() or float(apart.max()) <= _CLOSE * float(one[finite].abs().max())
