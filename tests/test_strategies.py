"""Strategies: on planted scores through the real path, on recorded trainings, and their rules one by one."""

from __future__ import annotations

import functools
import importlib.util
import math
import random
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import numpy as np
import optuna
import pytest
from conftest import CONF

from scalesearch import search
from scalesearch.config import load_experiment
from scalesearch.data import DataSpec
from scalesearch.evaluation import Evaluator
from scalesearch.ledger import Ledger
from scalesearch.search import (
    BASELINE,
    Ask,
    History,
    Plan,
    Problem,
    Recorded,
    Stop,
    Stopped,
    Strategy,
    TrialResult,
    replay,
)
from scalesearch.selection import Choice, select
from scalesearch.training import Recipe, Result

SHIPPED = sorted(path.stem for path in (CONF / "search").glob("*.yaml"))
NOISE = 0.004  # between seeds, as a proxy of the default search has it
IMAGES = 4000


# The module shares searches; and a commit need not reach the disk before a test goes on.
pytestmark = [pytest.mark.xdist_group("strategies"), pytest.mark.usefixtures("unsynced_sqlite")]


@functools.cache
def strategy_of(name: str, *overrides: str) -> Strategy:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return load_experiment(hydra.compose("run", [f"search={name}", *overrides])).search.strategy


@pytest.fixture(scope="module")
def whole_plan() -> Plan:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        experiment = load_experiment(hydra.compose("run", ["baseline=preresnet20"]))
    network, rounding = experiment.proxy_network
    return search.candidates(network, experiment.grid, experiment.budget, rounding)


@pytest.fixture(scope="module")
def plan(whole_plan: Plan) -> Plan:
    return whole_plan._replace(candidates=whole_plan.candidates[:8])


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return load_experiment(hydra.compose("run", ["recipe.autocast=off"])).recipe


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
    name: str, plan: Plan, recipe: Recipe, accuracies: Sequence[float], place: Path, *, chance: int = 0, slots: int = 3
) -> tuple[Choice, list[TrialResult], dict[str, str]]:
    """The real search with planted scores: strategy, evaluator, ledger, Optuna, selection."""
    executor = Planted(plan, recipe, accuracies, chance=chance, slots=slots)
    trained, stopped = [], {}
    for one in search.carry_out(
        plan,
        SPACE,
        strategy=strategy_of(name),
        seeds=4,
        recipe=recipe,
        data="0" * 64,
        init=None,
        evaluator=Evaluator(Ledger(place), executor, DataSpec("digits", num_train=100, num_val=100)),  # type: ignore[arg-type]
        storage=f"sqlite:///{place / 'optuna.db'}",
        study="planted",
    ):
        if isinstance(one, Stopped):
            stopped[one.candidate.id] = one.reason
        else:
            trained.append(one)
    whole = [one for one in trained if one.outcome.evaluation.recipe == recipe]
    contenders = {one.candidate.id for one in whole} - {BASELINE} - stopped.keys()
    return select(whole, confidence=0.95, contenders=sorted(contenders)), trained, stopped


with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
    SPACE = load_experiment(hydra.compose("run")).grid


def planted(plan: Plan, best: int, lead: float) -> list[float]:
    return [0.86 + (lead if place == best else -0.002 * (place % 3)) for place in range(len(plan.candidates))]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_planted_optimum_is_found(name: str, plan: Plan, recipe: Recipe, tmp_path: Path) -> None:
    """Five noise deviations ahead: every strategy must find it each time, but a sampler that never proposed it."""
    best = 4
    choice, trained, stopped = found(name, plan, recipe, planted(plan, best, 5 * NOISE), tmp_path)
    target = plan.candidates[best].id
    if name in ("tpe", "gp") and target not in {one.candidate.id for one in trained}:
        assert stopped[target] == "never proposed"
        return
    assert choice.chosen == target
    assert target not in stopped


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
    trained: list[TrialResult]
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
    for choice, trained, stopped in (one_by_one, searched[2:]):
        done = sorted((t.candidate.id, t.outcome.evaluation.seed, t.outcome.evaluation.recipe.epochs) for t in trained)
        seen.append((choice.chosen, choice.tied, done, stopped))
    assert seen[0] == seen[1]


