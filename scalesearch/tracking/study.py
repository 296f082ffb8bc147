"""What a study records in MLflow: one run for the command, a child for each candidate, a grandchild for each seed."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import re
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalesearch.data import Data
from scalesearch.ledger import write_atomic
from scalesearch.machine import environment
from scalesearch.search import BASELINE, Candidate, Stopped, TrialResult
from scalesearch.tracking.tracker import Status, Tracker
from scalesearch.training import Result

if TYPE_CHECKING:
    from scalesearch.selection import Choice


class StudyLog:
    """The records of one command, as its search goes on; its run in MLflow ends however the search ends.

    Args:
        tracker: of the study; closed at the end.
        params: of the command's run.
        epochs: of a whole training; a shorter one is a complete shorter schedule, and no result of its candidate.
        summary: its note, plain text.
        source: where the data came from.
    """

    def __init__(
        self,
        tracker: Tracker,
        *,
        study: str,
        directory: Path,
        seeds: int,
        epochs: float,
        params: Mapping[str, object],
        summary: str,
        data: Data,
        source: str,
    ) -> None:
        self._tracker, self._study, self._directory, self._epochs = tracker, study, directory, epochs
        self._parent = f"run:{datetime.now(UTC).isoformat()}"
        self._begun: dict[str, bool] = {}  # candidate to whether its run is still open
        self._results: dict[str, list[Result]] = {}
        self._open = True
        tracker.start_run(
            self._parent,
            name=f"run {study}",
            params={**params, "seeds": seeds},
            tags=_git_commit(),
            note=f"`scalesearch run`\n\n```\n{summary}\n```",
        )
        known = data.description
        tracker.log_dataset(
            self._parent,
            name=known.name,
            digest=data.fingerprint,
            source=source,
            profile={"num_train": known.num_train, "num_val": known.num_val, "num_test": known.num_test},
        )
        write_atomic(directory / "environment.json", json.dumps(_environment(), indent=1).encode())
        for name in ("settings.yaml", "environment.json"):
            tracker.log_artifact(self._parent, directory / name)

    def __enter__(self) -> StudyLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Whatever is still open was interrupted, or broken by an error."""
        if self._open:
            status: Status = "FAILED" if kind is None or issubclass(kind, Exception) else "KILLED"
            for name in self._open_candidates():
                if kind is None:  # the search came to its end without an answer
                    self._end(name)
                else:
                    self._tracker.end_run(f"{self._parent}:{name}", "KILLED")
            self._tracker.end_run(self._parent, status)
            self._tracker.close(timeout=5)

    def trained(self, one: TrialResult, so_far: Sequence[TrialResult]) -> None:
        """A seed has come back: log it, and what it makes of its candidate's mean and of the best one."""
        (candidate, outcome), result = one, one.outcome.result
        child = f"{self._parent}:{candidate.id}"
        if candidate.id not in self._begun:
            self._begin(candidate)
        epochs = outcome.evaluation.recipe.epochs
        short = "" if epochs == self._epochs else f" of {epochs:g} epochs"
        grandchild = f"{child}:seed{outcome.evaluation.seed}{short}"
        self._tracker.start_run(
            grandchild,
            name=f"{candidate.id} seed {outcome.evaluation.seed}{short}",
            parent=child,
            params={"seed": outcome.evaluation.seed, "epochs": epochs},
            tags={"key": outcome.evaluation.key}
            | {name: getattr(outcome, name) for name in ("reused", "reason", "precision")},
        )
        if result is not None:
            self._tracker.log_curve(grandchild, result.curve)
            names = ("val_accuracy", "val_loss", "train_seconds", "images_per_second")
            self._tracker.log_metrics(grandchild, {name: getattr(result, name) for name in names})
        self._tracker.end_run(grandchild, "FAILED" if result is None else "FINISHED")
        if result is None or short:
            return
        whole = self._results.setdefault(candidate.id, [])
        whole.append(result)
        self._tracker.log_metrics(child, {"val_accuracy": _mean(whole)}, step=len(whole))
        means = [_mean(results) for name, results in self._results.items() if name != BASELINE]
        if means:
            self._tracker.log_metrics(self._parent, {"best_so_far": max(means)}, step=len(so_far))

    def stopped(self, one: Stopped) -> None:
        """The strategy has taken a candidate out: its run ends, with the reason as a tag."""
        if self._begun.get(one.candidate.id):
            self._tracker.set_tags(f"{self._parent}:{one.candidate.id}", {"stopped": one.reason})
            self._end(one.candidate.id)

    def finished(
        self, answer: Mapping[str, Any], chosen: Candidate, choice: Choice, *, files: Sequence[Path], weights: Path
    ) -> str | None:
        """The answer, on the command's own run, because MLflow's pages show children collapsed.

        Returns one sentence where MLflow has not got all of it yet, else None.
        """
        for name in self._open_candidates():
            self._end(name)
        tested = {chosen.id: answer["test_accuracy"]["chosen"], BASELINE: answer["test_accuracy"]["baseline"]}
        for name, test in tested.items():
            if test["mean"] is not None:
                self._tracker.log_metrics(f"{self._parent}:{name}", {"test_accuracy": test["mean"]})
        values = answer["chosen"]
        metrics = {
            "best_val_accuracy": values["val_accuracy_mean"],
            "val_accuracy": values["val_accuracy_mean"],
            "val_accuracy_std": values["val_accuracy_std"],
            "test_accuracy": tested[chosen.id]["mean"],
            "num_tied": len(choice.tied),
            **_costs(chosen),
        }
        self._tracker.log_metrics(self._parent, {key: value for key, value in metrics.items() if value is not None})
        coefficients = {name: values[name] for name in ("alpha", "beta", "gamma", "product")}
        self._tracker.log_params(self._parent, {f"chosen.{key}": value for key, value in coefficients.items()})
        tags = {**coefficients, "chosen": chosen.id, "tied": ", ".join(choice.tied)}
        self._tracker.set_tags(self._parent, tags)
        for path in files:
            self._tracker.log_artifact(self._parent, path)
        self._log_model(chosen, weights)
        self._tracker.end_run(self._parent, "FINISHED")
        self._open = False
        return self._tracker.close(timeout=60)

    def _open_candidates(self) -> list[str]:
        return sorted(name for name, is_open in self._begun.items() if is_open)

    def _begin(self, candidate: Candidate) -> None:
        self._begun[candidate.id] = True
        child, coefficients = f"{self._parent}:{candidate.id}", candidate.coefficients
        self._tracker.start_run(
            child,
            name=candidate.id,
            parent=self._parent,
            params={
                "alpha": coefficients.alpha,
                "beta": coefficients.beta,
                "gamma": coefficients.gamma,
                "phi": 0 if candidate.id == BASELINE else 1,
                "product": round(coefficients.product, 6),
                "resolution": candidate.network.resolution,
                "num_blocks": candidate.network.depth,
            },
            tags={"triples": json.dumps([[t.alpha, t.beta, t.gamma] for t in candidate.triples])},
        )
        self._tracker.log_metrics(child, _costs(candidate))

    def _end(self, name: str) -> None:
        self._begun[name] = False
        child, results = f"{self._parent}:{name}", self._results.get(name, [])
        if results:
            metrics = {
                "val_accuracy": _mean(results),
                "train_seconds": sum(result.train_seconds for result in results),
            }
            if len(results) > 1:
                metrics["val_accuracy_std"] = statistics.stdev(result.val_accuracy for result in results)
            self._tracker.log_metrics(child, metrics, step=len(results))
        self._tracker.end_run(child, "FINISHED" if results else "FAILED")

    def _log_model(self, chosen: Candidate, weights: Path) -> None:
        """The chosen network as it was trained, as a registered model with a signature."""
        path = self._directory / "model" / "network.yaml"
        network = replace(chosen.network, name=f"{self._study}-{chosen.id}")
        write_atomic(path, network.to_yaml(comment=f"the chosen network of study {self._study}").encode())
        self._tracker.log_model(
            self._parent,
            name=self._study,
            variant=path,
            weights=weights,
            input_shape=(network.in_channels, network.resolution, network.resolution),
            output_shape=(network.num_classes,),
        )


def _mean(results: Sequence[Result]) -> float:
    return statistics.fmean(result.val_accuracy for result in results)


def _costs(candidate: Candidate) -> dict[str, float]:
    params = ("product", "depth", "resolution")  # of its run, and no metrics
    return {key: value for key, value in candidate.sizes().items() if key not in params and value is not None}


def _environment() -> dict[str, str]:
    """The driver's machine, and the version of every library that the search itself needs."""
    versions = {}
    for needed in importlib.metadata.requires("scalesearch") or ():
        if "extra ==" in needed:
            continue
        name = re.split(r"[^A-Za-z0-9._-]", needed, maxsplit=1)[0]
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return environment() | dict(sorted(versions.items()))


def _git_commit() -> dict[str, str]:
    """The commit of the directory the command was given in, as the tag that MLflow shows; none outside of git."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return {"mlflow.source.git.commit": found.stdout.strip()} if found.returncode == 0 else {}
