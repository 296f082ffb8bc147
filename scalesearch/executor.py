"""Where evaluations run: worker processes on this machine, or Ray, behind `concurrent.futures.Executor`.

The driver submits the name of a function and a specification, both plain words; a worker calls the one with the other
and returns plain JSON. Workers open no ledger and no database, and they end when their driver ends, however it ends. At
the end of the file stands what a worker itself runs (`python -m scalesearch.executor`).
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import selectors
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Executor, Future
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeAlias

from scalesearch.ledger import canonical_json

Function: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]
"""What a worker runs: a function at the top level of a module, from a specification to a result, both plain JSON."""


class LocalExecutor(Executor):
    """Worker processes on this machine, started when there is work and used again; `slots` is how many.

    A worker that dies fails the one evaluation it had, and is replaced. Workers live in sessions of their own and
    ignore SIGINT and SIGTERM: Ctrl-C, or the end of a batch job, reaches the driver alone, and the driver decides.

    Args:
        workers: evaluations at the same time; None for the usable cores divided by `threads`.
        threads: cores of one evaluation (OpenMP and MKL, which torch obeys).
        devices: GPUs such as "cuda:0", numbered as the driver sees them, given to the workers in turn; a worker sees
            only its own. One may stand there more than once. Without any, workers see what the driver sees.
        echo: also write what the workers print to the driver's standard error.
    """

    def __init__(
        self, workers: int | None = None, *, threads: int = 1, devices: Sequence[str] = (), echo: bool = False
    ) -> None:
        workers, threads = _check_sizes(workers, threads)
        environment = {**os.environ, **_worker_environment(threads), **_import_path(), "PYTHONUNBUFFERED": "1"}
        visible = _visible_devices(devices)
        seats = []
        for index in range(workers):
            device = {"CUDA_VISIBLE_DEVICES": visible[index % len(visible)]} if visible else {}
            seats.append(_Process({**environment, **device}, echo=echo))
        self.slots = workers
        self._pool = _Pool(seats)

    def submit(self, function: Function, specification: Mapping[str, Any]) -> Future[dict[str, Any]]:  # type: ignore[override]  # two words, not any call
        """A future of `function(specification)`.

        It fails with `EvaluationFailed` where the function raised, and with `WorkerDied` where its process died.

        Raises:
            ValueError: the function cannot be imported by name, or the specification is not plain JSON.
        """
        return self._pool.submit(function, specification)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work, and let the workers go when they are done.

        `wait=True` returns when everything submitted is done; with `cancel_futures=True`, what had begun.
        `wait=False, cancel_futures=True` stops everything now: workers are killed in mid-training, and their futures
        fail with CancelledError. `wait=False` alone returns at once and lets the work go on.
        """
        self._pool.shutdown(wait, cancel_futures)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # out through an exception, Ctrl-C as a rule: nobody will ask for the results any more
        self.shutdown(wait=kind is None, cancel_futures=kind is not None)


