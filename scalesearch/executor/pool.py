"""The driver's side of every executor: futures, the threads that serve them, and what workers start with."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Executor, Future
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Protocol, TypeAlias

from scalesearch.checks import between, checked
from scalesearch.ledger import canonical_json

Function: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]
"""What a worker runs: a function at the top level of a module, from a specification to a result, both plain JSON."""


TRIES = 3
"""Workers that one request may cost: then it is the request that kills them."""
_SICK = 2
_log = logging.getLogger(__name__)


class WorkerDied(RuntimeError):  # noqa: N818 - named as the user reads it
    """The process of an evaluation ended under it. `output`: the last lines that it printed, where they are known."""

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


class EvaluationFailed(RuntimeError):  # noqa: N818
    """An evaluation raised an exception: "TypeName: message". `traceback` is where, as text."""

    def __init__(self, message: str, traceback: str) -> None:
        super().__init__(message)
        self.traceback = traceback


@dataclass(eq=False)
class _Work:
    """A request, its future, and the seats whose workers died under it."""

    future: Future[dict[str, Any]]
    name: str
    specification: str
    died_on: list[Seat] = field(default_factory=list)


class Seat(Protocol):
    """Where one evaluation at a time runs. `run` may raise WorkerDied, or anything once `kill` was called."""

    def run(self, name: str, specification: str) -> str: ...
    def close(self) -> None: ...
    def kill(self) -> None: ...


class Pool(Executor):
    """Futures in a queue, and one thread per seat that serves them: all of an executor but where things run.

    What a worker died under is run again, on another seat if there is one, until it has cost `TRIES` workers. A seat
    under which things die that others then finish is sick, of too little memory say, and gets no more work.

    An executor of yours is a subclass that hands its seats to `__init__`, or a class that looks like one.

    slots: how many evaluations run at the same time.
    """

    @checked("executor", kw_only=True)
    class Settings:
        """The keyword arguments of the class, as a group of conf/executor/ has them; more in a subclass of it."""

        workers: Annotated[
            int | None, between(1, 4096, "evaluations at the same time; null: as many as there is room for")
        ]
        threads: Annotated[int, between(1, 1024, "cores of one evaluation (OpenMP and MKL, which torch obeys)")]

    def __init__(self, seats: Sequence[Seat], *, after: Callable[[], None] = lambda: None) -> None:
        self.slots = len(seats)
        self._seats, self._after = seats, after
        self._queue: list[_Work] = []
        self._at_work = list(seats)
        self._blamed: Counter[int] = Counter()  # of a seat by its id: what died there and was finished elsewhere
        # daemons: an interpreter that ends without shutdown() must not wait for trainings whose results nobody reads
        self._threads = [threading.Thread(target=self._serve, args=(seat,), daemon=True) for seat in seats]
        self._lock = threading.Condition()
        self._closed = self._killed = False
        for thread in self._threads:  # here: a signal in `submit` would leave some that never start
            thread.start()

    def submit(self, function: Function, specification: Mapping[str, Any]) -> Future[dict[str, Any]]:  # type: ignore[override]  # two words, not any call
        """A future of `function(specification)`.

        It fails with `EvaluationFailed` where the function raised, with `WorkerDied` where its process died again and
        again, and with an OSError where there is nothing that it could run on, or its disk is full.

        Raises:
            ValueError: the function cannot be imported by name, or the specification is not plain JSON.
        """
        request = (_name(function), canonical_json(dict(specification)))
        future: Future[dict[str, Any]] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the executor was shut down: it takes no more work")
            self._queue.append(_Work(future, *request))
            self._lock.notify_all()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work, and let the workers go when they are done.

        `wait=True` returns when everything submitted is done; with `cancel_futures=True`, what had begun.
        `wait=False, cancel_futures=True` stops everything now: workers are killed in mid-training, and their futures
        fail with CancelledError. `wait=False` alone returns at once and lets the work go on.
        """
        with self._lock:
            self._closed = True
            self._killed = self._killed or (cancel_futures and not wait)
            dropped = self._queue[:] if cancel_futures else []
            self._queue = [] if cancel_futures else self._queue
            self._lock.notify_all()
        for work in dropped:
            if not work.future.cancel():  # it had begun, and its worker died
                work.future.set_exception(CancelledError("stopped by shutdown"))
        if self._killed:
            for seat in self._seats:
                seat.kill()
        if wait or self._killed:
            for thread in self._threads:
                thread.join(None if wait else 10.0)  # the killed are reaped in milliseconds, if the kernel lets them go

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # out through an exception, Ctrl-C as a rule: nobody will want the results any more
        self.shutdown(wait=kind is None, cancel_futures=kind is not None)

    def _serve(self, seat: Seat) -> None:
        while (work := self._take(seat)) is not None:
            if not work.died_on and not work.future.set_running_or_notify_cancel():
                continue
            try:
                reply = json.loads(seat.run(work.name, work.specification))
            except BaseException as error:  # whatever it is belongs to this future, and the next one is served
                if isinstance(error, WorkerDied) and not self._killed and self._again(work, seat, error):
                    continue
                work.future.set_exception(CancelledError("stopped by shutdown") if self._killed else error)
            else:
                self._came_back(work, seat)
                if "disk" in reply:  # which is no fault of what was asked for
                    work.future.set_exception(OSError(*reply["disk"]))
                elif "error" in reply:
                    work.future.set_exception(EvaluationFailed(reply["error"], reply["traceback"]))
                else:
                    work.future.set_result(reply["result"])
            del work  # a waiting thread must not keep the last result alive
        seat.close()
        with self._lock:
            self._at_work.remove(seat)
            self._lock.notify_all()
            if self._at_work:
                return
        self._after()

    def _take(self, seat: Seat) -> _Work | None:
        """What this seat is to run; None where there will be nothing any more, or it is sick."""
        with self._lock:
            while True:
                if self._blamed[id(seat)] >= _SICK and len(self._at_work) > 1:
                    _log.warning(
                        f"a worker gets no more work: it died under {self._blamed[id(seat)]} trainings in a row that "
                        "others have finished. Has it less memory than they?"
                    )
                    return None
                for work in self._queue:
                    if seat not in work.died_on or all(one in work.died_on for one in self._at_work):
                        self._queue.remove(work)
                        return work
                if self._closed and not self._queue:
                    return None
                self._lock.wait()

    def _again(self, work: _Work, seat: Seat, error: WorkerDied) -> bool:
        """Whether what this seat's worker died under is run again."""
        with self._lock:
            work.died_on.append(seat)
            if len(work.died_on) >= TRIES:
                return False
            self._queue.insert(0, work)
            self._lock.notify_all()
        _log.warning(f"{error}. What it was at is run again ({len(work.died_on) + 1} of {TRIES} times)")
        return True

    def _came_back(self, work: _Work, seat: Seat) -> None:
        with self._lock:
            self._blamed[id(seat)] = 0
            for other in {id(one) for one in work.died_on} - {id(seat)}:
                self._blamed[other] += 1
            if work.died_on:
                self._lock.notify_all()


def _name(function: Function) -> str:
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module in (None, "__main__") or getattr(sys.modules.get(module), name, None) is not function:
        raise ValueError(f"{function!r} cannot be imported by name; give a function at the top level of a module")
    return f"{module}:{name}"


def default_workers() -> int:
    """The cores that this process may use, at least 1: by its affinity, and by the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # "max 100000" where there is no quota
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        cores = min(cores, int(quota) // int(period))
    return max(1, cores)


def worker_environment(threads: int) -> dict[str, str]:
    # Training frees and takes the same large blocks in every step. Left to itself glibc maps them anew, zeroed pages
    # and all; kept on the heap they cost nothing (4 to 12 % of a training's time). What the user set stays.
    malloc = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
    return {
        **{name: os.environ.get(name, value) for name, value in malloc.items()},
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }


def import_path() -> dict[str, str]:
    """Lets a worker on this machine import whatever the driver can, a user's own module as well."""
    return {"PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)}
