"""Executors that run, and what they refuse."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from pathlib import Path
from typing import Any

import pytest
import tasks
import yaml
from conftest import case
from tasks import read_pid

from scalesearch.checks import parse
from scalesearch.executor import (
    EXECUTORS,
    EvaluationFailed,
    LocalExecutor,
    RayExecutor,
    WorkerDied,
    default_workers,
)

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")


def test_every_result_reaches_its_own_future_under_load() -> None:
    with LocalExecutor(2) as executor:
        futures = [executor.submit(tasks.echo, {"i": i, "deep": [{"x": None}]}) for i in range(200)]
        results = [future.result(timeout=30) for future in futures]
    assert [result["got"] for result in results] == [{"i": i, "deep": [{"x": None}]} for i in range(200)]
    pids = {result["pid"] for result in results}
    assert 1 <= len(pids) <= 2, "workers are used again"
    assert os.getpid() not in pids


def test_it_is_an_executor_as_the_standard_library_has_them() -> None:
    with LocalExecutor(2) as executor:
        assert isinstance(executor, Executor)
        assert executor.slots == 2
        quick, slow = executor.submit(tasks.echo, {}), executor.submit(tasks.sleep, {"seconds": 0.5})
        done, pending = wait([quick, slow], return_when=FIRST_COMPLETED)
        assert (done, pending) == ({quick}, {slow})
        assert [result["got"] for result in executor.map(tasks.echo, [{"i": 1}, {"i": 2}])] == [{"i": 1}, {"i": 2}]


def test_two_workers_work_at_the_same_time(tmp_path: Path) -> None:
    with LocalExecutor(2) as executor:
        futures = [executor.submit(tasks.sleep, {"file": str(tmp_path / f"{i}"), "seconds": 1}) for i in range(2)]
        pids = {read_pid(tmp_path / "0"), read_pid(tmp_path / "1")}
        assert {future.result()["pid"] for future in futures} == pids
        assert len(pids) == 2


def test_prints_and_reads_of_a_function_do_not_disturb() -> None:
    with LocalExecutor(1) as executor:
        assert executor.submit(tasks.chatter, {}).result(timeout=10) == {"read": ""}
        assert executor.submit(tasks.echo, {"i": 1}).result(timeout=10)["got"] == {"i": 1}
        assert len(executor.submit(tasks.flood, {"size": 3_000_000}).result(timeout=10)["long"]) == 3_000_000
        big = {"text": "z" * 3_000_000}
        assert executor.submit(tasks.echo, big).result(timeout=10)["got"] == big


def test_what_workers_print_is_shown_only_when_asked(capfd: pytest.CaptureFixture[str]) -> None:
    with LocalExecutor(1) as executor:
        executor.submit(tasks.chatter, {}).result(timeout=10)
    assert capfd.readouterr() == ("", "")
    with LocalExecutor(1, echo=True) as executor:
        executor.submit(tasks.chatter, {}).result(timeout=10)
    assert {"not json", "nor this", "from a child"} <= set(capfd.readouterr().err.splitlines())


def test_workers_have_the_threads_and_the_allocator_of_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "12345")
    names = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"]
    with LocalExecutor(1, threads=3) as executor:
        result = executor.submit(tasks.environment, {"names": names}).result(timeout=10)
    assert list(result.values()) == ["0", "12345", "3", "3"]


def test_workers_get_the_devices_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    cases: list[tuple[str | None, list[str], list[str]]] = [  # what the driver sees, is given, and its workers see
        (None, ["cuda:0", "cuda:0", "cuda:1"], ["0", "0", "1", "0"]),
        ("2,5", ["cuda:0", "cuda:1"], ["2", "5", "2", "5"]),
        ("GPU-aa", ["cuda:0"], ["GPU-aa"] * 4),
        ("3", [], ["3"] * 4),
    ]
    for seen, devices, expected in cases:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if seen is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
        with case(seen, devices), LocalExecutor(4, devices=devices) as executor:
            # all four are busy at once only if each has its own worker
            futures = [executor.submit(tasks.sleep, {"seconds": 0.4}) for _ in range(4)]
            futures += [executor.submit(tasks.environment, {"names": ["CUDA_VISIBLE_DEVICES"]}) for _ in range(40)]
            found = {future.result(timeout=20)["CUDA_VISIBLE_DEVICES"] for future in futures[4:]}
            assert found <= set(expected)
            seats: list[Any] = [*executor._seats]
            assert [seat._environment.get("CUDA_VISIBLE_DEVICES") for seat in seats] == expected


def test_a_function_must_be_importable_by_name() -> None:
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


def test_a_value_out_of_range_is_refused_by_its_key() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"workers": 0}, "executor.workers is 0; it must be null or a whole number from 1 to 4096"),
        ({"threads": 0}, "executor.threads is 0; it must be a whole number from 1 to 1024"),
        ({"devices": ["gpu0"]}, r"executor.devices\[0\] is 'gpu0'; it must be a GPU such as 'cuda:0'"),
        ({"devices": ["cuda:0", "cuda:1\n"]}, r"executor.devices\[1\] is 'cuda:1\\n'"),
    ]
    for arguments, words in cases:
        with case(arguments), pytest.raises(ValueError, match=words):
            LocalExecutor(**arguments)
    for gpus, words in ((-1, "from 0 to 1024"), (1.5, "a fraction of one or a whole number")):
        with case(gpus), pytest.raises(ValueError, match=rf"executor.gpus_per_trial is {gpus}; it must be .*{words}"):
            RayExecutor(gpus_per_trial=gpus)


def test_a_device_that_the_driver_does_not_see_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    with pytest.raises(ValueError, match="'cuda:1', but CUDA_VISIBLE_DEVICES='4' shows 1"):
        LocalExecutor(1, devices=["cuda:0", "cuda:1"])


def test_default_workers_are_the_usable_cores() -> None:
    assert 1 <= default_workers() <= len(os.sched_getaffinity(0))
    assert LocalExecutor().slots == default_workers()
    assert LocalExecutor(threads=1024).slots == 1


def test_every_config_names_an_executor_and_has_its_settings() -> None:
    for path in (ROOT / "conf" / "executor").glob("*.yaml"):
        values = yaml.safe_load(path.read_text())
        with case(path.stem):
            assert values.pop("name") == path.stem
            assert dataclasses.asdict(parse(EXECUTORS[path.stem].Settings, values)) == values
    assert sorted(EXECUTORS) == sorted(path.stem for path in (ROOT / "conf" / "executor").glob("*.yaml"))


MINE = """
from scalesearch.checks import checked
from scalesearch.executor import Pool
from scalesearch.executor.worker import answer

