"""What a search would train, in how long, and why it may not: before anything is trained."""

from __future__ import annotations

import math
import time
from dataclasses import replace

from scalesearch import search
from scalesearch.budget import Limits, Profiler, written
from scalesearch.cost import seed_words, uncounted, uncounted_words
from scalesearch.evaluation import Work
from scalesearch.network import AnyNetwork, Factory
from scalesearch.probing import grain_line, proxied
from scalesearch.scaling import Coefficients, Rounding, uneven_channels
from scalesearch.search import Plan
from scalesearch.session import Session
from scalesearch.study import StudySettings
from scalesearch.text import count, listed, override, plural
from scalesearch.training import check_average, few_steps
from scalesearch.workspace import Infeasible


def planned(settings: StudySettings, *, measured: bool = True) -> tuple[Plan, Profiler]:
    """The plan with the footprints of its networks: measured now, before workers make the machine busy.

    measured: False leaves the footprints out; the profiler then times only where the latency decides something.

    Raises: ValueError where the recipe's average of weights needs longer trainings.
    """
    times = measured or settings.selection.metric == "latency_ms"
    profiler = Profiler(batch_size=settings.recipe.batch_size, workspace=settings.workspace, times=times)
    real = search.Real(settings.baseline, settings.rounding, settings.limits, profiler)
    network, rounding = settings.proxy_network
    solves = settings.search.solves_gamma
    if settings.target is None:
        plan = search.candidates(network, settings.grid, settings.budget, rounding, real=real, solve_gamma=solves)
    else:
        costs = search.costs_of(settings.target, settings.target_ratio)
        plan = search.targeted(network, settings.budget, rounding, costs=costs, number=settings.target.splits)
    for _, share in settings.search.strategy.possible(settings.problem(plan)):
        check_average(search.shortened(settings.recipe, share), settings.description.num_train)
    return (search.measured(plan, profiler) if measured and plan.candidates else plan), profiler


def refuse_infeasible(plan: Plan, settings: StudySettings) -> None:
    """Raises: Infeasible where there is no candidate, with the nearest points; ValueError where none can be chosen."""
    if settings.target is not None:
        _refuse_target(plan, settings)
        return
    if plan.candidates:
        metric = settings.selection.metric
        if all(candidate.sizes().get(metric, 0) is None for candidate in plan.candidates):
            raise ValueError(
                f"selection.metric is {metric!r}, but the candidates are too large to be measured in it here; choose "
                "by another one, such as selection.metric=macs"
            )
        return
    budget, grid = settings.budget, settings.grid
    if plan.excess:
        nearest = "; ".join(f"{share:.3g} x budget.{metric} ({_triple(c)})" for c, share, metric in plan.excess)
        raise Infeasible(
            f"no candidate: of {plural(plan.dropped['limits'], 'triple')} that met the budget of multiply-adds, "
            f"{settings.baseline.name} at phi = 1 needs more than {limits_words(settings.limits)}; the nearest: "
            f"{nearest}. Raise the limit, or lower budget.macs_ratio and grid.product"
        )
    if not plan.nearest:
        raise Infeasible(
            f"of the grid's {plural(plan.points, 'point')} none has a product nearer than {grid.product_tolerance} to "
            f"{grid.product}.{_reach_words(settings)} Raise grid.product_tolerance, or widen an axis or lower its step"
        )
    nearest = "; ".join(f"{ratio:.3f} x ({_triple(c)})" for c, ratio in plan.nearest)
    raise Infeasible(
        f"no candidate is within {100 * budget.tolerance:g} % of {budget.macs_ratio:g} x the counted multiply-adds of "
        f"the 1x network; the nearest: {nearest}. Raise budget.tolerance, or lower a step of the grid"
    )


