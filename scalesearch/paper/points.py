"""What the paper's experiments are made of: points, each a network with a recipe, trained with several seeds.

An experiment lists its points; here they are matched in counted cost, trained as evaluations of the ledger, and put
into a table of one row per evaluation, from which everything else follows.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scalesearch import pretrained
from scalesearch.budget import Limits, Profiler
from scalesearch.cost import cost
from scalesearch.data import DataSpec
from scalesearch.evaluation import Evaluation, Outcome
from scalesearch.fitting import fit
from scalesearch.network import AnyNetwork, Factory
from scalesearch.scaling import Coefficients, Rounding, resize
from scalesearch.screen import Progress
from scalesearch.session import Learnt, Session
from scalesearch.tracking import CommandLog
from scalesearch.training import Recipe

if TYPE_CHECKING:
    import pandas as pd

Correct = NDArray[np.bool_]  # whether a training is right, for each validation image
CorrectByKey = Mapping[str, Correct]
SINGLE = ("depth", "width", "resolution")  # names of curves, in the words and the order of the paper's figures
MIXES = ("depth + width", "depth + resolution", "width + resolution")
COMPOUND, BASELINE = "compound", "baseline"
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
    """What an experiment is run on: baselines fitted to the data and made small, and how they are trained."""

    baselines: Mapping[str, AnyNetwork]
    rounding: Rounding
    recipe: Recipe
    seeds: int
    data: DataSpec
    target: DataSpec | None  # that networks are tuned on
    init: Mapping[str, str]  # digest of initial weights by baseline; empty where chance draws them

    @property
    def baseline(self) -> AnyNetwork:
        """The only one. Raises: ValueError where there are several."""
        if len(self.baselines) != 1:
            raise ValueError(f"this experiment has one baseline; given: {', '.join(self.baselines)}")
        return next(iter(self.baselines.values()))

    def point(self, curve: str, label: str, at: float, network: AnyNetwork, **values: Any) -> Point:
        """A point of this setting; `values` are the others of `Point`, of which the usual ones are filled in."""
        if "base" not in values:
            values["base"] = self.baseline
        usual: dict[str, Any] = dict.fromkeys(SINGLE, 1.0) | {"recipe": self.recipe, "data": self.data}
        return Point(curve=curve, label=label, at=at, network=network, **(usual | values))

    def resized(self, curve: str, label: str, at: float, base: AnyNetwork, **multipliers: float) -> Point:
        """The point of `base` with depth, width and resolution multiplied and rounded, at whatever that costs."""
        network = resize(base, rounding=self.rounding, name=_name(base, curve, f"{at:g}"), **multipliers)
        return self.point(curve, label, at, network, base=base, **multipliers)

    def matched(self, curve: str, ratio: float, base: AnyNetwork, coefficients: Coefficients, **values: Any) -> Point:
        """The point of `base` scaled along `coefficients` until it costs `ratio` times as much, counted.

        Raises: ValueError where no network costs that within `MATCHED`.
        """
        limits = Limits(macs=_ROOM * ratio * cost(base).macs)
        variant = fit(
            base, coefficients, limits, rounding=self.rounding, profiler=Profiler(batch_size=self.recipe.batch_size)
        ).variant
        if abs(variant.macs_ratio / ratio - 1) > MATCHED:
            raise ValueError(
                f"{curve} at {ratio:g} times the cost of {base.name}: the nearest network has {variant.macs_ratio:.3f} "
                f"times, more than {100 * MATCHED:g} % off. A finer rounding, such as rounding=fine, or a larger "
                "baseline has one"
            )
        multipliers = coefficients.multipliers(variant.phi)
        network = replace(variant.network, name=_name(base, curve, f"{ratio:g}x"))
        values |= dict(zip(SINGLE, multipliers, strict=True)) | {"moves": tuple(map(str, variant.moves))}
        return self.point(curve, multipliers_label(*multipliers), ratio, network, base=base, **values)

    def ways(self, ratios: Sequence[float], compound: Coefficients, *, mixes: bool = True) -> list[Point]:
        """The baseline, and each dimension, each mix of two if asked, and compound at `ratios` times its cost."""
        rules = {name: coefficients_of(*name.split(" + ")) for name in (*SINGLE, *(MIXES if mixes else ()))}
        rules[COMPOUND] = compound
        return [
            self.point(BASELINE, "1x", 1.0, self.baseline),
            *(self.matched(name, ratio, self.baseline, rule) for ratio in ratios for name, rule in rules.items()),
        ]


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
    """Runs points: each with every seed, those first that others start from, dataset by dataset."""

    def __init__(self, points: Sequence[Point], setting: Setting, session: Session) -> None:
        self.points, self.setting, self.ledger, self._session = points, setting, session.ledger, session
        self.outcomes: dict[tuple[str, str, int], Outcome] = {}

    @property
    def unique(self) -> list[Outcome]:
        """One for each training: several points may be the same, such as the 1x network of three curves."""
        return list({outcome.evaluation.key: outcome for outcome in self.outcomes.values()}.values())

    def run(self, log: CommandLog) -> None:
        """Every point with every seed; one that starts from a training that failed has failed with its reason."""
        self._session.forget_failures(self._known())
        total = len(self.points) * self.setting.seeds
        slots = self._session.evaluator(self.setting.data).slots
        with self._session.out.progress(total=total, slots=slots) as progress:
            for later in (False, True):
                wave = [point for point in self.points if (point.after is not None) is later]
                for data in dict.fromkeys(point.data for point in wave):
                    self._run([point for point in wave if point.data == data], data, progress, log)

    def _run(self, points: Sequence[Point], data: DataSpec, progress: Progress, log: CommandLog) -> None:
        requested: dict[str, list[tuple[Point, Evaluation]]] = {}
        for point, seed in itertools.product(points, range(self.setting.seeds)):
            evaluation = self.evaluation(point, seed)
            if evaluation is not None:
                requested.setdefault(evaluation.key, []).append((point, evaluation))
                continue
            assert point.after is not None
            first = self.outcome(point.after, seed)
            reason = f"what it starts from failed: {first.reason}"
            self._came(point, Outcome(first.evaluation, None, reason, reused=True), progress, log)
        for outcome in self._session.evaluator(data).run(rows[0][1] for rows in requested.values()):
            for point, _ in requested[outcome.evaluation.key]:
                self._came(point, outcome, progress, log)

    def _came(self, point: Point, outcome: Outcome, progress: Progress, log: CommandLog) -> None:
        self.outcomes[_place(point, outcome.evaluation.seed)] = outcome
        progress.update(f"{point.curve} {point.label}", outcome)
        log.trained(_words(point), outcome, params=point_values(point))

    def test(self) -> dict[str, float]:
        """Test accuracy of every finished training, by its key."""
        found: dict[str, float] = {}
        for data in dict.fromkeys(point.data for point in self.points):
            evaluations = {
                outcome.evaluation.key: outcome.evaluation
                for point, seed in itertools.product(self.points, range(self.setting.seeds))
                if point.data == data and (outcome := self.outcome(point, seed)).result is not None
            }
            scored = self._session.evaluator(data).test(list(evaluations.values()))
            found |= {key: values["test_accuracy"] for key, values in zip(evaluations, scored, strict=True)}
        return found

    def _known(self) -> Iterator[Evaluation]:
        """The evaluations that the ledger may have; one that starts from a training is known when that has finished."""
        for point, seed in itertools.product(self.points, range(self.setting.seeds)):
            if point.after is None:
                evaluation = self.evaluation(point, seed)
                assert evaluation is not None
                yield evaluation
            elif (first := self.evaluation(point.after, seed)) is not None:
                record = self.ledger.get(first.key)
                if record is not None and record["state"] == "finished":
                    yield self.started(point, first)

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
        return self._session.data(data).fingerprint

    def outcome(self, point: Point, seed: int) -> Outcome:
        return self.outcomes[_place(point, seed)]

    def learnt(self) -> list[Learnt]:
        """What the networks on each data set have learnt."""
        found = []
        for data in dict.fromkeys(point.data for point in self.points):
            networks: dict[tuple[str, ...], tuple[str, list[Outcome]]] = {}
            for point in self.points:
                if point.data == data:
                    seeds = [self.outcome(point, seed) for seed in range(self.setting.seeds)]
                    same = tuple(one.evaluation.key for one in seeds)  # several points may be one network
                    networks.setdefault(same, (_words(point), seeds))
            found.append(self._session.learnt(dict(networks.values()), data))
        return found

    def correct(self) -> dict[str, Correct]:
        """By key of a finished training: whether it is right, for each validation image."""
        return {
            outcome.evaluation.key: outcome.result.by_image
            for outcome in self.outcomes.values()
            if outcome.result is not None
        }

    def table(self, test: Mapping[str, float] | None = None) -> pd.DataFrame:
        """One row per point and seed, as results.csv has it; accuracies are fractions, NaN where a training failed."""
        import pandas as pd

        rows = []
        for point, seed in itertools.product(self.points, range(self.setting.seeds)):
            outcome = self.outcome(point, seed)
            result, key = outcome.result, outcome.evaluation.key
            row = point_values(point) | {"seed": seed, "state": "failed" if result is None else "finished"}
            for name in ("val_accuracy", "val_loss"):
                row[name] = math.nan if result is None else getattr(result, name)
            if test is not None:
                row["test_accuracy"] = test.get(key, math.nan)
            row["train_seconds"] = math.nan if result is None else round(result.train_seconds, 2)
            rows.append(row | {"precision": outcome.precision, "key": key, "reason": outcome.reason})
        return pd.DataFrame(rows)


def _words(point: Point) -> str:
    return f"{point.curve} {point.label} at {point.at:g}"


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
