"""A table of images: CSV or Parquet with a column `path` and, where images have classes, `label`.

A path is absolute, a URL, or relative to the manifest. Rows are images, in the order of the file.
With a column `caption` rows of one path are captions of one image, which comes where its first is.
"""

import csv
import dataclasses
import functools
import importlib
import io
import os

import numpy as np

from dinojax.data.decode import PLAIN, ReadOptions
from dinojax.data.encoded import EncodedSource, check_one_decodes, fingerprint, label_of, numbered
from dinojax.data.example import Encoded, Source
from dinojax.data.storage import MAX_BYTES, check_urls, is_url, read_bytes, shown

EXTENSIONS = (".csv", ".parquet")
COLUMNS = ("path", "label")
CAPTION = "caption"

Columns = dict[str, list[str]]


@dataclasses.dataclass(frozen=True, eq=False)
class ManifestFiles:
    """The files of a manifest; `folder` (a path or URL) is where relative paths begin."""

    folder: str
    paths: tuple[str, ...]
    labels: np.ndarray | None
    captions: tuple[tuple[str, ...], ...] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def local_files(self) -> tuple[str, ...]:
        return tuple(place for place in map(self._place, self.paths) if not is_url(place))

    def _place(self, path: str) -> str:
        return path if is_url(path) or os.path.isabs(path) else f"{self.folder}/{path}"

    def encoded(self, index: int) -> Encoded:
        path = self.paths[index]
        place = self._place(path)
        label = label_of(self.labels, index)
        told = () if self.captions is None else self.captions[index]
        data = read_bytes(place, max_bytes=MAX_BYTES)
        return Encoded(data=data, label=label, name=shown(path), captions=told)


def manifest(
    *,
    path: str,
    channels: int,
    split: str = "train",
    key: str = "data.path",
    options: ReadOptions = PLAIN,
) -> Source:
    """The source of a manifest; `key` is the config key that messages name.

    The fingerprint is of paths and labels, not of the files behind them. Raises OSError if the
    manifest cannot be read, ModuleNotFoundError without the package that its kind needs, and
    ValueError naming the row for what is wrong in it.
    """
    if split != "train":
        raise ValueError(f"a manifest has no split {split!r}: all of it is 'train'.")
    if not path:
        raise ValueError(f"{key} is empty; set it to a manifest: --set {key}=FILE.csv")
    where = f"{key}={path}"
    if not path.lower().endswith(EXTENSIONS):
        raise ValueError(f"{where}: a manifest ends with {' or '.join(EXTENSIONS)}.")
    check_urls([path], where)
    place = path if is_url(path) else os.path.abspath(os.path.expanduser(path))
    data = read_bytes(place)
    columns = _parquet(data, where) if path.lower().endswith(".parquet") else _csv(data, where)
    captions = None
    if CAPTION in columns:
        columns, captions = _by_image(columns)
    paths, classes = _checked(columns, where)
    check_urls(paths, where)
    labels, class_names = (None, ()) if classes is None else numbered(classes)
    source = EncodedSource(
        files=ManifestFiles(place.rpartition("/")[0], tuple(paths), labels, captions),
        channels=channels,
        class_names=class_names,
        fingerprint=fingerprint(_rows(paths, classes, captions)),
        options=options,
        metadata=functools.partial(_further, path, where),
    )
    return check_one_decodes(source, where)


def _rows(paths, classes, captions):
    """What the fingerprint is of: path, class and captions of every image."""
    for number, path in enumerate(paths):
        told = captions[number] if captions else ()
        yield path, classes[number] if classes else "", *told


def _by_image(columns: Columns) -> tuple[Columns, tuple[tuple[str, ...], ...]]:
    """The first row of every path, and the captions of all its rows, without empty ones."""
    first: dict[str, int] = {}  # path -> its first row
    captions: dict[str, list[str]] = {}
    for row, path in enumerate(columns["path"]):
        first.setdefault(path, row)
        text = columns[CAPTION][row].strip()
        captions.setdefault(path, []).extend([text] if text else [])
    kept = {name: [values[row] for row in first.values()] for name, values in columns.items()}
    return kept, tuple(map(tuple, captions.values()))


def read_table(path: str, where: str) -> Columns:
    """All columns of a manifest as texts, "" for a missing value. Raises as `manifest`."""
    if not path.lower().endswith(EXTENSIONS):
        raise ValueError(f"{where}: a table ends with {' or '.join(EXTENSIONS)}.")
    data = read_bytes(path if is_url(path) else os.path.abspath(os.path.expanduser(path)))
    if path.lower().endswith(".parquet"):
        return _parquet(data, where, is_whole=True)
    return _csv(data, where)


def _further(path: str, where: str) -> Columns:
    """Columns beside those of COLUMNS."""
    return {name: cells for name, cells in read_table(path, where).items() if name not in COLUMNS}


def _csv(data: bytes, where: str) -> Columns:
    try:
        rows = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        header = next(rows, [])
        columns: Columns = {name: [] for name in header}
        _check_columns(header, where)
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise ValueError(
                    f"{where}, line {rows.line_num}: {len(row)} values for the {len(header)} "
                    f"columns {', '.join(header)}."
                )
            for name, value in zip(header, row, strict=True):
                columns[name].append(value)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{where} is not a CSV file in UTF-8: {error}.") from error
    return columns


def _parquet(data: bytes, where: str, *, is_whole: bool = False) -> Columns:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{where}: Parquet needs the package pyarrow; run: pip install 'dinojax[parquet]', "
            "or write the manifest as CSV."
        ) from None
    try:
        file = parquet.ParquetFile(io.BytesIO(data))
        all_names = file.schema_arrow.names
        names = [name for name in all_names if is_whole or name in (*COLUMNS, CAPTION)]
        _check_columns(all_names, where)
        table = file.read(columns=names)
    except _WrongColumns:
        raise
    except Exception as error:  # pyarrow's errors share no base class
        raise ValueError(f"{where} is not a Parquet file: {error}") from error
    return {
        name: ["" if value is None else str(value) for value in table.column(name).to_pylist()]
        for name in names
    }


class _WrongColumns(ValueError):
    """Columns that make no manifest."""


def _check_columns(names: list[str], where: str) -> None:
    if "path" not in names:
        raise _WrongColumns(
            f"{where} has no column 'path'; its columns are {', '.join(names) or 'none'}. "
            "The first line of a CSV manifest names them, such as: path,label"
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise _WrongColumns(f"{where} has the column {twice[0]!r} twice; keep one.")


def _checked(columns: Columns, where: str) -> tuple[list[str], list[str] | None]:
    """(paths, classes or None): at least one row, no empty cell."""
    if not columns["path"]:
        raise ValueError(f"{where} has no rows.")
    for name in COLUMNS:
        if name in columns and "" in columns[name]:
            number = columns[name].index("") + 1
            raise ValueError(
                f"{where}: image {number} has an empty {name}; fill it"
                f"{', or leave out the column' if name == 'label' else ''}."
            )
    return columns["path"], columns["label"] if "label" in columns else None
