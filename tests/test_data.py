from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from scalesearch import data as data_module
from scalesearch.data import DATASETS, Data, DataSpec, describe, load

CONF = Path(__file__).parents[1] / "conf" / "data"
DIGITS = DataSpec("digits", num_train=200, num_val=100)
FASHION = DataSpec("fashion_mnist", num_train=12_000, num_val=10_000)


def quiet(line: str) -> None:
    pass


def rows(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


# --- specifications and configuration


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_yaml_is_a_spec_that_can_be_described(path: Path, tmp_path: Path) -> None:
    text = path.read_text()
    assert f"scalesearch run data={path.stem}" in text.partition("name:")[0]
    spec = DataSpec(**yaml.safe_load(text))
    assert spec.name == path.stem
    assert DataSpec(**json.loads(json.dumps(asdict(spec)))) == spec
    if spec.name == "folder":
        with pytest.raises(ValueError, match=r"needs data\.root, the directory that holds train/"):
            describe(spec)
        spec = replace(spec, root=str(make_folder(tmp_path)), num_val=2)
    description = describe(spec)
    assert description.name == spec.name
    assert description.num_val == spec.num_val
    assert min(description.num_train, description.num_test, description.num_classes, description.resolution) > 1


def test_every_dataset_has_a_yaml_and_every_yaml_a_dataset() -> None:
    assert {path.stem for path in CONF.glob("*.yaml")} == set(DATASETS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "fashion_mnst"}, r"data\.name is 'fashion_mnst'; known datasets: .* did you mean 'fashion_mnist'\?"),
        ({"num_train": 0}, r"data\.num_train must be a whole number of at least 1 or null, got 0"),
        ({"num_val": 0.5}, r"data\.num_val must be a whole number of at least 1, got 0\.5"),
        ({"num_val": None}, r"data\.num_val must be a whole number of at least 1, got None"),
        ({"num_val": True}, r"data\.num_val .* got True"),
        ({"split_seed": -1}, r"data\.split_seed must be a whole number of at least 0, got -1"),
        ({"resolution": 0}, r"data\.resolution must be"),
        ({"root": ""}, r"data\.root must be the path of a directory or null, got ''"),
    ],
)
def test_a_value_that_cannot_be_meant_is_an_error(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DataSpec(**{**asdict(DIGITS), **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_train": None, "num_val": 1438}, r"data\.num_val 1438 leaves none of the 1438 .*; lower data\.num_val$"),
        ({"num_train": 200, "num_val": 1500}, r"data\.num_val 1500 leaves none of the 1438 .*; lower data\.num_val$"),
        (
            {"root": "/somewhere"},
            r"data\.root is '/somewhere', but 'digits' lies in the cache; did you mean data=folder",
        ),
        ({"resolution": 16}, r"data\.resolution is 16, but the images of 'digits' have 8 px"),
    ],
)
def test_asking_for_what_the_dataset_has_not_is_an_error(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        describe(DataSpec(**{**asdict(DIGITS), **changes}))


def test_imagenet_without_a_root_can_be_planned_but_not_read() -> None:
    spec = DataSpec("imagenet", num_train=1000, num_val=1000)
    assert describe(spec).num_classes == 1000
    assert describe(spec).resolution == 224
    with pytest.raises(ValueError, match=r"'imagenet' needs data\.root"):
        load(spec)


# --- splits


@pytest.fixture(scope="module")
def fashion() -> Data:
    return load(FASHION)


def test_fashion_mnist_is_what_it_is_described_to_be(fashion: Data) -> None:
    assert fashion.description == describe(FASHION)
    assert fashion.train_images.shape == (12_000, 1, 28, 28)
    assert fashion.val_images.shape == (10_000, 1, 28, 28)
    assert fashion.train_images.dtype == fashion.val_images.dtype == torch.uint8
    assert fashion.train_labels.dtype == fashion.val_labels.dtype == torch.int64
    assert fashion.train_labels.bincount().tolist() == [1200] * 10
    assert fashion.val_labels.bincount().tolist() == [1000] * 10
    assert fashion.mean == pytest.approx([0.2860], abs=0.003)  # of all 60,000, as commonly quoted
    assert fashion.std == pytest.approx([0.3530], abs=0.003)
    images, labels = fashion.test()
    assert images.shape == (10_000, 1, 28, 28)
    assert labels.tolist()[:5] == [9, 2, 1, 1, 6]


def test_the_split_is_the_same_on_every_machine_and_with_every_library_version(fashion: Data) -> None:
    assert fashion.fingerprint == "569ed0d754823318f91d2c3df74697cb75892259bcd39bfd5aa1e10592d6a30d"


@pytest.mark.parametrize("name", ["digits", "fashion_mnist"])
def test_training_validation_and_test_images_are_disjoint(name: str) -> None:
    data = load(DataSpec(name, num_train=None, num_val=700))
    places = data_module._stratified_order(DATASETS[name](DIGITS, quiet).open("train").labels.numpy(), 0)
    assert len(set(places.tolist())) == len(places) == len(data.train_labels) + len(data.val_labels)
    if name == "digits":  # has no two equal images, so the pixels themselves can be compared
        train, val, test = rows(data.train_images), rows(data.val_images), rows(data.test()[0])
        assert len(train | val | test) == len(train) + len(val) + len(test) == 1797


def test_splits_keep_the_shares_of_the_classes() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    order = data_module._stratified_order(labels, 3)
    for num in (10, 55, 500):
        for part in (order[:num], order[-num:]):
            assert np.bincount(labels[part], minlength=3) == pytest.approx(num * np.array([0.6, 0.3, 0.1]), abs=1.01)


def test_training_and_validation_images_do_not_depend_on_each_others_number() -> None:
    small = load(DIGITS)
    more_train, more_val = load(replace(DIGITS, num_train=300)), load(replace(DIGITS, num_val=150))
    assert torch.equal(more_train.train_images[:200], small.train_images)
    assert torch.equal(more_train.val_images, small.val_images)
    assert torch.equal(more_val.train_images, small.train_images)
    assert torch.equal(more_val.val_images[-100:], small.val_images)


def test_the_fingerprint_changes_when_and_only_when_the_data_used_change(tmp_path: Path) -> None:
    same = [DIGITS, replace(DIGITS, cache=str(tmp_path))]
    others = [replace(DIGITS, num_train=201), replace(DIGITS, num_val=101), replace(DIGITS, split_seed=1)]
    assert len({load(spec).fingerprint for spec in same}) == 1
    assert len({load(spec).fingerprint for spec in [DIGITS, *others]}) == 4
    images, labels = load(DIGITS).train_images, load(DIGITS).train_labels
    prints = {data_module._fingerprint(images, labels)}
    changed = images.clone()
    changed[-1, 0, 7, 7] ^= 1
    prints |= {data_module._fingerprint(changed, labels), data_module._fingerprint(images, labels.flip(0))}
    assert len(prints) == 3


def test_mean_and_std_are_those_of_the_training_images() -> None:
    images = torch.randint(0, 256, (500, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    std, mean = torch.std_mean(images.double() / 255, dim=(0, 2, 3), correction=0)
    got_mean, got_std = data_module._mean_and_std(images)
    assert got_mean == pytest.approx(mean.tolist(), rel=1e-12)
    assert got_std == pytest.approx(std.tolist(), rel=1e-12)
    with pytest.raises(ValueError, match="all of one colour"):
        data_module._mean_and_std(torch.zeros(4, 1, 2, 2, dtype=torch.uint8))


def test_the_test_split_is_not_read_before_it_is_asked_for(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    broken = next((root / "test" / "cat").iterdir())
    broken.write_bytes(b"no image")
    data = load(DataSpec("folder", None, 2, root=str(root), resolution=8), log=quiet)
    with pytest.raises(ValueError, match=f"cannot read the image {broken}"):
        data.test()


# --- class folders


def make_folder(directory: Path, *, held_out: str | None = "test") -> Path:
    root = directory / "images"
    generator = np.random.default_rng(0)
    for split in ("train", held_out):
        for label, name in enumerate(("cat", "dog") if split else ()):
            place = root / str(split) / name
            place.mkdir(parents=True)
            for i in range(10 if split == "train" else 3):
                pixels = generator.integers(0, 120, (12, 20, 3), dtype=np.uint8) + np.uint8(100 * label)
                Image.fromarray(pixels).save(place / f"{i:02d}.{'png' if i % 2 else 'jpg'}")
    return root


def test_a_folder_becomes_rgb_tensors_of_the_resolution_asked_for(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    Image.new("L", (5, 9), 77).save(root / "train" / "cat" / "10.png")
    spec = DataSpec("folder", num_train=15, num_val=6, root=str(root), resolution=8)
    data = load(spec, log=quiet)
    assert data.description == describe(spec)
    assert data.description.num_classes == 2
    assert data.description.num_test == 6
    assert data.train_images.shape == (15, 3, 8, 8)
    brightness = data.train_images.float().mean(dim=(1, 2, 3))
    assert torch.equal(brightness > 110, data.train_labels == 1)  # images and labels still belong together
    assert data.test()[1].tolist() == [0, 0, 0, 1, 1, 1]


def test_the_shorter_side_is_resized_and_the_centre_kept(tmp_path: Path) -> None:
    pixels = np.zeros((4, 12, 3), np.uint8)
    pixels[:, 4:8] = 200
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    assert data_module._decode([tmp_path / "wide.png"], 4, quiet).eq(200).all()


def test_a_folder_without_a_test_split_gives_a_fifth_of_its_images(tmp_path: Path) -> None:
    root = make_folder(tmp_path, held_out=None)
    spec = DataSpec("folder", None, 4, root=str(root), resolution=8)
    assert (describe(spec).num_train, describe(spec).num_test) == (12, 4)
    data = load(spec, log=quiet)
    images, labels = data.test()
    assert labels.bincount().tolist() == [2, 2]
    assert len(rows(images) | rows(data.train_images) | rows(data.val_images)) == 20


def test_val_is_the_test_split_where_there_is_no_test(tmp_path: Path) -> None:
    spec = DataSpec("folder", None, 4, root=str(make_folder(tmp_path, held_out="val")), resolution=8)
    assert (describe(spec).num_train, describe(spec).num_test) == (16, 6)


def test_a_folder_that_does_not_fit_into_memory_is_refused(tmp_path: Path) -> None:
    spec = DataSpec("folder", None, 4, root=str(make_folder(tmp_path)), resolution=10_000_000)
    with pytest.raises(
        ValueError, match=r"20 images of 10000000 px take 6000000\.0 GB.*lower data\.resolution or data\.num"
    ):
        load(spec)


def test_errors_of_a_folder_name_the_place(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    spec = DataSpec("folder", None, 4, root=str(root), resolution=8)
    with pytest.raises(ValueError, match=r"data\.root '.*nowhere' has no folder train/"):
        describe(replace(spec, root=str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match=r"needs data\.resolution"):
        describe(replace(spec, resolution=None))
    with pytest.raises(ValueError, match="has 2 classes, ImageNet has 1000; use data=folder"):
        describe(replace(spec, name="imagenet"))
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    lines: list[str] = []
    load(spec, log=lines.append)
    assert any("1 entries are no images" in line for line in lines)
    (root / "train" / "emu").mkdir()
    with pytest.raises(ValueError, match="emu has no images"):
        describe(spec)
    shutil.rmtree(root / "train" / "emu")
    (root / "test" / "owl").mkdir()
    with pytest.raises(ValueError, match="the class 'owl' that train/ has not"):
        describe(spec)
    shutil.rmtree(root / "test" / "owl")
    whole = (root / "train" / "dog" / "01.png").read_bytes()
    (root / "train" / "dog" / "01.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cannot read the image .*01\.png"):
        load(spec, log=quiet)


# --- readers


def test_idx_files_of_another_kind_or_size_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    good = bytes((0, 0, 8, 2)) + np.array([2, 3], ">u4").tobytes() + bytes(range(6))
    path.write_bytes(gzip.compress(good))
    assert data_module._read_idx(path, ndim=2).tolist() == [[0, 1, 2], [3, 4, 5]]
    for bad in (good[:-1], good + b"x", b"\0\0\x0d\x02" + good[4:], b"", good[:6]):
        path.write_bytes(gzip.compress(bad))
        with pytest.raises(ValueError, match="is not an idx file of 2 dimensions"):
            data_module._read_idx(path, ndim=2)


def make_archive(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("label_bytes", [1, 2])
def test_cifar_is_read_from_its_binary_archive(label_bytes: int, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    coarse = [b"\x13"] * (label_bytes - 1)
    records = [b"".join([*coarse, bytes([i]), image.tobytes()]) for i, image in enumerate(images)]
    # the batches lie in the real archive in any order, beside files of another kind
    members = {"d/b2.bin": b"".join(records[3:]), "d/readme.html": b"x", "d/b1.bin": b"".join(records[:3])}
    make_archive(tmp_path / "cifar.tar.gz", members)
    got, labels = data_module._read_cifar(tmp_path / "cifar.tar.gz", ["b1.bin", "b2.bin"], label_bytes=label_bytes)
    assert labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert np.array_equal(got.numpy(), images)
    with pytest.raises(ValueError, match=r"has no 'b3\.bin' made of records"):
        data_module._read_cifar(tmp_path / "cifar.tar.gz", ["b3.bin"], label_bytes=label_bytes)


# --- downloads


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
    data_module._fetch(sha256, tmp_path / "cache", mirrors, log=lines.append)
    assert listing(tmp_path / "cache") == sha256
    told = "\n".join(lines)
    assert "refused" in told
    assert "a.gz has the wrong SHA-256" in told
    assert "404" in told
    assert f"{mirrors[3]}/a.gz" not in told  # what the third gave is kept


def test_a_good_cache_needs_no_mirror_and_a_damaged_file_is_replaced(serve, published, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    directory, sha256 = published
    cache = tmp_path / "cache"
    shutil.copytree(directory, cache)
    data_module._fetch(sha256, cache, [], log=quiet)
    for damage in (lambda content: content[:-1], lambda content: b"", lambda content: b"x" + content[1:]):
        (cache / "b.gz").write_bytes(damage((cache / "b.gz").read_bytes()))
        lines: list[str] = []
        data_module._fetch(sha256, cache, [serve(directory)], log=lines.append)
        assert "b.gz is damaged (wrong SHA-256)" in lines[0]
        assert listing(cache) == sha256


def test_what_cannot_be_fetched_is_an_error_that_says_what_to_do(serve, published, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    directory, sha256 = published
    (directory / "b.gz").write_bytes(b"other")
    cache = tmp_path / "cache"
    with pytest.raises(OSError, match=rf"cannot download b\.gz \(.*wrong SHA-256.*put the files into {cache} yourself"):
        data_module._fetch(sha256, cache, [serve(directory)], log=quiet)
    assert listing(cache) == {"a.gz": sha256["a.gz"]}  # and nothing that is half a file
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write the cache .* name another with data\.cache or SCALESEARCH_CACHE"):
        data_module._fetch(sha256, tmp_path / "file" / "cache", [], log=quiet)


def test_processes_that_fetch_at_once_all_succeed(serve, published, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    directory, sha256 = published
    script = (
        "import json, sys; from pathlib import Path; from scalesearch.data import _fetch\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "_fetch(json.loads(sys.argv[1]), Path(sys.argv[2]), [sys.argv[3]], log=print)"
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
    make_archive(archive, {"test_batch.bin": bytes(3073)})
    with pytest.raises(OSError, match=r"cannot download cifar-10-binary\.tar\.gz"):
        data_module._fetch(data_module.CIFAR_SHA256, archive.parent, ["http://127.0.0.1:1"], log=quiet)


def test_the_debian_package_is_unpacked_without_installing_it(tmp_path: Path) -> None:
    if shutil.which("apt-get") is None:
        pytest.skip("no apt-get on this system")
    sha256 = data_module.FASHION_MNIST_SHA256
    try:
        data_module._fetch_package("dataset-fashion-mnist", sha256, tmp_path, quiet)
    except OSError as error:
        pytest.skip(f"the package cannot be had here: {error}")
    assert listing(tmp_path) == sha256


def test_a_command_that_fails_says_which(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="apt-get"):
        data_module._call(["apt-get", "download", "no-such-package-of-images"], tmp_path)


def test_the_cache_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = DataSpec("digits", None, 100)
    monkeypatch.delenv("SCALESEARCH_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data_module._cache(spec) == tmp_path / "scalesearch"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data_module._cache(spec) == Path.home() / ".cache" / "scalesearch"
    monkeypatch.setenv("SCALESEARCH_CACHE", str(tmp_path / "own"))
    assert data_module._cache(spec) == tmp_path / "own"
    assert data_module._cache(replace(spec, cache="~/images")) == Path.home() / "images"


def test_num_train_is_a_limit() -> None:
    assert describe(replace(DIGITS, num_train=10**9)).num_train == describe(replace(DIGITS, num_train=None)).num_train
    assert len(load(replace(DIGITS, num_train=1400)).train_images) == 1338
