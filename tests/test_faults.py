"""What goes wrong around a search, made to happen: odd places, servers that hang, files of somebody else's."""

from __future__ import annotations

import contextlib
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Ended, case
from test_released import COMMAND, RELEASED

# MLflow's own: it leaves sqlite connections and sockets to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.usefixtures("unsynced_sqlite", "brief_latencies"),
]
# A study whose ten trainings the ledger has: the command trains nothing, and does all the rest.
WORDS = [word for word in COMMAND.split() if not word.startswith(("tracking=", "workspace="))]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_this_process: None) -> Path:
    """The working directory, with a workspace "w" that has the trainings and no study yet."""
    monkeypatch.chdir(tmp_path)
    lay(Path("w"))
    return tmp_path


def in_a_process(*words: str) -> tuple[int, str]:
    """(exit code, all that it printed) of the command in a process of its own."""
    ended = subprocess.run([sys.executable, "-m", "scalesearch", *words], capture_output=True, text=True, timeout=120)
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.returncode, ended.stdout + ended.stderr


def lay(workspace: Path) -> None:
    shutil.copytree(RELEASED / "workspace" / "evaluations", workspace / "evaluations")


# Places.

ODD = ("a?b=1&c#d", "50%20e 日本,é", "x" * 200)


def test_a_workspace_of_any_name_has_all_its_files_inside(place: Path, command: Callable[..., Ended]) -> None:
    for name in ODD:
        with case(name):
            lay(place / "odd" / name)
            ended = command(*WORDS, f"workspace='odd/{name}'", "--json")
            assert ended.code == 0, ended.output
            assert "MLflow still lacks" not in ended.output
            assert [path.name for path in (place / "odd").iterdir()] == [name]
            made = {path.name for path in (place / "odd" / name).iterdir()}
            assert made >= {"optuna.db", "mlflow.db", "mlartifacts", "studies"}
            assert list((place / "odd" / name).glob("mlartifacts/released/*/artifacts/result.json"))
            shutil.rmtree(place / "odd" / name)


def test_a_moved_workspace_keeps_its_artifacts_with_it(place: Path, command: Callable[..., Ended]) -> None:
    assert command(*WORDS, "workspace=w").code == 0
    before = set((place / "w" / "mlartifacts" / "released").iterdir())
    (place / "w").rename(place / "moved")
    code, output = in_a_process(*WORDS, "workspace=moved")  # MLflow keeps in its process where a run's artifacts are
    assert code == 0, output
    assert not (place / "w").exists(), "it wrote into the old place"
    assert len(set((place / "moved" / "mlartifacts" / "released").iterdir())) > len(before)
    with contextlib.closing(sqlite3.connect(place / "moved" / "mlflow.db")) as database:
        places = [
            urllib.parse.unquote(uri) for (uri,) in database.execute("SELECT artifact_uri FROM runs WHERE name != ''")
        ]
    assert places
    assert all(uri.startswith(f"file://{place}/moved/") for uri in places)


def test_a_printed_command_is_typed_into_a_shell_as_it_stands(place: Path, command: Callable[..., Ended]) -> None:
    import shlex

    lay(place / "my runs; rm")
    ended = command(*WORDS, "workspace='my runs; rm'", "tracking=none")
    (line,) = [line for line in ended.output.splitlines() if "scalesearch sync" in line]
    _, name, *words = shlex.split(line.partition("later: ")[2])
    assert (name, command(name, *words).code) == ("sync", 0)


# What a name may be.


@pytest.mark.parametrize("given", ["0", "false", "[]", "''", "1.5", "{}", "../x", "a/b", "'a\tb'", "x" * 101])
def test_a_name_of_a_study_is_taken_or_refused(place: Path, command: Callable[..., Ended], given: str) -> None:
    ended = command("plan", *[word for word in WORDS[1:] if not word.startswith("study=")], f"study={given}", "--json")
    if given == "0":
        assert ended.answer["study"] == "0"
    else:
        assert ended.code == 2
        assert len(ended.output) < 400


# Secrets.


def test_a_password_of_the_tracking_server_is_written_nowhere(place: Path, command: Callable[..., Ended]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and nobody listens
        where = f"127.0.0.1:{closed.getsockname()[1]}"
        secret = "s3@/cret"
        ended = command(*WORDS, "workspace=w", f"tracking.uri='http://me:{secret}@{where}?token=3cret'")
        assert ended.code == 0, ended.output
        assert "cret" not in ended.output
    texts = [path for path in place.rglob("*") if path.is_file() and b"cret" in path.read_bytes()]
    assert not texts


# Servers.


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """The address of a server that accepts, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        ended, kept = threading.Event(), []

        def accept() -> None:
            while not ended.is_set():
                with contextlib.suppress(TimeoutError):
                    kept.append(server.accept()[0])

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            ended.set()
            thread.join()
            for one in kept:
                one.close()


def test_a_server_that_never_answers_is_let_go_and_all_is_kept(place: Path, command: Callable[..., Ended]) -> None:
    with silent_server() as silent:
        ended = command(*WORDS, "workspace=w", f"tracking.uri={silent}", "--json")
    assert ended.code == 0, ended.output
    assert ended.answer["evaluations"] == {"trained": 0, "reused": 10, "failed": 0}
    assert "MLflow still lacks" in ended.output
    assert "scalesearch sync study=released workspace=w" in ended.output
    code, output = in_a_process("sync", "study=released", "workspace=w")
    assert code == 0, output
