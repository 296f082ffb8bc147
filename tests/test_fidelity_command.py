"""`scalesearch reproduce fidelity`: what it refuses, damaged studies, interruptions, functions, help and completion."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pandas as pd
import planted
import pytest
from planted import EPOCHS, SCALESEARCH, SEARCH, STUDY, Call, Place, Planted, known_bias, made_up, of_table
from scipy import stats

from scalesearch import cli, workspace
from scalesearch.evaluation import Evaluation
from scalesearch.ledger import Ledger, lock_study
from scalesearch.network import from_table
from scalesearch.paper import EXPERIMENTS
from scalesearch.study import Study
from scalesearch.training import Result

# MLflow's own: it leaves sqlite connections to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.xdist_group("studies"),  # they share what was searched
    pytest.mark.usefixtures("unsynced_sqlite"),
]
call, searched, place = planted.call, planted.searched, planted.place


# --- what is refused ------------------------------------------------------------------------------------------------


NONSENSE = [
    ("reproduce", "a name is missing: scalesearch reproduce b_series or figure3"),
    ("reproduce figur8", "there is no experiment 'figur8'; did you mean 'figure8'?"),
    ("reproduce fidelity against=epoch", "against is 'epoch'; did you mean 'epochs'?"),
    ("reproduce fidelity against=[phi]", "against is ['phi']"),
    ("reproduce fidelity factor=1", "factor is 1; it must be null or a number from 1.01 to 1000"),
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
    for words, message in NONSENSE:
        ended = place.gives(*words.split())
        assert (ended.code, ended.answer) == (workspace.USAGE, {}), words
        assert message in ended.output, words
        assert ended.output.count("\n") == 1, words
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
    ("trials.csv", without_columns, "are damaged ('key'); give its `scalesearch run` command again"),
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
    for name, spoil, message in DAMAGES:
        spoil(place.study / name)
        before = place.files()
        ended = place.fidelity()
        assert (ended.code, ended.answer) == (workspace.USAGE, {}), (name, message)
        assert message in ended.output, (name, message)
        assert (place.files(), Planted.trained) == (before, []), (name, message)
        (place.study / name).unlink(missing_ok=True)
        for path in whole.keys() & {str(place.study / name)}:
            Path(path).write_bytes(whole[path])


def test_a_ledger_that_lacks_a_proxy_says_how_to_get_it(place: Place) -> None:
    key = pd.read_csv(place.study / "trials.csv")["key"][0]
    (place.workspace / "evaluations" / key[:2] / f"{key}.json").unlink()
    ended = place.fidelity()
    assert ended.code == workspace.USAGE
    assert (
        "baseline seed 0 of study 'digits' is not in the ledger of workspace; the study's `scalesearch run`"
        in ended.output
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
        recipe = Study(place.workspace, place.study).settings.recipe
        renamed[key] = Evaluation(network, recipe, "0" * 64, specification["seed"]).key
        Ledger(place.workspace).put(renamed[key], record | {"key": renamed[key], "specification": specification})
    trials.assign(key=trials["key"].map(renamed)).to_csv(place.study / "trials.csv", index=False)
    ended = place.fidelity()
    assert (ended.code, Planted.trained) == (workspace.USAGE, [])
    assert "the images of data=digits are no longer those that study 'digits' was trained on" in ended.output


def test_a_study_that_another_driver_runs_is_left_alone(place: Place) -> None:
    with lock_study(place.study):
        assert place.fidelity().code == workspace.LOCKED
        assert place.fidelity("dry_run=true").code == 0
    assert Planted.trained == []


def test_an_interrupted_command_goes_on(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(specification: Mapping[str, Any]) -> Result:
        if len(Planted.trained) > 3:
            raise KeyboardInterrupt
        return known_bias(specification)

    monkeypatch.setattr(Planted, "plant", staticmethod(interrupted))
    ended = place.fidelity()
    assert (ended.code, ended.answer) == (workspace.INTERRUPTED, {})
    assert "the same command goes on" in ended.output
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
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    assert ended.code == 0, ended.output
    assert len(ended.answer["fidelity"]["candidates"]) == 3
    assert {one["network"]["factory"] for one in Planted.trained} == {f"{module}:make"}
    depths = {round(row["alpha"] ** 2, 9) for row in ended.answer["fidelity"]["table"]}
    assert {one["network"]["depth"] for one in Planted.trained} == depths
    assert named in ended.answer["fidelity"]["command"]
    assert f"is {module}:make: leave it out, or name that" in place.fidelity(f"baseline.factory={module}:other").output

    settings = place.study / "settings.yaml"
    settings.write_text(settings.read_text().replace("name: planted", "name: local"))
    requested = ["reproduce", "fidelity", "dry_run=true"]
    done = subprocess.run(
        [sys.executable, "-c", NEW_PROCESS, json.dumps([requested, [*requested, named]])],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    unnamed, again = done.stderr.split("ended with ")[1:]
    assert unnamed.startswith(f"{workspace.USAGE}\n")
    assert f"Name it yourself: baseline.factory={module}:make" in done.stderr.partition("ended with ")[0]
    assert again.startswith("0\n"), done.stderr


NEW_PROCESS = """
import json, sys
from scalesearch import cli, workspace
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
    message = capsys.readouterr().out
    for name in (*EXPERIMENTS, "fidelity"):
        assert f"\n{name}  " in message, "its question, cost and time"


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
    assert (ended.code, ended.answer["evaluations"]) == (0, {"trained": 3, "reused": 0, "failed": 0}), ended.output
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
def test_a_real_one_is_interrupted_goes_on_and_trains_nothing_twice(call: Call, tmp_path: Path) -> None:
    smaller = ("recipe.seeds=1", "recipe.batch_size=32", "data.num_train=256")
    ended = call(tmp_path, ["run", *SEARCH, *smaller, "executor.workers=1", "--json"])
    assert ended.code == 0, ended.output
    words = [
        "reproduce",
        "fidelity",
        "candidates=3",
        "factor=3",
        "seeds=1",
        "executor.workers=1",
        "tracking=none",
        "--json",
    ]

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
    assert (process.returncode, out) == (workspace.INTERRUPTED, "")
    assert "Traceback" not in err
    study = tmp_path / "workspace" / "studies" / STUDY
    assert not (study / "fidelity.json").exists()

    kept = recorded()
    gone_on = call(tmp_path, words)
    assert gone_on.code == 0, gone_on.output
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
