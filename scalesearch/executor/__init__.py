"""Where evaluations run: worker processes on this machine, or Ray, behind `concurrent.futures.Executor`.

The driver submits a function, by its name, and a specification in plain JSON; a worker calls the one with the other and
returns plain JSON. Workers open no ledger and no database, and they end when their driver ends, however it ends.

`pool`: the driver's side of every executor. `local`, `ray`: one class each. `worker`: what a worker process runs.
"""

from scalesearch.executor.local import LocalExecutor
from scalesearch.executor.pool import EvaluationFailed, Pool, WorkerDied, default_workers
from scalesearch.executor.ray import RayExecutor
from scalesearch.registry import Registry

__all__ = ["EXECUTORS", "EvaluationFailed", "LocalExecutor", "Pool", "RayExecutor", "WorkerDied", "default_workers"]

EXECUTORS: Registry[type[Pool]] = Registry("executors", builtin={"local": LocalExecutor, "ray": RayExecutor})
