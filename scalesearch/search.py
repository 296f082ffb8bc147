"""The grid search at phi = 1 (arXiv:1905.11946, section 3.3, step 1).

`candidates` lists what may be trained: the points of the grid that meet alpha * beta^2 * gamma^2 ~ 2, scaled,
counted, held to the budget, and merged where they are the same network. `grid` trains them through Optuna.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from scalesearch.budget import Budget, Limits, Meter, Needs
from scalesearch.cost import Cost, cost
from scalesearch.evaluation import Evaluation, Evaluator, Outcome
from scalesearch.model import identity
from scalesearch.network import AnyNetwork
from scalesearch.scaling import Coefficients, Rounding, scale
from scalesearch.training import Recipe

if TYPE_CHECKING:
    import optuna

BASELINE = "baseline"  # the id of the 1x network in every table


@dataclass(frozen=True)
class Axis:
    """Values of one coefficient: `start` to `stop` by `step`, exact decimals, `stop` included where it is hit."""

    start: Decimal
    stop: Decimal
    step: Decimal

    def values(self) -> list[Decimal]:
        return [self.start + self.step * index for index in range(int((self.stop - self.start) / self.step) + 1)]


@dataclass(frozen=True)
class Grid:
    """Points (alpha, beta, gamma); their product must be nearer to `product` than `product_tolerance`.

    In exact decimals: (1.9, 1, 1) is 0.1 from 2 and therefore out at a tolerance of 0.1, whatever binary floats say.
    """

    alpha: Axis
    beta: Axis
    gamma: Axis
    product: Decimal
    product_tolerance: Decimal

    def points(self) -> list[tuple[Decimal, Decimal, Decimal]]:
        return [
            (alpha, beta, gamma)
            for alpha in self.alpha.values()
            for beta in self.beta.values()
            for gamma in self.gamma.values()
        ]

    def admits(self, alpha: Decimal, beta: Decimal, gamma: Decimal) -> bool:
        return abs(alpha * beta**2 * gamma**2 - self.product) < self.product_tolerance


@dataclass(frozen=True)
class Candidate:
    """A network that meets both constraints, with all triples that round to it.

    `triples` starts with the one whose product is nearest to the grid's: it stands for the others.
    `ratio` is the counted cost over the 1x network's; `needs` are None where nobody asked for them.
    """

    id: str
    triples: tuple[Coefficients, ...]
    network: AnyNetwork
    cost: Cost
    ratio: float
    needs: Needs | None = None

    @property
    def coefficients(self) -> Coefficients:
        return self.triples[0]

    def sizes(self) -> dict[str, float]:
        """Nominal product, counted costs, needs, `depth` in blocks and `resolution` in px: what every table says."""
        return {
            "product": round(self.coefficients.product, 6),
            "macs": self.cost.macs,
            "macs_ratio": self.ratio,
            "params": self.cost.params,
            "activations": self.cost.activations,
            **(self.needs._asdict() if self.needs else {}),
            "depth": self.network.depth,
            "resolution": self.network.resolution,
        }


class Plan(NamedTuple):
    """The candidates, and what became of the other points of the grid, counted by rule.

    What to tell somebody whose constraints nothing meets: `nearest` are the points that came nearest to the budget,
    (coefficients, ratio), and `excess` those that met it but not the limits, (coefficients, share, metric), each best
    first.
    """

    baseline: Candidate
    points: int
    dropped: dict[str, int]
    candidates: list[Candidate]
    nearest: list[tuple[Coefficients, float]]
    excess: list[tuple[Coefficients, float, str]]


class Real(NamedTuple):
    """The network that a proxy stands for, with the rounding of its family, and what its variants may need."""

    network: AnyNetwork
    rounding: Rounding
    limits: Limits
    meter: Meter

    def most(self, coefficients: Coefficients) -> tuple[float, str]:
        """The variant at phi = 1 for these coefficients: the share of a limit that it needs, as `Limits.most`."""
        try:
            return self.limits.most(scale(self.network, coefficients, 1, rounding=self.rounding), self.meter)
        except ValueError:  # it cannot be
            return math.inf, next(iter(self.limits.given()))


def candidates(
    network: AnyNetwork, grid: Grid, budget: Budget, rounding: Rounding, *, real: Real | None = None
) -> Plan:
    """The plan for a network: nothing is trained, each point costs a fraction of a millisecond.

    A triple is dropped too where the variant of `real` exceeds a limit; finding that out may take longer.
    """
    base = cost(network)
    points = grid.points()
    dropped = {"product": 0, "impossible": 0, "budget": 0, "limits": 0}
    merged: dict[str, tuple[AnyNetwork, list[Coefficients]]] = {}
    nearest: list[tuple[Coefficients, float]] = []
    excess: list[tuple[Coefficients, float, str]] = []
    for point in points:
        if not grid.admits(*point):
            dropped["product"] += 1
            continue
        coefficients = Coefficients(*(float(value) for value in point))
        try:
            scaled = scale(network, coefficients, 1, rounding=rounding)
            ratio = cost(scaled).macs / base.macs
        except ValueError:  # a resolution below the total stride, say
            dropped["impossible"] += 1
            continue
        nearest.append((coefficients, ratio))
        if not budget.admits(ratio):
            dropped["budget"] += 1
            continue
        if real is not None and real.limits.given():
            share, metric = real.most(coefficients)
            if share > 1:
                dropped["limits"] += 1
                excess.append((coefficients, share, metric))
                continue
        merged.setdefault(json.dumps(identity(scaled)), (scaled, []))[1].append(coefficients)

    product = float(grid.product)
    width = max(2, len(str(len(merged))))
    chosen = []
    for index, (scaled, triples) in enumerate(merged.values(), start=1):
        triples.sort(key=lambda triple: (round(abs(triple.product - product), 9), triple.alpha, triple.beta))
        counted = cost(scaled)
        chosen.append(Candidate(f"c{index:0{width}d}", tuple(triples), scaled, counted, counted.macs / base.macs))
    nearest.sort(key=lambda pair: abs(math.log(pair[1] / budget.macs_ratio)))
    excess.sort(key=lambda one: one[1])
    baseline = Candidate(BASELINE, (Coefficients(1.0, 1.0, 1.0),), network, base, 1.0)
    return Plan(baseline, len(points), dropped, chosen, nearest[:5], excess[:5])


def measured(plan: Plan, meter: Meter) -> Plan:
    """The plan with what its networks need in memory and time; for a proxy that takes a tenth of a second each."""
    baseline, *others = (
        replace(candidate, needs=meter.needs(candidate.network)) for candidate in (plan.baseline, *plan.candidates)
    )
    return plan._replace(baseline=baseline, candidates=others)


class Trained(NamedTuple):
    """One outcome of the search: which candidate, and what became of this evaluation of it."""

    candidate: Candidate
    outcome: Outcome


def grid(
    plan: Plan,
    space: Grid,
    *,
    seeds: Sequence[int],
    recipe: Recipe,
    data: str,
    init: str | None,
    evaluator: Evaluator,
    storage: str,
    study: str,
) -> Iterator[Trained]:
    """Train the 1x network and every candidate with every seed; outcomes in the order in which they come.

    `data` and `init` are digests, as an `Evaluation` has them.
    In Optuna a candidate is a trial with its seeds as intermediate values and their mean as value. The ledger
    decides what is trained; the Optuna study only shows it, and may be deleted at any time.
    """
    import optuna

    with _storing(storage):
        shown = _open_study(storage, study)
        told = {
            trial.user_attrs["network"]: trial.user_attrs["finished"]
            for trial in shown.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
        }
    trials: dict[str, optuna.trial.Trial] = {}
    outcomes: dict[str, list[Outcome]] = {}
    owner: dict[Evaluation, list[Candidate]] = {}

    def wanted(candidate: Candidate) -> list[Evaluation]:
        return [Evaluation(candidate.network, recipe, data, seed, init) for seed in seeds]

    def evaluations() -> Iterator[Evaluation]:
        for candidate in (plan.baseline, *plan.candidates):
            network = wanted(candidate)[0].key
            if candidate.id != BASELINE and network not in told:
                with _storing(storage):
                    trials[candidate.id] = _ask(shown, space, candidate, network)
            for evaluation in wanted(candidate):
                owner.setdefault(evaluation, []).append(candidate)
                yield evaluation

    for outcome in evaluator.run(evaluations()):
        candidate = owner[outcome.evaluation].pop(0)
        yield Trained(candidate, outcome)
        mine = outcomes.setdefault(candidate.id, [])
        mine.append(outcome)
        if candidate.id != BASELINE and len(mine) == len(seeds):
            network = wanted(candidate)[0].key
            finished = sorted(o.evaluation.key for o in mine if o.result is not None)
            if told.get(network) != finished:  # else the study shows it already
                with _storing(storage):
                    _tell(shown, trials.get(candidate.id) or _ask(shown, space, candidate, network), mine, finished)


STRATEGIES = {"grid": grid}


@contextlib.contextmanager
def _storing(storage: str) -> Iterator[None]:
    """Whatever Optuna's storage raises (a full disk, a damaged file) comes out as an OSError that names it."""
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as error:
        said = str(error.__cause__ or error).strip().partition("\n")[0]
        raise OSError(
            f"Optuna's storage {storage} cannot be used: {said}. Free the disk, or delete that file, which only shows "
            "the search; then the same command goes on"
        ) from error


