"""What was done, as MLflow shows it: a study is an experiment, a command a run, with candidates and seeds below it.

MLflow is a view that can be rebuilt, and never stops or slows a search. The driver appends events to a spool
(`tracking.jsonl`, one JSON object per line); a thread replays them into MLflow in order and keeps how far it is in
`tracking.position`. Whatever ends in between, an event is replayed until MLflow has it, and none counts twice: runs are
found again by the tag `scalesearch.id`, a metric carries the time of its event (the same row to MLflow), the rest is
overwritten with the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scalesearch.tracking.command import CommandLog, recipe_params
from scalesearch.tracking.events import mlflow_experiment
from scalesearch.tracking.replay import sync
from scalesearch.tracking.study import StudyLog
from scalesearch.tracking.tracker import Tracker
from scalesearch.tracking.ui import links, serve

if TYPE_CHECKING:
    import numpy as np

__all__ = ["CommandLog", "StudyLog", "Tracker", "links", "mlflow_experiment", "recipe_params", "serve", "sync"]


def _load_pyfunc(path: str) -> object:
    """What `mlflow.pyfunc.load_model` calls with the folder of a variant and its weights."""
    # MLflow finds it by the name of this module, which its models keep: it cannot move.
    import numpy as np
    import torch
    from safetensors.torch import load_model

    from scalesearch import model, network

    (variant,), (weights,) = Path(path).glob("*.yaml"), Path(path).glob("*.safetensors")
    module = model.build(network.load(variant)).eval()
    load_model(module, weights)

    class Predictor:
        def predict(self, images: np.ndarray, params: dict[str, object] | None = None) -> np.ndarray:
            """(B, C, R, R) normalised float32 images -> (B, num_classes) logits."""
            with torch.inference_mode():
                logits: np.ndarray = module(torch.from_numpy(np.asarray(images, dtype=np.float32))).numpy()
            return logits

    return Predictor()
