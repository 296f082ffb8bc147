"""bring into MLflow what has not arrived there"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from scalesearch.checks import checked
from scalesearch.commands import status
from scalesearch.workspace import DONE, find_records

if TYPE_CHECKING:
    from scalesearch.config import Groups
    from scalesearch.screen import Screen

GROUPS = {"tracking": "mlflow"}
JSON = False  # it has no answer to print
EXAMPLE = "scalesearch sync study=NAME rebuild=true"


@checked()
class Arguments(status.Arguments):
    rebuild: Annotated[bool, Field(description="replay everything, into an MLflow that was lost, say")] = False


def run(arguments: Arguments, groups: Groups, out: Screen) -> int:
    """What waits for MLflow, of a study, an experiment or a training, is sent."""
    from scalesearch.tracking import sync

    directory = find_records(arguments.workspace, arguments.study)
    sent = sync(uri=groups.tracking.uri, workspace=arguments.workspace, directory=directory, rebuild=arguments.rebuild)
    out.say(f"{directory.name}: {sent} records sent to MLflow")
    return DONE
