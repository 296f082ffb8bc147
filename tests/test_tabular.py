"""Strategies replayed on recorded trainings: how often each finds the best one."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from searches import NOISE, SHIPPED, TABULAR, Recorded, replay, script, strategy_of

from scalesearch.search import Strategy

pytestmark = pytest.mark.xdist_group("strategies")


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
    for baseline in script.BASELINES:
        for name in ("grid", "race"):
            right, named = script.ties(baseline, name, replays)
            assert right >= least, (baseline, name)
            assert 1 <= named < len(Recorded.read(TABULAR / f"{baseline}.csv").names)
