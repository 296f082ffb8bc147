"""The report on made-up trainings in a real ledger, whose truth is known, and on a real study."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from scalesearch import cli, config, report, search
from scalesearch.evaluation import Evaluation
from scalesearch.ledger import Ledger, evaluation_key
from scalesearch.model import identity
from scalesearch.report.facts import reference_splits
from scalesearch.report.questions import QUESTIONS, distance, held_out, kind, steps
from scalesearch.report.words import WORDS
from scalesearch.scaling import Coefficients, scale
from scalesearch.search import BASELINE, Candidate, Plan, TrialResult
from scalesearch.selection import Pairs, select
from scalesearch.training import Result

IMAGES, TESTED = 2000, 3000


def compose(primary: str, *words: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(cli.conf_dir()), version_base="1.3"):
        return hydra.compose(primary, overrides=list(words))


class Made(NamedTuple):
    """A study on disk as `run` leaves it, of which nothing was trained."""

    workspace: Path
    directory: Path
    experiment: config.StudySettings
    plan: Plan
    ledger: Ledger

    def facts(self) -> report.Facts:
        return report.read(self.workspace, self.directory)

    def answers(self) -> dict[str, Any]:
        answers = report.answers(self.facts())
        json.dumps(answers, allow_nan=False)
        return answers

    def text(self) -> str:
        return report.markdown("made", self.answers())

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
    given = ("search=grid", f"recipe.seeds={seeds}", f"workspace={place / 'workspace'}", "study=made", *words)
    experiment = config.load_experiment(compose("run", *given))
    network, rounding = experiment.proxy_network
    plan = search.candidates(network, experiment.grid, experiment.budget, rounding)
    study = Made(experiment.workspace, experiment.directory, experiment, plan, Ledger(experiment.workspace))
    chance, trained, rows = np.random.default_rng(5), [], []
    for candidate in (plan.baseline, *plan.candidates):
        for seed in range((stopped or {}).get(candidate.id, seeds)):
            evaluation = study.evaluation(candidate.network, seed)
            study.record(evaluation, chance.random(IMAGES) < accuracy(candidate) + chance.normal(0, 0.002))
            trained.append(TrialResult(candidate, _outcome(study, evaluation)))
            rows.append({"candidate": candidate.id, "seed": seed, "key": evaluation.key})
    rule = experiment.selection
    choice = select(
        trained,
        confidence=experiment.search.confidence,
        rule=rule.rule,
        metric=rule.metric,
        contenders=[one.id for one in plan.candidates if one.id not in (stopped or {})],
        macs_ratio=experiment.budget.macs_ratio,
    )
    for name in (choice.chosen, *tested):
        for one in trained:
            if one.candidate.id == name and one.outcome.result is not None:
                study.record(one.outcome.evaluation, one.outcome.result.correct, one.outcome.result.val_accuracy - 0.01)
    experiment.directory.mkdir(parents=True)
    (experiment.directory / "settings.yaml").write_text(config.to_yaml(experiment.settings))
    (experiment.directory / "evaluations.json").write_text(json.dumps({"evaluations": rows}))
    (experiment.directory / "stopped.json").write_text(json.dumps(dict.fromkeys(stopped or {}, "worse")))
    choice.candidates.to_csv(experiment.directory / "candidates.csv", index=False)
    row = {"name": "big", "phi": 1.0, "nominal_ratio": 2.0, "macs_ratio": 2.2, "params": 4_000_000}
    result = {"selection": asdict(rule), "chosen": {"id": choice.chosen}, "variants": [row]}
    (experiment.directory / "result.json").write_text(json.dumps(result))
    return study


def _outcome(study: Made, evaluation: Evaluation) -> Any:
    from scalesearch.evaluation import Outcome

    record = study.ledger.get(evaluation.key)
    assert record is not None
    return Outcome(evaluation, Result.from_json(record["result"]), "", reused=True)


def triple(candidate: Candidate) -> tuple[float, float, float]:
    return candidate.coefficients.alpha, candidate.coefficients.beta, candidate.coefficients.gamma


def by_triple(plan: Plan) -> dict[tuple[float, float, float], str]:
    return {triple(one): one.id for one in plan.candidates}


def like(values: dict[tuple[float, float, float], float], *, others: float) -> Callable[[Candidate], float]:
    return lambda candidate: values.get(triple(candidate), others)


@pytest.fixture(scope="module")
def tie(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The default grid: the paper's triple is the best, its neighbour as good, all others are 10 points worse."""
    chances = {(1.2, 1.1, 1.15): 0.85, (1.1, 1.1, 1.2): 0.849}
    return made(tmp_path_factory.mktemp("tie"), accuracy=like(chances, others=0.75))


