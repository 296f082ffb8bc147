"""What has been trained: the key of an evaluation, its atomic record, and who may work on it now.

The ledger is the truth of a workspace; Optuna's storage and MLflow are views that can be rebuilt from it. One record
per evaluation, in `<workspace>/evaluations/ab/<key>.json` (ab: the first two digits of the key), beside its weights:

    {"key", "version", "specification": {...}, "state": "finished" | "failed", "result": {...} | null,
     "reason": str | null, "recorded_at": ISO 8601, "environment": {...}, "digest": of all that stands before it}

A record that is damaged, or was edited, is none: its evaluation is done again, and a warning names the file.

A record is there whole or not at all, so a resumed search is the same command once more. The locks are the kernel's
(`flock`): they end with the process that has them, however it ends, and no stale file can lock anybody out.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import math
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scalesearch.text import one_line
from scalesearch.workspace import naming

VERSION = 1
"""Part of every key. Raised when training changes meaning: older records are then no longer found, and stay on disk."""


def evaluation_key(specification: Mapping[str, object]) -> str:
    """The name of an evaluation: 64 hexadecimal digits, the SHA-256 of its specification and `VERSION`.

    Hashed is the canonical JSON. The order of keys does not matter; everything else does, and an integer is not a
    float: 1 and 1.0 give two keys, so whoever makes a specification keeps each field to one type.

    Raises:
        ValueError: something in it is not plain JSON (nan, a tuple, a Path ...), or it has a key 'version' of its own.
    """
    if "version" in specification:
        raise ValueError("a specification must not have the key 'version': that is the ledger's own; name it otherwise")
    return hashlib.sha256(canonical_json({"version": VERSION, **specification}).encode()).hexdigest()


def canonical_json(value: object) -> str:
    """The one way to write `value` as JSON: sorted keys, no spaces, ASCII, floats as `repr` gives them.

    What is read back from it equals `value`; where that is impossible a ValueError says what stands in the way.
    """
    try:
        _check_plain(value, "")
    except RecursionError:
        raise ValueError("not plain JSON: it is nested too deep, or contains itself") from None
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _check_plain(value: object, place: str) -> None:
    """json.dumps alone takes tuples (read back as lists) and keys that are numbers, and does not say where a nan is."""
    where = f"not plain JSON: {place or 'the value'} is"
    if isinstance(value, list):
        for index, item in enumerate(value):
            _check_plain(item, f"{place}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{where} a table with the key {key!r}; keys must be strings")
            _check_plain(item, f"{place}.{key}" if place else key)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} {value}; numbers must be finite")
    elif value is not None and not isinstance(value, str | int | float):
        raise ValueError(f"{where} a {type(value).__name__}; use a dict, list, str, int, float, bool or None")


class Ledger:
    """The evaluations of one workspace. Any number of drivers may use it at once; workers never do.

    Nothing is created before the first write. A writer that was killed leaves at most a temporary file, which nobody
    reads and which a later Ledger sweeps once it is an hour old.
    """

    def __init__(self, workspace: Path) -> None:
        self.workspace = Path(workspace)
        self._directory, self._initial = self.workspace / "evaluations", self.workspace / "initial"
        self._doubted: set[str] = set()
        for leftover in (*self._directory.glob(f"*/.*{_TEMPORARY}"), *self._initial.glob(f".*{_TEMPORARY}")):
            with contextlib.suppress(FileNotFoundError):  # its writer, or another driver that sweeps, was faster
                if time.time() - leftover.stat().st_mtime > 3600:
                    leftover.unlink()

    def get(self, key: str) -> dict[str, Any] | None:
        """The record of an evaluation, or None where it has none: not yet, or none that is whole."""
        path = self._path(key, ".json")
        try:
            record = json.loads(_content(path))
            _check_record(key, record)
            digest = record.pop("digest", None)  # records from before there were digests have none
            if digest is not None and digest != _digest(record):
                raise ValueError("it was changed since it was written")
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
            self.doubt(key, error)
            return None
        return dict(record)

    def doubt(self, key: str, why: Exception) -> None:
        """Warn, once, that what the record of an evaluation says cannot be used."""
        if key not in self._doubted:
            self._doubted.add(key)
            logging.getLogger(__name__).warning(
                f"{self._path(key, '.json')} is damaged, or was edited ({one_line(why)[:200]}): it counts as not done, "
                "and the command that trains it does it again"
            )

    def put(self, key: str, record: Mapping[str, object]) -> None:
        """Record an evaluation; when this returns, the record survives a power cut. An older record is replaced.

        Raises:
            ValueError: it is not a record of this key, or not plain JSON (nan and inf are not).
        """
        _check_record(key, record)
        whole = dict(record) | {"digest": _digest(record)}
        write_atomic(self._path(key, ".json"), canonical_json(whole).encode() + b"\n")

    def remove(self, key: str) -> None:
        """Take the record of a failed evaluation away, so that it is tried again; nothing happens where there is none.

        Raises:
            ValueError: the evaluation is finished; its training is not thrown away.
        """
        record = self.get(key)
        if record is None:
            return
        if record["state"] != "failed":
            raise ValueError(f"evaluation {key} is {record['state']}, not failed: only a failed one can be retried")
        path = self._path(key, ".json")
        path.unlink(missing_ok=True)
        _sync_directory(path.parent)

    def forget(self, key: str) -> None:
        """Take the record of an evaluation and its weights away, so that it is done again."""
        for suffix in (".json", ".safetensors"):
            self._path(key, suffix).unlink(missing_ok=True)

    def why_no_weights(self, key: str) -> str | None:
        """Why the weights of a finished evaluation cannot be used, naming the file; None where they can.

        Where the record has their digest, it is compared with the file's; older records have none.
        """
        path, record = self.weights_path(key), self.get(key) or {}
        try:
            found = hashlib.sha256(_content(path)).hexdigest()
        except FileNotFoundError:
            return f"the weights of a finished evaluation are missing ({path})"
        except ValueError as error:
            return f"the weights {path} cannot be read: {error}"
        if record.get("weights_sha256") not in (None, found):
            return f"the weights {path} are damaged: they were changed since they were written"
        return None

    def weights_path(self, key: str) -> Path:
        """Where the trained weights of an evaluation belong; the directory may not be there yet."""
        return self._path(key, ".safetensors")

    def checkpoint_path(self, key: str) -> Path:
        """Where a training in progress keeps its checkpoint; the directory may not be there yet."""
        return self._path(key, ".checkpoint.safetensors")

    def keep_initial(self, digest: str, content: bytes) -> None:
        """Put weights that trainings start from where the workers read them; nothing happens where they are there."""
        path = self.initial_path(digest)
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            write_atomic(path, content)

    def initial_path(self, digest: str) -> Path:
        """Where the weights of this digest belong; the directory may not be there yet."""
        return self._initial / f"{digest}.safetensors"

    def claim(self, key: str) -> Claim | None:
        """The sole right to work on an evaluation, or None at once where another has it, in this process or another.

        It lasts until `release()`, the end of its `with` block, or the end of the process. Look into the ledger again
        after a claim: the evaluation may have been finished between the look and the claim.
        """
        path = self._path(key, ".lock")
        descriptor = _lock(path)
        return None if descriptor is None else Claim(path, descriptor)

    def tidy(self, key: str) -> None:
        """Remove the lock file that a driver has left which was killed after its record, before its release."""
        if self._path(key, ".lock").exists() and (claim := self.claim(key)) is not None:
            claim.release()

    def _path(self, key: str, suffix: str) -> Path:
        if not re.fullmatch("[0-9a-f]{64}", key):
            raise ValueError(f"{key!r} is not the key of an evaluation: 64 hexadecimal digits are")
        return self._directory / key[:2] / (key + suffix)


class Measured:
    """What was measured on a machine, in a JSON file of the workspace: machine to name to value.

    A command that is given again then goes by the same values, and measures nothing twice. A file that is missing or
    damaged is begun anew; with a path of None nothing is kept but in this object.
    """

    def __init__(self, path: Path | None, machine: str) -> None:
        self._path, self._machine = path, machine
        self._own: dict[str, Any] = self._read().get(machine, {})

    def get(self, name: str) -> Any:
        """The value of that name, or None."""
        return self._own.get(name)

    def put(self, name: str, value: float | str) -> None:
        """Keep a value, beside what other commands have measured meanwhile."""
        self._own[name] = value
        if self._path is not None:
            known = self._read()
            known[self._machine] = known.get(self._machine, {}) | self._own
            write_atomic(self._path, json.dumps(known, indent=1).encode())

    def _read(self) -> dict[str, dict[str, Any]]:
        with contextlib.suppress(OSError, ValueError, AttributeError):  # the last: no tables
            found = json.loads(self._path.read_bytes()) if self._path else {}
            if all(isinstance(value, float | str) for values in found.values() for value in values.values()):
                return dict(found)
        return {}


def _content(path: Path) -> bytes:
    """What a file has. Raises: FileNotFoundError; ValueError where it is no file: a pipe is never opened."""
    if path.exists() and not path.is_file():
        raise ValueError("it is no file")
    return path.read_bytes()


_FIELDS = {
    *("key", "version", "specification", "state", "result", "reason"),
    *("recorded_at", "environment", "digest", "weights_sha256"),
}


def _digest(record: Mapping[str, object]) -> str:
    return hashlib.sha256(
        canonical_json({name: one for name, one in record.items() if name != "digest"}).encode()
    ).hexdigest()


def _check_record(key: str, record: Mapping[str, object]) -> None:
    if not isinstance(record, Mapping):
        raise ValueError("a record must be a table")
    if strange := record.keys() - _FIELDS:  # a digest under another name would not be looked at
        raise ValueError(f"it has a field {min(strange)!r}, and no record has")
    if record.get("key") != key:
        raise ValueError(f"its key is {record.get('key')!r}, and must be {key!r}")
    if record.get("state") not in ("finished", "failed"):
        raise ValueError(f"its state is {record.get('state')!r}, and must be 'finished' or 'failed'")
    if not isinstance(record.get("result"), Mapping) and record["state"] == "finished":
        raise ValueError("it is finished, and has no result")
    specification = record.get("specification")
    if not isinstance(specification, dict) or evaluation_key(specification) != key:
        raise ValueError("its specification is not that of its key")


class Claim:
    """The sole right to work on an evaluation, until its release. `Ledger.claim` gives it; it is a context manager."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Give the right back; a second time does nothing."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            _unlock(self._path, descriptor)

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class StudyLocked(Exception):  # noqa: N818 - a state of the study, and nothing is wrong with it
    """Another driver runs this study; `study`, `pid`, `host` and `since` (ISO 8601) say which."""

    def __init__(self, study: str, pid: int | None, host: str | None, since: str | None) -> None:
        self.study, self.pid, self.host, self.since = study, pid, host, since
        if pid is None:
            owner, remedy = "another process", "wait until it is done, or end it"
        else:
            owner = f"process {pid} on {host} since {since}"
            remedy = f"wait until it is done, or end it there (kill {pid})"
        super().__init__(f"study {study!r} is being run by {owner}; {remedy}, and run the same command again")


