from __future__ import annotations

import ast
import functools
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

from conftest import case, script

import scalesearch
from scalesearch import cli

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "scalesearch"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCES = sorted(PACKAGE.rglob("*.py"))

# The rooms in the order of the method: each imports only from those before it.
ROOMS = (
    *(
        "text",
        "signals",
        "checks",
        "registry",
        "workspace",
        "network",
        "scaling",
        "model",
        "cost",
        "probing",
        "machine",
        "kernels",
        "memory",
        "latency",
        "data",
        "pretrained",
        "training",
        "ledger",
    ),
    "budget",
    *(
        "executor",
        "evaluation",
        "posterior",
        "surface",
        "search",
        "selection",
        "variants",
        "fitting",
        "export",
        "template",
        "tracking",
    ),
    *(
        "figures",
        "compose",
        "config",
        "command_line",
        "screen",
        "session",
        "study",
        "report",
        "planning",
        "run",
        "fidelity",
    ),
    *("paper", "commands", "cli"),
)
DOORS = {
    "optuna": {"search"},
    "ray": {"executor"},
    "mlflow": {"tracking"},
    "matplotlib": {"figures"},
    "hydra": {"compose", "cli"},
    "omegaconf": {"compose", "config", "cli"},
    "rich": {"screen"},
    "sklearn": {"data"},
    "PIL": {"data"},
    "huggingface_hub": {"pretrained"},
    "torchvision": {"pretrained"},
    "timm": {"model", "pretrained", "export"},
    "onnxruntime": {"export"},
    "captum": {"paper"},
    "safetensors": {"data", "pretrained", "training", "export", "tracking"},
}
UNPICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def room_of(path: Path) -> str:
    """`tracking` for every file of scalesearch/tracking; `__init__` for the package's own."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def installed() -> dict[str, list[str]]:
    return dict(packages_distributions())


@functools.cache
def imports(path: Path) -> tuple[tuple[str, str], ...]:
    """(dotted name, when) of every import: at "once", "later" in a function, or for its "types" alone."""
    tree = parsed(path)
    when: dict[int, str] = {}
    found: list[tuple[str, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            when.update((id(inner), "later") for inner in ast.walk(node))
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            when.update((id(inner), "types") for inner in ast.walk(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, when.get(id(node), "once")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide which room is meant"
            found += [(f"{node.module}.{alias.name}", when.get(id(node), "once")) for alias in node.names]
    return tuple(found)


def third_party(path: Path) -> Iterator[tuple[str, str]]:
    for name, when in imports(path):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top != "scalesearch":
            yield top, when


def distribution(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", requirement)[0]).lower()  # type: ignore[index]


def test_every_module_has_its_place_in_the_order() -> None:
    assert {room_of(path) for path in SOURCES} - {"__init__", "__main__"} == set(ROOMS)


def test_a_room_imports_only_from_those_before_it() -> None:
    for path in SOURCES:
        with case(name_of(path)):
            room = room_of(path)
            before = ROOMS[: ROOMS.index(room)] if room in ROOMS else ("cli",) if room == "__main__" else ()
            for name, when in imports(path):
                top, _, rest = name.partition(".")
                if top == "scalesearch" and rest != "__version__":
                    other = rest.partition(".")[0]
                    # The package itself opens its doors when somebody knocks, and loads nothing before.
                    lazily = room == "__init__" and when != "once"
                    assert lazily or other in (*before, room), f"{room} may not import {other}"


def test_a_library_has_one_door() -> None:
    for path in SOURCES:
        with case(name_of(path)):
            for library, when in third_party(path):
                if when == "types":  # nothing is loaded, and nothing of the library is used
                    continue
                assert room_of(path) in DOORS.get(library, set(ROOMS)), f"{library} belongs to {DOORS[library]}"


def test_the_table_of_doors_names_libraries_that_are_used() -> None:
    assert set(DOORS) <= {library for path in SOURCES for library, _ in third_party(path)}


def test_what_is_imported_is_declared() -> None:
    core = {distribution(requirement) for requirement in PROJECT["dependencies"]}
    extras = {
        distribution(requirement)
        for name, requirements in PROJECT["optional-dependencies"].items()
        for requirement in requirements
        if name != "dev"
    }
    known = installed()
    for path in SOURCES:
        with case(name_of(path)):
            for library, when in third_party(path):
                provided = {distribution(name) for name in known.get(library, [library])}
                allowed = core if when == "once" else core | extras
                assert provided & allowed, f"{library} is imported ({when}) and not declared for that"


def test_what_is_declared_is_imported() -> None:
    known = installed()
    imported = {
        distribution(name) for path in SOURCES for library, _ in third_party(path) for name in known.get(library, [])
    }
    # Never imported: a lower bound on what optuna and mlflow bring along, and what makes optuna's sampler quick.
    floors = {"alembic", "greenlet"}
    assert {distribution(requirement) for requirement in PROJECT["dependencies"]} - imported == floors


def test_nothing_read_from_a_file_is_executed() -> None:
    for path in SOURCES:
        with case(name_of(path)):
            for name, _ in imports(path):
                assert not UNPICKLING & set(name.split(".")), name
                assert not name.startswith("hydra.utils"), name
            for node in ast.walk(parsed(path)):
                if isinstance(node, ast.Call):
                    called = ast.unparse(node.func)
                    assert called not in {"eval", "exec", "compile", "__import__", "torch.load", "yaml.load"}, called
                    assert called.rpartition(".")[2] not in {"instantiate", "unsafe_load", "full_load"}, called
                    assert "allow_pickle" not in {keyword.arg for keyword in node.keywords}, called


def test_what_is_public_says_what_it_is() -> None:
    for path in SOURCES:
        with case(name_of(path)):
            tree = parsed(path)
            assert ast.get_docstring(tree), "the module"
            door = path.parent / "__init__.py"  # of a room that is a folder, what others may use stands in `__all__`
            for node in tree.body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                    if path.parent != PACKAGE and f'"{node.name}"' not in door.read_text():
                        continue
                    assert ast.get_docstring(node), node.name


CONFIGURATIONS = sorted((ROOT / "conf").rglob("*.yaml"))


def test_every_configuration_opens_with_what_it_is_and_a_command() -> None:
    for path in CONFIGURATIONS:
        with case(path.relative_to(ROOT)):
            head = []
            for line in path.read_text().splitlines():
                if not line.startswith("#"):
                    break
                head.append(line.lstrip("# "))
            words = [line for line in head if line and not line.startswith(("@package", "scalesearch "))]
            assert words, "no sentence says what it is"
            commands = re.findall(r"(?m)(?:^|[`(]|: )scalesearch (\w+)", "\n".join(head))
            assert commands, "no command that uses it"
            assert set(commands) <= set(cli.commands())


def test_the_version_is_the_same_everywhere() -> None:
    assert scalesearch.__version__ == PROJECT["version"]


def test_the_picture_of_the_rooms_is_that_of_the_imports() -> None:
    rooms = script(ROOT / "docs" / "rooms.py")
    page = (ROOT / "docs" / "architecture.md").read_text()
    assert rooms.page(page) == page, "python docs/rooms.py"
    assert rooms.arrows().keys() == set(ROOMS)


def test_every_room_stands_in_the_table_in_its_order() -> None:
    table = re.findall(r"(?m)^\| `(\w+)` \|", (ROOT / "docs" / "architecture.md").read_text())
    assert table == list(ROOMS)


def test_files_and_functions_are_short() -> None:
    for path in SOURCES:
        with case(name_of(path)):
            assert len(path.read_text().splitlines()) <= 500
            for node in ast.walk(parsed(path)):
                if isinstance(node, ast.FunctionDef) and node.name != "train":  # the loop is read in one piece
                    body = node.body[1:] if ast.get_docstring(node) else node.body
                    assert not body or (body[-1].end_lineno or 0) - body[0].lineno < 60, node.name
