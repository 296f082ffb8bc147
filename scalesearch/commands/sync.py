"""bring into MLflow what has not arrived there"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from scalesearch.checks import checked
from scalesearch.commands import status
from scalesearch.workspace import DONE

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
    """What waits in the study's spool is sent to MLflow."""
    from scalesearch.study import Study
    from scalesearch.tracking import sync

    study = Study.read(arguments.workspace, arguments.study)
    sent = sync(
        uri=groups.tracking.uri,
        workspace=study.workspace,
        study=study.name,
        directory=study.directory,
        rebuild=arguments.rebuild,
    )
    out.say(f"study {study.name}: {sent} records sent to MLflow")
    return DONE
