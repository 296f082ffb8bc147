"""Writing the spool: everything that a search has for MLflow."""

from __future__ import annotations

import getpass
import json
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from scalesearch.text import override, plural, typed
from scalesearch.tracking.connection import reason
from scalesearch.tracking.replay import Replay, refusals
from scalesearch.tracking.spool import Status, parsed, spooled

_LEVELS = ("command", "candidate", "seed")
_PATIENCE = 8.0  # seconds for one request at the end of a command; a server that hangs is let go, and nothing is lost


class Tracker:
    """Methods append to the spool, in microseconds, and no trouble of MLflow's reaches the caller.

    Runs that an earlier command of the study left without an end are ended as KILLED, at the time of their last event.
    One driver per study: two trackers on one directory would end each other's runs.

    Args:
        uri: of the tracking server or database; None is `<workspace>/mlflow.db`.
        directory: of the command, a study say; spool and position are kept there.
        replay: False only writes the spool; `sync` can replay it later.
    """

    def __init__(self, *, uri: str | None, workspace: Path, directory: Path, replay: bool = True) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._workspace = workspace
        self._lost = 0
        self._replay = Replay(uri, workspace, directory) if replay else None
        self._failure = ""
        self._writing = threading.Lock()
        self._news, self._closing, self._abandoned = threading.Event(), threading.Event(), threading.Event()
        # Daemon: a command that ends in a hurry loses nothing, the spool has it.
        self._thread = threading.Thread(target=self._work, name="scalesearch-tracking", daemon=True)
        self._begun, self._working = False, threading.Event()
        spool = directory / "tracking.jsonl"
        lines = list(spooled(spool, 0))
        self._torn = bool(lines) and not lines[-1].endswith(b"\n")  # the last driver was killed in mid-line
        self._spool = spool.open("ab", buffering=0)
        self._levels: dict[str, int] = {}
        self._end_interrupted(lines)
        if self._replay is not None and self._replay.waiting():
            self._begin()

    def start_run(
        self,
        run_id: str,
        *,
        name: str,
        parent: str | None = None,
        params: Mapping[str, object] = {},
        tags: Mapping[str, object] = {},
        note: str = "",
    ) -> None:
        """Open a run: `run_id` is the caller's own name for it, unique in the study; `note` is markdown."""
        level = 0 if parent is None else self._levels.get(parent, 0) + 1
        self._levels[run_id] = level
        self._append(
            "start",
            run_id,
            name=name,
            parent=parent,
            params=_texts(params),
            tags={
                "mlflow.source.name": "scalesearch",
                "mlflow.user": _user(),
                "scalesearch.level": _LEVELS[min(level, len(_LEVELS) - 1)],
                **({"mlflow.note.content": note} if note else {}),
                **_texts(tags),
            },
        )

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Numbers of a run at a step; nan and inf are allowed."""
        self._append("metrics", run_id, points=[[step, {key: float(value) for key, value in metrics.items()}]])

    def log_curve(self, run_id: str, curve: Sequence[Mapping[str, float]]) -> None:
        """Numbers of a run by epoch: the step is the entry's own `epoch`, or else its place."""
        points = [
            [int(entry.get("epoch", place)), {key: float(value) for key, value in entry.items() if key != "epoch"}]
            for place, entry in enumerate(curve)
        ]
        self._append("metrics", run_id, points=points)

    def log_params(self, run_id: str, params: Mapping[str, object]) -> None:
        """Settings of a run: MLflow refuses a second value for one of them."""
        self._append("params", run_id, params=_texts(params))

    def set_tags(self, run_id: str, tags: Mapping[str, object]) -> None:
        """Tags of a run; a later value replaces an earlier one."""
        self._append("tags", run_id, tags=_texts(tags))

    def log_dataset(self, run_id: str, *, name: str, digest: str, source: str, profile: Mapping[str, object]) -> None:
        """The data a run used (MLflow's Dataset column); of the digest 36 characters are kept."""
        self._append("dataset", run_id, name=name, digest=digest, source=source, profile=dict(profile))

    def log_artifact(self, run_id: str, path: Path, folder: str = "") -> None:
        """A file of the command's directory, copied when it is replayed: it must stay where it is."""
        self._append("artifact", run_id, path=self._place(path), folder=folder)

    def log_model(
        self,
        run_id: str,
        *,
        name: str,
        variant: Path,
        weights: Path,
        input_shape: Sequence[int],
        output_shape: Sequence[int],
    ) -> None:
        """A network as artifacts `model` of the run and as registered model `name`; a new version only for new files.

        Nothing is pickled: MLflow keeps the YAML and the safetensors, and `mlflow.pyfunc.load_model` builds the network
        from them.

        Args:
            variant: YAML of the network.
            weights: its safetensors file.
            input_shape: (channels, resolution, resolution) of one float32 image.
            output_shape: (num_classes,) of its float32 logits.
        """
        files = [self._place(variant), self._place(weights)]
        self._append("model", run_id, name=name, files=files, input=list(input_shape), output=list(output_shape))

    def end_run(self, run_id: str, status: Status = "FINISHED") -> None:
        """Close a run; what is logged to it afterwards still arrives."""
        self._append("end", run_id, status=status)

    def close(self, timeout: float = 30.0) -> str | None:
        """None when MLflow has everything (or nothing was to go there), else one sentence: what waits or was lost, why.

        Waits `timeout` seconds at most, about a second where MLflow refuses, and `_PATIENCE` where it does not answer.
        """
        self._closing.set()
        self._news.set()
        if self._begun and self._working.wait(1.0):
            self._wait(timeout)
        self._abandoned.set()
        with self._writing:
            self._spool.close()
        if self._replay is None:
            return None
        sentences = []
        if waiting := self._replay.waiting():
            why = self._failure or "it does not answer, or is too slow"
            sentences.append(
                f"MLflow still lacks {plural(waiting, 'event')} ({why}); "
                f"'{typed('sync', f'study={self._replay.name}', *self._place_words())}' sends what waits"
            )
        if self._replay.refused:
            sentences.append(refusals(self._replay.refused))
        if self._lost:
            sentences.append(f"{plural(self._lost, 'event')} could not be written to {self._replay.spool}")
        return "; ".join(sentences) or None

    def _wait(self, timeout: float) -> None:
        """For the thread, and for a server as long as it takes one event after another."""
        assert self._replay is not None
        patience = _PATIENCE if self._replay.is_remote else timeout
        until, position, last = time.monotonic() + timeout, self._replay.position, time.monotonic()
        while self._thread.is_alive() and (now := time.monotonic()) < until and now < last + patience:
            self._thread.join(min(0.2, until - now))
            if self._replay.position > position:
                position, last = self._replay.position, time.monotonic()

    def _place_words(self) -> list[str]:
        return [] if str(self._workspace) == "workspace" else [override("workspace", str(self._workspace))]

    def _append(self, event: str, run_id: str, *, at: int | None = None, **content: object) -> None:
        record = {"event": event, "run": run_id, "time": at if at is not None else time.time_ns() // 1_000_000}
        line = json.dumps({**record, **content}, default=str, ensure_ascii=False).encode() + b"\n"
        with self._writing:
            data = b"\n" + line if self._torn else line
            try:
                self._torn = self._spool.write(data) != len(data)
            except OSError:  # a full disk: the ledger has what counts, so the search goes on
                self._torn = True
            self._lost += self._torn
            if self._replay is not None:
                self._begin()
        self._news.set()

    def _begin(self) -> None:
        """Start the thread, once. A signal may come while it starts: it is then waited for all the same."""
        if not self._begun:
            self._begun = True
            self._thread.start()

    def _place(self, path: Path) -> str:
        """Relative to the workspace where it can be, so that a workspace may be moved before it is replayed."""
        absolute, workspace = path.absolute(), self._workspace.absolute()
        return str(absolute.relative_to(workspace) if absolute.is_relative_to(workspace) else absolute)

    def _end_interrupted(self, lines: Sequence[bytes]) -> None:
        last: dict[str, int] = {}
        for event in filter(None, map(parsed, lines)):
            if event["event"] == "end":
                last.pop(event["run"], None)
            elif event["event"] == "start" or event["run"] in last:
                last[event["run"]] = event["time"]
        for run_id, at in reversed(last.items()):  # seeds before their candidate before the command
            self._append("end", run_id, at=at, status="KILLED")

    def _work(self) -> None:
        """The thread: replay what is there, wait for more; when MLflow fails wait 1 s, then longer, up to 30 s."""
        assert self._replay is not None
        self._working.set()
        delay, last_tries = 1.0, 2
        with self._replay:
            while not self._abandoned.is_set():
                try:
                    self._news.clear()
                    while not self._abandoned.is_set() and self._replay.step():
                        delay, self._failure = 1.0, ""
                    if self._closing.is_set() and not self._news.is_set():
                        return
                    self._news.wait()
                except Exception as error:
                    self._failure = reason(error)
                    self._replay.disconnect()
                    if self._closing.is_set():
                        last_tries -= 1
                        if last_tries == 0:
                            return
                        self._abandoned.wait(1.0)
                    elif not self._closing.wait(delay):
                        delay = min(30.0, 2 * delay)


def _texts(values: Mapping[str, object]) -> dict[str, str]:
    """As MLflow keeps params and tags: numbers as digits, tables as JSON."""

    return {
        key: json.dumps(value, default=str) if isinstance(value, bool | list | tuple | dict) else str(value)
        for key, value in values.items()
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container without a user database
        return "unknown"
