"""Folders of images: what is found, in which order, with which labels, and which errors."""

import os

import numpy as np
import pytest
from PIL import Image

from dinojax.data import formats
from dinojax.data.encoded import skipped
from dinojax.data.folder import folder


def put(root, name, color=0, size=(4, 3), mode="RGB"):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color if mode == "L" else (color,) * len(mode)).save(path)


def test_images_at_any_depth_are_read_in_bytewise_path_order(tmp_path):
    names = ["b/z.png", "B/1.PNG", "b/sub/deeper/a.jpg", "b-1/q.webp", "é/x.bmp"]
    for number, name in enumerate(names):
        put(tmp_path, name, color=10 * number)
    source = folder(path=str(tmp_path), channels=3)
    want = ("B/1.PNG", "b-1/q.webp", "b/sub/deeper/a.jpg", "b/z.png", "é/x.bmp")
    assert want == tuple(source[i].name for i in range(len(source)))
    got = [int(source[i].pixels[0, 0, 0]) for i in range(5)]
    np.testing.assert_allclose(got, [10, 30, 20, 0, 40], atol=1)  # JPEG and WebP are lossy
    assert source[0].pixels.shape == (3, 4, 3) and source[0].pixels.dtype == np.uint8


def test_class_is_the_first_sub_folder(tmp_path):
    for name in ("cat/x/1.png", "ant/2.png", "cat/3.png"):
        put(tmp_path, name)
    source = folder(path=str(tmp_path), channels=3)
    assert source.class_names == ("ant", "cat")
    assert source.labels.tolist() == [0, 1, 1] == [source[i].label for i in range(3)]


def test_an_image_at_the_top_means_no_labels(tmp_path):
    put(tmp_path, "1.png")
    put(tmp_path, "cat/2.png")
    source = folder(path=str(tmp_path), channels=3)
    assert source.labels is None and source.class_names == () and source[0].label is None


def test_hidden_and_other_files_are_left_out(tmp_path):
    for name in ("a.png", ".b.png", ".cache/c.png", "__MACOSX/._d.png"):
        put(tmp_path, name)
    (tmp_path / "notes.txt").write_text("no image")
    assert folder(path=str(tmp_path), channels=3).files.names == ("a.png",)


def test_links_are_followed_but_not_in_circles(tmp_path):
    put(tmp_path, "elsewhere/a.png")
    (tmp_path / "data").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "linked")
    os.symlink(tmp_path / "data", tmp_path / "data" / "circle")
    assert folder(path=str(tmp_path / "data"), channels=3).files.names == ("linked/a.png",)


def test_fingerprint_changes_with_names_and_sizes_only(tmp_path):
    put(tmp_path, "a.png")
    first = folder(path=str(tmp_path), channels=3).fingerprint
    os.utime(tmp_path / "a.png", (1, 1))
    assert folder(path=str(tmp_path), channels=3).fingerprint == first
    put(tmp_path, "b.png")
    second = folder(path=str(tmp_path), channels=3).fingerprint
    put(tmp_path, "b.png", size=(50, 50))
    third = folder(path=str(tmp_path), channels=3).fingerprint
    assert len({first, second, third}) == 3


def test_a_box_makes_images_smaller(tmp_path):
    put(tmp_path, "a.png", size=(40, 20))
    source = folder(path=str(tmp_path), channels=1)
    assert source.read(0, 10).pixels.shape == (5, 10, 1)
    assert source[0].pixels.shape == (20, 40, 1)


def test_missing_folder_is_named_with_its_key(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"knn\.bank=.*/nowhere does not exist"):
        folder(path=str(tmp_path / "nowhere"), channels=3, key="knn.bank")


def test_empty_path_says_what_to_set():
    with pytest.raises(ValueError, match="data.path is empty; .* --set data.path=FOLDER"):
        folder(path="", channels=3)


