"""Functions of a user's, written into the working directory as modules and forgotten again."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scalesearch.cost.forward import forward
from scalesearch.model import factory, trust
from scalesearch.network import Factory

MAKE = "def make(depth, width, resolution, num_classes, in_channels):\n"
TOP = """import torch
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self, forward, *layers, **named):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.run = forward
        for name, layer in named.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.run(self, x)

"""


def write(directory: Path, name: str, body: str, *, before: str = "") -> str:
    """NAME.py, whose make has this body; a class `Net(forward, *layers)` is there. Returns "NAME:make"."""
    text = TOP + textwrap.dedent(before) + "\n" + MAKE + textwrap.indent(textwrap.dedent(body), "    ") + "\n"
    (directory / f"{name}.py").write_text(text)
    return f"{name}:make"


def made(function: str, *, resolution: int = 16, num_classes: int = 10, in_channels: int = 3, **more: float) -> Factory:
    """The network of a function, which is trusted."""
    trust(function)
    sizes = {"resolution": resolution, "num_classes": num_classes, "in_channels": in_channels}
    return Factory(name="mine", function=function, **sizes, **more)  # type: ignore[arg-type]


@contextmanager
def forgotten() -> Iterator[None]:
    """What is imported meanwhile from the working directory is forgotten at the end."""
    before, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = before
    forget(set(sys.modules) - modules)


def forget(modules: set[str]) -> None:
    """As in a new process."""
    for name in modules:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(Path.cwd()):
            del sys.modules[name]
    factory._trusted.clear()
    factory.structure.cache_clear()
    forward.cache_clear()
    importlib.invalidate_caches()