def test_every_question_has_words_and_an_answer(tie: Made) -> None:
    assert list(WORDS) == list(QUESTIONS)
    answers = tie.answers()
    assert list(answers) == ["about", *QUESTIONS]
    text = tie.text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        f"## {q.words}" for q in QUESTIONS.values()
    ]
    assert "nan" not in text
    assert "None:" not in text.split("## Which budget binds?")[0]


def test_reading_twice_says_the_same_and_trains_nothing(tie: Made) -> None:
    before = sorted(path for path in tie.workspace.rglob("*") if "evaluations" in path.parts)
    assert tie.text() == tie.text()
    assert before == sorted(path for path in tie.workspace.rglob("*") if "evaluations" in path.parts)


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
    said = (
        f"From some: at 95 %, 1 of the {len(rows)} nearest on the grid ({values['reach']} steps at most) cannot be told"
    )
    assert f"{said} from {values['best']}" in text


def test_the_command_for_more_seeds_is_of_the_same_study(tie: Made) -> None:
    values = tie.answers()["neighbours"]
    more = values["separation"]["seeds"]
    if more is None:  # chance made the two too equal: then it says so
        assert "seeds" in values["separation"]["reason"] or values["separation"]["images"]
        return
    _, command, *words = shlex.split(values["command"])
    again = config.load_experiment(compose(command, *words))
    assert (again.seeds, again.study) == (3 + more, "made")
    assert config.decisive_settings(again.settings) == config.decisive_settings(tie.experiment.settings)


def test_steps_are_those_of_the_grid_between_the_nearest_triples(tie: Made) -> None:
    one, other = (next(c for c in tie.plan.candidates if triple(c) == t) for t in ((1.2, 1.1, 1.15), (1.1, 1.1, 1.2)))
    assert steps(tie.experiment.grid, one, other) == 1
    deep = next(c for c in tie.plan.candidates if triple(c) == (2.0, 1.0, 1.0))
    assert steps(tie.experiment.grid, one, deep) == 8  # alpha, in steps of 0.1
    both = dataclasses.replace(deep, triples=(*deep.triples, one.coefficients))
    assert steps(tie.experiment.grid, other, both) == 1


def test_a_best_that_is_far_off_is_held_against_the_nearest(tmp_path: Path) -> None:
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


def test_the_counted_cost_is_held_against_the_product(tie: Made) -> None:
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
        scores = [report.Scored(s, float((chance.random(tested) < others + shift[s]).mean()), tested) for s in range(3)]
        made_up = facts._replace(finished={chosen: finished, BASELINE: finished}, test={chosen: scores})
        row = held_out(made_up)["rows"][0]
        inside.append(row["low"] <= truth <= row["high"])
    assert np.mean(inside) >= 0.93  # clipping moves the truth by less than a thousandth


# Splits that need no search.


def test_the_splits_share_the_product_and_are_what_their_papers_say() -> None:
    for product in (2.0, 3.0, 4.0):
        splits = reference_splits(product)
        equal, fast, papers = splits.values()
        assert equal.alpha == equal.beta == equal.gamma
        assert equal.product == pytest.approx(product, rel=1e-4)
        assert fast.product == pytest.approx(product, rel=1e-4)
        shares = [math.log(value) / math.log(product) for value in (fast.alpha, fast.beta**2, fast.gamma**2)]
        assert shares == pytest.approx([0.1, 0.8, 0.1], abs=1e-4)
        phi = math.log2(product)
        assert (papers.alpha, papers.beta, papers.gamma) == pytest.approx((1.2**phi, 1.1**phi, 1.15**phi), rel=1e-5)


def test_a_split_that_is_a_candidate_is_known_by_its_network(tie: Made) -> None:
    values, names = tie.answers()["flatness"], by_triple(tie.plan)
    papers = next(row for row in values["references"] if row["name"] == "EfficientNet's")
    assert papers["candidate"] == names[1.2, 1.1, 1.15]
    assert papers["in_budget"]
    assert abs(papers["difference"]) < 0.03
    assert papers["command"] is None
    for row in values["references"]:
        assert (row["difference"] is None) == (row["candidate"] is None)
    assert values["spans"]["beta"] == [1.1, 1.1]  # of the two that are tied