def _reach_words(settings: StudySettings) -> str:
    """Where the axes end short of the product: how far they reach, and what finds a split at that cost."""
    grid = settings.grid
    ends = [[axis.values()[end] for axis in (grid.alpha, grid.beta, grid.gamma)] for end in (0, -1)]
    low, high = (float(alpha * beta**2 * gamma**2) for alpha, beta, gamma in ends)
    if low <= grid.product <= high:
        return ""
    target = ""
    if settings.budget.macs_ratio > 1.01:
        wanted = override("target.macs_ratio", settings.budget.macs_ratio)
        target = f" For the best split at {settings.budget.macs_ratio:g} x the cost, from trainings of less: {wanted}."
    return f" Its axes reach products from {low:.4g} to {high:.4g}.{target}"


def _refuse_target(plan: Plan, settings: StudySettings) -> None:
    """Raises: Infeasible where too few candidates meet their costs, or no network the target's."""
    tolerance = f"within {100 * settings.budget.tolerance:g} %"
    if len(plan.candidates) < 3:
        nearest = "; ".join(f"{ratio:.3f} x ({_triple(c)})" for c, ratio in plan.nearest)
        raise Infeasible(
            f"{len(plan.candidates)} of {plan.points} splits are networks {tolerance} of a cost of target.costs; three "
            f"are needed. {f'The nearest: {nearest}. ' if nearest else ''}Raise budget.tolerance, take a larger proxy "
            "or a finer rounding, such as rounding=fine"
        )
    ratio, rounding = settings.target_ratio, settings.rounding
    proxy, grain = settings.proxy_network
    missed = []
    for split in search.every_split(plan):
        try:
            found = search.realised(settings.baseline, split, ratio, rounding).ratio
            _ = search.realised(proxy, split, ratio, grain)
        except ValueError as error:
            missed.append((math.inf, str(error)))
            continue
        if settings.budget.near(found, ratio):
            return
        missed.append((found, f"the nearest has {found:.3f} x"))
    why = min(missed, key=lambda one: abs(one[0] - ratio))[1]
    raise Infeasible(
        f"no split of {settings.baseline.name} is a network {tolerance} of {ratio:.4g} x its multiply-adds, the "
        f"target: {why}. Raise budget.tolerance, or choose another target"
    )


def num_evaluations(plan: Plan, settings: StudySettings) -> int:
    """About how many trainings there will be, the 1x network's among them."""
    return settings.seeds + sum(number for number, _ in settings.expected(plan))


def estimated_seconds(plan: Plan, settings: StudySettings, session: Session) -> float:
    """Seconds of the whole search, from timing its networks in workers as it would train them."""
    sizes, recipe = settings.description, settings.recipe
    whole = sum(number * share for number, share in settings.expected(plan)) / len(plan.candidates)
    work = [Work(candidate.network, recipe, sizes, whole) for candidate in plan.candidates]
    work.append(Work(plan.baseline.network, recipe, sizes, settings.seeds))
    return _STARTS * _CPU_SECONDS_TO_IMPORT + session.estimated_seconds(work, settings.data)


# Starting workers, the test split, figures and MLflow take about as long as so many starts of this program.
_STARTS = 12.0
_CPU_SECONDS_TO_IMPORT = time.process_time()  # how fast this machine is at it


def summary(plan: Plan, settings: StudySettings) -> str:
    """What is searched, what each rule dropped from the grid, and how many networks are left; several lines."""
    network, known = plan.baseline.network, settings.description
    return "\n".join(
        [
            f"study {settings.study}",
            f"1x network: {settings.baseline.name} as a proxy of {_depth_words(network)} at {network.resolution} px, "
            f"{count(plan.baseline.cost.macs)} multiply-adds, {count(plan.baseline.cost.params)} params",
            *_searched_words(plan, settings),
            f"data: {known.name}, {plural(known.num_train, 'image')} for training and {known.num_val} for validation",
            *_found_words(plan, settings),
            *filter(None, [few_steps(settings.recipe, known.num_train)]),
            *grain_words(network, settings.proxy_network[1]),
            *uncounted_words(uncounted(network)),
            *seed_words(network),
        ]
    )


