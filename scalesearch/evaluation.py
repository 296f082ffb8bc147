"""An evaluation: the pure function of (network, recipe, data, seed) that everything else is made of.

`Evaluator.run` is the one place where evaluations are carried out: what the ledger has is taken from there,
the rest goes to the executor, and each result is in the ledger before anybody else hears of it.
"""

from __future__ import annotations

import datetime
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

from scalesearch.cost import cost
from scalesearch.data import DataSpec, Description
from scalesearch.executor import EvaluationFailed, LocalExecutor, RayExecutor, WorkerDied
from scalesearch.ledger import VERSION, Claim, Ledger, Measured, evaluation_key
from scalesearch.machine import environment
from scalesearch.model import identity
from scalesearch.network import AnyNetwork, Factory
from scalesearch.training import (
    Recipe,
    Result,
    asked_precision,
    pace_specification,
    precision_specification,
    run_specification,
    test_specification,
)


@dataclass(frozen=True)
class Evaluation:
    """A network to be trained with a recipe on data (by fingerprint) from a seed; its key names it everywhere.

    `init` is the digest of the weights that it starts from (`pretrained.Initial`); None where chance draws them.
    """

    network: AnyNetwork
    recipe: Recipe
    data: str
    seed: int
    init: str | None = None

    def specification(self) -> dict[str, Any]:
        """What the key is made of: plain values; names, devices and versions take no part."""
        values = {
            "network": identity(self.network),
            "recipe": asdict(self.recipe),
            "data": self.data,
            "seed": self.seed,
        }
        return values if self.init is None else values | {"init": self.init}

    @cached_property
    def key(self) -> str:
        return evaluation_key(self.specification())


class Outcome(NamedTuple):
    """What became of an evaluation. `result` is None where it failed, and `reason` says why.

    precision: what it was trained in, "float32" or "bfloat16"; "" where that was not recorded.
    """

    evaluation: Evaluation
    result: Result | None
    reason: str
    reused: bool
    precision: str = ""


class Work(NamedTuple):
    """So many trainings (a fraction may be: an expectation) of a network with a recipe on data of these sizes."""

    network: AnyNetwork
    recipe: Recipe
    data: Description
    trainings: float


