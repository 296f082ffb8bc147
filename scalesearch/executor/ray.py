"""Ray tasks, on this machine or a cluster."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Annotated, Any

from pydantic import Field

from scalesearch.checks import between, checked
from scalesearch.executor.pool import Pool, WorkerDied, default_workers, import_path, worker_environment


class RayExecutor(Pool):
    """Ray tasks, on this machine or a cluster, where the module of a function must be installed on every machine.

    A Ray that this starts ends with `shutdown` or the driver; one that is there already is left running. Ray itself
    never retries an evaluation. Ray listens on every network address of a machine and has no setting against it; from
    2.60 on it demands a token of every caller. The local executor opens no port at all.

    Args:
        workers: None for as many as there is room for.
        address: None for a Ray of its own on this machine, "auto" for the cluster this machine belongs to, or "ray://...".
        gpus_per_trial: GPUs of one evaluation; with a fraction several share one.

    Raises:
        ValueError: a value out of range, or the ray package is not installed.
        OSError: no machine of the cluster has the cores and GPUs of one evaluation: Ray would wait for ever.
    """

    @checked("executor", kw_only=True)
    class Settings(Pool.Settings):
        """See `Pool.Settings`."""

        address: Annotated[str | None, Field(description="null: a Ray of its own; auto: the cluster of this machine")]
        gpus_per_trial: Annotated[float, between(0, 1024, "GPUs of one evaluation; with a fraction several share one")]

        def __post_init__(self) -> None:
            gpus = self.gpus_per_trial
            if gpus > 1 and not gpus.is_integer():
                raise ValueError(f"executor.gpus_per_trial is {gpus}; it must be a fraction of one or a whole number")

    def __init__(
        self,
        workers: int | None = None,
        *,
        threads: int = 1,
        address: str | None = None,
        gpus_per_trial: float = 0.0,
    ) -> None:
        self.Settings(workers=workers, threads=threads, address=address, gpus_per_trial=gpus_per_trial)
        try:
            import ray as package
        except ModuleNotFoundError as error:
            raise ValueError("executor 'ray' needs the ray package: pip install 'scalesearch[ray]'") from error
        from scalesearch.executor.worker import answer  # here: a worker process runs that module as its program

        ray: Any = package
        ours = not ray.is_initialized()
        if ours and address is None:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a search on a laptop reports to nobody
            ray.init(
                address="local",  # None would join a cluster that happens to run here
                num_cpus=workers * threads if workers else max(default_workers(), threads),
                include_dashboard=False,
                log_to_driver=False,
                logging_level="WARNING",
            )
        elif ours:
            ray.init(address=address, log_to_driver=False, logging_level="WARNING")
        try:
            room = _room(ray.nodes(), threads, gpus_per_trial)
            if room == 0:
                has = ray.cluster_resources()
                raise OSError(
                    f"executor 'ray': a training needs {threads} cores and {gpus_per_trial:g} GPUs, which no machine"
                    f" has; the cluster has {has.get('CPU', 0):g} cores and {has.get('GPU', 0):g} GPUs in all."
                    " Lower executor.threads or executor.gpus_per_trial, or join another cluster with executor.address"
                )
        except BaseException:
            if ours:
                ray.shutdown()
            raise
        task = ray.remote(answer).options(
            num_cpus=threads,
            num_gpus=gpus_per_trial,
            max_retries=0,
            runtime_env={"env_vars": worker_environment(threads) | (import_path() if address is None else {})},
        )
        seats = [_RayTask(ray, task) for _ in range(min(workers or room, room))]
        super().__init__(seats, after=ray.shutdown if ours else lambda: None)


def _room(nodes: Sequence[Mapping[str, Any]], threads: int, gpus: float) -> int:
    """How many evaluations fit at the same time; cores and GPUs of one must be on one machine."""
    room = 0
    for node in nodes:
        if node["Alive"]:
            by_cores = int(node["Resources"].get("CPU", 0) / threads)
            # a task with a fraction above 1 is not one that Ray takes, and fractions do not pool over GPUs
            in_gpu, have = (int(1 / gpus) if 0 < gpus <= 1 else 0), int(node["Resources"].get("GPU", 0))
            by_gpus = by_cores if gpus == 0 else have * in_gpu if gpus <= 1 else have // int(gpus)
            room += min(by_cores, by_gpus)
    return room


class _RayTask:
    """A place for one Ray task at a time."""

    def __init__(self, ray: Any, task: Any) -> None:
        self._ray, self._task = ray, task
        self._running: Any = None
        self._killed = False
        self._lock = threading.Lock()

    def run(self, name: str, specification: str) -> str:
        with self._lock:
            if self._killed:
                raise CancelledError
            self._running = self._task.remote(name, specification)
        try:
            return str(self._ray.get(self._running))
        except self._ray.exceptions.RayError as error:
            self._refuse_no_cluster()
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise WorkerDied(f"the Ray worker died: {lines[0]}", str(error)) from error
        finally:
            self._running = None

    def _refuse_no_cluster(self) -> None:
        """Raises: OSError where no machine of the cluster is left, which is no failure of a training."""
        try:
            alive = any(node["Alive"] for node in self._ray.nodes())
        except Exception:  # the connection to it is lost, which Ray words in many ways
            alive = False
        if not alive:
            raise OSError("no machine of the Ray cluster is left; start one, and the same command goes on")

    def close(self) -> None:
        pass

    def kill(self) -> None:
        with self._lock:
            self._killed = True
            if (running := self._running) is not None:
                self._ray.cancel(running, force=True)
