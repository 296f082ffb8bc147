"""A study on disk: its directory, the settings that make it that study, and the answer that it came to."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scalesearch import config, fitting, search, variants
from scalesearch.budget import Footprint, Limits
from scalesearch.config import StudySettings
from scalesearch.data import Data, load
from scalesearch.evaluation import Evaluation, Outcome
from scalesearch.ledger import Ledger, is_locked, write_atomic
from scalesearch.network import AnyNetwork, from_table
from scalesearch.scaling import Coefficients, Rounding, scale
from scalesearch.search import BASELINE, Candidate, Plan, TrialResult, problem

if TYPE_CHECKING:
    import pandas as pd

    from scalesearch.selection import Choice


def open_study(experiment: StudySettings, plan: Plan, data: Data, init: str | None) -> None:
    """Make the study's directory, or see that the one that is there belongs to the same search."""
    path = experiment.directory / "settings.yaml"
    if path.exists():
        before = config.decisive_settings(config.from_yaml(path))
        now = config.decisive_settings(experiment.settings)
        differing = [key for key in before | now if before.get(key) != now.get(key)]
        if differing:
            raise ValueError(
                f"study {experiment.study!r} was begun with other settings ({', '.join(differing)}); choose another "
                f"name with study=NAME, or none: what is trained already is shared either way"
            )
    write_atomic(path, config.to_yaml(experiment.settings).encode())
    strategy = experiment.search.strategy
    number = experiment.seeds + sum(number for number, _ in expected(plan, experiment))
    rows = _asked(experiment.directory / "evaluations.json")
    if strategy.lookahead is None:  # all that it will ask for is known
        rows = [_asked_row(experiment, *one) for one in possible(plan, experiment, data, init)]
    _write_asked(experiment, rows, number)


def expected(plan: Plan, experiment: StudySettings) -> list[tuple[int, float]]:
    """(trainings, share of the recipe's epochs) of candidates: about what the strategy will ask for."""
    return experiment.search.strategy.expected(problem(plan, experiment.seeds))


def possible(
    plan: Plan, experiment: StudySettings, data: Data, init: str | None
) -> Iterator[tuple[Candidate, Evaluation]]:
    """Every evaluation that a study may come to ask for; `init` is the digest of the initial weights."""
    return search.possible(
        plan,
        experiment.search.strategy,
        seeds=experiment.seeds,
        recipe=experiment.recipe,
        data=data.fingerprint,
        init=init,
    )


def record_asked(experiment: StudySettings, one: TrialResult) -> None:
    """Keep which evaluations a study has come to, for `status` and for whoever looks for its weights."""
    path = experiment.directory / "evaluations.json"
    rows, row = _asked(path), _asked_row(experiment, one.candidate, one.outcome.evaluation)
    if row not in rows:
        _write_asked(experiment, [*rows, row], json.loads(path.read_bytes())["expected"])


def _asked_row(experiment: StudySettings, candidate: Candidate, evaluation: Evaluation) -> dict[str, Any]:
    row = {"candidate": candidate.id, "seed": evaluation.seed, "key": evaluation.key}
    whole = evaluation.recipe == experiment.recipe
    return row if whole else row | {"epochs": evaluation.recipe.epochs}  # a complete shorter schedule


def _asked(path: Path) -> list[dict[str, Any]]:
    return _planned(path) if path.exists() else []


def _write_asked(experiment: StudySettings, rows: Sequence[Mapping[str, Any]], expected: int) -> None:
    asked = {"expected": expected, "evaluations": list(rows)}
    write_atomic(experiment.directory / "evaluations.json", json.dumps(asked, indent=1).encode())


def forget_failures(ledger: Ledger, evaluations: Iterable[Evaluation]) -> int:
    """How many failed evaluations were taken out of the ledger, so that they are run again."""
    forgotten = 0
    for evaluation in evaluations:
        record = ledger.get(evaluation.key)
        if record is not None and record["state"] == "failed":
            ledger.remove(evaluation.key)
            forgotten += 1
    return forgotten


def status(workspace: Path, directory: Path) -> dict[str, Any]:
    """How far a study is, from the ledger alone; a running one is not disturbed. What `status --json` prints.

    state: "running", "finished", or "interrupted" (not at its end, and no driver alive).
    """
    ledger, planned = Ledger(workspace), _planned(directory / "evaluations.json")
    expected = json.loads((directory / "evaluations.json").read_bytes()).get("expected", 0)
    done, failures, accuracies = 0, [], dict[str, list[float]]()
    for row in planned:
        record = ledger.get(row["key"])
        if record is None:
            continue
        if record["state"] == "finished":
            done += 1
            if "epochs" in row:  # a shorter schedule: its accuracy is not that of the whole
                continue
            accuracies.setdefault(row["candidate"], []).append(record["result"]["val_accuracy"])
        else:
            failures.append({"candidate": row["candidate"], "seed": row["seed"], "reason": record["reason"]})
    means = {name: statistics.fmean(values) for name, values in accuracies.items() if name != BASELINE}
    best = max(means, key=lambda name: means[name]) if means else None
    total = max(expected, len(planned))
    left = total - done - len(failures)
    complete = left == 0 and (directory / "result.json").exists()
    return {
        "study": directory.name,
        "state": "running" if is_locked(directory) else "finished" if complete else "interrupted",
        "evaluations": {"total": total, "done": done, "failed": len(failures), "left": left},
        "failures": failures,
        "best": {"candidate": best, "val_accuracy_mean": means[best]} if best else None,
        "directory": str(directory),
    }


