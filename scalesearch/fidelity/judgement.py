"""What the trainings of proxies and references come to: their table, how far they agree, what the choice loses."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from scalesearch.cost import cost
from scalesearch.evaluation import Evaluation, Outcome
from scalesearch.fidelity.agreement import Agreement, Estimate, agreement, means, ranks
from scalesearch.fidelity.completed import CompletedStudy, FidelityRequest, mean_accuracy
from scalesearch.fidelity.references import ReferenceTraining, judged
from scalesearch.fidelity.shown import estimate_words
from scalesearch.network import Factory
from scalesearch.search import Candidate
from scalesearch.selection import Pairs
from scalesearch.text import override, typed
from scalesearch.training import Result, named

if TYPE_CHECKING:
    import pandas as pd

CONFIDENCE = 0.95
SHORT_EPOCHS = 10  # of which arXiv:2103.07579, section 6, found width better than depth; at 350 it was the other way
PREFERENCE = "training is known to prefer width over depth (arXiv:2103.07579, section 6)"
STILL_FALLING = 0.05  # share of the training loss that an epoch takes off; the end of a long schedule takes off less
_FEW = 8  # candidates below which an interval is wide whatever is observed


def trainings(
    completed: CompletedStudy, references: Sequence[ReferenceTraining], outcomes: Mapping[str, Outcome]
) -> pd.DataFrame:
    """One row per candidate, side and seed; accuracies are fractions, NaN where a training failed."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for candidate, _ in judged(references):
        coefficients = candidate.coefficients
        for side, evaluation, result, reason in _sides(candidate, completed, references, outcomes):
            row = {"candidate": candidate.id, **asdict(coefficients), "side": side, "seed": evaluation.seed}
            row["state"] = "failed" if result is None else "finished"
            for name in ("val_accuracy", "val_loss"):
                row[name] = math.nan if result is None else getattr(result, name)
            row["epochs"] = evaluation.recipe.epochs
            row |= {"macs": cost(evaluation.network).macs, "depth": evaluation.network.depth}
            row |= {"resolution": evaluation.network.resolution}
            row["train_seconds"] = math.nan if result is None else result.train_seconds
            rows.append(row | {"key": evaluation.key, "reason": reason})
    table: pd.DataFrame = named(pd.DataFrame(rows), completed.settings.recipe.metric)
    return table


def _sides(
    candidate: Candidate,
    completed: CompletedStudy,
    references: Sequence[ReferenceTraining],
    outcomes: Mapping[str, Outcome],
) -> Iterator[tuple[str, Evaluation, Result | None, str]]:
    recipe, data, init = completed.settings.recipe, completed.fingerprint, completed.init
    for seed, result in sorted(completed.proxies[candidate.id].items()):
        yield "proxy", Evaluation(candidate.network, recipe, data, seed, init), result, ""
    for one in references:
        if one.candidate.id == candidate.id:
            outcome = outcomes[one.evaluation.key]
            yield "reference", one.evaluation, outcome.result, outcome.reason


def judgement(
    request: FidelityRequest,
    completed: CompletedStudy,
    references: Sequence[ReferenceTraining],
    finished: Mapping[str, Mapping[int, Result]],
) -> dict[str, Any]:
    """What fidelity.json keeps of one reference: plain values, an object as the study's report reads it.

    Candidates of whose reference nothing is finished are left out of it.
    """
    candidates = [candidate for candidate, _ in judged(references) if candidate.id in finished]
    proxies = {candidate.id: completed.proxies[candidate.id] for candidate in candidates}
    seeds = sorted({seed for side in (proxies, finished) for results in side.values() for seed in results})
    proxy, measured = (
        np.array([[_accuracy(side[candidate.id].get(seed)) for seed in seeds] for candidate in candidates])
        for side in (proxies, finished)
    )
    depths = np.array([float(candidate.network.depth) for candidate in candidates])
    agreed = agreement(proxy, measured, depths, confidence=CONFIDENCE)
    columns: dict[str, Any] = {"proxy_accuracy_mean": means(proxy)}
    columns["proxy_seeds"] = [len(proxies[candidate.id]) for candidate in candidates]
    columns["reference_accuracy_mean"] = means(measured)
    columns["reference_seeds"] = [len(finished[candidate.id]) for candidate in candidates]
    columns |= {"proxy_rank": ranks(means(proxy)), "reference_rank": ranks(means(measured))}
    rows = [
        {"candidate": candidate.id, **asdict(candidate.coefficients), "depth": candidate.network.depth}
        | {
            name: values[index] if isinstance(values, list) else float(values[index])
            for name, values in columns.items()
        }
        | {"chosen": candidate.id == completed.choice}
        for index, candidate in enumerate(candidates)
    ]
    first, lost = what_is_lost(completed.choice, finished)
    num_seeds = len({one.evaluation.seed for one in references})
    factor = int(request.factor) if request.factor.is_integer() else request.factor
    return {
        "against": request.against,
        "factor": factor,
        "candidates": [candidate.id for candidate in candidates],
        "seeds": num_seeds,
        **{name: estimate._asdict() for name, estimate in agreed._asdict().items()},
        "warning": caution(completed, agreed, request.against),
        "choice": completed.choice,
        "choice_is_first": first == completed.choice if completed.choice in finished else None,
        "first": first,
        "lost": lost._asdict(),
        "confidence": CONFIDENCE,
        "covers": _covers(len(candidates), proxies, finished),
        "table": rows,
        "command": typed(
            *("reproduce", "fidelity", f"study={request.study.name}"),
            override("workspace", str(request.study.workspace)),
            *(f"against={request.against}", f"factor={factor}", f"candidates={request.candidates}"),
            f"seeds={num_seeds}",
            *request.study.named_again,
        ),
    }


