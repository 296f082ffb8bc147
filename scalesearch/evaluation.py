"""An evaluation: the pure function of (network, recipe, data, seed) that everything else is made of.

`Evaluator.run` is the one place where evaluations are carried out: what the ledger has is taken from there,
the rest goes to the executor, and each result is in the ledger before anybody else hears of it.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

from scalesearch.data import DataSpec
from scalesearch.executor import LocalExecutor, RayExecutor
from scalesearch.ledger import VERSION, Claim, Ledger, evaluation_key
from scalesearch.model import identity
from scalesearch.network import AnyNetwork
from scalesearch.training import Recipe, Result, run_specification, test_specification


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
    """What became of an evaluation. `result` is None where it failed, and `reason` says why."""

    evaluation: Evaluation
    result: Result | None
    reason: str
    reused: bool


class Evaluator:
    """Carries out evaluations with a ledger, an executor, and the data that the workers load for themselves."""

    def __init__(self, ledger: Ledger, executor: LocalExecutor | RayExecutor, data: DataSpec) -> None:
        self._ledger, self._executor, self._data = ledger, executor, data
        self.slots = executor.slots

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
            return self._executor.submit(run_specification, self._for_worker(evaluation))
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
        return Outcome(evaluation, result, record["reason"] or "", reused=True)

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
            self._ledger.put(key, _record(key, specification, "finished", answer["result"], answer["environment"]))
            return Outcome(evaluation, Result.from_json(answer["result"]), "", reused=False)


_END: Any = object()


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
