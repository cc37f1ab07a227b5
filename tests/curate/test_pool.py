"""Embeddings on disk: other tools read them, and what cannot be worked with is refused by name."""

import json

import numpy as np
import pytest

from dinojax.curate.parts import write_part
from dinojax.curate.pool import INDEX, open_pool
from dinojax.curate.recipe import load


def write(folder, rows, *, ids=None, dtype="float16", weights=("w", "w"), told=None):
    """Two parts of a pool."""
    folder.mkdir(exist_ok=True)
    ids = ids or [f"{i}.png" for i in range(len(rows))]
    half = len(rows) // 2
    counts = {}
    for number, part in enumerate((slice(0, half), slice(half, None))):
        name = f"part-{number:05d}.parquet"
        columns = {"id": ids[part], "embedding": rows[part], "pixels": [1] * len(ids[part])}
        write_part(folder / name, columns, dtype=dtype, told={"weights": weights[number]})
        counts[name] = len(ids[part])
    index = {"digest": "w", "width": rows.shape[1], "parts": counts if told is None else told}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)


@pytest.mark.parametrize("dtype, wanted", [("float16", np.float16), ("bfloat16", np.float32)])
def test_rows_come_back_in_their_precision_whole_or_in_part(tmp_path, rows, dtype, wanted):
    pool = open_pool(write(tmp_path / "pool", rows, dtype=dtype))
    found = pool.read(0, 9)
    assert found.dtype == wanted and len(pool) == 9
    np.testing.assert_allclose(found, rows, rtol=2**-8)
    np.testing.assert_array_equal(pool.read(3, 7), found[3:7])
    np.testing.assert_array_equal(pool.gather(np.array([1, 4, 8])), found[[1, 4, 8]])
    assert pool.ids([0, 5, 8]) == ["0.png", "5.png", "8.png"]
    assert pool.max_abs == np.abs(found).max()
    if dtype == "bfloat16":
        assert not (found.view(np.uint32) & 0xFFFF).any()


def test_other_tools_read_the_columns(tmp_path, rows):
    from pyarrow import parquet

    table = parquet.read_table(
        write(tmp_path / "pool", rows, dtype="float32") / "part-00000.parquet"
    )
    assert table.column_names[:2] == ["id", "embedding"]
    np.testing.assert_array_equal(np.array(table.column("embedding").to_pylist()), rows[:4])


@pytest.mark.parametrize(
    "fault, message",
    [
        ("nan", r"1 rows hold NaN or infinity, the first of 6\.png"),
        ("twice", r"the id '2\.png' comes twice"),
        ("twice apart", r"the id '1\.png' comes twice"),
        ("weights", "embeddings of other weights or settings"),
        ("missing", "1 of 2 parts are missing, the first part-00001.parquet"),
        ("unfinished", "is not finished"),
        ("rows", "has 4 rows, index.json says 7"),
        ("damaged", "is not a Parquet file"),
    ],
)
def test_what_cannot_be_worked_with_is_told(tmp_path, rows, fault, message):
    options = {}
    ids = [f"{i}.png" for i in range(9)]
    if fault == "nan":
        rows[6, 2] = np.nan
    elif fault == "twice":
        ids[3] = "2.png"
    elif fault == "twice apart":
        ids[8] = "1.png"
    elif fault == "weights":
        options["weights"] = ("w", "v")
    elif fault == "unfinished":
        options["told"] = {}
    elif fault == "rows":
        options["told"] = {"part-00000.parquet": 7}
    folder = write(tmp_path / "pool", rows, ids=ids, **options)
    if fault == "missing":
        (folder / "part-00001.parquet").unlink()
    elif fault == "damaged":
        (folder / "part-00001.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=message):
        open_pool(folder)


@pytest.mark.parametrize(
    "text, message",
    [
        ("pool: a", "weights is empty"),
        ("weights: w\npool: a\nsampel: {}", "sampel is no key of a curation; did you mean sample?"),
        ("weights: w\npool: a\nkmeans: {cluster: [3]}", "did you mean kmeans.clusters?"),
        ("weights: w\npool: a\nkmeans: {clusters: 3}", "expected a list"),
        ("weights: w\npool: a\nkmeans: {clusters: [9, 3], sizes: [1]}", "sizes has 1 numbers"),
        ("weights: w\npool: a\ndedup: {keep: best}", "choose of largest, first"),
        ("weights: w\npool: a\ndedup: {threshold: often}", "calibrate or null"),
        ("weights: w\npool: a\nsample: {target: 5}", "needs kmeans.clusters"),
        ("weights: w\npool: a\nsample: {target: -1}", "at least 0"),
        ("weights: w\npool: a\nmixture: {weights: {web: 1.0}}", "knows no 'web'"),
        ("weights: w\npool: a\nretrieve: {x: {path: p, by: cluster}}", "set kmeans.clusters"),
        ("weights: [", "is not YAML"),
        ("- 1", "expected an object"),
    ],
)
def test_a_recipe_is_read_key_by_key(tmp_path, text, message):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ValueError) as error:
        load(tmp_path / "r.yaml")
    assert message in str(error.value)


def test_a_recipe_takes_overrides(tmp_path):
    (tmp_path / "r.yaml").write_text("weights: w\npool: a\n")
    settings = ["kmeans.clusters=[9, 3]", "sample.target=4", "retrieve.x.path=p", "pool=b"]
    found = load(tmp_path / "r.yaml", settings)
    assert found.kmeans.clusters == [9, 3] and found.sample.target == 4 and found.pool == "b"
    assert found.retrieve["x"].path == "p" and found.retrieve["x"].neighbors == 4
