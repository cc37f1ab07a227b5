"""Captions in every storage, which of several is taken, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest

from dinojax.data import captions
from dinojax.data.arrayrecord import arrayrecord
from dinojax.data.captions import CaptionReader
from dinojax.data.coco import coco
from dinojax.data.convert import convert
from dinojax.data.decode import DecodeError
from dinojax.data.example import Example
from dinojax.data.loader import Loader
from dinojax.data.manifest import manifest
from dinojax.data.mixture import Mixture, Part
from dinojax.data.parquet import parquet
from dinojax.data.quarantine import Quarantine, read_list
from dinojax.data.sources import open_captioned
from dinojax.data.tar import tar
from dinojax.data.tile_captions import SUBJECTS, captions_of
from dinojax.data.tiles import tiles
from tests.support.stored_data import png, tar_shard

TOLD = [("a red ant", "an insect"), ("a cat",), ("two dogs", "dogs", "a pair")]


def as_tar(root):
    files = {}
    for i, texts in enumerate(TOLD):
        files |= {f"{i}.png": png(i)}
        files |= (
            {f"{i}.json": json.dumps({"captions": texts}).encode()}
            if i == 1
            else {f"{i}.txt": "\n".join(texts).encode()}
        )
    tar_shard(root / "s.tar", files)
    return tar(path=str(root / "s.tar"), channels=3)


def as_csv(root):
    rows = ["path,caption"]
    for i, texts in enumerate(TOLD):
        (root / f"{i}.png").write_bytes(png(i))
        rows += [f"{i}.png,{text}" for text in texts]
    (root / "pairs.csv").write_text("\n".join(rows) + "\n")
    return manifest(path=str(root / "pairs.csv"), channels=3)


def as_parquet(root):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"image": [png(i) for i in range(3)], "captions": [[*t] for t in TOLD]})
    pyarrow.parquet.write_table(table, root / "pairs.parquet")
    return parquet(path=str(root / "pairs.parquet"), channels=3)


def as_coco(root):
    (root / "annotations").mkdir()
    (root / "val").mkdir()
    images = [{"id": 10 * i, "file_name": f"{i}.png"} for i in range(3)]
    rows = [{"image_id": 10 * i, "caption": t} for i, texts in enumerate(TOLD) for t in texts]
    for i in range(3):
        (root / "val" / f"{i}.png").write_bytes(png(i))
    path = root / "annotations" / "captions_val.json"
    path.write_text(json.dumps({"images": images, "annotations": rows[::-1]}))
    return coco(path=str(path), channels=3)


def as_records(root):
    convert(as_tar(root), root / "records")
    return arrayrecord(path=str(root / "records"), channels=3)


STORED = [as_tar, as_csv, as_parquet, as_coco, as_records]


@pytest.mark.parametrize("store", STORED)
def test_every_storage_gives_the_captions_of_each_image(store, tmp_path):
    source = store(tmp_path)
    assert len(source) == len(TOLD)
    for index in (2, 0, 1):
        example = source.read(index)
        assert sorted(example.captions) == sorted(TOLD[index])
        assert sorted(source.encoded(index).captions) == sorted(TOLD[index])


def test_other_captions_are_another_data_set(tmp_path):
    before = as_csv(tmp_path).fingerprint
    text = (tmp_path / "pairs.csv").read_text()
    (tmp_path / "pairs.csv").write_text(text.replace("a cat", "a dog"))
    assert manifest(path=str(tmp_path / "pairs.csv"), channels=3).fingerprint != before


def tokens(texts):
    """A row of the texts' lengths, for a tokenizer."""
    return np.array([[len(text)] for text in texts], np.int32)


def test_which_caption_is_taken_depends_on_seed_and_position_alone(tmp_path):
    source, reader = as_tar(tmp_path), CaptionReader(tokens, seed=3)
    options = dict(batch_size=2, box_size=8, seed=5, captions=reader, num_threads=0)
    with Loader(source, **options) as loader:
        rows = [next(loader) for _ in range(30)]
    seen = np.concatenate([row["tokens"] for row in rows])
    ids = np.concatenate([row["ids"] for row in rows])
    for position, index in enumerate(ids.tolist()):
        assert int(seen[position, 0]) in {len(text) for text in TOLD[index]}
    for index, texts in enumerate(TOLD):  # all of them come up
        assert len(set(seen[ids == index, 0].tolist())) == len(set(map(len, texts))), index
    with Loader(source, **options, start=6) as later:
        np.testing.assert_array_equal(next(later)["tokens"], rows[3]["tokens"])
    halves = [Loader(source, **options, num_hosts=2, host_index=host) for host in (0, 1)]
    first = np.concatenate([next(half)["tokens"] for half in halves])
    np.testing.assert_array_equal(first, rows[0]["tokens"])


