from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from scalesearch.executor import (
    EXECUTORS,
    EvaluationFailed,
    LocalExecutor,
    RayExecutor,
    WorkerDied,
    default_workers,
)

ROOT = Path(__file__).parent.parent
TASKS = '''
import os, subprocess, sys, time
from pathlib import Path

def echo(specification):
    return {"got": specification, "pid": os.getpid()}

def sleep(specification):
    if "file" in specification:
        Path(specification["file"]).write_text(str(os.getpid()))
    time.sleep(specification.get("seconds", 60))
    return {"pid": os.getpid()}

def chatter(specification):
    print("not json")
    print("nor this", file=sys.stderr)
    os.write(1, b'{"result": "forged"}\\n')
    subprocess.run(["echo", "from a child"], check=True)
    return {"read": sys.stdin.read()}

def flood(specification):
    print("x" * 1_000_000)
    return {"long": "y" * specification["size"]}

def fail(specification):
    raise KeyError("no such block") if specification.get("silent") is None else RuntimeError

def leave(specification):
    sys.exit(3)

def vanish(specification):
    print("the disk is on fire", file=sys.stderr)
    os._exit(7)

def suicide(specification):
    os.kill(os.getpid(), 9)

def not_json(specification):
    return {"loss": float("nan")}

def environment(specification):
    return {name: os.environ.get(name) for name in specification["names"]}

def leave_a_child(specification):
    """A child like a data loader's, which keeps every descriptor of the worker open."""
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    Path(specification["file"]).write_text(str(pid))
    if specification["die"]:
        os.kill(os.getpid(), 9)
    time.sleep(60)
'''

DRIVER = """
import sys, time
sys.path.insert(0, sys.argv[1])
import scalesearch_test_tasks as tasks
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


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A module that workers can import only because they look where the driver looks."""
    directory = tmp_path_factory.mktemp("tasks")
    (directory / "scalesearch_test_tasks.py").write_text(TASKS)
    sys.path.insert(0, str(directory))
    importlib.invalidate_caches()
    yield importlib.import_module("scalesearch_test_tasks")
    sys.path.remove(str(directory))
    del sys.modules["scalesearch_test_tasks"]


@pytest.fixture
def driver(tasks: ModuleType, tmp_path: Path) -> Iterator[Callable[[str], tuple[subprocess.Popen[str], list[int]]]]:
    """Start a driver in a process of its own that runs a task twice; it and the pids that its tasks write."""
    started: list[subprocess.Popen[str]] = []

    def start(task: str) -> tuple[subprocess.Popen[str], list[int]]:
        assert tasks.__file__ is not None
        (tmp_path / "scalesearch_test_tasks.py").write_text(Path(tasks.__file__).read_text())
        process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(tmp_path), task],
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


