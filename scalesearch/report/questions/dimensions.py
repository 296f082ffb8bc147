"""The best network that scales all three dimensions against the best mix of two, and the best of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple

from scalesearch.report.facts import Facts
from scalesearch.report.questions import Values, difference, interval, measured_by, table
from scalesearch.search import Candidate
from scalesearch.text import level

ORDER = 7
TITLE = "Does scaling all three dimensions beat two, and one?"
KINDS = {"compound": "all three", "two": "a mix of two", "single": "one"}
VERDICTS = {
    "better": "yes, the best of all three beats every network of the other kind",
    "worse": "no, the best of the other kind beats every network of all three",
    "unknown": "neither is shown to be better",
}


def kind(candidate: Candidate) -> str:
    """How many dimensions a network scales: "compound" all three, "two", "single"; "other" where one shrinks.

    A network that several triples round to counts where the fewest of them are scaled.
    """
    plainest = min(map(astuple, candidate.triples), key=lambda triple: sum(value != 1 for value in triple))
    number = sum(value != 1 for value in plainest)
    return "other" if number == 0 or min(plainest) < 1 else ("single", "two", "compound")[number - 1]


def answer(facts: Facts) -> Values:
    """Each is the best of its kind, so the intervals cover all pairs of the two kinds at once (Bonferroni).

    The verdict is about the kinds: "better" where the best compound network beats every one of the other kind, "worse"
    where the best of the other kind beats every compound one, else "unknown".
    """
    means = facts.means()
    of_kind: dict[str, list[str]] = {name: [] for name in (*KINDS, "other")}
    for name in means:
        of_kind[kind(facts.candidates[name])].append(name)  # best first
    best = {name: _first(of_kind[name], facts.study.stopped) for name in KINDS}
    values: Values = {
        "kinds": {
            name: {"num": len(of_kind[name]), "best": best[name], "val_accuracy": means.get(best[name] or "")}
            for name in KINDS
        },
        "pairs": [],
        "command": None,
    }
    for against in ("two", "single"):
        ours, theirs = best["compound"], best[against]
        if ours is None or theirs is None:
            tolerance, product = 2 * facts.budget.tolerance, 2 * float(facts.grid.product_tolerance)
            wider = f"budget.tolerance={tolerance:g}", f"grid.product_tolerance={product:g}"
            values["command"] = facts.command("run", *wider, anew=True)
            continue
        num_pairs = len(of_kind["compound"]) * len(of_kind[against])

        def against_each_other(one: str, other: str, num_pairs: int = num_pairs) -> Values:
            compared = facts.pairs.compare(facts.finished[one], facts.finished[other])
            return difference(compared, facts.confidence, pairs=num_pairs)

        verdict = "unknown"
        if all((against_each_other(ours, other)["low"] or 0) > 0 for other in of_kind[against]):
            verdict = "better"
        elif all((against_each_other(one, theirs)["high"] or 0) < 0 for one in of_kind["compound"]):
            verdict = "worse"
        values["pairs"].append(
            {"against": against, "compound": ours, "other": theirs, "num_pairs": num_pairs, "verdict": verdict}
            | against_each_other(ours, theirs)
        )
    return values


def _first(names: Sequence[str], stopped: Mapping[str, str]) -> str | None:
    """The best that may be chosen, or else the best that was stopped."""
    return next((name for name in names if name not in stopped), names[0] if names else None)


def words(values: Values) -> list[str]:
    paragraphs = [f"Against {KINDS[pair['against']]}: {VERDICTS[pair['verdict']]}." for pair in values["pairs"]]
    for name, row in values["kinds"].items():
        if not row["num"]:
            paragraphs.append(f"Not measured: no candidate scales {KINDS[name]}. A wider space may have one.")
    rows = [
        {
            "all three": pair["compound"],
            "other": f"{pair['other']} ({KINDS[pair['against']]})",
            "difference": interval(pair),
            "pairs": pair["num_pairs"],
        }
        for pair in values["pairs"]
    ]
    if rows:
        paragraphs += table(rows)
        paragraphs.append(
            "Each is the best of its kind, so the intervals hold for all pairs of the two kinds at once, at "
            f"{level(values['confidence'])}."
        )
    return [*paragraphs, *measured_by(values["command"])]
