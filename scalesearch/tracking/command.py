"""What a command that trains records in MLflow: a run for it, a child for each network, a grandchild for each seed."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import re
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from scalesearch.cost import cost
from scalesearch.data import Data
from scalesearch.evaluation import Outcome
from scalesearch.ledger import write_atomic
from scalesearch.machine import environment
from scalesearch.tracking.spool import Status
from scalesearch.tracking.tracker import Tracker
from scalesearch.training import Recipe, Result, named
from scalesearch.workspace import AllAlike


class CommandLog:
    """The records of one command as its trainings come back; its run in MLflow ends however the command ends.

    Args:
        tracker: closed at the end.
        command, name: "run" and the name of a study, say.
        directory: of the command's files, where the environment is written as JSON.
        params: of the command's run. summary: its note, plain text.
        data: the images of each data set, by where they came from.
        files: attached to its run at once.
    """

    def __init__(
        self,
        tracker: Tracker,
        *,
        command: str,
        name: str,
        directory: Path,
        params: Mapping[str, object],
        summary: str,
        data: Mapping[str, Data],
        files: Sequence[Path] = (),
    ) -> None:
        self._tracker, self._name, self._directory = tracker, name, directory
        self._parent = f"{command}:{datetime.now(UTC).isoformat()}"
        self._begun: dict[str, bool] = {}  # network to whether its run is still open
        self._results: dict[str, list[Result]] = {}
        self._means: dict[str, float] = {}  # over the seeds so far
        self._metric: str | None = None  # of the recipe that trainings had; None is accuracy
        self._open = True
        note = f"`scalesearch {command}`\n\n```\n{summary}\n```"
        tracker.start_run(self._parent, name=f"{command} {name}", params=params, tags=_git_commit(), note=note)
        for source, images in data.items():
            known = images.description
            tracker.log_dataset(
                self._parent,
                name=known.name,
                digest=images.fingerprint,
                source=source,
                profile={"num_train": known.num_train, "num_val": known.num_val, "num_test": known.num_test},
            )
        file = directory / ("environment.json" if command == "run" else f"environment-{command}.json")
        write_atomic(file, json.dumps(_environment(), indent=1).encode())
        self.attach([*files, file])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Whatever is still open was interrupted, or broken by an error."""
        if self._open:
            status: Status = "FAILED" if kind is None or issubclass(kind, Exception) else "KILLED"
            for name in self._open_children():
                if kind is None or issubclass(kind, AllAlike):  # the command came to its end without an answer
                    self._end(name)
                else:
                    self._tracker.end_run(f"{self._parent}:{name}", "KILLED")
            self._tracker.end_run(self._parent, status)
            self._tracker.close(timeout=5)

    def trained(self, name: str, outcome: Outcome, *, params: Mapping[str, object] = {}, short: str = "") -> None:
        """A seed of network `name` has come back.

        params: of the network, logged with its first seed. short: set where it was trained for fewer epochs than the
        others, which makes it no result of its network.
        """
        child, result = f"{self._parent}:{name}", outcome.result
        self._metric = outcome.evaluation.recipe.metric
        if name not in self._begun:
            network, counted = outcome.evaluation.network, cost(outcome.evaluation.network)
            sizes = {"resolution": network.resolution, "num_blocks": network.depth}
            self._begin(name, sizes | dict(params), {"macs": counted.macs, "params": counted.params})
        seed, epochs = outcome.evaluation.seed, outcome.evaluation.recipe.epochs
        grandchild = f"{child}:seed{seed}{short}"
        self._tracker.start_run(
            grandchild,
            name=f"{name} seed {seed}{short}",
            parent=child,
            params={"seed": seed, "epochs": epochs},
            tags={"key": outcome.evaluation.key}
            | {key: getattr(outcome, key) for key in ("reused", "reason", "precision")},
        )
        if result is not None:
            self._tracker.log_curve(grandchild, result.curve)
            names = ("val_accuracy", "val_loss", "train_seconds", "images_per_second")
            self._log_metrics(grandchild, {key: getattr(result, key) for key in names})
        self._tracker.end_run(grandchild, "FAILED" if result is None else "FINISHED")
        if result is not None and not short:
            whole = self._results.setdefault(name, [])
            whole.append(result)
            self._means[name] = _mean(whole)
            self._log_metrics(child, {"val_accuracy": self._means[name]}, step=len(whole))

    def attach(self, files: Sequence[Path]) -> None:
        """Files of the command, shown with its run."""
        for path in files:
            self._tracker.log_artifact(self._parent, path)

    def concluded(
        self,
        *,
        metrics: Mapping[str, float | None] = {},
        params: Mapping[str, object] = {},
        tags: Mapping[str, object] = {},
        files: Sequence[Path] = (),
        failed: bool = False,
    ) -> str | None:
        """What the command came to, on its own run, because MLflow's pages show children collapsed.

        Returns one sentence where MLflow has not got all of it yet, else None.
        """
        for name in self._open_children():
            self._end(name)
        self._log_metrics(self._parent, {key: value for key, value in metrics.items() if value is not None})
        self._tracker.log_params(self._parent, params)
        self._tracker.set_tags(self._parent, tags)
        self.attach(files)
        self._tracker.end_run(self._parent, "FAILED" if failed else "FINISHED")
        self._open = False
        return self._tracker.close(timeout=60)

    def _open_children(self) -> list[str]:
        return sorted(name for name, is_open in self._begun.items() if is_open)

    def _log_metrics(self, run: str, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Metrics of a run; accuracies have the name of the metric that they are."""
        self._tracker.log_metrics(run, named(dict(metrics), self._metric), step=step)

    def _begin(
        self, name: str, params: Mapping[str, object], metrics: Mapping[str, float], tags: Mapping[str, object] = {}
    ) -> None:
        self._begun[name] = True
        child = f"{self._parent}:{name}"
        self._tracker.start_run(child, name=name, parent=self._parent, params=params, tags=tags)
        self._log_metrics(child, metrics)

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
            self._log_metrics(child, metrics, step=len(results))
        self._tracker.end_run(child, "FINISHED" if results else "FAILED")


def recipe_params(recipe: Recipe, seeds: int) -> dict[str, object]:
    """How the networks of a command are trained, as params of its run."""
    return {**{f"recipe.{key}": value for key, value in recipe.values().items()}, "seeds": seeds}


def _mean(results: Sequence[Result]) -> float:
    return statistics.fmean(result.val_accuracy for result in results)


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
