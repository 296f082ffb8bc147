"""MLflow's own interface, on this machine only, and links to the pages that answer something."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from scalesearch.text import hide_password
from scalesearch.tracking.connection import QUIET, Address

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def links(*, uri: str | None, workspace: Path, study: str, base: str | None = None) -> dict[str, str]:
    """Pages of MLflow's interface: `runs` of the study, its newest command (`parent`), its candidates (`compare`).

    Plain paths of MLflow open an empty page about traces, so these are complete. Each starts with `base` (that of a
    server; for a database there is none, and they start with `#`). `parent` and `compare` only where there are runs.

    Raises:
        ValueError: MLflow knows no such study.
        OSError: MLflow cannot be reached.
    """
    address = Address(uri, workspace)
    address.refuse_empty()
    with address.client() as client:
        experiment = client.get_experiment_by_name(study)
        if experiment is None:
            raise ValueError(f"MLflow knows no study '{study}'; known: {', '.join(_studies(client)) or 'none yet'}")
        identity = experiment.experiment_id

        def newest(level: str) -> Run | None:
            found = client.search_runs(
                [identity],
                f"tags.`scalesearch.level` = '{level}'",
                order_by=["attributes.start_time DESC"],
                max_results=1,
            )
            return found[0] if found else None

        root = (address.server or "") if base is None else base
        page = f"{root.rstrip('/')}/#" if root else "#"
        found = {"runs": f"{page}/experiments/{identity}/runs?workflowType=machine_learning"}
        if (command := newest("command")) is not None:
            found["parent"] = f"{page}/experiments/{identity}/runs/{command.info.run_id}"
        if (candidate := newest("candidate")) is not None:
            parent = candidate.data.tags["mlflow.parentRunId"]
            children = client.search_runs([identity], f"tags.mlflow.parentRunId = '{parent}'")
            runs = sorted(children, key=lambda run: (run.info.start_time, run.info.run_name))
            found["compare"] = f"{page}/compare-runs?" + urllib.parse.urlencode(
                {"runs": json.dumps([run.info.run_id for run in runs]), "experiments": json.dumps([identity])},
                quote_via=urllib.parse.quote,
            )
    return found


def serve(
    *, workspace: Path, uri: str | None, port: int, study: str | None = None, show: Callable[[str], None] = print
) -> int:
    """The exit code of MLflow's own server on 127.0.0.1, which runs until SIGINT (130) or SIGTERM (143) stops it.

    `show` gets a line for each link: those of `study`, or the runs of all studies. Where `uri` is a server already,
    only its links are shown. Call it in the main thread.

    Raises:
        ValueError: nothing was ever logged, or no such study.
        OSError: the port is taken, or the server does not start.
    """
    place = Address(uri, workspace)
    if place.server:
        _show_links(place.server, workspace, study, show)
        return 0
    place.refuse_empty()
    _check_free(port)
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", place.resolved, "--artifacts-destination", place.artifacts]
    with _signals() as received, tempfile.TemporaryFile() as log, _running(command, log) as server:
        _wait_until_healthy(address, server, log, received)
        if not received:
            _show_links(address, workspace, study, show)
        while server.poll() is None and not received:
            time.sleep(0.1)
        if not received:
            raise OSError(f"the MLflow server ended by itself: {_tail(log)}")
        return 128 + received[0]


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGINT and SIGTERM as they come, which end nothing until the end of the block."""
    received: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _running(command: Sequence[str], log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The server, ended with all processes that it has started: politely, then by force."""
    # Without job execution 2 processes and 0.5 GB instead of 10 and 2.3 GB. A session of its own, so that all of them
    # can be ended, and Ctrl-C comes to us alone.
    environment = {**os.environ, **QUIET, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
    server = subprocess.Popen(command, env=environment, start_new_session=True, **quiet)
    try:
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(timeout=5)
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _show_links(uri: str, workspace: Path, study: str | None, show: Callable[[str], None]) -> None:
    if study is not None:
        found = links(uri=uri, workspace=workspace, study=study)
        titles = {"runs": "all runs", "parent": "newest command", "compare": "its candidates compared"}
        for key in found:
            show(f"{study}, {titles[key]}: {found[key]}")
        return
    with Address(uri, workspace).client() as client:
        names = _studies(client)
    for name in names:
        show(f"{name}: {links(uri=uri, workspace=workspace, study=name)['runs']}")


def _studies(client: MlflowClient) -> list[str]:
    return sorted(experiment.name for experiment in client.search_experiments() if experiment.name != "Default")


def _check_free(port: int) -> None:
    def free(candidate: int) -> bool:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", candidate))
            except OSError:
                return False
            return True

    if not free(port):
        other = next((p for p in range(port + 1, min(port + 200, 65536)) if free(p)), None)
        raise OSError(f"port {port} cannot be used" + (f"; port {other} is free" if other is not None else ""))


def _wait_until_healthy(address: str, server: subprocess.Popen[bytes], log: IO[bytes], received: Sequence[int]) -> None:
    until = time.monotonic() + 120
    while not received:
        if server.poll() is not None:
            raise OSError(f"the MLflow server did not start: {_tail(log)}")
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
            return
        if time.monotonic() > until:
            raise OSError(f"the MLflow server did not answer within 120 s: {_tail(log)}")
        time.sleep(0.1)


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return hide_password(lines[-1].strip()) if lines else "it printed nothing"
