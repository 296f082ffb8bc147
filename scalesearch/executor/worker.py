"""A worker process: it reads a request, answers it, and ends with its driver.

python -m scalesearch.executor.worker PID      the process id of the driver
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import selectors
import signal
import sys
import threading
import time
import traceback

from scalesearch.ledger import canonical_json
from scalesearch.signals import CODES
from scalesearch.text import one_line
from scalesearch.workspace import FULL


def answer(name: str, specification: str) -> str:
    """Call a function by its name; its result, or its exception as words, as one line of JSON."""
    try:
        module, _, function = name.partition(":")
        result = getattr(importlib.import_module(module), function)(json.loads(specification))
        return canonical_json({"result": result})
    except BaseException as error:  # SystemExit too: a function must not end the worker
        words = f"{type(error).__name__}: {one_line(error)}".removesuffix(": ")
        reply: dict[str, object] = {"error": words, "traceback": traceback.format_exc()}
        if isinstance(error, OSError) and error.errno in FULL:
            reply["disk"] = [error.errno, error.strerror, error.filename]
        return json.dumps(reply)


def work(driver: int) -> None:
    """The life of a worker: one request after another, until they end or the driver does."""
    for number in CODES:
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which programs that the function starts would inherit
    requests, answers = os.dup(0), os.dup(1)
    # Whatever a library prints goes to standard error, and what it reads is empty: the channel stays ours.
    os.dup2(2, 1)
    with open(os.devnull) as nothing:  # noqa: PTH123 - a descriptor is wanted
        os.dup2(nothing.fileno(), 0)
    waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    busy = threading.Event()
    threading.Thread(target=_listen, args=(requests, driver, waiting, busy), daemon=True).start()
    while (line := waiting.get()) is not None:
        os.write(answers, b"+")
        request = json.loads(line)
        reply = answer(request["function"], request["specification"]).encode() + b"\n"
        busy.clear()
        while reply:
            reply = reply[os.write(answers, reply) :]


def _listen(requests: int, driver: int, waiting: queue.SimpleQueue[bytes | None], busy: threading.Event) -> None:
    """Hand on each line; when the driver is gone, end the worker, in mid-training if need be."""
    line = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        # the end of the pipe tells at once; the parent's number is for when a forked child of the driver keeps it open
        while os.getppid() == driver:
            if selector.select(timeout=1.0):
                chunk = os.read(requests, 1 << 20)
                if not chunk:
                    break
                line += chunk
                if line.endswith(b"\n"):
                    busy.set()
                    waiting.put(bytes(line))
                    line.clear()
    if not busy.is_set():
        waiting.put(None)  # idle: leave in good order, with what libraries do at the end
        time.sleep(4.0)
    if os.getpgrp() == os.getpid():  # with its own children, such as those of a data loader
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    work(int(sys.argv[1]))
