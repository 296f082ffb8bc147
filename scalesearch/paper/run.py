"""`scalesearch reproduce NAME`: points, trainings, what is measured of them, then finding, figures and page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalesearch.evaluation import Outcome, counts
from scalesearch.ledger import write_atomic
from scalesearch.machine import native_precisions, torch_device
from scalesearch.paper import page
from scalesearch.paper.experiment import draw, read_summary, worded, write_table
from scalesearch.paper.points import Point, Setting, Trainings, point_values
from scalesearch.paper.request import ExperimentRequest
from scalesearch.screen import Screen
from scalesearch.session import Learnt, Session, counts_line
from scalesearch.tracking import CommandLog, recipe_params
from scalesearch.training import check_function, named
from scalesearch.workspace import ALL_FAILED, DONE

if TYPE_CHECKING:
    import pandas as pd


def run(request: ExperimentRequest, session: Session) -> int:
    """`scalesearch reproduce NAME`: the exit code; everything lies in <workspace>/experiments/<NAME>."""
    experiment, out = request.experiment, session.out
    metric = request.metric
    computed = experiment.computed(request.baselines, request.rounding)
    setting = None if computed is not None else _setting(request, session)
    points = [] if setting is None else experiment.points(setting)
    out.say(": ".join(filter(None, [request.name, experiment.question])))
    expected = _expected(request, setting, points, session)
    if request.dry_run:
        out.answer({"experiment": request.name, "points": [point_values(point) for point in points], **expected})
        return DONE
    if setting is not None:
        for spec in dict.fromkeys(point.data for point in points):
            data = session.data(spec)
            check_function(metric, data)
    with session, _log(request, setting, session) as log:
        if computed is not None:
            session.conclude(log, DONE, metrics={}, files=_conclude(request, computed, [], out, []))
            return DONE
        assert setting is not None
        trainings = Trainings(points, setting, session)
        trainings.run(log)
        results = trainings.table(trainings.test() if request.test else None)
        learnt = trainings.learnt()
        code = session.finish(trainings.unique, _nothing(learnt))
        if code == ALL_FAILED:
            write_table(results, request.directory / "results.csv", metric)
            out.answer({"experiment": request.name, "evaluations": counts(trainings.unique), "finding": None})
            session.conclude(log, code, metrics={}, files=[request.directory / "results.csv"])
            return code
        results = experiment.measured(trainings, results, request.directory, out)
        write_table(results, request.directory / "results.csv", metric)
        summary = experiment.summary(results, trainings.correct())
        files = _conclude(request, summary, trainings.unique, out, learnt)
        session.conclude(log, code, metrics={}, files=[request.directory / "results.csv", *files])
    return code


def _conclude(
    request: ExperimentRequest,
    summary: pd.DataFrame,
    outcomes: Sequence[Outcome],
    out: Screen,
    learnt: Sequence[Learnt],
) -> list[Path]:
    """Table, finding, figures and page, on disk and on the screen; these files."""
    experiment, directory, metric = request.experiment, request.directory, request.metric
    write_table(summary, directory / "summary.csv", metric)
    summary = read_summary(directory, metric)  # the finding is that of the table that was kept
    files = draw(experiment, directory, title=request.title, metric=metric)
    nothing, beside = _nothing(learnt), [one.beside for one in learnt if one.beside]
    pictures = [path.name for path in files if path.suffix == ".png"]
    entry = page.entry(request, summary, outcomes, pictures, nothing=nothing, beside=beside)
    known = counts(outcomes)
    rows = [{worded(heading, metric): cell for heading, cell in row.items()} for row in experiment.table(summary)]
    write_atomic(directory / "finding.json", json.dumps(entry, indent=1, ensure_ascii=False).encode() + b"\n")
    write_atomic(directory / "README.md", page.readme(entry, rows).encode())
    out.table(request.name, rows, {heading: heading for heading in rows[0]})
    out.say(f"finding: {entry['finding']}")
    if entry["paper"]:
        out.say(f"the paper: {entry['paper']}")
    for sentence in entry["caveats"]:
        out.say(f"  caveat: {sentence}")
    if outcomes:
        out.say(counts_line(outcomes))
    out.say(f"tables, figures and a page: {directory}")
    values = json.loads(named(summary, metric).to_json(orient="records"))
    answer = {"nothing_learnt": nothing, "directory": str(directory), "evaluations": known, "summary": values}
    out.answer({"experiment": request.name, "finding": entry["finding"]} | answer)
    return [*(directory / name for name in ("summary.csv", "finding.json", "README.md")), *files]


def _nothing(learnt: Sequence[Learnt]) -> str | None:
    """Why nothing was learnt on one of the data sets: the finding then, as differences of such networks are noise."""
    return " ".join(one.nothing for one in learnt if one.nothing) or None


def _log(request: ExperimentRequest, setting: Setting | None, session: Session) -> CommandLog:
    """What MLflow shows of the experiment."""
    params: dict[str, object] = {"baselines": ", ".join(request.baselines), "rounding": request.rounding.name}
    specs = [] if setting is None else [setting.data, *([setting.target] if setting.target else [])]
    if setting is not None:
        params |= recipe_params(setting.recipe, setting.seeds)
    summary = "\n".join(filter(None, [request.command, request.experiment.question]))
    return session.log("reproduce", request.name, params=params, summary=summary, specs=specs)


def _setting(request: ExperimentRequest, session: Session) -> Setting:
    """What is trained on, with initial weights fetched."""
    if request.data is None or request.recipe is None:
        raise ValueError("data and recipe are missing, such as data=fashion_scenes recipe=scenes")
    digests = {
        name: digest
        for name, base in request.baselines.items()
        if (digest := session.initial_weights(request.init, [base], [base])) is not None
    }
    return Setting(
        baselines=request.baselines,
        rounding=request.rounding,
        recipe=request.recipe,
        seeds=request.seeds,
        data=request.data,
        target=request.target,
        init=digests,
    )


def _expected(
    request: ExperimentRequest, setting: Setting | None, points: Sequence[Point], session: Session
) -> dict[str, Any]:
    """Trainings, multiply-adds x images, and of a plan the seconds that they take, from timing some of them."""
    out = session.out
    if setting is None:
        if request.dry_run:
            out.say("nothing is trained")
        return {"trainings": 0, "estimated_seconds": 0.0}
    work = page.work(points, setting.seeds)
    expected = {"trainings": setting.seeds * len(work), "macs_images": page.macs_images(points, setting.seeds)}
    if request.dry_run:  # a run shows at its first training what is left
        with Session(session.workspace, session.executor, out) as workers:
            expected["estimated_seconds"] = round(workers.estimated_seconds(work, setting.data), 1)
    rows = page.plan_rows(points)
    out.table("What is trained", rows, {heading: heading for heading in rows[0]})
    for words in page.plan_words(setting, expected):
        out.say(words)
    place = torch_device(None)
    if setting.recipe.autocast == "bfloat16" and "bfloat16" not in native_precisions(place):
        out.say(
            f"this {'CPU' if place.type == 'cpu' else 'GPU'} emulates bfloat16, several times slower than float32: "
            "recipe.autocast=auto takes what is quicker; its trainings are not those of the recorded figures"
        )
    return expected
