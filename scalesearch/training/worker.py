"""What worker processes run: functions from a specification to an answer, both plain JSON."""

from __future__ import annotations

import dataclasses
import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from scalesearch.data import Data, DataSpec, load
from scalesearch.machine import environment, torch_device
from scalesearch.model import trust, unchanged
from scalesearch.network import AnyNetwork, Factory, from_table
from scalesearch.training import timing
from scalesearch.training.checkpoint import load_weights, save_weights
from scalesearch.training.loop import Result, assess, scores, train
from scalesearch.training.metrics import source
from scalesearch.training.metrics import trust as trust_metric
from scalesearch.training.recipe import Recipe


def run_specification(specification: dict[str, Any]) -> dict[str, Any]:
    """Train; the trained weights go to the file `weights`."""
    data = _loaded(DataSpec(**specification["data_spec"]))
    if data.fingerprint != specification["data"]:
        raise ValueError(
            f"the worker's {data.description.name} is not the driver's: fingerprint {data.fingerprint[:12]}, "
            f"expected {specification['data'][:12]}. Do both see the same files?"
        )
    if "trained" in specification:
        return _scored_anew(specification, data)
    result = train(
        _network(specification),
        _recipe(specification),
        data,
        seed=specification["seed"],
        initial=Path(specification["initial"]) if "initial" in specification else None,
        weights=Path(specification["weights"]),
        checkpoint=Path(specification["checkpoint"]),
        precision=specification["precision"],
    )
    values = result.to_json()
    chosen = {"precision": specification["precision"], "kernels": values.pop("kernels", "off")}
    digest = _sha256(specification["weights"])
    return {"result": values, "environment": environment() | chosen, "weights_sha256": digest}


def _sha256(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _scored_anew(specification: dict[str, Any], data: Data) -> dict[str, Any]:
    """What a training came to that the ledger has with another metric; its weights are kept under both keys."""
    trained, weights = specification["trained"], Path(specification["weights"])
    network, place, before = _network(specification), torch_device(None), Result.from_json(trained["result"])
    model = load_weights(network, Path(trained["weights"])).to(place)
    _, correct, scored = assess(model, network, _recipe(specification), data, split="val", device=place)
    save_weights(model, weights)
    result = dataclasses.replace(before, correct=correct, **scores(correct, scored))
    answer = {"result": result.to_json(), "environment": trained["environment"]}
    return answer | {"weights_sha256": _sha256(specification["weights"])}


def test_specification(specification: dict[str, Any]) -> dict[str, Any]:
    """Score the saved `weights` of an evaluation on the test split."""
    network, place = _network(specification), torch_device(None)
    model = load_weights(network, Path(specification["weights"])).to(place)
    data = _loaded(DataSpec(**specification["data_spec"]))
    recipe = _recipe(specification)
    loss, correct, scored = assess(model, network, recipe, data, split="test", device=place)
    return {"test_accuracy": scores(correct, scored)["val_accuracy"], "test_loss": loss, "num_test": len(correct)}


def pace_specification(specification: dict[str, Any]) -> dict[str, Any]:
    """Time a training: `timing.pace`."""
    network, recipe = _network(specification), _recipe(specification)
    return timing.pace(network, recipe, precision=specification["precision"])._asdict()


def precision_specification(specification: dict[str, Any]) -> dict[str, Any]:
    """Decide before the first training with recipe.autocast=auto: `timing.faster_precision`."""
    return {"precision": timing.faster_precision(_network(specification), _recipe(specification))}


def _recipe(specification: dict[str, Any]) -> Recipe:
    recipe = Recipe(**specification["recipe"])
    if ":" in (recipe.metric or ""):
        trust_metric(str(recipe.metric))  # the user has named it to the driver
        wanted, num_classes = specification.get("metric_source"), specification["network"]["num_classes"]
        if wanted is not None and source(recipe.metric, num_classes) != wanted:
            raise ValueError(
                f"the function {recipe.metric} was changed since the command began, or is another one for this worker; "
                "give the same command again"
            )
    return recipe


def _network(specification: dict[str, Any]) -> AnyNetwork:
    network = from_table(specification["network"], name=specification["name"])
    if isinstance(network, Factory):
        trust(network.function)  # the user has named it to the driver
        unchanged(network, specification["structure"])
    return network


@lru_cache(maxsize=2)
def _loaded(spec: DataSpec) -> Data:
    return load(spec, check=False)  # the driver has checked every image before the first training