def _planned(path: Path) -> list[dict[str, Any]]:
    try:
        planned: list[dict[str, Any]] = json.loads(path.read_bytes())["evaluations"]
        if all({"candidate", "seed", "key"} <= row.keys() for row in planned):
            return planned
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError(f"{path} is missing or damaged; the study's `scalesearch run` command writes it again")


def counts(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """How many evaluations were trained now, taken from the ledger, and failed (now or before)."""
    failed = sum(outcome.result is None for outcome in outcomes)
    reused = sum(outcome.reused and outcome.result is not None for outcome in outcomes)
    return {"trained": len(outcomes) - failed - reused, "reused": reused, "failed": failed}


def write_trials(experiment: StudySettings, trained: Sequence[TrialResult], stopped: Mapping[str, str]) -> None:
    """Write trials.csv, a row an evaluation, and which candidates were stopped and why; the search is at its end."""
    from scalesearch.selection import trials_table

    _write_csv(trials_table(trained), experiment.directory / "trials.csv")
    write_atomic(experiment.directory / "stopped.json", json.dumps(dict(sorted(stopped.items())), indent=1).encode())
    rows = [_asked_row(experiment, one.candidate, one.outcome.evaluation) for one in trained]
    rows.sort(
        key=lambda row: (row["candidate"] != BASELINE, row["candidate"], row.get("epochs", math.inf), row["seed"])
    )
    _write_asked(experiment, rows, len(rows))


def write_answer(
    experiment: StudySettings,
    trained: Sequence[TrialResult],
    stopped: Mapping[str, str],
    choice: Choice,
    chosen: Candidate,
    test: Mapping[str, Mapping[str, Any]],
    family: Sequence[variants.Variant],
) -> tuple[dict[str, Any], list[Path]]:
    """Write tables, coefficients, variants and figures into the study's directory.

    Returns what `run --json` prints, and the files and folders that belong to the answer.
    """
    import pandas as pd

    from scalesearch.figures import draw_all

    directory, coefficients = experiment.directory, chosen.coefficients
    rows: dict[str, Any] = {row["candidate"]: row for row in choice.candidates.to_dict("records")}
    tied = [rows[name] for name in (choice.best, *choice.tied) if name != chosen.id]
    variants.write(family, coefficients, directory / "variants", rounding=experiment.rounding)
    rows_of_family = variants.family_rows(family, coefficients, directory / "variants")
    table = pd.DataFrame(rows_of_family)
    _write_csv(choice.candidates, directory / "candidates.csv")
    _write_csv(choice.comparisons, directory / "comparisons.csv")
    _write_csv(table, directory / "family.csv")
    write_atomic(
        directory / "coefficients.yaml",
        config.to_yaml(
            {
                "alpha": coefficients.alpha,
                "beta": coefficients.beta,
                "gamma": coefficients.gamma,
                "rounding": experiment.rounding.name,
                "study": experiment.study,
                "tied": {row["candidate"]: json.loads(row["triples"]) for row in tied},
            }
        ).encode(),
    )
    title = experiment.study
    draw_all({"candidates": choice.candidates, "family": table}, directory / "figures", title=title)

    def scores(name: str) -> dict[str, Any]:
        row = rows[name]
        return {
            "val_accuracy_mean": _finite(row["val_accuracy_mean"]),
            "val_accuracy_std": _finite(row["val_accuracy_std"]),
            "val_accuracy_low": _finite(row["val_accuracy_low"]),
            "val_accuracy_high": _finite(row["val_accuracy_high"]),
            "seeds": int(row["num_seeds"]),
        }

    answer = {
        "study": experiment.study,
        "selection": asdict(experiment.selection),
        "best": {
            "id": choice.best,
            **{name: rows[choice.best][name] for name in ("alpha", "beta", "gamma", "product", "macs_ratio")},
            **scores(choice.best),
        },
        "chosen": {
            "id": chosen.id,
            **point(coefficients, chosen.ratio),
            "triples": [[t.alpha, t.beta, t.gamma] for t in chosen.triples],
            **scores(chosen.id),
            "tied_with": [
                {"id": row["candidate"], "alpha": row["alpha"], "beta": row["beta"], "gamma": row["gamma"]}
                for row in tied
            ],
        },
        "test_accuracy": {"chosen": test[chosen.id], "baseline": test[BASELINE]},
        "baseline": {
            **{key: rows[BASELINE][key] for key in ("macs", "params", "activations", "depth", "resolution")},
            **{key: _finite(rows[BASELINE][key]) for key in Footprint._fields},
            **scores(BASELINE),
        },
        "stopped": dict(sorted(stopped.items())),
        "evaluations": counts([one.outcome for one in trained]),
        "variants": rows_of_family,
        "directory": str(directory),
    }
    write_atomic(directory / "result.json", json.dumps(answer, indent=1, allow_nan=False).encode())
    names = ("coefficients.yaml", "trials.csv", "candidates.csv", "comparisons.csv", "family.csv", "result.json")
    return answer, [directory / name for name in (*names, "figures", "variants")]


def chosen(directory: Path) -> tuple[AnyNetwork, Rounding, Coefficients]:
    """Baseline, rounding and chosen coefficients of a study.

    Errors: ValueError where it has not come to a choice, or its files were damaged.
    """
    if not (directory / "coefficients.yaml").exists():
        raise ValueError(f"study {directory.name!r} has not come to a choice yet; see: scalesearch status")
    try:
        settings = config.from_yaml(directory / "settings.yaml")
        values = config.from_yaml(directory / "coefficients.yaml")
        coefficients = Coefficients(*(values[name] for name in ("alpha", "beta", "gamma")))
        return config.load_baseline(settings, composed=False), Rounding(**settings["rounding"]), coefficients
    except (KeyError, TypeError) as error:
        raise ValueError(f"the files of study {directory.name!r} are damaged ({error}); run it again") from None


def batch_size(directory: Path) -> int:
    """Images of a step of the study's recipe. Errors: ValueError where its settings were damaged."""
    try:
        return int(config.from_yaml(directory / "settings.yaml")["recipe"]["batch_size"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"the files of study {directory.name!r} are damaged ({error}); run it again") from None


def fit_values(fit: fitting.Fit, limits: Limits) -> dict[str, Any]:
    """A fit as `variants --json` prints it."""
    return {
        "limits": limits.given(),
        "phi": fit.variant.phi,
        "moves": [move._asdict() for move in fit.variant.moves],
        "binding": fit.binding,
        "use": fit.use,
        "used_up": fit.share >= fitting.ENOUGH,
    }


class TrainedCandidate(NamedTuple):
    """A candidate with what its first seed has left; `data` is None where that is no longer what it was trained on."""

    id: str
    network: AnyNetwork
    weights: Path
    val_accuracy: float
    data: Data | None


def trained_candidate(workspace: Path, directory: Path, name: str) -> TrainedCandidate:
    """A candidate of a study, "baseline" for the 1x network or "chosen" for the answer, with its trained weights.

    Errors: ValueError where there is none of that name, or it has not been trained.
    """
    if name == "chosen":
        chosen(directory)  # refuses a study without a choice
        name = json.loads((directory / "result.json").read_bytes())["chosen"]["id"]
    asked = _planned(directory / "evaluations.json")
    keys = {row["candidate"]: row["key"] for row in asked if row["seed"] == 0 and "epochs" not in row}
    if name not in keys:
        known = f"chosen, {', '.join(list(keys)[:3])} to {list(keys)[-1]}"
        raise ValueError(f"candidate is {name!r}; study {directory.name!r} has {known}")
    ledger = Ledger(workspace)
    record = ledger.get(keys[name])
    weights = ledger.weights_path(keys[name])
    if record is None or record["state"] != "finished" or not weights.exists():
        raise ValueError(f"candidate {name} of study {directory.name!r} has no trained weights of seed 0")
    described, made = record["specification"]["network"], f"{directory.name}_{name}"
    if "factory" in described:  # the ledger has what it makes, and not the multipliers that it was given
        experiment = config.load_settings(directory)
        with (directory / "candidates.csv").open(newline="") as file:
            row = next(row for row in csv.DictReader(file) if row["candidate"] == name)
        network, rounding = experiment.proxy_network
        coefficients = Coefficients(*(float(row[key]) for key in ("alpha", "beta", "gamma")))
        network = scale(network, coefficients, 1, rounding=rounding, name=made)
    else:
        network = from_table(described, name=made)
    try:
        data = load(config.load_settings(directory).data)
    except (OSError, ValueError):  # on another machine, say: the weights are worth having without
        data = None
    if data is not None and data.fingerprint != record["specification"]["data"]:
        data = None
    return TrainedCandidate(name, network, weights, record["result"]["val_accuracy"], data)


def candidate_values(candidate: Candidate) -> dict[str, Any]:
    """A candidate as `plan --json` prints it."""
    return {
        "id": candidate.id,
        "triples": [[t.alpha, t.beta, t.gamma] for t in candidate.triples],
        **candidate.sizes(),
    }


def point(coefficients: Coefficients, ratio: float | None = None) -> dict[str, float]:
    """Coefficients with their nominal product and, where it is known, the counted ratio."""
    values = {"alpha": coefficients.alpha, "beta": coefficients.beta, "gamma": coefficients.gamma}
    values["product"] = round(coefficients.product, 6)
    return values if ratio is None else values | {"macs_ratio": ratio}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _write_csv(table: pd.DataFrame, path: Path) -> None:
    write_atomic(path, table.to_csv(index=False).encode())
