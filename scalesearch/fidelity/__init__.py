"""Is the proxy to be believed? A few candidates of a study against a dearer reference (`reproduce fidelity`).

The grid search of arXiv:1905.11946, section 3.3, ranks small networks after a short training. Here some of them, spread
over that ranking, are trained longer, scaled further, or taken from a larger proxy, and the two rankings are compared.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalesearch import config, study
from scalesearch.config import FidelityRequest
from scalesearch.cost import cost
from scalesearch.data import load
from scalesearch.evaluation import Evaluation, Evaluator, Outcome, mixed_precision
from scalesearch.executor import EXECUTORS
from scalesearch.fidelity.references import (
    CompletedStudy,
    Reference,
    expected,
    mean_accuracy,
    picked,
    plan_values,
    planned,
    read_search,
)
from scalesearch.fidelity.shown import estimate_words, show_judgement, show_plan
from scalesearch.ledger import Ledger, lock_study, write_atomic
from scalesearch.network import Factory
from scalesearch.run import ALL_FAILED, DONE, SOME_FAILED
from scalesearch.screen import Screen
from scalesearch.search import Candidate, TrialResult
from scalesearch.training import Result

if TYPE_CHECKING:
    import pandas as pd

    from scalesearch.fidelity.agreement import Agreement, Estimate

CONFIDENCE = 0.95
SHORT_EPOCHS = 10  # of which arXiv:2103.07579, section 6, found width better than depth; at 350 it was the other way
STILL_FALLING = 0.05  # share of the training loss that an epoch takes off; the end of a long schedule takes off less
_FEW = 8  # candidates below which an interval is wide whatever is observed


def fidelity(question: FidelityRequest, out: Screen) -> int:
    """`scalesearch reproduce fidelity`: the exit code; what it comes to stands in the study's fidelity.json."""
    directory = config.find_study(question.workspace, question.study)
    ledger = Ledger(question.workspace)
    searched = read_search(question, directory, ledger)
    earlier = read_answers(directory)
    references = planned(question, searched)
    evaluations = {one.evaluation.key: one.evaluation for one in references}
    if question.retry and not question.dry_run:
        out.say(f"{study.forget_failures(ledger, evaluations.values())} failed trainings are run again")
    outlook = expected(question, searched, references, ledger)
    show_plan(out, question, searched, references, outlook)
    if question.dry_run:
        out.answer(plan_values(question, searched, references, outlook))
        return DONE

    with lock_study(directory):
        data = load(searched.experiment.data, log=out.warn)
        if data.fingerprint != searched.fingerprint:
            raise ValueError(
                f"the images of data={data.description.name} are no longer those that study {directory.name!r} was "
                f"trained on (fingerprint {data.fingerprint[:12]}, then {searched.fingerprint[:12]}), so nothing can "
                "be compared; bring them back, or begin a new study: scalesearch run"
            )
        outcomes: dict[str, Outcome] = {}
        shown: list[TrialResult] = []
        owners = {one.evaluation.key: one.candidate for one in references}
        with EXECUTORS[question.executor_name](**question.executor) as executor:
            evaluator = Evaluator(ledger, executor, searched.experiment.data)
            with out.progress(total=len(evaluations), slots=evaluator.slots) as progress:
                for outcome in evaluator.run(evaluations.values()):
                    outcomes[outcome.evaluation.key] = outcome
                    shown.append(TrialResult(owners[outcome.evaluation.key], outcome))
                    progress.update(shown)
        for one in references:
            outcome = outcomes[one.evaluation.key]
            if outcome.result is None:
                out.warn(f"{one.candidate.id} seed {one.evaluation.seed} failed: {outcome.reason}")
        if (mixed := mixed_precision(outcomes.values())) is not None:
            out.warn(mixed)
        counts = study.counts(list(outcomes.values()))
        file = directory / f"fidelity-{question.against}-{question.factor:.10g}.csv"
        write_atomic(file, trainings(searched, references, outcomes).to_csv(index=False).encode())
        trained = {
            candidate.id: {
                one.evaluation.seed: result
                for one in references
                if one.candidate.id == candidate.id and (result := outcomes[one.evaluation.key].result) is not None
            }
            for candidate in picked(references)
        }
        finished = {name: results for name, results in trained.items() if results}
        answer: dict[str, Any] = {"study": directory.name, "evaluations": counts, "directory": str(directory)}
        if not finished:
            out.warn(f"all {counts['failed']} trainings failed; when the cause is mended: the same with retry=true")
            out.answer(answer | {"fidelity": None})
            return ALL_FAILED
        entry = judgement(question, searched, references, finished)
        others = [one for one in earlier if (one["against"], one["factor"]) != (entry["against"], entry["factor"])]
        write_atomic(
            directory / "fidelity.json", json.dumps([*others, entry], indent=1, ensure_ascii=False).encode() + b"\n"
        )
        show_judgement(out, entry, searched)
        out.say(f"{counts['trained']} trained, {counts['reused']} from the ledger, {counts['failed']} failed")
        if counts["failed"]:
            out.say("when the cause is mended: the same command with retry=true")
        out.say(f"every training: {file}; the answer: {directory / 'fidelity.json'}")
        out.answer(answer | {"fidelity": entry})
    return SOME_FAILED if counts["failed"] else DONE


