"""The spool and its replay: whatever ends in between, MLflow gets everything once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tracked import (
    CANDIDATES,
    SEEDS,
    Place,
    Server,
    client_of,
    free_port,
    logged,
    position,
    record,
    run_of,
    wait_for,
    without_times,
)

from scalesearch import tracking
from scalesearch.tracking import sync
from scalesearch.tracking.events import Writer
from scalesearch.tracking.replay import Replay

# MLflow's own: it leaves sqlite connections and sockets to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.xdist_group("tracking"),  # they share a database
    pytest.mark.usefixtures("unsynced_sqlite"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = Server(tmp_path_factory.mktemp("server"))
    found.start()
    yield found
    found.kill()


def test_replaying_all_again_changes_nothing(place: Place) -> None:
    tracker = place.tracker("small")
    record(tracker)
    assert tracker.close() is None
    tracked = logged(place.uri, "small")
    spool = place.directory("small") / "tracking.jsonl"
    events = len(spool.read_text().splitlines())
    assert tracking.sync(**place.settings("small")) == 0
    assert tracking.sync(**place.settings("small"), rebuild=True) == events
    (place.directory("small") / "tracking.position").unlink()
    assert tracking.sync(**place.settings("small")) == events
    assert logged(place.uri, "small") == tracked


def test_runs_of_a_killed_command_are_ended(place: Place) -> None:
    first = place.tracker("interrupted")
    first.start_run("run:1", name="run")
    first.start_run("run:1:c00", name="c00", parent="run:1")
    first.start_run("run:1:c01", name="c01", parent="run:1")
    first.end_run("run:1:c01")
    assert first.close() is None
    assert {run["status"] for run in logged(place.uri, "interrupted").values()} == {"RUNNING", "FINISHED"}

    second = place.tracker("interrupted")
    second.start_run("run:2", name="run")
    assert second.close() is None
    states = {run_id: run["status"] for run_id, run in logged(place.uri, "interrupted").items()}
    assert states == {"run:1": "KILLED", "run:1:c00": "KILLED", "run:1:c01": "FINISHED", "run:2": "RUNNING"}


def test_a_line_torn_by_a_kill_harms_no_other(place: Place) -> None:
    first = place.tracker("torn", replay=False)
    first.start_run("run:1", name="run")
    first.close()
    with (place.directory("torn") / "tracking.jsonl").open("ab") as spool:
        spool.write(b'{"event": "metrics", "run": "run:1", "ti')
    second = place.tracker("torn")
    second.start_run("run:2", name="run")
    assert second.close() is None
    assert set(logged(place.uri, "torn")) == {"run:1", "run:2"}


def test_what_mlflow_does_not_take_is_told_and_the_rest_arrives(place: Place, tmp_path: Path) -> None:
    tracker = place.tracker("refused")
    tracker.start_run("run:1", name="run", params={"a": 1})
    tracker.log_params("run:1", {"a": 2})
    tracker.log_metrics("run:1", {"right": 1.0})
    tracker.log_metrics("run:1", {"wrong=": 1.0})
    tracker.log_metrics("run:1", {"right": 2.0}, step=1)
    tracker.log_artifact("run:1", tmp_path / "never_written")
    tracker.end_run("run:1")
    sentence = tracker.close()
    assert sentence is not None
    assert sentence.startswith("MLflow did not take 3 events, the first: params of run:1: ")
    run = logged(place.uri, "refused")["run:1"]
    assert [value for _, _, value, _ in run["points"]] == ["1.0", "2.0"]
    assert run["status"] == "FINISHED"


def test_without_replay_mlflow_learns_of_it_by_sync(place: Place) -> None:
    tracker = place.tracker("later", replay=False)
    record(tracker)
    assert tracker.close() is None
    assert client_of(place.uri).get_experiment_by_name("later") is None
    assert tracking.sync(**place.settings("later")) > 0
    assert len(logged(place.uri, "later")) == 1 + CANDIDATES * (1 + SEEDS)
    with pytest.raises(ValueError, match="nothing was recorded for 'never'"):
        tracking.sync(**place.settings("never"))


def test_one_process_at_a_time_replays_a_study(place: Place) -> None:
    tracker = place.tracker("shared")
    tracker.start_run("run:1", name="run")
    wait_for(lambda: position(place.directory("shared")) > 0)
    with pytest.raises(OSError, match="another process is sending 'shared'"):
        tracking.sync(**place.settings("shared"))
    assert tracker.close() is None
    assert tracking.sync(**place.settings("shared")) == 0


def test_a_deleted_experiment_is_named(place: Place) -> None:
    tracker = place.tracker("deleted")
    tracker.start_run("run:1", name="run")
    assert tracker.close() is None
    client = client_of(place.uri)
    client.delete_experiment(client.get_experiment_by_name("deleted").experiment_id)
    again = place.tracker("deleted")
    again.end_run("run:1")
    sentence = again.close()
    assert sentence is not None
    assert "experiment 'deleted' was deleted in MLflow; restore it there" in sentence


def test_a_new_database_gets_everything_and_two_studies_may_create_it_at_once(place: Place, tmp_path: Path) -> None:
    """Also that a command's screen stays clean, and that nothing is left to say."""
    code = """if True:
        import sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[3])
        from tracked import Place, record
        tracker = Place(Path(sys.argv[1])).tracker(sys.argv[2])
        record(tracker)
        raise SystemExit(tracker.close())
    """
    command = [sys.executable, "-c", code, str(tmp_path), "one", str(Path(__file__).parent)]
    new = Place(tmp_path)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: list(tmp_path.glob(".mlflow.db.*.new")) or process.poll() is not None)
        tracker = new.tracker("two")
        record(tracker)
        assert tracker.close() is None
        assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0
    for study in ("one", "two"):
        assert len(logged(new.uri, study)) == 1 + CANDIDATES * (1 + SEEDS)
    # Another database that lacks the study: the kept position no longer counts.
    moved = Place(tmp_path, place.uri)
    assert tracking.sync(**moved.settings("one")) > 0
    assert logged(moved.uri, "one") == logged(new.uri, "one")


