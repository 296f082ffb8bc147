"""The report on made-up trainings whose truth is known, and on a real study."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Ended
from made_study import Made, like, made, tied

from scalesearch import report
from scalesearch.config import from_yaml, to_yaml
from scalesearch.report import QUESTIONS
from scalesearch.study import Study

MODULES = Path(report.__file__).parent / "questions"


@pytest.fixture(scope="module")
def tie(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return tied(tmp_path_factory.mktemp("tie"))


def test_every_question_is_found_by_its_file_and_has_its_place_an_answer_and_words(tie: Made) -> None:
    names = report.ordered()
    assert sorted(names) == sorted(path.stem for path in MODULES.glob("*.py") if path.stem != "__init__")
    assert [QUESTIONS[name].ORDER for name in names] == list(range(1, len(names) + 1))
    answers = tie.answers()
    assert list(answers) == ["about", *names]
    text = tie.text()
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == [f"## {QUESTIONS[name].TITLE}" for name in names]
    for name in names:
        for paragraph in QUESTIONS[name].words({**answers["about"], **answers[name]}):
            assert f"\n\n{paragraph}\n" in text, name
    assert "nan" not in text
    assert "None:" not in text.split("## Which budget binds?")[0]


def test_reading_twice_says_the_same_and_trains_nothing(tie: Made) -> None:
    before = sorted(path for path in tie.workspace.rglob("*") if "evaluations" in path.parts)
    assert tie.text() == tie.text()
    assert before == sorted(path for path in tie.workspace.rglob("*") if "evaluations" in path.parts)


# Files that are not there, or do not go together.


def test_a_study_without_a_choice_is_refused(tie: Made, tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("")
    with pytest.raises(ValueError, match=r"has not come to a choice yet; see: scalesearch status"):
        report.read(Study(tie.workspace, tmp_path))


def test_a_choice_that_the_trainings_do_not_give_is_refused(tmp_path: Path) -> None:
    study = made(tmp_path, accuracy=like({(1.2, 1.1, 1.15): 0.9}, others=0.7), seeds=2)
    path = study.directory / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chosen": {"id": "c01"}}))
    with pytest.raises(ValueError, match=r"has chosen c01, and its trainings give c05.*`scalesearch run`"):
        study.facts()


def test_a_study_from_before_there_was_a_rule_is_read(tmp_path: Path) -> None:
    study = made(tmp_path, seeds=2)
    result = json.loads((study.directory / "result.json").read_text())
    del result["selection"], result["decision"]
    (study.directory / "result.json").write_text(json.dumps(result))
    settings = from_yaml(study.directory / "settings.yaml")
    del settings["selection"]
    (study.directory / "settings.yaml").write_text(to_yaml(settings))
    (study.directory / "stopped.json").unlink()
    assert study.answers()["about"]["rule"] == "best"


# A real study, by the commands.

TINY = (
    *("baseline=mobilenetv2", "proxy.width=0.25", "proxy.depth=0.5", "proxy.resolution=8", "proxy.total_stride=4"),
    *(
        "data=digits",
        "data.num_train=640",
        "recipe=quick",
        "recipe.seeds=2",
        "recipe.batch_size=16",
        "recipe.autocast=off",
    ),
    *("recipe.epochs=3", "recipe.learning_rate=0.2", "recipe.flip=false", "grid.alpha={start:1,stop:1.9,step:0.9}"),
    *("grid.beta={start:1,stop:1.4,step:0.4}", "grid.gamma={start:1,stop:1.4,step:0.4}", "grid.product_tolerance=0.15"),
    *("budget.tolerance=0.12", "phis=[1]", "search=grid", "tracking=none", "study=tiny"),
)


@pytest.mark.usefixtures("in_this_process")
def test_a_real_study_is_reported_answered_anew_and_reported_again(
    tmp_path: Path, command: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, before, message = command("run", *TINY, "--json")
    assert code == 0, message
    assert before["selection"] == {"rule": "posterior", "metric": "macs"}
    assert before["decision"]["chosen"] == before["chosen"]["id"]
    assert next(iter(before)) == "decision"
    directory = tmp_path / "workspace" / "studies" / "tiny"
    written = (directory / "report.md").read_text()
    (directory / "report.md").unlink()

    code, answers, message = command("report", "study=tiny", "--json")
    assert code == 0, message
    assert (directory / "report.md").read_text() == written  # a command away, and the same
    assert answers["neighbours"]["chosen"] == before["chosen"]["id"]
    assert answers["neighbours"]["num_candidates"] == 3
    assert command("report").output.startswith(written)  # no terminal: Markdown as it is

    # what was not measured is measured by the command that the report gives
    missing = next(row for row in answers["flatness"]["references"] if row["command"])
    trained = command(*shlex.split(missing["command"])[1:], "executor.workers=1")
    assert trained.code == 0, trained.output
    again = command("report", "--json").answer
    now = next(row for row in again["flatness"]["references"] if row["name"] == missing["name"])
    assert now["difference"] is not None
    assert now["seeds"] == 2

    # another rule needs no new training, and names both; which ones are tied differs by processor
    tied = {before["best"]["id"], before["chosen"]["id"], *(row["id"] for row in before["chosen"]["tied_with"])}
    with (directory / "candidates.csv").open(newline="") as file:
        rows = {row["candidate"]: row for row in csv.DictReader(file)}
    cheapest = {m: min(tied, key=lambda name: int(rows[name][m])) for m in ("macs", "params")}
    metric = next((metric for metric, name in cheapest.items() if name != before["best"]["id"]), "macs")
    cheap = command("run", *TINY, "selection=cheapest_tied", f"selection.metric={metric}", "--json")
    assert cheap.code == 0, cheap.output
    after = cheap.answer
    assert after["evaluations"] == {"trained": 0, "reused": 8, "failed": 0}
    assert after["selection"] == {"rule": "cheapest_tied", "metric": metric}
    assert after["best"] == before["best"]
    assert after["chosen"]["id"] == cheapest[metric]
    assert {after["chosen"]["id"], *(row["id"] for row in after["chosen"]["tied_with"])} == tied
    needs = f"{after['chosen']['id']} needs the least of {metric} (selection=cheapest_tied)"
    if after["chosen"]["id"] != after["best"]["id"]:
        assert re.search(rf"best mean: {after['best']['id']} \(.*{re.escape(needs)}", cheap.output)
        assert re.search("(cannot be told from|tied with) the best mean at 95 %: ", cheap.output)
    written = (directory / "report.md").read_text()
    assert f"of the best and its ties the least {metric}" in written
    assert "More than the choice and the 1x network" in written  # two choices have seen the test split by now


def test_a_study_that_is_not_there_is_one_message(
    command: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, message = command("report study=nothing")
    assert code == 2
    assert "there is no study in workspace; first: scalesearch run" in message
