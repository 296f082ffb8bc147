"""Strategies replayed on recorded trainings: how often each finds the best one."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up import candidate, trial
from searches import NOISE, SHIPPED, TABULAR, Recorded, replay, script, strategy_of

from scalesearch.search import Strategy
from scalesearch.selection import select

pytestmark = pytest.mark.xdist_group("strategies")


def made_up(chance: int, best: int = 4, size: int = 11, lead: float = 1.5 * NOISE, seeds: int = 400) -> Recorded:
    """Recorded trainings with a known optimum and known noise; shorter schedules are the same, lower and noisier."""
    rng = np.random.default_rng(chance)
    truth = np.array([0.86 + (lead if place == best else -0.001 * (place % 3)) for place in range(size)])
    noise = rng.normal(0, NOISE, (size, seeds))
    whole = truth[:, None] + noise - noise.mean(1, keepdims=True)
    scores = {1.0: whole, 0.5: whole - 0.02 + rng.normal(0, NOISE, whole.shape), 0.25: whole - 0.05}
    triples = tuple(((1 + place / 10, 1.4 - 0.04 * place, 1.0),) for place in range(size))
    return Recorded(
        tuple(f"c{place:02d}" for place in range(size)), (100,) * size, triples, scores, whole, whole.mean(0) - 0.05
    )


def rate(strategy: Strategy, recorded: Recorded, replays: int) -> float:
    """How often it chooses the optimum."""
    hits = 0
    for number in range(replays):
        columns = np.random.default_rng(number).integers(0, recorded.test.shape[1], 16).tolist()
        if hasattr(strategy, "sampler_seed"):
            strategy = replace(strategy, sampler_seed=number)  # type: ignore[type-var]
        hits += replay(strategy, recorded, seeds=4, columns=columns, rule="best").chosen == 4
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


@pytest.mark.parametrize("path", sorted(TABULAR.glob("*.csv")), ids=lambda path: path.stem)
def test_every_strategy_replays_on_what_was_recorded(path: Path) -> None:
    recorded = Recorded.read(path)
    seeds = recorded.scores[1.0].shape[1]
    assert len(recorded.names) >= 5
    assert seeds >= 12
    for name in SHIPPED:
        if name == "gp" or (name == "halving" and 0.25 not in recorded.scores):  # half a second a proposal
            continue
        columns = np.random.default_rng(0).integers(0, seeds, 16).tolist()
        once = replay(strategy_of(name), recorded, seeds=4, columns=columns)
        again = replay(strategy_of(name), recorded, seeds=4, columns=columns)
        assert once[:-1] == again[:-1]  # all but the estimate, which is no value to compare
        assert once.chosen not in once.stopped
        assert once.compute == pytest.approx(
            sum(recorded.macs[r.candidate] * r.share for r in once.requests) / sum(recorded.macs)
        )
    every = replay(strategy_of("grid"), recorded, seeds=seeds, columns=list(range(seeds)), rule="best")
    means = recorded.scores[1.0].mean(1)
    assert means[every.chosen] == means.max()
    assert every.compute == pytest.approx(seeds)


@pytest.mark.parametrize("replays", [25, pytest.param(200, marks=pytest.mark.slow)])
def test_the_estimate_promises_what_held_out_seeds_show(replays: int) -> None:
    """The replays of docs/search.md, with fewer of them."""
    for baseline in script.BASELINES:
        found = script.rows(baseline, script.DEFAULT, range(replays))
        num_candidates = len(Recorded.read(TABULAR / f"{baseline}.csv").names)
        assert np.mean([row.covered for row in found]) >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / replays), baseline
        assert 1 <= np.mean([row.size for row in found]) < num_candidates, baseline
        assert np.mean([row.gain for row in found]) > 0, baseline
        stated, regret = (np.array([getattr(row, name) for row in found]) for name in ("stated", "regret"))
        # Splits of the same seeds are no new trainings: of twelve, their mean is as uncertain as of a few.
        assert regret.mean() == pytest.approx(stated.mean(), abs=0.25), baseline


@pytest.mark.parametrize("path", sorted(TABULAR.glob("*.csv")), ids=lambda path: path.stem)
def test_the_best_mean_and_its_ties_include_the_best_of_the_seeds_held_out(path: Path) -> None:
    """At the confidence that is asked for, less three standard errors, whatever seeds a grid of four has seen."""
    recorded, replays, covered = Recorded.read(path), 40, 0
    known = [candidate(name, width=8 * (place + 1)) for place, name in enumerate(recorded.names)]
    for number in range(replays):
        order = np.random.default_rng(number).permutation(recorded.test.shape[1])
        trials = [
            trial(one, seed, recorded.correct[place, column])
            for place, one in enumerate(known)
            for seed, column in enumerate(order[:4])
        ]
        choice = select(trials, confidence=0.95, rule="best")
        best = recorded.names[int(recorded.test[:, order[4:]].mean(1).argmax())]
        covered += best in (choice.best, *choice.tied)
    assert covered / replays >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / replays)


def test_a_population_of_the_bootstrap_is_a_search_on_some_of_the_candidates() -> None:
    gains = [script.population("mobilenetv2", script.DEFAULT, number) for number in range(3)]
    assert len(set(gains)) == 3
    assert np.mean(gains) > 0


def test_every_search_that_is_compared_replays() -> None:
    for compared in script.COMPARED:
        (row,) = script.rows("preresnet20", compared, [0])
        assert 0.2 < row.compute < 2.1, compared.words


def test_trainings_are_recorded_and_read_again(tmp_path: Path) -> None:
    """The script itself, on a few digits."""
    small = ("data=digits", "data.num_train=64", "data.num_val=64", "recipe=quick", "recipe.batch_size=16")
    grid = ("grid.alpha={start:1,stop:2,step:1}", "grid.beta={start:1,stop:1.4,step:0.4}", "grid.product_tolerance=0.1")
    words = [*small, *grid, "grid.gamma={start:1,stop:1.4,step:0.4}", "budget.tolerance=0.3", "executor.workers=1"]
    where = ["--seeds", "2", "--shares", "0.5", "1", "--workspace", str(tmp_path / "w"), "--directory", str(tmp_path)]
    command = [sys.executable, str(TABULAR / "record.py"), "preresnet_tiny", *where, *words]
    subprocess.run(command, check=True, capture_output=True, text=True)
    recorded = Recorded.read(tmp_path / "preresnet_tiny.csv")
    assert recorded.scores.keys() == {0.5, 1.0}
    assert recorded.test.shape == (len(recorded.names), 2)
    for (place, seed), right in recorded.correct.items():
        value = recorded.baseline[seed] if place == -1 else recorded.scores[1.0][place, seed]
        assert right[:64].mean() == pytest.approx(value)
