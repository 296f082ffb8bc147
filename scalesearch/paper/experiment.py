"""An experiment of the paper from its question to its figure: `scalesearch reproduce NAME`.

`carry_out` reads top to bottom: points, trainings, what is measured of them, summary, finding, figure. What an
experiment itself is, it says as a `Experiment`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from scalesearch import screen, study
from scalesearch.config import ReproduceRequest
from scalesearch.data import describe
from scalesearch.evaluation import Evaluator, Outcome, Work, mixed_precision
from scalesearch.executor import EXECUTORS
from scalesearch.ledger import Ledger, lock_study, write_atomic
from scalesearch.machine import environment, instructions
from scalesearch.model import identity
from scalesearch.network import AnyNetwork
from scalesearch.paper.points import Correct, Point, Setting, Trainings, point_values
from scalesearch.run import ALL_FAILED, DONE, SOME_FAILED, initial_weights
from scalesearch.scaling import Rounding
from scalesearch.screen import Screen

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


# What an answer rests on that was found with this baseline on this data, with the recipe `scenes`.
_OF_SETTINGS: dict[tuple[str, str], Sequence[str]] = {
    ("preresnet_tiny", "fashion_scenes"): (
        "the baseline was chosen so that its three dimensions are worth about the same to it",
        "a scene's real detail ends near 31 to 43 px, as garments of 28 px fill 62 to 86 of its 96 px",
        "two epochs optimise deep networks badly: depth alone at 8 times the cost fits its training images no better "
        "than at twice; that network's channels were also trimmed to meet the cost, and d=8 untrimmed, of figure3, is "
        "better",
        "nothing is trained to the end",
    ),
}


class Experiment:
    """What an experiment asks, trains and says. A subclass is a frozen dataclass whose fields are its options.

    asks: its question, in a line. paper: what the paper says of it, or whoever has published on it.
    rests_on: what its answer rests on, printed with it.
    tunes: whether it reads `target`.
    """

    asks: ClassVar[str]
    paper: ClassVar[str]
    rests_on: ClassVar[Sequence[str]] = ()
    tunes: ClassVar[bool] = False

    def points(self, setting: Setting) -> list[Point]:
        """Everything that is trained. Errors: ValueError where the setting does not fit."""
        raise NotImplementedError

    def computed(self, baselines: Mapping[str, AnyNetwork], rounding: Rounding) -> pd.DataFrame | None:
        """The summary of an experiment that trains nothing; None for all others."""
        return None

    def measured(self, trainings: Trainings, results: pd.DataFrame, directory: Path, out: Screen) -> pd.DataFrame:
        """`results` with columns of what is measured of the trained networks; it may write files beside them."""
        return results

    def summary(self, results: pd.DataFrame, correct: Mapping[str, Correct]) -> pd.DataFrame:
        """The rows of the table that summary.csv keeps and figures are drawn from."""
        raise NotImplementedError

    def finding(self, summary: pd.DataFrame) -> str:
        """What came out, in a sentence, whichever way it fell."""
        raise NotImplementedError

    def draw(self, summary: pd.DataFrame, directory: Path, *, title: str) -> dict[str, Figure]:
        """Figures by name, from summary.csv and the files that `measured` left in `directory`."""
        raise NotImplementedError

    def shown(self, summary: pd.DataFrame) -> list[dict[str, str]]:
        """The rows of the table that a person is shown, heading to cell."""
        return shown_points(summary)


def carry_out(question: ReproduceRequest, out: Screen) -> int:
    """`scalesearch reproduce NAME`: the exit code; everything lies in <workspace>/experiments/<NAME>."""
    experiment: Experiment = question.experiment
    directory, ledger = question.workspace / "experiments" / question.name, Ledger(question.workspace)
    computed = experiment.computed(question.baselines, question.rounding)
    if computed is not None:
        out.say(f"{question.name}: {experiment.asks}")
        if question.dry_run:
            out.say("nothing is trained")
            out.answer({"experiment": question.name, "points": [], "trainings": 0, "estimated_seconds": 0.0})
            return DONE
        with lock_study(directory):
            _conclude(question, computed, [], directory, out)
        return DONE
    setting = _setting(question, out)
    points = experiment.points(setting)
    outlook = _outlook(question, setting, points)
    _show_plan(question, setting, points, outlook, out)
    if question.dry_run:
        out.answer({"experiment": question.name, "points": [point_values(point) for point in points], **outlook})
        return DONE
    with lock_study(directory):
        trainings = Trainings(points, setting, ledger, log=out.warn)
        if question.retry:
            out.say(f"{_forget_failures(trainings)} failed trainings are run again")
        with EXECUTORS[question.executor_name](**question.executor) as executor:
            trainings.run(executor, shown=_Lines(out, trainings.total))
            test = trainings.test(executor) if question.test else None
        outcomes = list({outcome.evaluation.key: outcome for outcome in trainings.outcomes.values()}.values())
        results = trainings.table(test)
        failed = [outcome for outcome in outcomes if outcome.result is None]
        if len(failed) == len(outcomes):
            out.warn(f"all {len(failed)} trainings failed: {failed[0].reason}")
            out.warn("when the cause is mended: the same command with retry=true")
            _write_table(results, directory / "results.csv")
            out.answer({"experiment": question.name, "evaluations": study.counts(outcomes), "finding": None})
            return ALL_FAILED
        if (mixed := mixed_precision(outcomes)) is not None:
            out.warn(mixed)
        results = experiment.measured(trainings, results, directory, out)
        _write_table(results, directory / "results.csv")
        _conclude(question, experiment.summary(results, trainings.correct()), outcomes, directory, out)
        if failed:
            out.warn(f"{failed[0].evaluation.network.name} seed {failed[0].evaluation.seed} failed: {failed[0].reason}")
            out.say("when the cause is mended: the same command with retry=true")
    return SOME_FAILED if failed else DONE


def _conclude(
    question: ReproduceRequest, summary: pd.DataFrame, outcomes: Sequence[Outcome], directory: Path, out: Screen
) -> None:
    """Table, finding, figures and page, on disk and on the screen."""
    experiment: Experiment = question.experiment
    _write_table(summary, directory / "summary.csv")
    summary = read_summary(directory)  # what is said is said of what was kept
    finding, counts = experiment.finding(summary), study.counts(outcomes)
    files = draw(experiment, directory, title=_title(question))
    entry: dict[str, Any] = {
        "experiment": question.name,
        "asks": experiment.asks,
        "finding": finding,
        "paper": experiment.paper,
        "rests_on": _rests_on(question),
        "command": question.command,
        "title": _title(question),
        "seeds": question.seeds if outcomes else 0,
        "trainings": len(outcomes),
        "failed": counts["failed"],
        "train_seconds": round(math.fsum(one.result.train_seconds for one in outcomes if one.result is not None), 1),
        "environment": {name: value for name, value in environment().items() if name != "host"},
        "figures": [path.name for path in files if path.suffix == ".png"],
    }
    rows = experiment.shown(summary)
    write_atomic(directory / "finding.json", json.dumps(entry, indent=1, ensure_ascii=False).encode() + b"\n")
    write_atomic(directory / "README.md", readme(entry, rows).encode())
    out.table(question.name, rows, {heading: heading for heading in rows[0]})
    out.say(f"finding: {finding}")
    out.say(f"the paper: {experiment.paper}")
    for sentence in entry["rests_on"]:
        out.say(f"  it rests on: {sentence}")
    if outcomes:
        out.say(f"{counts['trained']} trained, {counts['reused']} from the ledger, {counts['failed']} failed")
    out.say(f"tables, figures and a page: {directory}")
    values = json.loads(summary.to_json(orient="records"))
    out.answer(
        {k: entry[k] for k in ("experiment", "finding")}
        | {"directory": str(directory), "evaluations": counts, "summary": values}
    )


def read_summary(directory: Path) -> pd.DataFrame:
    """The table that an experiment's finding and figures are made of. Errors: OSError where there is none."""
    import pandas as pd

    table = pd.read_csv(directory / "summary.csv", keep_default_na=False, na_values=[""])
    words = [name for name in table.columns if not pd.api.types.is_numeric_dtype(table[name])]
    return table.fillna(dict.fromkeys(words, ""))


