"""Draw the rooms of the package from its imports, into docs/architecture.md.

    python docs/rooms.py

An arrow leads to what a room imports; where another path leads there as well, the arrow is left out.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "scalesearch"
PAGE = Path(__file__).with_name("architecture.md")
BEGIN, END = "<!-- rooms: python docs/rooms.py -->\n", "<!-- end of rooms -->\n"


def room_of(path: Path) -> str:
    """The first part of a module's name: `tracking` for every file of scalesearch/tracking."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """The rooms that a file imports, at once or in a function; those of `if TYPE_CHECKING` are not loaded."""
    tree = ast.parse(path.read_text())
    types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in types and node.module is not None:
            top, _, rest = node.module.partition(".")
            if top == "scalesearch":
                yield from [rest.partition(".")[0]] if rest else [alias.name for alias in node.names]


def arrows() -> dict[str, set[str]]:
    """Room to the rooms that it imports, without those that it reaches by another one as well."""
    direct: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        room = room_of(path)
        if room not in ("__init__", "__main__"):
            direct.setdefault(room, set()).update(set(imported(path)) - {room, "__version__"})

    def reached(room: str) -> set[str]:
        return {far for near in direct[room] for far in (near, *reached(near))}

    return {
        room: {near for near in rooms if not any(near in reached(other) for other in rooms - {near})}
        for room, rooms in direct.items()
    }


def picture() -> str:
    """The rooms as a Mermaid graph, which GitHub draws."""
    lines = [f"    {room} --> {near}" for room, rooms in sorted(arrows().items()) for near in sorted(rooms)]
    return "\n".join(["```mermaid", "graph TD", *lines, "```", ""])


def page(text: str) -> str:
    """`text` of the page with the picture of today."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + picture() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
