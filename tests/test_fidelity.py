"""`scalesearch reproduce`: its statistics against scipy and by simulation, planted studies, one that is really trained.

A planted study goes through the real command line, plan, ledger and selection; only its executor makes the results up.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from scipy import stats

from scalesearch import cli, config
from scalesearch.cost import cost
from scalesearch.evaluation import Evaluation
from scalesearch.executor import EXECUTORS
from scalesearch.fidelity import SHORT_EPOCHS, caution, what_is_lost
from scalesearch.fidelity.agreement import (
    Agreement,
    Estimate,
    agreement,
    kendall,
    means,
    perfect_limit,
    ranks,
    spearman,
)
from scalesearch.fidelity.references import CompletedStudy, read_search, spread
from scalesearch.ledger import Ledger, lock_study
from scalesearch.network import Network, from_table
from scalesearch.paper import EXPERIMENTS
from scalesearch.scaling import scale
from scalesearch.training import Result

# MLflow's own: it leaves sqlite connections to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.xdist_group("studies"),  # they share what was searched
    pytest.mark.usefixtures("unsynced_sqlite"),
]

SCALESEARCH = str(Path(sys.executable).with_name("scalesearch"))
STUDY = "digits"
# Five candidates, of 9, 9, 9, 13 and 17 blocks, and the 1x network; as in test_run.
SEARCH = (
    *("baseline=mobilenetv2", "proxy.width=0.25", "proxy.depth=0.5", "proxy.resolution=8", "proxy.total_stride=4"),
    *("data=digits", "data.num_train=320", "data.num_val=400", "recipe.batch_size=16", "recipe.learning_rate=0.2"),
    *(
        "recipe.seeds=2",
        "recipe.epochs=2",
        "recipe.flip=false",
        "recipe.autocast=off",
        "grid.alpha={start:1,stop:1.9,step:0.45}",
    ),
    *("grid.beta={start:1,stop:1.4,step:0.1}", "grid.gamma={start:1,stop:1.4,step:0.1}", "search=grid"),
    *("grid.product_tolerance=0.15", "budget.tolerance=0.12", "phis=[1]", "tracking=none", f"study={STUDY}"),
)
NUM_TRAIN, NUM_VAL, EPOCHS = 320, 400, 2


# --- the statistics -------------------------------------------------------------------------------------------------


def test_rank_correlations_are_scipy_s_ties_included() -> None:
    for levels in (3, 5, 1000):
        chance = np.random.default_rng(levels)
        one, other = chance.integers(0, levels, (2, 60, 9)).astype(float)
        ours = np.stack([kendall(one, other), spearman(one, other)])
        for index in range(60):
            theirs = stats.kendalltau(one[index], other[index])[0], stats.spearmanr(one[index], other[index])[0]
            assert ours[:, index] == pytest.approx(theirs), (levels, index)


def test_without_an_order_there_is_no_correlation() -> None:
    same, rising = np.ones(4), np.arange(4.0)
    for statistic in (kendall, spearman):
        assert math.isnan(statistic(same, rising))
        assert math.isnan(statistic(rising, same))


def test_ranks_are_scipy_s_from_the_highest() -> None:
    accuracies = np.array([0.5, 0.9, 0.5, 0.1])
    assert ranks(accuracies).tolist() == stats.rankdata(-accuracies).tolist() == [2.5, 1, 2.5, 4]


def judged(proxy: Sequence[Sequence[float]], reference: Sequence[Sequence[float]], **more: Any) -> Agreement:
    depth = more.pop("depth", range(len(proxy)))
    sides = (np.array(side, dtype=float) for side in (proxy, reference))
    return agreement(*sides, np.array(depth, dtype=float), confidence=0.95, **more)


def drawn(chance: np.random.Generator, tau: float, candidates: int, *, seeds: int, noise: float) -> Any:
    """Accuracies (C, S) of both sides: normal over the candidates with this Kendall's tau, and noise of the seeds."""
    r = math.sin(math.pi / 2 * tau)
    one, other = chance.standard_normal((2, candidates, 1))
    sides = one, r * one + math.sqrt(1 - r**2) * other
    return [side + noise * chance.standard_normal((candidates, seeds)) for side in sides]


@pytest.mark.parametrize(("draws", "least"), [(40, 0.87), pytest.param(150, 0.9, marks=pytest.mark.slow)])
def test_intervals_hold_the_truth_as_often_as_they_say(draws: int, least: float) -> None:
    for tau, candidates in ((0.0, 8), (0.5, 8), (0.8, 5), (0.95, 5), (0.95, 11)):
        for noise in (0.0, 0.5):
            chance = np.random.default_rng([round(100 * tau), candidates])
            r = math.sin(math.pi / 2 * tau) / (1 + noise**2 / 3)  # what the noise of three seeds leaves of it
            truth = {"kendall": 2 / math.pi * math.asin(r), "spearman": 6 / math.pi * math.asin(r / 2)}
            inside = dict.fromkeys(truth, 0)
            for _ in range(draws):
                sides = drawn(chance, tau, candidates, seeds=3, noise=noise)
                found = agreement(*sides, np.arange(float(candidates)), confidence=0.95, resamples=300)
                for name, true in truth.items():
                    estimate = getattr(found, name)
                    assert estimate.low <= estimate.value <= estimate.high
                    inside[name] += estimate.low <= true <= estimate.high
            assert min(inside.values()) >= least * draws, (tau, candidates, noise, inside)


def test_perfect_agreement_of_a_few_says_less_than_that_of_many() -> None:
    few, many = (judged([[c] for c in range(n)], [[c] for c in range(n)]) for n in (4, 15))
    for one, other in ((few.kendall, many.kendall), (few.spearman, many.spearman)):
        assert one.value == other.value == one.high == other.high == 1
        assert one.low is not None
        assert other.low is not None
        assert one.low < 0 < 0.8 < other.low < 1
    opposite = judged([[c] for c in range(4)], [[-c] for c in range(4)]).kendall
    assert few.kendall.low is not None
    assert (opposite.value, opposite.low, opposite.high) == (-1, -1, -few.kendall.low)


