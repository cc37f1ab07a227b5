"""Tar shards: which members are images, their classes, random access, and refused files."""

import gzip
import tarfile

import numpy as np
import pytest

from dinojax.data.tar import tar
from tests.support.stored_data import pixels, png, tar_shard


def names(source):
    return [source[i].name for i in range(len(source))]


def test_images_of_all_shards_are_read_by_their_place(tmp_path):
    for shard in (1, 0):
        files = {f"x/{i}.png": png(10 * shard + i) for i in range(3)}
        tar_shard(tmp_path / f"s-{shard}.tar", {"readme.txt": b"a" * 700} | files)
    source = tar(path=str(tmp_path), channels=3)
    assert names(source) == [f"s-{s}.tar/x/{i}.png" for s in (0, 1) for i in range(3)]
    for index in (5, 0, 3):
        want = pixels(10 * (index // 3) + index % 3)
        np.testing.assert_array_equal(source[index].pixels, want)
    assert source.labels is None and source.class_names == ()


def test_a_sample_shares_the_class_of_its_cls_or_json(tmp_path):
    files = {
        "a/1.left.png": png(0),
        "a/1.right.PNG": png(1),
        "a/1.cls": b"10\n",
        "b/1.json": b'{"label": 9, "caption": "x"}',
        "b/1.png": png(2),
        "c.json": b'{"label": 4}',
        "c.cls": b"9",
        "c.png": png(3),
        "._c.png": b"hidden",
    }
    source = tar(path=str(tar_shard(tmp_path / "a.tar", files)), channels=3)
    assert source.class_names == ("9", "10") and source.labels.tolist() == [1, 1, 0, 0]
    assert names(source)[1] == "a.tar/a/1.right.PNG" and source[2].label == 0


def test_equal_names_in_two_shards_are_two_samples(tmp_path):
    for number, label in enumerate((b"x", b"y")):
        tar_shard(tmp_path / f"{number}.tar", {"0.png": png(number), "0.cls": label})
    assert tar(path=str(tmp_path), channels=3).labels.tolist() == [0, 1]


def test_long_names_and_links_are_no_trouble(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "elsewhere.png"
        archive.addfile(link)
    tar_path = tar_shard(tmp_path / "b.tar", {"d" * 150 + "/é.png": png(4)})
    source = tar(path=str(tmp_path), channels=3)
    assert len(source) == 1 and tar_path.exists()
    np.testing.assert_array_equal(source[0].pixels, pixels(4))


def test_fingerprint_changes_with_names_sizes_and_places(tmp_path):
    variants = [{"0.png": png(0)}, {"1.png": png(0)}, {"0.png": png(0) + b"."}]
    variants.append({"0.txt": b"", "0.png": png(0)})
    found = {
        tar(path=str(tar_shard(tmp_path / "a.tar", files)), channels=3).fingerprint
        for files in variants
    }
    assert len(found) == len(variants)


def test_a_class_for_some_samples_only_is_an_error(tmp_path):
    files = {"0.png": png(0), "0.cls": b"1", "1.png": png(1), "1.json": b'{"caption": "x"}'}
    with pytest.raises(ValueError, match=r"1\.png has no class but others have"):
        tar(path=str(tar_shard(tmp_path / "a.tar", files)), channels=3)


@pytest.mark.parametrize("extension, content", [("json", b"{"), ("cls", b"\xff")])
def test_a_damaged_class_names_shard_and_member(tmp_path, extension, content):
    path = tar_shard(tmp_path / "a.tar", {f"0.{extension}": content, "0.png": png(0)})
    with pytest.raises(ValueError, match=rf"a\.tar: 0\.{extension} cannot be read"):
        tar(path=str(path), channels=3)


def test_compressed_shards_are_refused_with_the_way_on(tmp_path):
    path = tar_shard(tmp_path / "a.tar", {"0.png": png(0)})
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(ValueError, match=r"a\.tar is compressed.*gunzip .*a\.tar"):
        tar(path=str(path), channels=3)


@pytest.mark.parametrize("keep", [0, 100, 700, 1100])
def test_a_shard_that_was_cut_is_refused(tmp_path, keep):
    path = tar_shard(tmp_path / "a.tar", {"0.png": png(0), "1.png": png(1)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"a\.tar is damaged .*Copy it again"):
        tar(path=str(path), channels=3)


def test_a_header_spoiled_in_the_middle_is_refused(tmp_path):
    path = tar_shard(tmp_path / "a.tar", {f"{i}.png": png(i) for i in range(3)})
    data = bytearray(path.read_bytes())
    data[data.index(b"1.png") + 148] ^= 7  # the checksum of the second header
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.tar is damaged at byte 1024"):
        tar(path=str(path), channels=3)


def test_a_shard_cut_during_the_run_is_an_oserror(tmp_path):
    path = tar_shard(tmp_path / "a.tar", {"0.png": png(0), "1.png": png(1)})
    source = tar(path=str(path), channels=3)
    path.write_bytes(path.read_bytes()[:1600])
    with pytest.raises(OSError, match=r"a\.tar ends within a\.tar/1\.png"):
        source.read(1)


def test_folders_without_images_or_shards_say_what_they_hold(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"no \.tar file; found 1 entries such as notes\.txt"):
        tar(path=str(tmp_path), channels=3)
    tar_shard(tmp_path / "a.tar", {"0.txt": b"x"})
    with pytest.raises(ValueError, match="no image in 1 tar files"):
        tar(path=str(tmp_path), channels=3)
    with pytest.raises(ValueError, match="is a URL; only a manifest may hold URLs"):
        tar(path="gs://bucket/a.tar", channels=3)


def joined(tmp_path):
    parts = [
        tar_shard(tmp_path / f"{n}.tar", {f"{n}{i}.png": png(i) for i in range(2)}) for n in "xy"
    ]
    data = b"".join(part.read_bytes() for part in parts)
    for part in parts:
        part.unlink()
    return data


def test_archives_joined_by_cat_are_refused_and_not_read_by_half(tmp_path):
    (tmp_path / "c.tar").write_bytes(joined(tmp_path))
    with pytest.raises(ValueError, match=r"c\.tar goes on after its end of archive .*`cat`"):
        tar(path=str(tmp_path), channels=3)


@pytest.mark.parametrize("kept_blocks", [0, 1])
def test_an_archive_without_its_end_is_refused(tmp_path, kept_blocks):
    path = tar_shard(tmp_path / "a.tar", {"a.png": png(0), "b.png": png(1)})
    data = path.read_bytes().rstrip(b"\0")
    end = -(-len(data) // 512) * 512
    path.write_bytes(path.read_bytes()[: end + 512 * kept_blocks])
    with pytest.raises(ValueError, match=r"a\.tar has no end of archive .* Copy or write it again"):
        tar(path=str(path), channels=3)


def test_a_name_that_an_archive_holds_twice_is_refused(tmp_path):
    path = tar_shard(tmp_path / "a.tar", {"a.png": png(0), "a.cls": b"x"})
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo("a.png")
        archive.addfile(member)
    with pytest.raises(ValueError, match=r"a\.tar has a\.png twice"):
        tar(path=str(path), channels=3)


def test_members_and_files_that_are_not_read_are_counted(tmp_path):
    path = tar_shard(
        tmp_path / "a.tar", {"a.png": png(0), "a.raw": b"", "a.txt": b"", "b.txt": b""}
    )
    (tmp_path / "b.jpg").touch()
    source = tar(path=str(tmp_path), channels=3)
    assert source.notes == (
        "1 other file skipped (.jpg 1)",
        "in the tar files: 2 other files skipped (.raw 1, .txt 1)",  # a.txt has captions of a.png
    )
    assert path.exists()