class RayExecutor(Executor):
    """Ray tasks, on this machine or a cluster; `slots` is how many run at the same time.

    A Ray that this starts ends with `shutdown` or the driver; one that is there already is left running. Ray itself
    never retries an evaluation. Ray listens on every network address of a machine and has no setting against it; from
    2.60 on it asks whoever calls for a token. The local executor opens no port at all.

    Args:
        workers: evaluations at the same time; None for as many as there is room for.
        threads: cores of one evaluation.
        address: None for a Ray of its own on this machine, "auto" for the cluster this machine belongs to, or "ray://...".
        gpus_per_trial: GPUs of one evaluation; with a fraction several share one.

    Raises:
        ValueError: a bad size, or the ray package is not installed.
        OSError: no machine of the cluster has the cores and GPUs that one evaluation asks for: Ray would wait for ever.
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        threads: int = 1,
        address: str | None = None,
        gpus_per_trial: float = 0.0,
    ) -> None:
        cores, threads = _check_sizes(workers, threads)
        if gpus_per_trial < 0 or (gpus_per_trial > 1 and gpus_per_trial != round(gpus_per_trial)):
            raise ValueError(f"executor.gpus_per_trial must be a fraction or a whole number, got {gpus_per_trial}")
        try:
            import ray as package
        except ModuleNotFoundError as error:
            raise ValueError("executor 'ray' needs the ray package: pip install 'scalesearch[ray]'") from error
        ray: Any = package
        environment = _worker_environment(threads) | (_import_path() if address is None else {})
        self._ours = not ray.is_initialized()
        if self._ours and address is None:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a search on a laptop reports to nobody
            ray.init(
                address="local",  # None would join a cluster that happens to run here
                num_cpus=cores * threads,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="WARNING",
            )
        elif self._ours:
            ray.init(address=address, log_to_driver=False, logging_level="WARNING")
        try:
            room = _room(ray.nodes(), threads, gpus_per_trial)
            if room == 0:
                has = ray.cluster_resources()
                raise OSError(
                    f"executor 'ray': a training asks for {threads} cores and {gpus_per_trial:g} GPUs, which no machine"
                    f" has; the cluster has {has.get('CPU', 0):g} cores and {has.get('GPU', 0):g} GPUs in all."
                    " Lower executor.threads or executor.gpus_per_trial, or join another cluster with executor.address"
                )
        except BaseException:
            if self._ours:
                ray.shutdown()
            raise
        self.slots = room if workers is None else min(workers, room)
        task = ray.remote(_answer).options(
            num_cpus=threads,
            num_gpus=gpus_per_trial,
            max_retries=0,
            runtime_env={"env_vars": environment},
        )
        seats = [_RayTask(ray, task) for _ in range(self.slots)]
        self._pool = _Pool(seats, after=ray.shutdown if self._ours else lambda: None)

    def submit(self, function: Function, specification: Mapping[str, Any]) -> Future[dict[str, Any]]:  # type: ignore[override]  # as above
        """As `LocalExecutor.submit`; on a cluster, the function's module must be installed on every machine."""
        return self._pool.submit(function, specification)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As `LocalExecutor.shutdown`."""
        self._pool.shutdown(wait, cancel_futures)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown(wait=kind is None, cancel_futures=kind is not None)


EXECUTORS: dict[str, type[LocalExecutor] | type[RayExecutor]] = {"local": LocalExecutor, "ray": RayExecutor}


class WorkerDied(RuntimeError):  # noqa: N818 - said as it is told to the user
    """The process of an evaluation ended under it. `output`: the last lines that it printed, where they are known."""

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


class EvaluationFailed(RuntimeError):  # noqa: N818
    """An evaluation raised an exception: "TypeName: message". `traceback` is where, as text."""

    def __init__(self, message: str, traceback: str) -> None:
        super().__init__(message)
        self.traceback = traceback


def default_workers() -> int:
    """The cores that this process may use, at least 1: by its affinity, and by the quota of its container."""
    if sys.version_info >= (3, 13):
        cores = os.process_cpu_count() or 1
    elif hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # "max 100000" where there is no quota
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        cores = min(cores, int(quota) // int(period))
    return max(1, cores)


def _check_sizes(workers: int | None, threads: int) -> tuple[int, int]:
    if threads < 1:
        raise ValueError(f"executor.threads must be 1 or more, got {threads}")
    if workers is None:
        workers = max(1, default_workers() // threads)
    if workers < 1:
        raise ValueError(f"executor.workers must be 1 or more, or null for the usable cores, got {workers}")
    return workers, threads


def _worker_environment(threads: int) -> dict[str, str]:
    # Training frees and takes the same large blocks in every step. Left to itself glibc maps them anew, zeroed pages
    # and all; kept on the heap they cost nothing (4 to 12 % of a training's time). What the user set stays.
    malloc = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
    return {
        **{name: os.environ.get(name, value) for name, value in malloc.items()},
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }


def _import_path() -> dict[str, str]:
    """Lets a worker on this machine import whatever the driver can, a user's own module as well."""
    return {"PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)}


def _visible_devices(devices: Sequence[str]) -> list[str]:
    """What CUDA_VISIBLE_DEVICES must be for each device; the driver's own, if set, is what the numbers count."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    ours = None if seen is None else [name.strip() for name in seen.split(",") if name.strip()]
    visible = []
    for device in devices:
        kind, _, number = device.partition(":")
        if kind != "cuda" or not number.isdecimal():
            raise ValueError(f"executor.devices holds {device!r}; a device is written like 'cuda:0'")
        if ours is not None and int(number) >= len(ours):
            raise ValueError(f"executor.devices holds {device!r}, but CUDA_VISIBLE_DEVICES={seen!r} shows {len(ours)}")
        visible.append(number if ours is None else ours[int(number)])
    return visible


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


# ------------------------------------------------------------------------------------------------- the driver's side


class _Seat(Protocol):
    """Where one evaluation at a time runs. `ask` may raise WorkerDied, or anything once `kill` was called."""

    def ask(self, name: str, specification: str) -> str: ...
    def close(self) -> None: ...
    def kill(self) -> None: ...


class _Pool:
    """Futures in a queue, and a thread a seat that serves them: all of an executor but where things run."""

    def __init__(self, seats: Sequence[_Seat], *, after: Callable[[], None] = lambda: None) -> None:
        self._seats = seats
        self._after = after
        self._queue: queue.SimpleQueue[tuple[Future[dict[str, Any]], str, str] | None] = queue.SimpleQueue()
        # daemons: an interpreter that ends without shutdown() must not wait for trainings whose results nobody reads
        self._threads = [threading.Thread(target=self._serve, args=(seat,), daemon=True) for seat in seats]
        self._working = len(seats)
        self._lock = threading.Lock()
        self._begun = self._closed = self._killed = False

    def submit(self, function: Function, specification: Mapping[str, Any]) -> Future[dict[str, Any]]:
        request = (_name(function), canonical_json(dict(specification)))
        future: Future[dict[str, Any]] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the executor was shut down: it takes no more work")
            self._queue.put((future, *request))
            if not self._begun:
                self._begun = True
                for thread in self._threads:
                    thread.start()
        return future

    def shutdown(self, wait: bool, cancel_futures: bool) -> None:
        with self._lock:
            first, self._closed = not self._closed, True
            self._killed = self._killed or (cancel_futures and not wait)
        if cancel_futures:
            with contextlib.suppress(queue.Empty):
                while True:
                    if (item := self._queue.get_nowait()) is not None:
                        item[0].cancel()
        if first or cancel_futures:  # once more, as the lines above may have taken some
            for _ in self._seats:
                self._queue.put(None)
        if self._killed:
            for seat in self._seats:
                seat.kill()
        if not self._begun:
            if first:
                self._after()
        elif wait or self._killed:
            for thread in self._threads:
                thread.join(None if wait else 10.0)  # the dead are buried in milliseconds, if the kernel lets them go

    def _serve(self, seat: _Seat) -> None:
        while (item := self._queue.get()) is not None:
            future, name, specification = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                reply = json.loads(seat.ask(name, specification))
            except BaseException as error:  # whatever it is belongs to this future, and the next one is served
                future.set_exception(CancelledError("stopped by shutdown") if self._killed else error)
            else:
                if "error" in reply:
                    future.set_exception(EvaluationFailed(reply["error"], reply["traceback"]))
                else:
                    future.set_result(reply["result"])
            del item, future  # a waiting thread must not keep the last result alive
        seat.close()
        with self._lock:
            self._working -= 1
            last = self._working == 0
        if last:
            self._after()


def _name(function: Function) -> str:
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module in (None, "__main__") or getattr(sys.modules.get(module), name, None) is not function:
        raise ValueError(f"{function!r} cannot be imported by name; give a function at the top level of a module")
    return f"{module}:{name}"


class _Process:
    """A worker process: started by the first question, and again by the first one after its death."""

    def __init__(self, environment: Mapping[str, str], *, echo: bool) -> None:
        self._environment = environment
        self._echo = echo
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False
        self._lock = threading.Lock()  # between ask and close, which start and bury the process, and kill
        self._tail = bytearray()
        self._drain: threading.Thread | None = None

    def ask(self, name: str, specification: str) -> str:
        question = json.dumps({"function": name, "specification": specification}).encode() + b"\n"
        used_before = self._process is not None
        while True:
            process, answer = self._process or self._start(), bytearray()
            try:
                assert process.stdin is not None
                process.stdin.write(question)
                process.stdin.flush()
                self._read_line(process, answer)
                return answer[1:].decode()
            except (BrokenPipeError, EOFError):
                death = self._obituary()
                if answer or not used_before:
                    raise death from None
                used_before = False  # it died between two questions and never took this one up: nobody's failure

    def close(self) -> None:
        if (process := self._process) is not None:
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()  # the worker reads the end of its questions, and leaves
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5.0)
            self._bury()

    def kill(self) -> None:
        with self._lock:
            self._killed = True
            if self._process is not None and self._process.returncode is None:
                _kill_group(self._process.pid)

    def _start(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._killed:
                raise CancelledError
            # -P: a module in the current directory must not take the place of one that the driver imported
            command = [sys.executable, "-P", "-m", "scalesearch.executor", str(os.getpid())]
            pipe = subprocess.PIPE
            self._process = process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=pipe, env=self._environment, start_new_session=True
            )
        self._tail = bytearray()
        self._drain = threading.Thread(target=self._keep_output, args=(process, self._tail), daemon=True)
        self._drain.start()
        return process

    def _keep_output(self, process: subprocess.Popen[bytes], tail: bytearray) -> None:
        """Read what the worker prints, or it would stop at a full pipe; the last 8 KiB are kept for its obituary."""
        assert process.stderr is not None
        with process.stderr as stream:  # closed here: a child of the worker may keep it open for longer
            while chunk := os.read(stream.fileno(), 65536):
                tail += chunk
                del tail[:-8192]
                if self._echo:
                    sys.stderr.write(chunk.decode(errors="replace"))

    def _read_line(self, process: subprocess.Popen[bytes], line: bytearray) -> None:
        """A "+" as the worker takes the question up, then its answer; an EOFError where it dies."""
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if selector.select(timeout=1.0):
                    chunk = os.read(process.stdout.fileno(), 1 << 20)
                    if not chunk:
                        raise EOFError
                    line += chunk
                elif process.poll() is not None:  # a child of the worker has survived it and keeps the pipe open
                    raise EOFError

    def _obituary(self) -> WorkerDied:
        process = self._process
        assert process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=2.0)
        self._bury()
        code = process.returncode
        if code < 0:
            try:
                how = f"was killed by {signal.Signals(-code).name}"
            except ValueError:  # a real-time signal has no name
                how = f"was killed by signal {-code}"
        else:
            how = f"ended with exit code {code}"
        if code == -signal.SIGKILL:
            how += " (by the kernel if memory ran out, else by hand); fewer workers or a smaller batch need less memory"
        output = "\n".join(self._tail.decode(errors="replace").splitlines()[-50:])
        last = output.strip().rpartition("\n")[2]
        return WorkerDied(f"worker process {process.pid} {how}" + (f"; its last words: {last}" if last else ""), output)

    def _bury(self) -> None:
        """End what is left of the worker and its children, and take its exit code, so that no zombie stays."""
        with self._lock:
            process, self._process = self._process, None
            assert process is not None
            _kill_group(process.pid)
            process.wait()
        if self._drain is not None:
            self._drain.join(timeout=2.0)
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # the rest of a question that nobody reads any more
                assert stream is not None
                stream.close()


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
        os.killpg(pid, signal.SIGKILL)


class _RayTask:
    """A place for one Ray task at a time."""

    def __init__(self, ray: Any, task: Any) -> None:
        self._ray = ray
        self._task = task
        self._running: Any = None
        self._killed = False
        self._lock = threading.Lock()

    def ask(self, name: str, specification: str) -> str:
        with self._lock:
            if self._killed:
                raise CancelledError
            self._running = self._task.remote(name, specification)
        try:
            return str(self._ray.get(self._running))
        except self._ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise WorkerDied(f"the Ray worker died: {lines[0]}", str(error)) from error
        finally:
            self._running = None

    def close(self) -> None:
        pass

    def kill(self) -> None:
        with self._lock:
            self._killed = True
            if (running := self._running) is not None:
                self._ray.cancel(running, force=True)


# ------------------------------------------------------------------------------------------------- the worker's side


def _answer(name: str, specification: str) -> str:
    """Call a function by its name; its result, or its exception as words, as one line of JSON."""
    try:
        module, _, function = name.partition(":")
        result = getattr(importlib.import_module(module), function)(json.loads(specification))
        return canonical_json({"result": result})
    except BaseException as error:  # SystemExit too: a function must not end the worker
        words = f"{type(error).__name__}: {error}".removesuffix(": ")
        return json.dumps({"error": words, "traceback": traceback.format_exc()})


def _work(driver: int) -> None:
    """The life of a worker: read a question, answer it, until the questions end or the driver does."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which programs that the function starts would inherit
    questions, answers = os.dup(0), os.dup(1)
    # Whatever a library prints goes to standard error, and what it reads is empty: the channel stays ours.
    os.dup2(2, 1)
    with open(os.devnull) as nothing:  # noqa: PTH123 - a descriptor is wanted
        os.dup2(nothing.fileno(), 0)
    asked: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    busy = threading.Event()
    threading.Thread(target=_listen, args=(questions, driver, asked, busy), daemon=True).start()
    while (line := asked.get()) is not None:
        os.write(answers, b"+")
        question = json.loads(line)
        answer = _answer(question["function"], question["specification"]).encode() + b"\n"
        busy.clear()
        while answer:
            answer = answer[os.write(answers, answer) :]


def _listen(questions: int, driver: int, asked: queue.SimpleQueue[bytes | None], busy: threading.Event) -> None:
    """Hand on each line; when the driver is gone, end the worker, in mid-training if need be."""
    line = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(questions, selectors.EVENT_READ)
        # the end of the pipe tells at once; the parent's number is for when a forked child of the driver keeps it open
        while os.getppid() == driver:
            if selector.select(timeout=1.0):
                chunk = os.read(questions, 1 << 20)
                if not chunk:
                    break
                line += chunk
                if line.endswith(b"\n"):
                    busy.set()
                    asked.put(bytes(line))
                    line.clear()
    if not busy.is_set():
        asked.put(None)  # idle: leave in good order, with what libraries do at the end
        time.sleep(4.0)
    if os.getpgrp() == os.getpid():  # with its own children, such as those of a data loader
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    _work(int(sys.argv[1]))
