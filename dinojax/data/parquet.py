"""Images inside Parquet files, as Hugging Face data sets store them.

A column holds the image files, as a structure with the field `bytes` (Hugging Face's `Image`) or as
plain bytes; a column `label` holds whole numbers or texts, whose names Hugging Face keeps beside
the schema; a column `caption`, `captions` or `text` captions, a text or a list. Of a folder the
files `train-*.parquet` are read, or all where none is named by a split. Reading one image reads its
row group, some hundred images: in random order `dinojax data convert` is worth its while.
"""

import bisect
import dataclasses
import functools
import importlib
import itertools
import json
import os
import re
import threading
from typing import Any

import numpy as np

from dinojax.data import captions
from dinojax.data.decode import PLAIN, ReadOptions
from dinojax.data.encoded import (
    EncodedSource,
    check_one_decodes,
    checked_path,
    fingerprint,
    label_of,
    numbered,
    shards,
)
from dinojax.data.example import Encoded, Source

SUFFIXES = (".parquet",)
LABEL = "label"
SPLIT = re.compile(r"(.+)-\d+-of-\d+\.parquet")  # names that Hugging Face gives


@dataclasses.dataclass(frozen=True, eq=False)
class ParquetFiles:
    """Images of all files, one after the other. ends: images up to the end of each row group."""

    groups: tuple[tuple[str, int], ...]  # file and number of each row group
    ends: tuple[int, ...]
    column: str  # of the images
    labels: np.ndarray | None
    captions: str = ""  # their column, "" = there is none

    def __len__(self) -> int:
        return self.ends[-1]

    @property
    def local_files(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(path for path, _ in self.groups))

    def encoded(self, index: int) -> Encoded:
        group = bisect.bisect_right(self.ends, index)
        place = index - (self.ends[group - 1] if group else 0)
        path, number = self.groups[group]
        name = f"{os.path.basename(path)}/{number}/{place}"
        try:
            with _READING:
                cell = _row_group(path, number, self.column)[place].as_py()
                told = (
                    _row_group(path, number, self.captions)[place].as_py() if self.captions else ()
                )
        except Exception as error:  # pyarrow's errors share no base class
            raise OSError(f"cannot read {name}: {error}") from error
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if data is None:
            elsewhere = isinstance(cell, dict) and cell.get("path")
            raise OSError(f"{name} holds no bytes{f' but the path {elsewhere}' * bool(elsewhere)}.")
        label = label_of(self.labels, index)
        try:
            return Encoded(data, label=label, name=name, captions=captions.of_value(told, name))
        except ValueError as error:  # of this image alone
            raise OSError(str(error)) from error


_READING = threading.Lock()


@functools.lru_cache(maxsize=8)  # columns of row groups; of consecutive images each is read once
def _row_group(path: str, number: int, column: str) -> Any:
    file = _pyarrow_parquet().ParquetFile(path)
    try:
        return file.read_row_group(number, columns=[column]).column(column)
    finally:
        file.close()


def _pyarrow_parquet() -> Any:
    try:
        return importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "Parquet needs the package pyarrow; run: pip install 'dinojax[parquet]'"
        ) from None


def parquet(
    *,
    path: str,
    channels: int,
    split: str = "train",
    key: str = "data.path",
    options: ReadOptions = PLAIN,
) -> Source:
    """The source of one Parquet file with images or a folder of them; messages name `key`.

    Raises FileNotFoundError, ModuleNotFoundError without pyarrow, and ValueError for files that
    are damaged, differ in their columns, or have labels that no class has.
    """
    where, found = f"{key}={path}", checked_path(path, key, "a folder of Parquet files with images")
    library = _pyarrow_parquet()
    files, notes = shards(found, key, SUFFIXES)
    if os.path.isfile(found):
        if split != "train":
            raise ValueError(f"a Parquet file has no split {split!r}: all of it is 'train'.")
    else:
        files, others = _of_split(files, split, where)
        notes = (*notes, *others)
    opened = [_opened(library, file) for file in files]
    schema = opened[0].schema_arrow
    for file, other in zip(files, opened, strict=True):
        if not other.schema_arrow.equals(schema):
            raise ValueError(
                f"{where}: {file} has other columns than {files[0]}; give one of them."
            )
    column = _image_column(schema, where)
    labels, class_names = _labels(opened, schema, where)
    counts = [f.metadata.row_group(n).num_rows for f in opened for n in range(f.num_row_groups)]
    groups = [(p, n) for p, f in zip(files, opened, strict=True) for n in range(f.num_row_groups)]
    rows = [(os.path.basename(p), f.metadata.num_rows) for p, f in zip(files, opened, strict=True)]
    for file in opened:
        file.close()
    if not sum(counts):
        raise ValueError(f"{where} has no rows.")
    source = EncodedSource(
        files=ParquetFiles(
            tuple(groups),
            tuple(itertools.accumulate(counts)),
            column,
            labels,
            next((name for name in captions.COLUMNS if name in schema.names), ""),
        ),
        channels=channels,
        class_names=class_names,
        fingerprint=fingerprint((*r, os.path.getsize(p)) for p, r in zip(files, rows, strict=True)),
        options=options,
        notes=notes,
        metadata=functools.partial(_further, tuple(files), column),
    )
    return check_one_decodes(source, where)


