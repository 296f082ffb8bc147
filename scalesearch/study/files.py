"""The files of a study: who reads them reads them here, and damaged ones are refused in one way."""

from __future__ import annotations

import csv
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from scalesearch.budget import Footprint
from scalesearch.config import Groups, from_yaml, network_of, to_yaml
from scalesearch.cost import Cost
from scalesearch.data import Data, load
from scalesearch.evaluation import Evaluation, Outcome, read_record
from scalesearch.ledger import Ledger, evaluation_key, is_locked, write_atomic
from scalesearch.network import AnyNetwork, from_table
from scalesearch.scaling import Coefficients, Rounding, scale
from scalesearch.search import BASELINE, Candidate, Plan, TrialResult, possible
from scalesearch.study.settings import StudySettings, decisive_settings
from scalesearch.text import hide_password, one_line, override, typed
from scalesearch.training import Recipe, Result, named
from scalesearch.workspace import find_study, is_timm

Json = dict[str, Any]


class TrainedCandidate(NamedTuple):
    """A candidate with what its first seed has left; `data` is None where that is no longer what it was trained on."""

    id: str
    network: AnyNetwork
    weights: Path
    val_accuracy: float
    data: Data | None


class Scored(NamedTuple):
    """A seed's weights scored on the test split, once."""

    seed: int
    accuracy: float
    num_images: int


