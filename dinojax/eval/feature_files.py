"""Features of images as files: .npz, or .parquet with a row per image."""

import json
from pathlib import Path

import numpy as np


def _write_npz(path: Path, content: dict[str, np.ndarray]) -> None:
    with open(path, "wb") as file:
        np.savez(file, **content)  # type: ignore[arg-type]


def _write_parquet(path: Path, content: dict[str, np.ndarray]) -> None:
    """A row per image; arrays are flat lists, their shapes in the metadata of the columns."""
    pyarrow, parquet = need_pyarrow()
    columns, fields = [], []
    for name, array in content.items():
        flat = array.reshape(len(array), -1)
        column = pyarrow.array(array.tolist() if array.dtype.kind == "U" else array.reshape(-1))
        if array.ndim > 1:
            column = pyarrow.FixedSizeListArray.from_arrays(column, flat.shape[1])
        columns.append(column)
        shape = {"shape": json.dumps(array.shape[1:])}
        fields.append(pyarrow.field(name, column.type, metadata=shape))
    parquet.write_table(pyarrow.Table.from_arrays(columns, schema=pyarrow.schema(fields)), path)


def need_pyarrow():
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "--format parquet needs pyarrow: pip install pyarrow, or give --format npz."
        ) from None
    return pyarrow, parquet


WRITERS = {"npz": _write_npz, "parquet": _write_parquet}
