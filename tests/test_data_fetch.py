"""Files of data sets: from mirrors that fail in every way, into a cache that others write too."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from scalesearch.data import DataSpec
from scalesearch.data.datasets import cifar10, fashion_mnist
from scalesearch.data.fetch import _call, _fetch_package, cache_directory, fetch


def quiet(line: str) -> None:
    pass


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[object]:
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(directory: Path) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(directory)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    directory = tmp_path / "published"
    directory.mkdir()
    for name in ("a.gz", "b.gz"):
        (directory / name).write_bytes(os.urandom(3_000_000))
    return directory, {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


def listing(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


def test_a_dead_mirror_and_one_that_serves_wrong_bytes_are_passed_over(serve, published, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    directory, sha256 = published
    wrong, halfway = tmp_path / "wrong", tmp_path / "halfway"
    for made in (wrong, halfway):
        made.mkdir()
    (wrong / "a.gz").write_bytes(b"<html>log in first</html>")
    shutil.copy(directory / "a.gz", halfway / "a.gz")  # and no b.gz
    lines: list[str] = []
    mirrors = ["http://127.0.0.1:1", serve(wrong), serve(halfway), serve(directory)]
    fetch(sha256, tmp_path / "cache", mirrors, log=lines.append)
    assert listing(tmp_path / "cache") == sha256
    printed = "\n".join(lines)
    assert "refused" in printed
    assert "a.gz has the wrong SHA-256" in printed
    assert "404" in printed
    assert f"{mirrors[3]}/a.gz" not in printed  # what the third gave is kept


def test_a_good_cache_needs_no_mirror_and_a_damaged_file_is_replaced(serve, published, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    directory, sha256 = published
    cache = tmp_path / "cache"
    shutil.copytree(directory, cache)
    fetch(sha256, cache, [], log=quiet)
    for damage in (lambda content: content[:-1], lambda content: b"", lambda content: b"x" + content[1:]):
        (cache / "b.gz").write_bytes(damage((cache / "b.gz").read_bytes()))
        lines: list[str] = []
        fetch(sha256, cache, [serve(directory)], log=lines.append)
        assert "b.gz is damaged (wrong SHA-256)" in lines[0]
        assert listing(cache) == sha256


def test_what_cannot_be_fetched_is_an_error_that_says_what_to_do(serve, published, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    directory, sha256 = published
    (directory / "b.gz").write_bytes(b"other")
    cache = tmp_path / "cache"
    with pytest.raises(OSError, match=rf"cannot download b\.gz \(.*wrong SHA-256.*put the files into {cache} yourself"):
        fetch(sha256, cache, [serve(directory)], log=quiet)
    assert listing(cache) == {"a.gz": sha256["a.gz"]}  # and nothing that is half a file
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write the cache .* name another with data\.cache or SCALESEARCH_CACHE"):
        fetch(sha256, tmp_path / "file" / "cache", [], log=quiet)


def test_processes_that_fetch_at_once_all_succeed(serve, published, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    directory, sha256 = published
    script = (
        "import json, sys; from pathlib import Path; from scalesearch.data.fetch import fetch\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "fetch(json.loads(sys.argv[1]), Path(sys.argv[2]), [sys.argv[3]], log=print)"
    )
    command = [sys.executable, "-c", script, json.dumps(sha256), str(tmp_path / "cache"), serve(directory)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0, 0]
    assert listing(tmp_path / "cache") == sha256


def test_an_archive_of_cifar_with_wrong_bytes_is_not_read(tmp_path: Path) -> None:
    archive = tmp_path / "cifar10" / "cifar-10-binary.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz"):
        pass
    with pytest.raises(OSError, match=r"cannot download cifar-10-binary\.tar\.gz"):
        fetch(cifar10.SHA256, archive.parent, ["http://127.0.0.1:1"], log=quiet)


def test_the_debian_package_is_unpacked_without_installing_it(tmp_path: Path) -> None:
    if shutil.which("apt-get") is None:
        pytest.skip("no apt-get on this system")
    sha256 = fashion_mnist.SHA256
    try:
        _fetch_package("dataset-fashion-mnist", sha256, tmp_path, quiet)
    except OSError as error:
        pytest.skip(f"the package cannot be had here: {error}")
    assert listing(tmp_path) == sha256


def test_a_command_that_fails_says_which(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="apt-get"):
        _call(["apt-get", "download", "no-such-package-of-images"], tmp_path)


def test_the_cache_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = DataSpec("digits", None, 100)
    monkeypatch.delenv("SCALESEARCH_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory(spec) == tmp_path / "scalesearch"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory(spec) == Path.home() / ".cache" / "scalesearch"
    monkeypatch.setenv("SCALESEARCH_CACHE", str(tmp_path / "own"))
    assert cache_directory(spec) == tmp_path / "own"
    assert cache_directory(replace(spec, cache="~/images")) == Path.home() / "images"