def trainings(
    searched: CompletedStudy, references: Sequence[Reference], outcomes: Mapping[str, Outcome]
) -> pd.DataFrame:
    """A row a candidate, side and seed; accuracies are fractions, NaN where a training failed."""
    import pandas as pd

    rows = []
    for candidate in picked(references):
        coefficients = candidate.coefficients
        for side, evaluation, result, reason in _sides(candidate, searched, references, outcomes):
            counted = cost(evaluation.network)
            rows.append(
                {
                    "candidate": candidate.id,
                    "alpha": coefficients.alpha,
                    "beta": coefficients.beta,
                    "gamma": coefficients.gamma,
                    "side": side,
                    "seed": evaluation.seed,
                    "state": "failed" if result is None else "finished",
                    "val_accuracy": math.nan if result is None else result.val_accuracy,
                    "val_loss": math.nan if result is None else result.val_loss,
                    "epochs": evaluation.recipe.epochs,
                    "macs": counted.macs,
                    "depth": evaluation.network.depth,
                    "resolution": evaluation.network.resolution,
                    "train_seconds": math.nan if result is None else result.train_seconds,
                    "key": evaluation.key,
                    "reason": reason,
                }
            )
    return pd.DataFrame(rows)


def _sides(
    candidate: Candidate, searched: CompletedStudy, references: Sequence[Reference], outcomes: Mapping[str, Outcome]
) -> Iterator[tuple[str, Evaluation, Result | None, str]]:
    recipe, data, init = searched.experiment.recipe, searched.fingerprint, searched.init
    for seed, result in sorted(searched.proxies[candidate.id].items()):
        yield "proxy", Evaluation(candidate.network, recipe, data, seed, init), result, ""
    for one in references:
        if one.candidate.id == candidate.id:
            outcome = outcomes[one.evaluation.key]
            yield "reference", one.evaluation, outcome.result, outcome.reason


