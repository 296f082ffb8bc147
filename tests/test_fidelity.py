"""What `reproduce fidelity` says of planted studies, and of one that is really trained."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import planted
import pytest
from planted import (
    EPOCHS,
    NUM_TRAIN,
    NUM_VAL,
    Place,
    Planted,
    blocks,
    honest,
    known_bias,
    made_up,
    of_table,
)
from safetensors.torch import save_file
from scipy import stats
from test_agreement import judged

from scalesearch import workspace
from scalesearch.cost import cost
from scalesearch.evaluation import Evaluation
from scalesearch.fidelity.agreement import (
    Agreement,
    Estimate,
)
from scalesearch.fidelity.completed import CompletedStudy, FidelityRequest, completed_study
from scalesearch.fidelity.judgement import SHORT_EPOCHS, caution, what_is_lost
from scalesearch.fidelity.references import spread
from scalesearch.ledger import Ledger
from scalesearch.network import Network, from_table
from scalesearch.scaling import Coefficients, scale
from scalesearch.study import Study, StudySettings
from scalesearch.training import Result

# MLflow's own: it leaves sqlite connections to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.xdist_group("studies"),  # they share what was searched
    pytest.mark.usefixtures("unsynced_sqlite"),
]
call, searched, place = planted.call, planted.searched, planted.place


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
    assert f"WARNING: {entry['warning']}" in ended.output
    assert "5 candidates leave them wide" in entry["covers"]
    assert entry["covers"] in ended.output


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
    request = FidelityRequest(
        study=Study(place.workspace, place.study),
        against="epochs",
        factor=4,
        candidates=5,
        seeds=None,
        function=None,
        dry_run=True,
    )
    found = completed_study(request)
    recipe = replace(found.settings.recipe, epochs=epochs)
    proxies = {name: {0: made_up(0.5, curve=losses)} for name in found.proxies}
    settings = replace(found.settings, recipe=recipe)
    return found._replace(settings=settings, proxies=proxies, choice=choice, tied=tuple(tied))


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
    (Estimate(0.5, -0.2, 0.8), "proxy", "which may be chance"),
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
        message = caution(found, judged(rising, rising[::-1], depth=[4, 3, 2, 1]), "epochs")
        if words is None:
            assert message is None, case
        else:
            assert words in str(message), case
            assert "(arXiv:2103.07579, section 6)" in str(message)
            assert "Trained longer the deeper ones gain ranks here (tau 1.00 (" in str(message)


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


def networks_of(place: Place, *words: str) -> tuple[StudySettings, pd.DataFrame, dict[str, Network]]:
    """The study, its trials, and the networks that were trained as references, by candidate."""
    assert place.fidelity(*words).code == 0
    experiment = Study(place.workspace, place.study).settings
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
        coefficients = Coefficients(row["alpha"], row["beta"], row["gamma"])
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
    assert "a single seed tells nothing" in entry["covers"]


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
    expected = 10 * (1e-4 * NUM_TRAIN * 4 * EPOCHS + 1e-5 * NUM_VAL) / 2  # at the planted pace, by two workers
    assert answer["estimated_seconds"] == pytest.approx(expected, abs=0.1)
    for one in answer["candidates"]:
        assert one["reference"]["epochs"] == 4 * one["proxy"]["epochs"]
        assert one["reference"]["macs"] == one["proxy"]["macs"]
    assert "10 trainings (5 candidates, 2 seeds each), of which the ledger has 0" in ended.output
    assert "expected time on this machine" in ended.output

    place.fidelity()
    after = place.fidelity("dry_run=true")
    assert (after.answer["in_ledger"], after.answer["estimated_seconds"]) == (10, 0)
    assert "expected time" not in after.output


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
    assert ended.code == workspace.SOME_FAILED
    assert ended.answer["evaluations"] == {"trained": 7, "reused": 0, "failed": 3}
    entry = ended.answer["fidelity"]
    assert len(entry["candidates"]) == 4
    assert of_table(entry)["reference_seeds"].tolist() == [2, 2, 2, 1]
    rows = pd.read_csv(place.study / "fidelity-epochs-4.csv")
    assert rows[rows["state"] == "failed"]["reason"].tolist() == ["diverged: so it was planted"] * 3
    assert ended.output.count("failed: diverged: so it was planted") == 3
    monkeypatch.setattr(Planted, "plant", staticmethod(known_bias))
    assert place.fidelity().answer["evaluations"] == {"trained": 0, "reused": 7, "failed": 3}
    retried = place.fidelity("retry=true")
    assert "3 failed trainings are run again" in retried.output
    assert (retried.code, retried.answer["evaluations"]) == (0, {"trained": 3, "reused": 7, "failed": 0})


def all_fail(specification: Mapping[str, Any]) -> Result:
    if specification["recipe"]["epochs"] > EPOCHS:
        raise ValueError("diverged: so it was planted")
    return known_bias(specification)


def test_where_all_fail_there_is_no_answer(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Planted, "plant", staticmethod(all_fail))
    ended = place.fidelity()
    assert (ended.code, ended.answer["fidelity"]) == (workspace.ALL_FAILED, None)
    assert "retry=true" in ended.output
    assert not (place.study / "fidelity.json").exists()


def references_guess(specification: Mapping[str, Any]) -> Result:
    if specification["recipe"]["epochs"] > EPOCHS:
        return made_up(0.1, start=specification["seed"])  # ten classes
    return known_bias(specification)


def test_references_that_have_learnt_nothing_are_compared_with_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Planted, "plant", staticmethod(references_guess))
    ended = place.fidelity()
    assert (ended.code, ended.answer["fidelity"]) == (workspace.NOTHING_LEARNT, None)
    assert "of the references nothing was learnt: the best of 5 networks" in ended.output
    assert "recipe.epochs" in ended.answer["nothing_learnt"]
    assert not (place.study / "fidelity.json").exists()
    assert len(pd.read_csv(place.study / "fidelity-epochs-4.csv")) == 20
    monkeypatch.setattr(Planted, "plant", staticmethod(known_bias))
    assert "the most frequent class alone" in place.fidelity("factor=3").output


def choice_fails(specification: Mapping[str, Any]) -> Result:
    if specification["recipe"]["epochs"] > EPOCHS and specification["network"]["resolution"] == 11:
        raise ValueError("diverged: so it was planted")
    return known_bias(specification)


def test_a_choice_without_a_reference_is_neither_first_nor_beaten(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Planted, "plant", staticmethod(choice_fails))
    ended = place.fidelity()
    assert ended.code == workspace.SOME_FAILED
    entry = ended.answer["fidelity"]
    assert entry["choice"] not in entry["candidates"]
    assert (entry["choice_is_first"], entry["lost"]["value"], entry["lost"]["high"]) == (None, None, None)
    assert "what the choice loses: not known (no reference training" in ended.output
    assert entry["kendall"]["value"] is not None


def test_two_candidates_have_no_correlation_but_a_loss(place: Place) -> None:
    entry = place.fidelity("candidates=2").answer["fidelity"]
    assert entry["kendall"] == entry["spearman"] == entry["depth_gain"]
    assert entry["kendall"]["reason"] == "2 candidates; a rank correlation needs at least 3"
    assert entry["kendall"]["value"] is None
    assert entry["lost"]["value"] > 0


def test_with_one_seed_it_is_said_that_nothing_is_known_of_seeds(place: Place) -> None:
    entry = place.fidelity("seeds=1").answer["fidelity"]
    assert "a single seed tells nothing of how much seeds vary" in entry["covers"]
    assert entry["lost"]["low"] is None
    assert entry["kendall"]["low"] is not None


def test_weights_that_the_study_starts_from_are_those_of_the_references(
    searched: Callable[..., Place], tmp_path_factory: pytest.TempPathFactory
) -> None:
    from scalesearch.model import build

    table = searched().study / "settings.yaml"
    network, _ = Study(table.parent.parent.parent, table.parent).settings.proxy_network
    file = tmp_path_factory.mktemp("init") / "init.safetensors"
    save_file(build(network).state_dict(), file)
    shutil.rmtree(table.parents[2])
    place = searched(known_bias, f"init={file}")
    assert place.fidelity("against=phi", "candidates=2").code == 0
    (kept,) = (place.workspace / "initial").iterdir()
    assert {one["init"] for one in Planted.trained} == {kept.stem}
    kept.unlink()
    refused = place.fidelity("against=phi")
    assert refused.code == workspace.USAGE
    assert f"the weights that study 'digits' starts from are missing ({kept.relative_to(place.path)})" in refused.output
