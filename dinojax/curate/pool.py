"""Embeddings of a pool: rows of Parquet files on disk, or of one array, read a stretch at a time.

A folder of embeddings holds index.json and part-00000.parquet, part-00001.parquet and so on, with
the columns `id` (text) and `embedding` (a list of fixed length) that other tools read, and `label`,
`pixels` (width times height) and `phash` where they are known. Parquet has no bfloat16: such rows
are float32 whose last 16 bits are zero.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dinojax.curate.parts import embedding_of, file_of, need_parquet, told_of
from dinojax.data import fields
from dinojax.files.drafts import write_json

INDEX, CHECKED = "index.json", "checked.json"
PART = re.compile(r"part-(\d{5,})\.parquet")
READ_ROWS = 65_536  # of passes that look at every row


class Rows(Protocol):
    """Rows of embeddings [N, D] that are read in stretches, from any thread."""

    @property
    def width(self) -> int: ...

    @property
    def max_abs(self) -> float:
        """The largest magnitude of any value."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop, as they are stored."""

    def gather(self, indexes: np.ndarray) -> np.ndarray:
        """The rows of rising indexes."""


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayRows:
    """Rows of an array in memory, or mapped from a file."""

    array_ND: np.ndarray

    @property
    def width(self) -> int:
        return self.array_ND.shape[1]

    @functools.cached_property
    def max_abs(self) -> float:
        parts = range(0, len(self), READ_ROWS)
        return max((float(np.max(np.abs(self.read(a, a + READ_ROWS)))) for a in parts), default=0.0)

    def __len__(self) -> int:
        return len(self.array_ND)

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.asarray(self.array_ND[start:stop])

    def gather(self, indexes: np.ndarray) -> np.ndarray:
        return np.asarray(self.array_ND[indexes])


@dataclasses.dataclass(frozen=True, eq=False)
class SomeRows:
    """Those of other rows that are wanted, in rising order: a pool without its duplicates."""

    rows: Rows
    indexes: np.ndarray  # int64, rising

    @property
    def width(self) -> int:
        return self.rows.width

    @property
    def max_abs(self) -> float:
        return self.rows.max_abs

    def __len__(self) -> int:
        return len(self.indexes)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.rows.gather(self.indexes[start:stop])

    def gather(self, indexes: np.ndarray) -> np.ndarray:
        return self.rows.gather(self.indexes[indexes])


@dataclasses.dataclass(frozen=True, eq=False)
class CenteredRows:
    """Rows less one vector: cosines that the mean of all images has no part in."""

    rows: Rows
    center_D: np.ndarray

    @property
    def width(self) -> int:
        return self.rows.width

    @property
    def max_abs(self) -> float:
        return self.rows.max_abs + float(np.max(np.abs(self.center_D)))

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.rows.read(start, stop) - self.center_D

    def gather(self, indexes: np.ndarray) -> np.ndarray:
        return self.rows.gather(indexes) - self.center_D


@dataclasses.dataclass(frozen=True, eq=False)
class Pool:
    """All parts of a folder of embeddings, one after the other."""

    folder: Path
    index: dict[str, Any]
    parts: tuple[Path, ...]
    ends: np.ndarray  # int64: rows up to the end of each part

    @property
    def width(self) -> int:
        return self.index["width"]

    @functools.cached_property
    def max_abs(self) -> float:
        return max(told_of(path)["max_abs"] for path in self.parts)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        stop = min(stop, len(self))
        found = []
        for number in range(*self._parts(start, stop)):
            first = int(self.ends[number - 1]) if number else 0
            rows = embedding_of(self.parts[number], self.width)
            found.append(rows[max(start - first, 0) : stop - first])
        return np.concatenate(found) if len(found) > 1 else found[0]

    def gather(self, indexes: np.ndarray) -> np.ndarray:
        indexes = np.asarray(indexes, np.int64)
        if not len(indexes):
            return np.zeros((0, self.width), np.float32)
        of_part = np.searchsorted(self.ends, indexes, side="right")
        found = []
        for number in np.unique(of_part):
            first = int(self.ends[number - 1]) if number else 0
            rows = embedding_of(self.parts[number], self.width)
            found.append(rows[indexes[of_part == number] - first])
        return np.concatenate(found)

    def column(self, name: str) -> Iterator[list]:
        """Values of `id`, `label`, `pixels` or `phash`, a list for each part."""
        for path in self.parts:
            yield (need_parquet().read_table(path, columns=[name]).column(name).to_pylist())

    def ids(self, indexes: Sequence[int] | np.ndarray) -> list[str]:
        """The ids of rising indexes; only these are held."""
        wanted, found, first = np.asarray(indexes, np.int64), [], 0
        for number, names in enumerate(self.column("id")):
            low, high = np.searchsorted(wanted, [first, int(self.ends[number])])
            found += [names[index - first] for index in wanted[low:high]]
            first = int(self.ends[number])
        return found

    def _parts(self, start: int, stop: int) -> tuple[int, int]:
        """Numbers of the first part of a stretch and of the one behind it."""
        first = int(np.searchsorted(self.ends, start, side="right"))
        return first, max(first, int(np.searchsorted(self.ends, stop, side="left"))) + 1


