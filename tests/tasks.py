"""What the tests of executors let workers do, and how they look at processes. Workers import it, so it is quick."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, TypeAlias

Specification: TypeAlias = dict[str, Any]


def echo(specification: Specification) -> Any:
    return {"got": specification, "pid": os.getpid()}


def sleep(specification: Specification) -> Any:
    if "file" in specification:
        Path(specification["file"]).write_text(str(os.getpid()))
    time.sleep(specification.get("seconds", 60))
    return {"pid": os.getpid()}


def chatter(specification: Specification) -> Any:
    print("not json")
    print("nor this", file=sys.stderr)
    os.write(1, b'{"result": "forged"}\n')
    subprocess.run(["echo", "from a child"], check=True)
    return {"read": sys.stdin.read()}


def flood(specification: Specification) -> Any:
    print("x" * 1_000_000)
    return {"long": "y" * specification["size"]}


def fail(specification: Specification) -> Any:
    raise KeyError("no such block") if specification.get("silent") is None else RuntimeError


def leave(specification: Specification) -> Any:
    sys.exit(3)


def vanish(specification: Specification) -> Any:
    print("the disk is on fire", file=sys.stderr)
    os._exit(7)


def suicide(specification: Specification) -> Any:
    os.kill(os.getpid(), 9)


def not_json(specification: Specification) -> Any:
    return {"loss": float("nan")}


def environment(specification: Specification) -> Any:
    return {name: os.environ.get(name) for name in specification["names"]}


def leave_a_child(specification: Specification) -> Any:
    """A child like a data loader's, which keeps every descriptor of the worker open."""
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    Path(specification["file"]).write_text(str(pid))
    if specification["die"]:
        os.kill(os.getpid(), 9)
    time.sleep(60)


def read_pid(path: Path) -> int:
    for _ in range(400):
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int(path.read_text())
        time.sleep(0.025)
    raise AssertionError(f"{path} was not written")


def is_alive(pid: int) -> bool:  # a zombie is not, though it can still be signalled
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def gone_within(seconds: float, *pids: int) -> bool:
    end = time.monotonic() + seconds
    while any(map(is_alive, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(is_alive, pids))
