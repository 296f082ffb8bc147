"""Networks of timm by their names: "timm:convnext_atto" is one of the functions that a `Factory` may name.

timm makes them from its own arguments, of which depth and width multiply those that `timm_arguments` knows. A name
runs timm's code and no other, so that a file may name one. Weights are drawn: nothing is fetched.
"""

from __future__ import annotations

import functools
import importlib.metadata
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from torch import nn

from scalesearch.model.timm_arguments import Factors, scaled, takes_size
from scalesearch.text import near
from scalesearch.workspace import TIMM

_building = threading.RLock()


def version() -> str:
    """timm's, which is part of the key of a training: its code is what makes the network."""
    return importlib.metadata.version("timm")


def check(function: str) -> None:
    """Nothing, where timm is installed and has the network.

    Raises: ValueError: it has not; the nearest names, or the command that installs timm.
    """
    name = function.removeprefix(TIMM)
    if find_spec("timm") is None:
        raise ValueError(f"baseline={function} needs the timm package: pip install 'scalesearch[timm]'")
    import timm

    if not timm.is_model(name):
        raise ValueError(f"baseline={function}: timm has no network {name!r}{near(name, timm.list_models())}")


def of_timm(table: Mapping[str, Any]) -> dict[str, Any]:
    """What a group `baseline` that names a network of timm leaves open: its resolution, where that is null.

    Raises: ValueError: the name has the tag of weights, which are not loaded; as `check`.
    """
    function = str(table["factory"])
    name, _, tag = function.partition(".")
    if tag:
        raise ValueError(
            f"baseline={function}: {tag!r} names weights of timm, which are not loaded; leave the tag of its weights "
            f"out: {name}"
        )
    return {"resolution": own_resolution(function)} if table.get("resolution", 0) is None else {}


def own_resolution(function: str) -> int:
    """Side of the images in px for which timm gives the network. Raises: ValueError: as `check`."""
    check(function)
    import timm

    name = function.removeprefix(TIMM)
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return int(config.input_size[-1]) if config is not None else 224


def maker(function: str) -> Callable[..., nn.Module]:
    """The function that makes a network of timm, as `Factory` describes it. Raises: ValueError: as `check`."""
    check(function)
    return functools.partial(_make, function.removeprefix(TIMM))


def _make(name: str, *, depth: float, width: float, resolution: int, num_classes: int, in_channels: int) -> nn.Module:
    import timm

    with _scaling(Factors(depth, width), resolution):
        module: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=in_channels)
    for made in module.modules():  # what says where timm's weights are is no part of the network
        for record in ("pretrained_cfg", "default_cfg", "pretrained_model_args"):
            vars(made).pop(record, None)
    return module


@contextmanager
def _scaling(factors: Factors, resolution: int) -> Iterator[None]:
    """While this is open, timm's networks are made with multiplied arguments: none but its builder knows them."""
    from timm.models import _builder

    build = _builder.build_model_with_cfg

    def build_scaled(made: Any, variant: str, pretrained: bool, **arguments: Any) -> nn.Module:
        arguments = scaled(made, arguments, factors)
        if takes_size(made):
            arguments["img_size"] = resolution
        module: nn.Module = build(made, variant, pretrained, **arguments)
        return module

    with _building:
        modules = [
            module
            for name, module in list(sys.modules.items())
            if name.startswith("timm.") and getattr(module, "build_model_with_cfg", None) is build
        ]
        for module in modules:
            vars(module)["build_model_with_cfg"] = build_scaled
        try:
            yield
        finally:
            for module in modules:
                vars(module)["build_model_with_cfg"] = build