def judgement(
    question: FidelityRequest,
    searched: CompletedStudy,
    references: Sequence[Reference],
    finished: Mapping[str, Mapping[int, Result]],
) -> dict[str, Any]:
    """What fidelity.json says of one reference: plain values, an object as the study's report reads it.

    Candidates of whose reference nothing is finished are left out of it.
    """
    import numpy as np

    from scalesearch.fidelity.agreement import agreement, means, ranks

    candidates = [candidate for candidate in picked(references) if candidate.id in finished]
    proxies = {candidate.id: searched.proxies[candidate.id] for candidate in candidates}
    seeds = sorted({seed for side in (proxies, finished) for results in side.values() for seed in results})
    proxy, measured = (
        np.array([[_accuracy(side[candidate.id].get(seed)) for seed in seeds] for candidate in candidates])
        for side in (proxies, finished)
    )
    depths = np.array([float(candidate.network.depth) for candidate in candidates])
    agreed = agreement(proxy, measured, depths, confidence=CONFIDENCE)
    ranked = [ranks(means(side)) for side in (proxy, measured)]
    rows = [
        {
            "candidate": candidate.id,
            "alpha": candidate.coefficients.alpha,
            "beta": candidate.coefficients.beta,
            "gamma": candidate.coefficients.gamma,
            "depth": candidate.network.depth,
            "proxy_accuracy_mean": float(means(proxy)[index]),
            "proxy_seeds": len(proxies[candidate.id]),
            "reference_accuracy_mean": float(means(measured)[index]),
            "reference_seeds": len(finished[candidate.id]),
            "proxy_rank": float(ranked[0][index]),
            "reference_rank": float(ranked[1][index]),
            "chosen": candidate.id == searched.choice,
        }
        for index, candidate in enumerate(candidates)
    ]
    first, lost = what_is_lost(searched.choice, finished)
    num_seeds = len({one.evaluation.seed for one in references})
    factor = int(question.factor) if question.factor.is_integer() else question.factor
    return {
        "against": question.against,
        "factor": factor,
        "candidates": [candidate.id for candidate in candidates],
        "seeds": num_seeds,
        "kendall": agreed.kendall._asdict(),
        "spearman": agreed.spearman._asdict(),
        "depth_gain": agreed.depth_gain._asdict(),
        "warning": caution(searched, agreed, question.against),
        "choice": searched.choice,
        "choice_is_first": first == searched.choice if searched.choice in finished else None,
        "first": first,
        "lost": lost._asdict(),
        "confidence": CONFIDENCE,
        "covers": _covers(len(candidates), proxies, finished),
        "table": rows,
        "command": (
            f"scalesearch reproduce fidelity study={searched.experiment.study} "
            f"workspace={question.workspace} against={question.against} factor={factor} "
            f"candidates={question.candidates} seeds={num_seeds}"
            + (f" baseline.factory={question.function}" if question.function else "")
        ),
    }


def _accuracy(result: Result | None) -> float:
    return math.nan if result is None else result.val_accuracy


def what_is_lost(choice: str, finished: Mapping[str, Mapping[int, Result]]) -> tuple[str, Estimate]:
    """(the reference's best, by how much it is more accurate than the choice, never below 0).

    Where the choice is the best itself nothing is lost, and `high` is what may be lost to any other. The interval is
    that of the selection: over seeds, by which the two are paired, and validation images. The best is known by the same
    accuracies, so the difference errs upwards.
    """
    from scalesearch.fidelity.agreement import Estimate
    from scalesearch.selection import Pairs

    right = {name: {seed: result.correct for seed, result in seeds.items()} for name, seeds in finished.items()}
    means = {name: mean_accuracy(seeds.values()) for name, seeds in finished.items()}
    best = min(means, key=lambda name: (-means[name], name != choice, name))
    if choice not in right:
        return best, Estimate(None, None, None, f"no reference training of the choice {choice} has finished")
    if len(right) < 2:
        return best, Estimate(None, None, None, f"the choice {choice} alone has a reference")
    pairs = Pairs(right)
    others = [best] if best != choice else [name for name in right if name != choice]
    compared = [pairs.compare(right[name], right[choice]) for name in others]
    value = 0.0 if best == choice else max(0.0, compared[0].difference)
    bounds = [one.interval(CONFIDENCE) for one in compared]
    if any(math.isnan(high) for _, high in bounds):
        return best, Estimate(value, None, None, "one seed says nothing of how much seeds vary; at least 2 are needed")
    low = 0.0 if best == choice else max(0.0, bounds[0][0])
    return best, Estimate(value, low, max(0.0, *(high for _, high in bounds)))


