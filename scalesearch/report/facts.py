"""What the questions of a report are answered from: a study's tables, its trainings, and splits to compare it with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from scalesearch.budget import METRICS, Budget, Limits, Profiler
from scalesearch.command_line import overrides
from scalesearch.config import Groups
from scalesearch.report.references import Reference, references
from scalesearch.scaling import Coefficients, scale
from scalesearch.search import BASELINE, Candidate, Grid
from scalesearch.selection import Choice, Pairs, Seeds, select
from scalesearch.study import Scored, Study
from scalesearch.text import typed


class Facts(NamedTuple):
    """A finished study, as the questions read it.

    study: what was written of it. candidates: with the 1x network. finished: of each its trainings. test: of each its
    scores on the test split, for those that have any. needs: of the chosen variant at phi = 1, of each metric that is
    limited; None where it is not known.
    """

    study: Study
    confidence: float
    grid: Grid
    budget: Budget
    limits: Limits
    choice: Choice
    pairs: Pairs
    candidates: Mapping[str, Candidate]
    finished: Mapping[str, Seeds]
    references: Sequence[Reference]
    test: Mapping[str, Sequence[Scored]]
    needs: Mapping[str, float | None]

    def means(self) -> dict[str, float]:
        """The mean validation accuracy of each candidate that has finished, best first."""
        table = self.choice.candidates.set_index("candidate")["val_accuracy_mean"].dropna()
        means = table.drop(BASELINE, errors="ignore").sort_values(ascending=False, kind="stable")
        return {str(name): float(mean) for name, mean in means.items()}

    def command(self, name: str = "run", *more: str, anew: bool = False) -> str:
        """The command line that runs `name` with the same settings and `more`, which replaces what it contradicts.

        anew: these make another study of it, so the name is left out; what is trained already is shared.
        """
        words = overrides(self.study.values, name, workspace=self.study.workspace)
        replaced = [word.partition("=")[0] for word in more] + (["study"] if anew else [])
        ends = tuple(key + end for key in replaced for end in "=.")
        kept = [word for word in words if not word.lstrip("+~").startswith(ends)]
        return typed(name, *kept, *more)

    def more_seeds(self, number: int) -> str:
        """The command line with which every candidate has so many seeds: of this study, if its strategy gives them."""
        search = self.study.values["search"]
        if search["strategy"] == "grid" and search.get("seeds") is None:
            return self.command("run", f"recipe.seeds={number}")
        return self.command("run", "search=grid", f"recipe.seeds={number}", anew=True)


def read(study: Study) -> Facts:
    """The facts of a finished study.

    Raises:
        ValueError: it has not come to a choice, or its files do not go together.
    """
    name, result, groups, trials = study.name, study.result, Groups(study.values, trusted=False), study.trials
    _ = study.fidelity  # refused here where it is damaged
    budget, limits, confidence, chosen = groups.budget, groups.limits, groups.search.confidence, result["chosen"]["id"]
    contenders = {trial.candidate.id for trial in trials} - study.stopped.keys() - {BASELINE}
    choice = select(
        trials,
        confidence=confidence,
        contenders=sorted(contenders),
        not_learnt=result.get("not_learnt", ()),
        macs_ratio=budget.macs_ratio,
        **result["selection"],
    )
    if choice.chosen != chosen:
        raise ValueError(
            f"study {name!r} has chosen {chosen}, and its trainings give {choice.chosen}: another command is adding to "
            "it, or another version answered it; give its `scalesearch run` command again"
        )
    finished: dict[str, dict[int, Any]] = {}
    for trial in trials:
        if trial.outcome.result is not None:
            finished.setdefault(trial.candidate.id, {})[trial.outcome.evaluation.seed] = trial.outcome.result.by_image
    candidates = {trial.candidate.id: trial.candidate for trial in trials}
    return Facts(
        study=study,
        confidence=confidence,
        grid=groups.grid,
        budget=budget,
        limits=limits,
        choice=choice,
        pairs=Pairs(finished),
        candidates=candidates,
        finished=finished,
        references=references(study, groups, candidates, finished),
        test=study.test_scores(),
        needs=_needs(study, candidates[chosen].coefficients, limits),
    )


def _needs(study: Study, coefficients: Coefficients, limits: Limits) -> dict[str, float | None]:
    """What the chosen variant at phi = 1 needs of each limited metric: as the study's family has it, or counted."""
    variant: Mapping[str, Any] = next((row for row in study.result["variants"] if row["phi"] == 1), {})
    needs: dict[str, float | None] = {name: variant.get(name) for name in limits.given()}
    missing = [name for name, value in needs.items() if value is None and name != "latency_ms"]  # that is not counted
    if missing:
        try:
            network = scale(study.baseline, coefficients, 1, rounding=study.rounding, name="variant")
            profiler = Profiler(batch_size=study.batch_size)
            needs |= {name: METRICS[name](network, profiler) for name in missing}
        except ValueError:  # a function that only the file names
            pass
    return needs
