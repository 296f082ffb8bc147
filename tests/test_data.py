from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import case
from folders import make_folder

from scalesearch.data import DATASETS, Data, DataSpec, defaults, describe, load
from scalesearch.data.datasets.cifar10 import _read_cifar
from scalesearch.data.datasets.fashion_mnist import _read_idx
from scalesearch.data.splits import fingerprint, mean_and_std, stratified_order

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


def test_every_dataset_has_a_yaml_or_defaults_and_every_yaml_a_dataset() -> None:
    given = {path.stem for path in CONF.glob("*.yaml")}
    assert given <= set(DATASETS)
    for name in set(DATASETS) - given:
        with case(name):
            describe(DataSpec(**defaults(name)))


def test_names_are_known_before_torch_is_imported() -> None:
    code = "import sys; from scalesearch.data import DATASETS; print(*DATASETS); assert 'torch' not in sys.modules"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(ended.stdout.split()) == set(DATASETS)


def test_a_dataset_of_another_package_is_found_by_its_entry_point(tmp_path: Path) -> None:
    """A real one: a package with the metadata that an installation writes."""
    (tmp_path / "stripes.py").write_text(
        "import torch\n"
        "from scalesearch.data.spec import Source, Split\n\n"
        "DEFAULTS = {'num_val': 6}\n\n"
        "def source(spec, log):\n"
        "    labels = torch.arange(20) % 2\n"
        "    images = (labels[:, None, None, None] * 200 + torch.arange(4)).to(torch.uint8).expand(20, 1, 4, 4)\n"
        "    return Source(1, 2, 4, 20, 20, lambda split: Split(labels, lambda index: images[index]))\n"
    )
    metadata = tmp_path / "stripes-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: stripes\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[scalesearch.datasets]\nstripes = stripes:source\n")
    code = (
        "from scalesearch.data import DATASETS, DataSpec, defaults, load\n"
        "assert 'stripes' in set(DATASETS)\n"
        "data = load(DataSpec(**defaults('stripes')))\n"
        "print(len(data.train_images), len(data.val_images), len(data.test()[1]))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert ended.stdout.split() == ["14", "6", "20"], ended.stderr


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "fashion_mnst"}, r"data\.name is 'fashion_mnst'; did you mean 'fashion_mnist'\?"),
        ({"num_train": 0}, r"data\.num_train is 0; it must be null or a whole number of at least 1"),
        ({"num_val": 0.5}, r"data\.num_val is 0\.5; it must be a whole number of at least 1"),
        ({"num_val": None}, r"data\.num_val is None; it must be a whole number of at least 1"),
        ({"num_val": True}, r"data\.num_val is True; it must be"),
        ({"split_seed": -1}, r"data\.split_seed is -1; it must be a whole number of at least 0"),
        ({"resolution": 0}, r"data\.resolution is 0; it must be null or a whole number"),
        ({"cache": 3}, r"data\.cache is 3; it must be null or the path of a directory"),
        ({"root": ""}, r"data\.root is ''; it must be null or the path of a directory"),
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
    places = stratified_order(DATASETS[name](DIGITS, quiet).open("train").labels.numpy(), 0)
    assert len(set(places.tolist())) == len(places) == len(data.train_labels) + len(data.val_labels)
    if name == "digits":  # has no two equal images, so the pixels themselves can be compared
        train, val, test = rows(data.train_images), rows(data.val_images), rows(data.test()[0])
        assert len(train | val | test) == len(train) + len(val) + len(test) == 1797


def test_splits_keep_the_shares_of_the_classes() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    order = stratified_order(labels, 3)
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
    prints = {fingerprint(images, labels)}
    changed = images.clone()
    changed[-1, 0, 7, 7] ^= 1
    prints |= {fingerprint(changed, labels), fingerprint(images, labels.flip(0))}
    assert len(prints) == 3


def test_mean_and_std_are_those_of_the_training_images() -> None:
    images = torch.randint(0, 256, (500, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    std, mean = torch.std_mean(images.double() / 255, dim=(0, 2, 3), correction=0)
    got_mean, got_std = mean_and_std(images)
    assert got_mean == pytest.approx(mean.tolist(), rel=1e-12)
    assert got_std == pytest.approx(std.tolist(), rel=1e-12)
    with pytest.raises(ValueError, match="all of one colour"):
        mean_and_std(torch.zeros(4, 1, 2, 2, dtype=torch.uint8))


# --- readers


def test_idx_files_of_another_kind_or_size_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    good = bytes((0, 0, 8, 2)) + np.array([2, 3], ">u4").tobytes() + bytes(range(6))
    path.write_bytes(gzip.compress(good))
    assert _read_idx(path, ndim=2).tolist() == [[0, 1, 2], [3, 4, 5]]
    for bad in (good[:-1], good + b"x", b"\0\0\x0d\x02" + good[4:], b"", good[:6]):
        path.write_bytes(gzip.compress(bad))
        with pytest.raises(ValueError, match="is not an idx file of 2 dimensions"):
            _read_idx(path, ndim=2)


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
    got, labels = _read_cifar(tmp_path / "cifar.tar.gz", ["b1.bin", "b2.bin"], label_bytes=label_bytes)
    assert labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert np.array_equal(got.numpy(), images)
    with pytest.raises(ValueError, match=r"has no 'b3\.bin' made of records"):
        _read_cifar(tmp_path / "cifar.tar.gz", ["b3.bin"], label_bytes=label_bytes)


def test_num_train_is_a_limit() -> None:
    assert describe(replace(DIGITS, num_train=10**9)).num_train == describe(replace(DIGITS, num_train=None)).num_train
    assert len(load(replace(DIGITS, num_train=1400)).train_images) == 1338
