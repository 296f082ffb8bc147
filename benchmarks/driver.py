"""What a search costs beside training: milliseconds an evaluation, with trainings that end at once.

    python benchmarks/driver.py                # 10 to 10,000 evaluations; some minutes
    python benchmarks/driver.py 100 1000

The strategy, ledger, study, Optuna's sqlite and MLflow's spool are the real ones. In a resume all is in the ledger.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from scalesearch import compose, run
from scalesearch.config import Groups, plain
from scalesearch.planning import planned
from scalesearch.screen import Screen
from scalesearch.session import Session
from scalesearch.study import Study, StudySettings
from scalesearch.training import Result

SIZES = (10, 100, 1_000, 10_000)
IMAGES = 1_000
CANDIDATES = 9


class Instant:
    """Workers whose trainings have ended when they begin."""

    slots = 4

    def __init__(self) -> None:
        self._chance = np.random.default_rng(0)

    def __enter__(self) -> Instant:
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, _: object, specification: Mapping[str, Any]) -> Future[dict[str, Any]]:
        right = self._chance.random(IMAGES) < 0.8
        result = Result(
            val_accuracy=float(right.mean()),
            val_loss=1.0,
            correct=right,
            curve=({"epoch": 1, "train_loss": 1.0, "learning_rate": 0.1},),
            train_seconds=1.0,
            images_per_second=1.0,
        )
        future: Future[dict[str, Any]] = Future()
        future.set_result({"result": result.to_json(), "environment": {"precision": specification["precision"]}})
        return future


def seconds(number: int, workspace: Path, tracking: str) -> float:
    """Of the trainings of a search with about so many evaluations."""
    words = ("baseline=preresnet20", "data=digits", "search=grid", "recipe.autocast=off", f"workspace={workspace}")
    seeds = max(1, number // (CANDIDATES + 1))
    given = [*words, f"recipe.seeds={min(seeds, 1000)}", f"tracking={tracking}", "data.num_val=1000"]
    settings = StudySettings.of(Groups(plain(compose.composed("run", *given))))
    plan, _ = planned(settings, measured=False)
    plan = plan._replace(candidates=plan.candidates[:CANDIDATES])
    session = Session(workspace, settings.executor, Screen(as_json=False), settings.directory, False, settings.tracking)
    session._workers = Instant()
    unseen = io.StringIO()
    with contextlib.redirect_stderr(unseen), contextlib.redirect_stdout(unseen), session:
        data = session.data(settings.data)
        study = Study.begin(settings, plan, data, None)
        with run._log(settings, session, plan, data, None) as log:
            began = time.perf_counter()
            trials, _ = run._train_candidates(settings, session, study, plan, data, None, log)
            taken = time.perf_counter() - began
    assert len(trials) == settings.seeds * (CANDIDATES + 1)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", type=int, nargs="*", default=SIZES, help="evaluations of a search")
    sizes = parser.parse_args().sizes
    print("| evaluations | ms each | ms each, resumed | ms each, tracking=none |\n|---|---|---|---|")
    for number in sizes:
        cells = []
        with tempfile.TemporaryDirectory() as directory:
            for name, tracking in (("a", "mlflow"), ("a", "mlflow"), ("b", "none")):
                cells.append(f"{1000 * seconds(number, Path(directory) / name, tracking) / number:.2f}")
        print(f"| {number:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
