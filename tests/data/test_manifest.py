"""Manifests: which files they name, with which labels, from where, and which errors."""

import os
import subprocess
import sys

import numpy as np
import pytest

from dinojax.data import storage
from dinojax.data.manifest import manifest
from tests.support.stored_data import folder, pixels, png


@pytest.fixture
def images(tmp_path):
    return folder(tmp_path, {"a.png": png(0), "deep/b.png": png(1)})


def write(root, text):
    (root / "m.csv").write_text(text)
    return str(root / "m.csv")


def numbers(source):
    """Which of the test images each one is, by its first value."""
    return [int(source[i].pixels[0, 0, 0]) // 7 for i in range(len(source))]


def test_rows_are_images_in_their_order_and_may_repeat(images):
    path = write(images, f"path\ndeep/b.png\n{images}/a.png\n\ndeep/b.png\n")
    source = manifest(path=path, channels=3)
    assert numbers(source) == [1, 0, 1] and source.labels is None and source.class_names == ()
    np.testing.assert_array_equal(source[1].pixels, pixels(0))


@pytest.mark.parametrize(
    "classes, names",
    [(("10", "9"), ("9", "10")), (("b", "a"), ("a", "b")), (("x 9", "10"), ("10", "x 9"))],
)
def test_labels_are_numbered_in_the_order_of_their_names(images, classes, names):
    path = write(images, f"label,path\n{classes[0]},a.png\n{classes[1]},deep/b.png\n")
    source = manifest(path=path, channels=3)
    assert source.class_names == names and source.labels.tolist() == [1, 0] == [
        source[i].label for i in range(2)
    ]


def test_urls_are_read_through_fsspec(images):
    import fsspec

    with fsspec.open("memory://bucket/c.png", "wb") as file:
        file.write(png(2))
    path = write(images, f"path\nmemory://bucket/c.png\nfile://{images}/a.png\n")
    assert numbers(manifest(path=path, channels=3)) == [2, 0]
    with fsspec.open("memory://bucket/m.csv", "wb") as file:
        file.write(b"path\nc.png\n")
    assert numbers(manifest(path="memory://bucket/m.csv", channels=3)) == [2]


def test_what_a_storage_raises_is_an_oserror_with_the_url(images):
    with pytest.raises(OSError, match="cannot read memory://bucket/none.png"):
        storage.read_bytes("memory://bucket/none.png")


def test_urls_that_nothing_reads_are_refused_before_the_first_image(images, monkeypatch):
    path = write(images, "path\na.png\nbolt://x/y.png\n")
    with pytest.raises(ValueError, match=r"m\.csv has bolt:// URLs: Protocol not known: bolt"):
        manifest(path=path, channels=3)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ModuleNotFoundError, match=r"fsspec; run: pip install 'dinojax\[remote\]'"):
        manifest(path=path, channels=3)


def test_local_manifests_import_neither_fsspec_nor_pyarrow(images):
    path = write(images, "path\na.png\n")
    code = (
        "import sys; from dinojax.data.sources import SOURCES; "
        f"SOURCES['manifest'](path={path!r}, channels=3); "
        "print({'fsspec', 'pyarrow', 'jax', 'tensorflow_datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_parquet_reads_as_csv_does(images, monkeypatch):
    import pyarrow
    import pyarrow.parquet

    rows = {"path": ["deep/b.png", "a.png"], "label": [3, 20], "note": [None, None]}
    pyarrow.parquet.write_table(pyarrow.table(rows), images / "m.parquet")
    source = manifest(path=str(images / "m.parquet"), channels=3)
    same = manifest(path=write(images, "path,label\ndeep/b.png,3\na.png,20\n"), channels=3)
    assert numbers(source) == numbers(same) == [1, 0]
    assert source.class_names == same.class_names == ("3", "20")
    assert source.fingerprint == same.fingerprint
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'dinojax\[parquet\]'"):
        manifest(path=str(images / "m.parquet"), channels=3)


def test_fingerprint_changes_with_paths_order_and_labels(images):
    texts = ["path\na.png\ndeep/b.png", "path\ndeep/b.png\na.png", "path,label\na.png,x"]
    texts += ["path,label\na.png,y", "path\na.png"]
    found = {manifest(path=write(images, text), channels=3).fingerprint for text in texts}
    assert len(found) == len(texts)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "has no column 'path'; its columns are none"),
        ("file,label\na.png,1\n", "has no column 'path'; its columns are file, label"),
        ("path\n", "has no rows"),
        ("path,label\na.png,1\n,2\n", "image 2 has an empty path; fill it"),
        ("path,label\na.png,1\na.png,\n", "image 2 has an empty label.*or leave out the column"),
        ("path,label\na.png\n", "line 2: 1 values for the 2 columns path, label"),
        ('path\n"a.png\n', "is not a CSV file in UTF-8: unexpected end of data"),
        ("path\nnone.png\n", "none of its first 1 images can be decoded.*none.png"),
    ],
)
def test_errors_name_the_manifest_and_the_row(images, text, message):
    with pytest.raises(ValueError, match=r"data\.path=.*m\.csv.*" + message):
        manifest(path=write(images, text), channels=3)


def test_other_files_are_no_manifests(images):
    (images / "m.csv").write_bytes(b"path\n\xff\n")
    with pytest.raises(ValueError, match="is not a CSV file in UTF-8"):
        manifest(path=str(images / "m.csv"), channels=3)
    (images / "m.parquet").write_bytes(b"path\n")
    with pytest.raises(ValueError, match="is not a Parquet file"):
        manifest(path=str(images / "m.parquet"), channels=3)
    with pytest.raises(ValueError, match=r"a manifest ends with \.csv or \.parquet"):
        manifest(path=str(images / "a.png"), channels=3)


@pytest.mark.parametrize("header", ["path,path", "path,label,label", "path,x,x"])
def test_a_column_that_is_there_twice_is_refused(images, header):
    row = ",".join(["a.png"] * (header.count(",") + 1))
    with pytest.raises(ValueError, match=r"has the column '\w+' twice; keep one"):
        manifest(path=write(images, f"{header}\n{row}\n"), channels=3)


def test_parquet_columns_that_are_there_twice_are_refused(images):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    column = pyarrow.array(["a.png"])
    table = pyarrow.Table.from_arrays([column, column], names=["path", "path"])
    parquet.write_table(table, images / "m.parquet")
    with pytest.raises(ValueError, match="has the column 'path' twice"):
        manifest(path=str(images / "m.parquet"), channels=3)


@pytest.mark.parametrize(
    "row, message",
    [
        ("pipe.png", "it is a pipe, not a regular file"),
        ("/dev/zero", "it is a device, not a regular file"),
        ("deep", "it is a folder, not a regular file"),
        ("a\0b.png", "embedded null byte"),
        ("huge.png", r"it has 2,147,483,648 bytes, and an image file has 536,870,912 at most"),
    ],
)
def test_rows_that_are_no_image_files_are_unreadable_and_hang_nobody(images, row, message):
    os.mkfifo(images / "pipe.png")
    with open(images / "huge.png", "wb") as file:
        file.truncate(2**31)
    source = manifest(path=write(images, f"path\na.png\n{row}\n"), channels=3)
    with pytest.raises(OSError, match=message):
        source[1]


def test_a_manifest_that_is_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "m.csv")
    with pytest.raises(OSError, match="m.csv: it is a pipe"):
        manifest(path=str(tmp_path / "m.csv"), channels=3)
