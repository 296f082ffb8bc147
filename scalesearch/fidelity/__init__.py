"""Can the proxy be trusted? A few candidates of a study against a reference that costs more (`reproduce fidelity`).

The grid search of arXiv:1905.11946, section 3.3, ranks small networks after a short training. Here some of them, spread
over that ranking, are trained longer, scaled further, or taken from a larger proxy, and the two rankings are compared.
"""

from __future__ import annotations

import json

from scalesearch.evaluation import Outcome, counts
from scalesearch.fidelity.completed import CompletedStudy, FidelityRequest, completed_study
from scalesearch.fidelity.judgement import judgement, trainings
from scalesearch.fidelity.references import ReferenceTraining, estimate, judged, plan_values, planned
from scalesearch.fidelity.shown import show_judgement, show_references
from scalesearch.ledger import write_atomic
from scalesearch.session import Session, counts_line
from scalesearch.study import write_csv
from scalesearch.text import metric_title
from scalesearch.tracking import CommandLog
from scalesearch.training import ACCURACY, Result, check_function
from scalesearch.workspace import DONE

__all__ = ["FidelityRequest", "run"]


def run(request: FidelityRequest, session: Session) -> int:
    """`scalesearch reproduce fidelity`: the exit code; what it comes to stands in the study's fidelity.json."""
    study, out = request.study, session.out
    completed = completed_study(request)
    _ = study.fidelity  # a damaged file is refused before anything is trained
    references = planned(request, completed)
    if request.dry_run:
        with Session(session.workspace, session.executor, out, retry=session.retry) as workers:
            expected = estimate(completed, references, workers)
        show_references(out, request, completed, references, expected)
        out.answer(plan_values(request, completed, references, expected))
        return DONE
    with session:
        data = session.data(completed.settings.data)
        if data.fingerprint != completed.fingerprint:
            raise ValueError(
                f"the images of data={data.description.name} are no longer those that study {study.name!r} was "
                f"trained on (fingerprint {data.fingerprint[:12]}, then {completed.fingerprint[:12]}), so nothing can "
                "be compared; bring them back, or begin a new study: scalesearch run"
            )
        check_function(completed.settings.recipe.metric, data)
        with _log(request, completed, session) as log:
            return _compare(request, completed, references, session, log)


def _compare(
    request: FidelityRequest,
    completed: CompletedStudy,
    references: list[ReferenceTraining],
    session: Session,
    log: CommandLog,
) -> int:
    """Train the references and compare; the exit code."""
    study, out, earlier = request.study, session.out, request.study.fidelity
    evaluations = {one.evaluation.key: one.evaluation for one in references}
    names = {one.evaluation.key: one.candidate.id for one in references}
    session.forget_failures(evaluations.values())
    came = session.run(list(evaluations.values()), completed.settings.data, name=lambda one: names[one.key], log=log)
    outcomes = {outcome.evaluation.key: outcome for outcome in came}
    files = [study.directory / f"fidelity-{request.against}-{request.factor:.10g}.csv"]
    write_csv(trainings(completed, references, outcomes), files[0])
    by_candidate: dict[str, list[Outcome]] = {}
    for one in references:
        by_candidate.setdefault(one.candidate.id, []).append(outcomes[one.evaluation.key])
    nothing, beside = session.learnt(by_candidate, completed.settings.data)
    code = session.finish(came, nothing and f"of the references {nothing}. Nothing is compared")
    finished = _finished(references, outcomes)
    entry = judgement(request, completed, references, finished) if finished and nothing is None else None
    if entry is not None:
        same = ("against", "factor")
        others = [one for one in earlier if [one[key] for key in same] != [entry[key] for key in same]]
        content = json.dumps([*others, entry], indent=1, ensure_ascii=False).encode() + b"\n"
        files.append(study.directory / "fidelity.json")
        write_atomic(files[1], content)
        show_judgement(out, entry, metric_title(completed.settings.recipe.metric or ACCURACY))
        out.say(f"the references: {beside}")
        out.say(counts_line(came))
        out.say(f"every training: {files[0]}; the answer: {files[1]}")
    session.conclude(log, code, metrics={}, files=files)
    answer = {"study": study.name, "evaluations": counts(came), "directory": str(study.directory)}
    out.answer(answer | {"fidelity": entry, "nothing_learnt": nothing})
    return code


def _log(request: FidelityRequest, completed: CompletedStudy, session: Session) -> CommandLog:
    """What MLflow shows of it, in the study's experiment."""
    settings = completed.settings
    params = {"against": request.against, "factor": request.factor, "candidates": request.candidates}
    return session.log(
        "fidelity",
        request.study.name,
        params=params | {"seeds": request.seeds},
        summary=f"{request.candidates} candidates of study {request.study.name} against {request.against} = "
        f"{request.factor:g}",
        specs=[settings.data],
    )


def _finished(references: list[ReferenceTraining], outcomes: dict[str, Outcome]) -> dict[str, dict[int, Result]]:
    """Results by candidate and seed, of candidates that have any."""
    found: dict[str, dict[int, Result]] = {}
    for candidate, _ in judged(references):
        for one in references:
            result = outcomes[one.evaluation.key].result
            if one.candidate.id == candidate.id and result is not None:
                found.setdefault(candidate.id, {})[one.evaluation.seed] = result
    return found
