"""How workers end: with their driver, by shutdown, and when they die at work."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import tasks
from conftest import case, children
from tasks import gone_within, is_alive, read_pid

from scalesearch.executor import EvaluationFailed, LocalExecutor, Pool, WorkerDied
from scalesearch.executor.pool import TRIES

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")


def test_an_exception_arrives_in_words_and_the_worker_lives_on() -> None:
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (tasks.fail, {}, "KeyError: 'no such block'"),
        (tasks.fail, {"silent": True}, "RuntimeError"),
        (tasks.leave, {}, "SystemExit: 3"),
        (tasks.not_json, {}, "ValueError: not plain JSON: result.loss is nan; numbers must be finite"),
    ]
    with LocalExecutor(1) as executor:
        before = executor.submit(tasks.echo, {}).result(timeout=10)["pid"]
        for task, specification, words in cases:
            with case(words):
                with pytest.raises(EvaluationFailed) as failure:
                    executor.submit(task, specification).result(timeout=10)
                assert str(failure.value) == words
                assert "Traceback" in failure.value.traceback
                assert executor.submit(tasks.echo, {}).result(timeout=10)["pid"] == before


def test_what_a_worker_died_under_is_run_again_three_times_in_all(tmp_path: Path) -> None:
    with LocalExecutor(2) as executor:
        victim = executor.submit(tasks.sleep, {"file": str(tmp_path / "victim")})
        other = executor.submit(tasks.sleep, {"seconds": 1})
        later = [executor.submit(tasks.echo, {"i": i}) for i in range(4)]
        pids = []
        for _ in range(TRIES):
            pids.append(read_pid(tmp_path / "victim"))
            (tmp_path / "victim").unlink()
            os.kill(pids[-1], signal.SIGKILL)
        with pytest.raises(WorkerDied, match=rf"worker process {pids[-1]} was killed by SIGKILL .*memory"):
            victim.result(timeout=10)
        assert len(set(pids)) == TRIES
        assert other.result(timeout=10)["pid"]
        assert [future.result(timeout=10)["got"] for future in later] == [{"i": i} for i in range(4)]


def test_what_the_machine_lost_once_is_finished(tmp_path: Path) -> None:
    with LocalExecutor(1) as executor:
        future = executor.submit(tasks.sleep, {"file": str(tmp_path / "pid"), "seconds": 1})
        os.kill(pid := read_pid(tmp_path / "pid"), signal.SIGKILL)
        assert future.result(timeout=20)["pid"] != pid


class SickOrNot:
    """A seat that is no process: a sick one's worker dies under everything."""

    def __init__(self, sick: bool) -> None:
        self.sick, self.ran, self.closed = sick, 0, False

    def run(self, name: str, specification: str) -> str:
        self.ran += 1
        time.sleep(0.001 if self.sick else 0.02)  # and is free again before the others
        if self.sick:
            raise WorkerDied("worker process 1 was killed by SIGKILL")
        return json.dumps({"result": json.loads(specification)})

    def close(self) -> None:
        self.closed = True

    kill = close


def test_a_sick_seat_gets_no_more_work_and_nothing_is_lost() -> None:
    for healthy in (1, 3):
        seats = [SickOrNot(sick=True), *(SickOrNot(sick=False) for _ in range(healthy))]
        with case(healthy), Pool(seats) as pool:
            for i in range(30):  # as many at a time as there are seats, as an Evaluator has
                futures = [pool.submit(tasks.echo, {"i": i, "seat": n}) for n in range(len(seats))]
                assert [one.result(timeout=10)["seat"] for one in futures] == list(range(len(seats)))
        assert seats[0].ran == 2
        assert all(seat.closed for seat in seats)


def test_the_last_seat_is_kept_and_fails_what_it_cannot_do() -> None:
    with Pool([SickOrNot(sick=True)]) as pool:
        for _ in range(4):
            with pytest.raises(WorkerDied):
                pool.submit(tasks.echo, {}).result(timeout=10)
        assert pool._seats[0].ran == 4 * TRIES  # type: ignore[attr-defined]


def test_a_worker_that_always_dies_is_replaced_every_time() -> None:
    cases = {
        tasks.suicide: "was killed by SIGKILL",
        tasks.vanish: "ended with exit code 7; its last words: the disk is on fire",
    }
    with LocalExecutor(1) as executor:
        for task, words in [*cases.items()] * 2:
            with case(words):
                with pytest.raises(WorkerDied, match=words) as death:
                    executor.submit(task, {}).result(timeout=10)
                assert ("the disk is on fire" in death.value.output) == (task is tasks.vanish)
        assert executor.submit(tasks.echo, {"i": 1}).result(timeout=10)["got"] == {"i": 1}


def test_a_worker_killed_while_idle_is_nobodys_failure() -> None:
    with LocalExecutor(1) as executor:
        for _ in range(10):
            pid = executor.submit(tasks.echo, {}).result(timeout=10)["pid"]
            os.kill(pid, signal.SIGKILL)  # and the next request comes before it is quite dead, or after
            assert executor.submit(tasks.echo, {}).result(timeout=10)["pid"] != pid


def test_children_of_a_dead_worker_neither_hide_its_death_nor_outlive_it(tmp_path: Path) -> None:
    with LocalExecutor(1) as executor:
        future = executor.submit(tasks.leave_a_child, {"file": str(tmp_path / "pid"), "die": True})
        child = read_pid(tmp_path / "pid")
        with pytest.raises(WorkerDied, match="SIGKILL"):
            future.result(timeout=5)
        assert gone_within(1.0, child)


