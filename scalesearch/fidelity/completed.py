"""What a study has come to, as `reproduce fidelity` judges it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from scalesearch.cost import cost
from scalesearch.evaluation import Evaluation, read_record
from scalesearch.network import AnyNetwork, Factory
from scalesearch.scaling import scale
from scalesearch.search import BASELINE, Candidate
from scalesearch.study import Study, StudySettings
from scalesearch.training import Recipe, Result


@dataclass(frozen=True, kw_only=True)
class FidelityRequest:
    """What `reproduce fidelity` is asked for.

    against: "epochs", "phi" or "proxy": what makes a reference cost more, by `factor`.
    candidates, seeds: how many of the study's, and of each; seeds of None are as many as the study's choice has, and 2
        at least.
    function: of a study whose networks a Python function makes, that function, named by the user.
    """

    study: Study
    against: str
    factor: float
    candidates: int
    seeds: int | None
    function: str | None
    dry_run: bool


class CompletedStudy(NamedTuple):
    """What a study has come to. `candidates` are those with a finished training, the best mean first.

    proxies: for each candidate and seed the result of its proxy. `tied` with the choice; both as the study has them.
    fingerprint, init: of the data and the initial weights, the same for all its evaluations.
    work: multiply-adds x images of all finished trainings, the 1x network's too.
    """

    settings: StudySettings
    candidates: list[Candidate]
    proxies: dict[str, dict[int, Result]]
    choice: str
    tied: tuple[str, ...]
    fingerprint: str
    init: str | None
    work: float


def completed_study(request: FidelityRequest) -> CompletedStudy:
    """The study, its networks made again from its settings, and its proxies' results from the ledger.

    Raises: ValueError where it has come to no choice, its files are damaged, its networks would be others today, or
    there is nothing to compare.
    """
    study, settings = request.study, request.study.settings
    chosen, _ = study.result["chosen"], study.coefficients
    _refuse_another_function(request)
    candidates, proxies, shared = _made_again(study)
    work = math.fsum(
        candidates[name].cost.macs * num_images(settings, settings.recipe) * len(seeds)
        for name, seeds in proxies.items()
    )
    proxies.pop(BASELINE, None)
    if chosen["id"] not in proxies:
        raise study.damaged(f"its choice {chosen['id']!r} has no finished training")
    if len(proxies) < 2:
        raise ValueError(
            f"study {study.name!r} has one candidate that was trained, {chosen['id']}; a ranking needs at least 2. "
            "A wider grid or a larger budget.tolerance gives more: scalesearch plan"
        )
    fingerprint, init = shared.pop()
    if shared:
        raise study.damaged("its trainings are not all of the same images and initial weights")
    if init is not None and not study.ledger.initial_path(init).exists():
        raise ValueError(
            f"the weights that study {study.name!r} starts from are missing ({study.ledger.initial_path(init)}); the "
            "study's `scalesearch run` puts them there again"
        )
    means = {name: mean_accuracy(seeds.values()) for name, seeds in proxies.items()}
    ranking = sorted(proxies, key=lambda name: (-means[name], name))
    return CompletedStudy(
        settings=settings,
        candidates=[candidates[name] for name in ranking],
        proxies=proxies,
        choice=chosen["id"],
        tied=tuple(one["id"] for one in chosen["tied_with"]),
        fingerprint=fingerprint,
        init=init,
        work=work,
    )


def _refuse_another_function(request: FidelityRequest) -> None:
    baseline, function = request.study.baseline, request.function
    if function is None or (isinstance(baseline, Factory) and baseline.function == function):
        return
    own = baseline.function if isinstance(baseline, Factory) else f"the table {baseline.name!r}"
    raise ValueError(
        f"baseline.factory is {function!r}; the baseline of study {request.study.name!r} is {own}: leave it out"
        + (", or name that function" if isinstance(baseline, Factory) else "")
    )


def _made_again(
    study: Study,
) -> tuple[dict[str, Candidate], dict[str, dict[int, Result]], set[tuple[str, str | None]]]:
    """(candidates by id, their results by seed, the data and initial weights that they had)."""
    settings = study.settings
    network, rounding = settings.proxy_network
    candidates: dict[str, Candidate] = {}
    proxies: dict[str, dict[int, Result]] = {}
    shared: set[tuple[str, str | None]] = set()
    for row in study.finished_rows:
        name, seed = str(row["candidate"]), int(row["seed"])
        record = read_record(study.ledger, str(row["key"]))
        if record is None or record["state"] != "finished":
            raise ValueError(
                f"{name} seed {seed} of study {study.name!r} is not in the ledger of {study.workspace}; the study's "
                "`scalesearch run` trains it again"
            )
        if name not in candidates:
            triples = study.triples(row)
            made: AnyNetwork = scale(network, triples[0], 1, rounding=rounding) if name != BASELINE else network
            candidates[name] = Candidate(name, triples, made, cost(made), float(row["macs_ratio"]))
        data, init = record["specification"]["data"], record["specification"].get("init")
        if Evaluation(candidates[name].network, settings.recipe, data, seed, init).key != row["key"]:
            raise ValueError(
                f"{name} of study {study.name!r} would be another training today: its function was edited, or this "
                "version of scalesearch makes other networks. Begin a new study: scalesearch run"
            )
        shared.add((data, init))
        proxies.setdefault(name, {})[seed] = Result.from_json(record["result"])
    return candidates, proxies, shared


def num_images(settings: StudySettings, recipe: Recipe) -> float:
    """Images that a training passes through forwards and backwards; one that is scored counts a third."""
    return settings.description.num_train * recipe.epochs + settings.description.num_val / 3


def mean_accuracy(results: Iterable[Result]) -> float:
    """Over seeds, rounded as by `agreement.means`: equal candidates must not differ in the last digit."""
    return round(statistics.fmean(result.val_accuracy for result in results), 12)
