"""What several test files share: the networks, roundings and proxies of conf/, found by their files."""

from __future__ import annotations

import csv
import importlib.util
import json
import logging
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import yaml

from scalesearch.compose import composed
from scalesearch.executor import EXECUTORS, EvaluationFailed, LocalExecutor
from scalesearch.network import Network, Stage, load
from scalesearch.scaling import Proxy, Rounding

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from scalesearch.config import Groups
    from scalesearch.study import StudySettings
    from scalesearch.training import Recipe

signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a shell's background job ignores it, and so would its children

# Tests run beside each other, and small modules gain nothing from a second thread. Before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

CONF = Path(__file__).parent.parent / "conf"
REFERENCE = Path(__file__).parent / "reference"
TABLES = sorted(
    path for path in (CONF / "baseline").glob("*.yaml") if "factory" not in yaml.safe_load(path.read_text())
)


def study_settings(*overrides: str) -> StudySettings:
    """The settings of `scalesearch run` with these overrides."""
    from scalesearch.study import StudySettings

    return StudySettings.of(command_request("run", composed("run", *overrides))[1])


def command_request(command: str, configuration: DictConfig) -> tuple[Any, Groups]:
    """The arguments and groups of a command."""
    from scalesearch.config import request

    return request(importlib.import_module(f"scalesearch.commands.{command}"), configuration)


def printed_commands(answer: Any) -> list[str]:
    """Every command line of ours in an answer's JSON."""
    if isinstance(answer, str):
        return [answer] if answer.startswith("scalesearch ") else []
    parts = answer.values() if isinstance(answer, dict) else answer if isinstance(answer, list) else ()
    return [command for part in parts for command in printed_commands(part)]


def script(path: Path) -> Any:
    """A program of docs/ as a module, which the tests hold against the page that it writes."""
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look there
    spec.loader.exec_module(module)
    return module


@contextmanager
def case(*names: object) -> Iterator[None]:
    """What fails inside says which turn of a loop it was."""
    try:
        yield
    except BaseException as failure:  # what `pytest.raises` and `pytest.fail` raise is no Exception
        failure.add_note(f"in the case {', '.join(map(str, names))}")
        raise


@pytest.fixture(params=TABLES, ids=lambda path: path.stem)
def baseline(request: pytest.FixtureRequest) -> Network:
    """Every table of conf/baseline in turn, so that a new one is tested as soon as its file is there."""
    return load(request.param)


@pytest.fixture(scope="session")
def baselines() -> dict[str, Network]:
    return {path.stem: load(path) for path in TABLES}


@pytest.fixture(scope="session")
def roundings() -> dict[str, Rounding]:
    return {path.stem: Rounding(**yaml.safe_load(path.read_text())) for path in (CONF / "rounding").glob("*.yaml")}


@pytest.fixture(scope="session")
def proxies() -> dict[str, Proxy]:
    return {path.stem: Proxy(**yaml.safe_load(path.read_text())) for path in (CONF / "proxy").glob("*.yaml")}