def test_workers_that_cannot_start_fail_their_futures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scalesearch").mkdir()
    (tmp_path / "scalesearch" / "__init__.py").write_text("raise ImportError('half an installation')")
    monkeypatch.syspath_prepend(tmp_path)
    with LocalExecutor(1) as executor:
        for _ in range(2):
            with pytest.raises(WorkerDied, match="exit code 1; its last words: ImportError: half an installation"):
                executor.submit(tasks.echo, {}).result(timeout=10)


Driver: TypeAlias = Callable[[str], tuple[subprocess.Popen[str], list[int]]]
DRIVER = """
import sys, time
sys.path.insert(0, sys.argv[3])
import tasks
from scalesearch.executor import LocalExecutor
from concurrent.futures import wait
executor = LocalExecutor(2)
futures = [executor.submit(getattr(tasks, sys.argv[2]), {"file": f"{sys.argv[1]}/{i}.pid", "seconds": 60, "die": False})
           for i in range(2)]
try:
    wait(futures)
except KeyboardInterrupt:
    alive = [not future.done() for future in futures]
    time.sleep(0.5)
    print(alive + [not future.done() for future in futures], flush=True)
    executor.shutdown(wait=False, cancel_futures=True)
    print([type(future.exception()).__name__ for future in futures], flush=True)
"""


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    """Start a driver in a process of its own that runs a task twice; it and the pids that its tasks write."""
    started: list[subprocess.Popen[str]] = []

    def start(task: str) -> tuple[subprocess.Popen[str], list[int]]:
        process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(tmp_path), task, str(ROOT / "tests")],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            process_group=0,
        )
        started.append(process)
        return process, [read_pid(tmp_path / f"{i}.pid") for i in range(2)]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("task", ["sleep", "leave_a_child"])
def test_workers_end_with_a_driver_that_is_killed(driver: Driver, task: str) -> None:
    process, pids = driver(task)
    assert all(map(is_alive, pids))
    process.kill()
    assert gone_within(2.0, *pids)


def test_ctrl_c_reaches_the_driver_alone_which_then_decides(
    driver: Driver,
) -> None:
    process, pids = driver("sleep")
    os.killpg(process.pid, signal.SIGINT)
    for pid in pids:  # a batch system signals every process of the job
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=10)
    lines = output.splitlines()
    assert json.loads(lines[0].lower()) == [True] * 4, "both were at work before and after"
    assert lines[1] == "['CancelledError', 'CancelledError']"
    assert gone_within(1.0, *pids)
    assert process.returncode == 0


def test_shutdown_lets_everything_submitted_finish() -> None:
    executor = LocalExecutor(1)
    futures = [executor.submit(tasks.sleep, {"seconds": 0.1}) for _ in range(3)]
    executor.shutdown()
    assert all(future.done() and future.exception() is None for future in futures)
    executor.shutdown()
    with pytest.raises(RuntimeError, match="takes no more work"):
        executor.submit(tasks.echo, {})


def test_shutdown_can_cancel_what_has_not_begun(tmp_path: Path) -> None:
    executor = LocalExecutor(1)
    futures = [executor.submit(tasks.sleep, {"seconds": 0.5, "file": str(tmp_path / "0")}) for _ in range(3)]
    read_pid(tmp_path / "0")
    executor.shutdown(cancel_futures=True)
    assert futures[0].exception() is None
    assert futures[1].cancelled()
    assert futures[2].cancelled()


def test_shutdown_can_stop_everything_now(tmp_path: Path) -> None:
    executor = LocalExecutor(2)
    futures = [executor.submit(tasks.sleep, {"file": str(tmp_path / str(i))}) for i in range(3)]
    pids = [read_pid(tmp_path / str(i)) for i in range(2)]
    executor.shutdown(wait=False, cancel_futures=True)
    assert not any(map(is_alive, pids))
    assert isinstance(futures[0].exception(timeout=1), CancelledError)
    assert futures[2].cancelled()


def test_shutdown_without_waiting_lets_the_work_go_on() -> None:
    executor = LocalExecutor(1)
    futures = [executor.submit(tasks.sleep, {"seconds": 0.3}) for _ in range(2)]
    executor.shutdown(wait=False)
    assert not futures[0].done()
    assert all(future.result(timeout=10) for future in futures)


def test_an_error_in_the_with_block_stops_the_workers(tmp_path: Path) -> None:
    with contextlib.suppress(KeyboardInterrupt), LocalExecutor(1) as executor:
        executor.submit(tasks.sleep, {"file": str(tmp_path / "pid")})
        pid = read_pid(tmp_path / "pid")
        raise KeyboardInterrupt
    assert not is_alive(pid)


def test_a_queued_future_can_be_cancelled(tmp_path: Path) -> None:
    with LocalExecutor(1) as executor:
        running = executor.submit(tasks.sleep, {"seconds": 0.5, "file": str(tmp_path / "pid")})
        queued, last = executor.submit(tasks.sleep, {}), executor.submit(tasks.echo, {"i": 1})
        read_pid(tmp_path / "pid")
        assert queued.cancel()
        assert not running.cancel()
        assert last.result(timeout=10)["got"] == {"i": 1}
        assert running.exception() is None


def test_nothing_is_started_for_an_executor_without_work() -> None:
    before = children()
    with LocalExecutor(2):
        assert children() == before