@contextlib.contextmanager
def lock_study(directory: Path) -> Iterator[None]:
    """Be the only driver of the study in `directory` while in the `with` block; the directory is made where missing.

    `<directory>/lock` holds who it is, as JSON. A lock whose owner is dead is free.

    Raises:
        StudyLocked: at once, when another driver has it.
    """
    path = Path(directory) / "lock"
    descriptor = _lock(path)
    for _ in range(10):  # the owner has just come or is just going: it has not written its name yet, or has died
        if descriptor is not None or _is_alive(_owner(path)):
            break
        time.sleep(0.05)
        descriptor = _lock(path)
    if descriptor is None:
        owner = _owner(path)
        raise StudyLocked(Path(directory).resolve().name, owner.get("pid"), owner.get("host"), owner.get("since"))
    try:
        since = datetime.now(UTC).astimezone().isoformat(timespec="seconds")
        name = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}) + "\n"
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, name.encode(), 0)
        yield
    finally:
        _unlock(path, descriptor)


def is_locked(directory: Path) -> bool:
    """Whether a driver of the study in `directory` is alive; the lock itself is left alone."""
    try:
        descriptor = os.open(Path(directory) / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _owner(path: Path) -> dict[str, Any]:  # {} where nobody has written a whole name
    try:
        owner = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return owner if isinstance(owner, dict) and {"pid", "host", "since"} <= owner.keys() else {}


def _is_alive(owner: dict[str, Any]) -> bool:
    """Only chooses the words of the refusal; the kernel decides who has the lock."""
    if not isinstance(owner.get("pid"), int):
        return False
    try:
        if owner["host"] == socket.gethostname():
            os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _lock(path: Path) -> int | None:
    """A descriptor that locks the file at `path`, or None at once where another has locked it."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The owner removes the file as it lets go. Whoever had opened it before that now has the lock of a file
            # without a name, while a third may hold its successor: only the file that `path` still names counts.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            os.close(descriptor)
            raise OSError(
                f"cannot lock {path}: {error.strerror}; keep the workspace on a disk that has locks"
            ) from error
        os.close(descriptor)


def _unlock(path: Path, descriptor: int) -> None:
    with contextlib.suppress(FileNotFoundError):  # removed by hand, perhaps with the whole study
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            path.unlink()
    fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing alone would not do where a child was forked with a copy of it
    os.close(descriptor)


_TEMPORARY = ".temporary"


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all, and survives a power cut once this returns.

    Readers see the older content until the new one is complete. Directories are made where missing.
    Raises: OSError with the path.
    """
    with naming(path):
        _make_directory(path.parent)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}{_TEMPORARY}")
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:  # a full disk or Ctrl-C leaves nothing behind
            temporary.unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)


def _make_directory(directory: Path) -> None:
    if directory.is_dir():
        return
    _make_directory(directory.parent)
    directory.mkdir(exist_ok=True)
    _sync_directory(directory.parent)  # else a power cut can take the new directory with everything in it


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
