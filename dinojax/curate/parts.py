"""One Parquet file of embeddings: written, read, and what it says of itself."""

import functools
import importlib
import json
import threading
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from dinojax.data import fields

DTYPES = ("float16", "bfloat16", "float32")
METADATA = b"dinojax"  # key of what a part says of its weights


def write_part(path: Path, columns: dict[str, Any], *, dtype: str, told: dict[str, Any]) -> None:
    """One Parquet file. columns: id, embedding float32 [N, D], and others as lists.

    told: kept in its metadata; weights, the digest of all that made the rows, belongs there.
    """
    pyarrow, parquet = importlib.import_module("pyarrow"), need_parquet()
    rows = stored(np.asarray(columns["embedding"]), dtype)
    flat = pyarrow.array(rows.reshape(-1))
    arrays = {name: pyarrow.array(list(v)) for name, v in columns.items() if name != "embedding"}
    arrays["embedding"] = pyarrow.FixedSizeListArray.from_arrays(flat, rows.shape[1])
    names = ["id", "embedding", *(name for name in columns if name not in ("id", "embedding"))]
    sizes = np.abs(rows.astype(np.float32))
    most = float(np.max(sizes, where=np.isfinite(sizes), initial=0.0))
    kept = {**told, "max_abs": most}
    table = pyarrow.table({name: arrays[name] for name in names})
    table = table.replace_schema_metadata({METADATA: json.dumps(kept)})
    parquet.write_table(table, path, compression="zstd" if dtype == "bfloat16" else "none")


def stored(rows_ND: np.ndarray, dtype: str) -> np.ndarray:
    """Rows in the precision that they are kept in: float16, or float32 (rounded, for bfloat16)."""
    if dtype == "bfloat16":
        return rows_ND.astype(ml_dtypes.bfloat16).astype(np.float32)
    with np.errstate(over="ignore"):  # becomes infinite, and is refused by the row it stands in
        return rows_ND.astype(dtype)


_LOCK = threading.Lock()


def embedding_of(path: Path, width: int) -> np.ndarray:
    """All rows of a part [N, D], kept for the next call."""
    with _LOCK:
        return _cached_embedding(str(path), path.stat().st_mtime_ns, width)


@functools.lru_cache(maxsize=4)  # parts; of rows in order each is read once
def _cached_embedding(path: str, changed: int, width: int) -> np.ndarray:
    column = need_parquet().read_table(path, columns=["embedding"]).column("embedding")
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    if flat.size % width or flat.size // width != len(column):
        raise ValueError(f"{path}: its embeddings have not the width {width} of index.json.")
    rows = flat.reshape(-1, width)
    rows.setflags(write=False)
    return rows


@functools.lru_cache(maxsize=4096)
def told_of(path: Path) -> dict[str, Any]:
    """What a part says of itself; ValueError for a file that `curate embed` has not written."""
    metadata = file_of(path).schema_arrow.metadata or {}
    if METADATA not in metadata:
        raise ValueError(f"{path} was not written by dinojax curate embed; take it out.")
    told = fields.parse(metadata[METADATA], where=path)
    fields.field(told, "max_abs", float, where=path)
    return told


def file_of(path: Path) -> Any:
    """The opened file; ValueError for what is none."""
    try:
        return need_parquet().ParquetFile(path)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # pyarrow's errors share no base class
        raise ValueError(f"{path} is not a Parquet file: {error}") from error


def need_parquet() -> Any:
    """pyarrow.parquet; ModuleNotFoundError that names the extra."""
    try:
        return importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "embeddings are Parquet files, which need pyarrow: pip install 'dinojax[curate]'"
        ) from None
