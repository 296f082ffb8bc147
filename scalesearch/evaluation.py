"""An evaluation: the pure function of (network, recipe, data, seed) that everything else is made of.

`Evaluator.run` is the one place where evaluations run: what the ledger has is taken from there, the rest goes to the
executor, and each result is in the ledger before anybody else sees it.
"""

from __future__ import annotations

import datetime
import logging
import math
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from scalesearch.cost import cost
from scalesearch.data import DataSpec, Description
from scalesearch.executor import EvaluationFailed, Pool, WorkerDied
from scalesearch.ledger import VERSION, Claim, Ledger, Measured, evaluation_key
from scalesearch.machine import PRECISIONS, environment
from scalesearch.model import identity
from scalesearch.network import AnyNetwork, Factory
from scalesearch.text import listed
from scalesearch.training import Recipe, Result, metrics, worker
from scalesearch.workspace import AllAlike


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
            "recipe": self.recipe.values(),
            "data": self.data,
            "seed": self.seed,
        }
        if (source := metrics.source(self.recipe.metric, self.network.num_classes)) is not None:
            values["metric_source"] = source  # an edit of the function makes other values
        return values if self.init is None else values | {"init": self.init}

    @cached_property
    def key(self) -> str:
        return evaluation_key(self.specification())


class Outcome(NamedTuple):
    """What became of an evaluation. `result` is None where it failed, and `reason` says why.

    precision: what it was trained in, of `machine.PRECISIONS`; "" where that was not recorded.
    machine: the version of torch, and "cpu" or the GPU's name; "" where that was not recorded.
    """

    evaluation: Evaluation
    result: Result | None
    reason: str
    reused: bool
    precision: str = ""
    machine: str = ""


class Work(NamedTuple):
    """So many trainings (a fraction may be: an expectation) of a network with a recipe on data of these sizes."""

    network: AnyNetwork
    recipe: Recipe
    data: Description
    trainings: float