def open_pool(folder: str | Path, *, check: bool = True) -> Pool:
    """The embeddings of a folder. check: read all of it once and refuse what cannot be worked with.

    Raises FileNotFoundError without a folder or index, and ValueError for embeddings that are not
    finished, parts that are missing or of other weights, rows with NaN, and ids that come twice.
    """
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(
            f"{folder} holds no {INDEX}: make embeddings with dinojax curate embed --out {folder}"
        )
    index = fields.checked(fields.read(folder / INDEX), dict, name="the whole", where=folder)
    counts = fields.field(index, "parts", ({str: int}, None), where=folder / INDEX)
    fields.field(index, "width", int, where=folder / INDEX)
    if not counts:
        raise ValueError(f"{folder} is not finished; run the curate embed that began it again.")
    if missing := [name for name in counts if not (folder / name).is_file()]:
        raise ValueError(
            f"{folder}: {len(missing)} of {len(counts)} parts are missing, the first {missing[0]}; "
            "bring them back, or run the curate embed that made them again."
        )
    parts = tuple(folder / name for name in counts)
    for path, rows in zip(parts, counts.values(), strict=True):
        _check_part(path, rows, index)
    pool = Pool(folder, index, parts, np.cumsum(list(counts.values())))
    if check:
        _check_rows(pool)
    return pool


def _check_part(path: Path, rows: int, index: dict[str, Any]) -> None:
    told = told_of(path)
    if told.get("weights") != index.get("digest"):
        raise ValueError(
            f"{path} holds embeddings of other weights or settings than {INDEX} says; rows of "
            "different networks cannot be compared. Take it out and run curate embed again."
        )
    found = file_of(path).metadata.num_rows
    if found != rows:
        raise ValueError(f"{path} has {found:,} rows, {INDEX} says {rows:,}; embed them again.")


def _check_rows(pool: Pool) -> None:
    """Every row once: finite, and every id once. What was found in order is not read again."""
    state = {path.name: path.stat().st_size for path in pool.parts}
    state |= {f"{path.name} changed": path.stat().st_mtime_ns for path in pool.parts}
    marker = pool.folder / CHECKED
    if marker.exists() and fields.read(marker) == state:
        return
    hashes: list[np.ndarray] = []
    for path, names in zip(pool.parts, pool.column("id"), strict=True):
        finite = np.isfinite(embedding_of(path, pool.width)).all(axis=1)
        if not finite.all():
            row = int(np.argmin(finite))
            raise ValueError(
                f"{path}: {int((~finite).sum()):,} rows hold NaN or infinity, the first of "
                f"{names[row]}; look at that image, or embed with --dtype bfloat16, whose range is "
                "that of float32."
            )
        if len(set(names)) < len(names):
            raise _twice(next(name for name in names if names.count(name) > 1), pool)
        hashes.append(np.array([hash(name) for name in names], np.int64))
    merged = np.sort(np.concatenate(hashes))
    suspects = set(merged[1:][merged[1:] == merged[:-1]].tolist())
    seen: set[str] = set()
    for names in pool.column("id") if suspects else ():
        for name in names:
            if hash(name) in suspects:
                if name in seen:
                    raise _twice(name, pool)
                seen.add(name)
    write_json(marker, state)


def _twice(name: str, pool: Pool) -> ValueError:
    return ValueError(f"{pool.folder}: the id {name!r} comes twice; every image needs its own.")
