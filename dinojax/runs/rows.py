"""Rows of metrics.jsonl in little memory: what a long run's page is made of, again and again."""

import json
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, overload

Row = dict[str, Any]


class Rows(Sequence[Row]):
    """A list of rows that holds eight bytes a number, and makes a row a dict when asked.

    As dicts, rows of fifty columns are 5 kB each, in thousands of pieces between which a run's
    memory stays in use when its page is made. Numbers come back as floats, but the step as an int;
    None stays None (a row holds no nan, since JSON does not).
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()):
        self._kinds: list[tuple[tuple[str, bool], ...]] = []  # (column, is text) of each
        self._numbers_of: dict[tuple[tuple[str, bool], ...], int] = {}
        self._kind = array("L")  # of each row, by number
        self._numbers, self._texts = array("d"), bytearray()
        self._ends = array("Q", (0, 0))  # of numbers and texts, from row to row
        for row in rows:
            self.append(row)

    def append(self, row: Mapping[str, Any]) -> None:
        kind = tuple((name, isinstance(value, str)) for name, value in row.items())
        if kind not in self._numbers_of:
            self._numbers_of[kind] = len(self._kinds)
            self._kinds.append(kind)
        self._kind.append(self._numbers_of[kind])
        numbers = (row[name] for name, is_text in kind if not is_text)
        self._numbers.extend(math.nan if value is None else value for value in numbers)
        self._texts += json.dumps([row[name] for name, is_text in kind if is_text]).encode()
        self._ends.extend((len(self._numbers), len(self._texts)))

    def __len__(self) -> int:
        return len(self._kind)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        places = range(len(self))[index]
        return self._row(places) if isinstance(places, int) else [self._row(i) for i in places]

    def column(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of the rows that have a number there."""
        places = []  # of the step and of the column among a kind's numbers
        for kind in self._kinds:
            names = [column for column, is_text in kind if not is_text]
            places.append((names.index("step"), names.index(name)) if name in names else None)
        found = []
        for number, start in zip(self._kind, self._ends[::2], strict=False):
            if (place := places[number]) is not None:
                step, value = (self._numbers[start + i] for i in place)
                if value == value:
                    found.append((int(step), value))
        return found

    def _row(self, place: int) -> Row:
        number, text, number_end, text_end = self._ends[2 * place : 2 * place + 4]
        numbers = iter(self._numbers[number:number_end])
        texts = iter(json.loads(self._texts[text:text_end]))
        kind = self._kinds[self._kind[place]]
        row = {name: next(texts if is_text else numbers) for name, is_text in kind}
        row = {name: None if value != value else value for name, value in row.items()}
        return row | {"step": int(row["step"])}
