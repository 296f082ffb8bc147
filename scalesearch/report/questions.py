"""The questions, each a pure function from the facts of a study to plain values; `words` says them.

Accuracies and their differences are fractions; None stands where a number is not known. Intervals are two-sided at the
study's confidence. What was not measured has a `command` that would measure it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from scalesearch.fitting import ENOUGH
from scalesearch.report.facts import Facts, Reference
from scalesearch.scaling import Coefficients
from scalesearch.search import BASELINE, Candidate, Grid
from scalesearch.selection import Comparison

Values = dict[str, Any]


def neighbours(facts: Facts) -> Values:
    """The best against those nearest to it on the grid: as many steps away as it takes to find three."""
    choice, grid, best = facts.choice, facts.grid, facts.candidates[facts.choice.best]
    corrected = choice.comparisons.set_index("candidate")["p_corrected"]
    away = {name: steps(grid, best, facts.candidates[name]) for name in corrected.index}
    reach = max(sorted(away.values())[:3], default=0)
    rows = [
        _sizes(facts.candidates[name])
        | {"candidate": name, "steps": away[name]}
        | _difference(facts.pairs.compare(facts.finished[best.id], facts.finished[name]), facts.confidence)
        | {"p_corrected": float(corrected[name]), "tied": name in choice.tied, "stopped": name in facts.stopped}
        for name in sorted(corrected.index, key=lambda name: (away[name], name))
        if away[name] <= reach
    ]
    separation, command = choice.separation, None
    if separation is not None and separation.seeds:
        seeds = max(len(facts.finished[name]) for name in (separation.first, separation.second)) + separation.seeds
        command = facts.more_seeds(seeds)
    elif separation is not None and separation.images is not None:
        command = facts.command("run", f"data.num_val={separation.images}", anew=True)
    elif separation is not None and "one seed" in separation.reason:
        command = facts.more_seeds(3)
    return {
        "best": best.id,
        "chosen": choice.chosen,
        "tied": list(choice.tied),
        "stopped": dict(facts.stopped),
        "num_candidates": len(choice.comparisons) + 1,
        "reach": reach,
        "neighbours": rows,
        "separation": None if separation is None else separation._asdict(),
        "command": command,
    }


def steps(grid: Grid, one: Candidate, other: Candidate) -> int:
    """Steps of the grid between two networks' nearest triples, along the coefficient in which they differ most.

    A coefficient that is not on the grid (a gamma that was solved for) counts whole steps, rounded.
    """
    sizes = [float(axis.step) for axis in (grid.alpha, grid.beta, grid.gamma)]
    return min(
        max(round(abs(a - b) / size) for a, b, size in zip(_triple(mine), _triple(theirs), sizes, strict=True))
        for mine in one.triples
        for theirs in other.triples
    )


def merged(facts: Facts) -> Values:
    """How many triples are how many networks, and of those next to one another on the grid, how many are the same."""
    candidates = [one for one in facts.candidates.values() if one.id != BASELINE]
    triples = [(one.id, triple) for one in candidates for triple in one.triples]
    sizes = [float(axis.step) for axis in (facts.grid.alpha, facts.grid.beta, facts.grid.gamma)]
    adjacent = same = 0
    for index, (name, triple) in enumerate(triples):
        for other, its in triples[:index]:
            if all(
                round(abs(a - b) / size) <= 1 for a, b, size in zip(_triple(triple), _triple(its), sizes, strict=True)
            ):
                adjacent, same = adjacent + 1, same + (name == other)
    several = {one.id: [list(_triple(t)) for t in one.triples] for one in candidates if len(one.triples) > 1}
    return {
        "triples": len(triples),
        "networks": len(candidates),
        "merged": several,
        "best": facts.choice.best,
        "best_triples": [list(_triple(triple)) for triple in facts.candidates[facts.choice.best].triples],
        "adjacent": adjacent,
        "adjacent_same": same,
    }


def counted(facts: Facts) -> Values:
    """The counted cost over the nominal product: of the choice, over all candidates, and of the choice's variants."""
    candidates = [one for one in facts.candidates.values() if one.id != BASELINE]
    factors = {one.id: one.ratio / one.coefficients.product for one in candidates}
    chosen = facts.candidates[facts.choice.chosen]
    low, high = (pick(factors, key=lambda name: factors[name]) for pick in (min, max))
    return {
        "chosen": chosen.id,
        "product": chosen.coefficients.product,
        "macs_ratio": chosen.ratio,
        "factor": factors[chosen.id],
        "lowest": {"candidate": low, "factor": factors[low]},
        "highest": {"candidate": high, "factor": factors[high]},
        "variants": [
            {"name": row["name"], "phi": row["phi"], "nominal": row["nominal_ratio"], "macs_ratio": row["macs_ratio"]}
            for row in facts.variants
            if row["phi"] != 0
        ],
    }


