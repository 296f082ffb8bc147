"""What a report is made of: a study's tables, its trainings in the ledger, and the splits that it is held against."""

from __future__ import annotations

import csv
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scalesearch import config
from scalesearch.budget import METRICS, Budget, Footprint, Limits, Profiler
from scalesearch.cost import Cost, cost
from scalesearch.evaluation import Evaluation, Outcome
from scalesearch.ledger import Ledger, evaluation_key
from scalesearch.model import identity
from scalesearch.network import AnyNetwork, Factory, from_table
from scalesearch.scaling import Coefficients, Rounding, scale
from scalesearch.search import BASELINE, Candidate, Grid, TrialResult
from scalesearch.selection import Choice, Pairs, Seeds, select
from scalesearch.training import Recipe, Result


class Scored(NamedTuple):
    """A seed's weights scored on the test split, once."""

    seed: int
    accuracy: float
    num_images: int


class Reference(NamedTuple):
    """A split that needs no search, scaled to the study's budget, and what is known of it as the study's proxy.

    macs_ratio: its counted cost; None where the network cannot be made here, and `problem` says why. in_budget: whether
    that meets the budget, which no scaling of it may, since layers are whole. candidate: the one that is the same
    network, if there is one. seeds: its trainings, of that candidate or from `command`.
    """

    name: str
    coefficients: Coefficients
    macs_ratio: float | None
    in_budget: bool
    candidate: str | None
    seeds: Seeds
    command: str
    problem: str


class Facts(NamedTuple):
    """A finished study, as the questions read it.

    settings: as composed. candidates: with the 1x network. finished: of each its trainings. test: of each its scores on
    the test split, for those that have any. needs: of the chosen variant at phi = 1, of each metric that is limited;
    None where it is not known. fidelity: rows of fidelity.json, None where there is no such file.
    """

    study: str
    workspace: Path
    settings: Mapping[str, Any]
    rule: str
    metric: str
    confidence: float
    grid: Grid
    budget: Budget
    limits: Limits
    choice: Choice
    pairs: Pairs
    candidates: Mapping[str, Candidate]
    finished: Mapping[str, Seeds]
    stopped: Mapping[str, str]
    references: Sequence[Reference]
    test: Mapping[str, Sequence[Scored]]
    variants: Sequence[Mapping[str, Any]]
    needs: Mapping[str, float | None]
    fidelity: Sequence[Mapping[str, Any]] | None

    def means(self) -> dict[str, float]:
        """The mean validation accuracy of each candidate that has finished, best first."""
        table = (
            self.choice.candidates.set_index("candidate")["val_accuracy_mean"].dropna().drop(BASELINE, errors="ignore")
        )
        return {str(name): float(mean) for name, mean in table.sort_values(ascending=False, kind="stable").items()}

    def command(self, name: str = "run", *more: str, anew: bool = False) -> str:
        """The command line that asks `name` of the same settings, with `more`, which replaces what it contradicts.

        anew: these make another study of it, so the name is left out; what is trained already is shared.
        """
        words = config.overrides(self.settings, name, workspace=self.workspace)
        replaced = [word.partition("=")[0] for word in more] + (["study"] if anew else [])
        kept = [
            word for word in words if not any(word.lstrip("+~").startswith((f"{key}=", f"{key}.")) for key in replaced)
        ]
        return shlex.join(["scalesearch", name, *kept, *more])

    def more_seeds(self, number: int) -> str:
        """The command line with which every candidate has so many seeds: of this study, if its strategy gives them."""
        asked = self.settings["search"]
        if asked["strategy"] == "grid" and asked.get("seeds") is None:
            return self.command("run", f"recipe.seeds={number}")
        return self.command("run", "search=grid", f"recipe.seeds={number}", anew=True)