def test_the_limit_of_perfect_agreement_is_met_by_chance_as_rarely_as_it_says() -> None:
    for candidates in (3, 5, 9):
        tau, rho = perfect_limit(candidates, confidence=0.9)
        chance = np.random.default_rng(7)
        r = math.sin(math.pi / 2 * tau)
        one, other = chance.standard_normal((2, 20_000, candidates))
        perfect = kendall(one, r * one + math.sqrt(1 - r**2) * other) > 1 - 1e-9
        assert perfect.mean() == pytest.approx(0.05, abs=0.006), candidates
        one, other = chance.standard_normal((2, 1, 4000))
        assert spearman(one, r * one + math.sqrt(1 - r**2) * other)[0] == pytest.approx(rho, abs=0.05), candidates


def test_seeds_that_differ_more_widen_the_interval() -> None:
    steady = np.repeat(np.linspace(0.80, 0.89, 10)[:, None], 2, axis=1)
    unsteady = steady + np.array([-0.1, 0.1]) * np.array([1, -1] * 5)[:, None]  # the same means
    few, more = (judged(steady.tolist(), side.tolist()).kendall for side in (steady, unsteady))
    assert few.value == more.value == 1
    assert few.low is not None
    assert more.low is not None
    assert more.low < few.low - 0.3


def test_a_seed_counts_on_both_sides_at_once() -> None:
    """Seeds turn the order of both sides together: within every seed they agree, and only pairing can know it."""
    order = np.linspace(-0.09, 0.09, 10)[:, None]
    turning = 0.5 + order * np.array([2.0, -1.0])
    agreed = judged(turning.tolist(), turning.tolist()).kendall
    assert (agreed.value, agreed.high) == (1, 1)
    assert agreed.low == perfect_limit(10, confidence=0.95)[0]  # unpaired draws would give -1 in half of all resamples


def test_a_seed_that_failed_is_left_out() -> None:
    nan = math.nan
    assert means(np.array([[0.5, nan, 0.7], [nan, nan, 0.4]])).tolist() == [0.6, 0.4]
    whole = judged([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], [[0.1, 0.1], [0.4, 0.4], [0.3, 0.3]])
    holes = judged([[0.1, 0.2, nan], [0.35, nan, nan], [0.5, 0.6, nan]], [[0.1, nan, nan], [nan, 0.4, nan], [0.3] * 3])
    assert holes.kendall.value == whole.kendall.value == pytest.approx(1 / 3)


def test_sums_that_differ_in_the_last_digit_are_equal() -> None:
    assert np.mean([0.1, 0.2, 0.3]) != np.mean([0.3, 0.2, 0.1])
    agreed = judged([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.5] * 3], [[0.3] * 3, [0.3] * 3, [0.4] * 3])
    assert agreed.kendall.value == pytest.approx(1)


def test_deeper_ones_that_rise_and_fall() -> None:
    falling = [[0.9], [0.8], [0.7], [0.6]]
    assert judged(falling, falling[::-1]).depth_gain.value == pytest.approx(1)
    assert judged(falling, falling[::-1], depth=[4, 3, 2, 1]).depth_gain.value == pytest.approx(-1)
    assert judged(falling, falling).depth_gain.reason == "the change of rank is the same for all 4 candidates"
    assert (
        judged(falling, falling[::-1], depth=[3] * 4).depth_gain.reason == "the depth is the same for all 4 candidates"
    )


def test_what_cannot_be_known_is_none_with_its_reason() -> None:
    two = judged([[0.1], [0.2]], [[0.1], [0.2]])
    assert set(two) == {(None, None, None, "2 candidates; a rank correlation needs at least 3")}
    equal = judged([[0.5]] * 3, [[0.1], [0.2], [0.3]])
    assert equal.kendall == (None, None, None, "the proxy accuracy is the same for all 3 candidates")
    assert judged([[0.1], [0.2], [0.3]], [[0.5]] * 3).spearman.reason == (
        "the reference accuracy is the same for all 3 candidates"
    )


def test_the_same_numbers_give_the_same_interval() -> None:
    sides = [side.tolist() for side in drawn(np.random.default_rng(3), 0.4, 7, seeds=3, noise=0.3)]
    assert judged(*sides) == judged(*sides)


# --- which candidates -----------------------------------------------------------------------------------------------


def test_candidates_are_spread_over_the_ranking_with_the_chosen_one() -> None:
    ranking = [f"c{index}" for index in range(11)]
    for number, chosen in itertools.product(range(2, 13), ("c0", "c1", "c5", "c9", "c10")):
        found, case = spread(ranking, chosen, number), (number, chosen)
        assert len(found) == len(set(found)) == min(number, 11), case
        assert chosen in found, case
        places = [ranking.index(name) for name in found]
        assert places == sorted(places), case
        steps = np.diff([0, *places, 10])
        assert steps.max() <= 2 * math.ceil(10 / (number - 1)), ("a hole in the ranking", case)
        assert spread(ranking, "c0", number)[-1] == "c10", case


# --- what the choice loses ------------------------------------------------------------------------------------------


def made_up(accuracy: float, *, num_val: int = NUM_VAL, curve: Sequence[float] = (2.0, 1.0), start: int = 0) -> Result:
    correct = np.roll(np.arange(num_val) < round(accuracy * num_val), start)
    return Result(
        val_accuracy=float(correct.mean()),
        val_loss=1.0,
        correct=correct,
        curve=tuple({"epoch": i + 1, "train_loss": loss, "learning_rate": 0.1} for i, loss in enumerate(curve)),
        train_seconds=2.0,
        images_per_second=100.0,
    )


def results(**accuracies: Sequence[float]) -> dict[str, dict[int, Result]]:
    return {name: {seed: made_up(value) for seed, value in enumerate(of)} for name, of in accuracies.items()}


def test_the_choice_loses_what_the_best_is_better_by() -> None:
    best, lost = what_is_lost("c1", results(c1=[0.80, 0.82, 0.81], c2=[0.84, 0.87, 0.84], c3=[0.5, 0.5, 0.5]))
    assert (best, lost.reason) == ("c2", None)
    assert lost.value == pytest.approx(0.04)
    assert lost.low is not None
    assert lost.high is not None
    assert 0 <= lost.low < 0.04 < lost.high < 0.1


def test_a_choice_that_is_first_loses_nothing_but_may_yet() -> None:
    best, near = what_is_lost("c1", results(c1=[0.81, 0.83, 0.82], c2=[0.80, 0.83, 0.81]))
    assert (best, near.value, near.low) == ("c1", 0.0, 0.0)
    assert near.high is not None
    assert near.high > 0
    _, far = what_is_lost("c1", results(c1=[0.81, 0.83, 0.82], c2=[0.30, 0.33, 0.31]))
    assert far.high == 0.0
    tied, _ = what_is_lost("c2", results(c1=[0.8, 0.8], c2=[0.8, 0.8]))
    assert tied == "c2"


