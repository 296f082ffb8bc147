"""What experiments/ and notebooks/ hold is still what the code would make."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from scalesearch.cli import main
from scalesearch.figures import draw_all

ROOT = Path(__file__).resolve().parent.parent
CONFIGURATIONS = sorted(  # of searches; tests/test_reproduce.py has the others
    path for path in (ROOT / "experiments").glob("*.yaml") if "\nexperiment:" not in path.read_text()
)
RECORDED = sorted(path.parent for path in (ROOT / "experiments").glob("*/candidates.csv"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_every_experiment_can_be_planned_and_has_the_candidates_that_are_recorded(
    path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, brief_latencies: None
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", f"experiments={path.stem}", f"workspace={tmp_path}", "--json"])
    assert ended.value.code == 0
    planned = {row["id"]: row for row in json.loads(capsys.readouterr().out)["candidates"]}
    assert planned
    if path.with_suffix("") in RECORDED:
        recorded = pd.read_csv(path.with_suffix("") / "candidates.csv").query("candidate != 'baseline'")
        assert set(recorded["candidate"]) == set(planned)
        for row in recorded.to_dict("records"):
            assert json.loads(row["triples"]) == planned[row["candidate"]]["triples"]
            assert row["macs"] == planned[row["candidate"]]["macs"]


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name)
def test_recorded_means_are_those_of_the_recorded_trainings(path: Path) -> None:
    trials = pd.read_csv(path / "trials.csv")
    means = trials.groupby("candidate")["val_accuracy"].mean()
    candidates = pd.read_csv(path / "candidates.csv").set_index("candidate")
    assert means.to_dict() == pytest.approx(candidates["val_accuracy_mean"].to_dict())
    assert candidates["val_accuracy_mean"].drop("baseline").idxmax() == candidates.index[candidates["chosen"]].item()


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name)
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
    assert CONFIGURATIONS
    assert RECORDED
    assert {path.name for path in RECORDED} <= {path.stem for path in CONFIGURATIONS}
    assert NOTEBOOKS