class Study:
    """A study on disk. Each file is read when it is first used.

    Raises: of all of these, ValueError where a file is missing or damaged; it names the study and what to do.
    """

    def __init__(self, workspace: Path, directory: Path) -> None:
        self.workspace, self.directory, self.name = workspace, directory, directory.name
        self.ledger = Ledger(workspace)
        self._keys: set[tuple[str, str]] = set()  # of the evaluations that are known
        self._next_write = 0.0

    @staticmethod
    def read(workspace: Path, name: str | None = None) -> Study:
        """The study of that name, or the only one. Raises: ValueError that lists the known ones."""
        return Study(workspace, find_study(workspace, name))

    # What it was begun with

    @cached_property
    def values(self) -> Json:
        """settings.yaml: the configuration as it was composed."""
        return from_yaml(self.directory / "settings.yaml")

    @cached_property
    def settings(self) -> StudySettings:
        """The settings, checked. A function that they name is not imported (`model.trust`)."""
        with self._undamaged():
            settings = StudySettings.of(Groups(self.values, trusted=False))
        return replace(settings, study=self.name, workspace=self.workspace)

    @cached_property
    def baseline(self) -> AnyNetwork:
        with self._undamaged():
            return network_of(self.values["baseline"], trusted=False)

    @cached_property
    def rounding(self) -> Rounding:
        with self._undamaged():
            return Rounding(**self.values["rounding"])

    @cached_property
    def batch_size(self) -> int:
        with self._undamaged():
            return int(self.values["recipe"]["batch_size"])

    # What it has planned

    @cached_property
    def _planned(self) -> Json:
        path = self.directory / "evaluations.json"
        try:
            planned: Json = json.loads(path.read_bytes())
            if all({"candidate", "seed", "key"} <= row.keys() for row in planned["evaluations"]):
                return planned
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        raise ValueError(f"{path} is missing or damaged; the study's `scalesearch run` command writes it again")

    @property
    def evaluations(self) -> list[Json]:
        """A row for each evaluation: candidate, seed, key, and epochs of a shorter schedule than the recipe's."""
        return list(self._planned["evaluations"])

    # What it came to

    @cached_property
    def result(self) -> Json:
        """result.json: the answer, as `run --json` prints it."""
        path = self._of_answer("result.json")
        with self._undamaged():
            found: Json = {"selection": {"rule": "best", "metric": "macs"}} | json.loads(path.read_bytes())  # if older
            _ = found["chosen"]["id"], found["variants"]
        if "target" in found:
            raise ValueError(
                f"study {self.name!r} is a search for a target cost, and has chosen a split and none of its "
                f"candidates; its answer: {typed('report', f'study={self.name}')}"
            )
        return found

    @cached_property
    def target(self) -> Json | None:
        """result.json of a search for a target cost; None of any other."""
        found = self._json("result.json")
        with self._undamaged():
            return dict(found) if found is not None and found.get("target") else None

    @cached_property
    def coefficients(self) -> Coefficients:
        """Those of the chosen candidate."""
        path = self._of_answer("coefficients.yaml")
        with self._undamaged():
            found = from_yaml(path)
            return Coefficients(*(found[name] for name in ("alpha", "beta", "gamma")))

    def _of_answer(self, name: str) -> Path:
        path = self.directory / name
        if (nothing := self.nothing_learnt) is not None:
            raise ValueError(f"study {self.name!r} has no choice, as {nothing['reason']}. {nothing['remedy']}")
        if not path.exists():
            raise ValueError(f"study {self.name!r} has not come to a choice yet; see: scalesearch status")
        return path

    @property
    def nothing_learnt(self) -> Json | None:
        """Why a study at its end has chosen nothing: reason, remedy and the numbers; None where it has a choice."""
        found = self._json("result.json") or {}
        with self._undamaged():
            nothing = found.get("nothing_learnt")
            _ = nothing and (nothing["reason"], nothing["remedy"])
        return dict(nothing) if nothing else None

    @cached_property
    def rows(self) -> dict[str, dict[str, str]]:
        """candidates.csv: a row for each candidate and the 1x network, by its id."""
        with self._undamaged(), (self.directory / "candidates.csv").open(newline="") as file:
            return {row["candidate"]: row for row in csv.DictReader(file)}

    @cached_property
    def finished_rows(self) -> list[dict[str, str]]:
        """trials.csv: a row for each training of the whole recipe that has finished."""
        with self._undamaged(), (self.directory / "trials.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["state"] == "finished"]
            _ = [(row["candidate"], int(row["seed"]), row["key"], float(row["macs_ratio"])) for row in rows]
        return rows

    def triples(self, row: Mapping[str, str]) -> tuple[Coefficients, ...]:
        """All coefficients that round to the network of a row of trials.csv or candidates.csv."""
        with self._undamaged():
            return tuple(Coefficients(*(float(value) for value in one)) for one in json.loads(row["triples"]))

    @property
    def stopped(self) -> dict[str, str]:
        """Candidates that the strategy has stopped, with the reason."""
        return dict(self._json("stopped.json") or {})

    @property
    def fidelity(self) -> list[Json]:
        """The answers of `reproduce fidelity`."""
        found = self._json("fidelity.json")
        if found is None:
            return []
        if isinstance(found, list) and all(
            isinstance(one, dict) and {"against", "factor"} <= one.keys() for one in found
        ):
            return found
        path = self.directory / "fidelity.json"
        raise ValueError(f"{path} is damaged; delete it and run the same command: what is trained is in the ledger")

    def _json(self, name: str) -> Any:
        path = self.directory / name
        with self._undamaged():
            return json.loads(path.read_bytes()) if path.exists() else None

    @cached_property
    def records(self) -> dict[tuple[str, int], Json]:
        """What the ledger has of trainings of the whole recipe, by candidate and seed."""
        whole = [row for row in self.evaluations if "epochs" not in row]
        records = {(row["candidate"], row["seed"]): read_record(self.ledger, row["key"]) for row in whole}
        return {place: record for place, record in records.items() if record is not None}

    @cached_property
    def trials(self) -> list[TrialResult]:
        """Trainings of the whole recipe. No function is called that a file names: of one, the table has the depth."""
        trials = []
        with self._undamaged():
            for (name, seed), record in self.records.items():
                specification, row = record["specification"], self.rows[name]
                candidate = _candidate(name, row, _network(specification["network"], row), self.triples(row))
                recipe, init = Recipe(**specification["recipe"]), specification.get("init")
                evaluation = Evaluation(candidate.network, recipe, specification["data"], seed, init)
                result = Result.from_json(record["result"]) if record["state"] == "finished" else None
                trials.append(TrialResult(candidate, Outcome(evaluation, result, record["reason"] or "", reused=True)))
        return trials

    def test_scores(self) -> dict[str, list[Scored]]:
        """Of each candidate its scores on the test split, for those that have any."""
        scores: dict[str, list[Scored]] = {}
        for (name, seed), record in self.records.items():
            if (found := self._finished({"test_of": record["key"]})) is not None:
                scores.setdefault(name, []).append(Scored(seed, found["test_accuracy"], found["num_test"]))
        return scores

    def correct(self, network: Mapping[str, Any], seed: int) -> Any:
        """Which validation images a network has right (N,), trained with this seed and else like the study's; or None.

        network: as its specification has it.
        """
        like = next(iter(self.records.values()))["specification"]
        found = self._finished({**like, "network": network, "seed": seed})
        return None if found is None else Result.from_json(found).by_image

    def _finished(self, specification: Mapping[str, Any]) -> Json | None:
        record = self.ledger.get(evaluation_key(specification))
        return record["result"] if record is not None and record["state"] == "finished" else None

    def status(self) -> Json:
        """How far it is, from the ledger alone; a running one is not disturbed. What `status --json` prints.

        state: "running", "finished", or "interrupted" (not at its end, and no driver alive).
        """
        done, failures, accuracies = 0, [], dict[str, list[float]]()
        for row in self.evaluations:
            record = read_record(self.ledger, row["key"])
            if record is None:
                continue
            if record["state"] == "finished":
                done += 1
                if "epochs" not in row:  # the accuracy of a shorter schedule is not that of the whole
                    accuracies.setdefault(row["candidate"], []).append(record["result"]["val_accuracy"])
            else:
                failures.append({"candidate": row["candidate"], "seed": row["seed"], "reason": record["reason"]})
        means = {name: statistics.fmean(values) for name, values in accuracies.items() if name != BASELINE}
        best = max(means, key=lambda name: means[name], default=None)
        total = max(self._planned.get("expected", 0), len(self.evaluations))
        left = total - done - len(failures)
        complete = left == 0 and (self.directory / "result.json").exists()
        values = {
            "study": self.name,
            "state": "running" if is_locked(self.directory) else "finished" if complete else "interrupted",
            "evaluations": {"total": total, "done": done, "failed": len(failures), "left": left},
            "failures": failures,
            "best": {"candidate": best, "val_accuracy_mean": means[best]} if best else None,
            "nothing_learnt": self.nothing_learnt if complete else None,
            "directory": str(self.directory),
        }
        return dict(named(values, self.metric))

    @property
    def metric(self) -> str | None:
        """What it chooses by; None is accuracy."""
        with self._undamaged():
            found = self.values["recipe"].get("metric")
        return None if found is None else str(found)

    @property
    def first_keys(self) -> dict[str, str]:
        """Candidate to the key of its training with seed 0 and the whole recipe."""
        return {row["candidate"]: row["key"] for row in self.evaluations if row["seed"] == 0 and "epochs" not in row}

    @property
    def named_again(self) -> list[str]:
        """The words of a command on it that name functions of the user's: what its file names is not run."""
        with self._undamaged():
            factory, metric = self.values["baseline"].get("factory"), self.metric
        words = [] if factory is None or is_timm(str(factory)) else [override("baseline.factory", factory)]
        return words + ([override("metric", metric)] if ":" in (metric or "") else [])

    def trained(self, name: str) -> TrainedCandidate:
        """A candidate, "baseline" for the 1x network or "chosen" for the answer, with its weights of seed 0.

        Raises: ValueError where there is none of that name, or it has not been trained.
        """
        if name == "chosen":
            name = self.result["chosen"]["id"]
        keys = self.first_keys
        if name not in keys:
            known = f"chosen, {', '.join(list(keys)[:3])} to {list(keys)[-1]}"
            raise ValueError(f"candidate is {name!r}; study {self.name!r} has {known}")
        record, weights = read_record(self.ledger, keys[name]), self.ledger.weights_path(keys[name])
        if record is None or record["state"] != "finished" or not weights.exists():
            raise ValueError(f"candidate {name} of study {self.name!r} has no trained weights of seed 0")
        if (why := self.ledger.why_no_weights(keys[name])) is not None:
            raise ValueError(
                f"{why}. Remove that file and {weights.with_suffix('.json').name} beside it, and give the study's "
                "`scalesearch run` command again: it is trained again"
            )
        described, made = record["specification"]["network"], f"{self.name}_{name}"
        if "factory" in described:  # the ledger has what it makes, and not the multipliers that it was given
            network, rounding = self.settings.proxy_network
            coefficients = Coefficients(*(float(self.rows[name][key]) for key in ("alpha", "beta", "gamma")))
            scaled = scale(network, coefficients, 1, rounding=rounding, name=made)
            network = replace(scaled, resolution=described["resolution"])
        else:
            network = from_table(described, name=made)
        try:
            data = load(self.settings.data, check=False)
        except (OSError, ValueError):  # on another machine, say: the weights are worth having without
            data = None
        if data is not None and data.fingerprint != record["specification"]["data"]:
            data = None
        return TrainedCandidate(name, network, weights, record["result"]["val_accuracy"], data)

    # Writing what it was begun with and its evaluations; `answer` writes what it came to

    @staticmethod
    def begin(settings: StudySettings, plan: Plan, data: Data, init: str | None) -> Study:
        """The study's directory, made, or found to belong to the same search."""
        study = Study(settings.workspace, settings.directory)
        path = study.directory / "settings.yaml"
        if path.exists():
            before, now = decisive_settings(study.values), decisive_settings(settings.values)
            differing = [key for key in before | now if before.get(key) != now.get(key)]
            if differing:
                raise ValueError(
                    f"study {study.name!r} was begun with other settings ({', '.join(differing)}); choose another "
                    f"name with study=NAME, or none: what is trained already is shared either way"
                )
        write_atomic(path, hide_password(to_yaml(settings.values)).encode())  # it may be shared, and goes to MLflow
        rows: list[Json] = []
        with suppress(ValueError):  # not there yet, or damaged: what the strategy asks for is written again
            rows = study.evaluations
        if settings.search.strategy.lookahead is None:  # all that it will ask for is known
            rows = [study._row(settings, *one) for one in possible_of(settings, plan, data, init)]
        study._write_evaluations(rows, settings.seeds + sum(number for number, _ in settings.expected(plan)))
        return study

    def record(self, settings: StudySettings, trial: TrialResult) -> None:
        """Keep the key of an evaluation, for `status`, and for finding its weights.

        The file has all of them, so it takes the longer the more there are: no more than a twentieth of the time is
        spent on writing it. What one write leaves out is in the next one, `record_all` at the latest.
        """
        row = self._row(settings, trial.candidate, trial.outcome.evaluation)
        if not self._keys:
            self._keys.update((one["candidate"], one["key"]) for one in self._planned["evaluations"])
        if (row["candidate"], row["key"]) not in self._keys:
            self._keys.add((row["candidate"], row["key"]))
            self._planned["evaluations"].append(row)
            began = time.monotonic()
            if began >= self._next_write:
                self._write_evaluations(self._planned["evaluations"], self._planned["expected"])
                ended = time.monotonic()
                self._next_write = ended + 19 * (ended - began)

    def record_all(self, settings: StudySettings, trials: Sequence[TrialResult]) -> None:
        """At the end of the search: these are all."""
        rows = [self._row(settings, one.candidate, one.outcome.evaluation) for one in trials]
        whole = float("inf")
        rows.sort(
            key=lambda row: (row["candidate"] != BASELINE, row["candidate"], row.get("epochs", whole), row["seed"])
        )
        self._write_evaluations(rows, len(rows))

    def _row(self, settings: StudySettings, candidate: Candidate, evaluation: Evaluation) -> Json:
        row = {"candidate": candidate.id, "seed": evaluation.seed, "key": evaluation.key}
        whole = evaluation.recipe == settings.recipe
        return row if whole else row | {"epochs": evaluation.recipe.epochs}  # a complete shorter schedule

    def _write_evaluations(self, rows: Sequence[Mapping[str, Any]], expected: int) -> None:
        planned = {"expected": expected, "evaluations": list(rows)}
        write_atomic(self.directory / "evaluations.json", json.dumps(planned, indent=1).encode())
        self._planned = planned

    @contextmanager
    def _undamaged(self) -> Iterator[None]:
        try:
            yield
        except (KeyError, TypeError, AttributeError, IndexError, OSError, json.JSONDecodeError) as error:
            raise self.damaged(one_line(error)) from None

    def damaged(self, why: str) -> ValueError:
        """The error that the study's files do not go together."""
        return ValueError(
            f"the files of study {self.name!r} are damaged ({why}); give its `scalesearch run` command again"
        )


def possible_of(
    settings: StudySettings, plan: Plan, data: Data, init: str | None
) -> Iterator[tuple[Candidate, Evaluation]]:
    """Every evaluation that a study may come to ask for; `init` is the digest of the initial weights."""
    strategy, seeds, recipe = settings.search.strategy, settings.seeds, settings.recipe
    return possible(plan, strategy, seeds=seeds, recipe=recipe, data=data.fingerprint, init=init)


def _network(described: Mapping[str, Any], row: Mapping[str, str]) -> AnyNetwork:
    """As it was trained; of a function, which is not called, with the multiplier of depth that the table has."""
    if "factory" not in described:
        return from_table(described, name=row["candidate"])
    kept = {key: described[key] for key in ("factory", "resolution", "in_channels", "num_classes")}
    return from_table(kept | {"depth": float(row["depth"])}, name=row["candidate"])


def _candidate(name: str, row: Mapping[str, str], network: AnyNetwork, triples: tuple[Coefficients, ...]) -> Candidate:
    counted = Cost(*(int(row[field]) for field in ("macs", "params", "activations")))
    footprint = None
    if all(field in row for field in Footprint._fields):
        latency = float(row["latency_ms"]) if row["latency_ms"] else None
        footprint = Footprint(int(row["memory"]), int(row["training_memory"]), latency)
    return Candidate(name, triples, network, counted, float(row["macs_ratio"]), footprint)
