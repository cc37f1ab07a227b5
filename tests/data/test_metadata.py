"""Columns of metadata: from every kind of data set, typed, with gaps, and refused when useless."""

import json

import numpy as np
import pytest
from PIL import Image

from dinojax.data import tar as tars
from dinojax.data.folder import folder
from dinojax.data.manifest import manifest
from dinojax.data.metadata import MISSING, Column, read_columns
from dinojax.data.mixture import Mixture, Part
from dinojax.data.parquet import parquet

ROWS = [
    ("a/0.png", "north", "1.5"),
    ("a/1.png", "south", ""),
    ("b/2.png", "", "2"),
    ("b/3.png", "north", "nan"),
    ("b/4.png", "south", "-1"),
]
KINDS = {"region": "classes", "size": "numbers"}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for number, (name, _, _) in enumerate(ROWS):
        (root / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), 40 * number, np.uint8)).save(root / name)
    return root


def table(path, rows=ROWS, header="path,region,size"):
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")
    return str(path)


def check(columns):
    assert columns["region"].classes == ("north", "south")
    assert columns["region"].values_N.tolist() == [0, 1, MISSING, 0, 1]
    np.testing.assert_array_equal(columns["size"].values_N, [1.5, np.nan, 2, np.nan, -1])
    assert columns["size"].range == (-1.0, 2.0) and columns["size"].classes == ()


def test_a_manifest_has_them_in_further_columns(images):
    source = manifest(path=table(images / "table.csv"), channels=3)
    columns = read_columns(source, KINDS)
    check(columns)
    assert columns["region"].told() == "region: 4 images of 2 classes, 1 without"


def test_a_table_beside_a_folder_is_matched_by_paths(images, tmp_path):
    shuffled = [ROWS[i] for i in (3, 0, 4, 1)]  # the third image is not listed
    place = table(tmp_path / "table.csv", shuffled)
    columns = read_columns(folder(path=str(images), channels=3), KINDS, table=place)
    assert columns["region"].values_N.tolist() == [0, 1, MISSING, 0, 1]


def test_a_table_of_other_images_is_refused_with_an_example_of_both(images, tmp_path):
    place = table(tmp_path / "table.csv", [(f"x/{name}", *rest) for name, *rest in ROWS])
    with pytest.raises(ValueError, match=r"other images: 0 of its 5 paths.*'x/a/0.png'.*'a/0.png'"):
        read_columns(folder(path=str(images), channels=3), KINDS, table=place)


def test_a_tar_has_them_in_its_json_files(images, tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        for name, region, size in ROWS:
            stem = name.replace("/", "-").removesuffix(".png")
            archive.add(images / name, f"{stem}.png")
            content = {"region": region or None, "label": 1}
            content |= {"size": float(size)} if size not in ("", "nan") else {}
            path = tmp_path / f"{stem}.json"
            path.write_text(json.dumps(content))
            archive.add(path, path.name)
    check(read_columns(tars.tar(path=str(tmp_path / "data.tar"), channels=3), KINDS))


def test_parquet_files_have_them_beside_the_images(images, tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    sizes = [None if size in ("", "nan") else float(size) for _, _, size in ROWS]
    columns = {
        "image": [{"bytes": (images / name).read_bytes()} for name, _, _ in ROWS],
        "region": [region or None for _, region, _ in ROWS],
        "size": sizes,
    }
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    check(read_columns(parquet(path=str(tmp_path), channels=3), KINDS))


def test_the_class_of_a_folder_is_a_column_and_a_part_without_one_has_gaps(images, tmp_path):
    labelled = folder(path=str(images), channels=3)
    found = read_columns(labelled, {"label": "classes"})["label"]
    assert found.classes == ("a", "b") and found.values_N.tolist() == [0, 0, 1, 1, 1]
    plain = folder(path=str(images / "a"), channels=3)
    both = Mixture((Part("x", plain, 1.0, 0.0), Part("y", labelled, 1.0, 0.0)))
    found = read_columns(both, {"label": "classes"})["label"]
    assert found.values_N.tolist() == [MISSING, MISSING, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("cells", "kind", "message"),
    [
        (["x"] * 5, "classes", "one class, 'x'"),
        ([""] * 5, "classes", "no value"),
        (list("abcde"), "classes", "fewer than two images each"),
        (["1", "2", "red", "", "4"], "numbers", "image 3 has 'red'"),
        (["7"] * 5, "numbers", "one value or none"),
        (["1", "2", "inf", "", "4"], "numbers", "image 3 has 'inf'"),
    ],
)
def test_columns_that_guide_nowhere_are_refused_by_name(images, cells, kind, message):
    rows = [(name, cell) for (name, _, _), cell in zip(ROWS, cells, strict=True)]
    source = manifest(path=table(images / "table.csv", rows, "path,odd"), channels=3)
    with pytest.raises(ValueError, match=message) as refused:
        read_columns(source, {"odd": kind}, where="data.path=table.csv")
    assert str(refused.value).startswith("data.path=table.csv: ") and "'odd'" in str(refused.value)


def test_an_absent_column_is_told_with_those_that_are_there(images):
    source = manifest(path=table(images / "table.csv"), channels=3)
    with pytest.raises(ValueError, match="no column 'year' of metadata; it has: region, size"):
        read_columns(source, {"year": "classes"})


def test_a_class_of_one_image_is_told():
    column = Column("kind", np.array([0, 0, 1, 1, 2, MISSING], np.int32), ("a", "b", "c"))
    assert column.told() == "kind: 5 images of 3 classes, 1 of them with one image, 1 without"
