"""A search in which a fault comes at a step of the file system, and the same command once more.

    python tests/every_step.py DIRECTORY FAULT FIRST STRIDE [WORD ...]

FAULT is `kill`, SIGKILL before the step, or `full`, the error of a full disk in its place. A step is an opening for
writing, a rename, a removal, a new directory, a flush to the disk, or a connection to a database. Every STRIDE-th step
from FIRST on is tried, each in a workspace of its own, until the search comes to its end. Each prints a line of JSON.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import planted
import torch

from scalesearch.cli import main
from scalesearch.executor import EXECUTORS

STEPS = {"os.rename", "os.remove", "os.mkdir", "os.truncate", "sqlite3.connect"}
TABLES = ("candidates.csv", "trials.csv", "decision.csv", "family.csv", "coefficients.yaml", "report.md")


def written(event: str, args: tuple[Any, ...]) -> str | None:
    """The path that a step of the file system is about; None where it is no step."""
    if event == "open":
        path, _, flags = args
        return str(path) if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else None
    return str(args[0]) if event in STEPS else None


def watch(place: Path, at_step: Callable[[str], None]) -> None:
    """Call `at_step` with the path of each step below `place`, for as long as this process lives."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        path = written(event, args)
        if path is not None and str(place) in str(Path(path.removeprefix("file:")).absolute()):
            at_step(path)

    flush = os.fsync

    def fsync(descriptor: int) -> None:
        at_step("")
        flush(descriptor)

    os.fsync = fsync
    sys.addaudithook(hook)


def search(place: Path, words: list[str], fault: str | None, at: int) -> dict[str, Any]:
    """What became of the search in `place`, in a process of its own: its exit code, what it said, the steps it took."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        with os.fdopen(reading) as answers:
            answer = answers.read()
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        return {"code": code, **(json.loads(answer) if answer else {})}
    steps = 0

    def at_step(path: str) -> None:
        nonlocal steps
        steps += 1
        if steps == at and fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if steps == at and fault == "full":  # that of a flush names no file
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *([path] if path else []))

    os.chdir(place)
    watch(place, at_step)
    said, code = io.StringIO(), -1
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            main(["run", *words])
        except SystemExit as ended:
            code = int(ended.code or 0)
    with os.fdopen(writing, "w") as answers:
        answers.write(json.dumps({"code": code, "steps": steps, "said": said.getvalue()}))
    os._exit(0)


def tables(place: Path) -> dict[str, str]:
    """The answer of a study: its tables and what it has chosen, without what a clock measured or this command did."""
    (study,) = (place / "workspace" / "studies").iterdir()
    found = {}
    for name in TABLES:
        if name.endswith(".csv"):
            table = pd.read_csv(study / name)
            found[name] = table.drop(columns=["latency_ms", "reused"], errors="ignore").to_csv()
        else:
            found[name] = (study / name).read_text()
    result = json.loads((study / "result.json").read_text())
    del result["evaluations"]
    return found | {"result.json": json.dumps(untimed(result), sort_keys=True)}


def untimed(value: Any) -> Any:
    """Without the latencies, however deep."""
    if isinstance(value, dict):
        return {key: untimed(one) for key, one in value.items() if not key.startswith("latency")}
    return [untimed(one) for one in value] if isinstance(value, list) else value


def run(directory: Path, fault: str, first: int, stride: int, words: list[str]) -> None:
    torch.set_num_threads(1)
    EXECUTORS._loaded["planted"] = planted.Planted  # type: ignore[assignment]
    planted.Planted.plant = staticmethod(planted.known_bias)
    words = [*planted.SEARCH, "executor.name=planted", *words]
    unbroken = directory / "unbroken"
    unbroken.mkdir()
    whole = search(unbroken, words, None, 0)
    expected = tables(unbroken)
    print(json.dumps({"unbroken": whole, "tables": sorted(expected)}), flush=True)
    for at in range(first, whole["steps"] + 1, stride):
        place = directory / "broken"
        place.mkdir()
        broken = search(place, words, fault, at)
        again = search(place, words, None, 0)
        came = tables(place) if again["code"] == 0 else {}
        different = [name for name, one in expected.items() if came.get(name) != one]
        print(json.dumps({"at": at, "broken": broken, "again": again, "different": different}), flush=True)
        shutil.rmtree(place)


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