def draw(experiment: Experiment, directory: Path, *, title: str) -> list[Path]:
    """The figures of an experiment from the tables in its directory, as PNG and SVG in its folder figures/."""
    from scalesearch.figures import paper

    files = []
    for name, figure in experiment.draw(read_summary(directory), directory, title=title).items():
        files += paper.save(figure, directory / "figures", name, title=title)
    return files


def at_least_one(option: str, values: Sequence[float], *, least: float, most: float = 100) -> None:
    """Refuse an option that is no list of numbers from `least` to `most`. Errors: ValueError."""
    if not values or not all(math.isfinite(value) and least <= value <= most for value in values):
        raise ValueError(
            f"experiment.{option} is {list(values)!r}; it must be a list of numbers from {least:g} to {most:g}, one at "
            "least"
        )


def shown_points(summary: pd.DataFrame) -> list[dict[str, str]]:
    """A row a point: what it is, what it costs, how accurate it is."""
    rows = []
    for row in summary.to_dict("records"):
        cells = {
            "scaled": str(row["curve"]),
            "multipliers": str(row["label"]),
            "px": str(row["pixels"]),
            "blocks": f"{row['blocks']:g}",
            "multiply-adds": screen.count(row["macs"]),
            "ratio": f"{row['macs_ratio']:.3f}",
            "seeds": str(row["seeds"]),
            "validation accuracy (%)": with_interval(row, "val_accuracy"),
        }
        if "test_accuracy_mean" in row:
            cells["test accuracy (%)"] = with_interval(row, "test_accuracy")
        rows.append(cells)
    return rows


