"""Where the choice lies within its budgets: between the edges of the tolerance, of each limit, and of the grid."""

from __future__ import annotations

import math

from scalesearch import budget
from scalesearch.fitting import ENOUGH
from scalesearch.report.facts import Facts
from scalesearch.report.questions import Values, measured_by
from scalesearch.text import percent

ORDER = 8
TITLE = "Which budget binds?"
AT_THE_EDGE = 0.8  # of the way from the middle of the tolerance to its upper edge


def answer(facts: Facts) -> Values:
    """What binds, and of each limit the share that the variant at phi = 1 needs."""
    chosen, target = facts.candidates[facts.choice.chosen], facts.budget
    most, least = ((1 + sign * target.tolerance) * target.macs_ratio for sign in (1, -1))
    place = (chosen.ratio / target.macs_ratio - 1) / target.tolerance if target.tolerance else 0.0
    limits: list[Values] = []
    for name, limit in facts.limits.given().items():
        need = facts.needs.get(name)
        row: Values = {"metric": name, "limit": limit, "need": need, "share": need and need / limit, "command": None}
        if need is None:
            phis = sorted({1.0, *facts.study.values["phis"]})
            row["command"] = facts.command("run", f"phis=[{','.join(f'{phi:g}' for phi in phis)}]")
        limits.append(row)
    edges = [
        f"grid.{name}"
        for name in ("alpha", "beta", "gamma")
        if len(ticks := getattr(facts.grid, name).values()) > 1
        and any(math.isclose(getattr(each, name), float(ticks[-1])) for each in chosen.triples)
    ]
    binds = ["budget.tolerance"] if place > AT_THE_EDGE else []
    binds += [f"budget.{row['metric']}" for row in limits if row["share"] is not None and row["share"] >= ENOUGH]
    effect = facts.choice.cost_effect
    return {
        "chosen": chosen.id,
        "macs_ratio": chosen.ratio,
        "least": least,
        "most": most,
        "place": place,
        "dearest": None if effect is None else effect.most_expensive,
        "limits": limits,
        "grid_edges": edges,
        "binds": binds,
    }


def words(values: Values) -> list[str]:
    place = (
        f"{values['chosen']} costs {values['macs_ratio']:.3f} times the 1x network, of the {values['least']:.3f} to "
        f"{values['most']:.3f} that budget.tolerance lets in"
    )
    if values["dearest"] is not None:
        place += f", and is {'' if values['dearest'] else 'not '}the most expensive candidate"
    binds = ", ".join(values["binds"]) or "None: the choice lies at the edge of no budget"
    paragraphs = [f"{binds}.", f"{place}."]
    for row in values["limits"]:
        given = f"budget.{row['metric']}={budget.written(row['metric'], row['limit'])}"
        if row["need"] is None:
            missing = f"What the variant at phi = 1 needs of {given} was not measured."
            paragraphs += [missing, *measured_by(row["command"])]
        else:
            need = budget.words(row["metric"], row["need"])
            paragraphs.append(f"The variant at phi = 1 needs {need}, {percent(row['share'], 1)} % of {given}.")
    if values["grid_edges"]:
        edges = ", ".join(values["grid_edges"])
        paragraphs.append(f"The choice lies at the end of {edges}: the grid binds as well.")
    return paragraphs
