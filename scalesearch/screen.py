"""The terminal of a command: lines, tables and progress for a person.

With `--json` all of it goes to standard error, and standard output has one JSON object.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from scalesearch.evaluation import Outcome
from scalesearch.text import duration, percent, printable

Row = Mapping[str, Any]


class _Warnings(logging.Handler):
    """Log records as lines of a screen."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(logging.WARNING)
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        self._screen.warn(record.getMessage())


class Screen:
    """Where a command writes to: a terminal, a file, or standard error beside the JSON."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json, self._answers = as_json, sys.stdout
        self._console = Console(stderr=as_json, highlight=False)
        if not self._console.is_terminal:  # a file or a pipe: wide enough for every table
            self._console.width = 200

    def say(self, text: str) -> None:
        """A line of words, printed as it is."""
        self._console.print(printable(text), markup=False, soft_wrap=True)

    def markdown(self, text: str) -> None:
        """Markdown, drawn where there is a terminal, and as it is where there is none."""
        if self._console.is_terminal:
            from rich.markdown import Markdown  # which takes longer to import than all of rich

            self._console.print(Markdown(text))
        else:
            self.say(text)

    def warn(self, text: str) -> None:
        """A line that something is not as it should be, on standard error."""
        print(f"scalesearch: {printable(text)}", file=sys.stderr)

    @contextmanager
    def warnings(self) -> Iterator[None]:
        """What modules of this package warn of through `logging` is shown as `warn` does, and never dropped."""
        ours = logging.getLogger("scalesearch")
        handler = _Warnings(self)
        before, ours.level = ours.level, logging.WARNING
        ours.addHandler(handler)
        try:
            yield
        finally:
            ours.removeHandler(handler)
            ours.setLevel(before)

    def answer(self, values: Mapping[str, Any]) -> None:
        """The JSON object of the command, with `--json`."""
        if self._as_json:
            print(json.dumps(values, allow_nan=False), file=self._answers, flush=True)

    def table(self, title: str, rows: Sequence[Row], columns: Mapping[str, str]) -> None:
        """Rows as a table, narrow enough for a terminal of 80 columns; cells fold where it is narrower still.

        `columns` maps a row's key to its heading, which breaks at its spaces; values are words already.
        """
        self.say(title)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
        for key, heading in columns.items():
            numeric = all(_is_number(row[key]) for row in rows)
            broken = heading.replace(" ", "\n").replace("(resolution)", "(reso-\nlution)").replace("-adds", "-\nadds")
            table.add_column(broken, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            style = "bold" if row.get("mark") == "chosen" else None
            table.add_row(*(Text(str(row[key])) for key in columns), style=style)
        self._console.print(table)

    @contextmanager
    def progress(self, *, total: int, slots: int) -> Iterator[Progress]:
        """A live table of trainings where there is a terminal, plain lines where there is none."""
        progress = Progress(total=total, slots=slots)
        if self._console.is_terminal:
            with Live(console=self._console, refresh_per_second=2, get_renderable=progress.render):
                yield progress
        else:
            progress.on_line = self.say
            yield progress


class Progress:
    """How far a command's trainings are: counts, the best mean so far, and the time left at the present pace."""

    def __init__(self, *, total: int, slots: int) -> None:
        self._total, self._slots = total, slots
        self._done = self._trained = self._reused = self._failed = 0
        self._accuracies: dict[str, tuple[float, int]] = {}  # the sum, and of how many
        self._epochs = 0.0
        self._last = "starting workers and loading the data"
        self._started = time.monotonic()
        self.on_line: Callable[[str], None] | None = None

    def update(self, name: str, outcome: Outcome, *, ranked: bool = False) -> None:
        """Count a training that has ended, and show it under its name; `ranked` ones compete for the best mean."""
        result, epochs = outcome.result, outcome.evaluation.recipe.epochs
        self._done += 1
        self._failed += result is None
        self._reused += outcome.reused and result is not None
        self._trained += not outcome.reused and result is not None
        if epochs > self._epochs:  # accuracies of shorter schedules are no results
            self._epochs, self._accuracies = epochs, {}
        if ranked and result is not None and epochs == self._epochs:
            total, number = self._accuracies.get(name, (0.0, 0))
            self._accuracies[name] = (total + result.val_accuracy, number + 1)
        short = f", {epochs:g} epochs" if epochs < self._epochs else ""
        became = f"failed: {outcome.reason}" if result is None else f"{percent(result.val_accuracy)} %"
        source = " (from the ledger)" if outcome.reused else ""
        self._last = f"{name} seed {outcome.evaluation.seed}{short}: {became}{source}"
        best = f"; best so far: {self._best() or 'none'}" if ranked or self._accuracies else ""
        self._line(f"[{self._done}/{max(self._done, self._total)}] {self._last}{best}; left: {self._left()}")

    def note(self, text: str) -> None:
        """Show something that is no training: a candidate that gets no more, say."""
        self._last = text
        self._line(text)

    def _line(self, text: str) -> None:
        if self.on_line is not None:
            self.on_line(text)

    def _best(self) -> str:
        means = {name: total / number for name, (total, number) in self._accuracies.items()}
        best = max(means, key=lambda name: means[name], default="")
        return f"{best} {percent(means[best])} %" if best else ""

    def _left(self) -> str:
        if not self._trained:
            return "unknown" if self._done < self._total else duration(0)
        pace = (time.monotonic() - self._started) / self._trained
        return duration(pace * max(0, self._total - self._done))

    def render(self) -> Table:
        """The live table of a terminal."""
        table = Table(pad_edge=False)
        cells = {
            "done": f"{self._done}/{self._total}",
            "running": str(min(self._slots, max(0, self._total - self._done))),
            "failed": str(self._failed),
            "from the ledger": str(self._reused),
            "best so far": self._best() or "none yet",
            "last": self._last,
            "time left": self._left(),
        }
        for heading in cells:
            table.add_column(heading)
        table.add_row(*cells.values())
        return table


def _is_number(value: object) -> bool:
    text = str(value)
    return not text or text[0].isdigit() or text[0] in "+-±"
