"""Training of one network: the step of the search that takes the time.

`recipe`: how a network is trained. `loop`: the one training loop. `checkpoint`: what it leaves on disk. `timing`: how
fast it is on a device, and in which precision. `worker`: what worker processes run.
"""

from scalesearch.training.checkpoint import load_weights, save_weights
from scalesearch.training.loop import Diverged, Result, evaluate, resized, train
from scalesearch.training.recipe import FEW_STEPS, Recipe, few_steps

__all__ = ["FEW_STEPS", "Diverged", "Recipe", "Result", "evaluate", "few_steps", "load_weights", "resized"]
__all__ += ["save_weights", "train"]
