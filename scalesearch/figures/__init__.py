"""The last step: what was found, as figures for a paper (after sections 3.3 and 5.1 of arXiv:1905.11946).

`study` has those of a study, one module each; `paper` has panels of lines for the paper's experiments; `drawing` has
what all share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scalesearch.figures.drawing import save
from scalesearch.registry import Registry
from scalesearch.text import listed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pandas import DataFrame

__all__ = ["FIGURES", "draw_all", "save"]

FIGURES: Registry[Any] = Registry("figures", package="scalesearch.figures.study")


def draw_all(tables: Mapping[str, DataFrame], directory: Path, *, title: str) -> list[Path]:
    """The files of every figure whose table is given, as `save` writes them.

    Raises:
        ValueError: a table has a name that no figure reads, or lacks a column.
    """
    known = sorted({figure.TABLE for figure in FIGURES.values()})
    if unknown := sorted(set(tables) - set(known)):
        raise ValueError(f"no figure reads a table {unknown[0]!r}, only {listed(known, 'or')}")
    files = []
    for name, figure in FIGURES.items():
        if figure.TABLE in tables:
            drawn = figure.draw(figure.data(tables[figure.TABLE]), title=title)
            files += save(drawn, directory, name, title=f"{title}: {name}")
    return files