def held_out(facts: Facts) -> Values:
    """Validation less test accuracy of the choice and of the 1x network, which nobody chose; and what saw the test."""
    num_val = len(next(iter(next(iter(facts.finished.values())).values())))
    values: Values = {"num_val": num_val, "num_test": None, "seen": sorted(facts.test), "rows": []}
    drawn: dict[str, dict[int, float]] = {}
    for name in (facts.choice.chosen, BASELINE):
        scores = {one.seed: one for one in facts.test.get(name, ())}
        mine = {seed: scores[seed] for seed in facts.finished.get(name, {}) if seed in scores}
        if not mine:
            values["rows"].append({"network": name, "optimism": None, "command": facts.command("run")})
            continue
        values["num_test"] = next(iter(mine.values())).num_images
        seeds = {seed: facts.finished[name][seed].astype(np.float64) for seed in mine}  # each (N,)
        drawn[name] = {seed: float(seeds[seed].mean()) - mine[seed].accuracy for seed in mine}
        low, high = _optimism(list(drawn[name].values()), np.stack(list(seeds.values())), values["num_test"], facts)
        values["rows"].append(
            {
                "network": name,
                "val_accuracy": float(np.mean([images.mean() for images in seeds.values()])),
                "test_accuracy": float(np.mean([one.accuracy for one in mine.values()])),
                "optimism": float(np.mean(list(drawn[name].values()))),
                "low": low,
                "high": high,
                "seeds": len(mine),
            }
        )
    values["excess"] = _excess(facts, drawn, values["num_test"]) if len(drawn) == 2 else None
    return values


def _optimism(
    differences: Sequence[float], images: np.ndarray[Any, Any], num_test: int, facts: Facts
) -> tuple[float | None, float | None]:
    """Bounds of the mean of validation less test, over seeds and over both sets of images; None with one seed.

    images: for each seed and validation image 1, 0 or -1 (S, N). The test images, of which only the mean is kept, are
    taken to vary as those do.
    """
    if len(differences) < 2:
        return None, None
    by_image = images.mean(0)
    rest = images - by_image - images.mean(1, keepdims=True) + images.mean()
    num_seeds, num_val = images.shape
    noise = float((rest**2).sum()) / ((num_seeds - 1) * (num_val - 1)) / num_seeds
    of_image = max(0.0, float(by_image.var(ddof=1)) - noise)
    of_seeds = float(np.var(differences, ddof=1)) / num_seeds
    error, freedom = of_seeds + of_image * (1 / num_val + 1 / num_test), num_seeds - 1
    degrees = freedom * (error / of_seeds) ** 2 if of_seeds > 0 else math.inf
    one = Comparison(float(np.mean(differences)), math.sqrt(error), degrees, num_seeds, num_val, 0.0, 0.0)
    return _bounds(one, facts.confidence)


