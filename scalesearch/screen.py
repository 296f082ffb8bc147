"""What a person sees: tables of the plan, of a search as it goes, of its answer. Nothing here decides anything.

With `--json` all of it goes to standard error, and standard output holds one JSON object.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

Row = Mapping[str, Any]


class Screen:
    """Where a command writes to: a terminal, a file, or standard error beside the JSON."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._console = Console(stderr=as_json, highlight=False)
        if not self._console.is_terminal:  # a file or a pipe: wide enough for every table
            self._console.width = 200

    def say(self, text: str) -> None:
        """A line of words, printed as it is."""
        self._console.print(text, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """A line that something is not as it should be, on standard error."""
        print(f"scalesearch: {text}", file=sys.stderr)

    def answer(self, values: Mapping[str, Any]) -> None:
        """The JSON object of the command, where it was asked for."""
        if self._as_json:
            print(json.dumps(values, allow_nan=False), flush=True)

    def table(self, title: str, rows: Sequence[Row], columns: Mapping[str, str]) -> None:
        """Rows as a table. `columns` maps a row's key to its heading; values are words already."""
        table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        for key, heading in columns.items():
            numeric = all(_is_number(row[key]) for row in rows)
            heading = heading.replace(" ", "\n", 1)  # narrow enough for a terminal of 100 columns
            table.add_column(heading, justify="right" if numeric else "left", no_wrap=numeric)
        for row in rows:
            style = "bold" if row.get("mark") == "chosen" else None
            table.add_row(*(Text(str(row[key])) for key in columns), style=style)
        self._console.print(table)

    @contextmanager
    def progress(self, *, total: int, slots: int) -> Iterator[Progress]:
        """A live table of the search where there is a terminal, plain lines where there is none."""
        progress = Progress(total=total, slots=slots)
        if self._console.is_terminal:
            with Live(console=self._console, refresh_per_second=2, get_renderable=progress.render):
                yield progress
        else:
            progress.on_line = self.say
            yield progress


class Progress:
    """How far a search is: counts, the best mean so far, and the time that is left at the present pace."""

    def __init__(self, *, total: int, slots: int) -> None:
        self._total, self._slots = total, slots
        self._trained = self._reused = self._failed = 0
        self._best = ""
        self._last = "starting workers and loading the data"
        self._started = time.monotonic()
        self.on_line: Any = None

    def update(self, *, trained: int, reused: int, failed: int, best: str, last: str) -> None:
        self._trained, self._reused, self._failed, self._best, self._last = trained, reused, failed, best, last
        if self.on_line is not None:
            self.on_line(f"[{self._done}/{self._total}] {last}; best so far: {best or 'none'}; left: {self._left()}")

    @property
    def _done(self) -> int:
        return self._trained + self._reused + self._failed

    def _left(self) -> str:
        if not self._trained:
            return "unknown"
        pace = (time.monotonic() - self._started) / self._trained
        return duration(pace * (self._total - self._done))

    def render(self) -> Table:
        table = Table(pad_edge=False)
        cells = {
            "done": f"{self._done}/{self._total}",
            "running": str(min(self._slots, self._total - self._done)),
            "failed": str(self._failed),
            "from the ledger": str(self._reused),
            "best so far": self._best or "none yet",
            "last": self._last,
            "time left": self._left(),
        }
        for heading in cells:
            table.add_column(heading)
        table.add_row(*cells.values())
        return table


def duration(seconds: float) -> str:
    """Seconds in words: 42 s, 3 min 05 s, 2 h 10 min.

    >>> duration(185)
    '3 min 05 s'
    """
    if not math.isfinite(seconds):
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def count(number: float) -> str:
    """A count with its unit: 803 k, 5.29 M, 37.7 G.

    >>> count(5_288_548)
    '5.29 M'
    """
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:g}"


def _is_number(value: object) -> bool:
    text = str(value)
    return not text or text[0].isdigit() or text[0] in "+-"
