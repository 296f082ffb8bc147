"""A search that is killed, or finds its disk full, at each step of the file system in turn; then given once more."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Ended, case
from planted import SEARCH

from scalesearch.workspace import DONE, NOTHING_LEARNT

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("fault", "first", "stride", "words"),
    [
        ("full", 20, 110, "tracking=none"),  # test_run kills
        *(
            pytest.param(fault, first, stride, words, marks=pytest.mark.slow)
            for fault in ("kill", "full")
            for first, stride, words in ((1, 3, "tracking=none"), (2, 15, "tracking=mlflow"))
        ),
    ],
)
def test_a_fault_at_any_step_of_the_file_system_leaves_what_the_same_command_completes(
    fault: str, first: int, stride: int, words: str, tmp_path: Path
) -> None:
    command = [sys.executable, str(HERE / "every_step.py"), str(tmp_path), fault, str(first), str(stride), words]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    whole, *tried = map(json.loads, ended.stdout.splitlines())
    assert whole["unbroken"]["code"] == 0
    assert {"candidates.csv", "trials.csv", "family.csv", "result.json"} <= {*whole["tables"]}
    assert len(tried) >= 3
    for one in tried:
        with case(one["at"], one["broken"]):
            assert one["again"]["code"] == 0, one["again"]["said"]
            assert one["different"] == []
            if fault == "kill":
                assert one["broken"]["code"] == -9
                continue
            code, said = one["broken"]["code"], one["broken"]["said"]
            assert code in (0, 7), said  # without a view, or without a cache, the search comes to its end
            assert "Traceback" not in said
            if code == 7:
                assert len(said.splitlines()) == 1
                assert "No space left on device; what is finished is kept; put the disk right" in said
                assert "workspace/" in said, "the message names the file"
                assert ".temporary" not in said


def test_weights_that_find_no_room_are_no_failed_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Ended]
) -> None:
    """A file may not grow beyond a limit here: a real write that fails, in a real worker."""
    monkeypatch.chdir(tmp_path)
    words = ["run", *SEARCH, "recipe.epochs=0.5", "workspace=w", "executor.workers=1"]

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))

    ended = subprocess.run(
        [sys.executable, "-m", "scalesearch", *words],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limited,
    )
    assert ended.returncode == 7, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert ".safetensors: File too large; what is finished is kept; put the disk right, and the same command" in last
    records = [json.loads(path.read_text()) for path in Path("w").glob("evaluations/*/*.json")]
    assert [one for one in records if one["state"] == "failed"] == []
    assert command(*words).code in (DONE, NOTHING_LEARNT)
