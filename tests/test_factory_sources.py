"""The key knows what a user's function depends on: every way to reach another file, every value that is no weight."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest
from conftest import Ended, case

from scalesearch.model import factory, identity, trust
from scalesearch.network import Factory

NET = """
    from torch import nn
    {top}

    def make(depth, width, resolution, num_classes, in_channels):
        {inside}
        convolution, pooling = nn.Conv2d(in_channels, 4, 3), nn.AdaptiveAvgPool2d(1)
        return nn.Sequential(convolution, pooling, nn.Flatten(), nn.Linear(4, num_classes))
"""
# how a file is reached: what stands on top of the factory's module, what in the function, the file that is edited
REACHED = {
    "import": ("import {p}_helper", "", "{p}_helper.py"),
    "from": ("from {p}_helper import value", "", "{p}_helper.py"),
    "star": ("from {p}_helper import *", "", "{p}_helper.py"),
    "inside the function": ("", "import {p}_helper", "{p}_helper.py"),
    "never imported": ("", "if depth > 99: import {p}_helper", "{p}_helper.py"),
    "under a condition": ("if True:\n        import {p}_helper", "", "{p}_helper.py"),
    "by another": ("import {p}_other", "", "{p}_helper.py"),
    "of a package": ("from {p}_package.inner import value", "", "{p}_package/inner.py"),
    "a package's own file": ("from {p}_package.inner import value", "", "{p}_package/__init__.py"),
    "a relative import": ("from {p}_package import outer", "", "{p}_package/inner.py"),
    "by its name as text": ("import importlib; importlib.import_module('{p}' + '_helper')", "", "{p}_helper.py"),
    "by its name, in the function": (
        "",
        "import importlib; importlib.import_module('{p}' + '_helper')",
        "{p}_helper.py",
    ),
    "a table that is read": ("from pathlib import Path; Path('{p}.yaml').read_text()", "", "{p}.yaml"),
    "a table that the function reads": ("", "with open('{p}.yaml') as file: file.read()", "{p}.yaml"),
    "a source that is executed": ("with open('{p}.txt') as file: exec(file.read())", "", "{p}.txt"),
}


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory; what is imported from it is forgotten at the end."""
    monkeypatch.chdir(tmp_path)
    before, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = before
    forget(set(sys.modules) - modules)


def forget(modules: set[str]) -> None:
    """As in a new process."""
    for name in modules:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(Path.cwd()):
            del sys.modules[name]
    factory._trusted.clear()
    factory.structure.cache_clear()
    importlib.invalidate_caches()


def digest(module: str, **values: float) -> object:
    function = f"{module}:make"
    trust(function)
    factory.structure.cache_clear()
    return identity(Factory(name="mine", function=function, resolution=8, in_channels=1, num_classes=3, **values))[  # type: ignore[arg-type]
        "structure"
    ]


def written(directory: Path, prefix: str, top: str, inside: str) -> str:
    source = textwrap.dedent(NET.format(top=top.format(p=prefix), inside=inside.format(p=prefix)))
    (directory / f"{prefix}_package").mkdir()
    files = {
        f"{prefix}.py": source,
        f"{prefix}_helper.py": "value = 1\n",
        f"{prefix}_other.py": f"import {prefix}_helper\n",
        f"{prefix}_unrelated.py": "value = 1\n",
        f"{prefix}_package/__init__.py": "# a package\n",
        f"{prefix}_package/inner.py": "value = 1\n",
        f"{prefix}_package/outer.py": "from .inner import value\nfrom . import inner\n",
        f"{prefix}.yaml": "value: 1\n",
        f"{prefix}.txt": "value = 1\n",
    }
    for name, content in files.items():
        (directory / name).write_text(content)
    return prefix


def test_an_edit_of_any_file_that_is_reached_makes_new_networks_and_of_another_none(directory: Path) -> None:
    for number, (how, (top, inside, edited)) in enumerate(REACHED.items()):
        with case(how):
            module = written(directory, f"net{number}", top, inside)
            before = digest(module)
            assert digest(module) == before
            unrelated = directory / f"{module}_unrelated.py"
            unrelated.write_text("value = 2\n")
            assert digest(module) == before
            path = directory / edited.format(p=module)
            path.write_text(path.read_text() + "value_2 = 2\n")
            assert digest(module) != before
            forget(set(sys.modules))
            after = digest(module)
            forget(set(sys.modules))
            assert digest(module) == after, "another key in another process"


