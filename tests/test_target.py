"""A search for a target cost: what is trained, what is refused, and the answer, through the real command line."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import planted
import pytest
import yaml
from conftest import CONF, Ended, study_settings
from planted import Call, Place, Planted, made_up

from scalesearch import surface
from scalesearch.command_line import overrides
from scalesearch.cost import cost
from scalesearch.network import Network, from_table, load
from scalesearch.planning import planned, refuse_infeasible
from scalesearch.scaling import Coefficients, Rounding, scale
from scalesearch.search import BASELINE, realised
from scalesearch.workspace import Infeasible, Target

call = planted.call
STUDY = "digits"
# As in planted, without what a search among candidates of one cost is given.
SEARCH = (
    *(word for word in planted.SEARCH if not word.startswith(("grid", "search", "phis", "budget"))),
    *("budget.tolerance=0.15", "recipe.seeds=3"),
)
MINE = (*SEARCH, "target.macs_ratio=8")


def width_pays(specification: Mapping[str, Any]) -> Any:
    """An error that falls with each dimension as a power law, with width by far the most, and a little noise."""
    network = from_table(specification["network"], name="planted")
    assert isinstance(network, Network)
    depth, resolution = network.depth / 9, network.resolution / 8
    channels = [stage.channels for stage in network.stages if stage.channels]
    width = sum(channels) / 196
    error = 0.1 + 0.35 * width**-1.2 + 0.03 * depth**-0.5 + 0.03 * resolution**-0.5
    noise = ((specification["seed"] * 7 + len(json.dumps(specification["network"]))) % 5 - 2) / 400
    return made_up(1 - error + noise, start=specification["seed"])


@pytest.fixture
def place(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(Planted, "plant", staticmethod(width_pays))
    return Place(tmp_path, call)


_FINISHED: dict[str, tuple[Path, Ended]] = {}


@pytest.fixture
def finished(place: Place, call: Call, tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, Ended]:
    """(a workspace of its own with the search at its end, how it ended), searched once for all tests."""
    if not _FINISHED:
        first = Place(tmp_path_factory.mktemp("finished"), call)
        _FINISHED["run"] = first.path, first.gives("run", *MINE)
    path, ended = _FINISHED["run"]
    assert ended.code == 0, ended.output
    shutil.copytree(path / "workspace", place.workspace)
    Planted.trained.clear()
    return place, ended


@pytest.mark.parametrize("name", ["mobilenetv2", "preresnet20", "vit_tiny", "efficientnet_b0"])
def test_a_split_is_the_network_on_its_ray_whose_counted_cost_is_nearest(name: str) -> None:
    network, rounding = load(CONF / "baseline" / f"{name}.yaml"), "nearest"
    rule = Rounding(**yaml.safe_load((CONF / "rounding" / f"{rounding}.yaml").read_text()))
    base = cost(network).macs
    for split, ratio in itertools.product(surface.lattice(1) + surface.spread(1), (2, 3.3)):
        found = realised(network, split, ratio, rule)
        assert found.ratio == cost(found.network).macs / base
        away = abs(math.log(found.ratio / ratio))
        for step in range(round(32 * (math.log2(ratio) - 0.8)), round(32 * (math.log2(ratio) + 1.5)), 3):
            other = scale(network, Coefficients(*surface.multiples(split, step / 32)), 1, rounding=rule)
            assert away <= abs(math.log(cost(other).macs / base / ratio)) + 1e-9


def test_candidates_are_spread_over_the_splits_of_each_cost() -> None:
    settings = study_settings("baseline=mobilenetv2", "target.macs_ratio=8", "target.splits=7")
    plan, _ = planned(settings, measured=False)
    refuse_infeasible(plan, settings)
    assert len(plan.candidates) == 14
    for wanted, found in itertools.groupby(
        plan.candidates, key=lambda one: min((2, 4), key=lambda c: abs(c - one.ratio))
    ):
        ratios = [one.ratio for one in found]
        assert len(ratios) == 7
        assert all(abs(ratio / wanted - 1) <= settings.budget.tolerance for ratio in ratios)
    alone = [one.coefficients for one in plan.candidates]
    for axis in ("alpha", "beta", "gamma"):
        assert any(getattr(one, axis) > 1 and one.alpha * one.beta * one.gamma == getattr(one, axis) for one in alone)


REFUSED = {
    "macs_ratio_below_one": (("target.macs_ratio=0.5",), "target.macs_ratio is 0.5"),
    "both": (("target.macs_ratio=8", "target.macs=2.4G"), "give one of them"),
    "no_target": (("target.costs=[2]",), "target.macs_ratio=8 or target.macs=2.4G"),
    "no_target_for_splits": (("target.splits=10",), "there is none"),
    "below_the_baseline": (("target.macs=100M",), "mobilenetv2 itself has"),
    "no_number": (("target.macs=lots",), "target.macs is 'lots'; it must be a number such as"),
    "above_the_target": (("target.macs_ratio=3", "target.costs=[2,4]"), "nothing is trained above the target"),
    "nothing_to_train": (("target.macs_ratio=1.5",), r"target.costs=\[1.5\]"),
    "one_alone": (("target.macs_ratio=8", "target.costs=[1]"), "no cost above 1 is trained"),
    "twice": (("target.macs_ratio=8", "target.costs=[2,2]"), "a cost twice"),
    "empty": (("target.macs_ratio=8", "target.costs=[]"), "list of numbers"),
    "no_list": (("target.macs_ratio=8", "target.costs=2"), "list of numbers"),
    "low_cost": (("target.macs_ratio=8", "target.costs=[0.5]"), "target.costs"),
    "few_splits": (("target.macs_ratio=8", "target.splits=3"), "from 4 to 91"),
    "no_seed": (("target.macs_ratio=8", "target.seeds=0"), "target.seeds is 0"),
    "limits": (("target.macs_ratio=8", "budget.params=9M"), "leave budget.params out"),
    "selection": (("target.macs_ratio=8", "selection=best"), "leave selection out"),
    "regret": (("target.macs_ratio=8", "search.regret=0.1"), "leave it out"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_before_anything_is_trained(name: str) -> None:
    words, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as refused:
        study_settings("baseline=mobilenetv2", *words)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("baseline=vit_tiny", "budget.tolerance=0", "target.macs_ratio=8"), "0 of 14 splits are networks within 0 %"),
        (
            ("baseline=mobilenetv2", "target.macs_ratio=1e6"),
            "no split of mobilenetv2 is a network within 10 % of 1e.06 x",
        ),
    ],
)
def test_what_no_network_meets_is_infeasible(words: tuple[str, ...], message: str) -> None:
    settings = study_settings(*words)
    with pytest.raises(Infeasible, match=message) as refused:
        refuse_infeasible(planned(settings, measured=False)[0], settings)
    assert "Raise budget.tolerance" in str(refused.value)


def test_a_grid_that_does_not_reach_its_product_names_what_does() -> None:
    settings = study_settings("budget.macs_ratio=8", "grid.product=8")
    with pytest.raises(Infeasible, match=r"reach products from 1 to 7\.683.*target\.macs_ratio=8\."):
        refuse_infeasible(planned(settings, measured=False)[0], settings)


def test_an_ordinary_search_is_the_study_that_it_was() -> None:
    settings = study_settings("baseline=mobilenetv2")
    assert settings.target is None
    assert "target" not in settings.values
    other = study_settings("baseline=mobilenetv2", "target.macs_ratio=8")
    assert other.study != settings.study
    assert other.study != study_settings("baseline=mobilenetv2", "target.macs_ratio=9").study


@pytest.mark.parametrize(
    "words", [("target.macs_ratio=8", "target.costs=[1,3]"), ("target.macs=2.4G", "target.seeds=2")]
)
def test_the_command_line_of_a_study_has_its_target(words: tuple[str, ...]) -> None:
    settings = study_settings("baseline=mobilenetv2", *words)
    again = overrides(settings.values, "run", workspace=settings.workspace)
    assert study_settings(*again).values == settings.values


def test_the_target_in_multiply_adds_is_that_of_the_baseline_itself() -> None:
    settings = study_settings("baseline=mobilenetv2", "target.macs=2.4G")
    assert settings.target_ratio == 2.4e9 / cost(settings.baseline).macs
    assert settings.target == Target(macs="2.4G")


def test_a_search_for_a_target_comes_to_the_split_that_was_planted(finished: tuple[Place, Ended]) -> None:
    place, ended = finished
    answer, target = ended.answer, ended.answer["target"]
    candidates = pd.read_csv(place.study / "candidates.csv")
    number = len(candidates) - 1 + 3
    assert answer["evaluations"] == {"trained": number, "reused": 0, "failed": 0}
    assert target["split"]["width"] >= 0.5
    assert target["beyond"] == pytest.approx(math.log2(8 / target["most_trained"]))
    assert [step["cost"] for step in target["path"]] == [2, 4, 8]
    assert 0 <= target["constant"]["p_value"] <= 1
    assert target["constant"]["loss_low"] <= target["constant"]["loss"] <= target["constant"]["loss_high"]
    assert target["accuracy_low"] < target["accuracy"] < target["accuracy_high"]
    for word in ("8 x the multiply-adds", "expected regret", "doublings of the cost beyond", "triple is the best"):
        assert word in answer["decision"]["sentence"]
        assert word in (place.study / "report.md").read_text()
    assert json.loads((place.study / "result.json").read_text()) == answer
    logged = (place.study / "tracking.jsonl").read_text()
    for word in ("target_beyond_doublings", "one_triple_p_value", "target.alpha", "target.macs_ratio", "Decision"):
        assert word in logged


def test_the_plan_shows_what_the_search_then_trains(finished: tuple[Place, Ended]) -> None:
    place, _ = finished
    plan = place.gives("plan", *MINE)
    assert plan.code == 0, plan.output
    trained = {*pd.read_csv(place.study / "candidates.csv")["candidate"]} - {BASELINE}
    assert {one["id"] for one in plan.answer["candidates"]} == trained
    assert plan.answer["evaluations"] == len(trained) + 3
    assert plan.answer["target"] == {"macs_ratio": 8}


def test_the_network_at_the_target_has_its_cost_and_loads_as_a_baseline(finished: tuple[Place, Ended]) -> None:
    place, ended = finished
    base = cost(load(CONF / "baseline" / "mobilenetv2.yaml")).macs
    coefficients = yaml.safe_load((place.study / "coefficients.yaml").read_text())
    for row, step in zip(ended.answer["variants"], ended.answer["target"]["path"], strict=True):
        network = load(place.path / row["file"])
        assert cost(network).macs == row["macs"] == step["macs"]
        assert abs(row["macs"] / base / step["cost"] - 1) <= 0.15
        for axis, name in (("alpha", "depth"), ("beta", "width"), ("gamma", "resolution")):
            assert step[axis] ** step["phi"] == pytest.approx(step["multiples"][name])
    assert {name: coefficients[name] for name in ("alpha", "beta", "gamma")} == {
        name: ended.answer["target"][name] for name in ("alpha", "beta", "gamma")
    }
    table = pd.read_csv(place.study / "surface.csv")
    assert (table.groupby("cost")["chosen"].sum() == 1).all()
    assert table.groupby("cost")["probability_best"].sum().to_numpy() == pytest.approx(1)


def test_the_same_command_trains_nothing_again_and_a_broken_one_comes_to_the_same(
    finished: tuple[Place, Ended], call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, whole = finished
    again = place.gives("run", *MINE)
    assert again.answer["evaluations"]["trained"] == 0
    assert again.answer["target"] == whole.answer["target"]
    broken = Place(tmp_path / "broken", call)
    broken.path.mkdir()

    def breaks(specification: Mapping[str, Any]) -> Any:
        if len(Planted.trained) == 6:
            raise KeyboardInterrupt
        return width_pays(specification)

    monkeypatch.setattr(Planted, "plant", staticmethod(breaks))
    assert broken.gives("run", *MINE).code == 130
    assert len(Planted.trained) == 6
    ended = broken.gives("run", *MINE)
    assert ended.code == 0, ended.output
    assert 0 < ended.answer["evaluations"]["reused"] < 6
    assert ended.answer["target"] == whole.answer["target"]


def test_other_commands_know_such_a_study(finished: tuple[Place, Ended], call: Call) -> None:
    place, first = finished

    def gives(*words: str) -> Ended:
        return call(place.path, [*words, "--json"])

    report = gives("report")
    assert report.code == 0, report.output
    assert report.answer["target"] == first.answer["target"]
    assert gives("status").answer["state"] == "finished"
    family = gives("variants", f"study={STUDY}", "phis=[3]")
    assert family.code == 0, family.output
    assert family.answer["variants"][0]["macs_ratio"] == pytest.approx(8, rel=0.15)
    for words in (
        ("reproduce", "fidelity", f"study={STUDY}", "tracking=none"),
        ("export", f"study={STUDY}", "candidate=chosen"),
    ):
        refused = gives(*words)
        assert refused.code == 2
        assert "search for a target cost" in " ".join(refused.output.split())


def test_what_failed_is_named_and_the_others_answer(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(specification: Mapping[str, Any]) -> Any:
        if len(Planted.trained) in (5, 8):
            raise ValueError("no luck")
        return width_pays(specification)

    monkeypatch.setattr(Planted, "plant", staticmethod(fails))
    ended = place.gives("run", *MINE)
    assert ended.code == 3, ended.output
    assert ended.answer["evaluations"]["failed"] == 2
    assert ended.answer["target"]["split"]["width"] >= 1 / 3

    def always(specification: Mapping[str, Any]) -> Any:
        raise ValueError("no luck")

    monkeypatch.setattr(Planted, "plant", staticmethod(always))
    ended = place.gives("run", *MINE, "recipe.epochs=3", "study=other")
    assert ended.code == 4
    assert "no luck" in ended.output


def test_a_search_that_has_learnt_nothing_names_no_split(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Planted, "plant", staticmethod(lambda one: made_up(0.1, start=one["seed"])))
    ended = place.gives("run", *MINE)
    assert ended.code == 8, ended.output
    assert ended.answer["chosen"] is None


def test_an_ordinary_run_says_how_far_its_family_reaches(searched: Callable[..., Place]) -> None:
    place = searched()
    ended = place.gives("run", *planted.SEARCH, "phis=[1,3]")
    assert ended.code == 0
    assert "phi = 3 lies 2 doublings of the cost beyond what was trained" in " ".join(ended.output.split())
    assert "doublings of the cost beyond" not in place.gives("run", *planted.SEARCH, "phis=[0,1]").output


searched = planted.searched


@pytest.mark.slow
def test_it_is_trained_in_real(tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ended = command("run", *MINE, "target.splits=4", "executor.workers=2", "--json")
    assert ended.code in (0, 8), ended.output
    assert ended.answer["evaluations"]["failed"] == 0
