"""What conf/experiment/ says, experiments/ has recorded and notebooks/ show is what the code would make."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import case

from scalesearch import cli, workspace
from scalesearch.config import from_yaml
from scalesearch.figures import draw_all
from scalesearch.paper import EXPERIMENTS, page
from scalesearch.paper.experiment import draw, read_summary
from scalesearch.scaling import Coefficients

ROOT = Path(__file__).resolve().parent.parent
CONFIGURED = {path: from_yaml(path) for path in sorted((ROOT / "conf" / "experiment").glob("*.yaml"))}
SEARCHES = [path for path, values in CONFIGURED.items() if "experiment" not in values]
PAPERS = [path for path in CONFIGURED if path not in SEARCHES]
SEARCHED = sorted(path.parent for path in (ROOT / "experiments").glob("*/candidates.csv"))
RECORDED = sorted(path.parent for path in (ROOT / "experiments").glob("*/summary.csv"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_every_experiment_has_a_module_and_a_yaml_of_its_name() -> None:
    assert set(EXPERIMENTS) <= {path.stem for path in PAPERS}
    assert {CONFIGURED[path]["experiment"]["name"] for path in PAPERS} == set(EXPERIMENTS)


def test_every_experiment_has_a_question_what_the_paper_says_and_a_head_for_the_help() -> None:
    listed = dict(workspace.experiments())
    assert set(listed) == {path.stem for path in PAPERS}
    for path in PAPERS:
        with case(path.stem):
            options = CONFIGURED[path]["experiment"]
            assert options["question"].endswith("?")
            assert options["paper"]
            assert options["caveats"]
            _, about, command, time = path.read_text().splitlines()[:4]
            assert command.startswith(f"# Command: scalesearch reproduce {path.stem}")
            assert listed[path.stem].startswith(about.removeprefix("# "))
            record = ROOT / "experiments" / path.stem / "finding.json"
            if record.exists():
                known = json.loads(record.read_text())
                number = f"{known['trainings']} trainings, " if known["trainings"] else "nothing is trained"
                assert time.startswith(f"# Time: {number}")
                assert f"{path.stem}/README.md" in time
            else:
                assert time.startswith("# Not run: ")


def test_the_help_s_list_imports_no_torch() -> None:
    code = "import sys; from scalesearch import workspace; workspace.experiments(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- searches -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.stem)
def test_every_experiment_can_be_planned_and_has_the_candidates_that_are_recorded(
    path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, brief_latencies: None
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["plan", f"experiment={path.stem}", f"workspace={tmp_path}", "--json"])
    assert ended.value.code == 0
    planned = {row["id"]: row for row in json.loads(capsys.readouterr().out)["candidates"]}
    assert planned
    if (record := ROOT / "experiments" / path.stem) in SEARCHED:
        recorded = pd.read_csv(record / "candidates.csv").query("candidate != 'baseline'")
        assert set(recorded["candidate"]) == set(planned)
        for row in recorded.to_dict("records"):
            assert json.loads(row["triples"]) == planned[row["candidate"]]["triples"]
            assert row["macs"] == planned[row["candidate"]]["macs"]


@pytest.mark.parametrize("path", SEARCHED, ids=lambda path: path.name)
def test_recorded_means_are_those_of_the_recorded_trainings(path: Path) -> None:
    trials = pd.read_csv(path / "trials.csv")
    means = trials.groupby("candidate")["val_accuracy"].mean()
    candidates = pd.read_csv(path / "candidates.csv").set_index("candidate")
    assert means.to_dict() == pytest.approx(candidates["val_accuracy_mean"].to_dict())
    assert candidates["val_accuracy_mean"].drop("baseline").idxmax() == candidates.index[candidates["chosen"]].item()


@pytest.mark.parametrize("path", SEARCHED, ids=lambda path: path.name)
def test_every_recorded_figure_can_be_drawn_from_its_table(path: Path, tmp_path: Path) -> None:
    tables = {name: pd.read_csv(path / f"{name}.csv") for name in ("candidates", "family")}
    drawn = {file.name for file in draw_all(tables, tmp_path, title=path.name)}
    assert drawn == {file.name for file in (path / "figures").iterdir()}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_runs(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    ended = subprocess.run([sys.executable, "-c", code], cwd=path.parent, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_something_is_recorded() -> None:
    assert SEARCHES
    assert SEARCHED
    assert {path.name for path in SEARCHED} <= {path.stem for path in SEARCHES}
    assert NOTEBOOKS


# --- what is recorded -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name)
def test_every_recorded_figure_is_drawn_again_from_its_table(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / path.name
    copy.mkdir()
    for file in path.iterdir():
        if file.suffix in (".csv", ".npz"):
            (copy / file.name).write_bytes(file.read_bytes())
    experiment = recorded_experiment(path)
    title = json.loads((path / "finding.json").read_text())["title"]
    drawn = draw(experiment, copy, title=title)
    assert {file.name for file in drawn} == {file.name for file in (path / "figures").iterdir()}
    for file in drawn:
        if file.suffix == ".svg":
            assert file.read_text() == (path / "figures" / file.name).read_text()


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name)
def test_every_recorded_finding_is_that_of_its_table(path: Path) -> None:
    message = json.loads((path / "finding.json").read_text())
    assert recorded_experiment(path).finding(read_summary(path)) == message["finding"]
    assert message["finding"] in (path / "README.md").read_text()
    if message["trainings"]:
        results = pd.read_csv(path / "results.csv")
        assert results["key"].nunique() == message["trainings"]
        assert results["seed"].nunique() == message["seeds"]
        means = results.groupby(["curve", "at"])["val_accuracy"].mean()
        said_means = read_summary(path).sort_values(["curve", "at"])["val_accuracy_mean"]
        assert means.tolist() == pytest.approx(said_means.tolist())


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name)
def test_every_recorded_page_is_that_of_its_table_and_configuration(path: Path) -> None:
    kept, experiment = json.loads((path / "finding.json").read_text()), recorded_experiment(path)
    assert (kept["question"], kept["paper"]) == (experiment.question, experiment.paper)
    assert kept["caveats"][: len(experiment.caveats)] == experiment.caveats
    assert page.readme(kept, experiment.table(read_summary(path))) == (path / "README.md").read_text()


def recorded_experiment(path: Path) -> Any:
    options = dict(CONFIGURED[ROOT / "conf" / "experiment" / f"{path.name}.yaml"]["experiment"])
    cls = EXPERIMENTS[options.pop("name")]
    if "coefficients" in options:
        options["coefficients"] = Coefficients(*options["coefficients"])
    return cls(**options)
