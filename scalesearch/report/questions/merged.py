"""How many triples are how many networks, and of those next to one another on the grid, how many are the same."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import astuple

from scalesearch.report.facts import Facts
from scalesearch.report.questions import Values, grid_steps, scaled
from scalesearch.text import plural

ORDER = 3
TITLE = "Are the neighbours different networks?"


def answer(facts: Facts) -> Values:
    """Counts of triples, networks and pairs of neighbours; the triples of each network that has several."""
    triples = [(one.id, each) for one in scaled(facts) for each in one.triples]
    adjacent = [
        name == other
        for (name, one), (other, its) in itertools.combinations(triples, 2)
        if grid_steps(facts.grid, one, its) <= 1
    ]
    all_of = {one.id: [list(astuple(each)) for each in one.triples] for one in scaled(facts)}
    return {
        "triples": len(triples),
        "networks": len(all_of),
        "merged": {name: several for name, several in all_of.items() if len(several) > 1},
        "best": facts.choice.best,
        "best_triples": all_of[facts.choice.best],
        "adjacent": len(adjacent),
        "adjacent_same": sum(adjacent),
    }


def words(values: Values) -> list[str]:
    triples, networks = values["triples"], values["networks"]
    if triples == 1:
        paragraphs = ["One triple met the constraints, which is one network."]
    elif triples == networks:
        paragraphs = [f"Yes: the {triples} triples that met the constraints are {networks} different networks."]
    else:
        paragraphs = [
            f"Not all: the {triples} triples that met the constraints are {plural(networks, 'different network')}. Of "
            f"{plural(values['adjacent'], 'pair')} of them that {'lies' if values['adjacent'] == 1 else 'lie'} next to "
            f"one another on the grid, {values['adjacent_same']} {'is' if values['adjacent_same'] == 1 else 'are'} the "
            "same network."
        ]
    if len(values["best_triples"]) > 1:
        paragraphs.append(f"The best, {values['best']}, is all of {_listed(values['best_triples'])}.")
    others = {name: each for name, each in values["merged"].items() if name != values["best"]}
    return paragraphs + [f"{name} is all of {_listed(each)}." for name, each in others.items()]


def _listed(triples: Sequence[Sequence[float]]) -> str:
    return ", ".join(f"({alpha:g}, {beta:g}, {gamma:g})" for alpha, beta, gamma in triples)