def test_a_split_that_nobody_trained_has_its_nearest_and_a_command_that_trains_it(tie: Made) -> None:
    rows = [row for row in tie.answers()["flatness"]["references"] if row["difference"] is None]
    assert rows
    small, rounding = tie.experiment.proxy_network
    for row in rows:
        split = Coefficients(row["alpha"], row["beta"], row["gamma"])
        candidates = {one.id: min(distance(split, t) for t in one.triples) for one in tie.plan.candidates}
        nearest = row["nearest"]
        assert nearest["distance"] == pytest.approx(candidates[nearest["candidate"]]) == min(candidates.values())
        _, command, *words = shlex.split(row["command"])
        asked = config.load_train(compose(command, *words))
        assert identity(asked.network) == identity(scale(small, split, 1, rounding=rounding))
        assert (asked.recipe, asked.seeds, asked.data) == (tie.experiment.recipe, 3, tie.experiment.data)
        assert asked.workspace == tie.workspace
        assert f"{row['name']} was not measured. The nearest measured network is {nearest['candidate']}" in tie.text()


def test_a_split_that_was_trained_by_that_command_is_measured(tmp_path: Path) -> None:
    study = made(tmp_path, accuracy=like({(1.2, 1.1, 1.15): 0.85}, others=0.75))
    small, rounding = study.experiment.proxy_network
    row = next(row for row in study.answers()["flatness"]["references"] if row["difference"] is None)
    network = scale(small, Coefficients(row["alpha"], row["beta"], row["gamma"]), 1, rounding=rounding)
    chance = np.random.default_rng(1)
    for seed in range(3):
        study.record(study.evaluation(network, seed), chance.random(IMAGES) < 0.80)
    now = next(r for r in study.answers()["flatness"]["references"] if r["name"] == row["name"])
    assert now["low"] < 0.05 < now["high"]
    assert (now["candidate"], now["seeds"], now["command"]) == (None, 3, None)
    assert "trained by itself" in study.text()


def test_splits_are_brought_into_the_budget_where_that_can_be(tie: Made) -> None:
    rows = {row["name"]: row for row in tie.answers()["flatness"]["references"]}
    for row in rows.values():
        assert row["in_budget"] == tie.experiment.budget.admits(row["macs_ratio"])
    assert rows["alpha = beta = gamma"]["in_budget"]  # whose product of 2 would cost 2.6 times
    # the width of dWr jumps: 1.7 times, and then 2.8 times; the nearer one is taken, and said
    assert rows["dWr"]["macs_ratio"] == pytest.approx(1.7, abs=0.05)
    assert f"{rows['dWr']['macs_ratio']:.3f}, not in the budget" in tie.text()


def test_distance_is_in_doublings_of_cost() -> None:
    assert distance(Coefficients(2, 1, 1), Coefficients(1, 1, 1)) == 1
    assert distance(Coefficients(1, 2, 1), Coefficients(1, 1, 1)) == 2
    assert distance(Coefficients(1.2, 1.1, 1.15), Coefficients(1.2, 1.1, 1.15)) == 0


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
    said = {
        "better": "beats every network of the other kind",
        "worse": "no, the best of the other",
        "unknown": "cannot",
    }
    assert f"Against one: {said[verdict]}"[:12] in study.text()
    assert said[verdict] in study.text()


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
    _, command, *words = shlex.split(values["command"])
    wider = config.load_experiment(compose(command, *words))
    assert wider.budget.tolerance == 0.2
    assert wider.study != "made"


# Budgets.


def test_the_choice_at_the_upper_edge_is_bound_by_the_tolerance(tmp_path: Path) -> None:
    study = made(tmp_path, accuracy=lambda c: 0.9 if c.ratio > 2.19 else 0.7, seeds=2)
    values = study.answers()["budget"]
    assert values["binds"] == ["budget.tolerance"]
    assert values["grid_edges"] == ["grid.alpha"]  # (2, 1, 1)
    assert "that budget.tolerance lets in, and is the dearest candidate" in study.text()


def test_the_choice_in_the_middle_is_bound_by_nothing(tmp_path: Path) -> None:
    study = made(tmp_path, accuracy=like({(1.4, 1.2, 1.0): 0.9}, others=0.7), seeds=2)
    assert study.answers()["budget"]["binds"] == []
    assert "None: the choice lies at the edge of no budget." in study.text()


