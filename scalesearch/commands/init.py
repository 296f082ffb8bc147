"""write a network of your own, as a table and as a function, to be changed: init my_net"""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BeforeValidator, Field

from scalesearch.checks import checked
from scalesearch.workspace import DONE, Directory, conf_dir

if TYPE_CHECKING:
    from scalesearch.config import Groups
    from scalesearch.screen import Screen

GROUPS: dict[str, str | None] = {}
JSON = False  # it has no answer to print
EXAMPLE = "scalesearch init my_net directory=networks"


def _name(given: object) -> object:
    if not isinstance(given, str) or not re.fullmatch(r"[a-z_][a-z0-9_]{0,63}", given) or keyword.iskeyword(given):
        raise ValueError("it must be of small letters, digits and '_', as a Python module's")
    for taken in (given, f"{given}_factory"):
        if (conf_dir() / "baseline" / f"{taken}.yaml").exists():
            raise ValueError(f"there is a baseline {taken!r} already, which would be taken instead")
    return given


@checked()
class Arguments:
    name: Annotated[str, BeforeValidator(_name), Field(description="of the network: scalesearch init my_net")]
    directory: Annotated[Directory, Field(description="where its folder is made")] = Path()


def run(arguments: Arguments, groups: Groups, out: Screen) -> int:
    """Files of a network of one's own."""
    from scalesearch import template

    name, files = arguments.name, template.write(arguments.name, arguments.directory)
    out.say("\n".join(f"written: {path}" for path in files))
    here = "" if arguments.directory == Path() else f"in {arguments.directory}: "
    out.say(f"as a table: {here}scalesearch plan --config-dir {name} baseline={name}")
    out.say(f"as a function: {here}scalesearch plan --config-dir {name} baseline={name}_factory")
    return DONE
