"""One of Optuna's samplers proposes alpha and beta; gamma is solved so that the counted cost meets the budget."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from scalesearch.checks import between, checked
from scalesearch.search.strategies import race
from scalesearch.search.strategies._base import History, Lookahead, Problem, Request, Step, Stop

if TYPE_CHECKING:
    import optuna


@checked("search", kw_only=True)
class Strategy(race.Strategy):
    """One of Optuna's samplers proposes alpha and beta, a training each time; then a race among what it found."""

    sampler: Literal["tpe", "gp"] = "tpe"
    explore: Annotated[float, between(0, 1, "of `compute`: proposals; the rest is a race among what they found")] = 0.6
    startup: Annotated[int, between(1, 1000, "proposals at random before it learns")] = 6
    lookahead: Lookahead = 4
    sampler_seed: Annotated[int, between(0, 2**32 - 1, "of the sampler's chance")] = 0

    def steps(self, problem: Problem, seen: History) -> Iterator[Step]:
        import optuna

        fail = optuna.trial.TrialState.FAIL
        left = self.compute * problem.seeds * sum(problem.macs)
        exploring = self.explore * left
        study, axes = optuna.create_study(direction="maximize", sampler=self._sampler()), _axes(problem)
        requested: dict[int, int] = {}
        waiting: list[tuple[optuna.Trial, int, int]] = []
        known = 0  # proposals in a row of candidates that have all their seeds: then there is nothing to be learnt
        while known < 2 * problem.size:
            for finished in [one for one in waiting if one[2] < seen.num_shown(one[1])]:
                trial, candidate, seed = finished
                waiting.remove(finished)
                score = seen.of(candidate).get(seed)
                study.tell(trial, score, state=None if score is not None else fail)
            trial = study.ask(axes)
            candidate = problem.nearest(trial.params["alpha"], trial.params["beta"])
            if requested.get(candidate, 0) >= self.most_seeds:
                known += 1
                study.tell(trial, state=fail)
                continue
            if requested and problem.macs[candidate] > exploring:
                break
            known = 0
            exploring -= problem.macs[candidate]
            left -= problem.macs[candidate]
            seed = requested.get(candidate, 0)
            requested[candidate] = seed + 1
            waiting.append((trial, candidate, seed))
            yield Request(candidate, seed)
        for candidate in range(problem.size):
            if candidate not in requested:
                yield Stop(candidate, "never proposed")
        yield from self.add_seeds(problem, seen, requested, left)

    def _sampler(self) -> optuna.samplers.BaseSampler:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        if self.sampler == "tpe":
            return optuna.samplers.TPESampler(n_startup_trials=self.startup, seed=self.sampler_seed)
        return optuna.samplers.GPSampler(n_startup_trials=self.startup, seed=self.sampler_seed)

    def expected(self, problem: Problem) -> list[tuple[int, float]]:
        return [(max(1, int(self.compute * problem.seeds * problem.size)), 1.0)]


def _axes(problem: Problem) -> dict[str, optuna.distributions.BaseDistribution]:
    import optuna

    axes = zip(*(triple[:2] for triples in problem.triples for triple in triples), strict=True)
    return {
        name: optuna.distributions.FloatDistribution(min(values), max(values))
        for name, values in zip(("alpha", "beta"), axes, strict=True)
    }
