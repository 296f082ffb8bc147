"""Networks that a Python function of the user's makes.

Importing a module runs it. So a function is called only when the user named it, on the command line or in a
configuration directory of their own (`trust`); that a study, a variant or a server names it is not enough.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scalesearch.network import Factory
from scalesearch.text import raised

_trusted: dict[str, Callable[..., nn.Module]] = {}


def trust(function: str, made: Callable[..., nn.Module] | None = None) -> None:
    """Import the function of a factory ("package.module:name"), so that networks of it can be made.

    Given `made`, that is the function, and nothing is imported. The working directory is looked in last.
    Raises: ValueError: it cannot be imported, or is no function.
    """
    if made is not None:
        _trusted[function] = made
    if function in _trusted:
        return
    module_name, _, name = function.partition(":")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"baseline.factory is {function!r}, but {module_name} cannot be imported ({error}); it must be installed, "
            "or lie in the working directory"
        ) from None
    except (Exception, SystemExit) as error:  # a script's argparse, say, exits
        raise ValueError(f"baseline.factory is {function!r}; importing it raised {raised(error)}") from error
    made = getattr(module, name, None)
    if not callable(made):
        raise ValueError(f"baseline.factory is {function!r}, but {module_name} has no function {name!r}")
    _trusted[function] = made


def make(network: Factory) -> nn.Module:
    """What the function returns. Raises: ValueError: it is not trusted, it raises, or it returns no module."""
    if network.function not in _trusted:
        raise ValueError(
            f"network {network.name!r} is made by {network.function}; only a file says so, and what a file names is "
            f"not run. Name it yourself: baseline.factory={network.function}"
        )
    try:
        module = _trusted[network.function](
            depth=network.depth,
            width=network.width,
            resolution=network.resolution,
            num_classes=network.num_classes,
            in_channels=network.in_channels,
        )
    except (Exception, SystemExit) as error:  # a script's argparse, say, exits
        raise ValueError(
            f"{network.function} raised {raised(error)} for depth={network.depth:g}, width={network.width:g}, "
            f"resolution={network.resolution}"
        ) from error
    if not isinstance(module, nn.Module):
        raise ValueError(f"{network.function} returned a {type(module).__name__}; it must return a torch.nn.Module")
    return module


def make_on_meta(network: Factory) -> nn.Module:
    """The module without memory for its weights; for functions that look at their weights, made and then emptied."""
    try:
        with torch.device("meta"):
            return make(network)
    except ValueError:
        return make(network).to("meta")


@lru_cache(maxsize=4096)
def structure(network: Factory) -> str:
    """A digest of what the function makes: two networks that share it are the same training.

    It is made of names and shapes of the weights, of how the modules print themselves (strides, kernels) and of
    the function's source file: an edited function makes new networks.
    """
    module = make_on_meta(network)
    source = inspect.getsourcefile(inspect.unwrap(_trusted[network.function]))
    values: dict[str, Any] = {
        "weights": [[name, list(tensor.shape)] for name, tensor in module.state_dict().items()],
        "modules": str(module),
        "source": hashlib.sha256(Path(source).read_bytes()).hexdigest() if source else None,
    }
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