def test_a_limit_is_held_against_the_real_variant(tmp_path: Path) -> None:
    study = made(tmp_path, "budget.params=4.01M", "budget.memory=1GiB", "budget.latency_ms=500", seeds=2)
    values = study.answers()["budget"]
    rows = {row["metric"]: row for row in values["limits"]}
    assert rows["params"]["share"] == pytest.approx(4.0 / 4.01)
    assert "budget.params" in values["binds"]
    assert 0 < rows["memory"]["share"] < 0.5  # counted, since the family's table here has none
    assert rows["latency_ms"]["need"] is None  # never measured here: it reads, and trains and times nothing
    _, command, *words = shlex.split(rows["latency_ms"]["command"])
    assert 1.0 in config.load_experiment(compose(command, *words)).phis
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


# Files that are not there, or do not go together.


def test_a_study_without_a_choice_is_refused(tie: Made, tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("")
    with pytest.raises(ValueError, match=r"has not come to a choice yet; see: scalesearch status"):
        report.read(tie.workspace, tmp_path)


def test_a_choice_that_the_trainings_do_not_give_is_refused(tmp_path: Path) -> None:
    study = made(tmp_path, accuracy=like({(1.2, 1.1, 1.15): 0.9}, others=0.7), seeds=2)
    path = study.directory / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chosen": {"id": "c01"}}))
    with pytest.raises(ValueError, match=r"says that c01 is chosen, and its trainings say c05.*`scalesearch run`"):
        study.facts()


def test_a_study_from_before_there_was_a_rule_is_read(tmp_path: Path) -> None:
    study = made(tmp_path, seeds=2)
    result = json.loads((study.directory / "result.json").read_text())
    del result["selection"]
    (study.directory / "result.json").write_text(json.dumps(result))
    settings = config.from_yaml(study.directory / "settings.yaml")
    del settings["selection"]
    (study.directory / "settings.yaml").write_text(config.to_yaml(settings))
    (study.directory / "stopped.json").unlink()
    assert study.answers()["about"]["rule"] == "best"


# The words that a study's settings come to.


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("recipe=quick",),
        ("experiments=first_search",),
        ("experiments=nni_space", "data.root='/a b/it\\'s'"),
        ("search=race", "search.compute=0.7", "study=7", "init=timm:mobilenetv2_100", "budget.macs=600M"),
        (
            "baseline=vit_tiny",
            "proxy=none",
            "baseline.name=own",
            "baseline.norm_epsilon=1e-3",
            "selection.metric=params",
        ),
        (
            "baseline=preresnet29",
            "baseline.name=mine",
            "baseline.stages=[{block:preact,repeats:2,channels:16},{block:preact,stride:2,channels:32}]",
            "+baseline.norm_epsilon=1e-4",
            "rounding=mobilenet",
        ),
        ("grid=nni", "grid.beta={start:1.05,stop:1.2,step:0.05}", "selection=cheapest_tied", "phis=[0.5,1]"),
    ],
    ids=" ".join,
)
def test_overrides_of_settings_compose_to_the_same_settings(words: tuple[str, ...]) -> None:
    settings = OmegaConf.to_container(compose("run", *words))
    assert isinstance(settings, dict)
    values: dict[str, Any] = {str(key): value for key, value in settings.items()}
    found = config.overrides(values, "run", workspace=Path("workspace"))
    assert OmegaConf.to_container(compose("run", *found)) == settings
    assert len(found) <= len(words) + 6, "as few as will do"


WORDS_TO_QUOTE = [
    "a b",
    "it's",
    'say "x"',
    "my_net:make",
    "timm:a.b@/x y",
    "back\\slash",
    'b\\"q',
    "end\\",
    "1e5",
    "true",
    "a=b",
    "",
    "a,b",
    "[x]",
    "ä",
]


def test_a_word_is_read_back_as_it_was() -> None:
    settings = OmegaConf.to_container(compose("run"))
    assert isinstance(settings, dict)
    for name in WORDS_TO_QUOTE:
        values: dict[str, Any] = {str(key): value for key, value in settings.items()} | {"init": name}
        values["executor"] = {"name": "local"}
        values["data"] = {**values["data"], "cache": name}
        read = compose("run", *config.overrides(values, "run", workspace=Path(name or "workspace")))
        assert (read.init, read.data.cache, read.workspace) == (name, name, name or "workspace"), name


# A real study, by the commands.

