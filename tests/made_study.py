"""Studies on disk whose trainings are made up, so that their truth is known, in a real ledger."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from conftest import study_settings

from scalesearch import report, search
from scalesearch.config import to_yaml
from scalesearch.evaluation import Evaluation, Outcome
from scalesearch.ledger import Ledger, evaluation_key
from scalesearch.search import BASELINE, Candidate, Plan, TrialResult
from scalesearch.selection import select
from scalesearch.selection import words as words_of
from scalesearch.study import Study, StudySettings
from scalesearch.training import Result

IMAGES, TESTED = 2000, 3000


class Made(NamedTuple):
    """A study on disk as `run` leaves it, of which nothing was trained."""

    workspace: Path
    directory: Path
    experiment: StudySettings
    plan: Plan
    ledger: Ledger

    def facts(self) -> report.Facts:
        return report.read(Study(self.workspace, self.directory))

    def answers(self) -> dict[str, Any]:
        answers = report.answers(self.facts())
        json.dumps(answers, allow_nan=False)
        return answers

    def text(self) -> str:
        return report.markdown(self.answers())

    def record(self, evaluation: Evaluation, correct: Any, test: float | None = None) -> None:
        """A finished training in the ledger, and its score on the test split where there is one."""
        result = Result(
            val_accuracy=float(correct.mean()),
            val_loss=1.0,
            correct=correct,
            curve=(),
            train_seconds=1.0,
            images_per_second=1.0,
        )
        self._put(evaluation.key, evaluation.specification(), result.to_json())
        if test is not None:
            key = evaluation_key({"test_of": evaluation.key})
            scored = {"test_accuracy": test, "test_loss": 1.0, "num_test": TESTED}
            self._put(key, {"test_of": evaluation.key}, scored)

    def _put(self, key: str, specification: Any, result: Any) -> None:
        rest = {"key": key, "version": 1, "state": "finished", "reason": None, "recorded_at": "", "environment": {}}
        self.ledger.put(key, rest | {"specification": specification, "result": result})

    def evaluation(self, network: Any, seed: int) -> Evaluation:
        return Evaluation(network, self.experiment.recipe, "data", seed)


def made(
    place: Path,
    *words: str,
    accuracy: Callable[[Candidate], float] = lambda candidate: 0.8,
    seeds: int = 3,
    tested: Sequence[str] = (BASELINE,),
    stopped: Mapping[str, int] | None = None,
) -> Made:
    """A study whose candidates have each image right with a known chance; `stopped` gives some fewer seeds."""
    given = (
        "search=grid",
        "selection=best",
        f"recipe.seeds={seeds}",
        f"workspace={place / 'workspace'}",
        "study=made",
        *words,
    )
    experiment = study_settings(*given)
    network, rounding = experiment.proxy_network
    plan = search.candidates(network, experiment.grid, experiment.budget, rounding)
    study = Made(experiment.workspace, experiment.directory, experiment, plan, Ledger(experiment.workspace))
    chance, trials, rows = np.random.default_rng(5), [], []
    for candidate in (plan.baseline, *plan.candidates):
        for seed in range((stopped or {}).get(candidate.id, seeds)):
            evaluation = study.evaluation(candidate.network, seed)
            study.record(evaluation, chance.random(IMAGES) < accuracy(candidate) + chance.normal(0, 0.002))
            trials.append(TrialResult(candidate, _outcome(study, evaluation)))
            rows.append({"candidate": candidate.id, "seed": seed, "key": evaluation.key})
    rule = experiment.selection
    choice = select(
        trials,
        confidence=experiment.search.confidence,
        rule=rule.rule,
        metric=rule.metric,
        contenders=[one.id for one in plan.candidates if one.id not in (stopped or {})],
        macs_ratio=experiment.budget.macs_ratio,
    )
    for name in (choice.chosen, *tested):
        for one in trials:
            if one.candidate.id == name and one.outcome.result is not None:
                study.record(one.outcome.evaluation, one.outcome.result.correct, one.outcome.result.val_accuracy - 0.01)
    experiment.directory.mkdir(parents=True)
    (experiment.directory / "settings.yaml").write_text(to_yaml(experiment.values))
    (experiment.directory / "evaluations.json").write_text(json.dumps({"evaluations": rows}))
    (experiment.directory / "stopped.json").write_text(json.dumps(dict.fromkeys(stopped or {}, "worse")))
    choice.candidates.to_csv(experiment.directory / "candidates.csv", index=False)
    row = {"name": "big", "phi": 1.0, "nominal_ratio": 2.0, "macs_ratio": 2.2, "params": 4_000_000}
    decision, taken = choice.decision, next(one for one in plan.candidates if one.id == choice.chosen)
    values = None if decision is None else decision.values()
    if values is not None:
        values["sentence"] = words_of(values, asdict(taken.coefficients))
    result = {"decision": values, "selection": asdict(rule), "chosen": {"id": choice.chosen}, "variants": [row]}
    (experiment.directory / "result.json").write_text(json.dumps(result))
    return study


def _outcome(study: Made, evaluation: Evaluation) -> Outcome:
    record = study.ledger.get(evaluation.key)
    assert record is not None
    return Outcome(evaluation, Result.from_json(record["result"]), "", reused=True)


def triple(candidate: Candidate) -> tuple[float, float, float]:
    return candidate.coefficients.alpha, candidate.coefficients.beta, candidate.coefficients.gamma


def by_triple(plan: Plan) -> dict[tuple[float, float, float], str]:
    return {triple(one): one.id for one in plan.candidates}


def like(values: dict[tuple[float, float, float], float], *, others: float) -> Callable[[Candidate], float]:
    return lambda candidate: values.get(triple(candidate), others)


def tied(place: Path) -> Made:
    """The default grid: the paper's triple is the best, its neighbour as good, all others are 10 points worse."""
    chances = {(1.2, 1.1, 1.15): 0.85, (1.1, 1.1, 1.2): 0.849}
    return made(place, accuracy=like(chances, others=0.75))
