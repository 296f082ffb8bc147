"""Where things lie in a workspace, how a command ends, and the arguments that several commands take.

Only light modules are imported here: the help of a command is made of this.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from scalesearch.checks import Must, between, checked
from scalesearch.text import near

# Exit codes; docs/architecture.md explains each.
DONE, USAGE, SOME_FAILED, ALL_FAILED, INFEASIBLE, LOCKED, ENVIRONMENT, NOTHING_LEARNT = 0, 2, 3, 4, 5, 6, 7, 8
INTERRUPTED, TERMINATED = 130, 143
TRAININGS = "trainings"


class Infeasible(Exception):  # noqa: N818 - an answer: no network meets the constraints
    """Nothing meets the constraints; the message names the nearest points."""


class AllAlike(Exception):  # noqa: N818 - what trainings do
    """So many trainings in a row have failed in the same way that the others would as well."""


def conf_dir() -> Path:
    """The configuration that ships: in the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    return next(path for path in (package / "conf", package.parent / "conf") if (path / "baseline").exists())


def experiments() -> dict[str, str]:
    """Each experiment that `reproduce` runs, with what it is and how long it takes: the head of its YAML."""
    found = {}
    for path in sorted((conf_dir() / "experiment").glob("*.yaml")):
        text = path.read_text()
        if "\nexperiment:" in text:
            about, _, time = (line.removeprefix("# ") for line in text.splitlines()[1:4])
            found[path.stem] = f"{about} {time.removeprefix('Time: ').partition('. ')[0].rstrip('.')}."
    return found


def searches() -> list[str]:
    """The names in conf/experiment that are searches: for `run` and `plan`."""
    return sorted({path.stem for path in (conf_dir() / "experiment").glob("*.yaml")} - experiments().keys())


def study_directory(workspace: Path, study: str) -> Path:
    """Where a study keeps its tables, figures and settings; it may not be there yet."""
    return workspace / "studies" / study


def training_directory(workspace: Path, network: str, key: str) -> Path:
    """Where `train` keeps what it has for MLflow; `key` is that of its first seed."""
    return workspace / TRAININGS / f"{re.sub(r'[^A-Za-z0-9_.+-]+', '_', network)}-{key[:8]}"


def experiment_directory(workspace: Path, experiment: str) -> Path:
    """Where an experiment of the paper keeps its tables and figures; it may not be there yet."""
    return workspace / "experiments" / experiment


def sqlite_url(path: Path) -> str:
    """The address of a database file, as Optuna and MLflow take it.

    A path with `?`, `#` or `%` would be another file to them, each with its own idea which signs are to be escaped: so
    the address leads through a link whose path has none of these.
    """
    absolute = path.absolute()
    if not re.fullmatch(r"[\w/ .,=+@~:-]*", str(absolute)):
        absolute = _plain_link(absolute.parent) / absolute.name
    return f"sqlite:///{absolute}"


def sqlite_file(url: str) -> Path | None:
    """The file of a sqlite database; None for another one.

    >>> sqlite_file("sqlite:////tmp/a.db"), sqlite_file("postgresql://host/a")
    (PosixPath('/tmp/a.db'), None)
    """
    prefix = "sqlite:///"
    path = url.removeprefix(prefix).split("?")[0]
    return Path(path) if url.startswith(prefix) and path else None


# A disk that is full, read-only or out of its user's quota, a file that may not grow, and a disk that fails.
FULL = frozenset({errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG, errno.EIO})


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Where the disk refuses something in here, the OSError names this file: a write or a flush knows no name."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Locked until the end, or until the process ends however it ends; BlockingIOError where another has it."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def make_aside(path: Path, make: Callable[[Path], object]) -> None:
    """A file that is there whole or not at all: made elsewhere, and moved into place. Its lock must be held.

    Libraries make the tables of a database on first use. Two processes doing so at once crash each other, and one that
    is killed meanwhile leaves a database that never opens again.
    """
    for leftover in path.parent.glob(f".{path.name}.*.new*"):
        leftover.unlink()
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.new")
    make(unfinished)
    unfinished.replace(path)


@cache
def _plain_link(directory: Path) -> Path:
    own = Path(tempfile.mkdtemp(prefix="scalesearch-"))  # for this user alone, else another could lay a link there
    atexit.register(shutil.rmtree, own, ignore_errors=True)  # the link goes, not what it leads to
    link = own / "workspace"
    link.symlink_to(directory)
    return link


def find_study(workspace: Path, study: str | None) -> Path:
    """The directory of a study that exists; the only one where none is named.

    Raises: ValueError that lists the known ones.
    """
    found = {path.parent.name: path.parent for path in sorted((workspace / "studies").glob("*/settings.yaml"))}
    return _named(found, workspace, study)


def find_records(workspace: Path, name: str | None) -> Path:
    """The directory of a study, an experiment or a training that has records for MLflow; the only one if none is named.

    Raises: ValueError that lists the known ones.
    """
    found = {
        path.parent.name: path.parent
        for kind in (TRAININGS, "experiments", "studies")  # a study comes last: of equal names it is meant
        for path in sorted((workspace / kind).glob("*/tracking.jsonl"))
    }
    if name is not None and name not in found:
        found |= {name: find_study(workspace, name)}
    return _named(found, workspace, name)


