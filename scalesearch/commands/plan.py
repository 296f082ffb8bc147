"""what run would do, and what it would cost, before anything is trained"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scalesearch.commands.run import COEFFICIENT_COLUMNS, GROUPS, Arguments
from scalesearch.text import count, duration, plural
from scalesearch.workspace import DONE

if TYPE_CHECKING:
    from scalesearch.config import Groups
    from scalesearch.screen import Screen
    from scalesearch.search import Candidate, Plan
    from scalesearch.study import StudySettings

__all__ = ["GROUPS", "Arguments"]
EXAMPLE = "scalesearch plan baseline=mobilenetv2 budget.tolerance=0.05"


def run(arguments: Arguments, groups: Groups, out: Screen) -> int:
    """The candidates with their cost and footprint at once, then the time that the search is expected to take.

    Latencies are shown where they are known, and measured by `run`, or here where they decide something.
    """
    from scalesearch import search
    from scalesearch.planning import estimated_seconds, num_evaluations, planned, refuse_infeasible, summary
    from scalesearch.session import Session
    from scalesearch.study import StudySettings

    settings = StudySettings.of(groups)
    plan, profiler = planned(settings, measured=False)
    out.say(summary(plan, settings))
    for note in settings.description.notes:
        out.warn(note)
    evaluations, seconds = 0, 0.0
    if plan.candidates:
        _show(out, plan)
        plan = search.measured(plan, profiler)
        _show_needs(out, plan)
        evaluations = num_evaluations(plan, settings)
        with Session(settings.workspace, settings.executor, out) as session:
            seconds = estimated_seconds(plan, settings, session)
        out.say(
            f"about {plural(evaluations, 'training')} by {_strategy(settings)} "
            f"({plural(len(plan.candidates), 'candidate')} and the 1x network); "
            f"expected time on this machine: {duration(seconds)}"
        )
        if (regret := settings.search.regret) is not None:
            once = seconds * (settings.seeds + len(plan.candidates)) / evaluations
            out.say(
                f"search.regret={regret:g} ends it once the choice is expected to lose less than {regret:g} points: "
                f"after {duration(once)} (every candidate once) at the earliest, else when search.compute is used up"
            )
    values = _values(settings, plan)
    out.answer(values | {"evaluations": evaluations, "estimated_seconds": round(seconds, 1)})
    refuse_infeasible(plan, settings)
    return DONE


def _values(settings: StudySettings, plan: Plan) -> dict[str, Any]:
    from scalesearch.cost import cost, uncounted
    from scalesearch.study import candidate_values, point
    from scalesearch.training import few_steps

    full, grid = cost(settings.baseline), settings.grid
    return {
        "study": settings.study,
        "steps": settings.recipe.num_steps(settings.description.num_train),
        "few_steps": few_steps(settings.recipe, settings.description.num_train),
        "baseline": candidate_values(plan.baseline) | {"name": settings.baseline.name},
        "full_baseline": {
            "name": settings.baseline.name,
            "macs": full.macs,
            "params": full.params,
            "activations": full.activations,
            "depth": settings.baseline.depth,
            "resolution": settings.baseline.resolution,
        },
        **({} if settings.target is None else {"target": {"macs_ratio": settings.target_ratio}}),
        "grid": {
            "points": plan.points,
            "product": float(grid.product),
            "product_tolerance": float(grid.product_tolerance),
        },
        "dropped": plan.dropped,
        "impossible": [{"reason": reason, "points": number} for reason, number in plan.impossible.items()],
        "unscaled": plan.unscaled,
        "uncounted": uncounted(plan.baseline.network),
        "merged": sum(len(candidate.triples) - 1 for candidate in plan.candidates),
        "candidates": [candidate_values(candidate) for candidate in plan.candidates],
        "nearest": [point(coefficients, ratio) for coefficients, ratio in plan.nearest],
        "limits": settings.limits.given(),
        "excess": [point(one) | {"metric": metric, "share": share} for one, share, metric in plan.excess],
    }


def _strategy(settings: StudySettings) -> str:
    return f"search={settings.search.name}" if settings.target is None else "target.splits and target.seeds"


def _show(out: Screen, plan: Plan) -> None:
    rows = [_row(candidate) for candidate in (plan.baseline, *plan.candidates)]
    sizes = {"macs": "multiply-adds", "params": "params", "depth": "blocks", "resolution": "px", "also": "also"}
    out.table("Candidates", rows, COEFFICIENT_COLUMNS | sizes)


def _show_needs(out: Screen, plan: Plan) -> None:
    from scalesearch.commands._family import FOOTPRINT_COLUMNS

    rows = [_row(candidate) for candidate in (plan.baseline, *plan.candidates)]
    out.table("What they need", rows, {"candidate": "network"} | FOOTPRINT_COLUMNS)


def _row(candidate: Candidate) -> dict[str, str]:
    from scalesearch.commands._family import footprint_words

    coefficients = candidate.coefficients
    return {
        "candidate": candidate.id,
        "alpha": f"{coefficients.alpha:g}",
        "beta": f"{coefficients.beta:g}",
        "gamma": f"{coefficients.gamma:g}",
        "product": f"{coefficients.product:.3f}",
        "macs_ratio": f"{candidate.ratio:.3f}",
        "macs": count(candidate.cost.macs),
        "params": count(candidate.cost.params),
        "depth": f"{candidate.network.depth:.4g}",
        "resolution": str(candidate.network.resolution),
        **footprint_words(candidate.sizes()),
        "also": "; ".join(f"{t.alpha:g}, {t.beta:g}, {t.gamma:g}" for t in candidate.triples[1:]),
    }