def readme(entry: Mapping[str, Any], rows: Sequence[Mapping[str, str]]) -> str:
    """The page of an experiment: question, finding, what it rests on, table, figures, how it was made."""
    here = entry["environment"]
    lines = [
        f"# {entry['experiment']}",
        "",
        f"    {entry['command']}",
        "",
        "made every file here.",
        "",
        f"**Question.** {entry['asks']}",
        "",
        f"**Finding.** {entry['finding']}",
        "",
        f"**The paper.** {entry['paper']}.",
        "",
    ]
    if entry["rests_on"]:
        lines += ["**What it rests on.**", "", *(f"- {sentence}" for sentence in entry["rests_on"]), ""]
    for name in entry["figures"]:
        lines += [f"![{entry['experiment']}](figures/{name})", ""]
    if rows:
        lines += ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
        lines += ["| " + " | ".join(row.values()) + " |" for row in rows] + [""]
    if entry["trainings"]:
        lines += [
            f"{entry['trainings']} trainings, {entry['seeds']} seeds a point, "
            f"{screen.duration(entry['train_seconds'])} of training on one thread each; intervals are at 95 %.",
        ]
    machine = here.get("processor", here["machine"])
    lines += [f"Python {here['python']}, torch {here['torch']}, {machine}, device {here['device']}.", ""]
    return "\n".join(lines)


def _setting(question: ReproduceRequest, out: Screen) -> Setting:
    """What is trained on, with initial weights fetched."""
    if question.data is None or question.recipe is None:
        raise ValueError("data and recipe are missing, such as data=fashion_scenes recipe=scenes")
    digests = {
        name: digest
        for name, base in question.baselines.items()
        if (digest := initial_weights(question.init, [base], [base], question.workspace, out)) is not None
    }
    return Setting(
        baselines=question.baselines,
        rounding=question.rounding,
        recipe=question.recipe,
        seeds=question.seeds,
        data=question.data,
        target=question.target,
        init=digests,
    )


def _outlook(question: ReproduceRequest, setting: Setting, points: Sequence[Point]) -> dict[str, Any]:
    """Trainings, multiply-adds x images of all, and of a plan the seconds that they take, from timing some of them."""
    work: dict[tuple[Any, ...], Work] = {}
    for point in points:
        same = json.dumps(identity(point.network), sort_keys=True)  # whatever its name, as in an evaluation's key
        what = (same, point.recipe, point.data, point.init, point.after is not None)
        work.setdefault(what, Work(point.network, point.recipe, describe(point.data), setting.seeds))
    macs_images = math.fsum(
        point_values(point)["macs"] * describe(point.data).num_train * point.recipe.epochs for point in points
    )
    outlook = {"trainings": setting.seeds * len(work), "macs_images": macs_images * setting.seeds}
    if not question.dry_run:  # a run says at its first training what is left
        return outlook
    with EXECUTORS[question.executor_name](**question.executor) as executor:
        seconds = Evaluator(Ledger(question.workspace), executor, setting.data).expected_seconds(list(work.values()))
    return outlook | {"estimated_seconds": round(seconds, 1)}


