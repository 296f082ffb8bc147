"""What a user's function, or its network's forward pass, raised: where, for which size, and what to do about it."""

from __future__ import annotations

import re
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn

from scalesearch.model.sources import is_installed
from scalesearch.network import Factory
from scalesearch.text import one_line, raised
from scalesearch.workspace import is_timm

_OURS = Path(__file__).resolve().parent.parent
_FAULTS = (NameError, AttributeError, ImportError, TypeError, SyntaxError, RecursionError)
"""What no size of a network is the reason of: the code is at fault."""


class FactoryError(ValueError):
    """A network of a function that cannot be. `reason` is what the function raised, without the size, or else what is
    wrong with its network; `fault` says whether that is a fault of the code, and not of this size."""

    def __init__(self, message: str, reason: str, *, fault: bool = False) -> None:
        super().__init__(message)
        self.reason, self.fault = reason, fault

    @staticmethod
    def that(network: Factory, words: str) -> FactoryError:
        """The error that something is wrong with a network, in words that say what must be."""
        return FactoryError(f"{network.function}: {words}", words)

    @staticmethod
    def of(
        network: Factory,
        error: BaseException,
        module: nn.Module | None = None,
        *,
        training: bool = False,
        forward: str = "",
    ) -> FactoryError:
        """The error that the function raised `error`; given the module, that its forward pass did.

        forward: where the backward pass failed, the traceback of the forward pass's part, if it is known.
        """
        what, side = raised(error), network.resolution
        of = ""
        if module is not None:
            step = "a training step" if training else "the forward pass"
            of = f": {step} of its network on {network.in_channels} x {side} x {side} images"
        message = (
            f"{network.function}{of} raised {what} for depth={network.depth:g}, width={network.width:g}, "
            f"resolution={side}"
        )
        place = _place(error.__traceback__, module) or _place_in(forward)
        remedy = _remedy(error, network, module)
        if place:
            message += f", in {place}"
        return FactoryError(
            message + (f"; {remedy}" if remedy else ""),
            what + (f", in {place}" if place else ""),
            fault=isinstance(error, (*_FAULTS, SystemExit)) and not is_timm(network.function),  # timm checks little
        )


def raised_at(error: BaseException) -> str:
    """An exception on one line, with the user's last line on the way to it."""
    place = _place(error.__traceback__, None)
    return raised(error) + (f", in {place}" if place else "")


def _place(trace: TracebackType | None, module: nn.Module | None) -> str:
    """The user's last line on the way to the error, and the layer of their network."""
    lines, layer = "", ""
    names = {} if module is None else {id(part): name for name, part in module.named_modules()}
    while trace is not None:
        lines = _users_line(trace.tb_frame.f_code.co_filename, trace.tb_lineno) or lines
        owner: Any = trace.tb_frame.f_locals.get("self")
        if names.get(id(owner)):
            layer = f"layer {names[id(owner)]} ({type(owner).__name__})"
        trace = trace.tb_next
    return ", ".join(part for part in (lines, layer) if part)


def _place_in(traceback: str) -> str:
    """The user's last line in the words of a traceback."""
    lines = [_users_line(path, int(line)) for path, line in re.findall(r'File "([^"\n]+)", line (\d+)', traceback)]
    return next(filter(None, reversed(lines)), "")


def _users_line(file: str, line: int) -> str:
    """A line of code in words; "" where it is not the user's."""
    path = Path(file)
    if not path.is_file() or is_installed(path) or path.resolve().is_relative_to(_OURS):
        return ""
    return f"{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}, line {line}"


# (what the error says, what to do); the first that fits
_REMEDIES = (
    (
        r"unexpected keyword argument '(depth|width|resolution|num_classes|in_channels)'"
        r"|missing .* required .*argument|takes .* positional argument",
        "it is called by name with depth, width (multipliers, 1.0), resolution (px), num_classes and in_channels",
    ),
    (
        r"[Kk]ernel size can't be greater|[Oo]utput size is too small|padded input size|more than 1 (value|spatial)"
        r"|non-zero|non-empty|[Pp]adding size should be less|must be greater than zero|max_pool2d.*(zero|invalid)",
        "images of {side} px are too small for it: a larger proxy.resolution (of `cost`: resolution) or fewer strides",
    ),
    (
        r"to have (\d+) channels, but got|Invalid channel dimensions",
        "its first layer must take in_channels channels ({channels} here), and each layer what the one before it gives",
    ),
    (
        r"must be divisible|not divisible|divisible by",
        "let the function round channels to a multiple of groups and heads; or take a larger proxy.width",
    ),
    (
        r"mat1 and mat2 shapes|same reduction dim|must match the size|invalid for input of size|Sizes of tensors must"
        r"|size mismatch|shape mismatch|normalized_shape|not aligned|doesn't match|does not match",
        "a layer is made for other sizes: compute them from resolution, or pool to a fixed one (nn.AdaptiveAvgPool2d)",
    ),
    (
        r"same device|CUDA|cuda|NVIDIA|device type",
        "leave the device to scalesearch: no .cuda() and no .to(device); make tensors on images.device",
    ),
    (
        r"cannot be interpreted as an integer|must be tuple of ints|must be int|not float",
        "channels and repeats must be whole numbers of 1 at least: max(1, round(32 * width))",
    ),
    (
        r"same dtype|scalar type|should be the same|dtype",
        "let its weights be float32, the type of the images; recipe.autocast decides about less",
    ),
    (
        r"cross_entropy|nll_loss",
        "in training mode too its forward pass must return the logits alone, of shape (B, num_classes)",
    ),
    (
        r"does not require grad",
        "nothing leads back from its logits to its weights: call it without .detach() or torch.no_grad() around them",
    ),
    (
        r"inplace operation|leaf Variable that requires grad",
        "an operation in place changes what the backward pass needs: work on a copy",
    ),
)


def _remedy(error: BaseException, network: Factory, module: nn.Module | None) -> str:
    words = f"{type(error).__name__}: {one_line(error)}"
    if isinstance(error, ZeroDivisionError) or "zero-element" in words:
        return "channels and repeats must be whole numbers of 1 at least: max(1, round(32 * width))"
    for pattern, remedy in _REMEDIES:
        if re.search(pattern, words):
            return remedy.format(side=network.resolution, channels=network.in_channels)
    return ""
