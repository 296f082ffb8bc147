"""What a study has come to, a few of its candidates, and their dearer references: what is trained, at what cost."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from scalesearch import config, study
from scalesearch.config import FidelityRequest, StudySettings
from scalesearch.cost import cost
from scalesearch.evaluation import Evaluation
from scalesearch.executor import default_workers
from scalesearch.ledger import Ledger
from scalesearch.network import AnyNetwork, Factory
from scalesearch.scaling import Coefficients, patch_of, round_resolution, scale
from scalesearch.search import BASELINE, Candidate
from scalesearch.training import Recipe, Result


class CompletedStudy(NamedTuple):
    """What a study has come to. `candidates` are those with a finished training, the best mean first.

    proxies: for each candidate and seed the result of its proxy. `tied` with the choice; both as the study says.
    fingerprint, init: of the data and the initial weights, the same for all its evaluations.
    work, seconds: multiply-adds x images of all finished trainings, the 1x network's too, and the time that they took.
    """

    experiment: StudySettings
    candidates: list[Candidate]
    proxies: dict[str, dict[int, Result]]
    choice: str
    tied: tuple[str, ...]
    fingerprint: str
    init: str | None
    work: float
    seconds: float


@dataclass(frozen=True)
class Reference:
    """A training of a candidate that is dearer than its proxy's."""

    candidate: Candidate
    evaluation: Evaluation
    work: float  # multiply-adds x images


