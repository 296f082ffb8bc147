"""The metrics by which candidates can be chosen instead of accuracy, each with its parts by image.

Scores (N, K) are probabilities; targets (N,) are classes, or (N, K) of 0 and 1 where an image may have several labels.
A higher value is better, and 1 is the best.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scalesearch.data import Data
from scalesearch.model import Imported, imported, settings_kept, sources, watched
from scalesearch.text import near, raised

Scores = NDArray[np.float64]
Targets = NDArray[Any]
Function = Callable[[Scores, Targets], float]
ACCURACY = "accuracy"
_SHUFFLES, _GROUPS = 50, 100
_ROUNDING = 1e-6


class Scored(NamedTuple):
    """A value of a metric.

    by_image: (N,) float32 whose mean is `value`, and which vary between images as much as the metric would between
        sets of as many images (its influence function). chance, chance_deviation: mean and standard deviation of the
        metric of the same scores with the targets shuffled.
    """

    value: float
    by_image: NDArray[np.float32]
    chance: float
    chance_deviation: float


def metric_name(metric: str) -> str:
    """A metric's name as columns and MLflow have it.

    >>> metric_name("auroc"), metric_name("my_metrics:f1")
    ('auroc', 'f1')
    """
    return metric.rpartition(":")[2]


def named(values: Any, metric: str | None) -> Any:
    """Values, or tables of pandas, whose keys of accuracies have the metric's name instead; None is accuracy.

    >>> named({"val_accuracy_mean": 0.9, "seeds": [{"val_accuracy": 0.9}]}, "auroc")
    {'val_auroc_mean': 0.9, 'seeds': [{'val_auroc': 0.9}]}
    """
    if metric is None:
        return values
    if isinstance(values, dict):
        return {_ACCURACIES.sub(metric_name(metric), str(key)): named(one, metric) for key, one in values.items()}
    if isinstance(values, list):
        return [named(one, metric) for one in values]
    if hasattr(values, "columns"):
        return values.rename(columns=lambda column: _ACCURACIES.sub(metric_name(metric), column))
    return values


_ACCURACIES = re.compile(r"(?<=val_)accuracy|(?<=test_)accuracy")


def unnamed(table: Any, metric: str | None) -> Any:
    """A table of pandas with the columns that `named` has renamed."""
    if metric is None:
        return table
    pattern = re.compile(rf"\b(val|test)_{re.escape(metric_name(metric))}(?=_|$)")
    return table.rename(columns=lambda column: pattern.sub(r"\1_accuracy", column))


def check_name(given: object) -> str:
    """The name of a metric. Raises: ValueError with what follows "recipe.metric is ...; "."""
    if isinstance(given, str) and (given in METRICS or re.fullmatch(r"[\w.]+:[A-Za-z_]\w*", given)):
        if metric_name(given) == "loss":
            raise ValueError(
                "the columns of the loss have that name; call the function otherwise, such as negative_loss"
            )
        return given
    close = near(given, METRICS)
    raise ValueError(
        f"it must be one of {', '.join(METRICS)}, or module:function{close if 'did you mean' in close else ''}"
    )


def score(metric: str, scores: Scores, targets: Targets) -> Scored:
    """The value of a metric that is not accuracy of single labels, with its parts and its chance level.

    Raises: ValueError: a function of the user's raises, or returns no number from -1 to 1; a metric is not defined.
    """
    value_of: Function
    if metric in METRICS:
        value_of, parts = METRICS[metric]
        by_image = parts(scores, targets)
    else:
        value_of = _checked(metric)
        by_image = jackknife(value_of, scores, targets)
    if metric == "auroc":  # ranks do not change with the targets, and take the time
        ranks = np.stack([_ranks(column) for column in scores.T], axis=1)

        def value_of(_: Scores, shuffled: Targets) -> float:
            return _auroc_of_ranks(ranks, shuffled)

    chance = np.random.default_rng(0)
    shuffled = [value_of(scores, targets[chance.permutation(len(targets))]) for _ in range(_SHUFFLES)]
    kept = by_image.astype(np.float32)
    value = float(kept.mean(dtype=np.float64))
    # One answer to everything is worth the same however labels are shuffled, but for how float32 rounds its sum.
    deviation = float(np.std(shuffled, ddof=1)) if np.ptp(shuffled) > _ROUNDING else 0.0
    return Scored(value, kept, float(np.mean(shuffled)), deviation)


# Accuracy of labels, where an image may have several


def _label_accuracy(scores: Scores, targets: Targets) -> float:
    return float(_label_accuracy_by_image(scores, targets).mean())


def _label_accuracy_by_image(scores: Scores, targets: Targets) -> NDArray[np.float64]:
    return np.asarray(((scores > 0.5) == (targets > 0)).mean(1))


# Balanced accuracy: the mean over classes of the share of their images that is right


def _balanced(scores: Scores, targets: Targets) -> float:
    return float(_balanced_by_image(scores, targets).mean())


def _balanced_by_image(scores: Scores, targets: Targets) -> NDArray[np.float64]:
    """(N,): over all classes that there are, each image's part in the recall of its own."""
    if targets.ndim == 2:  # each label is a task of two classes
        right = (scores > 0.5) == (targets > 0)
        tasks = [_recalls(right[:, k], targets[:, k] > 0) for k in range(targets.shape[1])]
        return np.asarray(np.mean(tasks, axis=0))
    return _recalls(scores.argmax(1) == targets, targets)


