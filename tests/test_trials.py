"""A search through the real path, with scores that are made up: strategy, evaluator, ledger, Optuna, selection."""

from __future__ import annotations

import random
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
import pytest
from searches import NOISE, SHIPPED, Recorded, composed, replay, strategy_of

from scalesearch import search
from scalesearch.data import DataSpec
from scalesearch.evaluation import Evaluator
from scalesearch.ledger import Ledger
from scalesearch.search import BASE, BASELINE, End, Plan, Request, Stopped, TrialResult
from scalesearch.selection import Choice, select
from scalesearch.training import Recipe, Result
from scalesearch.workspace import sqlite_url

IMAGES = 4000
SPACE = composed().grid


# The module shares searches; and a commit need not reach the disk before a test goes on.
pytestmark = [pytest.mark.xdist_group("strategies"), pytest.mark.usefixtures("unsynced_sqlite")]


@pytest.fixture(scope="module")
def whole_plan() -> Plan:
    experiment = composed("baseline=preresnet20")
    network, rounding = experiment.proxy_network
    return search.candidates(network, experiment.grid, experiment.budget, rounding)


@pytest.fixture(scope="module")
def plan(whole_plan: Plan) -> Plan:
    return whole_plan._replace(candidates=whole_plan.candidates[:8])


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return composed("recipe.autocast=off").recipe


class Planted:
    """An executor that makes a score up: the candidate's own, with noise of its seed; trainings end in any order."""

    def __init__(self, plan: Plan, recipe: Recipe, accuracies: Sequence[float], *, slots: int = 3, chance: int = 0):
        self.slots = slots
        self._known = {str(c.network.table()): a for c, a in zip(plan.candidates, accuracies, strict=True)}
        self._epochs, self._chance = recipe.epochs, chance
        self._threads = ThreadPoolExecutor(slots)
        self._delays = random.Random(chance)
        self.trained: list[tuple[str, int, float]] = []

    def submit(self, _: object, specification: dict[str, Any]) -> Future[dict[str, Any]]:
        delay = self._delays.random() * 0.004
        return self._threads.submit(self._train, specification, delay)

    def _train(self, specification: dict[str, Any], delay: float) -> dict[str, Any]:
        time.sleep(delay)
        table, seed = str(specification["network"]), specification["seed"]
        share = specification["recipe"]["epochs"] / self._epochs
        self.trained.append((table, seed, share))
        rng = np.random.default_rng([self._chance, seed, zlib.crc32(table.encode())])
        shared = np.random.default_rng([self._chance, seed]).normal(0, NOISE / 2)  # what a seed does to all networks
        accuracy = self._known.get(table, 0.80) + rng.normal(0, NOISE) + shared - 0.05 * (1 - share)
        right = np.random.default_rng([self._chance, 7]).random(IMAGES) < accuracy  # images are easy or hard for all
        result = Result(
            val_accuracy=float(right.mean()),
            val_loss=1.0,
            correct=right,
            curve=({"epoch": 1, "train_loss": 1.0, "learning_rate": 0.1},),
            train_seconds=1.0,
            images_per_second=1.0,
        )
        return {"result": result.to_json(), "environment": {}}


def found(
    name: str,
    plan: Plan,
    recipe: Recipe,
    accuracies: Sequence[float],
    place: Path,
    *options: str,
    chance: int = 0,
    slots: int = 3,
) -> tuple[Choice, list[TrialResult], dict[str, str]]:
    """The real search with planted scores: strategy, evaluator, ledger, Optuna, selection."""
    executor = Planted(plan, recipe, accuracies, chance=chance, slots=slots)
    results, stopped = [], {}
    for one in search.run(
        plan,
        SPACE,
        strategy=strategy_of(name, *options),
        seeds=4,
        recipe=recipe,
        data="0" * 64,
        init=None,
        evaluator=Evaluator(Ledger(place), executor, DataSpec("digits", num_train=100, num_val=100)),  # type: ignore[arg-type]
        storage=sqlite_url(place / "optuna.db"),
        study="planted",
    ):
        if isinstance(one, End):
            stopped["search"] = one.reason
        elif isinstance(one, Stopped):
            stopped[one.candidate.id] = one.reason
        else:
            results.append(one)
    whole = [one for one in results if one.outcome.evaluation.recipe == recipe]
    contenders = {one.candidate.id for one in whole} - {BASELINE} - stopped.keys()
    return select(whole, confidence=0.95, contenders=sorted(contenders)), results, stopped


