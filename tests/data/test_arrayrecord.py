"""ArrayRecord: the envelope, bare records, order over shards, damaged files."""

import json
import re

import numpy as np
import pytest

from dinojax.data.arrayrecord import MAGIC, arrayrecord, pack, unpack
from dinojax.data.example import Encoded
from tests.support.stored_data import pixels, png, record_file, records


def test_the_envelope_gives_back_what_was_packed():
    image = Encoded(data=b"\x00\xffdata", label=7, name="é/1.png")
    assert unpack(pack(image), name="other") == image
    header = b'{"name": "a", "label": null}'
    record = MAGIC + len(header).to_bytes(4, "little") + header + b"data"
    assert unpack(record, name="other") == Encoded(b"data", None, "a")


def test_bare_image_files_are_records_too(tmp_path):
    path = record_file(tmp_path / "a.array_record", [png(0), Encoded(png(1), None, "one")])
    source = arrayrecord(path=str(path), channels=3)
    assert [source[i].name for i in range(2)] == ["a.array_record/0", "one"]
    np.testing.assert_array_equal(source[0].pixels, pixels(0))
    assert source.labels is None and source[0].label is None


@pytest.mark.parametrize(
    "record", [MAGIC, MAGIC + b"\xff\xff\0\0{}", MAGIC + b"\2\0\0\0{}x", MAGIC + b"\1\0\0\0[x"]
)
def test_a_damaged_envelope_is_an_oserror_with_its_place(record):
    with pytest.raises(OSError, match="a.arrayrecord/3: its record is damaged"):
        unpack(record, name="a.arrayrecord/3")


def test_shards_follow_each_other_in_the_order_of_their_names(tmp_path):
    for shard, count in ((2, 3), (0, 2), (1, 1)):
        images = [png(10 * shard + i) for i in range(count)]
        record_file(tmp_path / f"a.arrayrecord-{shard:05}-of-00003", images)
    source = arrayrecord(path=str(tmp_path), channels=3)
    found = [int(source[i].pixels[0, 0, 0]) // 7 for i in range(len(source))]
    assert found == [0, 1, 10, 20, 21, 22]


def test_fingerprint_changes_with_shards_and_sizes(tmp_path):
    found = set()
    for images in ([png(0)], [png(0), png(1)], [png(0), np.random.default_rng(0).bytes(200_000)]):
        record_file(tmp_path / "a.arrayrecord", images)
        found.add(arrayrecord(path=str(tmp_path / "a.arrayrecord"), channels=3).fingerprint)
    assert len(found) == 3


@pytest.mark.parametrize("keep", [0, 1000])
def test_a_file_that_was_cut_is_refused_though_the_library_calls_it_empty(tmp_path, keep):
    path = record_file(tmp_path / "a.arrayrecord", [png(0)] * 3)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"a\.arrayrecord (has no records|is damaged)"):
        arrayrecord(path=str(path), channels=3)


def test_a_flipped_bit_spoils_one_image_and_names_it(tmp_path):
    rng = np.random.default_rng(0)
    items = [png(0)] + [rng.bytes(20_000) for _ in range(3)]
    path = record_file(tmp_path / "a.arrayrecord", items)
    data = bytearray(path.read_bytes())
    data[data.index(items[2][:50]) + 100] ^= 1
    path.write_bytes(data)
    source = arrayrecord(path=str(path), channels=3)
    assert [source.encoded(i).data == items[i] for i in (0, 1, 3)] == [True] * 3
    with pytest.raises(OSError, match=r"cannot read record 2 of .*a\.arrayrecord: .*mismatch"):
        source.encoded(2)


def test_a_conversion_is_checked_against_its_list_of_shards(tmp_path):
    path = records(tmp_path / "records", {"a/0.png": png(0), "b/1.png": png(1)})
    content = json.loads((path / "dataset.json").read_text())
    assert arrayrecord(path=str(path), channels=3).class_names == ("a", "b")
    (path / "dataset.json").write_text(json.dumps(content | {"complete": False}))
    with pytest.raises(ValueError, match="is an unfinished conversion"):
        arrayrecord(path=str(path), channels=3)
    content["shards"]["images-00001-of-00002.arrayrecord"] = 5
    (path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"are not those that dataset\.json lists: images-00001"):
        arrayrecord(path=str(path), channels=3)


LABELS = {
    "another length": (np.zeros(3, np.int32), "int32 of shape (3,); its shards have 2 images"),
    "another shape": (np.zeros((2, 1), np.int32), "int32 of shape (2, 1)"),
    "floats": (np.zeros(2, np.float32), "float32 of shape (2,)"),
    "a class beyond": (np.array([0, 2], np.int32), "labels from 0 to 2; dataset.json names 2"),
    "a class below": (np.array([-1, 1], np.int32), "labels from -1 to 1"),
    "objects": (np.array([0, None], object), "is no array of labels"),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_that_do_not_fit_the_images_are_refused(tmp_path, kind):
    path = records(tmp_path / "records", {"a/0.png": png(0), "b/1.png": png(1)})
    labels, message = LABELS[kind]
    np.save(path / "labels.npy", labels, allow_pickle=True)
    with pytest.raises(ValueError, match=re.escape(message)):
        arrayrecord(path=str(path), channels=3)


def test_labels_in_another_order_than_the_records_are_unreadable_images(tmp_path):
    path = records(tmp_path / "records", {"a/0.png": png(0), "b/1.png": png(1)})
    np.save(path / "labels.npy", np.array([1, 0], np.int32))
    with pytest.raises(ValueError, match="has the label 0 in its record and 1 in labels.npy"):
        arrayrecord(path=str(path), channels=3)


def test_labels_without_classes_and_broken_lists_are_refused(tmp_path):
    path = records(tmp_path / "records", {"a/0.png": png(0), "b/1.png": png(1)})
    content = json.loads((path / "dataset.json").read_text())
    for change, message in (
        ({"class_names": []}, "no dataset.json names their classes"),
        ({"class_names": ["a", "a"]}, "has no legal class_names"),
        ({"class_names": "ab"}, "has no legal class_names"),
        ({"shards": []}, "has no legal shards"),
        ({"num_images": 3}, "tells of 3 images, and its shards hold 2"),
        ({"complete": "yes"}, "has no legal complete"),
    ):
        (path / "dataset.json").write_text(json.dumps(content | change))
        with pytest.raises(ValueError, match=message):
            arrayrecord(path=str(path), channels=3)
    (path / "dataset.json").write_text("[1")
    with pytest.raises(ValueError, match="dataset.json is no JSON file"):
        arrayrecord(path=str(path), channels=3)
    (path / "dataset.json").write_text(json.dumps(content))
    (path / "labels.npy").unlink()
    with pytest.raises(FileNotFoundError, match="labels.npy is missing"):
        arrayrecord(path=str(path), channels=3)