class Evaluator:
    """Carries out evaluations with a ledger, an executor, and the data that the workers load for themselves."""

    def __init__(self, ledger: Ledger, executor: LocalExecutor | RayExecutor, data: DataSpec) -> None:
        self._ledger, self._executor, self._data = ledger, executor, data
        self.slots = executor.slots

    def precision(self, network: AnyNetwork, recipe: Recipe) -> str:
        """What `network` is trained in, "float32" or "bfloat16": as the recipe asks, or as a worker's timing decides.

        Networks of the same blocks are decided together, by the first that is asked for, and the decision is kept in
        the workspace's precision.json: what is compared is trained alike, and goes on alike after a crash.
        """
        asked = asked_precision(recipe)
        if asked is not None:
            return asked
        name = (
            network.function if isinstance(network, Factory) else " ".join(sorted({r.block for _, r in network.rows()}))
        )
        kept = self._precisions
        if kept.get(name) not in ("float32", "bfloat16"):
            specification = {"network": network.table(), "name": network.name, "recipe": asdict(recipe)}
            try:
                found = self._executor.submit(precision_specification, specification).result()
            except (EvaluationFailed, WorkerDied):  # and so will its training, which says why
                return "float32"
            kept.put(name, found["precision"])
        return str(kept.get(name))

    @cached_property
    def _precisions(self) -> Measured:
        here = environment()
        machine = f"{here['host']}, {here['processor']}, {here['device']}, torch {here['torch']}"
        return Measured(self._ledger.workspace / "precision.json", machine)

    def expected_seconds(self, work: Sequence[Work]) -> float:
        """Seconds that these trainings would take with all workers, from timing some of the networks in the workers.

        All workers time at once, as they train; starting, and what is done with the results, is left out.
        """
        networks = {(one.network, one.recipe): cost(one.network).macs for one in work}
        ordered = sorted(networks, key=lambda key: networks[key])
        step = (len(ordered) - 1) / (_MOST_TIMED - 1)
        timed = ordered if len(ordered) <= _MOST_TIMED else [ordered[round(step * i)] for i in range(_MOST_TIMED)]
        futures = {
            (network, recipe): self._executor.submit(
                pace_specification,
                {
                    "network": network.table(),
                    "name": network.name,
                    "recipe": asdict(recipe),
                    "precision": self.precision(network, recipe),
                },
            )
            for network, recipe in timed
        }
        paces = {key: future.result() for key, future in futures.items()}
        seconds = 0.0
        for network, recipe, sizes, trainings in work:
            macs = networks[network, recipe]
            like = min(paces, key=lambda key: (key[1] != recipe, abs(math.log(networks[key] / macs))))
            share = macs / networks[like]
            train = paces[like]["train_seconds"] * sizes.num_train * recipe.epochs
            seconds += trainings * share * (train + paces[like]["score_seconds"] * sizes.num_val)
        return seconds / max(1.0, min(self.slots, sum(one.trainings for one in work)))

    def run(self, evaluations: Iterable[Evaluation | None]) -> Iterator[Outcome]:
        """Outcomes in the order in which they come; each is in the ledger when it is yielded.

        Evaluations are drawn only when a worker is free, so that a strategy may decide on what it has seen;
        None says that it waits for an outcome first. One that another live driver of this workspace is
        training is waited for, not trained again. One that was stopped (Ctrl-C, a shut down executor) has not
        failed and is not recorded.

        Errors: CancelledError where the executor was shut down; RuntimeError where None comes and no outcome can.
        """
        source = iter(evaluations)
        running: dict[Future[dict[str, Any]], tuple[Evaluation, Claim]] = {}
        elsewhere: list[Evaluation] = []
        exhausted = False
        try:
            while True:
                while len(running) < self.slots and not exhausted:
                    evaluation = next(source, _END)
                    if evaluation is _END:
                        exhausted = True
                    elif evaluation is None:
                        break
                    elif (outcome := self._recorded(evaluation)) is not None:
                        self._ledger.tidy(evaluation.key)
                        yield outcome
                    elif (claim := self._ledger.claim(evaluation.key)) is None:
                        elsewhere.append(evaluation)
                    elif (outcome := self._recorded(evaluation)) is not None:  # finished while we claimed it
                        claim.release()
                        yield outcome
                    else:
                        running[self._submit(evaluation, claim)] = (evaluation, claim)
                for evaluation in list(elsewhere):
                    if (outcome := self._recorded(evaluation)) is not None:
                        elsewhere.remove(evaluation)
                        yield outcome
                    elif len(running) < self.slots and (claim := self._ledger.claim(evaluation.key)) is not None:
                        elsewhere.remove(evaluation)
                        running[self._submit(evaluation, claim)] = (evaluation, claim)
                if not running and not elsewhere:
                    if exhausted:
                        return
                    raise RuntimeError("the strategy waits for an outcome, but no evaluation is under way")
                if not running:
                    time.sleep(0.5)
                    continue
                done, _ = wait(running, timeout=0.5 if elsewhere else None, return_when=FIRST_COMPLETED)
                # All are recorded before any is yielded: the consumer may not come back for the second.
                yield from [self._record(*running.pop(future), future) for future in done]
        finally:
            for future, (evaluation, claim) in running.items():
                if future.done() and not future.cancelled() and future.exception() is None:
                    self._record(evaluation, claim, future)
                claim.release()

    def test(self, evaluations: Sequence[Evaluation]) -> list[dict[str, float]]:
        """test_accuracy, test_loss and num_test of finished evaluations, from the weights they left.

        The test split is scored once for each; after that the ledger answers.
        Errors: ValueError where the weights have gone.
        """
        futures: dict[str, Future[dict[str, Any]]] = {}
        keys = [evaluation_key({"test_of": evaluation.key}) for evaluation in evaluations]
        for key, evaluation in zip(keys, evaluations, strict=True):
            if key not in futures and self._ledger.get(key) is None:
                weights = self._ledger.weights_path(evaluation.key)
                if not weights.exists():
                    raise ValueError(
                        f"the weights of a finished evaluation are missing ({weights}); remove its record "
                        f"{weights.with_suffix('.json').name} beside it and run the same command: it is trained again"
                    )
                futures[key] = self._executor.submit(test_specification, self._for_worker(evaluation))
        for key, evaluation in zip(keys, evaluations, strict=True):
            if (future := futures.pop(key, None)) is not None:
                self._ledger.put(key, _record(key, {"test_of": evaluation.key}, "finished", future.result()))
        return [record["result"] for key in keys if (record := self._ledger.get(key)) is not None]

    def _submit(self, evaluation: Evaluation, claim: Claim) -> Future[dict[str, Any]]:
        try:
            precision = self.precision(evaluation.network, evaluation.recipe)
            return self._executor.submit(run_specification, self._for_worker(evaluation) | {"precision": precision})
        except BaseException:
            claim.release()
            raise

    def _for_worker(self, evaluation: Evaluation) -> dict[str, Any]:
        initial = (
            {} if evaluation.init is None else {"initial": str(self._ledger.initial_path(evaluation.init).absolute())}
        )
        return (
            evaluation.specification()
            | initial
            | {
                "network": evaluation.network.table(),
                "name": evaluation.network.name,
                "data_spec": asdict(self._data),
                "weights": str(self._ledger.weights_path(evaluation.key).absolute()),
                "checkpoint": str(self._ledger.checkpoint_path(evaluation.key).absolute()),
            }
        )

    def _recorded(self, evaluation: Evaluation) -> Outcome | None:
        record = self._ledger.get(evaluation.key)
        if record is None:
            return None
        result = Result.from_json(record["result"]) if record["state"] == "finished" else None
        return Outcome(
            evaluation, result, record["reason"] or "", reused=True, precision=_precision(evaluation, record)
        )

    def _record(self, evaluation: Evaluation, claim: Claim, future: Future[dict[str, Any]]) -> Outcome:
        key, specification = evaluation.key, evaluation.specification()
        with claim:
            error = future.exception()  # raises CancelledError itself where the executor never began it
            if isinstance(error, CancelledError):
                raise error
            if error is not None:
                self._ledger.put(key, _record(key, specification, "failed", None, reason=str(error)))
                return Outcome(evaluation, None, str(error), reused=False)
            answer = future.result()
            record = _record(key, specification, "finished", answer["result"], answer["environment"])
            self._ledger.put(key, record)
            result = Result.from_json(answer["result"])
            return Outcome(evaluation, result, "", reused=False, precision=_precision(evaluation, record))