def _searched_words(plan: Plan, settings: StudySettings) -> list[str]:
    """What is searched, what was dropped and how many networks are left."""
    budget, grid, dropped = settings.budget, settings.grid, plan.dropped
    impossible = f", {dropped['impossible']} that no network can have{_reasons(plan)}" if dropped["impossible"] else ""
    if settings.target is not None:
        costs = listed([f"{one:g} x" for one in search.costs_of(settings.target, settings.target_ratio)])
        return [
            f"target: {settings.target_ratio:.4g} x the multiply-adds of {settings.baseline.name}; trained at {costs} "
            f"those of the 1x network, {plan.points} splits; dropped: {dropped['budget']} whose counted cost is not "
            f"within {100 * budget.tolerance:g} %{impossible}",
            f"{len(plan.candidates)} different networks are left, each with {plural(settings.target.seeds, 'seed')}; "
            "of the groups grid and search nothing but search.confidence counts here, and of budget its tolerance",
        ]
    triples, number = sum(len(candidate.triples) for candidate in plan.candidates), len(plan.candidates)
    networks = "which is one network" if number == 1 else f"which are {number} different networks"
    return [
        f"{plural(plan.points, 'point')} of the grid; dropped: {dropped['product']} whose product is not nearer "
        f"than {grid.product_tolerance} to {grid.product}, {dropped['budget']} whose counted cost is not within "
        f"{100 * budget.tolerance:g} % of {budget.macs_ratio:g} x"
        + impossible
        + (
            f", {dropped['limits']} whose variant at phi = 1 needs more than {limits_words(settings.limits)}"
            if dropped["limits"]
            else ""
        ),
        f"{plural(triples, 'triple')} {'is' if triples == 1 else 'are'} left, {networks}",
    ]


def _reasons(plan: Plan) -> str:
    """Why points are no networks: the most frequent reasons, with how many points each has."""
    shown = [f"{number} x {reason}" for reason, number in list(plan.impossible.items())[:_MOST_REASONS]]
    more = len(plan.impossible) - len(shown)
    return f" ({'; '.join(shown)}{f'; {more} other reasons' if more > 0 else ''})"


_MOST_REASONS = 3


def _found_words(plan: Plan, settings: StudySettings) -> list[str]:
    """What was found by trying a user's function: its proxy, its grain, dimensions that it does not scale."""
    sizes = settings.description
    fitted = replace(settings.baseline, in_channels=sizes.in_channels, num_classes=sizes.num_classes)
    why = proxied(fitted, settings.proxy, settings.rounding).why
    return [
        *([why] if why else []),
        *grain_line(plan.baseline.network),
        *(f"{name} {why}: it stays at 1, and is no dimension of the grid" for name, why in plan.unscaled.items()),
    ]


def grain_words(network: AnyNetwork, rounding: Rounding) -> list[str]:
    """A line that warns of a rounding too coarse for the channels of `network`; none where it suits them."""
    uneven = uneven_channels(network, rounding)
    if not uneven:
        return []
    return [
        f"{', '.join(map(str, uneven))} channels are no multiples of {rounding.divisor}, the divisor of rounding "
        f"{rounding.name}: every scaling moves them to one, whatever it costs; rounding=fine goes in steps of 2"
    ]


def limits_words(limits: Limits) -> str:
    """Every limit as it is written on the command line."""
    return " or ".join(f"budget.{name}={written(name, limit)}" for name, limit in limits.given().items())


def _depth_words(network: AnyNetwork) -> str:
    if isinstance(network, Factory):  # a proxy's total stride cannot reach into a function
        return f"depth {network.depth:g} and width {network.width:g} times {network.function}, its own strides,"
    return plural(network.depth, "block")


def _triple(coefficients: Coefficients) -> str:
    return f"alpha={coefficients.alpha:g}, beta={coefficients.beta:g}, gamma={coefficients.gamma:g}"
