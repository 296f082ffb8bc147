"""What each question answers about made-up trainings whose truth is known."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from pathlib import Path

import numpy as np
import pytest
from conftest import study_settings
from made_study import IMAGES, TESTED, Made, by_triple, like, made, tied, triple

from scalesearch.report import QUESTIONS
from scalesearch.report.questions.dimensions import kind
from scalesearch.report.questions.held_out import answer as held_out
from scalesearch.report.questions.neighbours import steps
from scalesearch.scaling import Coefficients
from scalesearch.search import BASELINE
from scalesearch.selection import Pairs
from scalesearch.study import Scored, decisive_settings


@pytest.fixture(scope="module")
def tie(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return tied(tmp_path_factory.mktemp("tie"))


# The winner and its neighbours.


def test_a_neighbour_that_is_as_good_is_tied_and_the_others_are_apart(tie: Made) -> None:
    values, names = tie.answers()["neighbours"], by_triple(tie.plan)
    first, second = names[1.2, 1.1, 1.15], names[1.1, 1.1, 1.2]
    assert {values["best"], *values["tied"]} == {first, second}
    rows = {row["candidate"]: row for row in values["neighbours"]}
    other = second if values["best"] == first else first
    assert rows[other]["tied"]
    assert rows[other]["low"] < 0 < rows[other]["high"]
    assert all(row["low"] > 0.05 for name, row in rows.items() if name != other)
    assert values["separation"]["second"] == other
    text = tie.text()
    assert len(rows) >= 3
    nearest = f"1 of the {len(rows)} nearest on the grid ({values['reach']} steps at most)"
    assert f"From some: at 95 %, {nearest} is statistically tied with {values['best']}, and" in text


def test_the_command_for_more_seeds_is_of_the_same_study(tie: Made) -> None:
    values = tie.answers()["neighbours"]
    more = values["separation"]["seeds"]
    if more is None:  # chance made the two too equal: then it says so
        assert "seeds" in values["separation"]["reason"] or values["separation"]["images"]
        return
    _, _, *words = shlex.split(values["command"])
    again = study_settings(*words)
    assert (again.seeds, again.study) == (3 + more, "made")
    assert decisive_settings(again.values) == decisive_settings(tie.experiment.values)


def test_steps_are_those_of_the_grid_between_the_nearest_triples(tie: Made) -> None:
    one, other = (next(c for c in tie.plan.candidates if triple(c) == t) for t in ((1.2, 1.1, 1.15), (1.1, 1.1, 1.2)))
    assert steps(tie.experiment.grid, one, other) == 1
    deep = next(c for c in tie.plan.candidates if triple(c) == (2.0, 1.0, 1.0))
    assert steps(tie.experiment.grid, one, deep) == 8  # alpha, in steps of 0.1
    both = dataclasses.replace(deep, triples=(*deep.triples, one.coefficients))
    assert steps(tie.experiment.grid, other, both) == 1


def test_a_best_that_is_far_off_is_compared_with_the_nearest(tmp_path: Path) -> None:
    study = made(tmp_path, accuracy=like({(2.0, 1.0, 1.0): 0.9}, others=0.7), seeds=2)
    values = study.answers()["neighbours"]
    far = sorted(row["steps"] for row in values["neighbours"])
    assert far[0] > 1
    assert far[2] == far[-1] == values["reach"]  # three, and what is as near as the third
    assert f"Yes: at 95 %, 0 of the {len(far)} nearest" in study.text()
    assert "are apart already" in study.text()


def test_one_seed_says_what_it_cannot_say(tmp_path: Path) -> None:
    study = made(tmp_path, seeds=1)
    text = study.text()
    assert "(no interval)" in text
    assert "one seed says nothing of how much seeds vary" in text
    command = study.answers()["neighbours"]["command"]
    assert "recipe.seeds=3" in shlex.split(command)
    assert study.answers()["neighbours"]["tied"]


def test_stopped_candidates_are_named_and_may_be_tied(tmp_path: Path) -> None:
    chances = {(1.2, 1.1, 1.15): 0.85, (1.1, 1.1, 1.2): 0.85}
    names = by_triple(made(tmp_path / "plan").plan)
    stopped = {names[1.1, 1.1, 1.2]: 2, names[2.0, 1.0, 1.0]: 2}
    study = made(tmp_path / "race", accuracy=like(chances, others=0.6), stopped=stopped)
    values = study.answers()["neighbours"]
    assert values["chosen"] == names[1.2, 1.1, 1.15]
    assert values["tied"] == [names[1.1, 1.1, 1.2]]
    assert f"Stopped early and not to be chosen: {names[1.1, 1.1, 1.2]} (tied), {names[2.0, 1.0, 1.0]}." in study.text()


# Networks and cost.


def test_triples_of_one_network_are_counted_once(tmp_path: Path) -> None:
    study = made(tmp_path, "grid.alpha.step=0.05", seeds=1)
    values, plan = study.answers()["merged"], study.plan
    assert values["networks"] == len(plan.candidates)
    assert values["triples"] == sum(len(one.triples) for one in plan.candidates) > values["networks"]
    assert set(values["merged"]) == {one.id for one in plan.candidates if len(one.triples) > 1}
    assert 0 < values["adjacent_same"] < values["adjacent"]
    assert f"Not all: the {values['triples']} triples" in study.text()


def test_the_counted_cost_is_compared_with_the_product(tie: Made) -> None:
    values = tie.answers()["cost"]
    factors = {one.id: one.ratio / one.coefficients.product for one in tie.plan.candidates}
    assert values["factor"] == factors[values["chosen"]]
    assert values["lowest"]["factor"] == min(factors.values())
    assert values["highest"]["candidate"] == max(factors, key=lambda name: factors[name])
    assert "| big | 1 | 2 | 2.2 | 1.100 |" in tie.text()


# The test split.


def test_optimism_is_validation_less_test(tie: Made) -> None:
    values = tie.answers()["held_out"]
    assert (values["num_val"], values["num_test"]) == (IMAGES, TESTED)
    assert [row["network"] for row in values["rows"]] == [tie.answers()["neighbours"]["chosen"], BASELINE]
    for row in values["rows"]:
        assert row["optimism"] == pytest.approx(0.01)
        assert row["low"] <= row["optimism"] <= row["high"]
    assert values["excess"]["difference"] == pytest.approx(0, abs=1e-12)
    assert values["seen"] == sorted([BASELINE, tie.answers()["neighbours"]["chosen"]])


def test_an_earlier_choice_has_seen_the_test_split_as_well(tmp_path: Path) -> None:
    study = made(tmp_path, accuracy=like({(1.2, 1.1, 1.15): 0.9}, others=0.7), seeds=2, tested=(BASELINE, "c01"))
    assert study.answers()["held_out"]["seen"] == [BASELINE, "c01", by_triple(study.plan)[1.2, 1.1, 1.15]]
    assert "More than the choice and the 1x network" in study.text()


def test_a_test_accuracy_that_is_missing_has_its_command(tmp_path: Path) -> None:
    study = made(tmp_path, seeds=2, tested=())
    (row,) = [row for row in study.answers()["held_out"]["rows"] if row["optimism"] is None]
    assert row["network"] == BASELINE
    assert study.answers()["held_out"]["excess"] is None
    assert "The test accuracy of baseline was not measured." in study.text()


@pytest.mark.parametrize("studies", [80, pytest.param(300, marks=pytest.mark.slow)])
def test_the_interval_of_optimism_covers_a_planted_one_at_its_rate(studies: int, tie: Made) -> None:
    facts, chance, inside, truth = tie.facts(), np.random.default_rng(6), [], 0.02
    chosen, images, tested = facts.choice.chosen, 500, 800
    for _ in range(studies):
        chances = np.clip(chance.normal(0.8, 0.15, images), 0, 1)  # images differ, whatever the seed
        others = np.clip(chance.normal(0.8 - truth, 0.15, tested), 0, 1)
        shift = chance.normal(0, 0.01, 3)  # a seed is good on both
        finished = {seed: chance.random(images) < chances + shift[seed] for seed in range(3)}
        scores = [Scored(s, float((chance.random(tested) < others + shift[s]).mean()), tested) for s in range(3)]
        made_up = facts._replace(finished={chosen: finished, BASELINE: finished}, test={chosen: scores})
        row = held_out(made_up)["rows"][0]
        inside.append(row["low"] <= truth <= row["high"])
    assert np.mean(inside) >= 0.93  # clipping moves the truth by less than a thousandth


# One, two, three dimensions.


def test_the_kind_of_a_network_is_that_of_its_simplest_triple(tie: Made) -> None:
    one = tie.plan.candidates[0]

    def of(*triples: tuple[float, float, float]) -> str:
        return kind(dataclasses.replace(one, triples=tuple(Coefficients(*values) for values in triples)))

    assert of((1.2, 1.1, 1.15)) == "compound"
    assert of((1.2, 1.1, 1)) == "two"
    assert of((1, 1, 1.4)) == "single"
    assert of((1.2, 1.1, 1.05), (1.2, 1.15, 1)) == "two"
    assert of((0.9, 1.2, 1.3)) == of((1, 1, 1)) == "other"


@pytest.mark.parametrize(
    ("better", "verdict"), [("compound", "better"), ("single", "worse"), (None, "unknown")], ids=str
)
def test_the_verdict_on_compound_scaling_is_the_planted_one(tmp_path: Path, better: str | None, verdict: str) -> None:
    study = made(tmp_path, accuracy=lambda candidate: 0.8 if kind(candidate) == better else 0.7)
    pair = next(pair for pair in study.answers()["dimensions"]["pairs"] if pair["against"] == "single")
    assert pair["verdict"] == verdict
    assert (pair["low"] > 0, pair["high"] < 0) == (verdict == "better", verdict == "worse")
    message = {
        "better": "beats every network of the other kind",
        "worse": "no, the best of the other",
        "unknown": "neither is shown to be better",
    }
    assert f"Against one: {message[verdict]}"[:12] in study.text()
    assert message[verdict] in study.text()


def test_of_equal_networks_a_verdict_is_rare(tie: Made) -> None:
    facts, chance, verdicts = tie.facts(), np.random.default_rng(8), []
    for _ in range(60):
        finished = {name: {s: chance.random(300) < 0.8 for s in range(3)} for name in facts.finished}
        table = facts.choice.candidates.copy()
        table["val_accuracy_mean"] = [
            np.mean([c.mean() for c in finished[name].values()]) for name in table["candidate"]
        ]
        choice = dataclasses.replace(facts.choice, candidates=table)
        made_up = facts._replace(finished=finished, pairs=Pairs(finished), choice=choice)
        verdicts += [pair["verdict"] for pair in QUESTIONS["dimensions"].answer(made_up)["pairs"]]
    assert np.mean([verdict != "unknown" for verdict in verdicts]) <= 0.05


def test_a_space_without_a_kind_says_what_would_have_one(tmp_path: Path) -> None:
    study = made(tmp_path, "grid.gamma.stop=1.0", seeds=2)
    values = study.answers()["dimensions"]
    assert values["kinds"]["compound"] == {"num": 0, "best": None, "val_accuracy": None}
    assert values["pairs"] == []
    assert "Not measured: no candidate scales all three." in study.text()
    _, _, *words = shlex.split(values["command"])
    wider = study_settings(*words)
    assert wider.budget.tolerance == 0.2
    assert wider.study != "made"


# Budgets.


def test_the_choice_at_the_upper_edge_is_bound_by_the_tolerance(tmp_path: Path) -> None:
    study = made(tmp_path, accuracy=lambda c: 0.9 if c.ratio > 2.19 else 0.7, seeds=2)
    values = study.answers()["budget"]
    assert values["binds"] == ["budget.tolerance"]
    assert values["grid_edges"] == ["grid.alpha"]  # (2, 1, 1)
    assert "that budget.tolerance lets in, and is the most expensive candidate" in study.text()


def test_the_choice_in_the_middle_is_bound_by_nothing(tmp_path: Path) -> None:
    study = made(tmp_path, accuracy=like({(1.4, 1.2, 1.0): 0.9}, others=0.7), seeds=2)
    assert study.answers()["budget"]["binds"] == []
    assert "None: the choice lies at the edge of no budget." in study.text()


def test_a_limit_is_compared_with_the_real_variant(tmp_path: Path) -> None:
    study = made(tmp_path, "budget.params=4.01M", "budget.memory=1GiB", "budget.latency_ms=500", seeds=2)
    values = study.answers()["budget"]
    rows = {row["metric"]: row for row in values["limits"]}
    assert rows["params"]["share"] == pytest.approx(4.0 / 4.01)
    assert "budget.params" in values["binds"]
    assert 0 < rows["memory"]["share"] < 0.5  # counted, since the family's table here has none
    assert rows["latency_ms"]["need"] is None  # never measured here: it reads, and trains and times nothing
    _, _, *words = shlex.split(rows["latency_ms"]["command"])
    assert 1.0 in study_settings(*words).phis
    assert "budget.latency_ms=500 was not measured." in study.text()


# Cost and order.


def test_a_planted_effect_of_cost_is_said_with_the_order_without_it(tmp_path: Path) -> None:
    study = made(tmp_path, accuracy=lambda c: 0.7 + 0.8 * math.log2(c.ratio / 2), seeds=3)
    values = study.answers()["explained"]
    assert values["low"] <= 0.8 <= values["high"]
    assert values["shown"]
    assert values["share"] > 0.9
    assert len(values["order"]) == len(study.plan.candidates)
    assert values["corrected"][values["order"][0]] == max(values["corrected"].values())
    assert "In part: a doubling of the multiply-adds goes with +" in study.text()


def test_two_candidates_say_nothing_of_their_cost(tmp_path: Path) -> None:
    study = made(tmp_path, "grid.alpha.stop=1.0", "grid.gamma.step=0.4", "grid.beta.step=0.4", seeds=2)
    assert len(study.plan.candidates) == 2
    assert study.answers()["explained"]["slope"] is None
    assert "that takes three candidates at least" in study.text()


def test_fidelity_is_read_where_it_was_measured(tie: Made) -> None:
    commands = tie.answers()["order"]["missing"]
    assert commands["phi"] == f"scalesearch reproduce fidelity study=made against=phi workspace={tie.workspace}"
    assert "Against phi = 2: not measured." in tie.text()
    unknown = {"value": 0.4, "low": None, "high": None}
    rows = [
        {
            **{"against": "phi", "factor": 2, "candidates": ["c01", "c02", "c03"], "seeds": 2, "command": "x"},
            **{"kendall": {"value": 0.6, "low": 0.2, "high": 0.8}, "spearman": unknown, "warning": "few candidates"},
        }
    ]
    path = tie.directory / "fidelity.json"
    path.write_text(json.dumps(rows))
    try:
        assert list(tie.answers()["order"]["missing"]) == ["epochs", "proxy"]
        text = tie.text()
        assert "| phi = 2 | 3 | 2 | 0.60 (0.20 to 0.80) | 0.40 |" in text
        assert "The order of the proxy is shown to hold better than by chance for phi = 2." in text
        assert "phi = 2: few candidates" in text
        path.write_text("{")
        with pytest.raises(ValueError, match=r"files of study 'made' are damaged .*scalesearch run"):
            tie.facts()
    finally:
        path.unlink()