def planted(plan: Plan, best: int, lead: float) -> list[float]:
    return [0.86 + (lead if place == best else -0.002 * (place % 3)) for place in range(len(plan.candidates))]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_planted_optimum_is_found(name: str, plan: Plan, recipe: Recipe, tmp_path: Path) -> None:
    """Five noise deviations ahead: every strategy must find it each time, but a sampler that never proposed it."""
    best = 4
    choice, results, stopped = found(name, plan, recipe, planted(plan, best, 5 * NOISE), tmp_path)
    target = plan.candidates[best].id
    if name in ("tpe", "gp") and target not in {one.candidate.id for one in results}:
        assert stopped[target] == "never proposed"
        return
    assert choice.chosen == target
    assert target not in stopped


@pytest.mark.parametrize("name", ["race", "knowledge"])
def test_a_search_ends_where_its_regret_is_reached_and_comes_to_the_same_again(
    name: str, plan: Plan, recipe: Recipe, tmp_path: Path
) -> None:
    accuracies = planted(plan, 4, 2 * NOISE)
    for place in ("whole", "a", "b"):
        (tmp_path / place).mkdir()
    whole = found(name, plan, recipe, accuracies, tmp_path / "whole", "search.compute=1")[1]
    options = ("search.compute=1", "search.regret=0.25")
    choice, results, stopped = found(name, plan, recipe, accuracies, tmp_path / "a", *options)
    assert "below search.regret=0.25" in stopped["search"]
    assert len(results) < len(whole)
    again, others, _ = found(name, plan, recipe, accuracies, tmp_path / "b", *options, slots=2)
    asked = [{(r.candidate.id, r.outcome.evaluation.seed) for r in these} for these in (results, others)]
    assert asked[0] == asked[1]
    assert again.chosen == choice.chosen


@pytest.mark.parametrize("name", ["grid", "race"])
def test_a_planted_tie_is_reported_as_a_tie(name: str, whole_plan: Plan, recipe: Recipe, tmp_path: Path) -> None:
    accuracies = planted(whole_plan, 4, 0.02)
    accuracies[7] = accuracies[4]
    choice, _, _ = found(name, whole_plan, recipe, accuracies, tmp_path)
    leaders = {whole_plan.candidates[place].id for place in (4, 7)}
    assert choice.chosen in leaders
    assert set(choice.tied) >= leaders - {choice.chosen}
    assert len(choice.tied) < len(whole_plan.candidates) - 1


class CompletedStudy(NamedTuple):
    """A search that several tests look at, with a lead of the best that noise may hide."""

    name: str
    place: Path
    choice: Choice
    results: list[TrialResult]
    stopped: dict[str, str]