def test_a_search_that_is_repeated_trains_nothing_and_shows_the_same(
    searched: CompletedStudy, plan: Plan, recipe: Recipe
) -> None:
    shown = trials(searched.place)
    choice, trained, stopped = found(searched.name, plan, recipe, planted(plan, 4, NOISE), searched.place)
    assert all(one.outcome.reused for one in trained)
    assert (choice.chosen, choice.tied, stopped) == (
        searched.choice.chosen,
        searched.choice.tied,
        searched.stopped,
    )
    assert trials(searched.place) == shown


def trials(place: Path) -> list[tuple[Any, ...]]:
    study = optuna.load_study(study_name="planted", storage=f"sqlite:///{place / 'optuna.db'}")
    return [(t.user_attrs["candidate"], t.state.name, t.value, t.intermediate_values) for t in study.trials]


def test_optuna_shows_a_trial_a_candidate_with_its_trainings_and_prunes_the_stopped(
    plan: Plan, recipe: Recipe, tmp_path: Path
) -> None:
    choice, trained, stopped = found("race", plan, recipe, planted(plan, 4, 8 * NOISE), tmp_path)
    assert stopped, "nothing was stopped, so this shows nothing"
    shown = {name: (state, value, steps) for name, state, value, steps in trials(tmp_path)}
    assert shown.keys() == {candidate.id for candidate in plan.candidates}
    assert {name for name, (state, *_) in shown.items() if state == "PRUNED"} == stopped.keys()
    assert {state for state, *_ in shown.values()} == {"PRUNED", "COMPLETE"}
    for name, (state, value, steps) in shown.items():
        mine = sorted(
            t.outcome.result.val_accuracy for t in trained if t.candidate.id == name and t.outcome.result is not None
        )
        assert sorted(steps.values()) == pytest.approx(mine)
        assert list(steps) == list(range(len(mine)))
        if state == "COMPLETE":
            assert value == pytest.approx(np.mean(mine))
    assert shown[choice.chosen][0] == "COMPLETE"


# The rules


def answers(strategy: Strategy, problem: Problem, score: Callable[[Ask], float | None]) -> Iterator[Ask | Stop]:
    """Every step, with scores shown at once."""
    seen, waiting = History(), list[Ask]()
    for step in strategy.steps(problem, seen):
        if step is None:
            assert waiting, "it waits for nothing"
            seen.show(waiting[0], score(waiting.pop(0)))
            continue
        yield step
        if isinstance(step, Ask):
            seen.show(step, score(step))


def line(size: int, seeds: int = 4) -> Problem:
    return Problem((100,) * size, tuple(((1 + place / 10, 1.0),) for place in range(size)), seeds)


def noisy(request: Ask) -> float:
    chance = np.random.default_rng([request.candidate, request.seed])
    return 0.8 + 0.01 * request.candidate + chance.normal(0, 0.003)


@pytest.mark.parametrize("name", SHIPPED)
def test_no_training_is_asked_for_twice_and_none_that_is_not_possible(name: str) -> None:
    for size in (1, 2, 11):
        strategy, problem = strategy_of(name), line(size)
        requests = [step for step in answers(strategy, problem, noisy) if isinstance(step, Ask)]
        assert len(set(requests)) == len(requests) > 0, size
        allowed = strategy.possible(problem)
        assert all(any(r.seed < count and r.share == share for count, share in allowed) for r in requests), size
        said = sum(number * share for number, share in strategy.expected(problem))
        assert sum(r.share for r in requests) <= 1.3 * said + 1, size


@pytest.mark.parametrize("name", ["grid", "race"])
def test_where_all_tie_a_strategy_trains_as_many_as_it_says_beforehand(name: str) -> None:
    strategy, problem = strategy_of(name), line(11)
    chance = np.random.default_rng(0)
    requests = [
        step for step in answers(strategy, problem, lambda _: 0.8 + chance.normal(0, 0.003)) if isinstance(step, Ask)
    ]
    assert abs(len(requests) - sum(number for number, _ in strategy.expected(problem))) <= 1