def _further(files: tuple[str, ...], image_column: str) -> dict[str, list[str]]:
    """Columns of plain values beside images and labels, as texts."""
    found: dict[str, list[str]] = {}
    types = importlib.import_module("pyarrow").types
    for path in files:
        file = _opened(_pyarrow_parquet(), path)
        nested = {field.name for field in file.schema_arrow if types.is_nested(field.type)}
        names = [n for n in file.schema_arrow.names if n not in {image_column, LABEL} | nested]
        table = file.read(columns=names)
        for name in names:
            cells = table.column(name).to_pylist()
            found.setdefault(name, []).extend("" if v is None else str(v) for v in cells)
        file.close()
    return found


def _of_split(files: list[str], split: str, where: str) -> tuple[list[str], tuple[str, ...]]:
    """The files of a split, and a note on those of others."""
    names = [SPLIT.fullmatch(os.path.basename(file)) for file in files]
    splits = sorted({match[1] for match in names if match})
    if not splits and split == "train":
        return files, ()
    if split not in splits:
        raise ValueError(
            f"{where} has no split {split!r}; it has {', '.join(splits or ['train'])}."
        )
    chosen = [file for file, match in zip(files, names, strict=True) if match and match[1] == split]
    others = len(files) - len(chosen)
    rest = ", ".join(name for name in splits if name != split)
    note = f"{others:,} Parquet files skipped that are not of {split} ({rest or 'without a split'})"
    return chosen, (note,) * bool(others)


def _opened(library: Any, path: str) -> Any:
    try:
        return library.ParquetFile(path)
    except Exception as error:  # as above
        raise ValueError(f"{path} is not a Parquet file: {error}") from error


def is_images(path: str) -> bool:
    """Whether a Parquet file holds images, not the paths of images."""
    if not os.path.isfile(path):
        return False  # opening a pipe would wait for its other end
    try:
        schema = _pyarrow_parquet().ParquetFile(path).schema_arrow
    except Exception:  # what is wrong with it is told when it is opened
        return False
    return "path" not in schema.names and bool(_image_columns(schema))


def _image_columns(schema: Any) -> list[str]:
    types = importlib.import_module("pyarrow").types

    def is_bytes(kind: Any) -> bool:
        return types.is_binary(kind) or types.is_large_binary(kind)

    def holds_image(kind: Any) -> bool:
        if not types.is_struct(kind):
            return is_bytes(kind)
        return kind.get_field_index("bytes") >= 0 and is_bytes(kind.field("bytes").type)

    return [field.name for field in schema if holds_image(field.type)]


def _image_column(schema: Any, where: str) -> str:
    found = _image_columns(schema)
    if len(found) != 1 or schema.names.count(found[0]) > 1:
        raise ValueError(
            f"{where} has {len(found)} columns of images ({', '.join(found)}) among "
            f"{', '.join(schema.names)}; one is needed. A manifest has a column 'path'."
        )
    return found[0]


def _labels(opened: list, schema: Any, where: str) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels int32 [N] and class names of the column `label`; none where every label is missing."""
    if LABEL not in schema.names:
        return None, ()
    try:
        cells = [v for f in opened for v in f.read(columns=[LABEL]).column(LABEL).to_pylist()]
    except Exception as error:  # as above
        raise ValueError(f"{where}: its column {LABEL} cannot be read: {error}") from error
    names = _class_names(schema)
    missing = [value is None or (names and value == -1) for value in cells]
    if all(missing):
        return None, ()
    if any(missing):
        raise ValueError(f"{where}: image {missing.index(True)} has no label, but others have.")
    if not all(type(value) in (int, str) for value in cells):
        raise ValueError(f"{where}: its column {LABEL} holds neither whole numbers nor texts.")
    if not names:
        return numbered(str(value) for value in cells)
    beyond = [v for v in cells if type(v) is not int or not 0 <= v < len(names)]
    if beyond:
        raise ValueError(f"{where}: label {beyond[0]!r} is none of {len(names)} classes.")
    return np.array(cells, np.int32), names


def _class_names(schema: Any) -> tuple[str, ...]:
    """Of a `ClassLabel`, from the text that Hugging Face keeps in the metadata; empty for none."""
    try:
        told = json.loads((schema.metadata or {})[b"huggingface"])
        names = told["info"]["features"][LABEL]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()
    return tuple(names) if all(isinstance(name, str) for name in names) else ()