def read_search(question: FidelityRequest, directory: Path, ledger: Ledger) -> CompletedStudy:
    """The study, its networks made again from its settings, and its proxies' results from the ledger.

    Errors: ValueError where it has come to no choice, its files are damaged, its networks would be others today, or
    there is nothing to compare.
    """
    import pandas as pd

    baseline, _, _ = study.chosen(directory)
    if question.function is not None and (not isinstance(baseline, Factory) or baseline.function != question.function):
        own = baseline.function if isinstance(baseline, Factory) else f"the table {baseline.name!r}"
        raise ValueError(
            f"baseline.factory is {question.function!r}; the baseline of study {directory.name!r} is {own}: "
            "leave it out" + (", or name that function" if isinstance(baseline, Factory) else "")
        )
    experiment = replace(config.load_settings(directory), study=directory.name, workspace=question.workspace)
    network, rounding = experiment.proxy_network
    damaged = f"the files of study {directory.name!r} are damaged ({{}}); the study's `scalesearch run` mends them"
    try:
        chosen = json.loads((directory / "result.json").read_bytes())["chosen"]
        choice, tied = str(chosen["id"]), tuple(str(one["id"]) for one in chosen["tied_with"])
        table = pd.read_csv(directory / "trials.csv")
        rows = table[table["state"] == "finished"].to_dict("records")
        triples = {
            str(row["candidate"]): tuple(Coefficients(*triple) for triple in json.loads(str(row["triples"])))
            for row in rows
        }
        keys = {(str(row["candidate"]), int(row["seed"])): str(row["key"]) for row in rows}
        ratios = {str(row["candidate"]): float(row["macs_ratio"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(damaged.format(" ".join(str(error).split()))) from None

    candidates: dict[str, Candidate] = {}
    proxies: dict[str, dict[int, Result]] = {}
    shared: set[tuple[str, str | None]] = set()
    for (name, seed), key in keys.items():
        record = ledger.get(key)
        if record is None or record["state"] != "finished":
            raise ValueError(
                f"{name} seed {seed} of study {directory.name!r} is not in the ledger of {question.workspace}; the "
                "study's `scalesearch run` trains it again"
            )
        if name not in candidates:
            made = scale(network, triples[name][0], 1, rounding=rounding) if name != BASELINE else network
            candidates[name] = Candidate(name, triples[name], made, cost(made), ratios[name])
        fingerprint, init = record["specification"]["data"], record["specification"].get("init")
        if Evaluation(candidates[name].network, experiment.recipe, fingerprint, seed, init).key != key:
            raise ValueError(
                f"{name} of study {directory.name!r} would be another training today: its function was edited, or this "
                "version of scalesearch makes other networks. Begin a new study: scalesearch run"
            )
        shared.add((fingerprint, init))
        proxies.setdefault(name, {})[seed] = Result.from_json(record["result"])
    work = math.fsum(
        candidates[name].cost.macs * _images(experiment, experiment.recipe)
        for name, seeds in proxies.items()
        for _ in seeds
    )
    seconds = math.fsum(result.train_seconds for seeds in proxies.values() for result in seeds.values())
    proxies.pop(BASELINE, None)
    if choice not in proxies:
        raise ValueError(damaged.format(f"its choice {choice!r} has no finished training"))
    if len(proxies) < 2:
        raise ValueError(
            f"study {directory.name!r} has one candidate that was trained, {choice}; a ranking needs at least 2. "
            "A wider grid or a larger budget.tolerance gives more: scalesearch plan"
        )
    fingerprint, init = shared.pop()
    if shared:
        raise ValueError(damaged.format("its trainings are not all of the same images and initial weights"))
    if init is not None and not ledger.initial_path(init).exists():
        raise ValueError(
            f"the weights that study {directory.name!r} starts from are missing ({ledger.initial_path(init)}); the "
            "study's `scalesearch run` puts them there again"
        )
    means = {name: mean_accuracy(seeds.values()) for name, seeds in proxies.items()}
    ranking = sorted(proxies, key=lambda name: (-means[name], name))
    return CompletedStudy(
        experiment,
        [candidates[name] for name in ranking],
        proxies,
        choice,
        tied,
        fingerprint,
        init,
        work,
        seconds,
    )


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


def planned(question: FidelityRequest, searched: CompletedStudy) -> list[Reference]:
    """The reference trainings: of each chosen candidate, best proxy first, one a seed.

    Errors: ValueError where a reference cannot be built.
    """
    names = spread([candidate.id for candidate in searched.candidates], searched.choice, question.candidates)
    seeds = range(question.seeds or max(2, len(searched.proxies[searched.choice])))  # one has no interval
    found = []
    for candidate in (one for one in searched.candidates if one.id in names):
        try:
            network, recipe = reference(searched.experiment, candidate, question.against, question.factor)
            macs = cost(network).macs
        except ValueError as error:
            raise ValueError(
                f"factor is {question.factor:g}, with which the reference of {candidate.id} "
                f"(against={question.against}) cannot be: {error}. Try a smaller one, "
                f"such as factor={_smaller(question.against, question.factor):g}"
            ) from None
        for seed in seeds:
            evaluation = Evaluation(network, recipe, searched.fingerprint, seed, searched.init)
            found.append(Reference(candidate, evaluation, macs * _images(searched.experiment, recipe)))
    return found


def reference(
    experiment: StudySettings, candidate: Candidate, against: str, factor: float
) -> tuple[AnyNetwork, Recipe]:
    """The dearer counterpart of a candidate's proxy: its network and the recipe that it is trained with.

    against: "epochs", the same network, `factor` times the epochs; "phi", the proxy of the baseline scaled with the
        candidate's coefficients at phi = `factor` instead of 1; "proxy", a proxy of `factor` times the width and
        resolution, and of the same depth and total stride, scaled with them at phi = 1.
    """
    if against == "epochs":
        return candidate.network, replace(experiment.recipe, epochs=experiment.recipe.epochs * factor)
    name, phi = f"{candidate.id}_{against}{factor:g}", factor
    if against == "proxy":
        small, _ = experiment.proxy_network
        side = round_resolution(small.resolution * factor, experiment.rounding, patch=patch_of(small))
        proxy = replace(experiment.proxy, width=experiment.proxy.width * factor, resolution=side)
        experiment, phi = replace(experiment, proxy=proxy), 1.0
    network, rounding = experiment.proxy_network
    return scale(network, candidate.coefficients, phi, rounding=rounding, name=name), experiment.recipe


def _smaller(against: str, factor: float) -> float:
    usual = config.AGAINST[against]
    return usual if factor > usual else 1 + (factor - 1) / 2


def picked(references: Sequence[Reference]) -> list[Candidate]:
    """The candidates that are judged, best proxy first."""
    return list({one.candidate.id: one.candidate for one in references}.values())


def networks(references: Sequence[Reference]) -> list[tuple[Candidate, Evaluation]]:
    """The candidates that are judged, best proxy first, each with one of its reference's evaluations."""
    return list({one.candidate.id: (one.candidate, one.evaluation) for one in references}.values())


class CostEstimate(NamedTuple):
    """What the reference trainings would cost: how many there are and how many the ledger has.

    Multiply-adds x images of all of them, over those of the whole study and over those of the same candidates' proxies
    with as many seeds; seconds of those that are left, with the workers of this command, at the pace of the study.
    """

    trainings: int
    recorded: int
    of_study: float
    of_proxies: float
    seconds: float


def expected(
    question: FidelityRequest, searched: CompletedStudy, references: Sequence[Reference], ledger: Ledger
) -> CostEstimate:
    """See `CostEstimate`; nothing is trained or timed."""
    unique = {one.evaluation.key: one for one in references}
    recorded = {
        key
        for key in unique
        if (record := ledger.get(key)) is not None and not (question.retry and record["state"] == "failed")
    }
    experiment = searched.experiment
    proxies = math.fsum(one.candidate.cost.macs * _images(experiment, experiment.recipe) for one in references)
    threads = int(question.executor["threads"])
    workers = int(question.executor["workers"] or 0) or max(1, default_workers() // threads)
    left = [one for key, one in unique.items() if key not in recorded]
    overhead = 10.0 if left else 0.0  # workers that import torch and load the data
    seconds = searched.seconds / searched.work * math.fsum(one.work for one in left) / max(1, min(workers, len(left)))
    total = math.fsum(one.work for one in unique.values())
    return CostEstimate(len(unique), len(recorded), total / searched.work, total / proxies, seconds + overhead)


def plan_values(
    question: FidelityRequest, searched: CompletedStudy, references: Sequence[Reference], outlook: CostEstimate
) -> dict[str, Any]:
    """What `dry_run=true --json` prints."""
    return {
        "study": searched.experiment.study,
        "against": question.against,
        "factor": question.factor,
        "candidates": [
            {
                "id": candidate.id,
                **study.point(candidate.coefficients, candidate.ratio),
                "chosen": candidate.id == searched.choice,
                "proxy": _values(candidate.network, searched.experiment.recipe),
                "reference": _values(evaluation.network, evaluation.recipe),
            }
            for candidate, evaluation in networks(references)
        ],
        "seeds": len({one.evaluation.seed for one in references}),
        "trainings": outlook.trainings,
        "in_ledger": outlook.recorded,
        "cost_of_study": outlook.of_study,
        "cost_of_proxies": outlook.of_proxies,
        "estimated_seconds": round(outlook.seconds, 1),
    }


def _values(network: AnyNetwork, recipe: Recipe) -> dict[str, float]:
    return asdict(cost(network)) | {
        "depth": network.depth,
        "resolution": network.resolution,
        "epochs": recipe.epochs,
    }


def _images(experiment: StudySettings, recipe: Recipe) -> float:
    """Images that a training passes through forwards and backwards; one that is scored counts a third."""
    return experiment.description.num_train * recipe.epochs + experiment.description.num_val / 3


def mean_accuracy(results: Iterable[Result]) -> float:
    """Over seeds, rounded as by `agreement.means`: equal candidates must not differ in the last digit."""
    return round(statistics.fmean(result.val_accuracy for result in results), 12)