TINY = (
    *("baseline=mobilenetv2", "proxy.width=0.25", "proxy.depth=0.5", "proxy.resolution=8", "proxy.total_stride=4"),
    *(
        "data=digits",
        "data.num_train=160",
        "recipe=quick",
        "recipe.seeds=2",
        "recipe.batch_size=16",
        "recipe.autocast=off",
    ),
    *("recipe.epochs=1", "recipe.learning_rate=0.2", "recipe.flip=false", "grid.alpha={start:1,stop:1.9,step:0.9}"),
    *("grid.beta={start:1,stop:1.4,step:0.4}", "grid.gamma={start:1,stop:1.4,step:0.4}", "grid.product_tolerance=0.15"),
    *("budget.tolerance=0.12", "phis=[1]", "search=grid", "tracking=none", "study=tiny"),
)


class Ended(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def carried_out(
    tmp_path: Path, in_this_process: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """A command in this process, with a directory of its own."""
    monkeypatch.chdir(tmp_path)

    def carry_out(*words: str) -> Ended:
        capsys.readouterr()
        code = 0
        try:
            cli.main(list(words))
        except SystemExit as end:
            code = int(end.code or 0)
        return Ended(code, *capsys.readouterr())

    return carry_out


def test_a_real_study_is_reported_answered_anew_and_reported_again(
    tmp_path: Path, carried_out: Callable[..., Ended]
) -> None:
    ran = carried_out("run", *TINY, "--json")
    assert ran.returncode == 0, ran.stderr
    before = json.loads(ran.stdout)
    assert before["selection"] == {"rule": "best", "metric": "macs"}
    assert before["best"]["id"] == before["chosen"]["id"]
    directory = tmp_path / "workspace" / "studies" / "tiny"
    written = (directory / "report.md").read_text()
    (directory / "report.md").unlink()

    said = carried_out("report", "study=tiny", "--json")
    assert said.returncode == 0, said.stderr
    answers = json.loads(said.stdout)
    assert (directory / "report.md").read_text() == written  # a command away, and the same
    assert answers["neighbours"]["chosen"] == before["chosen"]["id"]
    assert answers["neighbours"]["num_candidates"] == 3
    assert carried_out("report").stdout.startswith(written)  # no terminal: Markdown as it is

    # what was not measured is measured by the command that the report gives
    missing = next(row for row in answers["flatness"]["references"] if row["command"])
    trained = carried_out(*shlex.split(missing["command"])[1:], "executor.workers=1")
    assert trained.returncode == 0, trained.stderr
    again = json.loads(carried_out("report", "--json").stdout)
    now = next(row for row in again["flatness"]["references"] if row["name"] == missing["name"])
    assert now["difference"] is not None
    assert now["seeds"] == 2

    # another rule needs no new training, and names both; all are tied, and no network needs least of everything
    tied = {before["best"]["id"], *(row["id"] for row in before["chosen"]["tied_with"])}
    assert len(tied) == 3
    rows = {row["candidate"]: row for row in _table(directory / "candidates.csv")}
    cheapest = {m: min(tied, key=lambda name: int(rows[name][m])) for m in ("macs", "params")}
    metric = next(metric for metric, name in cheapest.items() if name != before["best"]["id"])
    cheap = carried_out("run", *TINY, "selection=cheapest_tied", f"selection.metric={metric}", "--json")
    assert cheap.returncode == 0, cheap.stderr
    after = json.loads(cheap.stdout)
    assert after["evaluations"] == {"trained": 0, "reused": 8, "failed": 0}
    assert after["selection"] == {"rule": "cheapest_tied", "metric": metric}
    assert after["best"] == before["best"]
    assert after["chosen"]["id"] == cheapest[metric]
    assert {after["chosen"]["id"], *(row["id"] for row in after["chosen"]["tied_with"])} == tied
    said = f"{after['chosen']['id']} needs the least of {metric} (selection=cheapest_tied)"
    assert re.search(rf"best: {after['best']['id']} \(.*{re.escape(said)}", cheap.stderr)
    assert "cannot be told from the best at 95 %: " in cheap.stderr
    written = (directory / "report.md").read_text()
    assert f"of the best and its ties the least {metric}" in written
    assert "More than the choice and the 1x network" in written  # two choices have seen the test split by now


def _table(path: Path) -> list[dict[str, str]]:
    import csv

    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_study_that_is_not_there_is_one_message(carried_out: Callable[..., Ended]) -> None:
    said = carried_out("report", "study=nothing")
    assert said.returncode == 2
    assert "there is no study in workspace; first: scalesearch run" in said.stderr
