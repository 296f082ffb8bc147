"""What goes wrong around a search, made to happen: odd places, servers that hang, files of somebody else's."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from conftest import Ended, case
from hypothesis import given
from hypothesis import strategies as st
from test_released import COMMAND, RELEASED

from scalesearch.network import checked_yaml
from scalesearch.search import OptunaView

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


# What is read back.


def records(workspace: Path) -> dict[Path, dict[str, Any]]:
    return {path: json.loads(path.read_bytes()) for path in (workspace / "evaluations").glob("*/*.json")}


def test_zeroed_weights_and_edited_records_change_no_answer(place: Path, command: Callable[..., Ended]) -> None:
    for path, record in records(place / "w").items():
        if "test_of" in record["specification"]:
            path.unlink()  # and so the weights, which are not there, are needed
    words = (*WORDS, "workspace=w", "tracking=none", "--json")
    first = command(*words)
    assert first.code == 0, first.output
    assert "are missing" in first.output
    weights = sorted((place / "w" / "evaluations").glob("*/*.safetensors"))
    assert len(weights) == 4, "two seeds of the chosen network and the 1x network"
    (winner,) = [
        path
        for path, record in records(place / "w").items()
        if path.with_suffix(".safetensors") == weights[0] and "digest" in record
    ]
    # The weights of one, the record of another, and all test scores.
    size = weights[1].stat().st_size
    with weights[1].open("r+b") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
        file.seek(header)
        file.write(bytes(size - header))
    winner.write_bytes(re.sub(rb'"val_accuracy":0\.\d+', b'"val_accuracy":0.999', winner.read_bytes()))
    for path, record in records(place / "w").items():
        if "test_of" in record["specification"]:
            path.unlink()
    again = command(*words)
    assert again.code == 0, again.output
    for path in (winner, weights[1]):
        assert str(path.relative_to(place)) in again.output
    measured = ("evaluations", "latency_ms")
    for name in ("chosen", "test_accuracy", "best"):
        one, other = ({k: v for k, v in ended.answer[name].items() if k not in measured} for ended in (first, again))
        assert one == other


@pytest.mark.slow
def test_every_damage_of_a_study_is_one_message_or_mended(place: Path, command: Callable[..., Ended]) -> None:
    words = (*WORDS, "workspace=w", "tracking=none")
    assert command(*words).code == 0
    study = place / "w" / "studies" / "released"
    whole = {path: path.read_bytes() for path in study.iterdir() if path.is_file()}
    damages: dict[str, Callable[[bytes], bytes]] = {
        "torn": lambda content: content[: len(content) // 2],
        "zeroed": lambda content: bytes(len(content)),
        "empty": lambda content: b"",
        "another": lambda content: b'["x", {"y": 1}]',
    }
    for path, content in whole.items():
        for name, damage in damages.items():
            with case(path.name, name):
                path.write_bytes(damage(content))
                for reader in ("status", "report"):
                    ended = command(reader, "study=released", "workspace=w")
                    assert ended.code in (0, 2), ended.output
                    assert ended.code == 0 or len(ended.output.splitlines()) == 1, ended.output
        path.write_bytes(damage(content))
        again = command(*words)
        if path.name == "settings.yaml":  # whose study it is cannot be known
            assert again.code == 2
            assert str(path.relative_to(place)) in again.output
            path.write_bytes(content)
            continue
        assert again.code == 0, again.output
        assert path.read_bytes() == content or path.name in ("environment.json", "result.json", "report.md")
        path.write_bytes(content)


# Optuna's database, a view.


def optuna_trials(workspace: Path) -> dict[str, float | None]:
    """The value of each candidate that is complete; fails where one is there twice."""
    study = optuna.load_study(study_name="released", storage=f"sqlite:///{workspace.absolute() / 'optuna.db'}")
    complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    assert {trial.state.name for trial in study.trials} <= {"COMPLETE", "FAIL"}
    values = {trial.user_attrs["candidate"]: trial.value for trial in complete}
    assert len(values) == len(complete)
    return values


def test_an_optuna_database_that_is_damaged_or_deleted_is_begun_anew(
    place: Path, command: Callable[..., Ended]
) -> None:
    words, path = (*WORDS, "workspace=w", "tracking=none"), place / "w" / "optuna.db"
    assert command(*words).code == 0
    shown, content = optuna_trials(place / "w"), path.read_bytes()
    assert len(shown) == 4
    torn, zeroed = content[: len(content) // 2], content[:100] + bytes(len(content) - 100)
    for number, damaged in enumerate((b"no database has ever looked like this", b"", torn, zeroed, None)):
        with case(number):
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            ended = command(*words) if number % 2 else command("sync", "study=released", "workspace=w")
            assert ended.code == 0, ended.output
            assert optuna_trials(place / "w") == shown
            if damaged is not None:
                assert "optuna.db is damaged (" in ended.output
                assert (place / "w" / "optuna.db.damaged").read_bytes() == damaged


def test_an_optuna_database_that_is_locked_holds_up_no_search(
    place: Path, command: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OptunaView.close, "__kwdefaults__", {"patience": 2.0})
    words, path = (*WORDS, "workspace=w", "tracking=none"), place / "w" / "optuna.db"
    assert command(*words).code == 0
    shown = optuna_trials(place / "w")
    optuna.delete_study(study_name="released", storage=f"sqlite:///{path}")
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        ended = command(*words)
        assert ended.code == 0, ended.output
        assert ended.output.count("optuna.db cannot be used") == 1
        assert "lags: " in ended.output
        assert "later: scalesearch sync study=released" in ended.output
        other.rollback()
    assert command("sync", "study=released", "workspace=w").code == 0
    assert optuna_trials(place / "w") == shown


@pytest.mark.slow
def test_studies_that_start_at_the_same_moment_in_a_fresh_workspace_all_come_to_their_end(place: Path) -> None:
    names = ("one", "two", "three")
    rest = [word for word in WORDS if not word.startswith("study=")]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "scalesearch", *rest, f"study={name}", "workspace=w"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    for one in started:
        _, err = one.communicate(timeout=180)
        assert (one.returncode, "Optuna" in err, "lacks" in err) == (0, False, False), err


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


# Files of somebody else's.


def test_a_link_that_leads_out_of_a_study_is_refused_and_nothing_written_through_it(
    place: Path, command: Callable[..., Ended]
) -> None:
    outside = place / "outside"
    outside.mkdir()
    (outside / "file").write_text("precious")
    assert command(*WORDS, "workspace=w", "tracking=none").code == 0
    study = place / "w" / "studies" / "released"
    for name in ("figures", "variants", "lock", "tracking.jsonl", "tracking.position", "tracking.lock", "round"):
        with case(name):
            aside = place / "aside"
            if (study / name).exists():
                (study / name).rename(aside)
            target = study / "round" if name == "round" else outside if aside.is_dir() else outside / "file"
            (study / name).symlink_to(target)
            for words in ((*WORDS, "workspace=w"), ("sync", "study=released", "workspace=w")):
                ended = command(*words)
                assert ended.code == 2, ended.output
                assert f"{study.relative_to(place) / name} is a link that leads out" in ended.output
            (study / name).unlink()
            if aside.exists():
                aside.rename(study / name)
    assert [path.name for path in outside.iterdir()] == ["file"]
    assert (outside / "file").read_text() == "precious"


def test_a_pipe_in_a_study_is_refused_and_not_waited_for(place: Path, command: Callable[..., Ended]) -> None:
    assert command(*WORDS, "workspace=w", "tracking=none").code == 0
    study = place / "w" / "studies" / "released"
    for name in ("settings.yaml", "evaluations.json", "result.json", "tracking.jsonl", "lock"):
        (study / name).rename(study / "aside") if (study / name).exists() else (study / "aside").touch()
        os.mkfifo(study / name)
        for reader in ("status", "report", "sync"):
            with case(name, reader):
                ended = command(reader, "study=released", "workspace=w")
                assert ended.code == 2
                assert f"{name} is neither a file nor a directory; remove it" in ended.output
        (study / name).unlink()
        (study / "aside").rename(study / name)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in itertools.pairwise("abcdefgh")
)


def test_aliases_that_multiply_are_refused_wherever_yaml_is_read(place: Path, command: Callable[..., Ended]) -> None:
    (place / "mine" / "baseline").mkdir(parents=True)
    (place / "mine" / "baseline" / "bomb.yaml").write_text(BOMB)
    assert command(*WORDS, "workspace=w", "tracking=none").code == 0
    study = place / "w" / "studies" / "released"
    for option in ("--config-dir", "--config-dir="):
        words = ("plan", "baseline=bomb", *([option, "mine"] if option[-1] != "=" else [f"{option}mine"]))
        ended = command(*words)
        assert ended.code == 2
        assert "bomb.yaml cannot be read: its aliases come to more than 100,000 values" in ended.output
    for name, reader in (("settings.yaml", "status"), ("coefficients.yaml", "variants")):
        (study / name).write_text(BOMB)
        ended = command(reader, "study=released", "workspace=w")
        assert ended.code == 2, ended.output
        assert f"{name} is damaged, or was edited (its aliases come to more than" in ended.output
        assert len(ended.output) < 400


@given(st.recursive(st.text("ab", max_size=3), lambda inner: st.lists(inner, max_size=4), max_leaves=30))
def test_yaml_without_a_bomb_is_read_as_it_was(value: object) -> None:
    again = [value, value]  # written with an alias where it is a list
    assert yaml.safe_load(checked_yaml(yaml.safe_dump(again))) == again


LONG = "x" * 2500


def test_no_message_repeats_a_long_input(place: Path, command: Callable[..., Ended]) -> None:
    given = [f"{key}={LONG}" for key in ("study", "workspace", "recipe.epochs", "baseline", "phis", "init", "search")]
    for word in (*given, f"{LONG}=1", f"+{LONG}=1", LONG, f"--{LONG}", f"study='{'x ' * 1250}'", f"experiments={LONG}"):
        with case(word[:40]):
            ended = command("plan", word)
            assert ended.code == 2
            assert len(ended.output) < 1500
    for words in ([LONG], ["reproduce", LONG], ["status", f"study={LONG}"], ["cost", f"experiments={LONG}"]):
        with case(words[0][:40]):
            ended = command(*words)
            assert ended.code == 2
            assert len(ended.output) < 1500


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
