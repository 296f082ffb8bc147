"""SIGINT, SIGTERM, SIGHUP and SIGUSR1, really sent to a command: while it starts, at work, once and five times."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import case
from test_released import COMMAND
from test_run import descendants, gone, mlflow_runs, wait_for

from scalesearch.signals import CODES, Listener, Stopped

pytestmark = [
    pytest.mark.xdist_group("signals"),
    # MLflow's own
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]
# A search that is at its first two trainings for minutes.
LONG = [word for word in COMMAND.split() if not word.startswith(("tracking=", "workspace=", "recipe.epochs="))]
LONG += ["recipe.epochs=2000", "executor.workers=2", "workspace=w"]
KEPT = "what is finished is kept, and the same command goes on from there"


class Started:
    """A command in a process of its own; `err` is what it has written to standard error."""

    def __init__(self, place: Path, *words: str, nohup: bool = False) -> None:
        self._err = place / f"err-{time.monotonic_ns()}"
        with self._err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "scalesearch", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=err,
                cwd=place,
                start_new_session=True,
                # set in either case: the suite may itself have been started under nohup
                preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL) and None,
            )

    def ended(self, seconds: float = 60) -> tuple[int, str]:
        code = self.process.wait(seconds)
        err = self._err.read_text()
        assert "Traceback" not in err, err
        return code, err


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """Start a command; none outlives the test."""
    started: list[Started] = []

    def begin(*words: str, nohup: bool = False) -> Started:
        started.append(Started(tmp_path, *words, nohup=nohup))
        return started[-1]

    yield begin
    for one in started:
        one.process.kill()
        one.process.wait()


def at_work(started: Started, place: Path) -> dict[int, tuple[str, str]]:
    """Wait until both trainings are under way; the workers."""

    def both() -> bool:
        assert started.process.poll() is None, started.ended()
        return len(list((place / "w" / "evaluations").glob("*/*.lock"))) == 2

    wait_for(both, "two trainings")
    time.sleep(0.5)
    return descendants(started.process.pid)


def interrupted() -> None:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    except BaseException:
        raise RuntimeError("release unlocked lock") from None


def test_a_stop_that_a_library_makes_an_error_of_is_a_stop() -> None:
    listener = Listener()
    with pytest.raises(Stopped) as stopped, listener.listening(), listener.working():
        interrupted()
    assert stopped.value.code == 143
    with pytest.raises(ValueError, match="of its own"), Listener().working():
        raise ValueError("of its own")


@pytest.mark.parametrize("number", CODES, ids=lambda number: signal.Signals(number).name)
def test_a_signal_while_a_command_starts_ends_it_with_one_line(
    tmp_path: Path, start: Callable[..., Started], number: signal.Signals
) -> None:
    for delay in (0.3, 0.8, 1.6):
        with case(delay):
            one = start(*LONG)
            time.sleep(delay)
            one.process.send_signal(number)
            code, err = one.ended()
            assert code == CODES[number]
            assert err.splitlines()[-1].endswith(KEPT)
            assert len(err.splitlines()) == 1
    assert not (tmp_path / "w" / "studies").exists()


def test_a_signal_at_work_closes_all_and_mlflow_shows_it(tmp_path: Path, start: Callable[..., Started]) -> None:
    for number in (signal.SIGUSR1, signal.SIGHUP):
        with case(number):
            one = start(*LONG)
            workers = at_work(one, tmp_path)
            for pid in workers:  # a batch system sends it to every process of the job
                os.kill(pid, number)
            time.sleep(0.2)
            assert not gone(workers)
            one.process.send_signal(number)
            code, err = one.ended()
            assert code == 143
            assert err.splitlines()[-1] == f"scalesearch: terminated; {KEPT}"
            wait_for(lambda family=workers: gone(family), "no orphan", 10)
            assert not list((tmp_path / "w" / "evaluations").glob("*/*.lock"))
    end = start("sync", "study=released", "workspace=w")
    assert end.ended()[0] == 0
    runs = mlflow_runs(f"sqlite:///{tmp_path / 'w' / 'mlflow.db'}", "released")
    assert [run.info.status for run in runs if run.data.tags["scalesearch.level"] == "command"] == ["KILLED"] * 2


def test_ctrl_c_twice_and_five_times_ends_without_a_traceback(tmp_path: Path, start: Callable[..., Started]) -> None:
    for times, pause in ((2, 0.3), (5, 0.05)):
        with case(times, pause):
            one = start(*LONG, "tracking=none")
            workers = at_work(one, tmp_path)
            for _ in range(times):
                if one.process.poll() is None:
                    one.process.send_signal(signal.SIGINT)
                    time.sleep(pause)
            code, err = one.ended()
            assert code == 130
            assert err.splitlines()[-1] == f"scalesearch: interrupted; {KEPT}"
            wait_for(lambda family=workers: gone(family), "no orphan", 10)


def test_what_nohup_ignores_stays_ignored(tmp_path: Path, start: Callable[..., Started]) -> None:
    one = start(*LONG, "tracking=none", nohup=True)
    one.process.send_signal(signal.SIGHUP)
    at_work(one, tmp_path)
    one.process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert one.process.poll() is None
    one.process.send_signal(signal.SIGTERM)
    assert one.ended()[0] == 143


LOST = """if True:
    import os, signal, sys, time
    from scalesearch.signals import Listener, Stopped
    class Heavy:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(1000): pass
            print("deleted", flush=True)
    listener = Listener()
    with listener.listening():
        try:
            with listener.working():
                heavy = Heavy()
                del heavy
                time.sleep(30)
        except Stopped as stopped:
            listener.done(stopped.code)
            os.kill(os.getpid(), signal.SIGINT)
    sys.exit(1)
"""


def test_a_signal_that_comes_where_nothing_can_be_raised_is_raised_again() -> None:
    ended = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, timeout=20)
    assert ended.returncode == 143, "and one after the end changes neither the code nor the output"
    assert "Traceback" not in ended.stderr
