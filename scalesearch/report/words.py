"""The answers as Markdown: a heading a question, first the verdict, then the numbers; one function a question."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scalesearch.budget import words, written
from scalesearch.report.questions import QUESTIONS

Values = Mapping[str, Any]


def markdown(study: str, answers: Mapping[str, Values]) -> str:
    """The text of report.md."""
    about = answers["about"]
    level = _percent(about["confidence"], digits=4)
    rule = "the best mean" if about["rule"] == "best" else f"of the best and its ties the least {about['metric']}"
    lines = [
        f"# {study}",
        "",
        f"Accuracies are means over {about['seeds']} seeds at most, in percent of the validation images, and "
        f"differences points of that. Intervals are at {level} %, over seeds and images. Chosen was {rule}. "
        f"`scalesearch report study={study}` writes this anew.",
    ]
    for name, question in QUESTIONS.items():
        lines += ["", f"## {question.words}", "", *WORDS[name](answers[name], level)]
    return "\n".join(lines) + "\n"


def neighbours(values: Values, level: str) -> list[str]:
    """Ties, neighbours with their differences, and what it would take to tell the first two apart."""
    best, rows, tied = values["best"], values["neighbours"], values["tied"]
    if not rows:
        return [f"There is one candidate, {best}: it has no neighbours."]
    among = sum(row["tied"] for row in rows)
    reach = f"{values['reach']} step{'' if values['reach'] == 1 else 's'} at most"
    verdict = "No" if among == len(rows) else "From some" if among else "Yes"
    lines = [
        f"{verdict}: at {level} %, {among} of the {len(rows)} nearest on the grid ({reach}) cannot be told from "
        f"{best}, and of all others {len(tied)} of {values['num_candidates'] - 1}"
        + (f" ({', '.join(tied)})." if tied else "."),
    ]
    if values["stopped"]:
        told = [f"{name} (tied)" if name in tied else name for name in sorted(values["stopped"])]
        lines.append(f"Stopped early and not to be chosen: {', '.join(told)}.")
    table = [
        {
            "network": row["candidate"],
            **_split(row),
            "blocks": f"{row['depth']:.4g}",
            "px": row["resolution"],
            "steps": row["steps"],
            f"{best} less it": _interval(row),
            "p, corrected": f"{row['p_corrected']:.3f}",
            "": "tied" if row["tied"] else "apart",
        }
        for row in rows
    ]
    lines += ["", *_table(table), ""]
    lines.append(
        "Each interval is for itself; what is tied says a one-sided test, corrected for the number of candidates."
    )
    return [*lines, "", *_separation(values)]


def _separation(values: Values) -> list[str]:
    separation = values["separation"]
    if separation is None:
        return []
    pair = f"{separation['first']} and {separation['second']}, the first two"
    difference = f"{_points(separation['difference'])} points apart"
    if separation["seeds"] == 0:
        return [f"{pair}, are apart already ({difference})."]
    if separation["seeds"] is not None:
        said = (
            f"{pair}, are {difference}: if that is so, about {separation['seeds']} more seeds each would separate them."
        )
    elif separation["images"] is not None:
        said = (
            f"{pair}, are {difference}: no number of seeds separates them on these validation images; it takes at "
            f"least {separation['images']:,} of them, if the data has as many."
        )
    else:
        said = f"What would separate {pair}, is not known: {separation['reason']}."
    return [said, *_command(values["command"])]


def merged(values: Values, level: str) -> list[str]:
    """How many triples are how many networks."""
    triples, networks = values["triples"], values["networks"]
    if triples == networks:
        said = f"Yes: the {triples} triples that met the constraints are {networks} different networks."
    else:
        said = (
            f"Not all: the {triples} triples that met the constraints are {networks} different networks. Of the "
            f"{values['adjacent']} pairs of them that lie next to one another on the grid, {values['adjacent_same']} "
            "are the same network."
        )
    lines = [said]
    if len(values["best_triples"]) > 1:
        lines.append(f"The best, {values['best']}, is all of {_triples(values['best_triples'])}.")
    others = {name: triples for name, triples in values["merged"].items() if name != values["best"]}
    lines += [f"{name} is all of {_triples(triples)}." for name, triples in others.items()]
    return _paragraphs(lines)


def counted(values: Values, level: str) -> list[str]:
    """Nominal product against counted multiply-adds."""
    low, high = values["lowest"], values["highest"]
    lines = [
        f"{values['chosen']} costs {values['macs_ratio']:.3f} times the 1x network in counted multiply-adds, where its "
        f"product says {values['product']:.3f}: {_excess(values['factor'])}.",
        f"Over the candidates that goes from {_excess(low['factor'])} ({low['candidate']}) to "
        f"{_excess(high['factor'])} ({high['candidate']}). These are counts, without error.",
    ]
    table = [
        {
            "variant": row["name"],
            "phi": f"{row['phi']:g}",
            "nominal": f"{row['nominal']:.4g}",
            "counted": f"{row['macs_ratio']:.4g}",
            "counted / nominal": f"{row['macs_ratio'] / row['nominal']:.3f}",
        }
        for row in values["variants"]
    ]
    return [*_paragraphs(lines), *(["", *_table(table)] if table else [])]


def held_out(values: Values, level: str) -> list[str]:
    """Optimism of the choice and of the 1x network."""
    tested = [row for row in values["rows"] if row["optimism"] is not None]
    missing = [row for row in values["rows"] if row["optimism"] is None]
    num_test = f", and scored on {values['num_test']:,} test images" if values["num_test"] else ""
    lines = [
        f"No: it was chosen on {values['num_val']:,} validation images{num_test} that no choice looked at. "
        f"The ledger has test scores of {', '.join(values['seen']) or 'no network'} of this study."
    ]
    if len(values["seen"]) > 2:
        lines.append(
            "More than the choice and the 1x network: earlier choices, or those of studies that share trainings. The "
            "test split has been looked at that often."
        )
    table = [
        {
            "network": row["network"],
            "validation": _percent(row["val_accuracy"]),
            "test": _percent(row["test_accuracy"]),
            "validation less test": _interval(row | {"difference": row["optimism"]}),
            "seeds": row["seeds"],
        }
        for row in tested
    ]
    if table:
        lines += ["", *_table(table), ""]
    if (excess := values["excess"]) is not None:
        lines.append(
            f"The choice's optimism less the 1x network's, which nobody chose, is {_interval(excess)} points: what "
            "choosing did, apart from one split being harder than the other."
        )
    for row in missing:
        lines += [f"The test accuracy of {row['network']} was not measured.", *_command(row["command"])]
    return lines


def flatness(values: Values, level: str) -> list[str]:
    """What is lost with splits that need no search."""
    best, spans = values["best"], values["spans"]
    reach = ", ".join(f"{name} from {low:g} to {high:g}" for name, (low, high) in spans.items())
    lines = [
        f"All candidates lie within {_percent(values['spread'])} points. {best} and what cannot be told from it have "
        f"{reach}."
        if len(values["tied"]) > 1
        else f"All candidates lie within {_percent(values['spread'])} points, and none is tied with {best}."
    ]
    table = [
        {
            "split": row["name"],
            **_split(row),
            "counted ratio": "-"
            if row["macs_ratio"] is None
            else f"{row['macs_ratio']:.3f}{'' if row['in_budget'] else ', not in the budget'}",
            "is": row["candidate"] or ("trained by itself" if row["seeds"] else "no candidate"),
            f"lost against {best}": _lost(row),
        }
        for row in values["references"]
    ]
    lines += [
        "",
        "Splits that need no search, each raised or lowered as a whole until its counted cost meets the budget:",
    ]
    lines += ["", *_table(table)]
    for row in values["references"]:
        if row["difference"] is None:
            lines += ["", *_unmeasured(row, best)]
    return lines


def _lost(row: Values) -> str:
    if row["difference"] is None:
        return "not measured"
    return "nothing: it is the best" if row["high"] == 0 == row["low"] else _interval(row)


def _unmeasured(row: Values, best: str) -> list[str]:
    if row["problem"]:
        said = [f"{row['name']} was not measured, and cannot be compared here: {row['problem']}."]
    else:
        said = [f"{row['name']} was not measured."]
    if (nearest := row["nearest"]) is not None:
        lost = (
            "which is the best itself" if nearest["candidate"] == best else f"which loses {_interval(nearest)} points"
        )
        said.append(
            f"The nearest measured network is {nearest['candidate']}, {nearest['distance']:.2f} doublings of cost "
            f"away, {lost}; it is another network."
        )
    return [" ".join(said), *_command(row["command"])]


def dimensions(values: Values, level: str) -> list[str]:
    """Compound against the best mix of two and the best single dimension."""
    names = {"compound": "all three", "two": "a mix of two", "single": "one"}
    verdicts = {
        "better": "yes, the best of all three beats every network of the other kind",
        "worse": "no, the best of the other kind beats every network of all three",
        "unknown": "it cannot be told",
    }
    said = [f"Against {names[pair['against']]}: {verdicts[pair['verdict']]}." for pair in values["pairs"]]
    for kind, row in values["kinds"].items():
        if not row["num"]:
            said.append(f"Not measured: no candidate scales {names[kind]}. A wider space may have one.")
    lines = _paragraphs(said)
    table = [
        {
            "all three": pair["compound"],
            "other": f"{pair['other']} ({names[pair['against']]})",
            "difference": _interval(pair),
            "pairs": pair["num_pairs"],
        }
        for pair in values["pairs"]
    ]
    if table:
        lines += ["", *_table(table), ""]
        lines.append(
            f"Each is the best of its kind, so the intervals hold for all pairs of the two kinds at once, at {level} %."
        )
    return [*lines, *_command(values["command"])]


def binding(values: Values, level: str) -> list[str]:
    """Where the choice lies within its budgets."""
    place = (
        f"{values['chosen']} costs {values['macs_ratio']:.3f} times the 1x network, of the {values['least']:.3f} to "
        f"{values['most']:.3f} that budget.tolerance lets in"
    )
    if values["dearest"] is not None:
        place += ", and is the dearest candidate" if values["dearest"] else ", and is not the dearest candidate"
    binds = values["binds"]
    lines = [f"{', '.join(binds)}." if binds else "None: the choice lies at the edge of no budget.", f"{place}."]
    for row in values["limits"]:
        given = f"budget.{row['metric']}={written(row['metric'], row['limit'])}"
        if row["need"] is None:
            said = [f"What the variant at phi = 1 needs of {given} was not measured.", *_command(row["command"])]
            lines.append("\n".join(said))
        else:
            need = words(row["metric"], row["need"])
            lines.append(f"The variant at phi = 1 needs {need}, {100 * row['share']:.1f} % of {given}.")
    if values["grid_edges"]:
        lines.append(f"The choice lies at the end of {', '.join(values['grid_edges'])}: the grid binds as well.")
    return _paragraphs(lines)


def explained(values: Values, level: str) -> list[str]:
    """Accuracy against counted cost."""
    if values["slope"] is None:
        return ["It cannot be known: that takes three candidates at least, which do not all cost the same."]
    verdict = "In part" if values["shown"] and values["slope"] > 0 else "That is not shown"
    share = (
        ""
        if values["share"] is None
        else f"; the cost explains {_percent(values['share'], digits=1)} % of the variance"
    )
    slope = _interval({**values, "difference": values["slope"]})
    lines = [
        f"{verdict}: a doubling of the multiply-adds goes with {slope} points (least squares over the "
        f"candidates){share}. The {values['num_candidates']} candidates span {values['doublings']:.2f} doublings.",
        f"{values['chosen']}, the choice, is {'' if values['dearest'] else 'not '}the dearest candidate. With all "
        f"means corrected to {values['macs_ratio']:g} times the 1x network, the order is "
        + ", ".join(f"{name} {_percent(values['corrected'][name])}" for name in values["order"])
        + ".",
    ]
    if values["order"][0] != values["best"] and not values["shown"]:
        lines.append(f"{values['order'][0]} leads then, by a correction that is itself not shown to differ from none.")
    return _paragraphs(lines)


def order(values: Values, level: str) -> list[str]:
    """Rank correlations with longer trainings, larger phi and larger proxies."""
    names = {
        "phi": "phi = {factor:g}",
        "epochs": "{factor:g} times the epochs",
        "proxy": "a proxy {factor:g} times as large",
    }
    asked = {"phi": "phi = 2", "epochs": "longer training", "proxy": "a larger proxy"}
    table = [
        {
            "against": names[row["against"]].format(factor=row["factor"]),
            "candidates": _number(row["candidates"]),
            "seeds": _number(row["seeds"]),
            "Kendall": _correlation(row["kendall"]),
            "Spearman": _correlation(row["spearman"]),
        }
        for row in values["rows"]
    ]
    lines = _table(table) if table else []
    for row in values["rows"]:
        known = names[row["against"]].format(factor=row["factor"])
        low = row["kendall"]["low"]
        if low is not None:
            said = "is shown to hold better than by chance" if low > 0 else "is not shown to hold"
            lines += ["", f"The order of the proxy {said} for {known}."]
        if row["warning"]:
            lines += ["", f"{known}: {row['warning']}"]
    for name, command in values["missing"].items():
        lines += ["", f"Against {asked[name]}: not measured.", *_command(command)]
    return lines[1:] if lines and not lines[0] else lines


WORDS: dict[str, Callable[[Values, str], list[str]]] = {
    "neighbours": neighbours,
    "merged": merged,
    "cost": counted,
    "held_out": held_out,
    "flatness": flatness,
    "dimensions": dimensions,
    "budget": binding,
    "explained": explained,
    "order": order,
}


def _table(rows: Sequence[Values]) -> list[str]:
    headings = list(rows[0])
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    return lines + ["| " + " | ".join(str(row[heading]) for heading in headings) + " |" for row in rows]


def _paragraphs(lines: Sequence[str]) -> list[str]:
    return [part for line in lines for part in (line, "")][:-1]


def _command(command: str | None) -> list[str]:
    return ["", "This command would measure it:", "", f"    {command}"] if command else []


def _split(row: Values) -> dict[str, str]:
    headings = {"alpha": "alpha (depth)", "beta": "beta (width)", "gamma": "gamma (resolution)"}
    return {heading: f"{row[name]:.4g}" for name, heading in headings.items()}


def _triples(triples: Sequence[Sequence[float]]) -> str:
    return ", ".join(f"({alpha:g}, {beta:g}, {gamma:g})" for alpha, beta, gamma in triples)


def _excess(factor: float) -> str:
    return f"{100 * (factor - 1):+.1f} %"


def _percent(value: float, *, digits: int = 2) -> str:
    """A fraction as a number of percent, with `digits` decimals; 4 of them are cut to what is needed.

    >>> _percent(0.8619), _percent(0.95, digits=4)
    ('86.19', '95')
    """
    return f"{100 * value:.{digits}f}" if digits < 4 else f"{100 * value:.{digits}g}"


def _points(value: float) -> str:
    return f"{100 * value + 0.0:+.2f}"


def _interval(row: Values) -> str:
    """A difference in points with its bounds; "no interval" where one seed says nothing of them."""
    if row["low"] is None:
        return f"{_points(row['difference'])} (no interval)"
    return f"{_points(row['difference'])} ({_points(row['low'])} to {_points(row['high'])})"


def _correlation(value: Values) -> str:
    if value["value"] is None:
        return "-"
    bounds = "" if value["low"] is None else f" ({value['low']:.2f} to {value['high']:.2f})"
    return f"{value['value']:.2f}{bounds}"


def _number(value: Any) -> str:
    """A count, or how many of a list."""
    return str(len(value) if isinstance(value, list) else value)
