"""MLflow's interface on this machine, with links to the study"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from scalesearch.checks import between, checked
from scalesearch.workspace import Directory, StudyName

if TYPE_CHECKING:
    from scalesearch.config import Groups
    from scalesearch.screen import Screen

GROUPS = {"tracking": "mlflow"}
JSON = False  # it has no answer to print
EXAMPLE = "scalesearch ui port=5001"


@checked()
class Arguments:
    study: Annotated[StudyName | None, Field(description="null: links to all studies")] = None
    workspace: Directory = Path("workspace")
    port: Annotated[int, between(1024, 65_535)] = 5000


def run(arguments: Arguments, groups: Groups, out: Screen) -> int:
    """MLflow's pages on 127.0.0.1, until it is stopped."""
    from scalesearch.tracking import serve

    return serve(
        workspace=arguments.workspace,
        uri=groups.tracking.uri,
        port=arguments.port,
        study=arguments.study,
        show=out.say,
    )
