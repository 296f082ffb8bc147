"""The reference trainings of a few of a study's candidates: the same, longer, scaled further, or of a larger proxy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from scalesearch.cost import cost
from scalesearch.evaluation import Evaluation, Work, read_record
from scalesearch.fidelity.completed import CompletedStudy, FidelityRequest, num_images
from scalesearch.network import AnyNetwork
from scalesearch.scaling import patch_of, round_resolution, scale
from scalesearch.search import Candidate
from scalesearch.session import Session
from scalesearch.study import StudySettings, point
from scalesearch.training import Recipe


@dataclass(frozen=True)
class ReferenceTraining:
    """A training of a candidate that costs more than its proxy's."""

    candidate: Candidate
    evaluation: Evaluation
    work: float  # multiply-adds x images


def spread(ranking: Sequence[str], chosen: str, number: int) -> list[str]:
    """`number` of a ranking (2 at least; all where it has no more), evenly from its first to its last.

    The chosen one is always among them, in place of the one that is nearest to it.

    >>> spread(["c3", "c1", "c7", "c2", "c5", "c4", "c6"], "c1", 3)
    ['c1', 'c2', 'c6']
    """
    last = len(ranking) - 1
    if number > last:
        return list(ranking)
    places = [round(index * last / (number - 1)) for index in range(number)]
    mine = ranking.index(chosen)
    if mine not in places:
        nearest = min(range(number), key=lambda index: abs(places[index] - mine))
        places[nearest] = mine
    return [ranking[place] for place in places]


def planned(request: FidelityRequest, completed: CompletedStudy) -> list[ReferenceTraining]:
    """The reference trainings: of each chosen candidate, best proxy first, one per seed.

    Raises: ValueError where a reference cannot be built.
    """
    names = spread([candidate.id for candidate in completed.candidates], completed.choice, request.candidates)
    seeds = range(request.seeds or max(2, len(completed.proxies[completed.choice])))  # one has no interval
    found = []
    for candidate in (one for one in completed.candidates if one.id in names):
        try:
            network, recipe = reference(completed.settings, candidate, request.against, request.factor)
            macs = cost(network).macs
        except ValueError as error:
            raise ValueError(
                f"factor is {request.factor:g}, with which the reference of {candidate.id} "
                f"(against={request.against}) cannot be: {error}. Try a smaller one, "
                f"such as factor={1 + (request.factor - 1) / 2:g}"
            ) from None
        for seed in seeds:
            evaluation = Evaluation(network, recipe, completed.fingerprint, seed, completed.init)
            found.append(ReferenceTraining(candidate, evaluation, macs * num_images(completed.settings, recipe)))
    return found


def reference(settings: StudySettings, candidate: Candidate, against: str, factor: float) -> tuple[AnyNetwork, Recipe]:
    """The counterpart of a candidate's proxy that costs more: its network and the recipe that it is trained with.

    against: "epochs", the same network, `factor` times the epochs; "phi", the proxy of the baseline scaled with the
        candidate's coefficients at phi = `factor` instead of 1; "proxy", a proxy of `factor` times the width and
        resolution, and of the same depth and total stride, scaled with them at phi = 1.
    """
    if against == "epochs":
        return candidate.network, replace(settings.recipe, epochs=settings.recipe.epochs * factor)
    name, phi = f"{candidate.id}_{against}{factor:g}", factor
    if against == "proxy":
        small, _ = settings.proxy_network
        side = round_resolution(small.resolution * factor, settings.rounding, patch=patch_of(small))
        proxy = replace(settings.proxy, width=settings.proxy.width * factor, resolution=side)
        settings, phi = replace(settings, proxy=proxy), 1.0
    network, rounding = settings.proxy_network
    return scale(network, candidate.coefficients, phi, rounding=rounding, name=name), settings.recipe


def judged(references: Sequence[ReferenceTraining]) -> list[tuple[Candidate, Evaluation]]:
    """The candidates that are judged, best proxy first, each with one of its reference's evaluations."""
    return list({one.candidate.id: (one.candidate, one.evaluation) for one in references}.values())


class CostEstimate(NamedTuple):
    """What the reference trainings would cost: how many there are and how many the ledger has.

    Multiply-adds x images of all of them, over those of the whole study and over those of the same candidates' proxies
    with as many seeds; seconds of those that are left, with the workers of this command.
    """

    trainings: int
    recorded: int
    of_study: float
    of_proxies: float
    seconds: float


def estimate(completed: CompletedStudy, references: Sequence[ReferenceTraining], session: Session) -> CostEstimate:
    """See `CostEstimate`; nothing is trained, and only where something is left some networks are timed."""
    unique = {one.evaluation.key: one for one in references}
    settings = completed.settings
    known = {key: read_record(session.ledger, key) for key in unique}
    recorded = {
        key for key, one in known.items() if one is not None and not (session.retry and one["state"] == "failed")
    }
    left = [one.evaluation for key, one in unique.items() if key not in recorded]
    work = [Work(one.network, one.recipe, settings.description, 1) for one in left]
    seconds = session.estimated_seconds(work, settings.data) if work else 0.0
    proxies = math.fsum(one.candidate.cost.macs * num_images(settings, settings.recipe) for one in references)
    total = math.fsum(one.work for one in unique.values())
    return CostEstimate(len(unique), len(recorded), total / completed.work, total / proxies, seconds)


def plan_values(
    request: FidelityRequest,
    completed: CompletedStudy,
    references: Sequence[ReferenceTraining],
    expected: CostEstimate,
) -> dict[str, Any]:
    """What `dry_run=true --json` prints."""
    return {
        "study": request.study.name,
        "against": request.against,
        "factor": request.factor,
        "candidates": [
            {
                "id": candidate.id,
                **point(candidate.coefficients, candidate.ratio),
                "chosen": candidate.id == completed.choice,
                "proxy": _values(candidate.network, completed.settings.recipe),
                "reference": _values(evaluation.network, evaluation.recipe),
            }
            for candidate, evaluation in judged(references)
        ],
        "seeds": len({one.evaluation.seed for one in references}),
        "trainings": expected.trainings,
        "in_ledger": expected.recorded,
        "cost_of_study": expected.of_study,
        "cost_of_proxies": expected.of_proxies,
        "estimated_seconds": round(expected.seconds, 1),
    }


def _values(network: AnyNetwork, recipe: Recipe) -> dict[str, float]:
    sizes = {"depth": network.depth, "resolution": network.resolution, "epochs": recipe.epochs}
    return asdict(cost(network)) | sizes