def children() -> set[int]:
    """The child processes of this one, zombies among them."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if stat.read_text().rpartition(")")[2].split()[1] == str(os.getpid()):
                found.add(int(stat.parent.name))
    return found


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    before = children()
    yield
    end = time.monotonic() + 3.0  # after shutdown(wait=False) workers are buried in the background
    while children() - before and time.monotonic() < end:
        time.sleep(0.02)
    assert children() <= before, "workers or zombies"


# ---------------------------------------------------------------------------------------------------------- results


def test_every_result_reaches_its_own_future_under_load(tasks: ModuleType) -> None:
    with LocalExecutor(2) as executor:
        futures = [executor.submit(tasks.echo, {"i": i, "deep": [{"x": None}]}) for i in range(200)]
        results = [future.result(timeout=30) for future in futures]
    assert [result["got"] for result in results] == [{"i": i, "deep": [{"x": None}]} for i in range(200)]
    pids = {result["pid"] for result in results}
    assert 1 <= len(pids) <= 2, "workers are used again"
    assert os.getpid() not in pids


def test_it_is_an_executor_as_the_standard_library_has_them(tasks: ModuleType) -> None:
    with LocalExecutor(2) as executor:
        assert isinstance(executor, Executor)
        assert executor.slots == 2
        quick, slow = executor.submit(tasks.echo, {}), executor.submit(tasks.sleep, {"seconds": 0.5})
        done, pending = wait([quick, slow], return_when=FIRST_COMPLETED)
        assert (done, pending) == ({quick}, {slow})
        assert [result["got"] for result in executor.map(tasks.echo, [{"i": 1}, {"i": 2}])] == [{"i": 1}, {"i": 2}]


def test_two_workers_work_at_the_same_time(tasks: ModuleType, tmp_path: Path) -> None:
    with LocalExecutor(2) as executor:
        futures = [executor.submit(tasks.sleep, {"file": str(tmp_path / f"{i}"), "seconds": 1}) for i in range(2)]
        pids = {read_pid(tmp_path / "0"), read_pid(tmp_path / "1")}
        assert {future.result()["pid"] for future in futures} == pids
        assert len(pids) == 2


def test_prints_and_reads_of_a_function_do_not_disturb(tasks: ModuleType) -> None:
    with LocalExecutor(1) as executor:
        assert executor.submit(tasks.chatter, {}).result(timeout=10) == {"read": ""}
        assert executor.submit(tasks.echo, {"i": 1}).result(timeout=10)["got"] == {"i": 1}
        assert len(executor.submit(tasks.flood, {"size": 3_000_000}).result(timeout=10)["long"]) == 3_000_000
        big = {"text": "z" * 3_000_000}
        assert executor.submit(tasks.echo, big).result(timeout=10)["got"] == big


def test_what_workers_print_is_shown_only_when_asked(tasks: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    with LocalExecutor(1) as executor:
        executor.submit(tasks.chatter, {}).result(timeout=10)
    assert capfd.readouterr() == ("", "")
    with LocalExecutor(1, echo=True) as executor:
        executor.submit(tasks.chatter, {}).result(timeout=10)
    assert {"not json", "nor this", "from a child"} <= set(capfd.readouterr().err.splitlines())


def test_workers_have_the_threads_and_the_allocator_of_a_training(
    tasks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "12345")
    names = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"]
    with LocalExecutor(1, threads=3) as executor:
        result = executor.submit(tasks.environment, {"names": names}).result(timeout=10)
    assert list(result.values()) == ["0", "12345", "3", "3"]


@pytest.mark.parametrize(
    ("driver_sees", "devices", "workers_see"),
    [
        (None, ["cuda:0", "cuda:0", "cuda:1"], ["0", "0", "1", "0"]),
        ("2,5", ["cuda:0", "cuda:1"], ["2", "5", "2", "5"]),
        ("GPU-aa", ["cuda:0"], ["GPU-aa"] * 4),
        ("3", [], ["3"] * 4),
    ],
)
def test_workers_get_the_devices_in_turn(
    tasks: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    driver_sees: str | None,
    devices: list[str],
    workers_see: list[str],
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if driver_sees is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", driver_sees)
    with LocalExecutor(4, devices=devices) as executor:
        # all four are busy at once only if each has its own worker
        futures = [executor.submit(tasks.sleep, {"seconds": 0.4}) for _ in range(4)]
        futures += [executor.submit(tasks.environment, {"names": ["CUDA_VISIBLE_DEVICES"]}) for _ in range(40)]
        seen = {future.result(timeout=20)["CUDA_VISIBLE_DEVICES"] for future in futures[4:]}
    assert seen <= set(workers_see)
    assert [seat._environment.get("CUDA_VISIBLE_DEVICES") for seat in executor._pool._seats] == workers_see  # type: ignore[attr-defined]


# --------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("task", "specification", "words"),
    [
        ("fail", {}, "KeyError: 'no such block'"),
        ("fail", {"silent": True}, "RuntimeError"),
        ("leave", {}, "SystemExit: 3"),
        ("not_json", {}, "ValueError: not plain JSON: result.loss is nan; numbers must be finite"),
    ],
)
def test_an_exception_arrives_in_words_and_the_worker_lives_on(
    tasks: ModuleType, task: str, specification: dict[str, Any], words: str
) -> None:
    with LocalExecutor(1) as executor:
        before = executor.submit(tasks.echo, {}).result(timeout=10)["pid"]
        with pytest.raises(EvaluationFailed) as failure:
            executor.submit(getattr(tasks, task), specification).result(timeout=10)
        assert str(failure.value) == words
        assert "Traceback" in failure.value.traceback
        assert executor.submit(tasks.echo, {}).result(timeout=10)["pid"] == before


def test_a_killed_worker_fails_only_what_it_was_doing(tasks: ModuleType, tmp_path: Path) -> None:
    with LocalExecutor(2) as executor:
        victim = executor.submit(tasks.sleep, {"file": str(tmp_path / "victim")})
        other = executor.submit(tasks.sleep, {"seconds": 1})
        later = [executor.submit(tasks.echo, {"i": i}) for i in range(4)]
        pid = read_pid(tmp_path / "victim")
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerDied, match=rf"worker process {pid} was killed by SIGKILL .*memory"):
            victim.result(timeout=5)
        assert other.result(timeout=10)["pid"] != pid
        assert [future.result(timeout=10)["got"] for future in later] == [{"i": i} for i in range(4)]


@pytest.mark.parametrize(
    ("task", "words"),
    [("suicide", "was killed by SIGKILL"), ("vanish", "ended with exit code 7; its last words: the disk is on fire")],
)
def test_a_worker_that_always_dies_is_replaced_every_time(tasks: ModuleType, task: str, words: str) -> None:
    with LocalExecutor(1) as executor:
        for _ in range(3):
            with pytest.raises(WorkerDied, match=words) as death:
                executor.submit(getattr(tasks, task), {}).result(timeout=10)
        assert ("the disk is on fire" in death.value.output) == (task == "vanish")
        assert executor.submit(tasks.echo, {"i": 1}).result(timeout=10)["got"] == {"i": 1}


def test_a_worker_killed_while_idle_is_nobodys_failure(tasks: ModuleType) -> None:
    with LocalExecutor(1) as executor:
        for _ in range(10):
            pid = executor.submit(tasks.echo, {}).result(timeout=10)["pid"]
            os.kill(pid, signal.SIGKILL)  # and the next question comes before it is quite dead, or after
            assert executor.submit(tasks.echo, {}).result(timeout=10)["pid"] != pid


def test_children_of_a_dead_worker_neither_hide_its_death_nor_outlive_it(tasks: ModuleType, tmp_path: Path) -> None:
    with LocalExecutor(1) as executor:
        future = executor.submit(tasks.leave_a_child, {"file": str(tmp_path / "pid"), "die": True})
        child = read_pid(tmp_path / "pid")
        with pytest.raises(WorkerDied, match="SIGKILL"):
            future.result(timeout=5)
        assert gone_within(1.0, child)


def test_workers_that_cannot_start_fail_their_futures(
    tasks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scalesearch").mkdir()
    (tmp_path / "scalesearch" / "__init__.py").write_text("raise ImportError('half an installation')")
    monkeypatch.syspath_prepend(tmp_path)
    with LocalExecutor(1) as executor:
        for _ in range(2):
            with pytest.raises(WorkerDied, match="exit code 1; its last words: ImportError: half an installation"):
                executor.submit(tasks.echo, {}).result(timeout=10)


# ------------------------------------------------------------------------------------------------------------ ends


@pytest.mark.parametrize("task", ["sleep", "leave_a_child"])
def test_workers_end_with_a_driver_that_is_killed(
    driver: Callable[[str], tuple[subprocess.Popen[str], list[int]]], task: str
) -> None:
    process, pids = driver(task)
    assert all(map(is_alive, pids))
    process.kill()
    assert gone_within(2.0, *pids)


def test_ctrl_c_reaches_the_driver_alone_which_then_decides(
    driver: Callable[[str], tuple[subprocess.Popen[str], list[int]]],
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


def test_shutdown_lets_everything_submitted_finish(tasks: ModuleType) -> None:
    executor = LocalExecutor(1)
    futures = [executor.submit(tasks.sleep, {"seconds": 0.1}) for _ in range(3)]
    executor.shutdown()
    assert all(future.done() and future.exception() is None for future in futures)
    executor.shutdown()
    with pytest.raises(RuntimeError, match="takes no more work"):
        executor.submit(tasks.echo, {})


def test_shutdown_can_cancel_what_has_not_begun(tasks: ModuleType, tmp_path: Path) -> None:
    executor = LocalExecutor(1)
    futures = [executor.submit(tasks.sleep, {"seconds": 0.5, "file": str(tmp_path / "0")}) for _ in range(3)]
    read_pid(tmp_path / "0")
    executor.shutdown(cancel_futures=True)
    assert futures[0].exception() is None
    assert futures[1].cancelled()
    assert futures[2].cancelled()


def test_shutdown_can_stop_everything_now(tasks: ModuleType, tmp_path: Path) -> None:
    executor = LocalExecutor(2)
    futures = [executor.submit(tasks.sleep, {"file": str(tmp_path / str(i))}) for i in range(3)]
    pids = [read_pid(tmp_path / str(i)) for i in range(2)]
    executor.shutdown(wait=False, cancel_futures=True)
    assert not any(map(is_alive, pids))
    assert isinstance(futures[0].exception(timeout=1), CancelledError)
    assert futures[2].cancelled()


def test_shutdown_without_waiting_lets_the_work_go_on(tasks: ModuleType) -> None:
    executor = LocalExecutor(1)
    futures = [executor.submit(tasks.sleep, {"seconds": 0.3}) for _ in range(2)]
    executor.shutdown(wait=False)
    assert not futures[0].done()
    assert all(future.result(timeout=10) for future in futures)


def test_an_error_in_the_with_block_stops_the_workers(tasks: ModuleType, tmp_path: Path) -> None:
    with contextlib.suppress(KeyboardInterrupt), LocalExecutor(1) as executor:
        executor.submit(tasks.sleep, {"file": str(tmp_path / "pid")})
        pid = read_pid(tmp_path / "pid")
        raise KeyboardInterrupt
    assert not is_alive(pid)


def test_a_queued_future_can_be_cancelled(tasks: ModuleType, tmp_path: Path) -> None:
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


# --------------------------------------------------------------------------------------------------- what is refused


def test_a_function_must_be_importable_by_name(tasks: ModuleType) -> None:
    def inner(specification: dict[str, Any]) -> dict[str, Any]:
        return specification

    functions: list[Any] = [inner, lambda specification: specification, "echo", tasks.echo.__call__]
    wrong: list[tuple[dict[str, Any], str]] = [({"x": float("nan")}, "x is nan"), ({"x": Path()}, "x is a PosixPath")]
    with LocalExecutor(1) as executor:
        for function in functions:
            with pytest.raises(ValueError, match="cannot be imported by name; give a function at the top level"):
                executor.submit(function, {})
        for specification, words in wrong:
            with pytest.raises(ValueError, match=words):
                executor.submit(tasks.echo, specification)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"workers": 0}, "executor.workers must be 1 or more, or null"),
        ({"threads": 0}, "executor.threads must be 1 or more, got 0"),
        ({"devices": ["gpu0"]}, "'gpu0'; a device is written like 'cuda:0'"),
    ],
)
def test_wrong_sizes_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LocalExecutor(**arguments)


def test_a_device_that_the_driver_does_not_see_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    with pytest.raises(ValueError, match="'cuda:1', but CUDA_VISIBLE_DEVICES='4' shows 1"):
        LocalExecutor(1, devices=["cuda:0", "cuda:1"])


def test_default_workers_are_the_usable_cores() -> None:
    assert 1 <= default_workers() <= len(os.sched_getaffinity(0))
    assert LocalExecutor().slots == default_workers()
    assert LocalExecutor(threads=10_000).slots == 1


@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "executor").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_names_an_executor_and_its_arguments(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    assert config["name"] == path.stem
    wanted = set(EXECUTORS[config.pop("name")].__init__.__code__.co_varnames[1:])
    assert set(config) <= wanted
    if path.stem == "local":
        EXECUTORS["local"](**config).shutdown()


def test_a_missing_ray_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"needs the ray package: pip install 'scalesearch\[ray\]'"):
        RayExecutor(1)


# --------------------------------------------------------------------------------------------------------------- ray


@pytest.mark.ray
def test_ray_runs_fails_dies_and_refuses_as_the_local_executor(
    tasks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else it writes a token into the home folder
    with RayExecutor(2) as executor:
        assert executor.slots == 2
        futures: list[Future[dict[str, Any]]] = [executor.submit(tasks.echo, {"i": i}) for i in range(4)]
        assert [future.result(timeout=60)["got"] for future in futures] == [{"i": i} for i in range(4)]
        with pytest.raises(EvaluationFailed, match="KeyError: 'no such block'"):
            executor.submit(tasks.fail, {}).result(timeout=60)
        with pytest.raises(WorkerDied, match="the Ray worker died: "):
            executor.submit(tasks.suicide, {}).result(timeout=60)
        names = ["OMP_NUM_THREADS", "MALLOC_MMAP_MAX_"]
        seen = executor.submit(tasks.environment, {"names": names}).result(timeout=60)
        assert seen == {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_MAX_": "0"}
        with pytest.raises(OSError, match="asks for 1 cores and 1 GPUs, which no machine has; the cluster has 2 cores"):
            RayExecutor(1, gpus_per_trial=1)  # joins the Ray that is there, and leaves it running
        sleeper = executor.submit(tasks.sleep, {})
        time.sleep(0.5)
        executor.shutdown(wait=False, cancel_futures=True)
        assert isinstance(sleeper.exception(timeout=10), CancelledError)
