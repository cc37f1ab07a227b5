"""Columns of metadata: what is known of each image beside its pixels, with gaps.

They come from where the images are listed: further columns of a manifest or of Parquet files,
fields of a tar's json files, the class (`label`) of any labelled source; or from a table of its
own (data.metadata), CSV or Parquet with a column `path`, for images in a folder.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from dinojax.data.encoded import EncodedSource, numbered
from dinojax.data.example import Source
from dinojax.data.folder import FolderFiles
from dinojax.data.manifest import read_table
from dinojax.data.mixture import Mixture

LABEL = "label"
MISSING = -1  # index of the class of an image without one; of numbers NaN
GAPS = ("", "nan", "None")  # cells that say nothing
NUM_SHOWN = 12  # names in a message

Cells = Mapping[str, Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Column:
    """A value of every image. classes: their names, empty for a column of numbers."""

    name: str
    values_N: np.ndarray  # int32 with MISSING, or float32 with NaN
    classes: tuple[str, ...]

    @property
    def present_N(self) -> np.ndarray:
        return self.values_N != MISSING if self.classes else np.isfinite(self.values_N)

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest number."""
        numbers = self.values_N[self.present_N]
        return float(numbers.min()), float(numbers.max())

    def told(self) -> str:
        """In words: how many values, classes and gaps."""
        present, total = int(self.present_N.sum()), len(self.values_N)
        gaps = f", {total - present:,} without" if present < total else ""
        if not self.classes:
            low, high = self.range
            return f"{self.name}: {present:,} numbers from {low:g} to {high:g}{gaps}"
        counts = np.bincount(self.values_N[self.present_N], minlength=len(self.classes))
        once = int((counts == 1).sum())
        single = f", {once:,} of them with one image" if once else ""
        return f"{self.name}: {present:,} images of {len(self.classes):,} classes{single}{gaps}"


def read_columns(
    source: Source, kinds: Mapping[str, str], *, table: str = "", where: str = "data.path"
) -> dict[str, Column]:
    """Name -> column of each of `kinds`, whose values are classes | numbers.

    table: data.metadata, a file that lists images of a folder by their path below it.
    Raises ValueError for columns that are not there, empty, constant, of one class, or with cells
    that are no numbers, and for a table of other images.
    """
    if table:
        where = f"data.metadata={table}"
        cells = {**_cells(source), **_of_table(source, table, where)}
    else:
        cells = _cells(source)
    if absent := [name for name in kinds if name not in cells]:
        told = ", ".join(sorted(cells)[:NUM_SHOWN]) or "none"
        raise ValueError(
            f"{where} has no column {absent[0]!r} of metadata; it has: {told}. Metadata are "
            "columns of a manifest or of Parquet files, fields of json files in tars, `label`, or "
            "a table with a column `path` (data.metadata)."
        )
    if odd := [name for name in kinds if len(cells[name]) != len(source)]:
        raise ValueError(
            f"{where}: the column {odd[0]!r} has {len(cells[odd[0]]):,} rows for {len(source):,} "
            "images; give one row an image."
        )
    make = {"classes": _classes, "numbers": _numbers}
    return {name: make[kind](name, cells[name], where) for name, kind in kinds.items()}


def _cells(source: Source) -> dict[str, list[str]]:
    """All columns of a source; of a mixture those of any part, with gaps in the others."""
    if isinstance(source, Mixture):
        parts = [(_cells(part.source), len(part.source)) for part in source.parts]
        names = dict.fromkeys(name for cells, _ in parts for name in cells)
        return {
            name: [cell for cells, n in parts for cell in cells.get(name, [""] * n)]
            for name in names
        }
    found: dict[str, list[str]] = {}
    if source.labels is not None:
        found[LABEL] = [source.class_names[label] for label in source.labels.tolist()]
    if isinstance(source, EncodedSource) and source.metadata is not None:
        found = {**source.metadata(), **found}
    return found


def _of_table(source: Source, table: str, where: str) -> dict[str, list[str]]:
    """Columns of a table by the paths of images; images that it does not list have gaps."""
    files = source.files if isinstance(source, EncodedSource) else None
    if not isinstance(files, FolderFiles):
        raise ValueError(
            f"{where} goes with a folder of images (data.source=folder); other kinds of data hold "
            "their metadata themselves."
        )
    cells = read_table(table, where)
    rows = {path: number for number, path in enumerate(cells["path"])}
    if len(rows) < len(cells["path"]):
        twice = next(p for p in rows if list(cells["path"]).count(p) > 1)
        raise ValueError(f"{where} has the path {twice!r} twice; keep one.")
    numbers = [rows.get(name) for name in files.names]
    found = sum(number is not None for number in numbers)
    if found * 2 < len(rows):
        raise ValueError(
            f"{where} is of other images: {found:,} of its {len(rows):,} paths are images of the "
            f"folder. It has {next(iter(rows))!r}, the folder {files.names[0]!r}; paths start "
            "from data.path."
        )
    return {
        name: ["" if number is None else column[number] for number in numbers]
        for name, column in cells.items()
        if name != "path"
    }


def _classes(name: str, cells: Sequence[str], where: str) -> Column:
    present = [cell for cell in cells if cell not in GAPS]
    indexes, classes = numbered(present)
    if len(classes) < 2:
        only = f"one class, {classes[0]!r}" if classes else "no value"
        raise ValueError(
            f"{where}: the column {name!r} has {only} in {len(cells):,} images: there is nothing "
            "to tell apart. Leave its guide out."
        )
    values = np.full(len(cells), MISSING, np.int32)
    values[[cell not in GAPS for cell in cells]] = indexes
    if len(classes) * 2 > len(present):
        raise ValueError(
            f"{where}: the column {name!r} has {len(classes):,} classes for {len(present):,} "
            "images, fewer than two images each. Numbers need the kind `regression`."
        )
    return Column(name, values, classes)


def _numbers(name: str, cells: Sequence[str], where: str) -> Column:
    values = np.full(len(cells), np.nan, np.float32)
    for row, cell in enumerate(cells):
        if cell in GAPS:
            continue
        try:
            values[row] = float(cell)
        except ValueError:
            raise ValueError(
                f"{where}: image {row + 1} has {cell!r} in the column {name!r}, which is no "
                "number; repair it, leave it empty, or use the kind `classification`."
            ) from None
        if not math.isfinite(values[row]):
            raise ValueError(f"{where}: image {row + 1} has {cell!r} in the column {name!r}.")
    column = Column(name, values, ())
    if not column.present_N.any() or column.range[0] == column.range[1]:
        raise ValueError(
            f"{where}: the column {name!r} has one value or none in {len(cells):,} images: there "
            "is nothing to predict. Leave its guide out."
        )
    return column
