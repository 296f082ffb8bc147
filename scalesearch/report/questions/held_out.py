"""Validation less test accuracy of the choice and of the 1x network, which nobody chose; and what saw the test."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from scalesearch.report.facts import Facts
from scalesearch.report.questions import Values, bounds, interval, measured_by, table
from scalesearch.search import BASELINE
from scalesearch.selection import Comparison
from scalesearch.text import percent

ORDER = 5
TITLE = "Was it chosen on the data that it is scored on?"
Images = NDArray[np.float64]


def answer(facts: Facts) -> Values:
    """The optimism of both networks, and by how much more the choice has than the 1x network."""
    names = facts.choice.chosen, BASELINE
    tests = {name: {one.seed: one for one in facts.test.get(name, ())} for name in names}
    drawn = {
        name: {
            s: (images.astype(np.float64), tests[name][s].accuracy) for s, images in seeds.items() if s in tests[name]
        }
        for name, seeds in ((name, facts.finished.get(name, {})) for name in names)
    }
    num_val = len(next(iter(next(iter(facts.finished.values())).values())))
    num_test = next((tests[name][seed].num_images for name in names for seed in drawn[name]), None)
    rows: list[Values] = []
    for name, seeds in drawn.items():
        rows.append({"network": name, "optimism": None})
        if seeds:
            right, scores = zip(*seeds.values(), strict=True)
            rows[-1] |= {"val_accuracy": float(np.mean(right)), "test_accuracy": float(np.mean(scores))}
            rows[-1] |= _optimism("optimism", seeds, num_test or 0, facts)
        else:
            rows[-1]["command"] = facts.command("run")
    # paired by seed and image: what choosing did, not the images
    ours, theirs = (drawn[name] for name in names)
    both = {s: (ours[s][0] - theirs[s][0], ours[s][1] - theirs[s][1]) for s in sorted(ours.keys() & theirs.keys())}
    excess = _optimism("difference", both, num_test or 0, facts) if both else None
    return {"num_val": num_val, "num_test": num_test, "seen": sorted(facts.test), "rows": rows, "excess": excess}


def _optimism(name: str, drawn: Mapping[int, tuple[Images, float]], num_test: int, facts: Facts) -> Values:
    """The mean of validation less test as `name`, with bounds over seeds and both sets of images; None with one seed.

    drawn: of each seed, for each validation image 1, 0 or -1 (N,), and the test accuracy. The test images, of which
    only the mean is kept, are taken to vary as those do.
    """
    images = np.stack([right for right, _ in drawn.values()])  # (S, N)
    differences = [float(right.mean()) - test for right, test in drawn.values()]
    low = high = None
    num_seeds, num_val = images.shape
    if num_seeds > 1:
        by_image = images.mean(0)
        rest = images - by_image - images.mean(1, keepdims=True) + images.mean()
        noise = float((rest**2).sum()) / ((num_seeds - 1) * (num_val - 1)) / num_seeds
        of_image = max(0.0, float(by_image.var(ddof=1)) - noise)
        of_seeds = float(np.var(differences, ddof=1)) / num_seeds
        error = of_seeds + of_image * (1 / num_val + 1 / num_test)
        degrees = (num_seeds - 1) * (error / of_seeds) ** 2 if of_seeds > 0 else math.inf
        one = Comparison(float(np.mean(differences)), math.sqrt(error), degrees, num_seeds, num_val, 0.0, 0.0)
        low, high = bounds(one, facts.confidence)
    return {name: float(np.mean(differences)), "low": low, "high": high, "seeds": num_seeds}


def words(values: Values) -> list[str]:
    num_test = f", and scored on {values['num_test']:,} test images" if values["num_test"] else ""
    first = (
        f"No: it was chosen on {values['num_val']:,} validation images{num_test} that no choice looked at. "
        f"The ledger has test scores of {', '.join(values['seen']) or 'no network'} of this study."
    )
    if len(values["seen"]) > 2:
        first += (
            "\nMore than the choice and the 1x network: earlier choices, or those of studies that share trainings. The "
            "test split has been looked at that often."
        )
    tested = [
        {
            "network": row["network"],
            "validation": percent(row["val_accuracy"]),
            "test": percent(row["test_accuracy"]),
            "validation less test": interval(row, "optimism"),
            "seeds": row["seeds"],
        }
        for row in values["rows"]
        if row["optimism"] is not None
    ]
    paragraphs = [first, *table(tested)]
    if (excess := values["excess"]) is not None:
        paragraphs.append(
            f"The choice's optimism less the 1x network's, which nobody chose, is {interval(excess)} points: what "
            "choosing did, apart from one split being harder than the other."
        )
    for row in values["rows"]:
        if row["optimism"] is None:
            missing = f"The test accuracy of {row['network']} was not measured."
            paragraphs += [missing, *measured_by(row["command"])]
    return paragraphs
