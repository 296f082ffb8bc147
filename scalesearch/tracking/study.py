"""What a study records in MLflow beside the trainings: the best so far, what was stopped, the answer and the model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalesearch.ledger import write_atomic
from scalesearch.search import BASELINE, Candidate, Stopped, TrialResult
from scalesearch.tracking.command import CommandLog

if TYPE_CHECKING:
    from scalesearch.selection import Choice


class StudyLog(CommandLog):
    """The records of a search; its candidates are the children."""

    def candidate(self, one: TrialResult, so_far: Sequence[TrialResult], *, epochs: float) -> None:
        """A seed has come back: log it, and what it makes of its candidate's mean and of the best one.

        epochs: of a whole training; a shorter one is a complete shorter schedule, and no result of its candidate.
        """
        (candidate, outcome), coefficients = one, one.candidate.coefficients
        trained_for = outcome.evaluation.recipe.epochs
        if candidate.id not in self._begun:
            params = {
                "alpha": coefficients.alpha,
                "beta": coefficients.beta,
                "gamma": coefficients.gamma,
                "phi": 0 if candidate.id == BASELINE else 1,
                "product": round(coefficients.product, 6),
                "resolution": candidate.network.resolution,
                "num_blocks": candidate.network.depth,
            }
            triples = json.dumps([[t.alpha, t.beta, t.gamma] for t in candidate.triples])
            self._begin(candidate.id, params, _costs(candidate), tags={"triples": triples})
        self.trained(candidate.id, outcome, short="" if trained_for == epochs else f" of {trained_for:g} epochs")
        if outcome.result is not None and trained_for == epochs and candidate.id != BASELINE:
            best = max(mean for name, mean in self._means.items() if name != BASELINE)
            self._log_metrics(self._parent, {"best_so_far": best}, step=len(so_far))

    def stopped(self, one: Stopped) -> None:
        """The strategy has taken a candidate out: its run ends, with the reason as a tag."""
        if self._begun.get(one.candidate.id):
            self._tracker.set_tags(f"{self._parent}:{one.candidate.id}", {"stopped": one.reason})
            self._end(one.candidate.id)

    def answered(
        self, answer: Mapping[str, Any], chosen: Candidate, choice: Choice, *, files: Sequence[Path], weights: Path
    ) -> str | None:
        """The answer of the search, with the chosen network as a registered model; as `concluded`."""
        tested = {chosen.id: answer["test_accuracy"]["chosen"], BASELINE: answer["test_accuracy"]["baseline"]}
        for name, test in tested.items():
            if test["mean"] is not None:
                self._log_metrics(f"{self._parent}:{name}", {"test_accuracy": test["mean"]})
        values = answer["chosen"]
        coefficients = {name: values[name] for name in ("alpha", "beta", "gamma", "product")}
        self._log_model(chosen, weights)
        decision = answer["decision"]
        return self.concluded(
            metrics={
                **(
                    {}
                    if decision is None
                    else {key: decision[key] for key in ("expected_regret", "regret_bound", "probability_best")}
                ),
                "best_val_accuracy": values["val_accuracy_mean"],
                "val_accuracy": values["val_accuracy_mean"],
                "val_accuracy_std": values["val_accuracy_std"],
                "test_accuracy": tested[chosen.id]["mean"],
                **_chance(answer),
                "num_tied": len(choice.tied),
                **_costs(chosen),
            },
            params={f"chosen.{key}": value for key, value in coefficients.items()},
            tags={**coefficients, "chosen": chosen.id, "tied": ", ".join(choice.tied), **_note(answer)},
            files=files,
        )

    def targeted(self, answer: Mapping[str, Any], *, files: Sequence[Path]) -> str | None:
        """The answer of a search for a target cost; as `concluded`."""
        target, constant = answer["target"], answer["target"]["constant"]
        coefficients = {name: target[name] for name in ("alpha", "beta", "gamma")}
        return self.concluded(
            metrics={
                **{key: target[key] for key in ("expected_regret", "regret_bound", "probability_best")},
                "target_accuracy": target["accuracy"],
                "target_beyond_doublings": target["beyond"],
                "one_triple_p_value": constant["p_value"],
                **_chance(answer),
            },
            params={f"target.{key}": value for key, value in coefficients.items()},
            tags={**coefficients, **_note(answer)},
            files=files,
        )

    def nothing_learnt(self, answer: Mapping[str, Any], *, files: Sequence[Path]) -> str | None:
        """The end of a search that has chosen nothing, as no candidate is better than the majority class."""
        found = answer["nothing_learnt"]
        return self.concluded(
            metrics={
                "best_val_accuracy": found["best"]["val_accuracy_mean"],
                **_chance(answer),
            },
            tags={"chosen": "none", "nothing_learnt": found["reason"]},
            files=files,
        )

    def _log_model(self, chosen: Candidate, weights: Path) -> None:
        """The chosen network as it was trained, as a registered model with a signature."""
        path = self._directory / "model" / "network.yaml"
        network = replace(chosen.network, name=f"{self._name}-{chosen.id}")
        write_atomic(path, network.to_yaml(comment=f"the chosen network of study {self._name}").encode())
        self._tracker.log_model(
            self._parent,
            name=self._name,
            variant=path,
            weights=weights,
            input_shape=(network.in_channels, network.resolution, network.resolution),
            output_shape=(network.num_classes,),
        )


def _note(answer: Mapping[str, Any]) -> dict[str, str]:
    """The description of the run, which MLflow's page of it shows first."""
    if answer["decision"] is None:
        return {}
    return {"mlflow.note.content": f"**Decision:** {answer['decision']['sentence']}."}


def _chance(answer: Mapping[str, Any]) -> dict[str, float]:
    """What a network must be better than, under the name that the answer gives it."""
    return {name: answer[name]["validation"] for name in ("majority_share", "shuffled_labels") if name in answer}


def _costs(candidate: Candidate) -> dict[str, float]:
    params = ("product", "depth", "resolution")  # of its run, and no metrics
    return {key: value for key, value in candidate.sizes().items() if key not in params and value is not None}