def _show_plan(
    question: ReproduceRequest, setting: Setting, points: Sequence[Point], outlook: Mapping[str, Any], out: Screen
) -> None:
    out.say(f"{question.name}: {question.experiment.asks}")
    rows = [
        {
            "scaled": point.curve,
            "multipliers": point.label,
            "px": str(point.network.resolution),
            "blocks": f"{point.network.depth:g}",
            "multiply-adds": screen.count(values["macs"]),
            "ratio": f"{values['macs_ratio']:.3f}",
            "epochs": f"{point.recipe.epochs:g}",
            "departures from the rule": values["moves"],
        }
        for point in points
        for values in [point_values(point)]
    ]
    out.table("What is trained", rows, {heading: heading for heading in rows[0]})
    sizes = describe(setting.data)
    out.say(
        f"{outlook['trainings']} trainings ({setting.seeds} seeds each) on {sizes.num_train} images of {sizes.name}; "
        "those that the ledger has are not repeated"
    )
    if "estimated_seconds" in outlook:
        out.say(f"expected time for all of them on this machine: {screen.duration(outlook['estimated_seconds'])}")
    if setting.recipe.autocast == "bfloat16" and environment()["device"] == "cpu" and "bfloat16" not in instructions():
        out.say(
            "this CPU emulates bfloat16, several times slower than float32: recipe.autocast=auto takes what is "
            "quicker; its trainings are not those of the recorded figures"
        )


class _Lines:
    """A line a training: how many there are, what came out, and what time is left at the present pace."""

    def __init__(self, out: Screen, total: int) -> None:
        self._out, self._total = out, total
        self._done = self._fresh = 0
        self._began = time.monotonic()

    def __call__(self, point: Point, outcome: Outcome) -> None:
        self._done += 1
        self._fresh += not outcome.reused
        result = outcome.result
        said = f"failed: {outcome.reason}" if result is None else f"{100 * result.val_accuracy:.2f} %"
        left = ""
        if self._fresh and self._done < self._total:
            pace = (time.monotonic() - self._began) / self._fresh
            left = f"; left: {screen.duration(pace * (self._total - self._done))} at most"
        source = " (from the ledger)" if outcome.reused else ""
        self._out.say(
            f"[{self._done}/{self._total}] {point.curve} {point.label} seed {outcome.evaluation.seed}: "
            f"{said}{source}{left}"
        )


def _forget_failures(trainings: Trainings) -> int:
    evaluations = [
        trainings.evaluation(point, seed)
        for point in trainings.points
        for seed in range(trainings.setting.seeds)
        if point.after is None
    ]
    forgotten = study.forget_failures(trainings.ledger, [one for one in evaluations if one is not None])
    later = []
    for point in trainings.points:  # what starts from a finished training is known by what that left
        if point.after is not None:
            for seed in range(trainings.setting.seeds):
                first = trainings.evaluation(point.after, seed)
                record = None if first is None else trainings.ledger.get(first.key)
                if first is not None and record is not None and record["state"] == "finished":
                    later.append(trainings.started(point, first))
    return forgotten + study.forget_failures(trainings.ledger, later)


def _rests_on(question: ReproduceRequest) -> list[str]:
    data = None if question.data is None else question.data.name
    known = [sentence for name in question.baselines for sentence in _OF_SETTINGS.get((name, str(data)), ())]
    return [*question.experiment.rests_on, *known]


def _title(question: ReproduceRequest) -> str:
    of = ", ".join(question.baselines)
    return f"{question.name}: {of}" + (f" on {question.data.name}" if question.data is not None else "")


def with_interval(row: Mapping[Any, Any], score: str) -> str:
    mean, low, high = (100 * row[f"{score}_{end}"] for end in ("mean", "low", "high"))
    if not math.isfinite(mean):
        return "-"
    return f"{mean:.2f}" if not math.isfinite(low) else f"{mean:.2f} ({low:.2f} to {high:.2f})"


def _write_table(table: pd.DataFrame, path: Path) -> None:
    write_atomic(path, table.to_csv(index=False, float_format="%.10g").encode())
