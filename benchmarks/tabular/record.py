"""Train every candidate of the default search with many seeds and three complete schedules, and keep the scores.

    python benchmarks/tabular/record.py mobilenetv2 --seeds 12
    python benchmarks/tabular/record.py preresnet20 --seeds 12

Writes NAME.csv, one row per training, and NAME.npz beside this file: which validation images the trainings of the whole
schedule had right. Trainings go through the ledger of `--workspace`: end this at any moment, and the same command goes
on. A search can then be replayed on the table in milliseconds: replay.py, beside this file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from scalesearch import compose, search
from scalesearch.config import Groups, plain
from scalesearch.data import load
from scalesearch.evaluation import Evaluation, Evaluator
from scalesearch.ledger import Ledger
from scalesearch.study import StudySettings

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("baseline")
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--workspace", default="workspace")
    parser.add_argument("--shares", type=float, nargs="+", default=(0.25, 0.5, 1.0), help="of the recipe's epochs")
    parser.add_argument("--directory", type=Path, default=HERE, help="of the table")
    parser.add_argument("settings", nargs="*", help="of the search, such as recipe.epochs=1")
    requested = parser.parse_intermixed_args()
    images = ("data.num_train=12000", "data.num_val=10000")  # as these tables were recorded
    words = [f"baseline={requested.baseline}", *images, f"workspace={requested.workspace}", *requested.settings]
    experiment = StudySettings.of(Groups(plain(compose.composed("run", *words))))
    network, rounding = experiment.proxy_network
    plan = search.candidates(network, experiment.grid, experiment.budget, rounding)
    data = load(experiment.data)

    owner: dict[Evaluation, tuple[search.Candidate, float]] = {}

    def evaluations() -> Iterator[Evaluation]:
        for seed in range(requested.seeds):
            for share in sorted(requested.shares, reverse=True):
                recipe = replace(experiment.recipe, epochs=share * experiment.recipe.epochs)
                for candidate in (plan.baseline, *plan.candidates):
                    evaluation = Evaluation(candidate.network, recipe, data.fingerprint, seed)
                    owner[evaluation] = candidate, share
                    yield evaluation

    rows, right = [], {}
    with experiment.executor.open() as executor:
        evaluator = Evaluator(Ledger(experiment.workspace), executor, experiment.data)
        for number, outcome in enumerate(evaluator.run(evaluations()), start=1):
            if outcome.result is None:
                raise SystemExit(f"{outcome.evaluation.key} failed: {outcome.reason}")
            candidate, share = owner[outcome.evaluation]
            row = {
                "candidate": candidate.id,
                "triples": json.dumps([[t.alpha, t.beta, t.gamma] for t in candidate.triples]),
                "alpha": candidate.coefficients.alpha,
                "beta": candidate.coefficients.beta,
                "gamma": candidate.coefficients.gamma,
                "macs": candidate.cost.macs,
                "macs_ratio": round(candidate.ratio, 6),
                "params": candidate.cost.params,
                "epochs": outcome.evaluation.recipe.epochs,
                "seed": outcome.evaluation.seed,
                "val_accuracy": outcome.result.val_accuracy,
                "test_accuracy": None,
                "train_seconds": round(outcome.result.train_seconds, 2),
            }
            if share == 1:
                row["test_accuracy"] = evaluator.test([outcome.evaluation])[0]["test_accuracy"]
                right[f"{candidate.id}.{outcome.evaluation.seed}"] = np.packbits(outcome.result.correct)
            rows.append(row)
            if not outcome.reused:
                print(number, row["candidate"], row["epochs"], row["seed"], row["val_accuracy"], flush=True)
    table = pd.DataFrame(rows).sort_values(["candidate", "epochs", "seed"], ignore_index=True)
    table.to_csv(requested.directory / f"{requested.baseline}.csv", index=False)
    np.savez_compressed(requested.directory / f"{requested.baseline}.npz", **dict(sorted(right.items())))


if __name__ == "__main__":
    main()