def test_the_version_of_a_package_that_is_imported_is_in_the_key_and_torchs_is_not(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = metadata.version
    factory_sources = importlib.import_module("scalesearch.model.sources")
    for name, top in (("numpy", "import numpy"), ("yaml", "from yaml import safe_load"), ("torch", "")):
        with case(name):
            module = written(directory, f"of_{name}", top, "")
            before = digest(module)
            monkeypatch.setattr(metadata, "version", lambda package: "0.0.1")
            factory_sources._version.cache_clear()
            assert (digest(module) != before) == (name != "torch")
            monkeypatch.setattr(metadata, "version", installed)
            factory_sources._version.cache_clear()


HIDDEN = """
    import functools, types, torch
    from torch import nn

    class Scaled(nn.Module):
        def __init__(self, attribute=None, buffer=None, kept=True):
            super().__init__()
            self.inner = nn.Conv2d(1, 3, 3)
            self.attribute = attribute
            if buffer is not None:
                self.register_buffer("buffer", buffer, persistent=kept)

        def forward(self, x):
            return self.inner(x).mean((2, 3))

    def local(depth):
        class Local(Scaled):
            def forward(self, x):
                return super().forward(x) * depth
        return Local()

    def hooked(depth):
        made = Scaled()
        made.inner.register_forward_hook(lambda module, images, out: out * depth)
        return made

    MADE = {
        "a number": lambda depth: Scaled(depth),
        "text": lambda depth: Scaled(str(depth)),
        "a tuple": lambda depth: Scaled((1, depth)),
        "a list in a dict": lambda depth: Scaled({"sizes": [depth]}),
        "an object": lambda depth: Scaled(types.SimpleNamespace(depth=depth)),
        "a closure": lambda depth: Scaled(lambda x: x * depth),
        "a default": lambda depth: Scaled(eval("lambda x, by=depth: x * by", {"depth": depth})),
        "a partial": lambda depth: Scaled(functools.partial(torch.mul, depth)),
        "a buffer": lambda depth: Scaled(buffer=torch.tensor(depth)),
        "a buffer that is not saved": lambda depth: Scaled(buffer=torch.tensor([depth]), kept=False),
        "a tensor": lambda depth: Scaled(torch.tensor(depth)),
        "a local class": local,
        "a hook": hooked,
    }

    def make(depth, width, resolution, num_classes, in_channels):
        return MADE[WHICH](depth)
"""


def test_multipliers_that_differ_only_in_a_value_beside_the_weights_are_two_networks(directory: Path) -> None:
    (directory / "hides.py").write_text(textwrap.dedent(HIDDEN))
    trust("hides:make")
    module = sys.modules["hides"]
    for which in module.MADE:
        with case(which):
            module.WHICH = which
            one, other = digest("hides", depth=1.0), digest("hides", depth=1.5)
            assert one != other
            assert digest("hides", depth=1.0) == one
            assert digest("hides", depth=1.0, width=1.5) == one  # which the network does not depend on


def test_what_a_module_prints_of_its_address_is_no_part_of_the_key(directory: Path) -> None:
    source = """
        from torch import nn

        class Net(nn.Conv2d):
            def extra_repr(self):
                return f"{object()}"

        def make(depth, width, resolution, num_classes, in_channels):
            return nn.Sequential(*[Net(1, 1, 1) for _ in range(3)])
    """
    (directory / "printing.py").write_text(textwrap.dedent(source))
    kept = [object() for _ in range(3)]
    assert len({digest("printing") for _ in range(3)}) == 1
    assert kept


def test_a_partial_and_an_object_that_is_called_have_their_files_in_the_key(directory: Path) -> None:
    for number, last in enumerate(("functools.partial(made, extra=1)", "Made()", "decorated(made)")):
        with case(last):
            source = f"""
                import functools
                from torch import nn

                def made(depth, width, resolution, num_classes, in_channels, extra=0):
                    return nn.Conv2d(in_channels, num_classes, 1)

                class Made:
                    def __call__(self, **given):
                        return made(**given)

                def decorated(function):
                    @functools.wraps(function)
                    def inner(**given):
                        return function(**given)
                    return inner

                make = {last}
            """
            path = directory / f"called{number}.py"
            path.write_text(textwrap.dedent(source))
            before = digest(path.stem)
            path.write_text(path.read_text().replace("extra=1", "extra=2") + "# edited\n")
            assert digest(path.stem) != before


@pytest.mark.usefixtures("in_this_process")
def test_a_helper_that_was_edited_is_trained_again(directory: Path, command: Callable[..., Ended]) -> None:
    module = written(directory, "trained", "import {p}_helper", "")
    words = f"train baseline.factory={module}:make data=digits recipe=quick recipe.epochs=0.05 recipe.seeds=1 --json"
    words += " recipe.autocast=off proxy=none baseline.resolution=8"
    counts = []
    for value in (1, 1, 2, 1):
        forget(set(sys.modules))
        (directory / f"{module}_helper.py").write_text(f"value = {value}\n")
        code, answer, message = command(words)
        assert code == 8, message  # one step, in which nothing is learnt
        counts.append((answer["evaluations"]["trained"], answer["evaluations"]["reused"]))
    assert counts == [(1, 0), (0, 1), (1, 0), (0, 1)]


def test_a_worker_refuses_a_file_that_was_edited_since_the_command_began(directory: Path) -> None:
    from scalesearch.training import worker

    module = written(directory, "running", "import {p}_helper", "")
    planned = digest(module)
    network = Factory(name="mine", function=f"{module}:make", resolution=8, in_channels=1, num_classes=3)
    specification = {"network": network.table(), "name": "mine", "structure": planned}
    assert worker._network(specification) == network
    (directory / f"{module}_helper.py").write_text("value = 3\n")
    for _ in range(2):  # a worker that has imported it before, and one that starts now
        with pytest.raises(ValueError, match="was changed since the command began"):
            worker._network(specification)
        forget(set(sys.modules))
