"""What an experiment of the paper is: the points that it trains, and functions from their results to its figures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import MinLen

from scalesearch import text
from scalesearch.checks import Must, between, checked
from scalesearch.ledger import write_atomic
from scalesearch.network import AnyNetwork
from scalesearch.paper.points import CorrectByKey, Point, Setting, Trainings
from scalesearch.paper.tables import ACCURACY, cells
from scalesearch.scaling import Rounding
from scalesearch.screen import Screen
from scalesearch.training import named, unnamed

if TYPE_CHECKING:
    import pandas as pd

Cost = Annotated[float, between(1.05, 100, "times the baseline's counted multiply-adds")]
Costs = Annotated[list[Cost], MinLen(1), Must("a list of numbers from 1.05 to 100, one at least")]
Multipliers = Annotated[
    list[Annotated[float, between(0.1, 100)]], MinLen(1), Must("a list of numbers from 0.1 to 100, one at least")
]
Figures = dict[str, Any]  # matplotlib's, by the name of the file


@checked("experiment", kw_only=True)
class PaperExperiment:
    """The options that all experiments have; a subclass adds its own as fields.

    question: in a line. paper: what the paper says of it, or whoever has published on it.
    caveats: what the answer depends on, printed with it; `page.caveats` adds what follows from the recipe.
    tunes: whether it reads `target`.
    """

    question: str = ""
    paper: str = ""
    caveats: list[str] = field(default_factory=list)
    tunes: ClassVar[bool] = False

    def points(self, setting: Setting) -> list[Point]:
        """Everything that is trained. Raises: ValueError where the setting does not fit."""
        raise NotImplementedError

    def computed(self, baselines: Mapping[str, AnyNetwork], rounding: Rounding) -> pd.DataFrame | None:
        """The summary of an experiment that trains nothing; None for all others."""
        return None

    def measured(self, trainings: Trainings, results: pd.DataFrame, directory: Path, out: Screen) -> pd.DataFrame:
        """`results` with columns of what is measured of the trained networks; it may write files beside them."""
        return results

    def summary(self, results: pd.DataFrame, correct: CorrectByKey) -> pd.DataFrame:
        """The rows of the table that summary.csv keeps and figures are drawn from."""
        raise NotImplementedError

    def finding(self, summary: pd.DataFrame) -> str:
        """What came out, in a sentence, whichever way it fell."""
        raise NotImplementedError

    def draw(self, summary: pd.DataFrame, directory: Path, *, title: str) -> Figures:
        """Figures by name, from summary.csv and the files that `measured` left in `directory`."""
        raise NotImplementedError

    def table(self, summary: pd.DataFrame) -> list[dict[str, str]]:
        """The rows that a person is shown, heading to cell."""
        names = ("scaled", "multipliers", "px", "blocks", "multiply-adds", "ratio", "seeds", ACCURACY)
        tested = ["test accuracy (%)"] if "test_accuracy_mean" in summary else []
        return [cells(row, *names, *tested) for row in summary.to_dict("records")]


def draw(experiment: PaperExperiment, directory: Path, *, title: str, metric: str | None = None) -> list[Path]:
    """The figures of an experiment from the tables in its directory, as PNG and SVG in its folder figures/.

    metric: what its networks were judged by; None is accuracy.
    """
    from scalesearch.figures import save

    files = []
    for name, figure in experiment.draw(read_summary(directory, metric), directory, title=title).items():
        for axes in figure.axes:
            axes.set(xlabel=worded(axes.get_xlabel(), metric), ylabel=worded(axes.get_ylabel(), metric))
        files += save(figure, directory / "figures", name, title=title)
    return files


def worded(words: str, metric: str | None) -> str:
    """Words of an experiment, which speaks of accuracy, with the metric that it is; None is accuracy.

    >>> worded("validation accuracy (%)", "auroc")
    'validation AUROC (%)'
    """
    return words if metric is None else re.sub(r"\b(?<!balanced )accuracy\b", text.metric_title(metric), words)


def read_summary(directory: Path, metric: str | None = None) -> pd.DataFrame:
    """The table that an experiment's finding and figures are made of. Raises: OSError where there is none.

    Its columns have the names of accuracy; those of the file have the metric's.
    """
    import pandas as pd

    table = pd.read_csv(directory / "summary.csv", keep_default_na=False, na_values=[""])
    words = [name for name in table.columns if not pd.api.types.is_numeric_dtype(table[name])]
    filled: pd.DataFrame = unnamed(table.fillna(dict.fromkeys(words, "")), metric)
    return filled


def write_table(table: pd.DataFrame, path: Path, metric: str | None = None) -> None:
    """A table as its experiment keeps it: ten digits, accuracies by the metric that they are."""
    write_atomic(path, named(table, metric).to_csv(index=False, float_format="%.10g").encode())