def _recalls(right: NDArray[np.bool_], classes: NDArray[Any]) -> NDArray[np.float64]:
    _, of_image, numbers = np.unique(classes, return_inverse=True, return_counts=True)
    recalls = np.bincount(of_image, weights=right) / numbers
    weights = len(right) / (len(numbers) * numbers)
    return np.asarray(recalls.mean() + weights[of_image] * (right - recalls[of_image]))


# Area under the ROC curve: the mean over classes of the share of pairs, one image of the class and one of another, that
# the scores order rightly; equal scores count half


def _auroc(scores: Scores, targets: Targets) -> float:
    return _auroc_of_ranks(np.stack([_ranks(column) for column in scores.T], axis=1), targets)


def _auroc_of_ranks(ranks: NDArray[np.float64], targets: Targets) -> float:
    present = _present(targets, ranks.shape[1])
    positives = present.sum(0)
    defined = (positives > 0) & (positives < len(targets))
    above = (ranks * present).sum(0) - positives * (positives + 1) / 2
    return float((above[defined] / (positives * (len(targets) - positives))[defined]).mean())


def _present(targets: Targets, num_classes: int) -> NDArray[np.bool_]:
    """(N, K) whether an image is of a class."""
    return np.asarray(targets > 0 if targets.ndim == 2 else targets[:, None] == np.arange(num_classes))


def _auroc_by_image(scores: Scores, targets: Targets) -> NDArray[np.float64]:
    """(N,): DeLong's placements, 1988, of each class against the rest."""
    present, found = _present(targets, scores.shape[1]), []
    for k in range(scores.shape[1]):
        of_class, total = present[:, k], len(present)
        positives = int(of_class.sum())
        if 0 < positives < total:
            ranks, parts = _ranks(scores[:, k]), np.empty(total)
            among = _ranks(scores[of_class, k]), _ranks(scores[~of_class, k])
            parts[of_class] = (ranks[of_class] - among[0]) / (total - positives)  # of the others, how many are below
            parts[~of_class] = 1 - (ranks[~of_class] - among[1]) / positives
            area = float(parts[of_class].mean())
            shares = np.where(of_class, total / positives, total / (total - positives))
            # A pair has an image of each kind, and both vary.
            found.append(area + shares * (parts - area))
    if not found:
        raise ValueError("auroc is not defined: no class has some of these images and lacks others")
    return np.asarray(np.mean(found, axis=0))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """From 1, equal values sharing the mean of theirs."""
    _, of_value, numbers = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(numbers) - (numbers - 1) / 2)[of_value])


METRICS: dict[str, tuple[Function, Callable[[Scores, Targets], NDArray[np.float64]]]] = {
    ACCURACY: (_label_accuracy, _label_accuracy_by_image),  # of several labels
    "balanced_accuracy": (_balanced, _balanced_by_image),
    "auroc": (_auroc, _auroc_by_image),
}


# A function of the user's


def jackknife(value_of: Function, scores: Scores, targets: Targets) -> NDArray[np.float64]:
    """(N,) parts by image of any function, from its values without each of at most 100 groups of images.

    A group's images share its part, widened so that the parts vary as those of single images would.
    """
    number = len(targets)
    groups = np.random.default_rng(0).permutation(number) % min(_GROUPS, number)
    count, whole = int(groups.max()) + 1, value_of(scores, targets)
    without = np.array([value_of(scores[groups != g], targets[groups != g]) for g in range(count)])
    pseudo = (count - 1) * (without.mean() - without)  # about the mean
    parts = whole + math.sqrt(number / count) * pseudo[groups]
    return np.asarray(parts + (whole - parts.mean()))


_trusted: dict[str, Imported] = {}
_digests: dict[str, str] = {}  # of what was imported, which an edit of a file does not change


def trust(metric: str) -> None:
    """Import the function of "module:function", which the user has named; the working directory is looked in last.

    Raises: ValueError: it cannot be imported, or is no function.
    """
    if metric not in _trusted:
        _trusted[metric] = imported(metric, "recipe.metric")
        _digests.pop(metric, None)


