"""The best split at 8 times the cost, predicted from trainings of 1 to 4.5 times it: several forms of the surface
against the paper's way, on the recorded experiments. Puts the tables into docs/search.md.

    python benchmarks/surface.py

Nothing is trained: the trainings are those of figures 3, 4 and 8, of phi_check and of latency (preresnet_tiny on
fashion_scenes, 3 seeds). The networks of 7.5 to 9.5 times the cost are held out.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import optimize, stats

from scalesearch.posterior import most_probable, posterior
from scalesearch.surface import Network, multiples, size

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "search.md"
EXPERIMENTS = ("figure3", "figure4", "figure8", "phi_check", "latency")
MOST, HELD_OUT, FIRST = 4.5, (7.5, 9.5), (1.7, 2.2)  # costs: fitted up to, predicted, of phi = 1
FEW, DRAWS = 12, 200  # networks of a search, and how many such searches are drawn
Predict = Callable[[Sequence[Network], Sequence[Network]], np.ndarray]


def recorded() -> list[Network]:
    """Each network with its depth in blocks and its resolution in pixels, as multiples of the 1x network's."""
    tables = [pd.read_csv(ROOT / "experiments" / name / "results.csv") for name in EXPERIMENTS]
    table = pd.concat(tables).drop_duplicates("key")
    table = table[table["state"] == "finished"]
    base = table[table["macs_ratio"] == 1].iloc[0]
    found = []
    for _, rows in table.groupby(["macs", "pixels", "blocks", "params"]):
        one = rows.iloc[0]
        of = (one["blocks"] / base["blocks"], one["width"], one["pixels"] / base["pixels"])
        found.append(Network(of, dict(zip(rows["seed"], rows["val_accuracy"], strict=True)), one["macs_ratio"]))
    return found


def _rows(networks: Sequence[Network]) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3) sizes and (N,) mean scores."""
    return np.array([size(one.of) for one in networks]), np.array(
        [np.mean(list(one.scores.values())) for one in networks]
    )


def _least_squares(features: Callable[[np.ndarray], np.ndarray]) -> Predict:
    def predict(trained: Sequence[Network], asked: Sequence[Network]) -> np.ndarray:
        known, scores = _rows(trained)
        weights = np.linalg.lstsq(features(known), scores, rcond=None)[0]
        return np.asarray(features(_rows(asked)[0]) @ weights)

    return predict


def _plane(sizes: np.ndarray) -> np.ndarray:
    return np.column_stack([np.ones(len(sizes)), sizes])


def _quadratic(sizes: np.ndarray) -> np.ndarray:
    first, second = np.triu_indices(3)
    return np.column_stack([_plane(sizes), sizes[:, first] * sizes[:, second]])


def _law(error: Callable[[np.ndarray, np.ndarray], np.ndarray], scales: int, worst: list[float]) -> Predict:
    """Least squares of an error of (values, sizes); values are a floor, so many scales, and three exponents."""

    def predict(trained: Sequence[Network], asked: Sequence[Network]) -> np.ndarray:
        known, scores = _rows(trained)
        starts = [
            np.array([floor, *[(0.45 - floor) / scales] * scales, *[power] * 3])
            for floor in (0.0, 0.2)
            for power in (0.2, 0.8)
        ]
        fits = [
            optimize.least_squares(lambda values: error(values, known) - (1 - scores), start, bounds=(0, worst))
            for start in starts
        ]
        return np.asarray(1 - error(min(fits, key=lambda one: one.cost).x, _rows(asked)[0]))

    return predict


def _sum_of_laws(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    return np.asarray(values[0] + (values[1:4] * 2 ** (-sizes * values[4:])).sum(1))


def _product_of_laws(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    return np.asarray(values[0] + values[1] * 2 ** (-sizes @ values[2:]))


def _estimated(*, across_costs: bool) -> Predict:
    def predict(trained: Sequence[Network], asked: Sequence[Network]) -> np.ndarray:
        found = posterior(
            [size(one.of) for one in trained],
            [one.scores for one in trained],
            points=[size(one.of) for one in asked],
            across_costs=across_costs,
        )
        assert found is not None
        return found.mean[len(trained) :]

    return predict


def raised(trained: Sequence[Network], asked: Sequence[Network]) -> np.ndarray:
    """The paper's way: the best split of phi = 1, kept; the nearer another split, the better it is taken for."""
    first = [one for one in trained if FIRST[0] <= one.ratio <= FIRST[1]]
    best = max(first, key=lambda one: float(np.mean(list(one.scores.values()))))
    return np.array([-math.dist(_split(one), _split(best)) for one in asked])


def _split(network: Network) -> tuple[float, float, float]:
    depth, width, resolution = size(network.of)
    cost = depth + width + resolution
    return depth / cost, width / cost, resolution / cost


def _kept(of: tuple[float, float, float]) -> Predict:
    """A split that is known beforehand, whatever was trained."""
    known = _split(Network(of, {}, 2))
    return lambda _, asked: np.array([-math.dist(_split(one), known) for one in asked])


