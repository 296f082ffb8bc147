"""Files of data sets: fetched from mirrors or a Debian package, verified, and kept in the cache."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import subprocess
import tempfile
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from scalesearch.data.spec import DataSpec, Log
from scalesearch.workspace import naming


def cache_directory(spec: DataSpec) -> Path:
    if given := spec.cache or os.environ.get("SCALESEARCH_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "scalesearch"


def fetch(
    sha256: Mapping[str, str], directory: Path, mirrors: Sequence[str], *, package: str | None = None, log: Log
) -> None:
    """Brings the files (name -> SHA-256) into `directory`: from a mirror, then from the Debian package.

    What lies there already is verified too, and fetched again if it is not what it should be. A file appears under its
    name only when it is whole and verified, so any number of processes may do this at once.
    """
    bad = [name for name in sha256 if not _is_good(directory / name, sha256[name])]
    if not bad:
        return
    for name in bad:
        if (directory / name).exists():
            log(f"{directory / name} is damaged (wrong SHA-256) and will be fetched again")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK):  # else every mirror would be blamed for it
            raise PermissionError("no permission to write")
    except OSError as error:
        raise OSError(
            f"cannot write the cache {directory}: {error}; name another with data.cache or SCALESEARCH_CACHE"
        ) from error
    reasons = []
    for mirror in mirrors:
        try:
            for name in list(bad):
                log(f"fetching {mirror}/{name}")
                with urllib.request.urlopen(f"{mirror}/{name}", timeout=10) as response:
                    _put(response, directory / name, sha256[name])
                bad.remove(name)
            return
        except (OSError, http.client.HTTPException) as error:
            reasons.append(f"{mirror}: {error}")
            log(f"  failed: {error}")
    if package is not None:
        try:
            _fetch_package(package, {name: sha256[name] for name in bad}, directory, log)
            return
        except (OSError, subprocess.SubprocessError) as error:
            reasons.append(f"Debian package {package}: {error}")
            log(f"  failed: {error}")
    raise OSError(
        f"cannot download {', '.join(bad)} ({'; '.join(reasons)}). "
        f"Connect to the network and repeat, or put the files into {directory} yourself"
    )


def _is_good(path: Path, sha256: str) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except (FileNotFoundError, NotADirectoryError):
        return False


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A file to write, which becomes `path` in one step; where writing fails nothing is left behind."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")  # another directory may be another file system
    with naming(path):
        try:
            yield part
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def _put(stream: IO[bytes], path: Path, sha256: str) -> None:
    """Writes the stream to `path` if it has that SHA-256. Raises: OSError: it has another."""
    with appearing(path) as part:
        with part.open("xb") as file:
            shutil.copyfileobj(stream, file, 2**20)
        if not _is_good(part, sha256):
            raise OSError(f"what came for {path.name} has the wrong SHA-256")


def _fetch_package(package: str, sha256: Mapping[str, str], directory: Path, log: Log) -> None:
    """Takes the files out of a Debian package without installing it; needs apt-get, not root."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise OSError("this system has no apt-get")
    with tempfile.TemporaryDirectory(prefix="scalesearch-") as temporary:
        work = Path(temporary)
        for made in ("state/lists/partial", "cache/archives/partial", "tree"):
            (work / made).mkdir(parents=True)
        apt = ["apt-get", "-qq", "-o", "Acquire::http::Timeout=10", "-o", "Acquire::https::Timeout=10"]
        if os.geteuid() == 0:  # else apt drops to a user who cannot read this directory, and warns
            apt += ["-o", "APT::Sandbox::User=root"]
        log(f"fetching the Debian package {package}")
        try:
            _call([*apt, "download", package], work)
        except OSError:
            # No list of packages yet, or an old one: into a list of our own, as the system's belongs to root.
            log("  no package list knows it; fetching a list")
            apt += ["-o", f"Dir::State::Lists={work / 'state/lists'}", "-o", f"Dir::Cache={work / 'cache'}"]
            _call([*apt, "update"], work)
            _call([*apt, "download", package], work)
        _call(["dpkg", "-x", str(next(work.glob("*.deb"))), str(work / "tree")], work)
        found = {path.name: path for path in (work / "tree").rglob("*") if path.name in sha256}
        for name, expected in sha256.items():
            if name not in found:
                raise OSError(f"the package holds no {name}")
            with found[name].open("rb") as file:
                _put(file, directory / name, expected)


def _call(command: Sequence[str], directory: Path) -> None:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise OSError(f"{' '.join([command[0], *command[-2:]])} failed: {lines[-1]}")