def refuse_links(directory: Path) -> None:
    """Nothing, where all that a command may write below `directory` stays there.

    Raises: ValueError that names a link which leads out: a study may come from somebody else, with links in it.
    """
    root = directory.resolve()
    for path in directory.rglob("*"):
        if path.is_symlink():
            try:
                target = path.resolve()
            except (OSError, RuntimeError):  # a circle
                target = Path(path.anchor)
            if not target.is_relative_to(root):
                raise ValueError(f"{path} is a link that leads out of {directory}, to {target}; remove it")
        if path.exists() and not (path.is_file() or path.is_dir()):  # to open a pipe is to wait for ever
            raise ValueError(f"{path} is neither a file nor a directory; remove it")


def _named(found: Mapping[str, Path], workspace: Path, study: str | None) -> Path:
    known = list(found)
    if study is None and len(known) == 1:
        study = known[0]
    if study in found:
        refuse_links(found[str(study)])
        return found[str(study)]
    if not known:
        raise ValueError(f"there is no study in {workspace}; first: scalesearch run, or name another workspace=DIR")
    if study is None:
        raise ValueError(f"study=NAME is missing; the studies in {workspace}: {', '.join(known)}")
    raise ValueError(f"there is no study {study!r} in {workspace}{near(study, known)}")


def _directory(given: object) -> Path:
    if isinstance(given, Path):
        return given
    if not isinstance(given, str) or not given or "\0" in given:
        raise ValueError("it must be the path of a directory")
    path = Path(given).expanduser()
    for part in (path, *path.parents):
        try:
            in_the_way = part.exists() and not part.is_dir()
        except OSError as error:  # a name that is too long, a directory that may not be entered
            raise ValueError(f"{error.strerror}; it must be the path of a directory") from None
        if in_the_way:
            raise ValueError(f"{part} is a file; it must be the path of a directory")
    return path


def _study_name(given: object) -> str:
    # A number is a name as it stands, but true, 1e5 and 1.10 would not come out as they were written.
    whole = isinstance(given, int) and not isinstance(given, bool)
    if not (isinstance(given, str) or whole) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", str(given)):
        raise ValueError("a name has letters, digits, '.', '_' and '-' only, 100 at most")
    return str(given)


TIMM = "timm:"  # before the name of a network, or of weights, of that library


def is_timm(function: object) -> bool:
    """Whether a factory names a network of timm, and no function of the user's."""
    return str(function).startswith(TIMM)


def _initial_weights(given: object) -> str:
    library = isinstance(given, str) and re.fullmatch(rf"{TIMM}[\w.]+(@.+)?|torchvision:[\w.]+", given)
    path = str(given).partition("@")[2] if library else given
    if not library and not (isinstance(given, str) and given.endswith(".safetensors") and "\0" not in given):
        raise ValueError("it must be null, timm:NAME, torchvision:NAME, or the path of a .safetensors file")
    if path and not Path(str(path)).is_file():
        raise ValueError(f"there is no file {path}")
    return str(given)


def _as_tuple(given: object) -> Any:
    if not isinstance(given, list | tuple) or not given:
        raise ValueError("it must be a list of numbers, such as phis=[1,2,3]")
    return tuple(given)


def _costs(given: object) -> Any:
    if not isinstance(given, list | tuple) or not given:
        raise ValueError("it must be a list of numbers, such as target.costs=[1,2,4]")
    if len(set(given)) < len(given):
        raise ValueError("it has a cost twice; each is trained once")
    return tuple(sorted(given)) if all(isinstance(one, int | float) for one in given) else tuple(given)


Directory = Annotated[Path, BeforeValidator(_directory), Must("the path of a directory")]
StudyName = Annotated[str, BeforeValidator(_study_name), Must("the name of a study")]
InitialWeights = Annotated[
    str,
    BeforeValidator(_initial_weights),
    Must("timm:NAME, torchvision:NAME, or the path of a .safetensors file"),
]
Phis = Annotated[
    tuple[Annotated[float, between(-20, 20)], ...],
    BeforeValidator(_as_tuple),
    Must("a list of numbers, such as phis=[1,2,3]"),
]


@checked("target", kw_only=True)
class Target:
    """The cost that one will spend, for which candidates of lower costs are trained; without one it is no such search.

    Raises: ValueError: both ways of saying it are given, or an option without either.
    """

    macs_ratio: Annotated[
        float | None, between(1.01, 1e6, "multiply-adds of the network that is wanted, times the baseline's")
    ] = None
    macs: Annotated[Any, Must("null or a number such as 2.4G")] = None
    costs: Annotated[
        tuple[Annotated[float, between(1, 8)], ...] | None,
        BeforeValidator(lambda given: None if given is None else _costs(given)),
        Field(
            description="at which candidates are trained, times the 1x network's; null: 1, 2 and 4, up to the target"
        ),
        Must("null or a list of numbers from 1 to 8, such as target.costs=[1,2,4]"),
    ] = None
    splits: Annotated[int, between(4, 91, "of each cost above 1, spread over depth, width and resolution")] = 7
    seeds: Annotated[int, between(1, 1000, "of each candidate")] = 1

    def __post_init__(self) -> None:
        if self.macs_ratio is not None and self.macs is not None:
            raise ValueError("target.macs_ratio and target.macs each say what the target is; give one of them")
        if not self.given and (self.costs, self.splits, self.seeds) != (None, 7, 1):
            raise ValueError(
                "target.costs, target.splits and target.seeds say how a target is searched, and there is none; give "
                "target.macs_ratio=8 or target.macs=2.4G as well"
            )

    @property
    def given(self) -> bool:
        """Whether there is a target."""
        return self.macs_ratio is not None or self.macs is not None
