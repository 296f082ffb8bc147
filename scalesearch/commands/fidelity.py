"""whether the proxies of a study can be trusted: its ranking compared with that of a training that costs more"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from scalesearch.checks import between, checked
from scalesearch.workspace import Directory, StudyName

if TYPE_CHECKING:
    from scalesearch.config import Groups
    from scalesearch.screen import Screen
    from scalesearch.study import Study

GROUPS = {
    "baseline": None,  # a study has its own; only a Python function is named again: baseline.factory=module:function
    "executor": "local",
    "tracking": "mlflow",
}
EXAMPLE = "scalesearch fidelity study=NAME against=phi factor=2 candidates=8"
AGAINST = {"epochs": 4.0, "phi": 2.0, "proxy": 1.5}  # references that cost more, each with its usual factor


@checked(kw_only=True)
class Arguments:
    study: Annotated[StudyName | None, Field(description="null: the only one")] = None
    workspace: Annotated[Directory, Field(description="shared with `scalesearch run`: nothing is trained twice")] = (
        Path("workspace")
    )
    against: Annotated[
        Literal["epochs", "phi", "proxy"], Field(description="trained longer, scaled further, or a larger proxy")
    ] = "epochs"
    factor: Annotated[
        float | None,
        between(1.01, 1000, "times the epochs; the phi; times width and resolution of the proxy. null: 4, 2 or 1.5"),
    ] = None
    candidates: Annotated[
        int, between(2, 10_000, "the chosen one and others, spread evenly over the ranking of the study")
    ] = 5
    metric: Annotated[
        str | None, Field(description="the Python function that the study is judged by, where it is: named again")
    ] = None
    seeds: Annotated[int | None, between(1, 1000, "of each; null: as many as the study's choice has, 2 at least")] = (
        None
    )
    dry_run: Annotated[bool, Field(description="show what would be trained and what it costs; train nothing")] = False
    retry: Annotated[bool, Field(description="run trainings again that have failed")] = False


def notes() -> str:
    """What the help has beside keys and groups."""
    return (
        "With the usual settings (5 candidates, 4 times the epochs) it costs about as much as a study of 20 candidates "
        "with\nas many seeds; dry_run=true shows how much, and how long."
    )


def run(arguments: Arguments, groups: Groups, out: Screen) -> int:
    """The two rankings and their rank correlation; the study's fidelity.json keeps it."""
    from scalesearch import fidelity
    from scalesearch.session import Session
    from scalesearch.study import Study

    study = Study.read(arguments.workspace, arguments.study)
    _trust_metric(arguments.metric, study)
    request = fidelity.FidelityRequest(
        study=study,
        against=arguments.against,
        factor=arguments.factor or AGAINST[arguments.against],
        candidates=arguments.candidates,
        seeds=arguments.seeds,
        function=_function(groups),
        dry_run=arguments.dry_run,
    )
    session = Session(arguments.workspace, groups.executor, out, study.directory, arguments.retry, groups.tracking)
    return fidelity.run(request, session)


def _trust_metric(named: str | None, study: Study) -> None:
    """Import the function by which the study's networks are judged, where the user has named it."""
    from scalesearch.training import metrics

    own = study.metric if ":" in (study.metric or "") else None
    if own is None and named is not None:
        raise ValueError(
            f"metric is {named!r}; study {study.name!r} is judged by {study.metric or 'accuracy'}: leave it out"
        )
    if own is not None and named != own:
        given = "" if named is None else f", and metric is {named!r}"
        raise ValueError(
            f"study {study.name!r} is judged by the function {own}{given}; only its file says so, and what a file "
            f"names is not run. Name it yourself: metric={own}"
        )
    if own is not None:
        metrics.trust(own)


def _function(groups: Groups) -> str | None:
    """The function that the user names, trusted from here on; a study has its tables itself."""
    from scalesearch.config import network_of
    from scalesearch.model import trust
    from scalesearch.network import Factory

    if not groups.values.get("baseline"):
        return None
    if groups.values["baseline"].get("factory") is None:
        raise ValueError(
            "baseline is given, and the study has its own; leave it out. Only a Python function is named again: "
            "baseline.factory=my_package.my_net:make"
        )
    network = network_of(groups.values["baseline"], trusted=False, name="baseline")
    assert isinstance(network, Factory)
    trust(network.function)
    return network.function