class Data:
    """A `data` section."""

    source, mixture, mixture_ranges, value_range, max_pixels = "tar", (), (), (), 2**20
    tile_size, max_nodata, bands = 512, 0.25, ()

    def __init__(self, path):
        self.path = path


def test_an_image_without_a_caption_is_replaced_and_listed(tmp_path):
    tar_shard(tmp_path / "s.tar", {"0.png": png(0), "0.txt": b"one", "1.png": png(1)})
    source = open_captioned(Data(str(tmp_path / "s.tar")), channels=3)
    with pytest.raises(DecodeError, match=r"s.tar/1.png has no caption"):
        source.read(1)
    quarantine = Quarantine(tmp_path, max_share=0.5, parts={"": range(2)})
    reader = CaptionReader(tokens, seed=0)
    options = dict(batch_size=2, box_size=8, seed=5, num_threads=0)
    with Loader(source, **options, captions=reader, quarantine=quarantine) as loader:
        assert next(loader)["tokens"].tolist() == [[3], [3]]
    assert [row["id"] for row in read_list(tmp_path / "bad_images.jsonl")] == [1]


def test_parts_of_a_mixture_are_asked_for_captions_as_well(tmp_path):
    parts = [Part(name, as_tar(_made(tmp_path / name)), 1.0, 0.0) for name in ("a", "b")]
    source = Mixture(tuple(parts))
    reader = CaptionReader(tokens, seed=0)
    options = dict(batch_size=4, box_size=8, seed=5, num_threads=0)
    with Loader(source, **options, captions=reader) as loader:
        assert next(loader)["tokens"].shape == (4, 1)


def _made(folder):
    folder.mkdir()
    return folder


def encode(text):
    return text.split()


def test_data_without_captions_are_refused_before_anything_is_trained(tmp_path):
    tar_shard(tmp_path / "s.tar", {f"{i}.png": png(i) for i in range(3)})
    with pytest.raises(ValueError, match=r"3 of 3 images looked at have no caption, such as s.tar"):
        captions.check(tar(path=str(tmp_path / "s.tar"), channels=3), encode, 8)


def test_some_images_without_captions_and_long_ones_are_told(tmp_path):
    files = {"0.png": png(0), "0.txt": b"a b c d e f g", "1.png": png(1), "2.png": png(2)}
    tar_shard(tmp_path / "s.tar", files | {"1.txt": b"a"})
    notes = captions.check(tar(path=str(tmp_path / "s.tar"), channels=3), encode, 8)
    assert "1 of 3 images looked at have no caption, such as s.tar/2.png" in notes[0]
    assert "1 of 2 captions looked at have more than text.context=8 tokens" in notes[1]


def test_captions_that_are_no_text_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"here: a caption is 7, which is no text"):
        captions.of_value(["a", 7], "here")
    assert captions.of_value([" a ", "", None][:2], "here") == ("a",)
    assert captions.of_value(None, "here") == ()
    tar_shard(tmp_path / "s.tar", {"0.png": png(0), "0.json": b'{"caption": 3}'})
    with pytest.raises(ValueError, match=r"s.tar: 0.json: a caption is 3"):
        tar(path=str(tmp_path / "s.tar"), channels=3)
    tar_shard(tmp_path / "t.tar", {"0.png": png(0), "0.txt": b"\xff\xfe"})
    source = tar(path=str(tmp_path / "t.tar"), channels=3)
    assert not source.encoded(0).captions and "not UTF-8" in source.notes[0]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"images": []}, "lists 0 images"),
        ({"images": [{"id": 1, "file_name": "x"}]}, "no 'annotations'"),
        (
            {"images": [{"id": 1, "file_name": "x"}], "annotations": [{"image_id": 2}]},
            "a caption is of image 2",
        ),
    ],
)
def test_another_json_is_no_file_of_captions(content, told, tmp_path):
    path = tmp_path / "captions_x.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=told):
        coco(path=str(path), channels=3)


def test_captions_of_tiles_are_true_of_them():
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 200
    assert captions_of(red, "grass")[1] == "a dark red picture of grass"
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 1), dtype=np.uint8)
    assert captions_of(noise, "grass")[2] == "rough grey detail of grass"


@pytest.mark.slow
def test_every_tile_has_captions_with_its_subject():
    source = dataclasses.replace(tiles(channels=3, split="val"), captioned=True)
    assert set(source.class_names) == set(SUBJECTS)
    for index in (0, 17, 500):
        example = source.read(index)
        subject = source.subjects[example.label]
        assert len(example.captions) == 4 and all(subject in text for text in example.captions)
    assert isinstance(source.read(0), Example)
