"""Networks that a Python function of the user's makes.

Importing a module runs it. So a function is called only when the user named it, on the command line or in a
configuration directory of their own (`trust`); that a study, a variant or a server names it is not enough. A network
of timm ("timm:NAME") runs none of the user's code, so that a file may name it.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from scalesearch.model.failure import FactoryError, raised_at
from scalesearch.model.hidden import Foreign, fixed_weights, hidden, needs_values, on_meta
from scalesearch.model.sources import Sources, sources, watched
from scalesearch.model.timm_models import maker, version
from scalesearch.network import Factory
from scalesearch.text import one_line
from scalesearch.workspace import is_timm


class Imported:
    """A function that was imported, and what it was seen to import and to open: by its import and its first call."""

    def __init__(self, made: Callable[..., Any]) -> None:
        self.made = made
        self.loaded: set[str] = set()
        self.read: set[str] = set()
        self.called = False
        self.at_first: Sources | None = None

    def first_call(self, loaded: set[str], read: set[str]) -> None:
        """What its call was seen to import and to open; what it keeps from its first call on, it opens no more."""
        if not self.called:
            self.loaded |= loaded
            self.read |= read
            self.called = True


_trusted: dict[str, Imported] = {}
_by_module: dict[str, tuple[set[str], set[str]]] = {}  # of the first import of each, as there is no second


def trust(function: str, made: Callable[..., nn.Module] | None = None) -> None:
    """Import the function of a factory ("package.module:name"), so that networks of it can be made.

    Given `made`, that is the function, and nothing is imported. The working directory is looked in last.
    Raises: ValueError: it cannot be imported, or is no function; timm is not installed, or has no such network.
    """
    if made is None and is_timm(function):
        made = None if function in _trusted else maker(function)
    if made is not None:
        _trusted[function] = Imported(made)
    if function not in _trusted:
        _trusted[function] = imported(function, "baseline.factory")


def imported(function: str, key: str) -> Imported:
    """The function "package.module:name", which the user has named as `key`; the working directory is looked in last.

    Raises: ValueError: it cannot be imported, or is no function.
    """
    module_name, _, name = function.partition(":")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    known = sys.modules.get(module_name)
    loaded, read = set[str](), set[str]()
    try:
        with settings_kept(), watched(loaded, read):
            module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"{key} is {function!r}, but {module_name} cannot be imported ({one_line(error)}); it must be installed, "
            "or lie in the working directory"
        ) from None
    except (Exception, SystemExit) as error:  # a script's argparse, say, exits
        raise ValueError(f"{key} is {function!r}; importing it raised {raised_at(error)}") from error
    found = getattr(module, name, None)
    if not callable(found):
        raise ValueError(f"{key} is {function!r}, but {module_name} has no function {name!r}")
    if module is not known:
        _by_module[module_name] = loaded, read
    made = Imported(found)
    seen_loaded, seen_read = _by_module.get(module_name, (set(), set()))
    made.loaded |= seen_loaded
    made.read |= seen_read
    return made


def trusted(function: str) -> bool:
    """Whether `trust` has imported it, or was given it, or it is timm's."""
    return function in _trusted or is_timm(function)


def make(network: Factory) -> nn.Module:
    """What the function returns. Raises: ValueError: it is not trusted, it raises, or it returns no module."""
    if is_timm(network.function):
        trust(network.function)
    if network.function not in _trusted:
        raise ValueError(
            f"network {network.name!r} is made by {network.function}; only a file says so, and what a file names is "
            f"not run. Name it yourself: baseline.factory={network.function}"
        )
    try:
        with settings_kept():
            module: Any = _trusted[network.function].made(
                depth=network.depth,
                width=network.width,
                resolution=network.resolution,
                num_classes=network.num_classes,
                in_channels=network.in_channels,
            )
    except (Exception, SystemExit) as error:  # a script's argparse, say, exits
        raise FactoryError.of(network, error) from error
    if not isinstance(module, nn.Module):
        what = f"the class {module.__name__}" if isinstance(module, type) else f"a {type(module).__name__}"
        raise ValueError(f"{network.function} returned {what}; it must return a torch.nn.Module")
    if any(type(part).__name__ == "OptimizedModule" for part in module.modules()):
        raise FactoryError.that(
            network, "its network is compiled by torch.compile, which hides what is counted; return it uncompiled"
        )
    if any(is_lazy(weight) for weight in (*module.parameters(), *module.buffers())):
        _materialise(module, network)
    kept = module.state_dict()
    if (name := next((name for name, value in kept.items() if not isinstance(value, Tensor)), None)) is not None:
        raise FactoryError.that(
            network,
            f"its network keeps {name}, a {type(kept[name]).__name__}, beside its weights; a file of weights holds "
            "tensors alone: make it one, with self.register_buffer(name, tensor), or leave it out of the state",
        )
    return module


