"""Training of one network: the step of the search that takes the time.

`recipe`: how a network is trained. `metrics`: what candidates are chosen by instead of accuracy. `objective`: the
loss. `loop`: the one training loop. `images`: where its images lie. `out_of_memory`: what is said when they and the
network do not fit. `checkpoint`: what it leaves on disk. `timing`: how fast it is on a device, and in which precision.
`values`: whether a function's network is what its weights say. `worker`: what worker processes run.
"""

from scalesearch.training.checkpoint import load_weights, save_weights
from scalesearch.training.images import resized
from scalesearch.training.loop import Diverged, Result, evaluate, train
from scalesearch.training.metrics import ACCURACY, check_function, metric_name, named, unnamed
from scalesearch.training.recipe import FEW_STEPS, Recipe, check_average, few_steps
from scalesearch.training.values import check_values

__all__ = [
    "ACCURACY",
    "FEW_STEPS",
    "Diverged",
    "Recipe",
    "Result",
    "check_average",
    "evaluate",
    "few_steps",
    "load_weights",
]
__all__ += ["check_function", "check_values", "metric_name", "named", "resized", "save_weights", "train", "unnamed"]
