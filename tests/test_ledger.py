from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import case
from hypothesis import given
from hypothesis import strategies as st

from scalesearch.ledger import VERSION, Ledger, Measured, StudyLocked, canonical_json, evaluation_key, lock_study
from scalesearch.ledger import write_atomic as write

SPECIFICATION = {"network": {"resolution": 16, "stages": [{"block": "mbconv", "channels": 8}]}, "seed": 1, "rate": 0.1}
KEY = evaluation_key(SPECIFICATION)


def record(key: str = KEY, state: str = "finished", **more: object) -> dict[str, object]:
    return {
        "key": key,
        "version": VERSION,
        "specification": SPECIFICATION,
        "state": state,
        "result": {"val_accuracy": 0.75} if state == "finished" else None,
        "reason": None if state == "finished" else "ValueError: loss is nan",
        "recorded_at": "2026-01-01T00:00:00+00:00",
        "environment": {},
        **more,
    }


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Another process, up to its first line of output."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


def end(process: subprocess.Popen[str], how: signal.Signals = signal.SIGKILL) -> None:
    process.send_signal(how)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


# ------------------------------------------------------------------------------------------------------------- keys


def test_a_specification_has_the_same_key_for_ever() -> None:
    assert VERSION == 1, "training changed its meaning: new keys are right, write them down here"
    assert KEY == "d61c483b5db9fe9457921963ea7214b646fcab8127321d5461702a14e6a88324"


def test_the_order_of_keys_does_not_matter() -> None:
    assert evaluation_key(dict(reversed(SPECIFICATION.items()))) == KEY


def test_different_values_have_different_keys() -> None:
    pairs = [(1, 1.0), (1, True), (0.1, 0.1 + 1e-17 + 1e-16), (0.0, -0.0), (None, False), ("1", 1), ([], {})]
    for one, other in (*pairs, ([1, 2], [2, 1])):
        with case(one, other):
            assert evaluation_key({"x": one}) != evaluation_key({"x": other})


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(PLAIN, PLAIN)
def test_canonical_json_is_read_back_equal_and_tells_values_apart(one: object, other: object) -> None:
    assert json.loads(canonical_json(one)) == one
    assert canonical_json(json.loads(canonical_json(one))) == canonical_json(one)
    if one != other:
        assert canonical_json(one) != canonical_json(other)


def test_what_is_not_plain_json_is_refused_and_placed() -> None:
    circle: list[object] = []
    circle.append(circle)
    cases: list[tuple[object, str]] = [
        (float("nan"), r"x\.y\[1\] is nan; numbers must be finite"),
        *[(float("-inf"), "is -inf"), ((1, 2), "is a tuple"), (Path("a"), "is a (Posix)?Path"), (b"a", "is a bytes")],
        *[({1: 2}, "the key 1; keys must be strings"), ({1}, "is a set"), (circle, "contains itself")],
    ]
    for value, words in cases:
        with case(words), pytest.raises(ValueError, match=words):
            evaluation_key({"x": {"y": [0, value]}})


def test_a_specification_cannot_claim_a_version() -> None:
    with pytest.raises(ValueError, match="must not have the key 'version'"):
        evaluation_key({"version": 0})


# ---------------------------------------------------------------------------------------------------------- records


def test_a_record_comes_back_as_it_was_put(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.get(KEY) is None
    assert not list(tmp_path.iterdir()), "nothing is created before the first write"
    ledger.put(KEY, record())
    assert ledger.get(KEY) == Ledger(tmp_path).get(KEY) == record()
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*.json")] == [
        Path("evaluations", KEY[:2], f"{KEY}.json")
    ]
    ledger.put(KEY, record(state="failed"))
    assert ledger.get(KEY) == record(state="failed")