def test_a_file_is_not_a_folder(tmp_path):
    put(tmp_path, "a.png")
    with pytest.raises(NotADirectoryError, match=r"a\.png is a file"):
        folder(path=str(tmp_path / "a.png"), channels=3)


def test_empty_folder_is_told_from_one_with_other_files(tmp_path):
    with pytest.raises(ValueError, match="no image files; found no files at all. Extensions read"):
        folder(path=str(tmp_path), channels=3)
    (tmp_path / "a.tar").write_bytes(b"1")
    (tmp_path / "b.tar").write_bytes(b"1")
    (tmp_path / "README").write_bytes(b"1")
    with pytest.raises(
        ValueError, match=r"found 3 other files \(.tar 2, without extension 1\).*jpeg"
    ):
        folder(path=str(tmp_path), channels=3)


def test_no_decodable_image_is_an_error_at_the_start(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"not an image")
    (tmp_path / "b.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of its first 2 images can be decoded.*a\.jpg"):
        folder(path=str(tmp_path), channels=3)
    put(tmp_path, "c.png")
    assert len(folder(path=str(tmp_path), channels=3)) == 3


def test_wrong_channel_count_is_an_error_at_the_start(tmp_path):
    put(tmp_path, "a.png")
    with pytest.raises(ValueError, match=r"a\.png has 3 channels .* image\.channels=5"):
        folder(path=str(tmp_path), channels=5)


def test_a_folder_has_no_splits(tmp_path):
    with pytest.raises(ValueError, match="no split 'val'"):
        folder(path=str(tmp_path), channels=3, split="val")


def test_other_files_are_counted_by_extension(tmp_path):
    put(tmp_path, "a.png")
    for name in ("1.raw", "2.RAW", "x.txt", "README", ".hidden"):
        (tmp_path / name).touch()
    source = folder(path=str(tmp_path), channels=3)
    assert source.notes == ("4 other files skipped (.raw 2, .txt 1, without extension 1)",)


def test_files_that_a_package_would_make_readable_name_it(monkeypatch):
    monkeypatch.setattr(formats, "FORMATS", ["PNG"])
    (note,) = skipped(["heic", "heic", "txt"])
    assert note.startswith("3 other files skipped (.heic 2, .txt 1); for .heic run: pip install")


def test_pipes_devices_and_links_to_nothing_are_skipped_and_counted(tmp_path):
    put(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    source = folder(path=str(tmp_path), channels=3)
    assert source.files.names == ("a.png",)
    assert set(source.notes) == {
        "2 links skipped that lead nowhere",
        "2 pipes, sockets or devices skipped",
    }


def test_folders_of_links_to_each_other_are_read_once(tmp_path):
    """Fourteen levels with two links each to the next: 16,384 ways to one image."""
    for level in range(14):
        here = tmp_path / f"{level:02}"
        here.mkdir()
        for name in ("x", "y"):
            (here / name).symlink_to(tmp_path / f"{level + 1:02}")
    put(tmp_path, "14/a.png")
    source = folder(path=str(tmp_path), channels=3)
    assert source.files.names == ("14/a.png",)
    assert source.notes == ("28 links to folders skipped that are read already",)
    outside = folder(path=str(tmp_path / "00"), channels=3)
    assert outside.files.names == ("x/" * 14 + "a.png",)


def test_an_image_that_became_a_pipe_is_unreadable_and_hangs_nobody(tmp_path):
    put(tmp_path, "a.png"), put(tmp_path, "b.png")
    source = folder(path=str(tmp_path), channels=3)
    (tmp_path / "b.png").unlink()
    os.mkfifo(tmp_path / "b.png")
    with pytest.raises(OSError, match="b.png: it is a pipe, not a regular file"):
        source[1]


def test_a_name_that_is_no_text_can_be_printed(tmp_path):
    put(tmp_path, "0.png")
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"broken")
    source = folder(path=str(tmp_path), channels=3)
    with pytest.raises(ValueError) as caught:
        source[1]
    assert "\\udcff.png" in str(caught.value).encode("utf-8").decode()