def _excess(facts: Facts, drawn: Mapping[str, Mapping[int, float]], num_test: int) -> Values | None:
    """The choice's optimism less the 1x network's, paired by seed and image: what choosing did, not the images."""
    chosen = facts.choice.chosen
    shared = sorted(drawn[chosen].keys() & drawn[BASELINE].keys())
    if not shared:
        return None
    differences = [drawn[chosen][seed] - drawn[BASELINE][seed] for seed in shared]
    images = np.stack([facts.finished[chosen][s].astype(np.float64) - facts.finished[BASELINE][s] for s in shared])
    low, high = _optimism(differences, images, num_test, facts)
    return {"difference": float(np.mean(differences)), "low": low, "high": high, "seeds": len(shared)}


def flatness(facts: Facts) -> Values:
    """What the splits that need no search lose against the best candidate, and how far the ties reach."""
    best = facts.candidates[facts.choice.best]
    tied = [best, *(facts.candidates[name] for name in facts.choice.tied)]
    spans = {}
    for name in ("alpha", "beta", "gamma"):
        values = [getattr(triple, name) for one in tied for triple in one.triples]
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
    best = facts.finished[facts.choice.best]
    coefficients = reference.coefficients
    values: Values = {
        "name": reference.name,
        "alpha": coefficients.alpha,
        "beta": coefficients.beta,
        "gamma": coefficients.gamma,
        "macs_ratio": reference.macs_ratio,
        "in_budget": reference.in_budget,
        "candidate": reference.candidate,
        "seeds": len(reference.seeds),
        "difference": None,
        "low": None,
        "high": None,
        "nearest": None,
        "problem": reference.problem or None,
        "command": reference.command or None,
    }
    if reference.candidate == facts.choice.best:
        return values | {"difference": 0.0, "low": 0.0, "high": 0.0}
    if reference.seeds:
        return values | _difference(facts.pairs.compare(best, reference.seeds), facts.confidence) | {"command": None}
    near = min(
        (distance(coefficients, triple), name)
        for name, one in facts.candidates.items()
        if name in facts.finished and name != BASELINE
        for triple in one.triples
    )
    nearest: Values = {"candidate": near[1], "distance": near[0]}
    if near[1] == facts.choice.best:
        nearest |= {"difference": 0.0, "low": 0.0, "high": 0.0}
    else:
        nearest |= _difference(facts.pairs.compare(best, facts.finished[near[1]]), facts.confidence)
    if reference.candidate is not None:  # planned, and nothing of it has finished
        values["command"] = facts.command("retry")
    return values | {"nearest": nearest}


def distance(one: Coefficients, other: Coefficients) -> float:
    """Between two splits, in doublings of cost: of depth, width squared and resolution squared together.

    >>> distance(Coefficients(2, 1, 1), Coefficients(1, 1, 2**0.5))
    1.4142135623730951
    """
    parts = zip(_triple(one), _triple(other), (1, 2, 2), strict=True)
    return math.sqrt(sum((weight * math.log2(a / b)) ** 2 for a, b, weight in parts))


KINDS = ("compound", "two", "single")


def kind(candidate: Candidate) -> str:
    """How many dimensions a network scales: "compound" all three, "two", "single"; "other" where one shrinks.

    A network that several triples round to counts where the fewest of them are scaled.
    """
    triple = min(candidate.triples, key=lambda one: sum(value != 1 for value in _triple(one)))
    number = sum(value != 1 for value in _triple(triple))
    return "other" if number == 0 or min(_triple(triple)) < 1 else ("single", "two", "compound")[number - 1]


