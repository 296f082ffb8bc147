"""What the splits that need no search lose against the best candidate, and how far the ties reach."""

from __future__ import annotations

import math
from dataclasses import asdict, astuple

from scalesearch.report.facts import Facts
from scalesearch.report.questions import SAME, Values, difference, interval, measured_by, split_columns, table
from scalesearch.report.references import Reference
from scalesearch.scaling import Coefficients
from scalesearch.search import BASELINE
from scalesearch.selection import Seeds
from scalesearch.text import percent

ORDER = 6
TITLE = "How flat is the optimum?"


def answer(facts: Facts) -> Values:
    """Ranges of the coefficients of all that is tied, and of each split what it loses or the command that tells."""
    best = facts.candidates[facts.choice.best]
    tied = [best, *(facts.candidates[name] for name in facts.choice.tied)]
    spans = {}
    for name in ("alpha", "beta", "gamma"):
        values = [getattr(each, name) for one in tied for each in one.triples]
        spans[name] = [min(values), max(values)]
    means = list(facts.means().values())
    return {
        "best": best.id,
        "tied": [one.id for one in tied],
        "spans": spans,
        "spread": means[0] - means[-1],
        "references": [_reference(facts, one) for one in facts.references],
    }


def _reference(facts: Facts, reference: Reference) -> Values:
    split = reference.coefficients
    values: Values = {"name": reference.name, **asdict(split)}
    values |= {name: getattr(reference, name) for name in ("macs_ratio", "in_budget", "candidate")}
    values |= {"seeds": len(reference.seeds), **dict.fromkeys(("difference", "low", "high", "nearest"))}
    values |= {"problem": reference.problem or None, "command": None}
    if reference.seeds:
        return values | _loss(facts, reference.candidate, reference.seeds)
    away, nearest = min(
        (distance(split, each), name)
        for name, one in facts.candidates.items()
        if name in facts.finished and name != BASELINE
        for each in one.triples
    )
    if reference.candidate is not None:  # planned, and nothing of it has finished
        values["command"] = facts.command("retry")
    elif not reference.problem:
        multipliers = f"depth={split.alpha:.9g}", f"width={split.beta:.9g}"
        values["command"] = facts.command("train", *multipliers, f"resolution={reference.resolution}")
    loss = _loss(facts, nearest, facts.finished[nearest])
    return values | {"nearest": {"candidate": nearest, "distance": away} | loss}


def _loss(facts: Facts, name: str | None, seeds: Seeds) -> Values:
    if name == facts.choice.best:
        return SAME
    return difference(facts.pairs.compare(facts.finished[facts.choice.best], seeds), facts.confidence)


def distance(one: Coefficients, other: Coefficients) -> float:
    """Between two splits, in doublings of cost: of depth, width squared and resolution squared together.

    >>> distance(Coefficients(2, 1, 1), Coefficients(1, 1, 2**0.5))
    1.4142135623730951
    """
    parts = zip(astuple(one), astuple(other), (1, 2, 2), strict=True)
    return math.sqrt(sum((weight * math.log2(a / b)) ** 2 for a, b, weight in parts))


def words(values: Values) -> list[str]:
    best = values["best"]
    first = f"All candidates lie within {percent(values['spread'])} points"
    if len(values["tied"]) > 1:
        reach = ", ".join(f"{name} from {low:g} to {high:g}" for name, (low, high) in values["spans"].items())
        first += f". {best} and what is statistically tied with it have {reach}."
    else:
        first += f", and none is tied with {best}."
    rows = [
        {
            "split": row["name"],
            **split_columns(row),
            "counted ratio": "-"
            if row["macs_ratio"] is None
            else f"{row['macs_ratio']:.3f}{'' if row['in_budget'] else ', not in the budget'}",
            "is": row["candidate"] or ("trained by itself" if row["seeds"] else "no candidate"),
            f"lost against {best}": _lost(row),
        }
        for row in values["references"]
    ]
    second = "Splits that need no search, each raised or lowered as a whole until its counted cost meets the budget:"
    unmeasured = [_unmeasured(row, best) for row in values["references"] if row["difference"] is None]
    return [first, second, *table(rows), *(paragraph for each in unmeasured for paragraph in each)]


def _lost(row: Values) -> str:
    if row["difference"] is None:
        return "not measured"
    return "nothing: it is the best" if row["high"] == 0 == row["low"] else interval(row)


def _unmeasured(row: Values, best: str) -> list[str]:
    why = f", and cannot be compared here: {row['problem']}" if row["problem"] else ""
    nearest = row["nearest"]
    loses = "which is the best itself" if nearest["candidate"] == best else f"which loses {interval(nearest)} points"
    return [
        f"{row['name']} was not measured{why}. The nearest measured network is {nearest['candidate']}, "
        f"{nearest['distance']:.2f} doublings of cost away, {loses}; it is another network.",
        *measured_by(row["command"]),
    ]
