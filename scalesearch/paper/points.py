"""What the paper's experiments are made of: points, each a network with a recipe, trained with several seeds.

An experiment lists its points; here they are matched in counted cost, trained as evaluations of the ledger, and put
into a table of one row an evaluation, from which everything else follows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scalesearch import pretrained
from scalesearch.budget import Limits, Profiler
from scalesearch.cost import cost
from scalesearch.data import DataSpec, load
from scalesearch.evaluation import Evaluation, Evaluator, Outcome
from scalesearch.executor import LocalExecutor, RayExecutor
from scalesearch.fitting import fit
from scalesearch.ledger import Ledger
from scalesearch.network import AnyNetwork, Factory
from scalesearch.scaling import Coefficients, Rounding, resize
from scalesearch.training import Recipe

if TYPE_CHECKING:
    import pandas as pd

Correct = NDArray[np.bool_]
MATCHED = 0.03  # how far the counted costs of points that are compared may lie apart
_ROOM = 1.01  # `fit` uses 98 to 100 % of a limit; so much more of it lies around what is wanted


@dataclass(frozen=True, kw_only=True)
class Point:
    """A dot of a figure or a row of a table: a network, and how it is trained.

    curve: the line that it belongs to, such as "depth"; with `label`, what stands beside the dot, it is its name.
    at: where on the curve: the nominal multiple of the baseline's cost, a coefficient, a number of epochs.
    depth, width, resolution: multipliers of `base`, before rounding.
    moves: departures from the rule of rounding that bring it to its cost.
    init: digest of the weights that it starts from; after: or the point whose weights, of the same seed, they are.
    """

    curve: str
    label: str
    at: float
    depth: float
    width: float
    resolution: float
    base: AnyNetwork
    network: AnyNetwork
    recipe: Recipe
    data: DataSpec
    moves: tuple[str, ...] = ()
    init: str | None = None
    after: Point | None = None


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What an experiment is carried out on: baselines fitted to the data and made small, and how they are trained."""

    baselines: Mapping[str, AnyNetwork]
    rounding: Rounding
    recipe: Recipe
    seeds: int
    data: DataSpec
    target: DataSpec | None  # that networks are tuned on
    init: Mapping[str, str]  # digest of initial weights by baseline; empty where chance draws them

    @property
    def baseline(self) -> AnyNetwork:
        """The only one. Errors: ValueError where there are several."""
        if len(self.baselines) != 1:
            raise ValueError(f"this experiment has one baseline; given: {', '.join(self.baselines)}")
        return next(iter(self.baselines.values()))

    def point(self, curve: str, label: str, at: float, network: AnyNetwork, **values: Any) -> Point:
        """A point of this setting; `values` are the others of `Point`, of which the usual ones are filled in."""
        usual: dict[str, Any] = {
            "depth": 1.0,
            "width": 1.0,
            "resolution": 1.0,
            "recipe": self.recipe,
            "data": self.data,
        }
        if "base" not in values:
            usual["base"] = self.baseline
        return Point(curve=curve, label=label, at=at, network=network, **(usual | values))

    def resized(self, curve: str, label: str, at: float, base: AnyNetwork, **multipliers: float) -> Point:
        """The point of `base` with depth, width and resolution multiplied and rounded, at whatever that costs."""
        network = resize(base, rounding=self.rounding, name=_name(base, curve, f"{at:g}"), **multipliers)
        return self.point(curve, label, at, network, base=base, **multipliers)

    def matched(self, curve: str, ratio: float, base: AnyNetwork, coefficients: Coefficients, **values: Any) -> Point:
        """The point of `base` scaled along `coefficients` until it costs `ratio` times as much, counted.

        Errors: ValueError where no network costs that within `MATCHED`.
        """
        limits = Limits(macs=_ROOM * ratio * cost(base).macs)
        variant = fit(
            base, coefficients, limits, rounding=self.rounding, meter=Profiler(batch_size=self.recipe.batch_size)
        ).variant
        if abs(variant.macs_ratio / ratio - 1) > MATCHED:
            raise ValueError(
                f"{curve} at {ratio:g} times the cost of {base.name}: the nearest network has {variant.macs_ratio:.3f} "
                f"times, more than {100 * MATCHED:g} % off. A finer rounding, such as rounding=fine, or a larger "
                "baseline has one"
            )
        depth, width, resolution = coefficients.multipliers(variant.phi)
        network = replace(variant.network, name=_name(base, curve, f"{ratio:g}x"))
        return self.point(
            curve,
            multipliers_label(depth, width, resolution),
            ratio,
            network,
            base=base,
            depth=depth,
            width=width,
            resolution=resolution,
            moves=tuple(map(str, variant.moves)),
            **values,
        )