@pytest.mark.parametrize("name", SHIPPED)
def test_failures_end_no_strategy(name: str) -> None:
    """A third of all trainings fails, and one candidate with every seed."""
    problem = line(6)

    def score(request: Ask) -> float | None:
        failed = request.candidate == 5 or (request.candidate + request.seed) % 3 == 0
        return None if failed else noisy(request)

    steps = list(answers(strategy_of(name), problem, score))
    asked = {step.candidate for step in steps if isinstance(step, Ask)}
    stopped = {step.candidate for step in steps if isinstance(step, Stop)}
    finished = {s.candidate for s in steps if isinstance(s, Ask) and s.share == 1 and score(s) is not None}
    assert asked | stopped == set(range(6))
    assert finished - stopped, "nobody is left who may be chosen"


def test_a_race_spends_what_it_was_given() -> None:
    problem = line(8)
    for compute in (0.25, 0.5, 1.0):
        race = strategy_of("race", f"search.compute={compute}")
        level = [step for step in answers(race, problem, lambda r: 0.8 + 1e-4 * noisy(r)) if isinstance(step, Ask)]
        assert len(level) <= max(8, 8 * 4 * compute), compute
        assert {request.candidate for request in level if request.seed == 0} == set(range(8)), compute


def test_a_race_gives_seeds_to_those_that_may_be_the_best() -> None:
    problem = line(8)
    requests = [s for s in answers(strategy_of("race"), problem, noisy) if isinstance(s, Ask)]
    most = max(range(8), key=lambda c: sum(r.candidate == c for r in requests))
    assert most == 7
    assert sum(r.candidate == 0 for r in requests) == 1


def test_a_race_stops_who_is_significantly_worse_and_nobody_else() -> None:
    def two_groups(request: Ask) -> float:
        return noisy(request._replace(candidate=0 if request.candidate < 4 else 3))

    race = replace(strategy_of("race"), compute=1.0)  # type: ignore[type-var]
    stops = [step for step in answers(race, line(8), two_groups) if isinstance(step, Stop)]
    assert stops
    assert {stop.candidate for stop in stops} <= {0, 1, 2, 3}
    assert all("significantly worse" in stop.reason for stop in stops)


def test_halving_trains_the_better_half_longer_and_the_best_with_every_seed() -> None:
    problem = line(8)
    requests = [s for s in answers(strategy_of("halving"), problem, noisy) if isinstance(s, Ask)]
    by_share = {share: [r.candidate for r in requests if r.share == share] for share in (0.25, 0.5, 1.0)}
    assert sorted(by_share[0.25]) == list(range(8))
    assert len(by_share[0.5]) < 8
    assert set(by_share[1.0]) <= set(by_share[0.5])
    assert 7 in by_share[1.0]
    assert all(by_share[1.0].count(c) == 4 for c in set(by_share[1.0]))


def test_halving_does_not_wait_for_a_round_to_fill() -> None:
    """While the last of the short trainings are under way, others go on to a longer schedule."""
    seen, under_way = History(), list[Ask]()
    for step in strategy_of("halving").steps(line(8), seen):
        assert isinstance(step, Ask), "it waits"
        if step.share > 0.25:
            break
        under_way.append(step)
        if len(under_way) == 4:
            seen.show(under_way[0], noisy(under_way.pop(0)))
    assert {request.share for request in under_way} == {0.25}


OPTIONS = [
    (("search=race", "search.compute=0"), "search.compute is 0.0; it must be a number from 0.01 to 1"),
    (("search=race", "search.lookahead=0"), "search.lookahead is 0; it must be a number from 1"),
    (("search=race", "+search.shares=[0.5]"), "search.shares is not a known key"),
    (("search=race", "search.most_seeds=1.5"), "search.most_seeds is 1.5; it must be a whole number"),
    (("search=halving", "search.shares=[0.5,0.25]"), "it must be rising shares"),
    (("search=halving", "search.shares=[0.5,1]"), "less than 1"),
    (("search=halving", "search.shares=[]"), "it must be rising shares"),
    (("search=halving", "search.keep=1"), "search.keep is 1.0; it must be"),
    (("search=tpe", "search.sampler=cma"), "search.sampler is 'cma'; known: tpe, gp"),
    (("search=tpe", "search.explore=2"), "search.explore is 2.0; it must be"),
    (("search.strategy=rase",), "did you mean 'race'"),
]


