"""What worker processes run: functions from a specification to an answer, both plain JSON."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from scalesearch.data import Data, DataSpec, load
from scalesearch.machine import environment, torch_device
from scalesearch.model import trust, unchanged
from scalesearch.network import AnyNetwork, Factory, from_table
from scalesearch.training import timing
from scalesearch.training.checkpoint import load_weights
from scalesearch.training.loop import evaluate, train
from scalesearch.training.recipe import Recipe


def run_specification(specification: dict[str, Any]) -> dict[str, Any]:
    """Train; the trained weights go to the file `weights`."""
    data = _loaded(DataSpec(**specification["data_spec"]))
    if data.fingerprint != specification["data"]:
        raise ValueError(
            f"the worker's {data.description.name} is not the driver's: fingerprint {data.fingerprint[:12]}, "
            f"expected {specification['data'][:12]}. Do both see the same files?"
        )
    result = train(
        _network(specification),
        Recipe(**specification["recipe"]),
        data,
        seed=specification["seed"],
        initial=Path(specification["initial"]) if "initial" in specification else None,
        weights=Path(specification["weights"]),
        checkpoint=Path(specification["checkpoint"]),
        precision=specification["precision"],
    )
    return {"result": result.to_json(), "environment": environment() | {"precision": specification["precision"]}}


def test_specification(specification: dict[str, Any]) -> dict[str, Any]:
    """Score the saved `weights` of an evaluation on the test split."""
    network, place = _network(specification), torch_device(None)
    model = load_weights(network, Path(specification["weights"])).to(place)
    data = _loaded(DataSpec(**specification["data_spec"]))
    loss, correct = evaluate(model, network, data, split="test", device=place)
    return {"test_accuracy": float(correct.mean()), "test_loss": loss, "num_test": len(correct)}


def pace_specification(specification: dict[str, Any]) -> dict[str, Any]:
    """Time a training: `timing.pace`."""
    network, recipe = _network(specification), Recipe(**specification["recipe"])
    return timing.pace(network, recipe, precision=specification["precision"])._asdict()


def precision_specification(specification: dict[str, Any]) -> dict[str, Any]:
    """Decide before the first training with recipe.autocast=auto: `timing.faster_precision`."""
    return {"precision": timing.faster_precision(_network(specification), Recipe(**specification["recipe"]))}


def _network(specification: dict[str, Any]) -> AnyNetwork:
    network = from_table(specification["network"], name=specification["name"])
    if isinstance(network, Factory):
        trust(network.function)  # the user has named it to the driver
        unchanged(network, specification["structure"])
    return network


@lru_cache(maxsize=2)
def _loaded(spec: DataSpec) -> Data:
    return load(spec, check=False)  # the driver has checked every image before the first training