def _name(base: AnyNetwork, *words: str) -> str:
    """A network's name, which is fit for a file's: "preresnet_tiny_depth+width_4x"."""
    return re.sub(r"[^A-Za-z0-9_.+-]+", "", "_".join([base.name, *words]))


def multipliers_label(depth: float, width: float, resolution: float) -> str:
    """What stands beside a dot, as in the paper's figures: only what is scaled.

    >>> multipliers_label(1.4, 1.2, 1.0)
    'd=1.4, w=1.2'
    """
    named = {"d": depth, "w": width, "r": resolution}
    return ", ".join(f"{name}={value:.1f}" for name, value in named.items() if abs(value - 1) > 0.005) or "1x"


def coefficients_of(*dimensions: str) -> Coefficients:
    """Coefficients that split a doubling equally between dimensions: alpha * beta^2 * gamma^2 is 2.

    >>> coefficients_of("width")
    Coefficients(alpha=1, beta=1.4142135623730951, gamma=1)
    """
    share = 2.0 ** (1 / len(dimensions))
    return Coefficients(
        share if "depth" in dimensions else 1,
        math.sqrt(share) if "width" in dimensions else 1,
        math.sqrt(share) if "resolution" in dimensions else 1,
    )


class Trainings:
    """Carries points out: each with every seed, those first that others start from, dataset by dataset."""

    def __init__(
        self, points: Sequence[Point], setting: Setting, ledger: Ledger, *, log: Callable[[str], object] = print
    ) -> None:
        self.points, self.setting, self.ledger, self._log = points, setting, ledger, log
        self.outcomes: dict[tuple[str, str, int], Outcome] = {}
        self._fingerprints: dict[DataSpec, str] = {}

    @property
    def total(self) -> int:
        return len(self.points) * self.setting.seeds

    def run(
        self,
        executor: LocalExecutor | RayExecutor,
        *,
        shown: Callable[[Point, Outcome], None],
    ) -> None:
        """Every point with every seed; one that starts from a training that failed has failed with its reason."""
        waves = [[point for point in self.points if (point.after is not None) is later] for later in (False, True)]
        for wave in waves:
            for data in dict.fromkeys(point.data for point in wave):
                # Several points may be one training: the 1x network of three curves, say.
                asked: dict[str, list[tuple[Point, Evaluation]]] = {}
                for point in wave:
                    if point.data == data:
                        for seed in range(self.setting.seeds):
                            evaluation = self.evaluation(point, seed)
                            if evaluation is not None:
                                asked.setdefault(evaluation.key, []).append((point, evaluation))
                            else:
                                assert point.after is not None
                                first = self.outcomes[_place(point.after, seed)]
                                outcome = Outcome(
                                    first.evaluation, None, f"what it starts from failed: {first.reason}", True
                                )
                                self.outcomes[_place(point, seed)] = outcome
                                shown(point, outcome)
                evaluator = Evaluator(self.ledger, executor, data)
                for outcome in evaluator.run(rows[0][1] for rows in asked.values()):
                    for point, _ in asked[outcome.evaluation.key]:
                        self.outcomes[_place(point, outcome.evaluation.seed)] = outcome
                        shown(point, outcome)

    def test(self, executor: LocalExecutor | RayExecutor) -> dict[str, float]:
        """Test accuracy of every finished training, by its key."""
        found: dict[str, float] = {}
        for data in dict.fromkeys(point.data for point in self.points):
            evaluations = {
                outcome.evaluation.key: outcome.evaluation
                for point in self.points
                for seed in range(self.setting.seeds)
                if point.data == data and (outcome := self.outcomes[_place(point, seed)]).result is not None
            }
            scored = Evaluator(self.ledger, executor, data).test(list(evaluations.values()))
            found |= {key: values["test_accuracy"] for key, values in zip(evaluations, scored, strict=True)}
        return found

    def evaluation(self, point: Point, seed: int) -> Evaluation | None:
        """The training of a point from a seed; None where that starts from one that has not finished."""
        if point.after is not None:
            first = self.outcomes.get(_place(point.after, seed))
            return None if first is None or first.result is None else self.started(point, first.evaluation)
        return Evaluation(point.network, point.recipe, self._fingerprint(point.data), seed, point.init)

    def started(self, point: Point, first: Evaluation) -> Evaluation:
        """The training of a point from the weights that a finished one left."""
        left = str(self.ledger.weights_path(first.key))
        initial = pretrained.fetch(left, [first.network], warn=lambda words: None)  # named by place, for other classes
        self.ledger.keep_initial(initial.digest, initial.content)
        return Evaluation(point.network, point.recipe, self._fingerprint(point.data), first.seed, initial.digest)

    def _fingerprint(self, data: DataSpec) -> str:
        if data not in self._fingerprints:
            self._fingerprints[data] = load(data, log=self._log).fingerprint
        return self._fingerprints[data]

    def outcome(self, point: Point, seed: int) -> Outcome:
        return self.outcomes[_place(point, seed)]

    def correct(self) -> dict[str, Correct]:
        """By key of a finished training: whether it is right, for each validation image."""
        return {
            outcome.evaluation.key: outcome.result.correct
            for outcome in self.outcomes.values()
            if outcome.result is not None
        }

    def table(self, test: Mapping[str, float] | None = None) -> pd.DataFrame:
        """A row a point and seed, as results.csv has it; accuracies are fractions, NaN where a training failed."""
        import pandas as pd

        rows = []
        for point in self.points:
            for seed in range(self.setting.seeds):
                outcome = self.outcomes[_place(point, seed)]
                result, key = outcome.result, outcome.evaluation.key
                rows.append(
                    point_values(point)
                    | {
                        "seed": seed,
                        "state": "failed" if result is None else "finished",
                        "val_accuracy": math.nan if result is None else result.val_accuracy,
                        "val_loss": math.nan if result is None else result.val_loss,
                        **({} if test is None else {"test_accuracy": test.get(key, math.nan)}),
                        "train_seconds": math.nan if result is None else round(result.train_seconds, 2),
                        "precision": outcome.precision,
                        "key": key,
                        "reason": outcome.reason,
                    }
                )
        return pd.DataFrame(rows)


def _place(point: Point, seed: int) -> tuple[str, str, int]:
    return point.curve, f"{point.label}|{point.at!r}", seed


def point_values(point: Point) -> dict[str, Any]:
    """What results.csv and the plan say of a point; multipliers as they were before rounding."""
    counted = cost(point.network)
    return {
        "curve": point.curve,
        "label": point.label,
        "at": point.at,
        "depth": round(point.depth, 4),
        "width": round(point.width, 4),
        "resolution": round(point.resolution, 4),
        "pixels": point.network.resolution,
        "blocks": round(point.network.depth, 4) if isinstance(point.network, Factory) else point.network.depth,
        "macs": counted.macs,
        "macs_ratio": round(counted.macs / cost(point.base).macs, 5),
        "params": counted.params,
        "moves": "; ".join(point.moves),
        "data": point.data.name,
        "epochs": point.recipe.epochs,
    }