def test_an_option_that_is_none_is_refused() -> None:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        for overrides, words in OPTIONS:
            said = "nothing"
            try:
                load_experiment(hydra.compose("run", list(overrides)))
            except ValueError as error:
                said = str(error)
            assert words in said, overrides


# How often the optimum is found


def made_up(chance: int, best: int = 4, size: int = 11, lead: float = 1.5 * NOISE, seeds: int = 400) -> Recorded:
    """Recorded trainings with a known optimum and known noise; shorter schedules are the same, lower and noisier."""
    rng = np.random.default_rng(chance)
    truth = np.array([0.86 + (lead if place == best else -0.001 * (place % 3)) for place in range(size)])
    noise = rng.normal(0, NOISE, (size, seeds))
    whole = truth[:, None] + noise - noise.mean(1, keepdims=True)
    scores = {1.0: whole, 0.5: whole - 0.02 + rng.normal(0, NOISE, whole.shape), 0.25: whole - 0.05}
    points = tuple(((1 + place / 10, 1.4 - 0.04 * place),) for place in range(size))
    return Recorded(tuple(f"c{place:02d}" for place in range(size)), (100,) * size, points, scores, whole)


def rate(strategy: Strategy, recorded: Recorded, replays: int) -> float:
    """How often it chooses the optimum."""
    hits = 0
    for number in range(replays):
        columns = np.random.default_rng(number).integers(0, recorded.test.shape[1], 16).tolist()
        if hasattr(strategy, "sampler_seed"):
            strategy = replace(strategy, sampler_seed=number)  # type: ignore[type-var]
        hits += replay(strategy, recorded, seeds=4, columns=columns).chosen == 4
    return hits / replays


@pytest.mark.parametrize(("name", "seeds"), [("grid1", 1), ("grid", 4)])
def test_a_grid_finds_a_planted_optimum_as_often_as_its_seeds_allow(name: str, seeds: int) -> None:
    """The largest of normal means: what the rate must be is known without any of this code."""
    recorded = made_up(0)
    rng, truth = np.random.default_rng(1), recorded.scores[1.0].mean(1)
    deviations = recorded.scores[1.0].std(1)
    drawn = truth + deviations / math.sqrt(seeds) * rng.standard_normal((20_000, len(truth)))
    expected = float((drawn.argmax(1) == 4).mean())
    error = math.sqrt(expected * (1 - expected) / 1000)
    assert 0.2 < expected < 0.999, "then this would show nothing"
    assert rate(strategy_of(name), recorded, 1000) == pytest.approx(expected, abs=4 * error + 0.01)


def test_no_strategy_finds_a_planted_optimum_less_often_than_one_seed_of_each() -> None:
    """At half the compute of four seeds; a race comes near to the whole of it."""
    recorded = made_up(0)
    once, four = (rate(strategy_of(grid), recorded, 400) for grid in ("grid1", "grid"))
    for name, replays in (("race", 200), ("halving", 200), ("tpe", 60)):
        mine = rate(strategy_of(name), recorded, replays)
        noise = 3 * math.sqrt(0.25 / replays)
        assert mine > once - (noise if name == "tpe" else 0), name
        if name == "race":
            assert mine > four - noise