FORMS: dict[str, Predict] = {
    "plane (least squares)": _least_squares(_plane),
    "quadratic (least squares)": _least_squares(_quadratic),
    "power law of each dimension, with a ceiling": _law(_sum_of_laws, 3, [1, 2, 2, 2, 4, 4, 4]),
    "product of power laws, with a ceiling": _law(_product_of_laws, 1, [1, 2, 4, 4, 4]),
    "the estimate of one cost (`posterior`)": _estimated(across_costs=False),
    "**the estimate over costs (`surface`)**": _estimated(across_costs=True),
    "best of phi = 1, raised": raised,
    "the paper's triple, raised": _kept((1.2, 1.1, 1.15)),
    "equal shares": _kept(multiples((1 / 3, 1 / 3, 1 / 3), 1)),
}


class Judged(NamedTuple):
    """Spearman's rank correlation over the held-out networks, and what the choice loses there, in points."""

    rank: float
    regret: float


def judge(predicted: np.ndarray, true: np.ndarray) -> Judged:
    return Judged(float(stats.spearmanr(predicted, true)[0]), 100 * float(true.max() - true[int(predicted.argmax())]))


def one_seed(trained: Sequence[Network], asked: Sequence[Network], seed: int) -> tuple[list[Network], list[Network]]:
    """(what is fitted, with that seed alone, what is held out, with the others)."""
    known = [one._replace(scores={seed: one.scores[seed]}) for one in trained]
    return known, [one._replace(scores={s: one.scores[s] for s in one.scores if s != seed}) for one in asked]


def few(networks: Sequence[Network], generator: np.random.Generator) -> list[Network]:
    """The networks of a search: the 1x network, of phi = 1 at least two, and others."""
    chosen = {place for place, one in enumerate(networks) if one.ratio == 1}
    first = [place for place, one in enumerate(networks) if FIRST[0] <= one.ratio <= FIRST[1]]
    chosen |= {*map(int, generator.choice(first, size=2, replace=False))}
    others = [place for place in range(len(networks)) if place not in chosen]
    chosen |= {*map(int, generator.choice(others, size=FEW - len(chosen), replace=False))}
    return [networks[place] for place in sorted(chosen)]


def searches(trained: Sequence[Network], asked: Sequence[Network]) -> Iterator[tuple[list[Network], list[Network]]]:
    """(few networks with one seed, those held out with the other seeds), drawn alike at each call."""
    generator = np.random.default_rng(0)
    for draw in range(DRAWS):
        known, held_out = one_seed(trained, asked, draw % 3)
        yield few(known, generator), held_out


def tables() -> dict[str, list[str]]:
    networks = recorded()
    trained = [one for one in networks if one.ratio <= MOST]
    asked = [one for one in networks if HELD_OUT[0] <= one.ratio <= HELD_OUT[1]]
    lines = [
        f"| form | {len(trained)} networks, 3 seeds: rank correlation | regret | one seed: rank correlation | regret | "
        f"{FEW} networks, one seed: rank correlation | regret |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, predict in FORMS.items():
        whole = judge(predict(trained, asked), _rows(asked)[1])
        seeds = [one_seed(trained, asked, seed) for seed in range(3)]
        single = [judge(predict(known, held_out), _rows(held_out)[1]) for known, held_out in seeds]
        drawn = [judge(predict(known, held_out), _rows(held_out)[1]) for known, held_out in searches(trained, asked)]
        cells = [whole, Judged(*np.mean(single, 0)), Judged(*np.mean(drawn, 0))]
        lines.append(f"| {name} | " + " | ".join(f"{one.rank:.2f} | {one.regret:.2f}" for one in cells) + " |")
    return {"held out at 8 times the cost": lines, "sets at 8 times the cost": sets(trained, asked)}


def sets(trained: Sequence[Network], asked: Sequence[Network]) -> list[str]:
    """How often the set of 95 % includes the best network held out, and expected against true regret.

    Both are for the means of the seeds held out; the networks named are those that may truly be the best.
    """
    generator = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for known, held_out in searches(trained, asked):
        true = _rows(held_out)[1]
        # With own parts: what is held out are networks, each of which is a little better or worse than its size tells.
        every = [*known, *(one._replace(scores={}) for one in held_out)]
        found = posterior([size(one.of) for one in every], [one.scores for one in every], across_costs=True)
        assert found is not None
        places = list(range(len(known), len(every)))
        chosen = int(found.mean[places].argmax())
        # What is held out are means of a few seeds: their noise may make another network the best one.
        noise = np.array([math.sqrt(found.training_variance / len(one.scores)) for one in held_out])
        drawn = found.draws[:, places] + noise * generator.standard_normal((len(found.draws), len(places)))
        probability = np.bincount(drawn.argmax(1), minlength=len(places)) / len(drawn)
        rows.append(
            {
                "includes": int(true.argmax()) in most_probable(probability, 0.95),
                "named": len(found.best_set(places, 0.95)),
                "expected": 100 * float((drawn.max(1) - drawn[:, chosen]).mean()),
                "true": 100 * (true.max() - true[chosen]),
            }
        )
    mean = pd.DataFrame(rows).mean()
    return [
        "| searches | set includes the best held out | nominal | networks named, mean | of | expected regret | true |",
        "|---|---|---|---|---|---|---|",
        f"| {DRAWS} | {100 * mean['includes']:.1f} % | 95 % | {mean['named']:.1f} | {len(asked)} | "
        f"{mean['expected']:.2f} | {mean['true']:.2f} |",
    ]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    page = PAGE.read_text()
    for name, lines in tables().items():
        table = "\n".join(lines)
        print(f"\n{name}\n{table}", flush=True)
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, rest = page.split(begin)
        page = f"{before}{begin}\n\n{table}\n\n{end}{rest.split(end)[1]}"
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
