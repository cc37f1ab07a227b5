"""JSON of files that may hold anything: every value is taken with the kind that it must have.

A fault names the file, the key, what was found and what is expected (ValueError).
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any

LARGEST, DEEPEST = 2**26, 50  # bytes of a file that is no list of rows, levels of nesting
REQUIRED: Any = object()
WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    dict: "an object",
    list: "a list",
    None: "null",
    NoneType: "null",
}


def field(data: Any, name: str, kind: Any, *, where: Any, default: Any = REQUIRED) -> Any:
    """A value of a JSON object. where: the file (and line) it comes from.

    kind: bool, int, float (also whole, always finite), str, dict, list; a tuple of kinds, of which
    None stands for null; [kind] for a list and {str: kind} for an object of them. default: of a
    name that may be absent.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{where}: found {shown(data)}; expected an object with {name!r}.")
    if name not in data:
        if default is not REQUIRED:
            return default
        raise ValueError(f"{where}: no {name!r}; expected {_words(kind)}.")
    return checked(data[name], kind, name=name, where=where)


def checked(value: Any, kind: Any, *, name: str, where: Any) -> Any:
    """The value, if it is of the kind; see `field`."""
    if not _fits(value, kind):
        raise ValueError(f"{where}: {name} is {shown(value)}; expected {_words(kind)}.")
    for part, inner, one in _parts(value, kind):
        checked(inner, one, name=f"{name}{part}", where=where)
    return value


def read(path: str | Path, *, name: str = "", foreign: bool = False) -> Any:
    """What a JSON file holds. name: to call it in messages, "" = by its path. foreign: see `parse`.

    Raises FileNotFoundError, and ValueError for anything but JSON of moderate size.
    """
    path, name = Path(path), name or str(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{name} is no regular file; remove it.")
    with path.open("rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"{name} has more than {LARGEST // 2**20} MiB; repair or remove it.")
    return parse(data, where=name, foreign=foreign)


def parse(text: str | bytes, *, where: Any, foreign: bool = False) -> Any:
    """The value of a JSON text; ValueError for what is none.

    foreign: written by another program, so that a key may stand twice, which is refused, and NaN
    may stand where a number is not used.
    """
    options: dict[str, Any] = {"parse_constant": _refuse}
    if foreign:
        options = {"object_pairs_hook": _once}
    try:
        value = json.loads(text, **options)
    except RecursionError as error:
        raise ValueError(f"{where} has thousands of levels; repair or remove it.") from error
    except ValueError as error:  # of JSON, of the encoding, of a number with too many digits
        raise ValueError(f"{where} is not JSON ({error}); repair or remove it.") from error
    layer = [value]
    for _ in range(DEEPEST):
        layer = [inner for one in layer for inner in _inside(one)]
        if not layer:
            return value
    raise ValueError(f"{where} has more than {DEEPEST} levels; repair or remove it.")


def rows(path: str | Path, *, missing_ok: bool = True) -> Iterator[tuple[str, dict[str, Any]]]:
    """(FILE:LINE, object) of a JSON-lines file; a last line that is not ended is left out."""
    path = Path(path)
    if missing_ok and not path.exists():
        return
    if not path.is_file():
        raise ValueError(f"{path} is no regular file; remove it.")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}:{number}"
            if line.endswith(b"\n"):
                yield where, checked(parse(line, where=where), dict, name="the row", where=where)


def shown(value: Any, most: int = 80) -> str:
    """A value as Python writes it, cut; in words where it has too many digits for that."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # of very many digits, or levels
        kind = "a number" if isinstance(value, int) else f"a {type(value).__name__}"
        return f"{kind} of more than 4,000 digits"
    return text if len(text) <= most else f"{text[:most]}..."


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, tuple):
        return any(_fits(value, one) for one in kind)
    if isinstance(kind, (list, dict)):
        return type(value) is type(kind)
    if kind is None:
        return value is None
    if kind is float and type(value) in (int, float):
        try:
            return math.isfinite(value)
        except OverflowError:  # a whole number beyond all floats
            return False
    return type(value) is kind


def _parts(value: Any, kind: Any) -> list[tuple[str, Any, Any]]:
    """(how a part is called, the part, its kind) of a list or object whose parts have kinds."""
    for one in kind if isinstance(kind, tuple) else (kind,):
        if isinstance(one, list) and isinstance(value, list):
            return [(f"[{number}]", inner, one[0]) for number, inner in enumerate(value)]
        if isinstance(one, dict) and isinstance(value, dict):
            return [(f".{name}", inner, one[str]) for name, inner in value.items()]
    return []


def _words(kind: Any) -> str:
    if isinstance(kind, tuple):
        return " or ".join(map(_words, kind))
    if isinstance(kind, list):
        return f"a list, each {_words(kind[0])}"
    if isinstance(kind, dict):
        return f"an object, each {_words(kind[str])}"
    return WORDS[kind]


def _inside(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else _lists(value)


def _lists(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
