"""What is found by its name: the modules of a package of ours, and what others have installed as entry points.

A package of somebody else's adds a block, a data set, a strategy or an executor in its pyproject.toml:

    [project.entry-points."scalesearch.strategies"]
    mine = "my_package.my_strategy:Strategy"
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar

from scalesearch.text import one_line

Value = TypeVar("Value")


class Registry(Mapping[str, Value]):
    """Names to what they stand for. Nothing is imported before it is asked for.

    kind: the entry points are those of the group "scalesearch.<kind>".
    builtin: what is here already.
    package: or a package of ours, each module of which is one by its own name, with what it offers as `attribute`.
    """

    def __init__(
        self, kind: str, builtin: Mapping[str, Value] | None = None, *, package: str = "", attribute: str = ""
    ) -> None:
        self.kind = kind
        self._loaded: dict[str, Value] = dict(builtin or {})
        self._package, self._attribute = package, attribute

    @cached_property
    def _modules(self) -> list[str]:
        if not self._package:
            return []
        folder = Path(__file__).parent.joinpath(*self._package.split(".")[1:])  # listed, and not imported for it
        return sorted(module.name for module in pkgutil.iter_modules([str(folder)]) if not module.name.startswith("_"))

    @cached_property
    def _installed(self) -> dict[str, list[EntryPoint]]:
        """By name, one of each value: a package that is found twice on the path is one package."""
        found: dict[str, dict[str, EntryPoint]] = {}
        for point in entry_points(group=f"scalesearch.{self.kind}"):
            found.setdefault(point.name, {}).setdefault(point.value, point)
        return {name: list(points.values()) for name, points in found.items()}

    def __getitem__(self, name: str) -> Value:
        if name not in self._loaded:
            self._refuse_doubles(name)
            if name in self._modules:
                module: Any = importlib.import_module(f"{self._package}.{name}")
                self._loaded[name] = getattr(module, self._attribute) if self._attribute else module
            elif name in self._installed:
                self._loaded[name] = _load(self._installed[name][0])
            else:
                raise KeyError(name)
        return self._loaded[name]

    def _refuse_doubles(self, name: str) -> None:
        offers = [point.value for point in self._installed.get(name, ())] + ["scalesearch"] * (name in self._modules)
        if len(offers) > 1:
            raise ValueError(
                f"{name!r} is offered more than once as one of scalesearch.{self.kind}: by {' and by '.join(offers)}; "
                "uninstall or rename all but one of them"
            )

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._loaded or name in self._modules or name in self._installed)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self._loaded, *self._modules, *self._installed)))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _load(point: EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as error:  # whatever somebody else's module raises when it is imported
        raise ValueError(
            f"{point.name!r} of {point.group} is {point.value}, which cannot be imported: {type(error).__name__}: "
            f"{one_line(error)}; mend or uninstall the package that offers it"
        ) from error
