"""What a person sees of `reproduce fidelity`; nothing here decides anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scalesearch import screen
from scalesearch.config import FidelityRequest
from scalesearch.cost import cost
from scalesearch.fidelity.references import CompletedStudy, CostEstimate, Reference, networks
from scalesearch.scaling import Coefficients
from scalesearch.screen import Screen

if TYPE_CHECKING:
    from scalesearch.fidelity.agreement import Estimate


def show_plan(
    out: Screen,
    question: FidelityRequest,
    searched: CompletedStudy,
    references: Sequence[Reference],
    outlook: CostEstimate,
) -> None:
    """What is trained and what it costs, before it is."""
    what = {
        "epochs": f"the same networks trained {question.factor:g} times as long",
        "phi": f"the same coefficients at phi = {question.factor:g} instead of 1",
        "proxy": f"a proxy of {question.factor:g} times the width and resolution",
    }[question.against]
    out.say(f"study {searched.experiment.study}: its proxies against {what}")
    rows = [
        {
            "candidate": candidate.id,
            **_triple(candidate.coefficients),
            "proxy_macs": screen.count(candidate.cost.macs),
            "macs": screen.count(cost(evaluation.network).macs),
            "resolution": str(evaluation.network.resolution),
            "epochs": f"{evaluation.recipe.epochs:g}",
            "mark": "chosen" if candidate.id == searched.choice else "",
        }
        for candidate, evaluation in networks(references)
    ]
    columns = _COLUMNS | {"proxy_macs": "proxy's multiply-adds", "macs": "reference's multiply-adds"}
    out.table("References", rows, columns | {"resolution": "px", "epochs": "epochs", "mark": ""})
    seeds = len({one.evaluation.seed for one in references})
    left = outlook.trainings - outlook.recorded
    out.say(
        f"{outlook.trainings} trainings ({len(rows)} candidates, {_times(seeds, 'seed')} each), of which the ledger "
        f"has {outlook.recorded}; multiply-adds x images: {outlook.of_proxies:.3g} times those of the same proxies, "
        f"{outlook.of_study:.3g} times those of the whole study"
    )
    if left:
        out.say(f"expected time, at the pace of the study: {screen.duration(outlook.seconds)}")


def show_judgement(out: Screen, entry: Mapping[str, Any], searched: CompletedStudy) -> None:
    """The two rankings beside each other, how far they agree, and what the study's choice loses."""
    from scalesearch.fidelity.agreement import Estimate

    rows = [
        {
            "candidate": row["candidate"],
            **_triple(Coefficients(row["alpha"], row["beta"], row["gamma"])),
            "depth": f"{row['depth']:.4g}",
            "proxy": f"{100 * row['proxy_accuracy_mean']:.2f}",
            "reference": f"{100 * row['reference_accuracy_mean']:.2f}",
            "proxy_rank": f"{row['proxy_rank']:g}",
            "reference_rank": f"{row['reference_rank']:g}",
            "mark": "chosen" if row["chosen"] else "",
        }
        for row in entry["table"]
    ]
    columns = _COLUMNS | {"depth": "blocks", "proxy": "proxy (%)", "reference": "reference (%)"}
    columns |= {"proxy_rank": "rank: proxy", "reference_rank": "rank: reference", "mark": ""}
    out.table("Mean validation accuracies, and the ranks by them", rows, columns)
    kendall, spearman, gain, lost = (Estimate(**entry[key]) for key in ("kendall", "spearman", "depth_gain", "lost"))
    out.say(f"Kendall's tau-b {estimate_words(kendall)}; Spearman's rho {estimate_words(spearman)}")
    out.say(entry["covers"])
    if gain.value is None:
        out.say(f"depth and the ranks that a candidate gains: {estimate_words(gain)}")
    else:
        out.say(
            f"depth and the ranks that a candidate gains: tau-b {estimate_words(gain)}; above 0 the deeper ones gain"
        )
    choice = entry["choice"]
    if lost.value is None:
        out.say(f"what the choice loses: {estimate_words(lost)}")
    elif entry["choice_is_first"]:
        rest = f"; to any other it loses {_points(lost.high)} at most" if lost.high is not None else ""
        out.say(f"the choice {choice} is first on the reference too{rest}")
    else:
        spread_words = f" ({_points(lost.low, lost.high)})" if lost.high is not None else f" ({lost.reason})"
        out.say(
            f"the choice {choice} loses {_points(lost.value)}{spread_words} to {entry['first']}, the reference's best"
        )
    if entry["warning"]:
        out.warn(f"WARNING: {entry['warning']}")


def estimate_words(estimate: Estimate) -> str:
    if estimate.value is None:
        return f"not known ({estimate.reason})"
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"


_COLUMNS = {"candidate": "network", "alpha": "alpha (depth)", "beta": "beta (width)", "gamma": "gamma (resolution)"}


def _triple(coefficients: Coefficients) -> dict[str, str]:
    return {name: f"{getattr(coefficients, name):g}" for name in ("alpha", "beta", "gamma")}


def _points(*shares: float | None) -> str:
    return " to ".join(f"{100 * share:.2f}" for share in shares if share is not None) + " points"


def _times(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