@pytest.mark.parametrize(("candidates", "parts"), [(5, [0.3]), pytest.param(12, [0.02, 0.5], marks=pytest.mark.slow)])
def test_a_replay_that_is_killed_gives_each_run_once(place: Place, candidates: int, parts: list[float]) -> None:
    study = f"killed{candidates}"
    tracker = place.tracker(study, replay=False)
    record(tracker, candidates=candidates)
    tracker.close()
    directory = place.directory(study)
    code = """if True:
        import sys
        from pathlib import Path
        from scalesearch import tracking
        uri, workspace, directory = sys.argv[1:]
        tracking.sync(uri=uri, workspace=Path(workspace), directory=Path(directory))
    """
    total = (directory / "tracking.jsonl").stat().st_size
    for part in parts:
        command = [sys.executable, "-c", code, place.uri, str(place.workspace), str(directory)]
        process = subprocess.Popen(command)
        wait_for(lambda part=part: position(directory) > part * total)
        process.kill()
        process.wait()
    assert position(directory) < total
    assert tracking.sync(**place.settings(study)) > 0
    killed = logged(place.uri, study)
    whole = place.tracker(f"whole{candidates}")
    record(whole, candidates=candidates)
    assert whole.close() is None
    assert without_times(killed) == without_times(logged(place.uri, f"whole{candidates}"))


def test_a_server_that_is_not_there_leaves_all_to_be_sent_later(tmp_path: Path) -> None:
    place = Place(tmp_path, f"http://127.0.0.1:{free_port()}")
    tracker = place.tracker("lonely")
    tracker.start_run("run:1", name="run")
    for step in range(999):
        tracker.log_metrics("run:1", {"loss": 1.0}, step=step)
    sentence = tracker.close(timeout=8)
    assert sentence is not None
    assert sentence.startswith("MLflow still lacks 1000 events (MLflow at http://127.0.0.1:")
    assert sentence.endswith(f"'scalesearch sync study=lonely workspace={tmp_path}' sends what waits")
    with pytest.raises(OSError, match="cannot be reached: connection refused; it still lacks 1000 events of 'lonely'"):
        tracking.sync(**place.settings("lonely"))