def mixed_precision(outcomes: Iterable[Outcome]) -> str | None:
    """A warning where what is compared was not all trained in one precision; None where it was.

    Numbers in bfloat16 have 8 bits, in float32 24: the same training ends elsewhere, as from another seed.
    """
    found = Counter(one.precision or "a precision that was not recorded" for one in outcomes if one.result is not None)
    if len(found) < 2:
        return None
    parts = [f"{number} in {name}" for name, number in sorted(found.items())]
    return (
        f"of the trainings that are compared here {', '.join(parts[:-1])} and {parts[-1]} were made: their accuracies "
        "differ by that, too. recipe.autocast=off (float32), or bfloat16, trains all of them alike, anew"
    )


_END: Any = object()
_MOST_TIMED = 6  # networks of a plan; others are taken to be as fast, a multiply-add, as the nearest of these


def _precision(evaluation: Evaluation, record: Mapping[str, Any]) -> str:
    """Of a finished training: recorded since "auto" is decided by a timing; before then known where it was asked."""
    if record["state"] != "finished":
        return ""
    return str(record["environment"].get("precision", asked_precision(evaluation.recipe) or ""))


def _record(
    key: str,
    specification: dict[str, Any],
    state: str,
    result: dict[str, Any] | None,
    environment: dict[str, str] | None = None,
    *,
    reason: str | None = None,
) -> dict[str, Any]:
    return {
        "key": key,
        "version": VERSION,
        "specification": specification,
        "state": state,
        "result": result,
        "reason": reason,
        "recorded_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "environment": environment or {},
    }
