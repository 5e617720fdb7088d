import os
import subprocess

import pytest

from dqcodec.errors import SourceError
from dqcodec.sources.folder import scan


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * len(name))


def test_the_order_of_image_folder(tmp_path):
    make(tmp_path, "b/2.png", "b/10.png", "a b/x/z.png", "a b/y.png", "ä/1.png", "Z/1.png")
    (tmp_path / "empty").mkdir()
    found = scan(tmp_path)
    assert found.classes == ("Z", "a b", "b", "empty", "ä")
    assert found.names == ("Z/1.png", "a b/y.png", "a b/x/z.png", "b/10.png", "b/2.png", "ä/1.png")
    assert found.labels.tolist() == [0, 1, 1, 2, 2, 4]
    assert found.sizes.tolist() == [len(name) for name in found.names]
    assert found.skipped == ()
    with found.open(3) as file:
        assert file.read() == b"x" * 8


def test_same_classes_as_torchvision(photo_folder):
    from torchvision.datasets import ImageFolder

    expected = ImageFolder(photo_folder)
    found = scan(photo_folder)
    assert list(found.classes) == expected.classes
    assert [str(photo_folder / name) for name in found.names] == [path for path, _ in expected.samples]
    assert found.labels.tolist() == expected.targets


def test_what_is_no_candidate_is_named(tmp_path):
    make(tmp_path, "a/1.png", "readme.txt", ".git/config")
    os.mkfifo(tmp_path / "a" / "pipe")
    os.symlink(tmp_path / "nowhere", tmp_path / "a" / "broken")
    os.symlink(tmp_path / "a", tmp_path / "a" / "loop")
    found = scan(tmp_path)
    assert found.names == ("a/1.png",)
    assert dict(found.skipped) == {
        ".git/": "hidden folder",
        "readme.txt": "not in a class folder",
        "a/pipe": "not a regular file",
        "a/broken": "No such file or directory",
        "a/loop/": "a link to a folder that is read elsewhere",
    }


def test_links_to_folders_and_files_are_followed(tmp_path):
    make(tmp_path, "store/1.png", "data/a/0.png")
    os.symlink(tmp_path / "store", tmp_path / "data" / "b")
    os.symlink(tmp_path / "store" / "1.png", tmp_path / "data" / "a" / "2.png")
    assert scan(tmp_path / "data").names == ("a/0.png", "a/2.png", "b/1.png")


def test_wrong_roots(tmp_path):
    make(tmp_path, "file.png")
    with pytest.raises(SourceError, match="does not exist; expected a folder with one folder a class"):
        scan(tmp_path / "nowhere")
    with pytest.raises(SourceError, match="is a file"):
        scan(tmp_path / "file.png")
    with pytest.raises(SourceError, match="has no class folders"):
        scan(tmp_path)


@pytest.mark.parametrize("name", [b"\xff\xfe", b"a\x07b", b"a\\b"])
def test_class_names_that_no_file_can_hold(tmp_path, name):
    os.mkdir(os.path.join(os.fsencode(tmp_path), name))
    with pytest.raises(SourceError, match="rename it"):
        scan(tmp_path)


def test_file_names_of_any_bytes(tmp_path):
    (tmp_path / "a").mkdir()
    with open(os.path.join(os.fsencode(tmp_path), b"a/\xff \n.png"), "wb") as file:
        file.write(b"data")
    found = scan(tmp_path)
    with found.open(0) as file:
        assert file.read() == b"data"


def test_a_file_that_vanishes(tmp_path):
    make(tmp_path, "a/1.png")
    found = scan(tmp_path)
    (tmp_path / "a" / "1.png").unlink()
    with pytest.raises(SourceError, match=r"a/1\.png: No such file"):
        found.open(0)


def test_links_to_the_root_to_other_classes_and_to_themselves(tmp_path):
    make(tmp_path, "cat/1.png", "dog/2.png")
    os.symlink("..", tmp_path / "cat" / "up")
    os.symlink("../dog", tmp_path / "cat" / "dog")
    os.symlink("self", tmp_path / "self")
    os.symlink("self", tmp_path / "dog" / "self")
    found = scan(tmp_path)
    assert found.names == ("cat/1.png", "dog/2.png")
    assert {name for name, _ in found.skipped} == {"cat/up/", "cat/dog/", "self", "dog/self"}


def test_deep_folders(tmp_path):
    place = os.open(tmp_path, os.O_RDONLY)
    for name in ["a", *["d"] * 1500]:
        os.mkdir(name, dir_fd=place)
        below = os.open(name, os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = below
    os.close(place)
    try:
        found = scan(tmp_path)
    finally:  # pytest's own clean-up recurses
        subprocess.run(["rm", "-rf", tmp_path / "a"], check=True)
    assert found.names == ()
    assert all("too long" in reason for _, reason in found.skipped)


def test_a_huge_file_is_skipped(tmp_path):
    make(tmp_path, "a/1.png", "a/2.png")
    os.truncate(tmp_path / "a" / "2.png", 300 << 20)  # sparse
    assert scan(tmp_path).skipped == (("a/2.png", "314,572,800 bytes; allowed: 268,435,456"),)