class Evaluator:
    """Runs evaluations with a ledger, an executor, and the data that the workers load for themselves."""

    def __init__(self, ledger: Ledger, executor: Pool, data: DataSpec) -> None:
        self._ledger, self._executor, self._data = ledger, executor, data
        self.slots = executor.slots

    def precision(self, network: AnyNetwork, recipe: Recipe) -> str:
        """What `network` is trained in (`PRECISIONS`): as the recipe sets, or as a worker's timing decides.

        Networks of the same blocks are decided together, by the first of them, and the decision is kept in the
        workspace's precision.json: what is compared is trained alike, and goes on alike after a crash.
        """
        if recipe.precision is not None:
            return recipe.precision
        name = (
            network.function if isinstance(network, Factory) else " ".join(sorted({r.block for _, r in network.rows()}))
        )
        kept = self._precisions
        if kept.get(name) not in PRECISIONS:
            try:
                found = self._executor.submit(worker.precision_specification, _table(network, recipe)).result()
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
        macs = {(one.network, one.recipe): cost(one.network).macs for one in work}
        ordered, most = sorted(macs, key=lambda pair: macs[pair]), _MOST_TIMED
        if len(ordered) > most:
            ordered = [ordered[round((len(ordered) - 1) * i / (most - 1))] for i in range(most)]
        futures = {
            (network, recipe): self._executor.submit(
                worker.pace_specification, _table(network, recipe) | {"precision": self.precision(network, recipe)}
            )
            for network, recipe in ordered
        }
        paces = {pair: future.result() for pair, future in futures.items()}
        seconds = 0.0
        for network, recipe, sizes, trainings in work:
            own = macs[network, recipe]
            like = min(paces, key=lambda pair: (pair[1] != recipe, abs(math.log(macs[pair] / own))))
            train = paces[like]["train_seconds"] * sizes.num_train * recipe.epochs
            seconds += trainings * own / macs[like] * (train + paces[like]["score_seconds"] * sizes.num_val)
        return seconds / max(1.0, min(self.slots, sum(one.trainings for one in work)))

    def run(self, evaluations: Iterable[Evaluation | None]) -> Iterator[Outcome]:
        """Outcomes in the order in which they come; each is in the ledger when it is yielded.

        Evaluations are drawn only when a worker is free, so that a strategy may decide on what it has seen;
        None says that it waits for an outcome first. One that another live driver of this workspace is
        training is waited for, not trained again. One that was stopped (Ctrl-C, a shut down executor) has not
        failed and is not recorded.

        Raises:
            CancelledError: the executor was shut down.
            RuntimeError: None comes and no outcome can.
            OSError: there is nothing that a training could run on.
        """
        source, exhausted = iter(evaluations), False
        running: dict[Future[dict[str, Any]], tuple[Evaluation, Claim]] = {}
        elsewhere: list[Evaluation] = []  # drawn, and claimed by another driver
        try:
            while True:
                while len(running) < self.slots and not exhausted:
                    evaluation = next(source, _END)
                    if evaluation is None:
                        break
                    if evaluation is _END:
                        exhausted = True
                    else:
                        yield from self._begin(evaluation, running, elsewhere)
                waiting, elsewhere = elsewhere, []
                for evaluation in waiting:
                    yield from self._begin(evaluation, running, elsewhere)
                if len(elsewhere) < len(waiting):
                    continue  # the strategy may have waited for these
                if running:
                    done, _ = wait(running, timeout=0.5 if elsewhere else None, return_when=FIRST_COMPLETED)
                    # All are recorded before any is yielded: the consumer may not come back for the second.
                    yield from [self._record(*running.pop(future), future) for future in done]
                elif elsewhere:
                    time.sleep(0.5)
                elif exhausted:
                    return
                else:
                    raise RuntimeError("the strategy waits for an outcome, but no evaluation is under way")
        finally:
            for future, (evaluation, claim) in running.items():
                if future.done() and not future.cancelled() and future.exception() is None:
                    self._record(evaluation, claim, future)
                claim.release()

    def _begin(
        self,
        evaluation: Evaluation,
        running: dict[Future[dict[str, Any]], tuple[Evaluation, Claim]],
        elsewhere: list[Evaluation],
    ) -> Iterator[Outcome]:
        """The outcome where the ledger has one; else the evaluation goes to `running`, or to `elsewhere`."""
        key = evaluation.key
        if (outcome := self._recorded(evaluation)) is not None:
            self._ledger.tidy(key)
            yield outcome
        elif len(running) >= self.slots or (claim := self._ledger.claim(key)) is None:
            elsewhere.append(evaluation)
        elif (outcome := self._recorded(evaluation)) is not None:  # finished while we claimed it
            claim.release()
            yield outcome
        else:
            running[self._submit(evaluation, claim)] = (evaluation, claim)

    def test(self, evaluations: Sequence[Evaluation]) -> list[dict[str, float]]:
        """test_accuracy, test_loss and num_test of finished evaluations, from the weights they left.

        The test split is scored once for each; after that the ledger answers. Where weights are missing or damaged,
        the training is done again.

        Raises:
            ValueError: it has failed this time.
        """
        futures: dict[str, Future[dict[str, Any]]] = {}
        keys = [evaluation_key({"test_of": evaluation.key}) for evaluation in evaluations]
        for key, evaluation in zip(keys, evaluations, strict=True):
            self._have_weights(evaluation, scored=self._ledger.get(key) is not None)
        for key, evaluation in zip(keys, evaluations, strict=True):
            if key not in futures and self._ledger.get(key) is None:
                futures[key] = self._executor.submit(worker.test_specification, self._for_worker(evaluation))
        for key, evaluation in zip(keys, evaluations, strict=True):
            if (future := futures.pop(key, None)) is not None:
                self._put(key, {"test_of": evaluation.key}, result=future.result())
        return [record["result"] for key in keys if (record := self._ledger.get(key)) is not None]

    def _have_weights(self, evaluation: Evaluation, *, scored: bool) -> None:
        """Train once more what has left no weights that can be used; scored ones may have been removed."""
        why = self._ledger.why_no_weights(evaluation.key)
        if why is None or (scored and not self._ledger.weights_path(evaluation.key).exists()):
            return
        logging.getLogger(__name__).warning(f"{why}; it is trained again")
        self._ledger.forget(evaluation.key)
        for outcome in self.run([evaluation]):
            if outcome.result is None:
                raise ValueError(f"{why}, and its training has failed this time: {outcome.reason}")

    def _submit(self, evaluation: Evaluation, claim: Claim) -> Future[dict[str, Any]]:
        try:
            precision = self.precision(evaluation.network, evaluation.recipe)
            return self._executor.submit(
                worker.run_specification, self._for_worker(evaluation) | {"precision": precision}
            )
        except BaseException:
            claim.release()
            raise

    def _for_worker(self, evaluation: Evaluation) -> dict[str, Any]:
        paths = {"weights": self._ledger.weights_path(evaluation.key)}
        paths["checkpoint"] = self._ledger.checkpoint_path(evaluation.key)
        if evaluation.init is not None:
            paths["initial"] = self._ledger.initial_path(evaluation.init)
        own = evaluation.specification()
        if (left := self._trained_for_accuracy(evaluation)) is not None:
            own["trained"] = left
        return (
            own
            | _table(evaluation.network, evaluation.recipe)
            | {"data_spec": asdict(self._data)}
            | {name: str(path.absolute()) for name, path in paths.items()}
        )

    def _trained_for_accuracy(self, evaluation: Evaluation) -> dict[str, Any] | None:
        """The same training where the ledger has it, chosen by accuracy: its result, and where its weights are."""
        if evaluation.recipe.metric is None:
            return None
        key = replace(evaluation, recipe=replace(evaluation.recipe, metric=None)).key
        record, weights = self._ledger.get(key), self._ledger.weights_path(key)
        if record is None or record["state"] != "finished" or self._ledger.why_no_weights(key) is not None:
            return None
        return {"result": record["result"], "environment": record["environment"], "weights": str(weights.absolute())}

    def _recorded(self, evaluation: Evaluation) -> Outcome | None:
        record = read_record(self._ledger, evaluation.key)
        return None if record is None else _outcome(evaluation, record, reused=True)

    def _record(self, evaluation: Evaluation, claim: Claim, future: Future[dict[str, Any]]) -> Outcome:
        with claim:
            error = future.exception()  # raises CancelledError itself where the executor never began it
            if isinstance(error, CancelledError | OSError):  # the latter: there was nothing to run it on
                raise error
            answer = future.result() if error is None else {"reason": str(error)}
            record = self._put(evaluation.key, evaluation.specification(), **answer)
        return _outcome(evaluation, record, reused=False)

    def _put(
        self,
        key: str,
        specification: dict[str, Any],
        *,
        result: dict[str, Any] | None = None,
        environment: dict[str, str] | None = None,
        reason: str | None = None,
        weights_sha256: str | None = None,
    ) -> dict[str, Any]:
        record = {
            "key": key,
            "version": VERSION,
            "specification": specification,
            "state": "failed" if result is None else "finished",
            "result": result,
            "reason": reason,
            "recorded_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "environment": environment or {},
        } | ({} if weights_sha256 is None else {"weights_sha256": weights_sha256})
        self._ledger.put(key, record)
        return record