class Here:
    def run(self, name, specification): return answer(name, specification)
    def close(self): pass
    def kill(self): pass

class Mine(Pool):
    @checked("executor", kw_only=True)
    class Settings(Pool.Settings):
        greeting: str

    def __init__(self, workers, *, threads, greeting):
        super().__init__([Here()] * workers)
        self.greeting = greeting

def double(specification):
    return {"twice": 2 * specification["number"]}
"""
WITH_MINE = """
import dataclasses, my_package
from scalesearch.checks import parse
from scalesearch.executor import EXECUTORS
settings = parse(EXECUTORS["mine"].Settings, {"workers": 2, "threads": 1, "greeting": "hello"})
with EXECUTORS["mine"](**dataclasses.asdict(settings)) as executor:
    result = executor.submit(my_package.double, {"number": 21}).result()
    print(sorted(EXECUTORS), executor.greeting, executor.slots, result)
"""


def test_an_executor_of_another_package_is_found_by_its_entry_point(tmp_path: Path) -> None:
    """In a process of its own: what is installed is looked up once."""
    (tmp_path / "my_package.py").write_text(MINE)
    metadata = tmp_path / "my_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[scalesearch.executors]\nmine = my_package:Mine\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    words = [sys.executable, "-c", WITH_MINE]
    ended = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert ended.stdout == "['local', 'mine', 'ray'] hello 2 {'twice': 42}\n", ended.stderr


def test_a_missing_ray_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"needs the ray package: pip install 'scalesearch\[ray\]'"):
        RayExecutor(1)


@pytest.mark.ray
def test_ray_runs_fails_dies_and_refuses_as_the_local_executor(monkeypatch: pytest.MonkeyPatch) -> None:
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
        with pytest.raises(OSError, match="needs 1 cores and 1 GPUs, which no machine has; the cluster has 2 cores"):
            RayExecutor(1, gpus_per_trial=1)  # joins the Ray that is there, and leaves it running
        sleeper = executor.submit(tasks.sleep, {})
        time.sleep(0.5)
        executor.shutdown(wait=False, cancel_futures=True)
        assert isinstance(sleeper.exception(timeout=10), CancelledError)