def dimensions(facts: Facts) -> Values:
    """The best network that scales all three dimensions against the best mix of two, and the best of one.

    Each is the best of its kind, so the intervals cover all pairs of the two kinds at once (Bonferroni), and the
    verdict is about the kinds: "better" where the best compound network beats every one of the other kind, "worse"
    where the best of the other kind beats every compound one, else "unknown".
    """
    of_kind: dict[str, list[str]] = {name: [] for name in KINDS}
    for name in facts.means():
        of_kind.setdefault(kind(facts.candidates[name]), []).append(name)  # best first
    best = {name: _first(ids, facts.stopped) for name, ids in of_kind.items() if name in KINDS}
    means = facts.means()
    values: Values = {
        "kinds": {
            name: {"num": len(of_kind[name]), "best": best[name], "val_accuracy": means.get(best[name] or "")}
            for name in KINDS
        },
        "pairs": [],
        "command": None,
    }
    for against in KINDS[1:]:
        ours, theirs = best["compound"], best[against]
        if ours is None or theirs is None:
            tolerance, product = 2 * facts.budget.tolerance, 2 * float(facts.grid.product_tolerance)
            wider = f"budget.tolerance={tolerance:g}", f"grid.product_tolerance={product:g}"
            values["command"] = facts.command("run", *wider, anew=True)
            continue
        num_pairs = len(of_kind["compound"]) * len(of_kind[against])

        def bounds(one: str, other: str, num_pairs: int = num_pairs) -> tuple[float, float]:
            compared = facts.pairs.compare(facts.finished[one], facts.finished[other])
            return compared.interval(facts.confidence, pairs=num_pairs)

        verdict = "unknown"
        if all(bounds(ours, other)[0] > 0 for other in of_kind[against]):
            verdict = "better"
        elif all(bounds(one, theirs)[1] < 0 for one in of_kind["compound"]):
            verdict = "worse"
        compared = facts.pairs.compare(facts.finished[ours], facts.finished[theirs])
        values["pairs"].append(
            {"against": against, "compound": ours, "other": theirs, "num_pairs": num_pairs, "verdict": verdict}
            | _difference(compared, facts.confidence, pairs=num_pairs)
        )
    return values


def _first(names: Sequence[str], stopped: Mapping[str, str]) -> str | None:
    """The best that may be chosen, or else the best that was stopped."""
    return next((name for name in names if name not in stopped), names[0] if names else None)


def binding(facts: Facts) -> Values:
    """Where the choice lies within its budgets: between the edges of the tolerance, of each limit, and of the grid."""
    chosen, budget = facts.candidates[facts.choice.chosen], facts.budget
    most, least = ((1 + sign * budget.tolerance) * budget.macs_ratio for sign in (1, -1))
    place = (chosen.ratio / budget.macs_ratio - 1) / budget.tolerance if budget.tolerance else 0.0
    limits: list[Values] = []
    for name, limit in facts.limits.given().items():
        need = facts.needs.get(name)
        row: Values = {"metric": name, "limit": limit, "need": need, "share": need and need / limit, "command": None}
        if need is None:
            phis = sorted({1.0, *facts.settings["phis"]})
            row["command"] = facts.command("run", f"phis=[{','.join(f'{phi:g}' for phi in phis)}]")
        limits.append(row)
    edges = [
        f"grid.{name}"
        for name, axis in (("alpha", facts.grid.alpha), ("beta", facts.grid.beta), ("gamma", facts.grid.gamma))
        if len(axis.values()) > 1
        and any(math.isclose(getattr(t, name), float(axis.values()[-1])) for t in chosen.triples)
    ]
    binds = ["budget.tolerance"] if place > _AT_THE_EDGE else []
    binds += [f"budget.{row['metric']}" for row in limits if row["share"] is not None and row["share"] >= ENOUGH]
    effect = facts.choice.cost_effect
    return {
        "chosen": chosen.id,
        "macs_ratio": chosen.ratio,
        "least": least,
        "most": most,
        "place": place,
        "dearest": None if effect is None else effect.dearest,
        "limits": limits,
        "grid_edges": edges,
        "binds": binds,
    }


_AT_THE_EDGE = 0.8  # of the way from the middle of the tolerance to its upper edge