def test_weights_and_checkpoint_lie_beside_the_record(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.weights_path(KEY) == tmp_path / "evaluations" / KEY[:2] / f"{KEY}.safetensors"
    assert ledger.checkpoint_path(KEY) == tmp_path / "evaluations" / KEY[:2] / f"{KEY}.checkpoint.safetensors"


def test_only_a_key_leads_to_a_file(tmp_path: Path) -> None:
    for key in ("", "abc", "../" + KEY, KEY.upper(), KEY + "\n"):
        with case(key), pytest.raises(ValueError, match="is not the key of an evaluation"):
            Ledger(tmp_path).get(key)


def test_what_is_no_record_is_not_written(tmp_path: Path) -> None:
    cases = [
        (record(result={"val_accuracy": float("nan")}), r"result\.val_accuracy is nan"),
        (record(result={"curve": [0.5, float("inf")]}), r"result\.curve\[1\] is inf"),
        (record(state="running"), "its state is 'running'"),
        (record(key="0" * 64), "its key is"),
    ]
    for wrong, words in cases:
        with case(words), pytest.raises(ValueError, match=words):
            Ledger(tmp_path).put(KEY, wrong)
    assert not list(tmp_path.rglob("*.*"))


def test_a_damaged_or_edited_record_is_none_and_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger, path = Ledger(tmp_path), tmp_path / "evaluations" / KEY[:2] / f"{KEY}.json"
    ledger.put(KEY, record())
    content = path.read_bytes()
    other = content.replace(b'"seed":1', b'"seed":2')
    for damaged in (
        *(b"", content[:-20], b"\0" * len(content), b"\xff" + content, b"[]", b"[" * 100_000),
        *(content.replace(b"finished", b"done"), content.replace(KEY.encode(), b"0" * 64)),
        *(content.replace(b"0.75", b"0.95"), content.replace(b"0.75", b"NaN"), other),
        re.sub(rb'"digest":"[0-9a-f]*",', b"", other),
        re.sub(rb'"digest":"[0-9a-f]*",', b"", content).replace(b'{"val_accuracy":0.75}', b"null"),
    ):
        path.write_bytes(damaged)
        caplog.clear()
        with case(damaged[:30]):
            reader = Ledger(tmp_path)
            assert reader.get(KEY) is None
            assert reader.get(KEY) is None
            (message,) = caplog.messages
            assert message.startswith(f"{path} is damaged, or was edited (")
    ledger.put(KEY, record())
    assert path.read_bytes() == content, "it was done again"
    path.write_bytes(re.sub(rb'"digest":"[0-9a-f]*",', b"", content))
    assert ledger.get(KEY) == record(), "as a version without digests has written it"
    path.unlink()
    assert ledger.get(KEY) is None
    os.mkfifo(path)
    assert ledger.get(KEY) is None, "and is not waited for"


@given(st.data())
def test_no_change_of_a_byte_is_believed(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        ledger, path = Ledger(Path(place)), Path(place) / "evaluations" / KEY[:2] / f"{KEY}.json"
        ledger.put(KEY, record())
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        assert Ledger(Path(place)).get(KEY) in (None, record())


def test_only_a_failed_evaluation_is_taken_away(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.remove(KEY)
    ledger.put(KEY, record(state="failed"))
    ledger.remove(KEY)
    assert ledger.get(KEY) is None
    ledger.put(KEY, record())
    with pytest.raises(ValueError, match="finished, not failed"):
        ledger.remove(KEY)
    assert ledger.get(KEY) == record()


WRITE_FOR_EVER = """
import itertools, sys
from pathlib import Path
from scalesearch.ledger import Ledger, evaluation_key
ledger = Ledger(Path(sys.argv[1]))
for i in itertools.count():
    specification = {"i": i % 7}
    key = evaluation_key(specification)
    ledger.put(key, {"key": key, "state": "finished", "specification": specification, "result": {"bits": "f" * 200_000, "i": i}})
    print(i, flush=True)
"""  # noqa: E501


def test_a_writer_killed_at_any_moment_leaves_whole_records(tmp_path: Path) -> None:
    keys = [evaluation_key({"i": i}) for i in range(7)]
    for round_ in range(6):
        process = start(WRITE_FOR_EVER, tmp_path)
        time.sleep(0.05 + 0.013 * round_)
        process.kill()
        written, _ = process.communicate()
        last = int(written.split()[-1]) if written.split() and written.endswith("\n") else 0
        records = {key: Ledger(tmp_path).get(key) for key in keys}  # raises where one is damaged
        result = (records[keys[last % 7]] or {}).get("result")
        assert isinstance(result, dict)
        assert result["i"] >= last, "a record that was reported as written is there"


def test_leftovers_of_killed_writers_are_swept_after_an_hour(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.put(KEY, record())
    directory = tmp_path / "evaluations" / KEY[:2]
    old, young = directory / f".{KEY}.json.1.aa.temporary", directory / f".{KEY}.json.2.bb.temporary"
    for path in (old, young):
        path.write_bytes(b"half a rec")
    os.utime(old, (time.time() - 4000, time.time() - 4000))
    assert Ledger(tmp_path).get(KEY) == record()
    assert sorted(directory.iterdir()) == sorted([young, directory / f"{KEY}.json"])


def test_a_file_that_cannot_be_written_leaves_the_older_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "directory" / "file"
    write(path, b"old")
    with pytest.raises(TypeError):
        write(path, "text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]
    write(path, b"new")
    assert path.read_bytes() == b"new"


# ------------------------------------------------------------------------------------------------------------ locks

CLAIM = """
import sys, time
from pathlib import Path
from scalesearch.ledger import Ledger
claim = Ledger(Path(sys.argv[1])).claim(sys.argv[2])
print("claimed" if claim else "refused", flush=True)
time.sleep(60)
"""


def test_an_evaluation_is_claimed_once_and_given_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    claim = ledger.claim(KEY)
    assert claim is not None
    assert ledger.claim(KEY) is None
    assert Ledger(tmp_path).claim(KEY) is None
    other = ledger.claim("0" * 64)
    assert other is not None
    other.release()
    claim.release()
    claim.release()
    assert not list(tmp_path.rglob("*.lock")), "lock files are removed"
    with ledger.claim(KEY) or pytest.fail("the claim was given back") as again:
        assert again is not None
        assert ledger.claim(KEY) is None
    assert not list(tmp_path.rglob("*.lock"))


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    process = start(CLAIM, tmp_path, KEY)
    assert Ledger(tmp_path).claim(KEY) is None
    end(process)
    claim = Ledger(tmp_path).claim(KEY)
    assert claim is not None
    claim.release()


CONTEND = """
import os, sys, time
from pathlib import Path
from scalesearch.ledger import Ledger
ledger, inside, wins = Ledger(Path(sys.argv[1])), Path(sys.argv[1], "inside"), 0
print("ready", flush=True)
while wins < 150:
    if claim := ledger.claim("0" * 64):
        os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails where another is inside
        inside.unlink()
        claim.release()
        wins += 1
print("done", flush=True)
"""


def test_removing_lock_files_never_lets_two_in(tmp_path: Path) -> None:
    processes = [start(CONTEND, tmp_path) for _ in range(3)]
    for process in processes:
        assert process.communicate(timeout=30)[0] == "done\n"


def test_threads_exclude_each_other_as_processes_do(tmp_path: Path) -> None:
    ledger, wins, barrier = Ledger(tmp_path), [], threading.Barrier(4)

    def claim() -> None:
        barrier.wait()
        wins.append(ledger.claim(KEY))

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [win for win in wins if win is not None]
    winner.release()


LOCK = """
import sys, time
from pathlib import Path
from scalesearch.ledger import lock_study
with lock_study(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_second_driver_is_refused_with_the_first_ones_name(tmp_path: Path) -> None:
    study = tmp_path / "my-study"
    process = start(LOCK, study)
    with (
        pytest.raises(StudyLocked, match=rf"'my-study' is being run by process {process.pid} on ") as refusal,
        lock_study(study),
    ):
        pass
    assert process.poll() is None, "it was refused, and did not wait for the other to end"
    end(process)
    assert socket.gethostname() in str(refusal.value)
    assert f"kill {process.pid}" in str(refusal.value)
    assert refusal.value.since is not None
    assert refusal.value.since in str(refusal.value)


def test_a_dead_owners_lock_is_free_and_its_name_overwritten(tmp_path: Path) -> None:
    end(start(LOCK, tmp_path))
    assert (tmp_path / "lock").exists(), "the killed owner left its file"
    with lock_study(tmp_path):
        owner: dict[str, Any] = json.loads((tmp_path / "lock").read_text())
        assert owner["pid"] == os.getpid()
    assert not (tmp_path / "lock").exists()


def test_a_lock_is_given_back_after_an_error(tmp_path: Path) -> None:
    with contextlib.suppress(RuntimeError), lock_study(tmp_path):
        raise RuntimeError
    with lock_study(tmp_path):
        pass


def test_a_lock_without_a_readable_name_still_locks(tmp_path: Path) -> None:
    process = start(LOCK, tmp_path)
    (tmp_path / "lock").write_bytes(b"")
    with pytest.raises(StudyLocked, match="another process; wait until it is done"), lock_study(tmp_path):
        pass
    end(process)


# ----------------------------------------------------------------------------------------------------- measurements


def test_a_damaged_file_of_measurements_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    for content in ("", "[1]", '{"here": [1]}', '{"here": {"a": [1]}}', "\0"):
        path.write_text(content)
        measured = Measured(path, "here")
        assert measured.get("a") is None, content
        measured.put("a", 1.5)
        assert Measured(path, "here").get("a") == 1.5, content
    Measured(path, "there").put("b", "x")
    assert json.loads(path.read_text()) == {"here": {"a": 1.5}, "there": {"b": "x"}}
