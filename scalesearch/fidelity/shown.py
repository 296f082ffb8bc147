"""What a person sees of `reproduce fidelity`; nothing here decides anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from scalesearch.cost import cost
from scalesearch.fidelity.agreement import Estimate
from scalesearch.fidelity.completed import CompletedStudy, FidelityRequest
from scalesearch.fidelity.references import CostEstimate, ReferenceTraining, judged
from scalesearch.screen import Screen
from scalesearch.text import count, duration, percent, plural


def show_references(
    out: Screen,
    request: FidelityRequest,
    completed: CompletedStudy,
    references: Sequence[ReferenceTraining],
    expected: CostEstimate,
) -> None:
    """What is trained and what it costs, before it is."""
    what = {
        "epochs": f"the same networks trained {request.factor:g} times as long",
        "phi": f"the same coefficients at phi = {request.factor:g} instead of 1",
        "proxy": f"a proxy of {request.factor:g} times the width and resolution",
    }[request.against]
    out.say(f"study {request.study.name}: its proxies against {what}")
    rows = [
        {
            **_network(candidate.id, asdict(candidate.coefficients)),
            "proxy's multiply-adds": count(candidate.cost.macs),
            "reference's multiply-adds": count(cost(evaluation.network).macs),
            "px": str(evaluation.network.resolution),
            "epochs": f"{evaluation.recipe.epochs:g}",
            "": "chosen" if candidate.id == completed.choice else "",
        }
        for candidate, evaluation in judged(references)
    ]
    out.table("References", rows, {heading: heading for heading in rows[0]})
    seeds = len({one.evaluation.seed for one in references})
    left = expected.trainings - expected.recorded
    out.say(
        f"{expected.trainings} trainings ({len(rows)} candidates, {plural(seeds, 'seed')} each), of which the ledger "
        f"has {expected.recorded}; multiply-adds x images: {expected.of_proxies:.3g} times those of the same proxies, "
        f"{expected.of_study:.3g} times those of the whole study"
    )
    if left:
        out.say(f"expected time on this machine: {duration(expected.seconds)}")


def show_judgement(out: Screen, entry: Mapping[str, Any], score: str) -> None:
    """The two rankings beside each other, how far they agree, and what the study's choice loses."""
    rows = [
        {
            **_network(row["candidate"], row),
            "blocks": f"{row['depth']:.4g}",
            "proxy (%)": percent(row["proxy_accuracy_mean"]),
            "reference (%)": percent(row["reference_accuracy_mean"]),
            "rank: proxy": f"{row['proxy_rank']:g}",
            "rank: reference": f"{row['reference_rank']:g}",
            "": "chosen" if row["chosen"] else "",
        }
        for row in entry["table"]
    ]
    out.table(f"Means of validation {score}, and the ranks by them", rows, {heading: heading for heading in rows[0]})
    kendall, spearman, gain, lost = (Estimate(**entry[key]) for key in ("kendall", "spearman", "depth_gain", "lost"))
    out.say(f"Kendall's tau-b {estimate_words(kendall)}; Spearman's rho {estimate_words(spearman)}")
    out.say(entry["covers"])
    words = (
        estimate_words(gain) if gain.value is None else f"tau-b {estimate_words(gain)}; above 0 the deeper ones gain"
    )
    out.say(f"depth and the ranks that a candidate gains: {words}")
    out.say(_lost_words(entry, lost))
    if entry["warning"]:
        out.warn(f"WARNING: {entry['warning']}")


def _lost_words(entry: Mapping[str, Any], lost: Estimate) -> str:
    choice = entry["choice"]
    if lost.value is None:
        return f"what the choice loses: {estimate_words(lost)}"
    if entry["choice_is_first"]:
        rest = f"; to any other it loses {_points(lost.high)} at most" if lost.high is not None else ""
        return f"the choice {choice} is first on the reference too{rest}"
    around = _points(lost.low, lost.high) if lost.high is not None else lost.reason
    return f"the choice {choice} loses {_points(lost.value)} ({around}) to {entry['first']}, the reference's best"


def estimate_words(estimate: Estimate) -> str:
    if estimate.value is None:
        return f"not known ({estimate.reason})"
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"


def _network(name: str, coefficients: Mapping[str, float]) -> dict[str, str]:
    headings = {"alpha": "alpha (depth)", "beta": "beta (width)", "gamma": "gamma (resolution)"}
    return {"network": name} | {heading: f"{coefficients[key]:g}" for key, heading in headings.items()}


def _points(*shares: float | None) -> str:
    return " to ".join(percent(share) for share in shares if share is not None) + " points"
