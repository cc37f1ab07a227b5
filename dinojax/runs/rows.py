"""Rows of metrics.jsonl in little memory: what a long run's page is made of, again and again."""

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, overload

from dinojax.runs.scalars import TEXTS

Row = dict[str, Any]


class Rows(Sequence[Row]):
    """A list of rows that holds each as eight bytes a number, and makes it a dict when asked.

    As dicts, rows of fifty columns are 5 kB each, so that reading them all for the page would take
    more of a run's memory from page to page. Numbers come back as floats, but the step as an int;
    None stays None (a row holds no nan, since JSON does not).
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()):
        self._columns: dict[tuple[str, ...], tuple[str, ...]] = {}  # each once, shared by rows
        self._rows: list[tuple[tuple[str, ...], array, tuple[Any, ...]]] = []
        for row in rows:
            self.append(row)

    def append(self, row: Mapping[str, Any]) -> None:
        columns = tuple(row)
        columns = self._columns.setdefault(columns, columns)
        numbers = (row[name] for name in columns if name not in TEXTS)
        texts = tuple(row[name] for name in columns if name in TEXTS)
        values = array("d", (math.nan if value is None else value for value in numbers))
        self._rows.append((columns, values, texts))

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [_row(*packed) for packed in self._rows[index]]
        return _row(*self._rows[index])


def _row(columns: tuple[str, ...], values: array, texts: tuple[Any, ...]) -> Row:
    left, told = iter(values), iter(texts)
    row = {name: next(told) if name in TEXTS else next(left) for name in columns}
    row = {name: None if value != value else value for name, value in row.items()}
    return row | {"step": int(row["step"])}