@contextmanager
def settings_kept() -> Iterator[None]:
    """What code of the user's sets for all of torch is set back: other networks are made and trained here as well."""
    dtype, threads, grad, here = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), Path.cwd()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if Path.cwd() != here:
            os.chdir(here)


def _materialise(module: nn.Module, network: Factory) -> None:
    """Lazy layers get their weights from a first forward pass, as there are none to optimise before it."""
    training = module.training
    device = "meta" if torch.empty(0).is_meta else "cpu"
    try:
        with torch.no_grad():
            module.eval()(torch.zeros(2, network.in_channels, network.resolution, network.resolution, device=device))
    except (Exception, SystemExit) as error:
        raise FactoryError.of(network, error, module) from error
    module.train(training)


def make_on_meta(network: Factory) -> nn.Module:
    """The module without memory for its weights; for functions that look at their weights, made and then emptied."""
    try:
        with on_meta():
            return make(network)
    except ValueError:
        return make(network).to("meta")


@lru_cache(maxsize=4096)
def structure(network: Factory) -> str:
    """A digest of what the function makes: two networks that share it are the same training.

    It is made of names and shapes of the weights, of how the modules print themselves (strides, kernels), of the
    values that they have beside these, and of what the function depends on (`sources`): an edit of any of its files
    makes new networks. So do other values of weights that the function takes from elsewhere. A function of one file,
    with no such values, has the digest that the first release gave it.
    Of timm's networks the version of timm stands for its code.
    """
    if is_timm(network.function):
        return _digest(_shown(make_on_meta(network)) | {"packages": {"timm": version()}})
    loaded, read = set[str](), set[str]()
    with watched(loaded, read):
        with Foreign() as foreign:
            module = make_on_meta(network)
        others_values = foreign.seen or any(not weight.is_meta for weight in module.parameters())
        values_of, fixed = module, {}
        if needs_values(module) or others_values:
            values_of = _made_with_seed(network, 0)
        if others_values:
            fixed = fixed_weights(values_of, _made_with_seed(network, 1))
    seen = _trusted[network.function]
    seen.first_call(loaded, read)
    reached = sources(network.function, seen.made, seen.loaded | loaded, seen.read | read)
    own = _own_source(seen.made)
    values = _shown(module) | {"source": own}
    others = {name: digest for name, digest in reached.modules.items() if digest != own}
    beside = {
        "hidden": hidden(values_of),
        "fixed": fixed,
        "reached": others,
        "packages": reached.packages,
        "files": reached.files,
        "environment": reached.environment,
    }
    values |= {key: more for key, more in beside.items() if more}
    return _digest(values)


def _made_with_seed(network: Factory, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(network)


def _shown(module: nn.Module) -> dict[str, Any]:
    """Names and shapes of the weights, which of them are one, and how the modules print themselves."""
    names: dict[int, list[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    shared = [same for same in names.values() if len(same) > 1]
    return {
        "weights": [[name, list(tensor.shape)] for name, tensor in module.state_dict().items()],
        "modules": re.sub(r" at 0x[0-9a-f]+", "", str(module)),  # an address is another in each process
    } | ({"shared": shared} if shared else {})


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def unchanged(network: Factory, digest: str) -> None:
    """Nothing, where `network` has this `structure` here, and its files are those that were imported.

    Raises: ValueError: they were edited since, or are others on this machine.
    """
    here = structure(network)
    edited = False
    if not is_timm(network.function):
        seen = _trusted[network.function]
        now = sources(network.function, seen.made, seen.loaded, seen.read)
        if seen.at_first is None:
            seen.at_first = now
        edited = now != seen.at_first
    if here != digest or edited:
        raise ValueError(
            f"the network of {network.function} is not the one that was planned: a file or a package that it depends "
            "on was changed since the command began, or is another one for this worker; give the same command again"
        )


def _own_source(made: Callable[..., nn.Module]) -> str | None:
    """Digest of the file in which the function stands; None of what stands in none, such as a `partial`."""
    try:
        source = inspect.getsourcefile(inspect.unwrap(made))
    except TypeError:
        return None
    return hashlib.sha256(Path(source).read_bytes()).hexdigest() if source and Path(source).is_file() else None
