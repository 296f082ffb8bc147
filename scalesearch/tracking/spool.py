"""The spool: one JSON event per line, appended by a command and read by whoever sends it to MLflow.

A spool may come from somebody else, with their study: what it says is checked, and what it names must lie in it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

Event = dict[str, Any]
Status = Literal["FINISHED", "FAILED", "KILLED"]

_Time = Annotated[int, Field(ge=0, lt=2**53)]  # milliseconds since 1970
_Run = Annotated[str, Field(pattern=r"^[^'`\"\\\x00-\x1f]{1,200}$")]  # stands in a filter of MLflow's
_Name = Annotated[str, Field(min_length=1, max_length=500)]
_Texts = dict[str, str]
_Size = list[Annotated[int, Field(gt=0, lt=2**31)]]


@dataclass
class _Base:
    event: str
    run: _Run
    time: _Time


@dataclass
class _Start(_Base):
    name: _Name
    parent: _Run | None
    params: _Texts
    tags: _Texts


@dataclass
class _Metrics(_Base):
    points: list[tuple[Annotated[int, Field(ge=-(2**53), lt=2**53)], dict[str, float]]]


@dataclass
class _Params(_Base):
    params: _Texts


@dataclass
class _Tags(_Base):
    tags: _Texts


@dataclass
class _Dataset(_Base):
    name: _Name
    digest: str
    source: str
    profile: dict[str, Any]


@dataclass
class _Artifact(_Base):
    path: str
    folder: Annotated[str, Field(pattern=r"^([\w .+-]*[\w+-][\w .+-]*(/[\w .+-]*[\w+-][\w .+-]*)*)?$")]


@dataclass
class _Model(_Base):
    name: _Name
    files: Annotated[list[str], Field(min_length=1, max_length=10)]
    input: _Size
    output: _Size


@dataclass
class _End(_Base):
    status: Status


_KINDS = {
    "start": TypeAdapter(_Start),
    "metrics": TypeAdapter(_Metrics),
    "params": TypeAdapter(_Params),
    "tags": TypeAdapter(_Tags),
    "dataset": TypeAdapter(_Dataset),
    "artifact": TypeAdapter(_Artifact),
    "model": TypeAdapter(_Model),
    "end": TypeAdapter(_End),
}


def check(event: Event) -> None:
    """Nothing, where an event is one that this version writes. Raises: ValueError, one sentence."""
    kind = event["event"]
    if kind not in _KINDS:
        raise ValueError(f"the event {kind!r} is unknown to this version of scalesearch")
    try:
        _KINDS[kind].validate_json(json.dumps(event), strict=True)  # type: ignore[attr-defined]
    except (ValidationError, ValueError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"its {place or 'line'} is damaged, or was edited: {first['msg']}") from None


def inside(path: str, workspace: Path, directory: Path) -> Path:
    """The file or directory that an event names: in its command's directory, or a weights file of the workspace.

    A link is followed, and what it leads to counts.
    Raises: ValueError: it is gone, has more than plain files, or lies elsewhere: another's spool could name any file.
    """
    found = workspace / path  # an absolute path stays as it is
    try:
        resolved = found.resolve(strict=True)
    except (OSError, ValueError, RuntimeError):  # a NUL, a circle of links
        raise ValueError(f"{found} is gone") from None
    roots = (directory.resolve(), (workspace / "evaluations").resolve())
    for one in (found, *(resolved.rglob("*") if resolved.is_dir() else ())):
        target = one.resolve()
        if target in roots or not any(target.is_relative_to(root) for root in roots):
            raise ValueError(f"{one} does not lie in {directory}; a spool sends its own files alone")
        if not (target.is_file() or (target.is_dir() and (one == found or not one.is_symlink()))):
            raise ValueError(f"{one} is neither a file nor a directory of files")
    return resolved


def spooled(path: Path, position: int) -> Iterator[bytes]:
    """The lines from a position, each with its end; the last one lacks it while it is written."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(position)
        yield from file


def parsed(line: bytes) -> Event | None:
    """The event of a line; None for what a killed driver left of one."""
    with contextlib.suppress(ValueError, RecursionError):
        event = json.loads(line)
        if (
            isinstance(event, dict)
            and isinstance(event.get("event"), str)
            and isinstance(event.get("run"), str)
            and type(event.get("time")) is int
        ):
            return event
    return None