def test_a_connection_that_breaks_in_mid_run_loses_and_repeats_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = place.tracker("broken", replay=False)
    record(tracker)
    tracker.close()
    write, calls, breaks = Writer.write, 0, 0

    def breaking(writer: Writer, group: Any) -> None:
        """Every third time MLflow is not reached, and every fifth time its answer is lost."""
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise ConnectionError("refused")
        write(writer, group)
        if calls % 5 == 0:
            raise ConnectionError("no answer")

    monkeypatch.setattr(Writer, "write", breaking)
    for _ in range(100):
        try:
            tracking.sync(**place.settings("broken"))
        except OSError:
            breaks += 1
        else:
            break
    assert 3 < breaks < 100
    monkeypatch.undo()
    whole = place.tracker("unbroken")
    record(whole)
    assert whole.close() is None
    assert without_times(logged(place.uri, "broken")) == without_times(logged(place.uri, "unbroken"))


@pytest.mark.slow
def test_a_server_killed_in_mid_run_loses_and_repeats_nothing(server: Server, tmp_path: Path) -> None:
    place = Place(tmp_path, server.uri)
    tracker = place.tracker("server")
    record(tracker, "run:1")
    wait_for(lambda: position(place.directory("server")) > 1500)
    server.kill()
    record(tracker, "run:2")
    server.start()
    wait_for(lambda: position(place.directory("server")) > 1500)
    tracker.start_run("run:3", name="run")
    file = tmp_path / "result.json"
    file.write_text("{}")
    tracker.log_artifact("run:3", file)
    assert tracker.close() is None
    shown = logged(server.uri, "server")
    assert len(shown) == 1 + 2 * (1 + CANDIDATES * (1 + SEEDS))
    assert all(len(run["points"]) == 6 for run_id, run in shown.items() if "seed" in run_id)
    artifacts = client_of(server.uri).list_artifacts(run_of(server.uri, "server", "run:3").info.run_id)
    assert [artifact.path for artifact in artifacts] == ["result.json"]
    assert tracking.sync(**place.settings("server"), rebuild=True) > 0
    assert logged(server.uri, "server") == shown


def test_passwords_are_not_shown(tmp_path: Path) -> None:
    place = Place(tmp_path, f"http://me:secret@127.0.0.1:{free_port()}")
    tracker = place.tracker("private")
    tracker.start_run("run:1", name="run")
    sentence = tracker.close(timeout=8)
    assert sentence is not None
    assert "secret" not in sentence


def test_a_kill_while_the_database_is_made_leaves_none_that_cannot_be_opened(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from scalesearch.tracking.connection import Address; "
        f"Address(None, Path({str(tmp_path)!r})).client().__enter__()"
    )
    maker = subprocess.Popen([sys.executable, "-c", code])
    while not list(tmp_path.glob(".mlflow.db.*.new")):
        assert maker.poll() is None, "the database was made before it could be killed"
        time.sleep(0.001)
    time.sleep(0.05)
    maker.kill()
    maker.wait()
    assert not (tmp_path / "mlflow.db").exists()

    tracker = Place(tmp_path).tracker("study")
    tracker.start_run("run:1", name="one")
    tracker.end_run("run:1")
    assert tracker.close() is None
    assert not list(tmp_path.glob(".mlflow.db.*.new*"))


