"""The C files of this folder as a library: compiled once for a machine, kept in the user's cache, and loaded.

Where there is no compiler, or it fails, there is no library, and torch does all the work.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from scalesearch.machine import cpu_flags, instructions
from scalesearch.text import one_line

SOURCES = Path(__file__).parent
_ARGUMENTS = {"bind": 5, "forward": 3, "backward": 3}  # pointers all
FUNCTIONS = tuple(_ARGUMENTS)
TYPES = ("float", "double")


class Library(NamedTuple):
    """`loaded` is None where there is none, for the reason `why`; `digest` is of sources, compiler and processor."""

    loaded: ctypes.CDLL | None
    digest: str = ""
    why: str = ""


def cache_directory() -> Path:
    """Where the library and what was measured with it are kept: SCALESEARCH_CACHE, or the user's cache."""
    given = os.environ.get("SCALESEARCH_CACHE")
    base = Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "scalesearch"
    return base / "kernels"


def mode() -> str:
    """SCALESEARCH_KERNELS in the environment: "auto", what a timing finds faster; "on", all that is possible; "off".

    Raises: ValueError: it is something else.
    """
    given = os.environ.get("SCALESEARCH_KERNELS", "").lower() or "auto"
    if given not in ("auto", "on", "off"):
        raise ValueError(f"SCALESEARCH_KERNELS is {given!r} in the environment; it must be auto, on or off")
    return given


def library() -> Library:
    """The library of this machine; compiled in some seconds if nothing has compiled it before.

    With SCALESEARCH_KERNELS=off there is none. CC names another compiler than `cc`.
    """
    if mode() == "off":
        return Library(None, why="SCALESEARCH_KERNELS is off")
    return _library(os.environ.get("CC") or "cc", str(cache_directory()), tuple(_options()))


@lru_cache(maxsize=8)
def _library(compiler: str, directory: str, options: tuple[str, ...]) -> Library:
    command = shutil.which(compiler.split()[0])
    if command is None:
        return Library(None, why=f"there is no C compiler {compiler!r}")
    try:
        about = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=60, check=False).stdout
        sources = sorted((path.name, path.read_bytes()) for path in SOURCES.glob("*.[ch]"))
        named = repr((sources, about, options, sorted(cpu_flags())))
        digest = hashlib.sha256(named.encode()).hexdigest()
        path = Path(directory) / f"{digest}.so"
        loaded = _loaded(path)
        if loaded is None:  # nobody has compiled it, or the file is damaged
            _compile([command, *compiler.split()[1:], *options], path)
            loaded = _loaded(path)
        if loaded is None:
            path.unlink(missing_ok=True)
            return Library(None, why=f"what {command} compiled cannot be loaded")
    except (OSError, subprocess.SubprocessError) as error:
        return Library(None, why=one_line(error))
    return Library(loaded, digest)


def _options() -> list[str]:
    # No option that lets sums change their order: so the files alone say which bits come out.
    options = ["-O3", "-march=native", "-std=gnu11", "-fPIC", "-shared"]
    if "avx512f" in cpu_flags():  # oneDNN's limit is kept as well, so that both are compared on one machine
        options.append("-mprefer-vector-width=512" if "AVX-512" in instructions() else "-mno-avx512f")
    return options


def _loaded(path: Path) -> ctypes.CDLL | None:
    """None where the file is not there, or is no library of these functions."""
    try:
        loaded = ctypes.CDLL(str(path))
        for name in (f"{function}_{of}" for function in FUNCTIONS for of in TYPES):
            getattr(loaded, name).argtypes = [ctypes.c_void_p] * _ARGUMENTS[name.rpartition("_")[0]]
    except (OSError, AttributeError):
        return None
    return loaded


def _compile(command: list[str], path: Path) -> None:
    """Written aside and renamed, so that another process never loads a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=".so")
    os.close(handle)
    try:
        ran = subprocess.run(
            [*command, str(SOURCES / "kernels.c"), "-o", temporary, "-lm"],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if ran.returncode:
            raise OSError(f"{command[0]} ended with {ran.returncode}: {one_line(OSError(ran.stderr))[:200]}")
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
