"""Worker processes on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Annotated, Any

from pydantic import Field

from scalesearch.checks import Must, checked
from scalesearch.executor.pool import Pool, WorkerDied, default_workers, import_path, worker_environment

Device = Annotated[str, Field(pattern="^cuda:[0-9]+$"), Must("a GPU such as 'cuda:0'")]


class LocalExecutor(Pool):
    """Worker processes on this machine, started when there is work and used again.

    A worker that dies fails the one evaluation it had, and is replaced. Workers live in sessions of their own and
    ignore `signals.CODES`: Ctrl-C, or the end of a batch job, reaches the driver alone, and the driver decides.

    Args:
        workers: None for the usable cores divided by `threads`.
        devices: GPUs, numbered as the driver sees them, given to the workers in turn; a worker sees only its own. One
            may stand there more than once. Without any, workers see what the driver sees.
        echo: also write what the workers print to the driver's standard error.

    Raises:
        ValueError: a value out of range, or a GPU that the driver does not see.
    """

    @checked("executor", kw_only=True)
    class Settings(Pool.Settings):
        """See `Pool.Settings`."""

        devices: Annotated[list[Device], Field(description="GPUs that are given to the workers in turn")]

    def __init__(
        self, workers: int | None = None, *, threads: int = 1, devices: Sequence[str] = (), echo: bool = False
    ) -> None:
        self.Settings(workers=workers, threads=threads, devices=list(devices))
        environment = {**os.environ, **worker_environment(threads), **import_path(), "PYTHONUNBUFFERED": "1"}
        visible = _visible_devices(devices)
        seats = []
        for index in range(workers or max(1, default_workers() // threads)):
            device = {"CUDA_VISIBLE_DEVICES": visible[index % len(visible)]} if visible else {}
            seats.append(_Process({**environment, **device}, echo=echo))
        super().__init__(seats)


def _visible_devices(devices: Sequence[str]) -> list[str]:
    """What CUDA_VISIBLE_DEVICES must be for each device; the driver's own, if set, is what the numbers count."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    ours = None if seen is None else [name.strip() for name in seen.split(",") if name.strip()]
    visible = []
    for device in devices:
        number = device.partition(":")[2]
        if ours is not None and int(number) >= len(ours):
            raise ValueError(f"executor.devices holds {device!r}, but CUDA_VISIBLE_DEVICES={seen!r} shows {len(ours)}")
        visible.append(number if ours is None else ours[int(number)])
    return visible


class _Process:
    """A worker process: started by the first request, and again by the first one after its death."""

    def __init__(self, environment: Mapping[str, str], *, echo: bool) -> None:
        self._environment, self._echo = environment, echo
        self._killed = False
        self._process: Any = None  # a Popen with its three pipes
        self._lock = threading.Lock()  # between run and close, which start and reap the process, and kill
        self._tail = bytearray()
        self._drain: threading.Thread | None = None

    def run(self, name: str, specification: str) -> str:
        request = json.dumps({"function": name, "specification": specification}).encode() + b"\n"
        used_before = self._process is not None
        while True:
            process, answer = self._process or self._start(), bytearray()
            try:
                process.stdin.write(request)
                process.stdin.flush()
                self._read_line(process, answer)
                return answer[1:].decode()
            except (BrokenPipeError, EOFError):
                death = self._death()
                if answer or not used_before:
                    raise death from None
                used_before = False  # it died between two requests and never took this one up: nobody's failure

    def close(self) -> None:
        if (process := self._process) is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()  # the worker reads the end of its requests, and leaves
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5.0)
            self._reap()

    def kill(self) -> None:
        with self._lock:
            self._killed = True
            if self._process is not None and self._process.returncode is None:
                _kill_group(self._process.pid)

    def _start(self) -> Any:
        with self._lock:
            if self._killed:
                raise CancelledError
            # -P: a module in the current directory must not take the place of one that the driver imported
            command = [sys.executable, "-P", "-m", "scalesearch.executor.worker", str(os.getpid())]
            pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
            process = subprocess.Popen(command, **pipes, env=self._environment, start_new_session=True)  # type: ignore[call-overload]
            self._process = process
        self._tail = bytearray()
        self._drain = threading.Thread(target=self._keep_output, args=(process, self._tail), daemon=True)
        self._drain.start()
        return process

    def _keep_output(self, process: Any, tail: bytearray) -> None:
        """Read what the worker prints, or it would stop at a full pipe; the last 8 KiB are kept for `_death`."""
        with process.stderr as stream:  # closed here: a child of the worker may keep it open for longer
            while chunk := os.read(stream.fileno(), 65536):
                tail += chunk
                del tail[:-8192]
                if self._echo:
                    sys.stderr.write(chunk.decode(errors="replace"))

    def _read_line(self, process: Any, line: bytearray) -> None:
        """A "+" as the worker takes the request up, then its answer; an EOFError where it dies."""
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

    def _death(self) -> WorkerDied:
        process = self._process
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=2.0)
        self._reap()
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

    def _reap(self) -> None:
        """End what is left of the worker and its children, and take its exit code, so that no zombie stays."""
        with self._lock:
            process, self._process = self._process, None
            _kill_group(process.pid)
            process.wait()
        if self._drain is not None:
            self._drain.join(timeout=2.0)
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # the rest of a request that nobody reads any more
                stream.close()


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
        os.killpg(pid, signal.SIGKILL)
