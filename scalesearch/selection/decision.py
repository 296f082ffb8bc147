"""What to do with the compute, and what it costs to be wrong: the estimate of all candidates at once, as a decision."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from scalesearch.posterior import Posterior, fitted
from scalesearch.search import BASELINE, Candidate
from scalesearch.selection.pairs import Seeds, scores
from scalesearch.text import level, percent, plural

FURTHER_MINUTES = 10


class Further(NamedTuple):
    """What some more minutes of training would buy: how many trainings, and the expected regret after them."""

    minutes: float
    trainings: int
    regret: float


@dataclass(frozen=True)
class Decision:
    """The split to take.

    chosen: the candidate of the highest expected accuracy among those that may be chosen.
    regret: what its accuracy is expected to lose against the best of all that were trained, a fraction.
    regret_bound: what it does not lose more than, with probability `confidence`.
    probability: that it is the best of them.
    as_good: with the chosen one the fewest candidates that include the best with probability `confidence`.
    spans: (lowest, highest) alpha, beta and gamma of the chosen one and of those that are as good.
    table: one row per candidate with `accuracy` (expected, over all seeds and images), its interval `accuracy_low` and
        `accuracy_high`, `probability_best`, `expected_regret`, `regret_bound`, `as_good`, `chosen`, and its size.
    further: None where no time of a training is known.
    """

    chosen: str
    regret: float
    regret_bound: float
    probability: float
    confidence: float
    as_good: tuple[str, ...]
    spans: Mapping[str, tuple[float, float]]
    table: pd.DataFrame
    further: Further | None

    def values(self) -> dict[str, Any]:
        """As result.json has it."""
        return {
            "chosen": self.chosen,
            "expected_regret": self.regret,
            "regret_bound": self.regret_bound,
            "probability_best": self.probability,
            "confidence": self.confidence,
            "as_good": list(self.as_good),
            "spans": {name: list(span) for name, span in self.spans.items()},
            "further": None if self.further is None else self.further._asdict(),
        }


def estimate(known: Mapping[str, Candidate], finished: Mapping[str, Seeds]) -> tuple[list[str], Posterior] | None:
    """(names in the order of the posterior's networks, posterior); None where the trainings are too few.

    known: candidates by name, the 1x network's among them. finished: of each what its trainings had right.
    """
    names = sorted(finished, key=lambda name: (name != BASELINE, name))
    triples = [[(t.alpha, t.beta, t.gamma) for t in known[name].triples] for name in names]
    found = fitted(triples, [scores(finished[name]) for name in names], [finished[name] for name in names])
    return None if found is None else (names, found)


def decide(
    known: Mapping[str, Candidate],
    finished: Mapping[str, Seeds],
    free: Collection[str],
    *,
    confidence: float,
    amounts: Mapping[str, float],
    chosen: str | None = None,
    seconds: float | None = None,
    workers: int = 1,
) -> Decision | None:
    """The decision among the finished candidates; None where the trainings are too few to tell.

    Args:
        free: those that may be chosen; the others count as what one may have missed.
        amounts: what each one needs; of equal expectations the one that needs less is chosen.
        chosen: what another rule has chosen; None: the highest expected accuracy of `free`.
        seconds: of a training, the mean; with `workers` at a time they make what further minutes would buy.
    """
    if (estimated := estimate(known, finished)) is None:
        return None
    names, found = estimated
    among = [place for place, name in enumerate(names) if name != BASELINE]
    if chosen is None:
        expected = {name: round(float(found.mean[names.index(name)]), 12) for name in free}
        chosen = min(free, key=lambda name: (-expected[name], amounts[name], name))
    probability, regret = found.probability_best(among), found.regret(among)
    bound = found.regret_bound(among, confidence)
    good = [names[place] for place in found.best_set(among, confidence)]
    own = among.index(names.index(chosen))
    members = [chosen, *(name for name in good if name != chosen)]
    rows = []
    for index, place in enumerate(among):
        name = names[place]
        low, high = found.interval(place, confidence)
        coefficients = known[name].coefficients
        rows.append(
            {
                "candidate": name,
                **{key: getattr(coefficients, key) for key in ("alpha", "beta", "gamma")},
                "macs_ratio": known[name].ratio,
                "accuracy": float(found.mean[place]),
                "accuracy_low": low,
                "accuracy_high": high,
                "probability_best": float(probability[index]),
                "expected_regret": float(regret[index]),
                "regret_bound": float(bound[index]),
                "as_good": name in members and name != chosen,
                "chosen": name == chosen,
            }
        )
    return Decision(
        chosen=chosen,
        regret=float(regret[own]),
        regret_bound=float(bound[own]),
        probability=float(probability[own]),
        confidence=confidence,
        as_good=tuple(members[1:]),
        spans={key: _span(known, members, key) for key in ("alpha", "beta", "gamma")},
        table=pd.DataFrame(rows).sort_values("expected_regret", ignore_index=True, kind="stable"),
        further=_further(found, among, [names.index(name) for name in members], seconds, workers),
    )


def _span(known: Mapping[str, Candidate], names: Collection[str], key: str) -> tuple[float, float]:
    values = [getattr(known[name].coefficients, key) for name in names]
    return min(values), max(values)


def _further(
    found: Posterior, among: list[int], members: list[int], seconds: float | None, workers: int
) -> Further | None:
    """More seeds for the chosen one and what is as good, in equal parts."""
    if not seconds or len(among) < 2:
        return None
    number = int(60 * FURTHER_MINUTES * workers / seconds)
    members = members if len(members) > 1 else among
    parts = {place: number // len(members) + (index < number % len(members)) for index, place in enumerate(members)}
    return Further(FURTHER_MINUTES, number, found.regret_after(parts, among))


def words(values: Mapping[str, Any], split: Mapping[str, float]) -> str:
    """The decision in one sentence or two. values: `Decision.values`; split: alpha, beta and gamma of the choice."""
    regret, confidence = values["expected_regret"], values["confidence"]
    text = (
        f"split the compute by alpha (depth) = {split['alpha']:g}, beta (width) = {split['beta']:g}, "
        f"gamma (resolution) = {split['gamma']:g} ({values['chosen']}): expected regret {percent(regret)} points "
        f"(at {level(confidence)} at most {percent(values['regret_bound'])}), "
        f"the best with probability {100 * values['probability_best']:.0f} %"
    )
    if values["as_good"]:
        number = len(values["as_good"])
        others = ", ".join(values["as_good"]) if number <= 4 else f"{number} others"
        reach = ", ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in values["spans"].items())
        text += f"; at {level(confidence)} the best may as well be {others} (in all {reach})"
    else:
        text += f"; at {level(confidence)} no other candidate may be the best"
    if (further := values["further"]) is not None:
        trainings = plural(further["trainings"], "training")
        lower = further["regret"] < 0.98 * regret
        after = f"lower the regret to {percent(further['regret'])} points" if lower else "hardly lower the regret"
        text += f". A further {further['minutes']:g} minutes ({trainings}) would {after}"
    return text
