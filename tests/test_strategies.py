"""The rules of the strategies, one by one, and what an option may be."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import case
from searches import SHIPPED, composed, strategy_of

from scalesearch.checks import parse
from scalesearch.registry import Registry
from scalesearch.scaling import Coefficients
from scalesearch.search import BASELINE, STRATEGIES, End, History, Problem, Request, Score, Stop, Strategy
from scalesearch.search.strategies import estimate
from scalesearch.selection import decision

pytestmark = pytest.mark.xdist_group("strategies")


def answers(
    strategy: Strategy, problem: Problem, score: Callable[[Request], float | None]
) -> Iterator[Request | Stop | End]:
    """Every step, with scores shown at once."""
    seen, waiting = History(), list[Request]()
    for step in strategy.steps(problem, seen):
        if step is None:
            assert waiting, "it waits for nothing"
            seen.show(waiting[0], Score(score(waiting.pop(0))))
            continue
        yield step
        if isinstance(step, Request):
            seen.show(step, Score(score(step)))


def line(size: int, seeds: int = 4) -> Problem:
    return Problem((100,) * size, tuple(((1 + place / 10, 1.0, 1.0),) for place in range(size)), seeds)


def noisy(request: Request) -> float:
    chance = np.random.default_rng([request.candidate, request.seed])
    return 0.8 + 0.01 * request.candidate + chance.normal(0, 0.003)


@pytest.mark.parametrize("name", SHIPPED)
def test_no_training_is_asked_for_twice_and_none_that_is_not_possible(name: str) -> None:
    for size in (1, 2, 11):
        strategy, problem = strategy_of(name), line(size)
        requests = [step for step in answers(strategy, problem, noisy) if isinstance(step, Request)]
        assert len(set(requests)) == len(requests) > 0, size
        allowed = strategy.possible(problem)
        assert all(any(r.seed < count and r.share == share for count, share in allowed) for r in requests), size
        about = sum(number * share for number, share in strategy.expected(problem))
        assert sum(r.share for r in requests) <= 1.3 * about + 1, size


@pytest.mark.parametrize("name", ["grid", "race"])
def test_where_all_tie_a_strategy_trains_as_many_as_it_says_beforehand(name: str) -> None:
    strategy, problem = strategy_of(name), line(11)
    chance = np.random.default_rng(0)
    requests = [
        step
        for step in answers(strategy, problem, lambda _: 0.8 + chance.normal(0, 0.003))
        if isinstance(step, Request)
    ]
    assert abs(len(requests) - sum(number for number, _ in strategy.expected(problem))) <= 1


@pytest.mark.parametrize("name", SHIPPED)
def test_failures_end_no_strategy(name: str) -> None:
    """A third of all trainings fails, and one candidate with every seed."""
    problem = line(6)

    def score(request: Request) -> float | None:
        failed = request.candidate == 5 or (request.candidate + request.seed) % 3 == 0
        return None if failed else noisy(request)

    steps = list(answers(strategy_of(name), problem, score))
    requested = {step.candidate for step in steps if isinstance(step, Request)}
    stopped = {step.candidate for step in steps if isinstance(step, Stop)}
    finished = {s.candidate for s in steps if isinstance(s, Request) and s.share == 1 and score(s) is not None}
    assert requested | stopped == set(range(6))
    assert finished - stopped, "nobody is left who may be chosen"


@pytest.mark.parametrize("name", ["grid", "grid1", "race", "knowledge"])
def test_what_takes_long_is_trained_first(name: str) -> None:
    problem = replace(line(6), macs=(100, 300, 200, 300, 50, 80))
    requests = [step for step in answers(strategy_of(name), problem, noisy) if isinstance(step, Request)]
    first = list(dict.fromkeys(request.candidate for request in requests))
    assert first == [1, 3, 2, 0, 5, 4]


def test_a_race_spends_what_it_was_given() -> None:
    problem = line(8)
    for compute in (0.25, 0.5, 1.0):
        race = strategy_of("race", f"search.compute={compute}")
        level = [step for step in answers(race, problem, lambda r: 0.8 + 1e-4 * noisy(r)) if isinstance(step, Request)]
        assert len(level) <= max(8, 8 * 4 * compute), compute
        assert {request.candidate for request in level if request.seed == 0} == set(range(8)), compute


def test_a_race_gives_seeds_to_those_that_may_be_the_best() -> None:
    problem = line(8)
    requests = [s for s in answers(strategy_of("race"), problem, noisy) if isinstance(s, Request)]
    most = max(range(8), key=lambda c: sum(r.candidate == c for r in requests))
    assert most == 7
    assert sum(r.candidate == 0 for r in requests) == 1


def test_a_race_stops_who_is_significantly_worse_and_nobody_else() -> None:
    def two_groups(request: Request) -> float:
        return noisy(request._replace(candidate=0 if request.candidate < 4 else 3))

    race = replace(strategy_of("race"), compute=1.0)  # type: ignore[type-var]
    stops = [step for step in answers(race, line(8), two_groups) if isinstance(step, Stop)]
    assert stops
    assert {stop.candidate for stop in stops} <= {0, 1, 2, 3}
    assert all("significantly worse" in stop.reason for stop in stops)


def test_knowledge_trains_each_once_and_then_what_may_be_the_best() -> None:
    def score(request: Request) -> float:
        return noisy(request._replace(candidate=7)) - 0.03 * max(0, 5 - request.candidate)

    requests = [s for s in answers(strategy_of("knowledge"), line(8), score) if isinstance(s, Request)]
    assert [r.candidate for r in requests[:8]] == list(range(8))
    later = [r.candidate for r in requests[8:]]
    assert len(later) == 8  # half of what the grid would train
    assert (
        sum(candidate >= 5 for candidate in later) >= 6
    )  # three that are equal; the others are 3 points behind or more


def test_knowledge_prefers_the_cheaper_of_two_that_would_teach_the_same() -> None:
    """Two leaders of equal scores, one three times as costly; the others are far behind."""

    def score(request: Request) -> float:
        chance = np.random.default_rng([request.candidate % 2, request.seed])
        return (0.8 if request.candidate < 2 else 0.6) + chance.normal(0, 0.003)

    problem = replace(line(6), macs=(300, 100, 100, 100, 100, 100))
    requests = [s for s in answers(strategy_of("knowledge"), problem, score) if isinstance(s, Request)]
    assert sum(r.candidate == 1 for r in requests) > sum(r.candidate == 0 for r in requests)


def test_scores_that_will_come_need_not_be_learnt_again() -> None:
    """Two that may be the best: with trainings of the one under way, the next one is of the other."""
    seen, problem = History(), replace(line(4), macs=(100, 100, 100, 100))
    for candidate, seed in [(c, s) for c in range(4) for s in range(2)]:
        value = (0.80 if candidate in (0, 3) else 0.70) + (0.004 if seed else -0.004)
        seen.show(Request(candidate, seed), Score(value))
    estimated = estimate(problem, seen)
    assert estimated is not None
    alone, waiting = estimated.gains({}), estimated.gains({0: 8})
    assert waiting[0] < 0.5 * alone[0]
    assert waiting[3] > 0.5 * alone[3]


REGRET = ("race", "knowledge", "tpe", "gp")


@pytest.mark.parametrize("name", REGRET)
def test_a_search_ends_where_its_choice_is_expected_to_lose_little(name: str) -> None:
    def level(request: Request) -> float:
        return noisy(request._replace(seed=10 * request.seed + request.candidate, candidate=0))

    of = {}
    for regret in (None, 5.0, 0.0011):
        strategy = replace(strategy_of(name), regret=regret, compute=1.0)  # type: ignore[type-var, call-arg]
        of[regret] = list(answers(strategy, line(6), level))
    ends = {regret: [step for step in steps if isinstance(step, End)] for regret, steps in of.items()}
    assert ends[None] == []
    (end,) = ends[5.0]
    assert of[5.0][-1] == end
    assert "below search.regret=5" in end.reason
    trained = {regret: sum(isinstance(step, Request) for step in steps) for regret, steps in of.items()}
    assert trained[5.0] < trained[None]
    assert trained[0.0011] >= trained[5.0]


def test_the_regret_that_ends_a_race_is_that_of_the_decision() -> None:
    """With the same scores the estimates of strategy and selection are one."""
    seen, problem, generator = History(), line(5), np.random.default_rng(0)
    correct = {
        (candidate, seed): generator.random(500) < 0.8 + 0.02 * candidate
        for candidate in range(-1, 5)
        for seed in range(3)
    }
    for (candidate, seed), right in correct.items():
        seen.show(Request(candidate, seed), Score(float(right.mean()), right))
    estimated = estimate(problem, seen)
    assert estimated is not None
    names = [BASELINE, *(f"c{place}" for place in range(5))]
    known = {
        name: SimpleNamespace(triples=[Coefficients(*(problem.triples[place - 1][0] if place else (1.0, 1.0, 1.0)))])
        for place, name in enumerate(names)
    }
    finished = {name: {seed: correct[place - 1, seed] for seed in range(3)} for place, name in enumerate(names)}
    found = decision.estimate(known, finished)  # type: ignore[arg-type]
    assert found is not None
    assert found[0] == names
    np.testing.assert_allclose(found[1].mean, estimated.posterior.mean)
    np.testing.assert_allclose(found[1].covariance, estimated.posterior.covariance)
    assert estimated.regret(range(5)) == pytest.approx(100 * found[1].regret(range(1, 6)).min())


def test_halving_trains_the_better_half_longer_and_the_best_with_every_seed() -> None:
    problem = line(8)
    requests = [s for s in answers(strategy_of("halving"), problem, noisy) if isinstance(s, Request)]
    by_share = {share: [r.candidate for r in requests if r.share == share] for share in (0.25, 0.5, 1.0)}
    assert sorted(by_share[0.25]) == list(range(8))
    assert len(by_share[0.5]) < 8
    assert set(by_share[1.0]) <= set(by_share[0.5])
    assert 7 in by_share[1.0]
    assert all(by_share[1.0].count(c) == 4 for c in set(by_share[1.0]))


def test_halving_does_not_wait_for_a_round_to_fill() -> None:
    """While the last of the short trainings are under way, others go on to a longer schedule."""
    seen, under_way = History(), list[Request]()
    for step in strategy_of("halving").steps(line(8), seen):
        assert isinstance(step, Request), "it waits"
        if step.share > 0.25:
            break
        under_way.append(step)
        if len(under_way) == 4:
            seen.show(under_way[0], Score(noisy(under_way.pop(0))))
    assert {request.share for request in under_way} == {0.25}


# Options

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("grid", {"seeds": 0}, "search.seeds is 0; it must be null or a whole number from 1 to 1000"),
    ("race", {"compute": 0}, "search.compute is 0; it must be a number from 0.01 to 1"),
    ("race", {"lookahead": 0}, "search.lookahead is 0; it must be a whole number from 1 to 10000"),
    ("race", {"shares": [0.5]}, "search.shares is not a known key"),
    ("race", {"most_seeds": 1.5}, "search.most_seeds is 1.5; it must be a whole number"),
    ("race", {"optimism": 11}, "search.optimism is 11; it must be a number from 0 to 10"),
    ("halving", {"shares": [0.5, 0.25]}, "it must be rising shares"),
    ("halving", {"shares": [0.5, 1]}, "each less than 1"),
    ("halving", {"shares": [0.001]}, "search.shares[0] is 0.001; it must be a number from 0.01"),
    ("halving", {"shares": []}, "it must be rising shares"),
    ("halving", {"keep": 1}, "search.keep is 1; it must be a number from 0.01 to 0.99"),
    ("race", {"regret": 0}, "search.regret is 0; it must be null or a number from 0.001 to 100"),
    ("sampler", {"sampler": "cma"}, "search.sampler is 'cma' (known: tpe, gp)"),
    ("sampler", {"explore": 2}, "search.explore is 2; it must be a number from 0 to 1"),
    ("sampler", {"startup": 0}, "search.startup is 0; it must be"),
    ("sampler", {"sampler_seed": -1}, "search.sampler_seed is -1; it must be"),
]


def test_an_option_that_is_none_is_refused() -> None:
    for name, options, words in REFUSED:
        with case(name, options), pytest.raises(ValueError) as refused:  # noqa: PT011 - the words are checked below
            parse(STRATEGIES[name], options)
        assert words in str(refused.value), (name, options)


def test_a_strategy_that_is_none_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ValueError, match="did you mean 'race'"):
        composed("search.strategy=rase")


def test_the_defaults_of_a_strategy_are_those_of_its_yaml() -> None:
    for name in {*SHIPPED} & {*STRATEGIES}:
        assert strategy_of(name) == STRATEGIES[name](), name


# Where strategies come from


def test_strategies_are_found_without_torch() -> None:
    code = """if True:
        import sys
        from scalesearch.search.strategies import STRATEGIES
        assert {"grid", "halving", "knowledge", "race", "sampler"} == {*STRATEGIES}, {*STRATEGIES}
        assert [STRATEGIES[name]() for name in STRATEGIES]
        assert not {"torch", "optuna"} & sys.modules.keys()
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_strategy_of_an_installed_package_is_one_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "alien_strategies.py").write_text(
        "from scalesearch.search.strategies import race\n\nclass Strategy(race.Strategy):\n    pass\n"
    )
    (tmp_path / "broken_strategies.py").write_text("raise RuntimeError('no such luck')\n")
    package = tmp_path / "alien-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: alien\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(
        "[scalesearch.strategies]\nalien = alien_strategies:Strategy\nbroken = broken_strategies:Strategy\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found: Registry[type[Strategy]] = Registry("strategies", package=STRATEGIES._package, attribute="Strategy")
    assert {*found} == {*STRATEGIES, "alien", "broken"}
    requests = [step for step in answers(found["alien"](), line(3), noisy) if isinstance(step, Request)]
    assert {request.candidate for request in requests} == {0, 1, 2}
    with pytest.raises(ValueError, match=r"'broken' of scalesearch\.strategies .* RuntimeError: no such luck"):
        _ = found["broken"]


def test_a_name_that_two_packages_offer_is_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package, names in (("one", ("mine", "race", "same")), ("two", ("mine", "same"))):
        metadata = tmp_path / f"{package}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        offers = [f"{name} = {'shared' if name == 'same' else package}_module:Strategy" for name in names]
        (metadata / "entry_points.txt").write_text("\n".join(["[scalesearch.strategies]", *offers]))
    (tmp_path / "shared_module.py").write_text("from scalesearch.search.strategies.race import Strategy\n")
    monkeypatch.syspath_prepend(tmp_path)
    found: Registry[type[Strategy]] = Registry("strategies", package=STRATEGIES._package, attribute="Strategy")
    doubles = {"mine": ("one_module:Strategy", "two_module:Strategy"), "race": ("one_module:Strategy", "scalesearch")}
    for name, offers in doubles.items():
        assert name in found
        with pytest.raises(ValueError, match=f"'{name}' is offered more than once .*: by ") as refusal:
            _ = found[name]
        assert all(offer in str(refusal.value) for offer in offers)
    assert found["same"]().steps
    assert found["grid"]().steps