def caution(searched: CompletedStudy, agreed: Agreement, against: str) -> str | None:
    """A warning where the study's training was short and its choice is shallow; None where either is not so.

    Short: few epochs, or the training loss was still falling at the end. Shallow: of the candidates that it is tied
    with, or else of all, more are deeper than shallower. (Below their median, but that many share one depth.) A study
    that punishes depth throughout leaves only shallow ones tied, so the ties alone would not do.
    """
    recipe = searched.experiment.recipe
    falls = [
        1 - result.curve[-1]["train_loss"] / result.curve[-2]["train_loss"]
        for results in searched.proxies.values()
        for result in results.values()
        if len(result.curve) > 1
    ]
    fall = statistics.median(falls) if falls else 0.0
    if recipe.epochs > SHORT_EPOCHS and fall < STILL_FALLING:
        return None
    shallow = _shallow(searched)
    if shallow is None:
        return None
    falling = (
        f", and its last epoch still took {100 * fall:.0f} % off the training loss" if fall >= STILL_FALLING else ""
    )
    return (
        f"the study trains for {recipe.epochs:g} {'epoch' if recipe.epochs == 1 else 'epochs'}{falling}; {shallow}. "
        "Short training is known to prefer width over depth (arXiv:2103.07579, section 6), so the choice may be too "
        f"shallow. {_gain_words(agreed.depth_gain, against)}"
    )


def _shallow(searched: CompletedStudy) -> str | None:
    """How many are deeper than the choice, in words, where that are more than are shallower."""
    chosen = next(one for one in searched.candidates if one.id == searched.choice)
    depth = f"{chosen.network.depth:.4g} {'times the depth' if isinstance(chosen.network, Factory) else 'blocks'}"
    tied = [one for one in searched.candidates if one.id in searched.tied]
    others = [one for one in searched.candidates if one.id != searched.choice]
    for peers, which in ((tied, "candidates that it is tied with"), (others, "other candidates")):
        deeper = sum(one.network.depth > chosen.network.depth for one in peers)
        shallower = sum(one.network.depth < chosen.network.depth for one in peers)
        if deeper > shallower:
            return (
                f"its choice {chosen.id} has {depth}, and of the {len(peers)} {which} {deeper} are deeper and "
                f"{shallower} shallower"
            )
    return None


def _gain_words(gain: Estimate, against: str) -> str:
    if gain.value is None:
        return f"Whether the deeper ones gain against the reference is not known: {gain.reason}"
    assert gain.low is not None
    assert gain.high is not None
    known = "is more than chance" if gain.low > 0 or gain.high < 0 else "cannot be told from chance"
    which = {
        "epochs": "Trained longer",
        "phi": "Scaled further, with the training as short as before,",
        "proxy": "As a larger proxy, with the training as short as before,",
    }[against]
    direction = "gain" if gain.value > 0 else "lose" if gain.value < 0 else "neither gain nor lose"
    return f"{which} the deeper ones {direction} ranks here (tau {estimate_words(gain)}), which {known}"


def _covers(
    num_candidates: int, proxies: Mapping[str, Mapping[int, Result]], finished: Mapping[str, Mapping[int, Result]]
) -> str:
    fewest = min(len(results) for side in (proxies, finished) for results in side.values())
    return (
        f"{100 * CONFIDENCE:g} % intervals over the choice of candidates and of seeds, which a bootstrap draws again; "
        "not over other data or another recipe"
        + (f". {num_candidates} candidates leave them wide" if num_candidates < _FEW else "")
        + ("; a single seed says nothing of how much seeds vary, so they are too narrow" if fewest < 2 else "")
    )


def read_answers(directory: Path) -> list[dict[str, Any]]:
    """The objects of the study's fidelity.json, none where there is no such file. Errors: ValueError if damaged."""
    path = directory / "fidelity.json"
    if not path.exists():
        return []
    try:
        answers = json.loads(path.read_bytes())
        if isinstance(answers, list) and all(one["against"] and one["factor"] for one in answers):
            return answers
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{path} is damaged; delete it and run the same command: what is trained is in the ledger")
