"""how far a study is"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from scalesearch.checks import checked
from scalesearch.workspace import DONE, Directory, StudyName

if TYPE_CHECKING:
    from scalesearch.config import Groups
    from scalesearch.screen import Screen

GROUPS: dict[str, str | None] = {}
EXAMPLE = "scalesearch status study=NAME"


@checked()
class Arguments:
    study: Annotated[StudyName | None, Field(description="null: the only one")] = None
    workspace: Directory = Path("workspace")


def run(arguments: Arguments, groups: Groups, out: Screen) -> int:
    """The state of a study, its failures, and what goes on with it."""
    from scalesearch.study import Study
    from scalesearch.training import ACCURACY, metric_name

    study = Study.read(arguments.workspace, arguments.study)
    answer, score = study.status(), metric_name(study.metric or ACCURACY)
    counts, best = answer["evaluations"], answer["best"]
    out.say(
        f"study {answer['study']}: {answer['state']}; {counts['done']} of {counts['total']} evaluations done, "
        f"{counts['failed']} failed"
        + (f"; best so far {best['candidate']} with {100 * best[f'val_{score}_mean']:.2f} %" if best else "")
    )
    if answer["nothing_learnt"] is not None:
        out.say(f"{answer['nothing_learnt']['reason']}, so nothing is chosen. {answer['nothing_learnt']['remedy']}")
    for failure in answer["failures"]:
        out.say(f"  failed: {failure['candidate']} seed {failure['seed']}: {failure['reason']}")
    if answer["state"] == "interrupted":
        out.say("the same `scalesearch run` command goes on from there")
    elif counts["failed"]:
        out.say("`scalesearch retry` with the same overrides runs the failed ones again")
    out.answer(answer)
    return DONE
