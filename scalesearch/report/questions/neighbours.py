"""The best candidate against those nearest to it on the grid: as many steps away as it takes to find three."""

from __future__ import annotations

from dataclasses import asdict

from scalesearch.report.facts import Facts
from scalesearch.report.questions import Values, difference, grid_steps, interval, measured_by, split_columns, table
from scalesearch.search import Candidate, Grid
from scalesearch.selection.pairs import ONE_SEED
from scalesearch.text import level, plural, points

ORDER = 2
TITLE = "Does the winner differ from its neighbours?"


def answer(facts: Facts) -> Values:
    """The neighbours with their differences, and what it would take to separate the first two candidates."""
    choice, best = facts.choice, facts.candidates[facts.choice.best]
    corrected = choice.comparisons.set_index("candidate")["p_corrected"]
    away = {name: steps(facts.grid, best, facts.candidates[name]) for name in corrected.index}
    reach = max(sorted(away.values())[:3], default=0)
    rows = [
        _sizes(facts.candidates[name])
        | {"candidate": name, "steps": away[name]}
        | difference(facts.pairs.compare(facts.finished[best.id], facts.finished[name]), facts.confidence)
        | {"p_corrected": float(corrected[name]), "tied": name in choice.tied, "stopped": name in facts.study.stopped}
        for name in sorted(corrected.index, key=lambda name: (away[name], name))
        if away[name] <= reach
    ]
    separation, command = choice.separation, None
    if separation is not None and separation.seeds:
        seeds = max(len(facts.finished[name]) for name in (separation.first, separation.second)) + separation.seeds
        command = facts.more_seeds(seeds)
    elif separation is not None and separation.images is not None:
        command = facts.command("run", f"data.num_val={separation.images}", anew=True)
    elif separation is not None and separation.reason == ONE_SEED:
        command = facts.more_seeds(3)
    return {
        "best": best.id,
        "chosen": choice.chosen,
        "tied": list(choice.tied),
        "stopped": dict(facts.study.stopped),
        "num_candidates": len(choice.comparisons) + 1,
        "reach": reach,
        "neighbours": rows,
        "separation": None if separation is None else separation._asdict(),
        "command": command,
    }


def steps(grid: Grid, one: Candidate, other: Candidate) -> int:
    """Steps of the grid between two networks' nearest triples."""
    return min(grid_steps(grid, mine, theirs) for mine in one.triples for theirs in other.triples)


def _sizes(candidate: Candidate) -> Values:
    sizes = {name: getattr(candidate.network, name) for name in ("depth", "resolution")}
    return asdict(candidate.coefficients) | sizes | {"macs_ratio": candidate.ratio}


def words(values: Values) -> list[str]:
    """Ties, neighbours with their differences, and what it would take to separate the first two."""
    best, rows, tied = values["best"], values["neighbours"], values["tied"]
    if not rows:
        return [f"There is one candidate, {best}: it has no neighbours."]
    among = sum(row["tied"] for row in rows)
    verdict = "No" if among == len(rows) else "From some" if among else "Yes"
    first = (
        f"{verdict}: at {level(values['confidence'])}, {among} of the {len(rows)} nearest on the grid "
        f"({plural(values['reach'], 'step')} at most) {'is' if among == 1 else 'are'} statistically tied with {best}, "
        f"and of all others {len(tied)} of {values['num_candidates'] - 1}" + (f" ({', '.join(tied)})." if tied else ".")
    )
    if values["stopped"]:
        stopped = [f"{name} (tied)" if name in tied else name for name in sorted(values["stopped"])]
        first += f"\nStopped early and not to be chosen: {', '.join(stopped)}."
    columns = [
        {
            "network": row["candidate"],
            **split_columns(row),
            "blocks": f"{row['depth']:.4g}",
            "px": row["resolution"],
            "steps": row["steps"],
            f"{best} less it": interval(row),
            "p, corrected": f"{row['p_corrected']:.3f}",
            "": "tied" if row["tied"] else "apart",
        }
        for row in rows
    ]
    note = "Each interval is for itself; what is tied says a one-sided test, corrected for the number of candidates."
    return [first, *table(columns), note, *_separation(values)]


def _separation(values: Values) -> list[str]:
    separation = values["separation"]
    if separation is None:
        return []
    pair = f"{separation['first']} and {separation['second']}, the first two"
    apart = f"{points(separation['difference'])} points apart"
    if separation["seeds"] == 0:
        return [f"{pair}, are apart already ({apart})."]
    if separation["seeds"] is not None:
        more = f"if that is so, about {separation['seeds']} more seeds each would separate them"
    elif separation["images"] is not None:
        more = (
            "no number of seeds separates them on these validation images; it takes at least "
            f"{separation['images']:,} of them, if the data has as many"
        )
    else:
        return [f"What would separate {pair}, is not known: {separation['reason']}.", *measured_by(values["command"])]
    return [f"{pair}, are {apart}: {more}.", *measured_by(values["command"])]
