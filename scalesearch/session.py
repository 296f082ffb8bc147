"""What every command that trains shares: ledger, lock, workers, progress, failures, and the exit code.

with Session(workspace, executor, out, directory=study) as session:
    outcomes = session.run(evaluations, data)
    ...
return session.exit_code(outcomes)
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from scalesearch import kernels, pretrained
from scalesearch.config import ExecutorChoice, Tracking
from scalesearch.data import Data, DataSpec, load
from scalesearch.evaluation import Evaluation, Evaluator, Outcome, Work, counts, mixed_machines, mixed_precision
from scalesearch.ledger import Ledger, lock_study
from scalesearch.network import AnyNetwork
from scalesearch.screen import Screen
from scalesearch.text import level, override, plural, typed
from scalesearch.tracking import CommandLog, Tracker, mlflow_experiment
from scalesearch.workspace import ALL_FAILED, DONE, NOTHING_LEARNT, SOME_FAILED, refuse_links

CONFIDENCE = 0.95  # of what commands without a search say


class Learnt(NamedTuple):
    """Why no network of a command is better than chance, and what to try; None where one is, or none was trained.

    beside: the chance level, and which networks are no better.
    """

    nothing: str | None
    beside: str


@dataclass
class Session:
    """Trainings of one command. Enter it to take the lock of `directory`, if there is one; workers start when needed.

    retry: failed trainings of this command are forgotten first, and so run again. tracking: where `log` is sent to.
    """

    workspace: Path
    executor: ExecutorChoice
    out: Screen
    directory: Path | None = None
    retry: bool = False
    tracking: Tracking | None = None
    _open: ExitStack = field(default_factory=ExitStack)
    _data: dict[DataSpec, Data] = field(default_factory=dict)
    _evaluators: dict[DataSpec, Evaluator] = field(default_factory=dict)
    _workers: Any = None

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.workspace)

    def __enter__(self) -> Session:
        kernels.mode()  # a setting that is none is refused here, and not by every worker
        if self.directory is not None:
            refuse_links(self.directory)
            self._open.enter_context(lock_study(self.directory))
        return self

    def __exit__(self, *error: object) -> None:
        self._open.__exit__(*error)  # type: ignore[arg-type]

    def data(self, spec: DataSpec) -> Data:
        """The images of `spec`, loaded once."""
        if spec not in self._data:
            self._data[spec] = load(spec, log=self.out.warn)
        return self._data[spec]

    def evaluator(self, spec: DataSpec) -> Evaluator:
        """Runs evaluations on the images of `spec` with the workers of this session."""
        if self._workers is None:
            self._workers = self._open.enter_context(self.executor.open())
        if spec not in self._evaluators:
            self._evaluators[spec] = Evaluator(self.ledger, self._workers, spec)
        return self._evaluators[spec]

    def initial_weights(
        self, source: str | None, bases: Sequence[AnyNetwork], networks: Sequence[AnyNetwork]
    ) -> str | None:
        """The digest of the weights that all of `networks` start from, kept in the workspace; what fits is told."""
        if source is None:
            return None
        weights = pretrained.fetch(source, bases, warn=self.out.warn)
        first, *others = (pretrained.overlap(weights.tensors, network) for network in networks)
        if not first.taken:
            raise ValueError(
                f"init={source}: {networks[0].name} as it is trained here has no layer of that shape ({first}); "
                "proxy=none and a width of 1 keep the shapes"
            )
        self.out.say(f"init={source}: of {networks[0].name} {first}")
        if others:
            shares = [fit.taken / fit.layers for fit in others]
            self.out.say(f"of the candidates {100 * min(shares):.0f} to {100 * max(shares):.0f} % of the layers do")
        self.ledger.keep_initial(weights.digest, weights.content)
        return weights.digest

    def forget_failures(self, evaluations: Iterable[Evaluation]) -> None:
        """With `retry`: failed evaluations are taken out of the ledger, so that they are run again."""
        if not self.retry:
            return
        forgotten = 0
        for key in {evaluation.key for evaluation in evaluations}:
            record = self.ledger.get(key)
            if record is not None and record["state"] == "failed":
                self.ledger.remove(key)
                forgotten += 1
        self.out.say(f"{plural(forgotten, 'failed training')} {'is' if forgotten == 1 else 'are'} run again")

    def tracker(self) -> Tracker:
        """The writer of this command's records for MLflow, kept in its directory, which is locked."""
        assert self.directory is not None
        assert self.tracking is not None
        return Tracker(
            uri=self.tracking.uri,
            workspace=self.workspace,
            directory=self.directory,
            replay=self.tracking.name == "mlflow",
        )

    def log(
        self, command: str, name: str, *, params: Mapping[str, object], summary: str, specs: Iterable[DataSpec]
    ) -> CommandLog:
        """What this command records in MLflow, of trainings on `specs`; enter it, and give it to `run` and `finish`."""
        assert self.directory is not None
        return CommandLog(
            self.tracker(),
            command=command,
            name=name,
            directory=self.directory,
            params=params,
            summary=summary,
            data={spec.root or spec.name: self.data(spec) for spec in specs},
        )

    def run(
        self,
        evaluations: Sequence[Evaluation],
        spec: DataSpec,
        *,
        name: Callable[[Evaluation], str],
        log: CommandLog,
    ) -> list[Outcome]:
        """Outcomes in the order in which they come, each shown and logged under its `name`."""
        evaluator, outcomes = self.evaluator(spec), []
        with self.out.progress(total=len(evaluations), slots=evaluator.slots) as shown:
            for outcome in evaluator.run(evaluations):
                outcomes.append(outcome)
                log.trained(name(outcome.evaluation), outcome)
                shown.update(name(outcome.evaluation), outcome)
        return outcomes

    def test_accuracy(self, finished: Sequence[Evaluation], spec: DataSpec) -> dict[str, Any]:
        """Mean, standard deviation and number over the seeds. The test split is scored once for each training."""
        values = [row["test_accuracy"] for row in self.evaluator(spec).test(finished)]
        return {
            "mean": statistics.fmean(values) if values else None,
            "std": statistics.stdev(values) if len(values) > 1 else None,
            "seeds": len(values),
        }

    def estimated_seconds(self, work: Sequence[Work], spec: DataSpec) -> float:
        """Seconds that these trainings would take, from timing some of their networks in the workers."""
        return self.evaluator(spec).expected_seconds(work)

    def learnt(self, outcomes: Mapping[str, Sequence[Outcome]], spec: DataSpec) -> Learnt:
        """What networks on the images of `spec` have learnt; outcomes: by the network's name, one for each seed."""
        from scalesearch.selection import chance_level, nothing_learnt, remedy, unlearnt  # scipy.stats takes a second

        finished = {
            name: found for name, seeds in outcomes.items() if (found := [one.result for one in seeds if one.result])
        }
        if not finished:
            return Learnt(None, "")
        data, recipe = self.data(spec), next(iter(outcomes.values()))[0].evaluation.recipe
        results = [one for seeds in finished.values() for one in seeds]
        chance = chance_level(recipe.metric, data.val_labels.numpy(), results)
        beside = f"{data.description.name}: {chance.words(chance.value, 'validation')}"
        reason = nothing_learnt(finished, chance, confidence=CONFIDENCE)
        if reason is not None:
            return Learnt(f"{reason}. {remedy(recipe, data.description.num_train, data.val_labels.numpy())}", beside)
        if no_better := unlearnt(finished, chance, confidence=CONFIDENCE):
            beside += f"; no better than that at {level(CONFIDENCE)}: {', '.join(no_better)}"
        return Learnt(None, beside)

    def finish(self, outcomes: Sequence[Outcome], nothing: str | None = None) -> int:
        """Report what failed and what was trained in different precisions; the exit code of these trainings.

        nothing: why nothing was learnt, which is reported as well.
        """
        failed = [outcome for outcome in outcomes if outcome.result is None]
        for mixed in filter(None, (mixed_precision(outcomes), mixed_machines(outcomes))):
            self.out.warn(mixed)
        if failed:
            first = failed[0].evaluation
            number = plural(len(failed), "training")
            if len(failed) == len(outcomes) > 1:
                number = f"all {number}"
            self.out.warn(f"{number} failed; the first: {first.network.name} seed {first.seed}: {failed[0].reason}")
            self.out.say("when the cause is mended: the same command with retry=true")
        if failed and len(failed) == len(outcomes):
            return ALL_FAILED
        if nothing is not None:
            self.out.warn(nothing)
            return NOTHING_LEARNT
        return SOME_FAILED if failed else DONE

    def conclude(
        self, log: CommandLog, code: int, *, metrics: Mapping[str, float | None], files: Sequence[Path]
    ) -> None:
        """Record what the command came to, and report what MLflow has not got."""
        waiting = log.concluded(metrics=metrics, files=files, failed=code == ALL_FAILED)
        if waiting is not None:
            self.out.warn(waiting)
        assert self.directory is not None
        if self.tracking is not None and self.tracking.name == "mlflow":
            place = (f"study={mlflow_experiment(self.directory)}", override("workspace", str(self.workspace)))
            self.out.say(f"MLflow: {typed('ui', *place)}")


def counts_line(outcomes: Iterable[Outcome]) -> str:
    """`counts` in words."""
    found = counts(outcomes)
    return f"{found['trained']} trained, {found['reused']} from the ledger, {found['failed']} failed"
