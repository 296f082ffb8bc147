"""train one network, and say how accurate it is"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from scalesearch.checks import between, checked
from scalesearch.text import count, metric_title, percent, plural
from scalesearch.workspace import Directory, InitialWeights, training_directory

if TYPE_CHECKING:
    from scalesearch.config import Groups
    from scalesearch.evaluation import Outcome
    from scalesearch.network import AnyNetwork
    from scalesearch.screen import Screen
    from scalesearch.session import Session

GROUPS = {
    "baseline": "mobilenetv2",
    "proxy": "none",
    "rounding": "released",
    "data": "fashion_mnist",
    "executor": "local",
    "grid": None,  # none is read; recipe=quick, which brings one, can be chosen all the same
    "tracking": "mlflow",
    "recipe": "default",
}
EXAMPLE = "scalesearch train baseline=efficientnet_b0 init=timm:efficientnet_b0 data=cifar10"
_CONFIDENCE = 0.95  # of the interval over the seeds


@checked()
class Arguments:
    depth: Annotated[float, between(0.01, 100, "multiplier of the repeats")] = 1.0
    width: Annotated[float, between(0.01, 100, "multiplier of the channels")] = 1.0
    resolution: Annotated[
        int | None, between(1, 16_384, "side of the input in px; null: the baseline's, or the proxy's")
    ] = None
    init: Annotated[InitialWeights | None, Field(description="weights to start from")] = None
    test: Annotated[bool, Field(description="score the test split as well: once, when all choices are made")] = False
    retry: Annotated[bool, Field(description="run trainings again that have failed")] = False
    workspace: Annotated[Directory, Field(description="shared with `scalesearch run`: nothing is trained twice")] = (
        Path("workspace")
    )


def run(arguments: Arguments, groups: Groups, out: Screen) -> int:
    """One network with every seed, kept in the ledger and taken from there as by `run`.

    A seed is one process on one device; several devices train several seeds, never one network together.
    """
    from scalesearch.cost import cost, seed_words
    from scalesearch.evaluation import Evaluation
    from scalesearch.selection import chance_level, levels_of, nothing_learnt, remedy
    from scalesearch.session import Session
    from scalesearch.tracking import recipe_params
    from scalesearch.training import check_average, check_function, few_steps, named

    network = network_of(arguments, groups)
    session = Session(arguments.workspace, groups.executor, out, retry=arguments.retry, tracking=groups.tracking)
    init = session.initial_weights(arguments.init, (groups.baseline, network), [network])
    data, counted = session.data(groups.data), cost(network)
    sizes = data.description
    check_average(groups.recipe, sizes.num_train)
    check_function(groups.recipe.metric, data, test=arguments.test)
    evaluations = [Evaluation(network, groups.recipe, data.fingerprint, seed, init) for seed in range(groups.seeds)]
    session.directory = training_directory(arguments.workspace, network.name, evaluations[0].key)
    summary = (
        f"{network.name} at {network.resolution} px: "
        f"{count(counted.macs)} multiply-adds, {count(counted.params)} params\n"
        f"data: {sizes.name}, {plural(sizes.num_train, 'image')} for training and {sizes.num_val} for validation; "
        f"{plural(groups.seeds, 'seed')}"
    )
    summary = "\n".join([summary, *seed_words(network)])
    if (few := few_steps(groups.recipe, sizes.num_train)) is not None:
        summary += f"\n{few}"
    params = {"network": network.name, "init": arguments.init, **recipe_params(groups.recipe, groups.seeds)}
    with session, session.log("train", network.name, params=params, summary=summary, specs=[groups.data]) as log:
        session.forget_failures(evaluations)
        out.say(summary)
        outcomes = session.run(evaluations, groups.data, name=lambda _: network.name, log=log)
        outcomes.sort(key=lambda outcome: outcome.evaluation.seed)
        finished = [outcome.evaluation for outcome in outcomes if outcome.result is not None]
        test = session.test_accuracy(finished, groups.data) if arguments.test else None
        answer = _answer(network, outcomes, test, session)
        answer["init"] = None if init is None else {"source": arguments.init, "sha256": init}
        results = [one.result for one in outcomes if one.result is not None]
        chance = chance_level(groups.recipe.metric, data.val_labels.numpy(), results)
        levels = {"validation": chance.value} if results else {}
        if results and arguments.test:
            levels = levels_of(chance, data)
        nothing = nothing_learnt({network.name: results} if results else {}, chance, confidence=_CONFIDENCE)
        answer |= {chance.key: levels, "nothing_learnt": nothing}
        beside = {split: f"; {chance.words(value, split)}" for split, value in levels.items()}
        _show(answer, out, beside, metric_title(groups.recipe.metric or "accuracy"))
        if nothing is not None:
            nothing = f"{nothing}. {remedy(groups.recipe, sizes.num_train, data.val_labels.numpy())}"
        code = session.finish(outcomes, nothing)
        metrics = {name: answer[name] for name in ("macs", "params", "val_accuracy_mean")}
        metrics[chance.key] = levels.get("validation")
        metrics["test_accuracy"] = None if test is None else test["mean"]
        session.conclude(log, code, metrics=metrics, files=[])
        out.answer(named(answer, groups.recipe.metric))
    return code


def network_of(arguments: Arguments, groups: Groups) -> AnyNetwork:
    """The baseline fitted to the data, as a proxy if there is one, and scaled."""
    from dataclasses import replace

    from scalesearch.cost import cost
    from scalesearch.scaling import resize

    small, rounding = groups.proxy_network
    network = resize(small, depth=arguments.depth, width=arguments.width, rounding=rounding)
    if arguments.resolution is not None:
        network = replace(network, resolution=arguments.resolution)
    cost(network)  # refuses a resolution that a patch does not divide
    return network


def _answer(
    network: AnyNetwork, outcomes: Sequence[Outcome], test: Mapping[str, Any] | None, session: Session
) -> dict[str, Any]:
    from dataclasses import asdict

    from scalesearch.cost import cost
    from scalesearch.evaluation import counts
    from scalesearch.selection import interval

    accuracies = [outcome.result.val_accuracy for outcome in outcomes if outcome.result is not None]
    bounds = interval(accuracies, confidence=_CONFIDENCE) if accuracies else (math.nan,) * 3
    ends = dict(zip(("mean", "low", "high"), bounds, strict=True))
    return {
        "name": network.name,
        "network": network.table(),
        **asdict(cost(network)),
        "init": None,
        **{f"val_accuracy_{end}": one if math.isfinite(one) else None for end, one in ends.items()},
        "test_accuracy": test,
        "seeds": [
            {
                "seed": outcome.evaluation.seed,
                "val_accuracy": None if outcome.result is None else outcome.result.val_accuracy,
                "precision": outcome.precision,
                "key": outcome.evaluation.key,
                "weights": None if outcome.result is None else str(session.ledger.weights_path(outcome.evaluation.key)),
                "reason": outcome.reason,
            }
            for outcome in outcomes
        ],
        "evaluations": counts(outcomes),
    }


def _show(answer: Mapping[str, Any], out: Screen, beside: Mapping[str, str], score: str) -> None:
    from scalesearch.commands.run import test_words

    finished = [row for row in answer["seeds"] if row["weights"] is not None]
    if not finished:
        return
    spread = " (1 seed: no interval)"
    if len(finished) > 1:
        spread = f" (no interval: over {len(finished)} seeds it would be wider than 100 points)"
    if answer["val_accuracy_low"] is not None:
        low, high = (percent(answer[f"val_accuracy_{end}"]) for end in ("low", "high"))
        spread = f" ({100 * _CONFIDENCE:g} % interval over {len(finished)} seeds: {low} to {high})"
    out.say(f"validation {score}: {percent(answer['val_accuracy_mean'])} %{spread}{beside['validation']}")
    if answer["test_accuracy"] is not None:
        out.say(f"test {score}: {test_words(answer['test_accuracy'])}{beside.get('test', '')}")
    for row in finished:
        out.say(f"weights of seed {row['seed']}: {row['weights']}")
