"""Fields of another library's file about pixels, read as what they must be."""

import math
import sys
from collections.abc import Collection
from typing import Any

from dinojax.weights.jsons import Fields, shown


class PixelFields(Fields):
    """The fields of such a file over the defaults of the library.

    A default stands for a field that is not there; null is null: a step that is not taken, or a
    value that is missing. Raises ValueError naming the file, the field and the value.
    """

    def __init__(self, content: dict[str, Any], name: str, defaults: dict[str, Any]):
        super().__init__({**defaults, **content}, name)
        self.given = frozenset(content)

    def __getitem__(self, key: str) -> Any:
        return self.content.get(key)

    def refuse(self, key: str, wanted: str) -> ValueError:
        return ValueError(
            f"{self.name} has {key}={shown(self[key])}; {wanted}. Mend the field, or take the file "
            "away and prepare pixels yourself."
        )

    def only(self, known: Collection[str]) -> None:
        """Raise for a field that may change pixels in a way that is not known here."""
        for key, value in self.content.items():
            if key not in known and value is not None:
                raise self.refuse(key, "unknown, and it may change pixels")

    def flag(self, key: str, default: Any = None) -> bool:
        return self[key] is not None and super().flag(key, default)

    def positive(self, key: str) -> float:
        """As `real`, of a field that must be there."""
        if key not in self:
            raise self.refuse(key, "it must be a finite positive number")
        return self.real(key)

    def side(self, key: str, value: Any) -> int:
        """A number of pixels inside the value of a field."""
        if type(value) is not int or not 0 < value < 2**31:
            raise self.refuse(key, f"{shown(value)} is no number of pixels")
        return value

    def larger(self, key: str, side: int) -> int:
        """Pixels of which `side` are the share that a field tells, rounded down."""
        larger = side / self.positive(key)
        if not 1 <= larger < 2**31:
            raise self.refuse(key, f"it leaves {larger:g} pixels to {side}")
        return math.floor(larger)

    def statistics(self, key: str, channels: int) -> tuple[float, ...]:
        """Finite numbers per channel; one stands for all."""
        found = self.per_channel(key)
        if len(found) not in (1, channels):
            raise self.refuse(key, f"{len(found)} values; the weights take {channels} channels")
        return tuple(map(float, found * channels if len(found) == 1 else found))

    def per_channel(self, key: str) -> tuple[Any, ...]:
        """One finite number or several, as they are."""
        value = self[key]
        values = list(value) if isinstance(value, list | tuple) else [value]
        if not values or any(type(number) not in (int, float) for number in values):
            raise self.refuse(key, "it must be a number, or one per channel")
        if not all(abs(number) <= sys.float_info.max for number in values):
            raise self.refuse(key, "it must be finite")
        return tuple(values)
