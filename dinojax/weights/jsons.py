"""JSON files beside weights, read with suspicion: what they hold is judged before it is used."""

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from dinojax.data import fields
from dinojax.data.fields import shown as shown
from dinojax.weights import foreign


def read(path: str | Path) -> dict[str, Any]:
    """The object that a JSON file holds. Raises as `fields.read`, with a sentence for Git LFS."""
    if Path(path).is_file():
        with open(path, "rb") as file:
            start = file.read(len(foreign.LFS))
        if start == foreign.LFS:
            raise ValueError(f"{path} is a pointer of Git LFS; fetch it with `git lfs pull`.")
    return fields.checked(fields.read(path, foreign=True), dict, name="the whole", where=path)


def read_if_there(path: Path) -> dict[str, Any] | None:
    """As `read`; None where there is no such file."""
    return read(path) if path.is_file() else None


class Fields:
    """The fields of one JSON object, each read as what it must be.

    Raises ValueError naming the file, the key and the value for anything else, null among it. A
    key that is not there gives `default`.
    """

    def __init__(self, content: dict[str, Any], name: str):
        self.content, self.name = content, name

    def __contains__(self, key: str) -> bool:
        return key in self.content

    def refuse(self, key: str, wanted: str) -> ValueError:
        return ValueError(f"{self.name} has {key}={shown(self.content[key])}; {wanted}.")

    def whole(self, key: str, default: Any = None, *, lowest: int = 1) -> Any:
        """An int of at least `lowest`; numbers such as 3.0 are none."""
        if key not in self:
            return default
        value = self.content[key]
        if type(value) is not int or not lowest <= value < 2**31:
            raise self.refuse(key, f"it must be a whole number of at least {lowest}")
        return value

    def real(self, key: str, default: Any = None) -> Any:
        """A float that is finite and positive."""
        if key not in self:
            return default
        value = self.content[key]
        if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
            raise self.refuse(key, "it must be a finite positive number")
        return float(value)

    def flag(self, key: str, default: Any = None) -> Any:
        if key not in self:
            return default
        if type(self.content[key]) is not bool:
            raise self.refuse(key, "it must be true or false")
        return self.content[key]

    def text(self, key: str, default: Any = None, *, choices: Collection[str] = ()) -> Any:
        if key not in self:
            return default
        value = self.content[key]
        if not isinstance(value, str) or (choices and value not in choices):
            known = f"known are {', '.join(choices)}" if choices else "it must be text"
            raise self.refuse(key, known)
        return value

    def wholes(self, key: str, default: Any = None, *, count: int) -> Any:
        """A tuple of `count` positive ints."""
        if key not in self:
            return default
        value = self.content[key]
        good = isinstance(value, list) and len(value) == count
        if not good or any(type(number) is not int or not 0 < number < 2**31 for number in value):
            raise self.refuse(key, f"it must be a list of {count} whole numbers")
        return tuple(value)

    def square(self, key: str, default: Any = None) -> Any:
        """The side of a square: a positive int, or two that are equal."""
        value = self.content.get(key)
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            return Fields({key: value[0]}, self.name).whole(key)
        return self.whole(key, default)

    def section(self, key: str) -> "Fields":
        """The fields of an object inside this one; none where there is none."""
        value = self.content.get(key, {})
        if not isinstance(value, dict):
            raise self.refuse(key, "it must be an object with keys")
        return Fields(value, f"{self.name}, {key},")
