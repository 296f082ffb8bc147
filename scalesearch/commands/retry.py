"""as run, and the failed evaluations once more"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from scalesearch.commands import run as _run
from scalesearch.commands.run import GROUPS, Arguments

if TYPE_CHECKING:
    from scalesearch.config import Groups
    from scalesearch.screen import Screen

__all__ = ["GROUPS", "Arguments"]
EXAMPLE = "scalesearch retry baseline=mobilenetv2"


def run(arguments: Arguments, groups: Groups, out: Screen) -> int:
    """`run` with retry=true."""
    return _run.run(replace(arguments, retry=True), groups, out)