def test_a_loss_that_cannot_be_known_has_no_interval() -> None:
    best, one_seed = what_is_lost("c1", results(c1=[0.80], c2=[0.84]))
    assert (best, one_seed.low, one_seed.high) == ("c2", None, None)
    assert one_seed.value == pytest.approx(0.04)
    assert "at least 2 are needed" in str(one_seed.reason)
    assert what_is_lost("c9", results(c1=[0.80], c2=[0.84]))[1].reason == (
        "no reference training of the choice c9 has finished"
    )


# --- planted studies ------------------------------------------------------------------------------------------------

Plant = Callable[[Mapping[str, Any]], Result]


class Planted(Executor):
    """An executor whose trainings end at once, as `plant` says for their specification; it notes the seeds it trained.

    The arguments are those of `LocalExecutor`, for the settings of executor=local.
    """

    plant: ClassVar[Plant]
    trained: ClassVar[list[Mapping[str, Any]]] = []

    def __init__(self, workers: int | None = None, *, threads: int = 1, devices: Sequence[str] = ()) -> None:
        self.slots = 2

    def submit(self, function: Any, specification: Any) -> Future[dict[str, Any]]:  # type: ignore[override]
        future: Future[dict[str, Any]] = Future()
        if function.__name__ == "test_specification":
            future.set_result({"test_accuracy": 0.5, "test_loss": 1.0, "num_test": 100})
            return future
        self.trained.append(specification)
        try:
            result = type(self).plant(specification)
        except ValueError as error:
            future.set_exception(error)
            return future
        path = Path(specification["weights"])
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"weight": torch.zeros(1)}, path)
        future.set_result({"result": result.to_json(), "environment": {}})
        return future


def blocks(specification: Mapping[str, Any]) -> float:
    return from_table(specification["network"], name="planted").depth


def known_bias(specification: Mapping[str, Any]) -> Result:
    """Short training punishes depth and long training rewards it; a px is worth a tenth of a block."""
    sign = -1 if specification["recipe"]["epochs"] <= EPOCHS else 1
    noise = 0.0025 * specification["seed"]
    accuracy = 0.6 + sign * 0.01 * blocks(specification) + 0.0025 * specification["network"]["resolution"] + noise
    return made_up(accuracy, start=specification["seed"])


def honest(specification: Mapping[str, Any]) -> Result:
    """Deeper is better, however long the training."""
    return made_up(0.4 + 0.02 * blocks(specification) + 0.0025 * specification["network"]["resolution"])


class Ended(NamedTuple):
    code: int
    answer: dict[str, Any]
    error: str


class Place:
    """A directory with a workspace; commands run in this process, with the planted executor."""

    def __init__(self, path: Path, call: Callable[[Path, Sequence[str]], Ended]) -> None:
        self.path, self._call = path, call
        self.workspace = path / "workspace"
        self.study = self.workspace / "studies" / STUDY

    def gives(self, *words: str) -> Ended:
        return self._call(self.path, [*words, "executor.name=planted", "--json"])

    def fidelity(self, *words: str) -> Ended:
        return self.gives("reproduce", "fidelity", *words)

    def answers(self) -> list[dict[str, Any]]:
        return json.loads((self.study / "fidelity.json").read_text())  # type: ignore[no-any-return]

    def files(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted(self.workspace.rglob("*")) if path.is_file()}


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[Path, Sequence[str]], Ended]:
    monkeypatch.setitem(EXECUTORS, "planted", Planted)  # type: ignore[arg-type]  # a double through the table of doors
    monkeypatch.setattr(sys, "argv", sys.argv)  # Hydra reads it, so main writes it
    monkeypatch.setattr(Planted, "plant", staticmethod(known_bias), raising=False)
    Planted.trained.clear()

    def carry_out(place: Path, words: Sequence[str]) -> Ended:
        monkeypatch.chdir(place)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main(list(words))
        out, err = capsys.readouterr()
        assert "Traceback" not in err, err
        return Ended(int(ended.value.code or 0), json.loads(out) if out else {}, err)

    return carry_out


_SEARCHED: dict[str, Path] = {}


@pytest.fixture
def searched(
    call: Callable[[Path, Sequence[str]], Ended],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Place]:
    """A study of its own for every test, searched once for each way of planting it."""

    def copied(plant: Plant = known_bias, *more: str) -> Place:
        name = " ".join([plant.__name__, *more])
        monkeypatch.setattr(Planted, "plant", staticmethod(plant))
        if name not in _SEARCHED:
            first = Place(tmp_path_factory.mktemp("searched"), call)
            ended = first.gives("run", *SEARCH, *more)
            assert ended.code == 0, ended.error
            _SEARCHED[name] = first.path
        shutil.copytree(_SEARCHED[name] / "workspace", tmp_path / "workspace")
        Planted.trained.clear()
        return Place(tmp_path, call)

    return copied


@pytest.fixture
def place(searched: Callable[..., Place]) -> Place:
    return searched()


