"""To add something, one file is added (an experiment that measures something new: two). A copy gets one of each."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

# What is added: to which files, with what in them.
ADDED: dict[str, dict[str, str]] = {
    "a baseline": {
        "conf/baseline/mine.yaml": """# A network. scalesearch cost baseline=mine
            |name: mine
            |resolution: 16
            |activation: relu
            |in_channels: 1
            |num_classes: 10
            |stem: {block: conv_norm, channels: 8}
            |stages:
            |  - {block: conv_norm, channels: 12, repeats: 2}
            |"""
    },
    "a data set": {
        "scalesearch/data/datasets/mine.py": '''"""Grey noise."""
            |from __future__ import annotations
            |import torch
            |from scalesearch.data.spec import DataSpec, Log, Source, Split
            |DEFAULTS = {"num_val": 20}
            |def source(spec: DataSpec, log: Log) -> Source:
            |    def open_split(split: str) -> Split:
            |        labels = torch.arange(100) % 5
            |        return Split(labels, lambda index: torch.zeros(len(index), 1, 8, 8, dtype=torch.uint8))
            |    return Source(1, 5, 8, 100, 100, open_split)
            |'''
    },
    "a strategy": {
        "scalesearch/search/strategies/mine.py": '''"""The cheapest candidate alone."""
            |from __future__ import annotations
            |from typing import Annotated, ClassVar
            |from scalesearch.checks import between, checked
            |from scalesearch.search.strategies._base import Request
            |@checked("search", kw_only=True)
            |class Strategy:
            |    """One candidate."""
            |    first: Annotated[int, between(0, 9)] = 0
            |    lookahead: ClassVar[None] = None
            |    def steps(self, problem, seen):
            |        yield Request(self.first, 0)
            |    def expected(self, problem):
            |        return [(1, 1.0)]
            |    def possible(self, problem):
            |        return [(1, 1.0)]
            |'''
    },
    "a figure": {
        "scalesearch/figures/study/mine.py": '''"""A figure."""
            |TABLE = "family"
            |def data(family):
            |    return len(family)
            |def draw(numbers, *, title):
            |    raise NotImplementedError
            |'''
    },
    "an experiment": {
        "conf/experiment/mine.yaml": """# @package _global_
            |# A table of counted costs.
            |# Command: scalesearch reproduce mine
            |# Time: seconds.
            |defaults:
            |  - override /baseline: mobilenetv2
            |experiment: {name: mine, question: "How large is it?", paper: "", caveats: []}
            |""",
        "scalesearch/paper/experiments/mine.py": '''"""Counted cost."""
            |from __future__ import annotations
            |from scalesearch.checks import checked
            |from scalesearch.paper.experiment import PaperExperiment
            |@checked("experiment", kw_only=True)
            |class Experiment(PaperExperiment):
            |    """No options."""
            |    def computed(self, baselines, rounding):
            |        import pandas as pd
            |        return pd.DataFrame([{"network": name} for name in baselines])
            |    def finding(self, summary):
            |        return "it is counted."
            |    def draw(self, summary, directory, *, title):
            |        return {}
            |    def table(self, summary):
            |        return [{"network": str(name)} for name in summary["network"]]
            |''',
    },
    "a command": {
        "scalesearch/commands/mine.py": '''"""repeat a word"""
            |from __future__ import annotations
            |from typing import Annotated
            |from scalesearch.checks import between, checked
            |GROUPS = {}
            |EXAMPLE = "scalesearch mine number=3"
            |@checked()
            |class Arguments:
            |    number: Annotated[int, between(1, 9, "how often")] = 1
            |def run(arguments, groups, out):
            |    out.answer({"words": ["mine"] * arguments.number})
            |    return 0
            |'''
    },
    "a report question": {
        "scalesearch/report/questions/mine.py": '''"""Whether it is mine."""
            |ORDER = 99
            |TITLE = "Is it mine?"
            |def answer(facts):
            |    return {"mine": True}
            |def words(values):
            |    return ["Yes."]
            |'''
    },
    "a block": {
        "scalesearch/model/blocks/mine.py": '''"""A block like another one."""
            |from __future__ import annotations
            |from scalesearch.model.blocks.convolutions import ConvolutionNorm
            |class Mine(ConvolutionNorm):
            |    """A convolution with a norm, by another name."""
            |    name = "mine"
            |'''
    },
}

# What a process with the copy on its path then does: each line of output is one of what was added.
USED = r"""
import contextlib, io, json, sys
from scalesearch import cli, compose, config, figures, report, workspace
from scalesearch.cli import main
from scalesearch.study import StudySettings
from scalesearch.model import BLOCKS
assert config.__file__.startswith(sys.argv[1])
def answer(*words):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main([*words, "--json"])
    return json.loads(out.getvalue())
print("a baseline", answer("cost", "baseline=mine")["blocks"] == 2)
given = ("baseline=mine", "proxy=none", "rounding=fine", "data=mine", "search=mine", "search.first=3", "tracking=none")
values = config.plain(compose.composed("run", *given))
settings = StudySettings.of(config.Groups(values))
print("a data set", (settings.description.num_train, settings.description.num_val) == (80, 20))
print("a strategy", settings.search.name == "mine" and settings.search.strategy.first == 3)
print("a figure", "mine" in figures.FIGURES)
print("an experiment", "mine" in workspace.experiments() and answer("reproduce", "mine")["finding"] == "it is counted.")
print("a command", cli.commands()["mine"] == "repeat a word" and answer("mine", "number=2") == {"words": ["mine"] * 2})
print("a report question", report.ordered()[-1] == "mine")
print("a block", "mine" in BLOCKS)
"""


def test_one_file_adds_one_of_each(tmp_path: Path) -> None:
    for folder in ("scalesearch", "conf"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for files in ADDED.values():
        for name, text in files.items():
            assert not (tmp_path / name).exists()
            (tmp_path / name).write_text(re.sub(r"(?m)^ *\|", "", text))
    done = subprocess.run(
        [sys.executable, "-c", USED, str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.splitlines() == [f"{name} True" for name in ADDED], done.stderr[-2000:]


def test_the_page_for_contributors_lists_them_and_says_how_many_files() -> None:
    table = re.findall(r"(?m)^\| (an? [a-z ]+) \| (.*) \|$", (ROOT / "CONTRIBUTING.md").read_text())
    rows = dict(table)
    for name, files in ADDED.items():
        assert re.findall(r"\bone (?:YAML|class|module)", rows[name])[: len(files)] or name == "a block"
        assert len(re.findall(r"\bone (?:YAML|class|module)", rows[name])) == len(files), name