def source(metric: str | None, num_classes: int) -> str | None:
    """A digest of all that the function of "module:function" depends on, as a network's key has it; None of ours.

    The modules of the user's that it reaches, versions of packages, files that it was seen to open and variables of
    the environment. numpy, whose arrays every metric is given, has no part, as in the metrics of ours.
    Raises: ValueError: only a file names it (`trust`).
    """
    if metric is None or ":" not in metric:
        return None
    found = _function(metric)
    if metric not in _digests:
        loaded, read = set[str](), set[str]()
        with watched(loaded, read):
            _call_once(found.made, num_classes)
        found.first_call(loaded, read)
        reached = sources(metric, found.made, found.loaded, found.read)
        files = sorted(set(reached.modules.values()))
        packages = {name: version for name, version in reached.packages.items() if name != "numpy"}
        beside = {"packages": packages, "files": reached.files, "environment": reached.environment}
        values = {"modules": reached.modules} | {key: more for key, more in beside.items() if more}
        alone = len(files) == 1 and len(values) == 1  # of a function of one file the first keys have that file's
        _digests[metric] = files[0] if alone else hashlib.sha256(json.dumps(values).encode()).hexdigest()
    return _digests[metric]


def _call_once(made: Function, num_classes: int) -> None:
    """See what files a call opens; what it comes to, `check_function` says, with the labels of the data."""
    scores = np.random.default_rng(0).dirichlet(np.ones(num_classes), 4 * num_classes)
    classes = np.arange(4 * num_classes) % num_classes
    for targets in (classes, np.eye(num_classes, dtype=np.uint8)[classes]):
        with suppress(Exception, SystemExit):
            _called(made, scores, targets)


def check_function(metric: str | None, data: Data, *, test: bool = False) -> None:
    """Call a function of the user's for the labels of the validation images, and of the `test` images if it will be, so
    that it fails before a training does.

    Raises: ValueError, as `check_targets`.
    """
    if metric is None or ":" not in metric:
        return
    for labels in (data.val_labels, *((data.test_labels(),) if test else ())):
        check_targets(metric, labels.numpy(), data.description.num_classes)


def check_targets(metric: str, targets: Targets, num_classes: int) -> None:
    """Call a function of the user's with scores by chance for these targets, as a training does.

    Raises: ValueError: it raises, or returns no number from -1 to 1, or another one for the same scores.
    """
    scores = np.random.default_rng(0).dirichlet(np.ones(num_classes), len(targets))
    value_of = _checked(metric)
    first, second = value_of(scores, targets), value_of(scores, targets)
    if abs(first - second) > _ROUNDING:
        raise ValueError(
            f"recipe.metric is {metric!r}, which returned {first:.6g} and then {second:.6g} for the same scores and "
            "targets; it must not depend on chance, nor keep anything of the calls before it: give a seed to whatever "
            "draws, and begin anew in each call"
        )
    try:
        score(metric, scores, targets)
    except ValueError as error:
        raise ValueError(
            f"{error}. It is also called for parts of the images, from which the intervals come: let it return a "
            "number, such as 0, where a class has no image"
        ) from None


def _function(metric: str) -> Imported:
    """What "module:function" names. Raises: ValueError: only a file names it (`trust`)."""
    if metric not in _trusted:
        raise ValueError(
            f"the metric is {metric}; only a file of a study says so, and what a file names is not run. Give the "
            f"study's `scalesearch run` command with metric={metric}"
        )
    return _trusted[metric]


def _checked(metric: str) -> Function:
    """The function, of whose value it is made sure; what it does to its arguments or to torch reaches nobody else."""
    made = _function(metric).made

    def value_of(scores: Scores, targets: Targets) -> float:
        try:
            found = _called(made, scores, targets)
        except (Exception, SystemExit) as error:
            raise ValueError(
                f"recipe.metric is {metric!r}, which raised {raised(error)} for scores {scores.shape} and targets "
                f"{targets.shape}; it must return a number from -1 to 1, the higher the better"
            ) from error
        value = _number(found)
        if not -1 <= value <= 1:  # nan is not either
            is_number = isinstance(found, float | np.number) or not math.isnan(value)
            what = value if is_number else found if isinstance(found, str | bool) else f"a {type(found).__name__}"
            raise ValueError(
                f"recipe.metric is {metric!r}, which returned {what} for scores {scores.shape}; it must be a number "
                "from -1 to 1, the higher the better"
            )
        return value

    return value_of


def _called(made: Callable[..., Any], scores: Scores, targets: Targets) -> Any:
    """What it returns for arrays of its own."""
    with settings_kept():
        found = made(scores.copy(), targets.copy())
    if inspect.iscoroutine(found):  # which is no number, and would warn that nobody waits for it
        found.close()
    return found


def _number(found: Any) -> float:
    """A number of Python's, numpy's or torch's; nan where it is none."""
    if isinstance(found, str | bool):
        return math.nan
    try:
        with warnings.catch_warnings(action="ignore"):  # of a tensor with a gradient, an array of one element
            return float(found)
    except (TypeError, ValueError, RuntimeError):  # the latter: a tensor of several numbers
        return math.nan
