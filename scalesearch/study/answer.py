"""The answer of a study: tables, coefficients, variants, figures, and what `run --json` prints."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalesearch import variants
from scalesearch.budget import Footprint
from scalesearch.config import to_yaml
from scalesearch.evaluation import counts
from scalesearch.ledger import write_atomic
from scalesearch.scaling import Coefficients
from scalesearch.search import BASELINE, Candidate, TrialResult
from scalesearch.study.files import Study
from scalesearch.study.settings import StudySettings
from scalesearch.training import named

if TYPE_CHECKING:
    import pandas as pd

    from scalesearch.selection import Chance, Choice, Unlearnt


@dataclass(frozen=True)
class Answer:
    """What a search came to.

    test: test accuracies of the choice and of the 1x network, by id. chance: what a network must be better than.
    levels: its value on "validation" and, where it is known, on "test" images. values: what `run --json` prints.
    waiting: what MLflow has not got yet.
    """

    trials: Sequence[TrialResult]
    stopped: Mapping[str, str]
    choice: Choice
    chosen: Candidate
    test: Mapping[str, Mapping[str, Any]]
    family: Sequence[variants.Variant]
    chance: Chance
    levels: Mapping[str, float]
    values: Mapping[str, Any] = field(default_factory=dict)
    waiting: str | None = None


@dataclass(frozen=True)
class NothingLearnt:
    """What a search came to whose candidates are all no better than the majority class: no choice and no family.

    reason: one sentence. remedy: what to try. best: the best of the candidates, with its accuracy and `p_value`.
    """

    trials: Sequence[TrialResult]
    stopped: Mapping[str, str]
    best: Unlearnt
    chance: Chance
    reason: str
    remedy: str
    values: Mapping[str, Any] = field(default_factory=dict)
    waiting: str | None = None


def write_trials(
    study: Study, settings: StudySettings, trials: Sequence[TrialResult], stopped: Mapping[str, str]
) -> None:
    """Write trials.csv, one row per evaluation, and which candidates were stopped and why; the search is at its end."""
    from scalesearch.selection import trials_table

    write_csv(named(trials_table(trials), settings.recipe.metric), study.directory / "trials.csv")
    write_atomic(study.directory / "stopped.json", json.dumps(dict(sorted(stopped.items())), indent=1).encode())
    study.record_all(settings, trials)


def write_answer(settings: StudySettings, answer: Answer) -> tuple[dict[str, Any], list[Path]]:
    """Write tables, coefficients, variants and figures into the study's directory.

    Returns what `run --json` prints, and the files and folders that belong to the answer.
    """
    import pandas as pd

    from scalesearch.figures import draw_all

    directory, coefficients, choice = settings.directory, answer.chosen.coefficients, answer.choice
    metric = settings.recipe.metric
    variants.write(answer.family, coefficients, directory / "variants", rounding=settings.rounding)
    family = variants.family_rows(answer.family, coefficients, directory / "variants")
    tables = {"candidates": choice.candidates, "comparisons": choice.comparisons, "family": pd.DataFrame(family)}
    if choice.decision is not None:
        tables["decision"] = choice.decision.table
    for name, table in tables.items():
        write_csv(named(table, metric), directory / f"{name}.csv")
    drawn = {name: named(table, metric) for name, table in tables.items() if name != "comparisons"}
    draw_all(drawn, directory / "figures", title=settings.study)
    values = _values(settings, answer, family)
    written = {
        **{name: getattr(coefficients, name) for name in ("alpha", "beta", "gamma")},
        "rounding": settings.rounding.name,
        "study": settings.study,
        "tied": {row["candidate"]: json.loads(row["triples"]) for row in _tied(answer)},
    }
    write_atomic(directory / "coefficients.yaml", to_yaml(written).encode())
    written_values = named(values, metric)
    write_atomic(directory / "result.json", json.dumps(written_values, indent=1, allow_nan=False).encode())
    names = ["coefficients.yaml", "trials.csv", *(f"{name}.csv" for name in tables), "result.json"]
    return values, [directory / name for name in (*names, "figures", "variants")]


# Of an answer alone: a study that has come to none, though it had one before, must not show them.
_OF_A_CHOICE = ("coefficients.yaml", "candidates.csv", "comparisons.csv", "family.csv", "decision.csv", "report.md")
_FOLDERS_OF_A_CHOICE = ("figures", "variants", "model")


def write_nothing(settings: StudySettings, nothing: NothingLearnt) -> tuple[dict[str, Any], list[Path]]:
    """Write result.json without a choice, and remove what an earlier command had written of one.

    Returns what `run --json` prints, and the files that belong to it.
    """
    directory, best = settings.directory, nothing.best
    values: dict[str, Any] = {
        "study": settings.study,
        "selection": asdict(settings.selection),
        "chosen": None,
        "nothing_learnt": {
            "reason": nothing.reason,
            "remedy": nothing.remedy,
            "best": {"id": best.name, "val_accuracy_mean": best.accuracy},
            "p_value": best.p_value,
            "constant": best.constant,
            "steps": settings.recipe.num_steps(settings.description.num_train),
        },
        nothing.chance.key: {"validation": nothing.chance.value},
        "stopped": dict(sorted(nothing.stopped.items())),
        "evaluations": counts(one.outcome for one in nothing.trials),
        "variants": [],
        "directory": str(directory),
    }
    written = named(values, settings.recipe.metric)
    write_atomic(directory / "result.json", json.dumps(written, indent=1, allow_nan=False).encode())
    for name in _OF_A_CHOICE:
        (directory / name).unlink(missing_ok=True)
    for name in _FOLDERS_OF_A_CHOICE:
        shutil.rmtree(directory / name, ignore_errors=True)
    return values, [directory / name for name in ("trials.csv", "result.json")]


def _values(settings: StudySettings, answer: Answer, family: list[dict[str, Any]]) -> dict[str, Any]:
    rows, best, chosen = _rows(answer.choice), answer.choice.best, answer.chosen
    tied = [{"id": row["candidate"]} | {n: row[n] for n in ("alpha", "beta", "gamma")} for row in _tied(answer)]
    of_best = {name: rows[best][name] for name in ("alpha", "beta", "gamma", "product", "macs_ratio")}
    sizes = {key: rows[BASELINE][key] for key in ("macs", "params", "activations", "depth", "resolution")}
    return {
        "decision": _decision(settings, answer),
        "study": settings.study,
        "selection": asdict(settings.selection),
        "best": {"id": best, **of_best, **_scores(rows[best])},
        "chosen": {
            "id": chosen.id,
            **point(chosen.coefficients, chosen.ratio),
            "triples": [[t.alpha, t.beta, t.gamma] for t in chosen.triples],
            **_scores(rows[chosen.id]),
            "tied_with": tied,
        },
        "test_accuracy": {"chosen": answer.test[chosen.id], "baseline": answer.test[BASELINE]},
        answer.chance.key: dict(answer.levels),
        "not_learnt": list(answer.choice.not_learnt),
        "without_interval": answer.choice.without_interval,
        "baseline": {
            **sizes,
            **{key: _finite(rows[BASELINE][key]) for key in Footprint._fields},
            **_scores(rows[BASELINE]),
        },
        "stopped": dict(sorted(answer.stopped.items())),
        "evaluations": counts(one.outcome for one in answer.trials),
        "variants": family,
        "directory": str(settings.directory),
    }


def _decision(settings: StudySettings, answer: Answer) -> dict[str, Any] | None:
    """The decision with its sentence; None where the trainings are too few for one."""
    from scalesearch.selection import words

    if (decision := answer.choice.decision) is None:
        return None
    values = decision.values()
    sentence = words(values, asdict(answer.chosen.coefficients))
    if (wanted := settings.search.regret) is not None:
        values["regret_reached"] = 100 * decision.regret < wanted
        ended = (
            "is reached"
            if values["regret_reached"]
            else "is not reached, and the compute that search.compute allows is used up"
        )
        sentence += f". search.regret={wanted:g} {ended}"
    return {"sentence": sentence, **values}


def _rows(choice: Choice) -> dict[str, Any]:
    return {row["candidate"]: row for row in choice.candidates.to_dict("records")}


def _tied(answer: Answer) -> list[dict[str, Any]]:
    """The rows of the best and its ties, but for the chosen one."""
    rows = _rows(answer.choice)
    return [rows[name] for name in (answer.choice.best, *answer.choice.tied) if name != answer.chosen.id]


def _scores(row: Mapping[str, Any]) -> dict[str, Any]:
    ends = {f"val_accuracy_{end}": _finite(row[f"val_accuracy_{end}"]) for end in ("mean", "std", "low", "high")}
    return ends | {"seeds": int(row["num_seeds"])}


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


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """A table of a study, there whole or not at all."""
    write_atomic(path, table.to_csv(index=False).encode())