def read(workspace: Path, directory: Path) -> Facts:
    """The facts of a finished study.

    Errors: ValueError where it has not come to a choice, or its files do not go together.
    """
    if not (directory / "result.json").exists():
        raise ValueError(f"study {directory.name!r} has not come to a choice yet; see: scalesearch status")
    try:
        settings = config.from_yaml(directory / "settings.yaml")
        result = json.loads((directory / "result.json").read_bytes())
        with (directory / "candidates.csv").open(newline="") as file:
            table = {row["candidate"]: row for row in csv.DictReader(file)}
        stopped = _json(directory / "stopped.json") or {}
        selection = result.get(
            "selection", {"rule": "best", "metric": "macs"}
        )  # a study from before there was a choice
        grid, budget, limits = config.constraints(settings)
        confidence = float(settings["search"]["confidence"])
        ledger, asked = Ledger(workspace), json.loads((directory / "evaluations.json").read_bytes())["evaluations"]
        records = _records(ledger, asked)
        trained, scores = _trained(records, table), _scores(ledger, records)
        choice = select(
            trained,
            confidence=confidence,
            rule=selection["rule"],
            metric=selection["metric"],
            contenders=sorted({one.candidate.id for one in trained} - stopped.keys() - {BASELINE}),
            macs_ratio=budget.macs_ratio,
        )
        named, variants_of = result["chosen"]["id"], result["variants"]
        fidelity = _json(directory / "fidelity.json")
    except (KeyError, TypeError, AttributeError, FileNotFoundError, json.JSONDecodeError) as error:
        raise ValueError(
            f"the files of study {directory.name!r} are damaged ({error}); give its `scalesearch run` command again"
        ) from None
    if choice.chosen != named:
        raise ValueError(
            f"study {directory.name!r} says that {named} is chosen, and its trainings say {choice.chosen}: it is being "
            "gone on with, or another version answered it; give its `scalesearch run` command again"
        )
    finished: dict[str, dict[int, Any]] = {}
    for one in trained:
        if one.outcome.result is not None:
            finished.setdefault(one.candidate.id, {})[one.outcome.evaluation.seed] = one.outcome.result.correct
    candidates = {one.candidate.id: one.candidate for one in trained}
    facts = Facts(
        study=directory.name,
        workspace=workspace,
        settings=settings,
        rule=selection["rule"],
        metric=selection["metric"],
        confidence=confidence,
        grid=grid,
        budget=budget,
        limits=limits,
        choice=choice,
        pairs=Pairs(finished),
        candidates=candidates,
        finished=finished,
        stopped=stopped,
        references=(),
        test=scores,
        variants=variants_of,
        needs=_needs(settings, candidates[named].coefficients, limits, variants_of),
        fidelity=fidelity,
    )
    described = next(iter(records.values()))["specification"]
    return facts._replace(references=_references(facts, ledger, described))


def _json(path: Path) -> Any:
    return json.loads(path.read_bytes()) if path.exists() else None