@pytest.fixture(scope="module", params=SHIPPED)
def searched(
    request: pytest.FixtureRequest, plan: Plan, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> CompletedStudy:
    place = tmp_path_factory.mktemp("searched")
    return CompletedStudy(
        request.param, place, *found(request.param, plan, recipe, planted(plan, 4, NOISE), place, slots=4)
    )


def test_the_order_in_which_trainings_end_changes_nothing(
    searched: CompletedStudy, plan: Plan, recipe: Recipe, tmp_path: Path
) -> None:
    one_by_one = found(searched.name, plan, recipe, planted(plan, 4, NOISE), tmp_path, slots=1)
    seen = []
    for choice, results, stopped in (one_by_one, searched[2:]):
        done = sorted((t.candidate.id, t.outcome.evaluation.seed, t.outcome.evaluation.recipe.epochs) for t in results)
        seen.append((choice.chosen, choice.tied, done, stopped))
    assert seen[0] == seen[1]


def test_a_search_that_is_repeated_trains_nothing_and_shows_the_same(
    searched: CompletedStudy, plan: Plan, recipe: Recipe
) -> None:
    shown = trials(searched.place)
    choice, results, stopped = found(searched.name, plan, recipe, planted(plan, 4, NOISE), searched.place)
    assert all(one.outcome.reused for one in results)
    assert (choice.chosen, choice.tied, stopped) == (
        searched.choice.chosen,
        searched.choice.tied,
        searched.stopped,
    )
    assert trials(searched.place) == shown


def trials(place: Path) -> list[tuple[Any, ...]]:
    study = optuna.load_study(study_name="planted", storage=f"sqlite:///{place / 'optuna.db'}")
    return [(t.user_attrs["candidate"], t.state.name, t.value, t.intermediate_values) for t in study.trials]


def test_optuna_shows_one_trial_per_candidate_with_its_trainings_and_prunes_the_stopped(
    plan: Plan, recipe: Recipe, tmp_path: Path
) -> None:
    choice, results, stopped = found("race", plan, recipe, planted(plan, 4, 8 * NOISE), tmp_path)
    assert stopped, "nothing was stopped, so this shows nothing"
    shown = {name: (state, value, steps) for name, state, value, steps in trials(tmp_path)}
    assert shown.keys() == {candidate.id for candidate in plan.candidates}
    assert {name for name, (state, *_) in shown.items() if state == "PRUNED"} == stopped.keys()
    assert {state for state, *_ in shown.values()} == {"PRUNED", "COMPLETE"}
    for name, (state, value, steps) in shown.items():
        mine = sorted(
            t.outcome.result.val_accuracy for t in results if t.candidate.id == name and t.outcome.result is not None
        )
        assert sorted(steps.values()) == pytest.approx(mine)
        assert list(steps) == list(range(len(mine)))
        if state == "COMPLETE":
            assert value == pytest.approx(np.mean(mine))
    assert shown[choice.chosen][0] == "COMPLETE"


def test_a_replay_asks_for_what_the_real_search_asks_for(searched: CompletedStudy, plan: Plan, recipe: Recipe) -> None:
    name, _, choice, results, stopped = searched
    size, most = len(plan.candidates), 8
    scores = {share: np.full((size, most), np.nan) for share in (0.25, 0.5, 1.0)}
    names = [candidate.id for candidate in plan.candidates]
    for one in results:
        if one.candidate.id != BASELINE and one.outcome.result is not None:
            requested = one.outcome.evaluation
            row = scores[requested.recipe.epochs / recipe.epochs][names.index(one.candidate.id)]
            row[requested.seed] = one.outcome.result.val_accuracy
    problem, baseline, correct = search.problem(plan, 4), np.full(most, np.nan), {}
    for one in results:
        if (result := one.outcome.result) is not None and one.outcome.evaluation.recipe == recipe:
            seed = one.outcome.evaluation.seed
            correct[BASE if one.candidate.id == BASELINE else names.index(one.candidate.id), seed] = result.correct
            if one.candidate.id == BASELINE:
                baseline[seed] = result.val_accuracy
    recorded = Recorded(tuple(names), problem.macs, problem.triples, scores, scores[1.0], baseline, correct)
    again = replay(strategy_of(name), recorded, seeds=4, columns=list(range(most)), rule="best")
    assert sorted(again.requests) == sorted(
        Request(names.index(t.candidate.id), e.seed, e.recipe.epochs / recipe.epochs)
        for t in results
        if t.candidate.id != BASELINE
        for e in [t.outcome.evaluation]
    )
    assert {names[place]: reason for place, reason in again.stopped.items()} == stopped
    assert names[again.chosen] == choice.chosen