def test_a_replay_asks_for_what_the_real_search_asks_for(searched: CompletedStudy, plan: Plan, recipe: Recipe) -> None:
    name, _, choice, trained, stopped = searched
    size, most = len(plan.candidates), 8
    scores = {share: np.full((size, most), np.nan) for share in (0.25, 0.5, 1.0)}
    names = [candidate.id for candidate in plan.candidates]
    for one in trained:
        if one.candidate.id != BASELINE and one.outcome.result is not None:
            asked = one.outcome.evaluation
            row = scores[asked.recipe.epochs / recipe.epochs][names.index(one.candidate.id)]
            row[asked.seed] = one.outcome.result.val_accuracy
    problem = search.problem(plan, 4)
    recorded = Recorded(tuple(names), problem.macs, problem.points, scores, scores[1.0])
    again = replay(strategy_of(name), recorded, seeds=4, columns=list(range(most)))
    assert sorted(again.requests) == sorted(
        Ask(names.index(t.candidate.id), e.seed, e.recipe.epochs / recipe.epochs)
        for t in trained
        if t.candidate.id != BASELINE
        for e in [t.outcome.evaluation]
    )
    assert {names[place]: reason for place, reason in again.stopped.items()} == stopped
    assert names[again.chosen] == choice.chosen


# Solved gammas


def test_a_sampler_searches_points_whose_gamma_meets_the_budget(tmp_path: Path) -> None:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        experiment = load_experiment(hydra.compose("run", ["search=tpe", "baseline=preresnet20"]))
    assert experiment.search.solves_gamma
    network, rounding = experiment.proxy_network
    solved = search.candidates(network, experiment.grid, experiment.budget, rounding, solve_gamma=True)
    assert solved.points == len(experiment.grid.alpha.values()) * len(experiment.grid.beta.values())
    assert solved.dropped["product"] == 0
    assert len(solved.candidates) > 12
    triples = [t for candidate in solved.candidates for t in candidate.triples]
    assert len({(t.alpha, t.beta) for t in triples}) == len(triples)
    for candidate in solved.candidates:
        for other in (-1, 1):  # no neighbouring resolution comes nearer to the budget
            side = candidate.network.resolution + other
            if experiment.grid.gamma.start <= side / network.resolution <= experiment.grid.gamma.stop:
                near = search.plan.cost(replace(candidate.network, resolution=side)).macs / solved.baseline.cost.macs
                assert abs(candidate.ratio - 2) <= abs(near - 2)


# Recorded trainings

TABULAR = CONF.parent / "benchmarks" / "tabular"


@pytest.mark.parametrize("path", sorted(TABULAR.glob("*.csv")), ids=lambda path: path.stem)
def test_every_strategy_replays_on_what_was_recorded(path: Path) -> None:
    recorded = Recorded.read(path)
    seeds = recorded.scores[1.0].shape[1]
    assert len(recorded.names) >= 10
    assert seeds >= 10
    assert set(recorded.scores) >= {0.25, 0.5, 1.0}
    for name in SHIPPED:
        if name == "gp":  # half a second a proposal
            continue
        columns = np.random.default_rng(0).integers(0, seeds, 16).tolist()
        once = replay(strategy_of(name), recorded, seeds=4, columns=columns)
        assert once == replay(strategy_of(name), recorded, seeds=4, columns=columns)
        assert once.chosen not in once.stopped
        assert once.compute == pytest.approx(
            sum(recorded.macs[r.candidate] * r.share for r in once.requests) / sum(recorded.macs)
        )
    every = replay(strategy_of("grid"), recorded, seeds=seeds, columns=list(range(seeds)))
    means = recorded.scores[1.0].mean(1)
    assert means[every.chosen] == means.max()
    assert every.compute == pytest.approx(seeds)


@pytest.mark.parametrize(("replays", "least"), [(25, 0.92), pytest.param(200, 0.93, marks=pytest.mark.slow)])
def test_choice_and_ties_hold_the_truly_best_at_the_stated_rate_on_what_was_recorded(
    replays: int, least: float
) -> None:
    """The simulation of docs/search.md, with fewer replays."""
    spec = importlib.util.spec_from_file_location("replay_script", TABULAR / "replay.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for baseline in script.BASELINES:
        for name in ("grid", "race"):
            held, named = script.ties(baseline, name, replays)
            assert held >= least, (baseline, name)
            assert 1 <= named < len(Recorded.read(TABULAR / f"{baseline}.csv").names)
