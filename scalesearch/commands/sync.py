"""bring into MLflow and Optuna's database what has not arrived there"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from scalesearch.checks import checked
from scalesearch.commands import status
from scalesearch.text import plural
from scalesearch.workspace import DONE, find_records

if TYPE_CHECKING:
    from scalesearch.config import Groups
    from scalesearch.evaluation import Outcome
    from scalesearch.screen import Screen
    from scalesearch.study import Study

GROUPS = {"tracking": "mlflow"}
JSON = False  # it has no answer to print
EXAMPLE = "scalesearch sync study=NAME rebuild=true"


@checked()
class Arguments(status.Arguments):
    rebuild: Annotated[bool, Field(description="replay everything, into an MLflow that was lost, say")] = False


def run(arguments: Arguments, groups: Groups, out: Screen) -> int:
    """What waits for MLflow, of a study, an experiment or a training, is sent."""
    from scalesearch.study import Study
    from scalesearch.tracking import sync

    directory = find_records(arguments.workspace, arguments.study)
    if directory.parent.name == "studies":
        show_in_optuna(Study(arguments.workspace, directory), out)
    sent = sync(uri=groups.tracking.uri, workspace=arguments.workspace, directory=directory, rebuild=arguments.rebuild)
    out.say(f"{directory.name}: {plural(sent, 'record')} sent to MLflow")
    return DONE


def show_in_optuna(study: Study, out: Screen) -> None:
    """The candidates of a study in Optuna's database, where a driver of it does not write there now."""
    from scalesearch.ledger import is_locked
    from scalesearch.search import BASELINE, OptunaView
    from scalesearch.workspace import sqlite_url

    if is_locked(study.directory) or not (study.directory / "candidates.csv").exists():
        out.say(f"{study.name}: its `scalesearch run` command fills Optuna's database")
        return
    settings, stopped, keys = study.settings, study.stopped, study.first_keys
    view = OptunaView(
        sqlite_url(study.workspace / "optuna.db"), study.name, settings.space, settings.recipe, lambda one: keys[one.id]
    )
    outcomes: dict[str, list[Outcome]] = {}
    candidates = {one.candidate.id: one.candidate for one in study.trials if one.candidate.id != BASELINE}
    for one in study.trials:
        outcomes.setdefault(one.candidate.id, []).append(one.outcome)
    for name, candidate in candidates.items():
        view.begin(candidate)
        view.end(candidate, outcomes[name], reason=stopped.get(name, ""))
    if (lagging := view.close()) is not None:
        raise OSError(lagging)
    out.say(f"{study.name}: {plural(len(candidates), 'candidate')} in Optuna's database")