def _records(ledger: Ledger, asked: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    """What the ledger has of a study's trainings of the whole recipe, by candidate and seed."""
    whole = [row for row in asked if "epochs" not in row]  # the others are shorter schedules: another recipe
    records = {(row["candidate"], row["seed"]): ledger.get(row["key"]) for row in whole}
    return {place: record for place, record in records.items() if record is not None}


def _trained(
    records: Mapping[tuple[str, int], Mapping[str, Any]], table: Mapping[str, Mapping[str, str]]
) -> list[TrialResult]:
    trained = []
    for (name, seed), record in records.items():
        specification = record["specification"]
        candidate = _candidate(name, table[name], _network(specification["network"], table[name]))
        recipe, init = Recipe(**specification["recipe"]), specification.get("init")
        evaluation = Evaluation(candidate.network, recipe, specification["data"], seed, init)
        result = Result.from_json(record["result"]) if record["state"] == "finished" else None
        trained.append(TrialResult(candidate, Outcome(evaluation, result, record["reason"] or "", reused=True)))
    return trained


def _scores(ledger: Ledger, records: Mapping[tuple[str, int], Mapping[str, Any]]) -> dict[str, list[Scored]]:
    scores: dict[str, list[Scored]] = {}
    for (name, seed), record in records.items():
        tested = ledger.get(evaluation_key({"test_of": record["key"]}))
        if tested is not None and tested["state"] == "finished":
            found = tested["result"]
            scores.setdefault(name, []).append(Scored(seed, found["test_accuracy"], found["num_test"]))
    return scores


def _network(described: Mapping[str, Any], row: Mapping[str, str]) -> AnyNetwork:
    """As it was trained; of a function, which is not called, with the multiplier of depth that the table has."""
    if "factory" not in described:
        return from_table(described, name=row["candidate"])
    kept = {key: described[key] for key in ("factory", "resolution", "in_channels", "num_classes")}
    return from_table(kept | {"depth": float(row["depth"])}, name=row["candidate"])


def _candidate(name: str, row: Mapping[str, str], network: AnyNetwork) -> Candidate:
    counted = Cost(*(int(row[field]) for field in ("macs", "params", "activations")))
    needs = None
    if all(field in row for field in Footprint._fields):
        latency = float(row["latency_ms"]) if row["latency_ms"] else None
        needs = Footprint(int(row["memory"]), int(row["training_memory"]), latency)
    triples = tuple(Coefficients(*(float(value) for value in triple)) for triple in json.loads(row["triples"]))
    return Candidate(name, triples, network, counted, float(row["macs_ratio"]), needs)


def _needs(
    settings: Mapping[str, Any], coefficients: Coefficients, limits: Limits, variants: Sequence[Mapping[str, Any]]
) -> dict[str, float | None]:
    """What the chosen variant at phi = 1 needs of each limited metric: as the study's family has it, or counted."""
    row = next((row for row in variants if row["phi"] == 1), {})
    needs: dict[str, float | None] = {name: row.get(name) for name in limits.given()}
    missing = [name for name, value in needs.items() if value is None and name != "latency_ms"]  # that is not counted
    if missing:
        try:
            table = {key: value for key, value in settings["baseline"].items() if key != "name"}
            rounding = Rounding(**settings["rounding"])
            network = scale(from_table(table, name="variant"), coefficients, 1, rounding=rounding)
            meter = Profiler(batch_size=int(settings["recipe"]["batch_size"]))
            needs |= {name: METRICS[name](network, meter) for name in missing}
        except ValueError:  # a function that only the file names
            pass
    return needs


def _references(facts: Facts, ledger: Ledger, specification: Mapping[str, Any]) -> list[Reference]:
    """The splits that need no search; `specification` is that of any of the study's trainings."""
    references = []
    for name, coefficients in reference_splits(float(facts.grid.product)).items():
        try:
            references.append(_reference(name, coefficients, facts, ledger, specification))
        except ValueError as error:  # more than a table can hold; a function that only the file names
            references.append(Reference(name, coefficients, None, False, None, {}, "", str(error)))
    return references


def _reference(
    name: str, coefficients: Coefficients, facts: Facts, ledger: Ledger, specification: Mapping[str, Any]
) -> Reference:
    described = specification["network"]
    kinds = {key: described[key] for key in ("in_channels", "num_classes")}
    small, rounding = config.small_baseline(facts.settings, **kinds)
    try:
        coefficients, network, ratio = _to_budget(small, coefficients, rounding, facts.budget)
        made = identity(network)
    except ValueError:
        if isinstance(small, Factory):
            raise ValueError(
                f"the baseline is a function, {small.function}, which only the command `run`, that names it, calls"
            ) from None
        raise
    admitted = facts.budget.admits(ratio)
    same = [one.id for one in facts.candidates.values() if one.id != BASELINE and identity(one.network) == made]
    if same:
        return Reference(name, coefficients, ratio, admitted, same[0], facts.finished.get(same[0], {}), "", "")
    seeds: dict[int, Any] = {}
    for seed in sorted({seed for of in facts.finished.values() for seed in of}):
        record = ledger.get(evaluation_key({**specification, "network": made, "seed": seed}))
        if record is not None and record["state"] == "finished":
            seeds[seed] = Result.from_json(record["result"]).correct
    multipliers = f"depth={coefficients.alpha:.9g}", f"width={coefficients.beta:.9g}"
    command = facts.command("train", *multipliers, f"resolution={network.resolution}")
    return Reference(name, coefficients, ratio, admitted, None, seeds, command, "")


def _to_budget(
    small: AnyNetwork, split: Coefficients, rounding: Rounding, budget: Budget
) -> tuple[Coefficients, AnyNetwork, float]:
    """The split, its network and counted ratio, raised or lowered as a whole until that meets the budget.

    Of all such the one that is nearest to what the product says; where the grain of the layers leaves none, the one
    whose cost comes nearest to the budget.
    """
    base, found = cost(small).macs, []
    for percent in sorted(range(-40, 41), key=abs):
        powers = split.multipliers(1 + percent / 100)
        coefficients = Coefficients(*(round(value, 6) for value in powers))
        network = scale(small, coefficients, 1, rounding=rounding)
        found.append((coefficients, network, cost(network).macs / base))
        if budget.admits(found[-1][2]):
            return found[-1]
    return min(found, key=lambda one: abs(math.log(one[2] / budget.macs_ratio)))


def reference_splits(product: float) -> dict[str, Coefficients]:
    """The splits that need no search, scaled to a nominal product.

    "dWr" is of Dollar et al. (arXiv:2103.06877): width squared takes the share 0.8 of the logarithm of the cost, depth
    and resolution squared 0.1 each. The paper's triple is for a product of about 2, and raised to log2 of another one.

    >>> {name: (c.alpha, c.beta, c.gamma) for name, c in reference_splits(2).items()}["dWr"]
    (1.071773, 1.319508, 1.035265)
    """
    phi = math.log2(product)
    splits = {
        "alpha = beta = gamma": (product**0.2,) * 3,
        "dWr": (product**0.1, product**0.4, product**0.05),
        "EfficientNet's": config.PAPERS.multipliers(phi),
    }
    return {name: Coefficients(*(round(value, 6) for value in split)) for name, split in splits.items()}