def _open_study(storage: str, name: str) -> optuna.Study:
    """The study, made if it is new. Trials that an interrupted driver left open are told as failed; the study's
    lock says that no other driver is alive."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
    while study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,)):
        study.ask()
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study


def _ask(study: optuna.Study, space: Grid, candidate: Candidate, network: str) -> optuna.trial.Trial:
    import optuna

    chosen = candidate.coefficients
    study.enqueue_trial({"alpha": chosen.alpha, "beta": chosen.beta, "gamma": chosen.gamma})
    trial = study.ask(
        {
            name: optuna.distributions.FloatDistribution(
                float(axis.start), float(axis.values()[-1]), step=float(axis.step)
            )
            for name, axis in (("alpha", space.alpha), ("beta", space.beta), ("gamma", space.gamma))
        }
    )
    for name, value in {
        "network": network,
        "candidate": candidate.id,
        "triples": json.dumps([[t.alpha, t.beta, t.gamma] for t in candidate.triples]),
        "product": round(chosen.product, 6),
        "macs": candidate.cost.macs,
        "macs_ratio": candidate.ratio,
        "params": candidate.cost.params,
        "resolution": candidate.network.resolution,
    }.items():
        trial.set_user_attr(name, value)
    return trial


def _tell(study: optuna.Study, trial: optuna.trial.Trial, outcomes: Sequence[Outcome], finished: list[str]) -> None:
    """Seeds as intermediate values, their mean as value; a candidate of which nothing finished has failed."""
    import optuna

    values = []
    for outcome in sorted(outcomes, key=lambda o: o.evaluation.seed):
        if outcome.result is None:
            trial.set_user_attr(f"failed_seed_{outcome.evaluation.seed}", outcome.reason)
        else:
            values.append(outcome.result.val_accuracy)
            trial.report(values[-1], step=outcome.evaluation.seed)
    trial.set_user_attr("finished", finished)
    if values:
        study.tell(trial, sum(values) / len(values))
    else:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)


def sqlite(path: Path) -> str:
    """The Optuna storage URL of a file."""
    return f"sqlite:///{path.absolute()}"
