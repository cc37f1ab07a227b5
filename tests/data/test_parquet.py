"""Parquet files with images inside, as Hugging Face writes them."""

import json

import numpy as np
import pytest

from dinojax.data.convert import convert
from dinojax.data.parquet import parquet
from dinojax.data.sources import kind_of
from tests.support import stored_data
from tests.support.stored_data import png

pyarrow = pytest.importorskip("pyarrow")


def write(file, /, **columns):
    from pyarrow import parquet

    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), file, row_group_size=2)
    return str(file)


def cells(*numbers):
    return [{"bytes": png(number), "path": f"{number}.png"} for number in numbers]


def first_values(source):
    return [int(source[i].pixels[0, 0, 0]) // 7 for i in range(len(source))]


def test_images_and_labels_come_in_the_order_of_the_rows(tmp_path):
    images = {f"{'ant' if i % 2 else 'cat'}/{i}.png": png(i) for i in range(5)}
    path = stored_data.parquet(tmp_path / "train.parquet", images)
    source = parquet(path=str(path), channels=3)
    assert first_values(source) == [0, 1, 2, 3, 4]
    assert source.class_names == ("ant", "cat") and source.labels.tolist() == [1, 0, 1, 0, 1]
    assert source[3].label == 0 and source[4].name == "train.parquet/2/0"


def test_of_a_folder_the_split_is_read_and_the_others_are_told(tmp_path):
    for name, numbers in {
        "train-00001-of-00002": (2, 3),
        "train-00000-of-00002": (0, 1),
        "test-00000-of-00001": (9,),
    }.items():
        write(tmp_path / f"{name}.parquet", image=cells(*numbers))
    assert kind_of(str(tmp_path)) == "parquet"
    source = parquet(path=str(tmp_path), channels=3)
    assert first_values(source) == [0, 1, 2, 3] and source.labels is None
    assert source.notes == ("1 Parquet files skipped that are not of train (test)",)
    assert first_values(parquet(path=str(tmp_path), channels=3, split="test")) == [9]
    with pytest.raises(ValueError, match="has no split 'val'; it has test, train"):
        parquet(path=str(tmp_path), channels=3, split="val")


def test_plain_bytes_and_labels_of_text_are_read_too(tmp_path):
    path = write(tmp_path / "a.parquet", png=[png(0), png(1)], label=["dog", "cat"])
    assert kind_of(path) == "parquet"
    source = parquet(path=path, channels=3)
    assert first_values(source) == [0, 1]
    assert source.class_names == ("cat", "dog") and source.labels.tolist() == [1, 0]


def test_a_table_of_paths_is_still_a_manifest(tmp_path):
    path = write(tmp_path / "a.parquet", path=["a.png"], label=["x"], thumbnail=[png(0)])
    assert kind_of(path) == "manifest"


def test_a_row_without_bytes_is_an_unreadable_image_that_names_its_path(tmp_path):
    rows = [*cells(0), {"bytes": None, "path": "x/1.png"}]
    source = parquet(path=write(tmp_path / "a.parquet", image=rows), channels=3)
    with pytest.raises(OSError, match=r"a.parquet/0/1 holds no bytes but the path x/1.png"):
        source[1]


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"image": cells(0, 1), "label": [0, None]}, "image 1 has no label, but others have"),
        ({"image": cells(0, 1), "label": [0.5, 1.5]}, "neither whole numbers nor texts"),
        ({"image": cells(0), "mask": cells(1)}, r"has 2 columns of images \(image, mask\)"),
        ({"text": ["x"]}, "has 0 columns of images"),
        ({"image": pyarrow.array([], pyarrow.binary())}, "has no rows"),
    ],
)
def test_what_is_no_set_of_labelled_images_is_refused(tmp_path, columns, message):
    with pytest.raises(ValueError, match=message):
        parquet(path=write(tmp_path / "a.parquet", **columns), channels=3)


def test_labels_without_a_class_and_files_that_differ_are_refused(tmp_path):
    images = {f"{name}/0.png": png(0) for name in ("ant", "cat", "dog")}
    path = stored_data.parquet(tmp_path / "a.parquet", images, names=("ant", "cat", "dog"))
    from pyarrow import parquet as library

    table = library.read_table(path)
    told = json.loads(table.schema.metadata[b"huggingface"])
    told["info"]["features"]["label"]["names"] = ["ant", "cat"]
    library.write_table(table.replace_schema_metadata({"huggingface": json.dumps(told)}), path)
    with pytest.raises(ValueError, match="label 2 is none of 2 classes"):
        parquet(path=str(path), channels=3)
    write(tmp_path / "b.parquet", image=[png(0)])
    with pytest.raises(ValueError, match="b.parquet has other columns than"):
        parquet(path=str(tmp_path), channels=3)
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="b.parquet is not a Parquet file"):
        parquet(path=str(tmp_path), channels=3)


def test_a_conversion_keeps_images_and_labels(tmp_path):
    from dinojax.data.arrayrecord import arrayrecord

    images = {f"{'ant' if i % 2 else 'cat'}/{i}.png": png(i) for i in range(5)}
    source = parquet(path=str(stored_data.parquet(tmp_path / "a.parquet", images)), channels=3)
    convert(source, tmp_path / "out")
    found = arrayrecord(path=str(tmp_path / "out"), channels=3)
    np.testing.assert_array_equal(found.labels, source.labels)
    assert first_values(found) == first_values(source)
