"""figures and tables of the paper from trainings of your own, and whether a proxy can be trusted"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from scalesearch.checks import checked
from scalesearch.text import near, typed
from scalesearch.workspace import Directory, InitialWeights, experiments

if TYPE_CHECKING:
    from scalesearch.config import Groups
    from scalesearch.paper.request import ExperimentRequest
    from scalesearch.screen import Screen

GROUPS = {
    "baseline": None,
    "proxy": "none",
    "rounding": "fine",
    "data": None,
    "data@target": None,  # of transfer alone: the data that networks are tuned on
    "recipe": None,
    "executor": "local",
    "tracking": "mlflow",
    "experiment": None,  # NAME, as in `scalesearch reproduce NAME`
}
MORE = ("baselines",)  # keys that an experiment's YAML may have beside the groups
EXAMPLE = "scalesearch reproduce figure8 experiment.costs=[2,4] recipe.seeds=5"


@checked()
class Arguments:
    workspace: Annotated[Directory, Field(description="shared with `scalesearch run`: nothing is trained twice")] = (
        Path("workspace")
    )
    init: Annotated[InitialWeights | None, Field(description="weights to start from")] = None
    test: Annotated[bool, Field(description="score the test split as well")] = False
    dry_run: Annotated[bool, Field(description="show what would be trained and what it costs; train nothing")] = False
    retry: Annotated[bool, Field(description="run trainings again that have failed")] = False


def notes() -> str:
    """The experiments, for the help."""
    lines = [
        textwrap.fill(f"{name:<20}  {about}", 120, subsequent_indent=" " * 22) for name, about in experiments().items()
    ]
    lines.append(
        "fidelity              Can the proxies of a study be trusted? Its own help: scalesearch fidelity --help"
    )
    return "\n".join(["== Experiments: scalesearch reproduce NAME ==", "", *lines])


def run(arguments: Arguments, groups: Groups, out: Screen) -> int:
    """One experiment of the paper, from its points to its figure."""
    from scalesearch.paper.run import run as run_experiment
    from scalesearch.session import Session

    request = request_of(arguments, groups)
    session = Session(arguments.workspace, groups.executor, out, request.directory, arguments.retry, groups.tracking)
    return run_experiment(request, session)


def request_of(arguments: Arguments, groups: Groups) -> ExperimentRequest:
    """The experiment with its options, and what it is run on."""
    from scalesearch.compose import command_words
    from scalesearch.paper import EXPERIMENTS
    from scalesearch.paper.request import ExperimentRequest, experiment_of

    values = groups.values
    options = dict(values.get("experiment") or {})
    name = options.pop("name", None)
    if name not in EXPERIMENTS:
        raise ValueError(f"experiment.name is {name!r}{near(name, EXPERIMENTS)}")
    has_data, has_recipe = (bool(values.get(key)) for key in ("data", "recipe"))
    if has_data != has_recipe:
        raise ValueError("data and recipe belong together: what is trained needs both, and else there is neither")
    experiment = experiment_of(name, options, arguments.workspace)
    if values.get("target") and not experiment.tunes:
        raise ValueError(
            f"target is {groups.target.name!r}, which {name} does not read; only transfer tunes on other data"
        )
    baselines, rounding = groups.baselines
    called, words = command_words("experiment")
    silent = ("experiment=", "workspace=", "dry_run=", "retry=", "executor.", "tracking")
    return ExperimentRequest(
        name=called,
        experiment=experiment,
        baselines=baselines,
        rounding=rounding,
        recipe=groups.recipe if has_recipe else None,
        seeds=groups.seeds if has_recipe else 1,
        data=groups.data if has_data else None,
        target=groups.target if values.get("target") else None,
        init=arguments.init,
        test=arguments.test,
        dry_run=arguments.dry_run,
        workspace=arguments.workspace,
        command=typed("reproduce", called, *(w for w in words if not w.startswith(silent))),
    )
