"""What a user's function depends on: modules of theirs that it reaches, packages these import, files that it reads.

The key of a training holds their digests, so that an edit of any of them makes new networks.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.machinery
import importlib.metadata
import os
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

_OURS = ("torch", "scalesearch")  # no part of the key of a table either: `ledger.VERSION` stands for them
_LIBRARIES = tuple(
    str(Path(sysconfig.get_path(name)).resolve()) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
_VARIABLE = re.compile(r"""(?:\benviron(?:\s*\.\s*\w+)?\s*[\[(]|\bgetenv\s*\()\s*["'](\w+)["']""")
_ELSEWHERE = (sys.prefix + os.sep, *("/proc/", "/sys/", "/dev/", "/etc/", "/usr/"))


class Sources(NamedTuple):
    """Digest by name of the user's modules, version by name of the packages, digests of other files.

    environment: of variables that the modules name, as they are now; None where one is not set.
    """

    modules: dict[str, str]
    packages: dict[str, str]
    files: list[str]
    environment: dict[str, str | None]


def sources(function: str, made: Callable[..., Any], loaded: set[str], read: set[str]) -> Sources:
    """What `function` ("package.module:name"), which is `made`, depends on, as it is on disk now.

    loaded: modules that were seen to be imported by it, in whatever way. read: paths that it was seen to open.
    The package that the function itself is of counts as the user's wherever it lies. torch is left out.
    """
    own = function.partition(":")[0]
    names = {own, getattr(made, "__module__", None) or own, *loaded}
    waiting = sorted(name for name in names if name in sys.modules)
    modules: dict[str, Path] = {}
    packages: set[str] = set()
    seen = set(waiting)
    while waiting:
        name = waiting.pop()
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top in _OURS:
            continue
        path = _file(name)
        if path is None:
            continue
        if top != own.partition(".")[0] and is_installed(path):
            packages.add(top)
            continue
        modules[name] = path
        found = set(_imports(name, path)) | {name.rpartition(".")[0]} - {""}
        waiting += sorted(found - seen)
        seen |= found
    paths = {path.resolve() for path in modules.values()}
    variables = {
        name for path in paths if path.suffix == ".py" for name in _VARIABLE.findall(path.read_text("utf-8", "replace"))
    }
    others = {Path(path).resolve() for path in read} - paths
    return Sources(
        modules={name: _digest(path) for name, path in sorted(modules.items()) if path.stat().st_size},
        packages={name: _version(name) for name in sorted(packages)},
        files=sorted(_digest(path) for path in others if _is_users(path)),
        environment={name: os.environ.get(name) for name in sorted(variables)},
    )


@contextmanager
def watched(loaded: set[str], read: set[str]) -> Iterator[None]:
    """While this is open, modules that are imported are added to `loaded`, files that are opened to `read`."""
    if not _hooked:
        sys.addaudithook(_on_event)  # there is no way to take one off again, so there is one for all
        _hooked.append(True)
    before = set(sys.modules)
    _watching.append(read)
    try:
        yield
    finally:
        _watching.remove(read)
        loaded |= {name for name in sys.modules.keys() - before if (path := _file(name)) and not is_installed(path)}


_hooked: list[bool] = []
_watching: list[set[str]] = []


def _on_event(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event == "open":
        path, mode, flags = arguments
        if isinstance(path, str | os.PathLike) and not (flags or 0) & (os.O_WRONLY | os.O_RDWR) and mode != "w":
            for read in _watching:
                read.add(os.path.abspath(path))  # noqa: PTH100 - what a path is opens no file here


def _is_users(path: Path) -> bool:
    """Whether a file that was opened is the user's: no library's, no compiled module, no module of Python's."""
    name = str(path)
    if path.suffix == ".pyc" or name.startswith(_ELSEWHERE) or is_installed(path) or not path.is_file():
        return False
    return not any(name == getattr(module, "__file__", None) for module in list(sys.modules.values()))


def is_installed(path: Path) -> bool:
    """Whether a file is of Python or of an installed package, and not the user's own."""
    return str(path.resolve()).startswith(_LIBRARIES) or bool({"site-packages", "dist-packages"} & set(path.parts))


def _file(name: str) -> Path | None:
    """Of a module that is loaded, or would be; nothing is imported for it. None where it has none."""
    module = sys.modules.get(name)
    if module is not None:
        given = getattr(module, "__file__", None)
    else:
        parent, _, _ = name.rpartition(".")
        within = getattr(sys.modules.get(parent), "__path__", None) if parent else None
        if parent and within is None:
            package = _file(parent)
            if package is None or package.name != "__init__.py":
                return None
            within = [str(package.parent)]
        try:
            spec = importlib.machinery.PathFinder.find_spec(name, within)
        except (ImportError, ValueError, AttributeError):
            return None
        given = spec.origin if spec is not None else None
    path = Path(given) if given else None
    return path if path is not None and path.is_file() else None


def _imports(name: str, path: Path) -> Iterator[str]:
    """Names that may be modules, of every import in the file, those inside of functions among them."""
    if path.suffix != ".py":
        return
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:
        return  # its import says so
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_parents(alias.name)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".") if package else []
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            origin = ".".join(part for part in (base, node.module) if part)
            yield from _with_parents(origin)
            yield from (f"{origin}.{alias.name}".lstrip(".") for alias in node.names)


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".") if name else []
    yield from (".".join(parts[: end + 1]) for end in range(len(parts)))


def _digest(path: Path) -> str:
    found = path.stat()
    if found.st_size < 1_000_000:  # two edits of a small file may follow each other faster than the clock of the disk
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return _digest_of(str(path), found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=1024)
def _digest_of(path: str, _changed: int, _size: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache
def _version(package: str) -> str:
    """Of the distribution that has the package; "" where none says so."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        owners = importlib.metadata.packages_distributions().get(package, [])  # reads all that is installed
        return importlib.metadata.version(owners[0]) if owners else ""
