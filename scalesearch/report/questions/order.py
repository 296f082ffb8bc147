"""How the order of the proxies agrees with longer trainings, larger phi and larger proxies, where that was measured."""

from __future__ import annotations

from typing import Any

from scalesearch.report.facts import Facts
from scalesearch.report.questions import Values, measured_by, table
from scalesearch.text import interval, override, typed

ORDER = 10
TITLE = "Does the order hold for larger networks, and can the proxy be trusted?"
AGAINST = {  # as it is called where it was measured, and where it was not
    "phi": ("phi = {factor:g}", "phi = 2"),
    "epochs": ("{factor:g} times the epochs", "longer training"),
    "proxy": ("a proxy {factor:g} times as large", "a larger proxy"),
}


def answer(facts: Facts) -> Values:
    """The rows of fidelity.json, and the commands for what it lacks."""
    rows = list(facts.study.fidelity)
    workspace = str(facts.study.workspace)
    words = [] if workspace == "workspace" else [override("workspace", workspace)]
    words += facts.study.named_again
    return {
        "rows": rows,
        "missing": {
            name: typed("reproduce", "fidelity", f"study={facts.study.name}", f"against={name}", *words)
            for name in AGAINST
            if name not in {row["against"] for row in rows}
        },
    }


def words(values: Values) -> list[str]:
    names = [AGAINST[row["against"]][0].format(factor=row["factor"]) for row in values["rows"]]
    columns = [
        {
            "against": name,
            "candidates": _number(row["candidates"]),
            "seeds": _number(row["seeds"]),
            **{score.title(): interval(*(row[score][end] for end in ("value", "low", "high"))) for score in _SCORES},
        }
        for name, row in zip(names, values["rows"], strict=True)
    ]
    paragraphs = table(columns)
    for name, row in zip(names, values["rows"], strict=True):
        if (low := row["kendall"]["low"]) is not None:
            holds = "is shown to hold better than by chance" if low > 0 else "is not shown to hold"
            paragraphs.append(f"The order of the proxy {holds} for {name}.")
        if row["warning"]:
            paragraphs.append(f"{name}: {row['warning']}")
    for name, command in values["missing"].items():
        paragraphs += [f"Against {AGAINST[name][1]}: not measured.", *measured_by(command)]
    return paragraphs


_SCORES = ("kendall", "spearman")


def _number(value: Any) -> int:
    """A count, or how many of a list."""
    return len(value) if isinstance(value, list) else int(value)
