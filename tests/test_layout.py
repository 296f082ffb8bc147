"""Folders that are not of the plain form: links, files in the place of folders, and folders that are not there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import case, script
from folders import make_folder, planted
from hypothesis import given, settings
from hypothesis import strategies as st

from scalesearch.data.labels_csv import TABLE, read_labels
from scalesearch.data.layout import ROLES, Layout, read_layout

DOCS = Path(__file__).parent.parent / "docs"


def names(layout: Layout, root: Path) -> dict[str, list[tuple[str, str]]]:
    """Of each split the paths of its images, relative to the root, with their classes."""
    return {
        role: [(str(path.relative_to(root)), layout.classes[label]) for path, label in pairs]
        for role, pairs in layout.files.items()
    }


def refusal(root: Path) -> str:
    with pytest.raises(ValueError, match=r".") as refused:
        read_layout(root)
    return str(refused.value)


def test_every_layout_is_right_or_refused_as_it_should_be_and_the_page_says_so() -> None:
    images = script(DOCS / "images.py")
    for name, (files, expected) in images.LAYOUTS.items():
        with case(name):
            outcome = images.outcome(files, expected)
            assert outcome.found == ("refused" if isinstance(expected, str) else "right")
            if isinstance(expected, str):
                assert images.outcome(files, "another refusal").found.startswith("wrong")
            else:
                assert images.outcome(files, expected._replace(test="")).found.startswith("wrong")
    page = (DOCS / "images.md").read_text()
    assert images.page(page, "layouts", images.layout_table()) == page, "python docs/images.py"


# --- links


@pytest.mark.parametrize("to", ["..", "../..", "../../..", "../dog", "../../val", "../../val/cat", "../../val/dog/a"])
@pytest.mark.parametrize("place", ["train/cat", "train/cat/deep", "train/dog"])
def test_a_link_to_images_of_another_class_or_split_is_refused(to: str, place: str, tmp_path: Path) -> None:
    root = planted(
        make_folder(tmp_path, held_out=("val", "test"), train=2, others=1),
        {"val/dog/a/1.png": 1, "train/cat/deep/1.png": 0},
    )
    target = (root / "train" / "cat" / to).resolve()
    planted(root, {f"{place}/link": target})
    if target == root / place:
        assert len(read_layout(root).files["train"]) == 5
        return
    words = refusal(root)
    assert f"{root}/{place}/link is a link to " in words
    assert "remove the link" in words


def test_an_image_that_is_a_link_to_another_class_or_split_is_refused_by_name(tmp_path: Path) -> None:
    root = make_folder(tmp_path, train=2, others=1)
    for target in (root / "train" / "dog" / "00.jpg", root / "test" / "cat" / "00.jpg"):
        link = root / "train" / "cat" / "x.jpg"
        link.symlink_to(target)
        with case(target):
            assert f"{link} is a link to images of {target.parent}; an image must be of one class" in refusal(root)
        link.unlink()


@pytest.mark.parametrize(("link", "to"), [("train/emu", "dog"), ("val", "train"), ("train/emu", "dog/inner")])
def test_a_folder_that_would_be_two_classes_or_splits_is_refused(link: str, to: str, tmp_path: Path) -> None:
    root = planted(make_folder(tmp_path), {"train/dog/inner/1.png": 1, link: Path(to)})
    words = refusal(root)
    assert "an image must be of one class and of one split" in words
    assert str(root / link) in words


def test_links_to_images_that_are_no_others_are_followed(tmp_path: Path) -> None:
    """Outside of the root, beside train/, and within the class."""
    root = make_folder(tmp_path, train=1, held_out=None)
    planted(tmp_path, {"more/1.png": 0, "more/deep/2.png": 0, "images/pool/3.png": 1, "images/pool/emu/4.png": 2})
    planted(
        root,
        {
            "train/cat/more": tmp_path / "more",
            "train/dog/3.png": Path("../../pool/3.png"),
            "train/emu": Path("../pool/emu"),
            "train/cat/same.jpg": Path("00.jpg"),
        },
    )
    assert names(read_layout(root), root)["train"] == [
        ("train/cat/00.jpg", "cat"),
        ("train/cat/more/1.png", "cat"),
        ("train/cat/more/deep/2.png", "cat"),
        ("train/cat/same.jpg", "cat"),
        ("train/dog/00.jpg", "dog"),
        ("train/dog/3.png", "dog"),
        ("train/emu/4.png", "emu"),
    ]


@given(number=st.integers(1, 9), chance=st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_every_real_folder_is_read_once_whatever_links_there_are(
    number: int, chance: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = make_folder(tmp_path_factory.mktemp("links"), train=1, held_out=None)
    inner = [root / "train" / "cat"]
    for i in range(number):
        inner.append(inner[chance.randrange(len(inner))] / f"d{i}")  # type: ignore[attr-defined]
        planted(inner[-1], {f"{i}.png": 0})
    links = [(one, other) for one in inner for other in inner]
    for i, (one, other) in enumerate(links):
        (one / f"link{i}").symlink_to(other)
    layout = read_layout(root)
    assert [path for path, _ in layout.files["train"]] == sorted(
        path for path in (root / "train").rglob("*.*g") if path.is_file()
    )
    assert any(f"{len(links)} linked to folders that are read already" in note for note in layout.notes)


# --- what is in the place of a folder


SPLITS = [(role, name) for role, spellings in ROLES.items() for name in spellings]


@pytest.mark.parametrize(("role", "name"), SPLITS)
@pytest.mark.parametrize("what", [b"zip", Path("nowhere"), Path("Test"), Path("../file")])
def test_a_split_that_is_no_folder_is_refused(role: str, name: str, what: bytes | Path, tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    (tmp_path / "file").write_bytes(b"x")
    if role != "val":
        shutil.rmtree(root / role)
    name = name.capitalize()
    planted(root, {name: what})
    kind = "a file" if what in (b"zip", Path("../file")) else f"a broken link to '{what}'"
    words = refusal(root)
    assert f"{root / name} is {kind}; " in words
    assert f"images must be in a folder there, {name}/<class>/<image>" in words


@pytest.mark.parametrize("flat", [False, True])
def test_a_class_that_is_no_folder_is_refused_where_images_may_be_lost(flat: bool, tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    folder = root / "train" if flat else root
    place = folder if flat else root / "train"
    (place / "emu").symlink_to("nowhere")
    with pytest.raises(ValueError, match=rf"{place}/emu is a broken link to 'nowhere'; if it is a class"):
        read_layout(folder)
    (place / "emu").unlink()
    shutil.rmtree(root / "test" / "cat")
    (root / "test" / "cat").write_bytes(b"x")
    with pytest.raises(ValueError, match="test/cat is a file; images of the class 'cat' must be in a folder there"):
        read_layout(root)


def test_a_broken_link_below_a_class_and_empty_folders_are_counted_by_name(tmp_path: Path) -> None:
    root = planted(
        make_folder(tmp_path),
        {"train/cat/more": Path("nowhere"), "train/cat/x.png": None, "train/dog/deep/y.png": None},
    )
    (note,) = read_layout(root).notes
    assert "2 empty folders (such as cat/x.png)" in note
    assert "1 linked to what is not there (such as cat/more)" in note


def test_a_root_that_is_not_there_or_no_folder_is_refused_with_what_is_there(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    planted(tmp_path, {"file": b"x", "images.tar.gz": b"x", "link": Path("nowhere")})
    for given_root, words in {
        tmp_path / "image": f"does not exist: {tmp_path} has no image; did you mean 'images'?",
        root / "trin" / "deeper": f"does not exist: {root} has no trin; did you mean 'train'?",
        tmp_path / "file": "is a file, not a folder; it must hold train/<class>/<image>",
        tmp_path / "file" / "images": f"does not exist: {tmp_path}/file is a file",
        tmp_path / "images.tar.gz": "is a file, not a folder; unpack it, and give the folder",
        tmp_path / "link": "is a broken link to 'nowhere', not a folder",
        tmp_path / "a\0b": "does not exist",
    }.items():
        with case(given_root):
            assert words in refusal(given_root)


def test_a_split_without_class_folders_says_what_it_holds(tmp_path: Path) -> None:
    root = planted(tmp_path / "root", {"train": None})
    assert f"{root}/train has no class folders; it must hold <class>/<image> of at least 2 classes, and it holds " in (
        words := refusal(root)
    )
    assert words.endswith("neither folders nor images")
    planted(root, {"train/a.png": 0, "train/b.PNG": 0, "train/c.zip": b"x"})
    assert refusal(root).endswith("2 images (such as a.png) and 1 other file (such as c.zip)")
    planted(root, {"train/cat/1.png": 0})
    assert "has 1 class folder, 'cat'; at least 2 are needed" in refusal(root)
    planted(root, {"train/dog/1.png": 0, "val/notes.txt": b"x", "val/cat/a.heic": b"x"})
    assert f"{root}/val has no images in class folders; " in (words := refusal(root))
    assert "1 beside the class folders (such as notes.txt)" in words
    assert "1 with the suffix .heic (such as cat/a.heic)" in words
    shutil.move(root / "train", root / "dev")
    assert refusal(root).endswith("and it holds dev/ and val/")


def test_what_is_left_out_is_named_by_every_reason_but_rare_suffixes(tmp_path: Path) -> None:
    others = {f"train/cat/{number}{i}.s{i}": b"x" for i in range(8) for number in range(3)}
    odd = {"train/cat/.hidden": b"x", "train/cat/gone": Path("nowhere"), "train/cat/none": None, "train/x": b"x"}
    (note,) = read_layout(planted(make_folder(tmp_path), others | odd)).notes
    assert note.count("(such as ") == 5 + len(odd)
    assert note.endswith("and 9 of 3 other suffixes")


def test_a_split_beside_a_table_of_labels_has_one_too_or_is_refused(tmp_path: Path) -> None:
    root = planted(make_folder(tmp_path), {f"train/{TABLE}": b"file,labels\ncat/00.jpg,a\ndog/00.jpg,b\n"})
    with pytest.raises(ValueError, match=rf"test has no {TABLE}, and train/ has one; write one, or remove the folder"):
        read_labels(root)
    shutil.rmtree(root / "test")
    (root / "test").write_bytes(b"x")
    with pytest.raises(ValueError, match="test is a file; test images must be in a folder there"):
        read_labels(root)