def of_table(entry: Mapping[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(entry["table"]).set_index("candidate")


def test_a_planted_bias_is_found(place: Place) -> None:
    ended = place.fidelity()
    assert ended.code == 0
    assert ended.answer["evaluations"] == {"trained": 10, "reused": 0, "failed": 0}
    entry = ended.answer["fidelity"]
    assert [entry] == place.answers()
    assert (entry["against"], entry["factor"], entry["seeds"]) == ("epochs", 4, 2)
    assert {one["recipe"]["epochs"] for one in Planted.trained} == {4 * EPOCHS}

    table = of_table(entry)
    assert list(table.index) == entry["candidates"]
    assert table["depth"].tolist() == [9, 9, 9, 13, 17]  # short training prefers the shallow ones,
    assert table["reference_rank"].tolist() == [3, 4, 5, 2, 1]  # and long training the deep ones
    for name, theirs in (("kendall", stats.kendalltau), ("spearman", stats.spearmanr)):
        true = theirs(table["proxy_accuracy_mean"], table["reference_accuracy_mean"])[0]
        assert entry[name]["value"] == pytest.approx(true)
        assert -1 <= entry[name]["low"] < true < entry[name]["high"] <= 1
    gain = stats.kendalltau(table["proxy_rank"] - table["reference_rank"], table["depth"])[0]
    assert entry["depth_gain"]["value"] == pytest.approx(gain)
    assert gain > 0.5

    assert entry["choice"] == entry["candidates"][0]
    assert table["chosen"].tolist() == [True, False, False, False, False]
    assert entry["choice_is_first"] is False
    assert entry["first"] == entry["candidates"][-1]
    best, mine = (table.loc[entry[name], "reference_accuracy_mean"] for name in ("first", "choice"))
    assert entry["lost"]["value"] == pytest.approx(best - mine)
    assert 0 <= entry["lost"]["low"] < best - mine < entry["lost"]["high"]

    assert "the study trains for 2 epochs, and its last epoch still took 50 % off the training loss" in entry["warning"]
    assert "has 9 blocks, and of the 4 other candidates 2 are deeper and 0 shallower" in entry["warning"]
    assert "Trained longer the deeper ones gain ranks here" in entry["warning"]
    assert f"WARNING: {entry['warning']}" in ended.error
    assert "5 candidates leave them wide" in entry["covers"]
    assert entry["covers"] in ended.error


def test_a_proxy_that_is_right_is_believed(searched: Callable[..., Place]) -> None:
    entry = searched(honest).fidelity().answer["fidelity"]
    assert entry["kendall"]["value"] == entry["spearman"]["value"] == pytest.approx(1)
    assert entry["kendall"]["low"] < 0.5, "five candidates cannot show more"
    assert entry["choice_is_first"] is True
    assert entry["first"] == entry["choice"]
    assert (entry["lost"]["value"], entry["lost"]["low"]) == (0, 0)
    assert entry["warning"] is None, "the choice is the deepest"


def study_of(
    place: Place, *, epochs: float, losses: Sequence[float], choice: str, tied: Sequence[str]
) -> CompletedStudy:
    """The planted study as if it had trained so long, with such losses, and come to such a choice."""
    question = config.FidelityRequest(
        **{"study": STUDY, "workspace": place.workspace, "against": "epochs", "factor": 4.0},
        **{"candidates": 5, "seeds": None, "function": None, "dry_run": False, "retry": False},
        **{"executor_name": "local", "executor": {}},
    )  # type: ignore[arg-type]
    found = read_search(question, place.study, Ledger(place.workspace))
    recipe = replace(found.experiment.recipe, epochs=epochs)
    proxies = {name: {0: made_up(0.5, curve=losses)} for name in found.proxies}
    experiment = replace(found.experiment, recipe=recipe)
    return found._replace(experiment=experiment, proxies=proxies, choice=choice, tied=tuple(tied))


FALLING, SETTLED, ONE_EPOCH = (2.0, 1.0, 0.9), (2.0, 1.0, 0.97), (2.0,)
SHALLOW = ("c01", ("c02", "c03"))  # of 9 blocks, as its ties; c04 has 13 and c05 17
MIDDLE = ("c04", ("c01", "c05"))


WARNED: list[tuple[float, Sequence[float], tuple[str, Sequence[str]], str | None]] = [
    (SHORT_EPOCHS, SETTLED, SHALLOW, "trains for 10 epochs; its choice c01 has 9 blocks, and of the 4 other"),
    (SHORT_EPOCHS + 1, SETTLED, SHALLOW, None),
    (SHORT_EPOCHS + 1, ONE_EPOCH, SHALLOW, None),
    (SHORT_EPOCHS + 1, FALLING, SHALLOW, "11 epochs, and its last epoch still took 10 % off the training loss; its"),
    (1, ONE_EPOCH, SHALLOW, "trains for 1 epoch; its choice c01"),
    (1, FALLING, ("c01", ("c02", "c04")), "of the 2 candidates that it is tied with 1 are deeper and 0 shallower"),
    (1, FALLING, MIDDLE, None),
    (1, FALLING, ("c05", ("c01",)), None),
]
GAINS: list[tuple[Estimate, str, str]] = [
    (
        Estimate(-0.5, -0.8, -0.2),
        "epochs",
        "Trained longer the deeper ones lose ranks here (tau -0.50 (-0.80 to -0",
    ),
    (Estimate(-0.5, -0.8, -0.2), "epochs", "-0.20)), which is more than chance"),
    (Estimate(0.5, -0.2, 0.8), "phi", "Scaled further, with the training as short as before, the deeper ones gain"),
    (Estimate(0.5, -0.2, 0.8), "proxy", "which cannot be told from chance"),
    (Estimate(0.0, -0.4, 0.4), "epochs", "the deeper ones neither gain nor lose ranks"),
    (Estimate(None, None, None, "so it is"), "epochs", "is not known: so it is"),
]


def test_the_warning_is_of_a_short_schedule_and_a_shallow_choice(place: Place) -> None:
    rising = [[0.1], [0.2], [0.3], [0.4]]
    for case in WARNED:
        epochs, losses, (choice, tied), words = case
        found = study_of(place, epochs=epochs, losses=losses, choice=choice, tied=tied)
        depths = {candidate.id: candidate.network.depth for candidate in found.candidates}
        assert depths == {"c01": 9, "c02": 9, "c03": 9, "c04": 13, "c05": 17}
        said = caution(found, judged(rising, rising[::-1], depth=[4, 3, 2, 1]), "epochs")
        if words is None:
            assert said is None, case
        else:
            assert words in str(said), case
            assert "(arXiv:2103.07579, section 6)" in str(said)
            assert "Trained longer the deeper ones gain ranks here (tau 1.00 (" in str(said)


def test_the_warning_says_whether_the_deeper_ones_gain(place: Place) -> None:
    found = study_of(place, epochs=1, losses=FALLING, choice="c01", tied=())
    rest = Estimate(0.1, 0.0, 0.2)
    for gain, against, words in GAINS:
        assert words in str(caution(found, Agreement(rest, rest, gain), against)), (gain, against)


def test_every_side_and_seed_has_a_row(place: Place) -> None:
    place.fidelity("factor=1.5", "candidates=3", "seeds=3")
    table = pd.read_csv(place.study / "fidelity-epochs-1.5.csv")
    assert table.groupby(["candidate", "side"]).size().unstack().to_numpy().tolist() == [[2, 3]] * 3
    trials = pd.read_csv(place.study / "trials.csv")
    proxies = table[table["side"] == "proxy"].merge(trials, on="key")
    assert len(proxies) == 6
    assert (proxies["val_accuracy_x"] == proxies["val_accuracy_y"]).all()
    assert set(table[table["side"] == "reference"]["epochs"]) == {3}
    assert set(table["macs"]) <= set(trials["macs"])
    for row in table.to_dict("records"):
        record = Ledger(place.workspace).get(row["key"])
        assert record is not None
        assert record["result"]["val_accuracy"] == row["val_accuracy"]
    assert place.answers()[0]["factor"] == 1.5


def networks_of(place: Place, *words: str) -> tuple[config.StudySettings, pd.DataFrame, dict[str, Network]]:
    """The study, its trials, and the networks that were trained as references, by candidate."""
    assert place.fidelity(*words).code == 0
    experiment = config.load_settings(place.study)
    table = pd.read_csv(place.study / f"fidelity-{words[0].partition('=')[2]}-2.csv")
    keys = {row["key"]: row["candidate"] for row in table[table["side"] == "reference"].to_dict("records")}
    trained = {}
    for specification in Planted.trained:
        network = from_table(specification["network"], name="planted")
        assert isinstance(network, Network)
        made = Evaluation(network, experiment.recipe, specification["data"], specification["seed"])
        trained[keys[made.key]] = network
    return experiment, table, trained


def test_against_phi_are_the_proxies_scaled_further(place: Place) -> None:
    experiment, table, trained = networks_of(place, "against=phi")
    network, rounding = experiment.proxy_network
    assert len(trained) == 5
    for row in table[table["side"] == "reference"].to_dict("records"):
        coefficients = config.Coefficients(row["alpha"], row["beta"], row["gamma"])
        assert trained[row["candidate"]] == scale(network, coefficients, 2, rounding=rounding)
        assert row["macs"] == cost(trained[row["candidate"]]).macs
    assert set(table["epochs"]) == {EPOCHS}


def test_against_a_larger_proxy_are_its_candidates(place: Place) -> None:
    experiment, table, trained = networks_of(place, "against=proxy", "factor=2")
    small, _ = experiment.proxy_network
    assert len(trained) == 5
    for row in table[table["side"] == "reference"].to_dict("records"):
        network = trained[row["candidate"]]
        assert network.total_stride == small.total_stride
        assert network.resolution == round(16 * row["gamma"])
        assert network.depth == {1.0: 9, 1.45: 13, 1.9: 17}[row["alpha"]]
        assert network.stages[-1].channels == pytest.approx(2 * small.stages[-1].channels * row["beta"], rel=0.06)  # type: ignore[operator]


def test_what_was_trained_is_not_trained_again(place: Place) -> None:
    first = place.fidelity("candidates=3")
    assert first.answer["evaluations"] == {"trained": 6, "reused": 0, "failed": 0}
    again = place.fidelity("candidates=3")
    assert again.answer["evaluations"] == {"trained": 0, "reused": 6, "failed": 0}
    assert again.answer["fidelity"] == first.answer["fidelity"]
    assert place.fidelity("candidates=3", "seeds=3").answer["evaluations"] == {"trained": 3, "reused": 6, "failed": 0}
    assert place.fidelity("candidates=9", "seeds=3").answer["evaluations"] == {"trained": 6, "reused": 9, "failed": 0}
    assert len(Planted.trained) == 15


def test_a_raced_candidate_is_judged_by_the_seeds_that_it_has(place: Place) -> None:
    """A race stops some candidates early; its trials.csv then lacks their later seeds."""
    table = pd.read_csv(place.study / "trials.csv")
    stopped = table["candidate"].isin(["c04", "c05"]) & (table["seed"] == 1)
    table[~stopped].to_csv(place.study / "trials.csv", index=False)
    entry = place.fidelity().answer["fidelity"]
    judged = of_table(entry)
    assert judged["proxy_seeds"].to_dict() == {"c01": 2, "c02": 2, "c03": 2, "c04": 1, "c05": 1}
    assert set(judged["reference_seeds"]) == {2}
    first = table[table["seed"] == 0].set_index("candidate")["val_accuracy"]
    assert judged.loc["c05", "proxy_accuracy_mean"] == first["c05"]
    assert "a single seed says nothing" in entry["covers"]


def test_an_answer_is_replaced_by_the_next_one_of_its_kind(place: Place) -> None:
    for words in (["candidates=3"], ["against=phi"], ["factor=3"], ["candidates=4"]):
        assert place.fidelity(*words).code == 0
    found = [(one["against"], one["factor"], len(one["candidates"])) for one in place.answers()]
    assert found == [("phi", 2, 5), ("epochs", 3, 5), ("epochs", 4, 4)]


def test_the_command_of_an_answer_gives_that_answer(place: Place) -> None:
    entry = place.fidelity("against=phi", "factor=1.5", "candidates=4").answer["fidelity"]
    program, *words = entry["command"].split()
    assert program == "scalesearch"
    again = place.gives(*words)
    assert again.answer["evaluations"]["trained"] == 0
    assert again.answer["fidelity"] == entry


def test_a_dry_run_says_the_cost_and_writes_nothing(place: Place) -> None:
    before = place.files()
    ended = place.fidelity("dry_run=true", "executor.workers=2")
    assert (ended.code, place.files(), Planted.trained) == (0, before, [])
    answer = ended.answer
    assert (answer["trainings"], answer["in_ledger"], answer["seeds"]) == (10, 0, 2)
    short, long = (NUM_TRAIN * epochs + NUM_VAL / 3 for epochs in (EPOCHS, 4 * EPOCHS))
    assert answer["cost_of_proxies"] == pytest.approx(long / short)
    trials = pd.read_csv(place.study / "trials.csv")
    candidates = trials[trials["candidate"] != "baseline"]
    share = candidates["macs"].sum() / trials["macs"].sum()
    assert answer["cost_of_study"] == pytest.approx(share * long / short)
    expected = 2.0 * len(trials) * answer["cost_of_study"] / 2 + 10  # two seconds a training, two workers
    assert answer["estimated_seconds"] == pytest.approx(expected, abs=0.1)
    for one in answer["candidates"]:
        assert one["reference"]["epochs"] == 4 * one["proxy"]["epochs"]
        assert one["reference"]["macs"] == one["proxy"]["macs"]
    assert "10 trainings (5 candidates, 2 seeds each), of which the ledger has 0" in ended.error
    assert "expected time, at the pace of the study" in ended.error

    place.fidelity()
    after = place.fidelity("dry_run=true")
    assert (after.answer["in_ledger"], after.answer["estimated_seconds"]) == (10, 0)
    assert "expected time" not in after.error


def some_fail(specification: Mapping[str, Any]) -> Result:
    """The deepest fails when it is trained long, and of the others a seed of those of 13 blocks."""
    if specification["recipe"]["epochs"] > EPOCHS and (
        blocks(specification) == 17 or (blocks(specification) == 13 and specification["seed"] == 0)
    ):
        raise ValueError("diverged: so it was planted")
    return known_bias(specification)


def test_failures_are_said_and_left_out_until_they_are_retried(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Planted, "plant", staticmethod(some_fail))
    ended = place.fidelity()
    assert ended.code == cli.SOME_FAILED
    assert ended.answer["evaluations"] == {"trained": 7, "reused": 0, "failed": 3}
    entry = ended.answer["fidelity"]
    assert len(entry["candidates"]) == 4
    assert of_table(entry)["reference_seeds"].tolist() == [2, 2, 2, 1]
    rows = pd.read_csv(place.study / "fidelity-epochs-4.csv")
    assert rows[rows["state"] == "failed"]["reason"].tolist() == ["diverged: so it was planted"] * 3
    assert ended.error.count("failed: diverged: so it was planted") == 3
    monkeypatch.setattr(Planted, "plant", staticmethod(known_bias))
    assert place.fidelity().answer["evaluations"] == {"trained": 0, "reused": 7, "failed": 3}
    retried = place.fidelity("retry=true")
    assert "3 failed trainings are run again" in retried.error
    assert (retried.code, retried.answer["evaluations"]) == (0, {"trained": 3, "reused": 7, "failed": 0})


def all_fail(specification: Mapping[str, Any]) -> Result:
    if specification["recipe"]["epochs"] > EPOCHS:
        raise ValueError("diverged: so it was planted")
    return known_bias(specification)


def test_where_all_fail_there_is_no_answer(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Planted, "plant", staticmethod(all_fail))
    ended = place.fidelity()
    assert (ended.code, ended.answer["fidelity"]) == (cli.ALL_FAILED, None)
    assert "retry=true" in ended.error
    assert not (place.study / "fidelity.json").exists()


def choice_fails(specification: Mapping[str, Any]) -> Result:
    if specification["recipe"]["epochs"] > EPOCHS and specification["network"]["resolution"] == 11:
        raise ValueError("diverged: so it was planted")
    return known_bias(specification)


def test_a_choice_without_a_reference_is_neither_first_nor_beaten(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Planted, "plant", staticmethod(choice_fails))
    ended = place.fidelity()
    assert ended.code == cli.SOME_FAILED
    entry = ended.answer["fidelity"]
    assert entry["choice"] not in entry["candidates"]
    assert (entry["choice_is_first"], entry["lost"]["value"], entry["lost"]["high"]) == (None, None, None)
    assert "what the choice loses: not known (no reference training" in ended.error
    assert entry["kendall"]["value"] is not None


def test_two_candidates_have_no_correlation_but_a_loss(place: Place) -> None:
    entry = place.fidelity("candidates=2").answer["fidelity"]
    assert entry["kendall"] == entry["spearman"] == entry["depth_gain"]
    assert entry["kendall"]["reason"] == "2 candidates; a rank correlation needs at least 3"
    assert entry["kendall"]["value"] is None
    assert entry["lost"]["value"] > 0


def test_with_one_seed_it_is_said_that_nothing_is_known_of_seeds(place: Place) -> None:
    entry = place.fidelity("seeds=1").answer["fidelity"]
    assert "a single seed says nothing of how much seeds vary" in entry["covers"]
    assert entry["lost"]["low"] is None
    assert entry["kendall"]["low"] is not None


def test_weights_that_the_study_starts_from_are_those_of_the_references(
    searched: Callable[..., Place], tmp_path_factory: pytest.TempPathFactory
) -> None:
    from scalesearch.model import build

    table = searched().study / "settings.yaml"
    network, _ = config.load_settings(table.parent).proxy_network
    file = tmp_path_factory.mktemp("init") / "init.safetensors"
    save_file(build(network).state_dict(), file)
    shutil.rmtree(table.parents[2])
    place = searched(known_bias, f"init={file}")
    assert place.fidelity("against=phi", "candidates=2").code == 0
    (kept,) = (place.workspace / "initial").iterdir()
    assert {one["init"] for one in Planted.trained} == {kept.stem}
    kept.unlink()
    refused = place.fidelity("against=phi")
    assert refused.code == cli.USAGE
    assert f"the weights that study 'digits' starts from are missing ({kept.relative_to(place.path)})" in refused.error


# --- what is refused ------------------------------------------------------------------------------------------------


NONSENSE = [
    ("reproduce", "a name is missing: scalesearch reproduce b_series or figure3"),
    ("reproduce figur8", "there is no experiments 'figur8'; did you mean 'figure8'?"),
    ("reproduce fidelity against=epoch", "against is 'epoch'; did you mean 'epochs'? (known: epochs, phi, proxy)"),
    ("reproduce fidelity against=[phi]", "against is ['phi']"),
    ("reproduce fidelity factor=1", "factor is 1; it must be a number from 1.01 to 1000"),
    ("reproduce fidelity factor=nan", "factor is nan"),
    ("reproduce fidelity candidates=1", "candidates is 1; it must be a whole number from 2 to 10000"),
    ("reproduce fidelity seeds=0", "seeds is 0"),
    ("reproduce fidelity dry_run=1", "dry_run is 1; it must be true or false"),
    ("reproduce fidelity study=digit", "there is no study 'digit' in workspace; did you mean 'digits'?"),
    ("reproduce fidelity fctor=2", "'fctor' is not a known key; did you mean 'factor'?"),
    ("reproduce fidelity recipe.epochs=9", "'recipe.epochs' is not a known key"),
    ("reproduce fidelity baseline=resnet18", "baseline is given, and the study has its own; leave it out"),
    ("reproduce fidelity baseline.factory=os:getcwd", "the baseline of study 'digits' is the table 'mobilenetv2'"),
    (
        "reproduce fidelity against=phi factor=40",
        "factor is 40, with which the reference of c01 (against=phi) cannot",
    ),
    ("reproduce fidelity against=phi factor=40", "it must be a whole number from 1 to 16384. Try a smaller one"),
    ("reproduce fidelity against=proxy factor=99", "proxy.width is 24.75"),
]


def test_nonsense_is_refused_before_anything_is_trained_or_written(place: Place) -> None:
    before = place.files()
    for words, said in NONSENSE:
        ended = place.gives(*words.split())
        assert (ended.code, ended.answer) == (cli.USAGE, {}), words
        assert said in ended.error, words
        assert ended.error.count("\n") == 1, words
        assert (place.files(), Planted.trained) == (before, []), words


def without_columns(path: Path) -> None:
    pd.read_csv(path).drop(columns="key").to_csv(path, index=False)


def without_choice(path: Path) -> None:
    table = pd.read_csv(path)
    chosen = json.loads((path.parent / "result.json").read_text())["chosen"]["id"]
    table[table["candidate"] != chosen].to_csv(path, index=False)


def with_one_candidate(path: Path) -> None:
    table = pd.read_csv(path)
    chosen = json.loads((path.parent / "result.json").read_text())["chosen"]["id"]
    table[table["candidate"].isin([chosen, "baseline"])].to_csv(path, index=False)


def with_another_triple(path: Path) -> None:
    path.write_text(path.read_text().replace("[[1.9, 1.0, 1.0]", "[[1.2, 1.0, 1.0]"))


DAMAGES: list[tuple[str, Callable[[Path], Any], str]] = [
    ("trials.csv", Path.unlink, "are damaged ([Errno 2]"),
    ("trials.csv", without_columns, "are damaged ('key'); the study's `scalesearch run` mends them"),
    ("trials.csv", without_choice, "has no finished training"),
    ("trials.csv", with_one_candidate, "has one candidate that was trained"),
    ("trials.csv", with_another_triple, "would be another training today"),
    ("result.json", lambda path: path.write_text("{"), "the files of study 'digits' are damaged"),
    ("coefficients.yaml", Path.unlink, "study 'digits' has not come to a choice yet; see: scalesearch status"),
    ("fidelity.json", lambda path: path.write_text("{}"), "fidelity.json is damaged; delete it"),
    ("fidelity.json", lambda path: path.write_text("[1]"), "fidelity.json is damaged; delete it"),
]


def test_a_study_that_was_damaged_is_named(place: Place) -> None:
    whole = place.files()
    for name, spoil, said in DAMAGES:
        spoil(place.study / name)
        before = place.files()
        ended = place.fidelity()
        assert (ended.code, ended.answer) == (cli.USAGE, {}), (name, said)
        assert said in ended.error, (name, said)
        assert (place.files(), Planted.trained) == (before, []), (name, said)
        (place.study / name).unlink(missing_ok=True)
        for path in whole.keys() & {str(place.study / name)}:
            Path(path).write_bytes(whole[path])


def test_a_ledger_that_lacks_a_proxy_says_how_to_get_it(place: Place) -> None:
    key = pd.read_csv(place.study / "trials.csv")["key"][0]
    (place.workspace / "evaluations" / key[:2] / f"{key}.json").unlink()
    ended = place.fidelity()
    assert ended.code == cli.USAGE
    assert (
        "baseline seed 0 of study 'digits' is not in the ledger of workspace; the study's `scalesearch run`"
        in ended.error
    )


def test_other_images_are_refused_before_anything_is_trained(place: Place, tmp_path: Path) -> None:
    """Records of another fingerprint, as if the images had changed since the search."""
    renamed = {}
    trials = pd.read_csv(place.study / "trials.csv", dtype=str)
    for key in trials["key"]:
        path = place.workspace / "evaluations" / key[:2] / f"{key}.json"
        record = json.loads(path.read_text())
        specification = record["specification"] | {"data": "0" * 64}
        network = from_table(specification["network"], name="moved")
        recipe = config.load_settings(place.study).recipe
        renamed[key] = Evaluation(network, recipe, "0" * 64, specification["seed"]).key
        Ledger(place.workspace).put(renamed[key], record | {"key": renamed[key], "specification": specification})
    trials.assign(key=trials["key"].map(renamed)).to_csv(place.study / "trials.csv", index=False)
    ended = place.fidelity()
    assert (ended.code, Planted.trained) == (cli.USAGE, [])
    assert "the images of data=digits are no longer those that study 'digits' was trained on" in ended.error


def test_a_study_that_another_driver_runs_is_left_alone(place: Place) -> None:
    with lock_study(place.study):
        assert place.fidelity().code == cli.LOCKED
        assert place.fidelity("dry_run=true").code == 0
    assert Planted.trained == []


def test_an_interrupted_command_goes_on(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(specification: Mapping[str, Any]) -> Result:
        if len(Planted.trained) > 3:
            raise KeyboardInterrupt
        return known_bias(specification)

    monkeypatch.setattr(Planted, "plant", staticmethod(interrupted))
    ended = place.fidelity()
    assert (ended.code, ended.answer) == (cli.INTERRUPTED, {})
    assert "the same command goes on" in ended.error
    assert not (place.study / "fidelity.json").exists()
    monkeypatch.setattr(Planted, "plant", staticmethod(known_bias))
    after = place.fidelity()
    assert (after.code, after.answer["evaluations"]["failed"]) == (0, 0)
    assert after.answer["evaluations"]["reused"] >= 2
    assert sum(after.answer["evaluations"].values()) == 10


# --- networks that a function makes ---------------------------------------------------------------------------------

FUNCTION = """
    from torch import nn

    def make(depth, width, resolution, num_classes, in_channels):
        channels = max(1, round(8 * width))
        layers = [nn.Conv2d(in_channels, channels, 3, padding=1)]
        layers += [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(max(1, round(4 * depth)))]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))

    def other(**given):
        return make(**given)
"""


def by_multiplier(specification: Mapping[str, Any]) -> Result:
    return made_up(0.3 + 0.1 * specification["network"].get("depth", 1) + 0.01 * specification["network"]["resolution"])


def test_networks_of_a_function_are_made_again_where_the_user_names_it(
    call: Callable[[Path, Sequence[str]], Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"net_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{module}.py").write_text(textwrap.dedent(FUNCTION))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(Planted, "plant", staticmethod(by_multiplier))
    named, place = f"baseline.factory={module}:make", Place(tmp_path, call)
    given = [word for word in SEARCH if not word.startswith(("baseline=", "proxy.", "budget.", "grid.product"))]
    own = (
        *("baseline.resolution=8", "proxy=none", "budget.tolerance=0.3", "grid.product_tolerance=0.3"),
        *("grid.beta={start:1,stop:1.4,step:0.2}", "grid.gamma={start:1,stop:1.4,step:0.2}"),
    )
    assert place.gives("run", *given, named, *own).code == 0
    Planted.trained.clear()

    ended = place.fidelity(named, "against=phi", "candidates=3")
    assert ended.code == 0, ended.error
    assert len(ended.answer["fidelity"]["candidates"]) == 3
    assert {one["network"]["factory"] for one in Planted.trained} == {f"{module}:make"}
    depths = {round(row["alpha"] ** 2, 9) for row in ended.answer["fidelity"]["table"]}
    assert {one["network"]["depth"] for one in Planted.trained} == depths
    assert named in ended.answer["fidelity"]["command"]
    assert f"is {module}:make: leave it out, or name that" in place.fidelity(f"baseline.factory={module}:other").error

    settings = place.study / "settings.yaml"
    settings.write_text(settings.read_text().replace("name: planted", "name: local"))
    asked = ["reproduce", "fidelity", "dry_run=true"]
    done = subprocess.run(
        [sys.executable, "-c", NEW_PROCESS, json.dumps([asked, [*asked, named]])],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    unnamed, again = done.stderr.split("ended with ")[1:]
    assert unnamed.startswith(f"{cli.USAGE}\n")
    assert f"Name it yourself: baseline.factory={module}:make" in done.stderr.partition("ended with ")[0]
    assert again.startswith("0\n"), done.stderr


NEW_PROCESS = """
import json, sys
from scalesearch import cli
for words in json.loads(sys.argv[1]):
    try:
        cli.main(words)
    except SystemExit as ended:
        print("ended with", ended.code or 0, file=sys.stderr)
"""


# --- the command line -----------------------------------------------------------------------------------------------


def test_help_lists_every_experiment_with_its_cost(call: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["reproduce", "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for name in (*EXPERIMENTS, "fidelity"):
        assert f"\n{name}  " in said, "its question, cost and time"


COMPLETED = [
    ("scalesearch reproduce fidelity agai", "against="),
    ("scalesearch reproduce fidelity against=phi cand", "candidates="),
    ("scalesearch reproduce fig", "figure8"),
    ("scalesearch reproduce figure8 recipe.ep", "recipe.epochs="),
    ("scalesearch init my_net dir", "directory="),
]


def test_the_shell_completes_behind_the_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)
    for line, offered in COMPLETED:
        monkeypatch.setenv("COMP_LINE", line)
        monkeypatch.setenv("COMP_POINT", str(len(line)))
        with pytest.raises(SystemExit) as ended:
            cli.main(["-sc", "query=bash"])
        assert ended.value.code == 0, line
        assert offered in capsys.readouterr().out.split(), line


# --- really trained -------------------------------------------------------------------------------------------------


def test_references_are_really_trained(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained_here(_: Planted, function: Any, specification: Any) -> Future[dict[str, Any]]:
        future: Future[dict[str, Any]] = Future()
        future.set_result(function(specification))
        return future

    monkeypatch.setattr(Planted, "submit", trained_here)
    words = ("candidates=3", "factor=1.5", "seeds=1")
    ended = place.fidelity(*words)
    assert (ended.code, ended.answer["evaluations"]) == (0, {"trained": 3, "reused": 0, "failed": 0}), ended.error
    rows = pd.read_csv(place.study / "fidelity-epochs-1.5.csv")
    agrees_by_hand(ended.answer["fidelity"], rows)
    for key in rows[rows["side"] == "reference"]["key"]:
        record = Ledger(place.workspace).get(key)
        assert record is not None
        assert len(record["result"]["curve"]) == 1.5 * EPOCHS
    monkeypatch.delattr(Planted, "submit")  # from the ledger
    again = place.fidelity(*words)
    assert again.answer["evaluations"] == {"trained": 0, "reused": 3, "failed": 0}
    assert again.answer["fidelity"] == ended.answer["fidelity"]


def agrees_by_hand(entry: Mapping[str, Any], rows: pd.DataFrame) -> pd.DataFrame:
    table = of_table(entry)
    by_hand = rows.groupby(["candidate", "side"])["val_accuracy"].mean().unstack().loc[table.index]
    assert table["reference_accuracy_mean"].tolist() == pytest.approx(by_hand["reference"].tolist())
    assert entry["kendall"]["value"] == pytest.approx(stats.kendalltau(by_hand["proxy"], by_hand["reference"])[0])
    return by_hand


@pytest.mark.slow
def test_a_real_one_is_interrupted_goes_on_and_trains_nothing_twice(
    call: Callable[[Path, Sequence[str]], Ended], tmp_path: Path
) -> None:
    smaller = ("recipe.seeds=1", "recipe.batch_size=32", "data.num_train=256")
    ended = call(tmp_path, ["run", *SEARCH, *smaller, "executor.workers=1", "--json"])
    assert ended.code == 0, ended.error
    words = ["reproduce", "fidelity", "candidates=3", "factor=3", "seeds=1", "executor.workers=1", "--json"]

    def recorded() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.glob("workspace/evaluations/??/*.json")}

    before = recorded()
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [SCALESEARCH, *words], cwd=tmp_path, env=one_thread, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        until = time.monotonic() + 300
        while len(recorded()) < len(before) + 1:
            assert time.monotonic() < until
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (cli.INTERRUPTED, "")
    assert "Traceback" not in err
    study = tmp_path / "workspace" / "studies" / STUDY
    assert not (study / "fidelity.json").exists()

    kept = recorded()
    gone_on = call(tmp_path, words)
    assert gone_on.code == 0, gone_on.error
    answer = gone_on.answer
    counts = answer["evaluations"]
    assert counts["reused"] == len(kept) - len(before) >= 1
    assert counts["trained"] == 3 - counts["reused"]
    everything = recorded()
    assert {path: everything[path] for path in kept} == kept

    again = call(tmp_path, words)  # from the ledger: no worker is started
    assert again.answer["evaluations"] == {"trained": 0, "reused": 3, "failed": 0}
    assert again.answer["fidelity"] == answer["fidelity"]
    assert recorded() == everything

    by_hand = agrees_by_hand(answer["fidelity"], pd.read_csv(study / "fidelity-epochs-3.csv"))
    assert by_hand["reference"].mean() > by_hand["proxy"].mean() + 0.05, "three times the epochs learn more"