def _accuracy(result: Result | None) -> float:
    return math.nan if result is None else result.val_accuracy


def what_is_lost(choice: str, finished: Mapping[str, Mapping[int, Result]]) -> tuple[str, Estimate]:
    """(the reference's best, by how much it is more accurate than the choice, never below 0).

    Where the choice is the best itself nothing is lost, and `high` is what may be lost to any other. The interval is
    that of the selection: over seeds, by which the two are paired, and validation images. The best is known by the same
    accuracies, so the difference errs upwards.
    """
    right = {name: {seed: result.by_image for seed, result in seeds.items()} for name, seeds in finished.items()}
    means = {name: mean_accuracy(seeds.values()) for name, seeds in finished.items()}
    best = min(means, key=lambda name: (-means[name], name != choice, name))
    if choice not in right:
        return best, Estimate(None, None, None, f"no reference training of the choice {choice} has finished")
    if len(right) < 2:
        return best, Estimate(None, None, None, f"the choice {choice} alone has a reference")
    pairs = Pairs(right)
    others = [best] if best != choice else [name for name in right if name != choice]
    compared = [pairs.compare(right[name], right[choice]) for name in others]
    value = 0.0 if best == choice else max(0.0, compared[0].difference)
    bounds = [one.interval(CONFIDENCE) for one in compared]
    if any(math.isnan(high) for _, high in bounds):
        return best, Estimate(value, None, None, "one seed tells nothing of how much seeds vary; at least 2 are needed")
    low = 0.0 if best == choice else max(0.0, bounds[0][0])
    return best, Estimate(value, low, max(0.0, *(high for _, high in bounds)))


def caution(completed: CompletedStudy, agreed: Agreement, against: str) -> str | None:
    """A warning where the study's training was short and its choice is shallow; None where either is not so.

    Short: few epochs, or the training loss was still falling at the end. Shallow: of the candidates that it is tied
    with, or else of all, more are deeper than shallower. (Below their median, but that many share one depth.) A study
    that punishes depth throughout leaves only shallow ones tied, so the ties alone would not do.
    """
    recipe = completed.settings.recipe
    falls = [
        1 - result.curve[-1]["train_loss"] / result.curve[-2]["train_loss"]
        for results in completed.proxies.values()
        for result in results.values()
        if len(result.curve) > 1
    ]
    fall = statistics.median(falls) if falls else 0.0
    if recipe.epochs > SHORT_EPOCHS and fall < STILL_FALLING:
        return None
    shallow = _shallow(completed)
    if shallow is None:
        return None
    falling = (
        f", and its last epoch still took {100 * fall:.0f} % off the training loss" if fall >= STILL_FALLING else ""
    )
    return (
        f"the study trains for {recipe.epochs:g} {'epoch' if recipe.epochs == 1 else 'epochs'}{falling}; {shallow}. "
        f"Short {PREFERENCE}, so the choice may be too shallow. {_gain_words(agreed.depth_gain, against)}"
    )


def _shallow(completed: CompletedStudy) -> str | None:
    """How many are deeper than the choice, in words, where that are more than are shallower."""
    chosen = next(one for one in completed.candidates if one.id == completed.choice)
    depth = f"{chosen.network.depth:.4g} {'times the depth' if isinstance(chosen.network, Factory) else 'blocks'}"
    tied = [one for one in completed.candidates if one.id in completed.tied]
    others = [one for one in completed.candidates if one.id != completed.choice]
    for peers, which in ((tied, "candidates that it is tied with"), (others, "other candidates")):
        deeper = sum(one.network.depth > chosen.network.depth for one in peers)
        shallower = sum(one.network.depth < chosen.network.depth for one in peers)
        if deeper > shallower:
            return (
                f"its choice {chosen.id} has {depth}, and of the {len(peers)} {which} {deeper} are deeper and "
                f"{shallower} shallower"
            )
    return None


def _gain_words(gain: Estimate, against: str) -> str:
    if gain.value is None:
        return f"Whether the deeper ones gain against the reference is not known: {gain.reason}"
    assert gain.low is not None
    assert gain.high is not None
    known = "is more than chance" if gain.low > 0 or gain.high < 0 else "may be chance"
    which = {
        "epochs": "Trained longer",
        "phi": "Scaled further, with the training as short as before,",
        "proxy": "As a larger proxy, with the training as short as before,",
    }[against]
    direction = "gain" if gain.value > 0 else "lose" if gain.value < 0 else "neither gain nor lose"
    return f"{which} the deeper ones {direction} ranks here (tau {estimate_words(gain)}), which {known}"


def _covers(
    num_candidates: int, proxies: Mapping[str, Mapping[int, Result]], finished: Mapping[str, Mapping[int, Result]]
) -> str:
    fewest = min(len(results) for side in (proxies, finished) for results in side.values())
    return (
        f"{100 * CONFIDENCE:g} % intervals over the choice of candidates and of seeds, which a bootstrap draws again; "
        "not over other data or another recipe"
        + (f". {num_candidates} candidates leave them wide" if num_candidates < _FEW else "")
        + ("; a single seed tells nothing of how much seeds vary, so they are too narrow" if fewest < 2 else "")
    )