def order(facts: Facts) -> Values:
    """What fidelity.json says, by what the proxy was held against, and which of it was not measured."""
    rows = list(facts.fidelity or ())
    wanted = ("phi", "epochs", "proxy")
    missing = [name for name in wanted if name not in {row["against"] for row in rows}]
    commands = {name: _study_command(facts, "reproduce", "fidelity", f"against={name}") for name in missing}
    return {"rows": rows, "missing": commands}


def _study_command(facts: Facts, command: str, *more: str) -> str:
    names = [word for word in more if "=" not in word]
    place = [] if str(facts.workspace) == "workspace" else [f"workspace={facts.workspace}"]
    rest = [word for word in more if "=" in word]
    return " ".join(["scalesearch", command, *names, f"study={facts.study}", *rest, *place])


def explained(facts: Facts) -> Values:
    """Whether candidates are accurate because they cost more, and the order without that."""
    effect, budget = facts.choice.cost_effect, facts.budget
    if effect is None:
        return {"slope": None, "num_candidates": len(facts.means()), "macs_ratio": budget.macs_ratio}
    table = facts.choice.candidates.set_index("candidate")["val_accuracy_corrected"]
    ratios = [facts.candidates[name].ratio for name in effect.order]
    return {
        "slope": effect.slope,
        "low": effect.low,
        "high": effect.high,
        "shown": effect.shown,
        "share": None if math.isnan(effect.share) else effect.share,
        "doublings": math.log2(max(ratios) / min(ratios)),
        "num_candidates": len(effect.order),
        "macs_ratio": budget.macs_ratio,
        "chosen": facts.choice.chosen,
        "best": facts.choice.best,
        "dearest": effect.dearest,
        "order": list(effect.order),
        "corrected": {name: float(table[name]) for name in effect.order},
    }


class Question(NamedTuple):
    """What is asked, and the function that answers it."""

    words: str
    answer: Callable[[Facts], Values]


QUESTIONS: dict[str, Question] = {
    "neighbours": Question("Can the winner be told from its neighbours?", neighbours),
    "merged": Question("Are the neighbours different networks?", merged),
    "cost": Question("What does it cost really?", counted),
    "held_out": Question("Was it chosen on the data that it is scored on?", held_out),
    "flatness": Question("How flat is the optimum?", flatness),
    "dimensions": Question("Does scaling all three dimensions beat two, and one?", dimensions),
    "budget": Question("Which budget binds?", binding),
    "explained": Question("Is the accuracy explained by the cost alone?", explained),
    "order": Question("Does the order hold for larger networks, and is the proxy to be believed?", order),
}


def answers(facts: Facts) -> dict[str, Values]:
    """Every question's answer, and first what the study is."""
    head = {
        "study": facts.study,
        "confidence": facts.confidence,
        "rule": facts.rule,
        "metric": facts.metric,
        "seeds": max(len(of) for of in facts.finished.values()),
    }
    return {"about": head} | {name: question.answer(facts) for name, question in QUESTIONS.items()}


def _triple(coefficients: Coefficients) -> tuple[float, float, float]:
    return coefficients.alpha, coefficients.beta, coefficients.gamma


def _sizes(candidate: Candidate) -> Values:
    alpha, beta, gamma = _triple(candidate.coefficients)
    network = candidate.network
    sizes = {"depth": network.depth, "resolution": network.resolution, "macs_ratio": candidate.ratio}
    return {"alpha": alpha, "beta": beta, "gamma": gamma} | sizes


def _difference(compared: Comparison, confidence: float, *, pairs: int = 1) -> Values:
    low, high = _bounds(compared, confidence, pairs=pairs)
    return {"difference": compared.difference, "low": low, "high": high, "seeds": compared.num_seeds}


def _bounds(compared: Comparison, confidence: float, *, pairs: int = 1) -> tuple[float | None, float | None]:
    low, high = compared.interval(confidence, pairs=pairs)
    return (None, None) if math.isnan(low) else (low, high)
