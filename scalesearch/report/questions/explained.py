"""Whether candidates are accurate because they cost more, and the order without that."""

from __future__ import annotations

import math

from scalesearch.report.facts import Facts
from scalesearch.report.questions import Values, interval
from scalesearch.text import percent

ORDER = 9
TITLE = "Is the accuracy explained by the cost alone?"


def answer(facts: Facts) -> Values:
    """The slope in accuracy per doubling of the counted cost, and all means corrected to the same cost."""
    effect, budget = facts.choice.cost_effect, facts.budget
    if effect is None:
        return {"slope": None, "num_candidates": len(facts.means()), "macs_ratio": budget.macs_ratio}
    corrected = facts.choice.candidates.set_index("candidate")["val_accuracy_corrected"]
    ratios = [facts.candidates[name].ratio for name in effect.order]
    return {
        "slope": effect.slope,
        **{end: None if math.isnan(one) else one for end, one in (("low", effect.low), ("high", effect.high))},
        "dearest": effect.most_expensive,  # the name of the key in report.json since 0.1.0
        "order": list(effect.order),
        "shown": effect.shown,
        "share": None if math.isnan(effect.share) else effect.share,
        "doublings": math.log2(max(ratios) / min(ratios)),
        "num_candidates": len(effect.order),
        "macs_ratio": budget.macs_ratio,
        "chosen": facts.choice.chosen,
        "best": facts.choice.best,
        "corrected": {name: float(corrected[name]) for name in effect.order},
    }


def words(values: Values) -> list[str]:
    if values["slope"] is None:
        return ["It cannot be known: that takes three candidates at least, which do not all cost the same."]
    verdict = "In part" if values["shown"] and values["slope"] > 0 else "That is not shown"
    share = "" if values["share"] is None else f"; the cost explains {percent(values['share'], 1)} % of the variance"
    order = ", ".join(f"{name} {percent(values['corrected'][name])}" for name in values["order"])
    paragraphs = [
        f"{verdict}: a doubling of the multiply-adds goes with {interval(values, 'slope')} points (least squares over "
        f"the candidates){share}. The {values['num_candidates']} candidates span {values['doublings']:.2f} doublings.",
        f"{values['chosen']}, the choice, is {'' if values['dearest'] else 'not '}the most expensive candidate. With "
        f"all means corrected to {values['macs_ratio']:g} times the 1x network, the order is {order}.",
    ]
    first = values["order"][0]
    if first != values["best"] and not values["shown"]:
        paragraphs.append(f"{first} leads then, by a correction that is itself not shown to differ from none.")
    return paragraphs