def test_a_spool_sends_no_file_of_another_place(place: Place, tmp_path: Path) -> None:
    """A study that somebody handed on may name any file in its spool; nothing of that reaches MLflow."""
    secret = tmp_path / "secret.txt"
    secret.write_text("a password")
    directory = place.directory("foreign")
    directory.mkdir(parents=True)
    (directory / "link.txt").symlink_to(secret)
    (directory / "links").symlink_to(tmp_path)
    os.mkfifo(directory / "pipe")
    (directory / "mixed").mkdir()
    (directory / "mixed" / "link.txt").symlink_to(secret)
    (directory / "own.txt").write_text("its own")
    (place.workspace / "mlflow.txt").write_text("of the workspace, but not of the study")
    tracker = place.tracker("foreign", replay=False)
    tracker.start_run("run:1", name="run")
    outside = ["/etc/passwd", str(secret), "../../secret.txt", "studies/foreign/../../mlflow.txt", "mlflow.txt"]
    inside = ["link.txt", "links/secret.txt", "links", "mixed", "pipe", "", ".", "gone.txt", "own.txt\0.png"]
    for path in (*outside, *(f"studies/foreign/{name}" for name in inside)):
        tracker._append("artifact", "run:1", path=path, folder="")
    for path in outside:
        files = ["studies/foreign/own.txt", path]
        tracker._append("model", "run:1", name="m", files=files, input=[3, 8, 8], output=[2])
    for folder in ("..", "../..", "/tmp", "a/../../b", "a\0"):
        tracker._append("artifact", "run:1", path="studies/foreign/own.txt", folder=folder)
    tracker._append("artifact", "run:1", path="studies/foreign/own.txt", folder="right")
    tracker.end_run("run:1")
    assert tracker.close() is None
    assert sync(uri=place.uri, workspace=place.workspace, directory=directory) == 3  # start, the last artifact, end
    client = client_of(place.uri)
    run = run_of(place.uri, "foreign", "run:1").info
    assert [one.path for one in client.list_artifacts(run.run_id)] == ["right"]
    assert [one.path for one in client.list_artifacts(run.run_id, "right")] == ["right/own.txt"]
    assert client.search_registered_models() == []
    assert run.status == "FINISHED"


DAMAGED: list[dict[str, object]] = [
    {"event": "start", "name": "x", "parent": None, "params": [], "tags": {}},
    {"event": "start", "name": 3, "parent": None, "params": {}, "tags": {}},
    {"event": "start", "run": "a' OR '1", "name": "x", "parent": None, "params": {}, "tags": {}},
    {"event": "metrics", "points": [[0, {"a": "b"}]]},
    {"event": "metrics", "points": [["0", {"a": 1.0}]]},
    {"event": "metrics", "points": 7},
    {"event": "params", "params": {"a": [1]}},
    {"event": "tags"},
    {"event": "artifact", "path": 3, "folder": ""},
    {"event": "model", "name": "m", "files": [], "input": [1], "output": [1]},
    {"event": "model", "name": "m", "files": ["x"], "input": [-1], "output": [1]},
    {"event": "end", "status": "ABSCONDED"},
    {"event": "end", "status": "FINISHED", "time": -1},
    {"event": "end", "status": "FINISHED", "time": 10**40},
    {"event": "dataset", "name": "d", "digest": 1, "source": "s", "profile": {}},
    {"event": "of tomorrow"},
]


def test_a_damaged_event_is_named_and_holds_up_none(place: Place) -> None:
    tracker = place.tracker("damaged", replay=False)
    tracker.start_run("run:1", name="run")
    assert tracker.close() is None
    directory = place.directory("damaged")
    with (directory / "tracking.jsonl").open("ab") as spool:
        for event in DAMAGED:
            spool.write(json.dumps({"run": "run:1", "time": 1} | event).encode() + b"\n")
        for line in (b"null", b"[]", b"{}", b'{"event": [], "run": 1, "time": 1}', b"\xff\xfe", b"[" * 100_000):
            spool.write(line + b"\n")  # no events at all
    tracker = place.tracker("damaged", replay=False)
    tracker.log_metrics("run:1", {"after": 1.0})
    tracker.end_run("run:1")
    assert tracker.close() is None
    with Replay(place.uri, place.workspace, directory) as replay:
        while replay.step():
            pass
        # The next command also ends the run of a damaged start, which MLflow has not.
        assert len(replay.refused) == len(DAMAGED) + 1
        assert all("\n" not in words for words in replay.refused)
    (points,) = [logged(place.uri, "damaged")["run:1"]["points"]]
    assert [value for _, _, value, _ in points] == ["1.0"]