def read_record(ledger: Ledger, key: str) -> dict[str, Any] | None:
    """The record of a training, or None where the ledger has none with which anything can be done."""
    record = ledger.get(key)
    try:
        if record is not None and record["state"] == "finished":
            Result.from_json(record["result"])
            _ = record["specification"]["network"], record["environment"].get("precision")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        ledger.doubt(key, error)
        return None
    return record


class Alike:
    """Ends a search whose trainings fail in one way, one after the other."""

    def __init__(self) -> None:
        self._number, self._reason = 0, ""

    def refuse(self, outcome: Outcome) -> None:
        """Raises: AllAlike where this is the fifth training in a row that has failed for the same reason now."""
        reason = re.sub(r"[\d.]+", "0", outcome.reason)  # in another epoch, with another seed
        if outcome.reused and outcome.result is None:  # told before
            return
        self._number = self._number + 1 if outcome.result is None and reason == self._reason else 1
        self._reason = reason
        if outcome.result is None and self._number >= _ALIKE:
            raise AllAlike(
                f"{_ALIKE} trainings in a row failed in one way, so no more are begun; the last: {outcome.reason}. "
                "When the cause is mended: the same command with retry=true, or scalesearch retry; without, it goes on "
                "with the others"
            )


def counts(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """How many evaluations were trained now, taken from the ledger, and failed (now or before)."""
    found = {"trained": 0, "reused": 0, "failed": 0}
    for outcome in outcomes:
        found["failed" if outcome.result is None else "reused" if outcome.reused else "trained"] += 1
    return found


def mixed_precision(outcomes: Iterable[Outcome]) -> str | None:
    """A warning where what is compared was not all trained in one precision; None where it was.

    Numbers in bfloat16 have 8 bits, in float16 11, in float32 24: the same training ends elsewhere, as from another
    seed.
    """
    found = Counter(one.precision or "a precision that was not recorded" for one in outcomes if one.result is not None)
    if len(found) < 2:
        return None
    parts = listed([f"{number} in {name}" for name, number in sorted(found.items())])
    return (
        f"of the trainings that are compared here {parts} were made: their accuracies "
        "differ by that, too. recipe.autocast=off (float32), bfloat16 or float16 trains all of them alike, anew"
    )


def mixed_machines(outcomes: Iterable[Outcome]) -> str | None:
    """A warning where what is compared was trained with different versions of torch or on different devices."""
    found = Counter(one.machine for one in outcomes if one.result is not None and one.machine)
    if len(found) < 2:
        return None
    parts = listed([f"{number} with {name}" for name, number in sorted(found.items())])
    return f"of the trainings that are compared here {parts} were made: their numbers may differ by that, as by a seed"


_END: Any = object()
_ALIKE = 5  # failures in a row
_MOST_TIMED = 6  # networks of a plan; others are taken to be as fast per multiply-add as the nearest of these


def _table(network: AnyNetwork, recipe: Recipe) -> dict[str, Any]:
    table = {"network": network.table(), "name": network.name, "recipe": recipe.values()}
    return table | ({"structure": identity(network)["structure"]} if isinstance(network, Factory) else {})


def _outcome(evaluation: Evaluation, record: Mapping[str, Any], *, reused: bool) -> Outcome:
    if record["state"] != "finished":
        return Outcome(evaluation, None, record["reason"] or "", reused)
    # Recorded since a timing decides "auto"; of older trainings known where the recipe asked for one.
    precision = record["environment"].get("precision", evaluation.recipe.precision or "")
    environment = record["environment"]
    machine = (
        f"torch {environment['torch']} on {environment['device']}" if {"torch", "device"} <= environment.keys() else ""
    )
    return Outcome(evaluation, Result.from_json(record["result"]), "", reused, str(precision), machine)