@pytest.fixture(scope="session")
def reference() -> Callable[[str], list[dict[str, str]]]:
    """The rows of a table of tests/reference, by its name; reference/README.md says where each comes from."""

    def rows(name: str) -> list[dict[str, str]]:
        with (REFERENCE / f"{name}.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    return rows


def pytest_collection_finish(session: pytest.Session) -> None:
    """Tests of an `xdist_group` share what is made once; a pytest with which pytest-xdist groups nothing is refused."""
    if getattr(session.config.option, "loadgroup", False):
        apart = [
            item.nodeid for item in session.items if item.get_closest_marker("xdist_group") and "@" not in item.nodeid
        ]
        if apart:
            raise pytest.UsageError(f"pytest-xdist does not group tests with pytest {pytest.__version__}: {apart[0]}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`block_network`: each of `block_networks` in turn."""
    if "block_network" in metafunc.fixturenames:
        cases = block_networks()
        metafunc.parametrize("block_network", cases.values(), ids=cases)


def block_networks() -> dict[str, Network]:
    """A small network around every block of `BLOCKS`, in each of the shapes below."""
    from scalesearch.model import BLOCKS

    return {f"{block}-{shape}": around(block, **SHAPES[shape]) for block in BLOCKS for shape in SHAPES}


REQUIRED: dict[str, Any] = {"channels": 16, "heads": 4}
SHAPES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "kept": {"kernel": 5, "expand": 2, "squeeze_excite": 0.5, "groups": 4, "activation": "hardswish"},
    "changed": {
        **{"channels": 24, "kernel": 5, "stride": 2, "expand": 1.5, "squeeze_excite": 0.25, "groups": 4, "heads": 2},
        **{"squeeze_divisor": 8, "activation": "silu"},
    },
}


def around(block: str, **fields: Any) -> Network:
    """A network of 16 px whose one stage is `block`, with those of `fields` that it reads; 16 channels go in."""
    from scalesearch.model import BLOCKS

    kind = BLOCKS[block]
    given = {name: value for name, value in (REQUIRED | fields).items() if name in kind.fields}
    if kind.takes == "tokens" and "channels" in given:
        given["channels"] = 16  # tokens keep their width
    stem = [Stage(block="conv_norm", channels=16)]
    if kind.takes == "tokens":  # that have seen one another: the class token alone knows nothing of the image
        patches = Stage(block="patch_embed", channels=16, stride=4)
        stem = [patches, Stage(block="transformer", channels=16, heads=4)]
    head = []
    if kind.gives == "tokens":
        head = [Stage(block="transformer", channels=given["channels"], heads=4), Stage(block="class_token")]
    return Network(
        name=block,
        resolution=16,
        stem=tuple(stem),
        stages=(Stage(block=block, repeats=2 if kind.takes == kind.gives else 1, **given),),
        head=tuple(head),
        activation="relu",
        num_classes=5,
    )


def recipe(**changes: Any) -> Recipe:
    """A recipe of one epoch in float32, without augmentation, with other values where `changes` has them."""
    from scalesearch.training import Recipe

    values = {"epochs": 1, "batch_size": 50, "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.0}
    values |= {"label_smoothing": 0.0, "schedule": "one_cycle", "warmup": 0.25, "flip": False, "crop_padding": 0.0}
    return Recipe(**values | {"mixup": 0.0, "ema": 0.0, "autocast": "off", "channels_last": True} | changes)


class InThisProcess:
    """An executor whose worker is this process, with what it was asked: for tests that are not about processes."""

    slots = 1
    Settings = LocalExecutor.Settings

    def __init__(self, workers: int | None = None, *, threads: int = 1, devices: Sequence[str] = ()) -> None:
        self.requested: list[tuple[str, str]] = []

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def submit(self, function: Any, specification: dict[str, Any]) -> Future[dict[str, Any]]:
        self.requested.append((function.__name__, specification.get("name", "")))
        future: Future[dict[str, Any]] = Future()
        try:
            future.set_result(function(specification))
        except Exception as error:
            future.set_exception(EvaluationFailed(f"{type(error).__name__}: {error}", ""))
        return future


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    """`executor=local` trains in this process; timings are planted, and nothing is in bfloat16 unless asked for."""
    from scalesearch.training import timing

    monkeypatch.setitem(EXECUTORS._loaded, "local", InThisProcess)
    monkeypatch.setattr(timing, "pace", lambda *_, **__: timing.Pace(1e-4, 1e-5))
    monkeypatch.setenv("SCALESEARCH_KERNELS", "on")  # chosen by times, they give other bits on another day


@pytest.fixture(autouse=True)
def _audible_warnings() -> None:
    """A command that a test ran in this process has set the root logger to errors alone."""
    logging.getLogger().setLevel(logging.WARNING)


class Ended(NamedTuple):
    """What became of a command: its exit code, its JSON (empty where it printed none), what it said."""

    code: int
    answer: dict[str, Any]
    output: str


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """`command("plan baseline=mobilenetv2 --json")` in this process, in the working directory."""
    from scalesearch.cli import main

    monkeypatch.setattr(sys, "argv", sys.argv)  # Hydra reads it, so main writes it

    def run_command(*words: str) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(words[0].split() if len(words) == 1 else list(words))
        out, err = capsys.readouterr()
        assert "Traceback" not in err, err
        return Ended(int(ended.value.code or 0), json.loads(out) if out.startswith("{") else {}, out + err)

    return run_command


def children() -> set[int]:
    """The child processes of this one, zombies among them."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


@pytest.fixture
def nothing_is_left_behind() -> Iterator[None]:
    """No worker and no zombie outlives the test."""
    before = children()
    yield
    end = time.monotonic() + 3.0  # after shutdown(wait=False) workers are reaped in the background
    while children() - before and time.monotonic() < end:
        time.sleep(0.02)
    assert children() <= before, "workers or zombies"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread: small modules gain nothing from more, and tests may run beside each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def brief_latencies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A latency is that of a run or two: for tests of what is said about networks, not of how long they take."""
    from scalesearch import budget
    from scalesearch.latency import latency

    monkeypatch.setattr(budget, "latency", lambda network, *, budget_seconds: latency(network, budget_seconds=1e-5))


@pytest.fixture(scope="module")
def unsynced_sqlite() -> Iterator[None]:
    """Commits of this process go to the system's cache at once and to the disk in their time: a kill loses nothing."""
    from sqlalchemy import Engine, event

    def connected(connection: Any, _: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", connected)
    yield
    event.remove(Engine, "connect", connected)
