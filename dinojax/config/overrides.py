"""Values as text and as Python, in the types that configs/keys/ declares."""

import ast
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dinojax.config import rules
from dinojax.config.recipe import ConfigError, unknown
from dinojax.data.fields import shown

KINDS = {bool: "True or False", int: "an integer", float: "a number", str: "text"}


def settings(overrides: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Texts `key=value` of values in Python, dotted key -> value, or such texts themselves.

    Raises ConfigError for a lone text, which is a sequence of letters.
    """
    if isinstance(overrides, str):
        raise ConfigError(f"overrides={overrides!r} is one text; give a list, or a dictionary.")
    if not isinstance(overrides, Mapping):
        return list(overrides)
    texts = {key: v if isinstance(v, (str, Path)) else repr(v) for key, v in overrides.items()}
    return [f"{key}={text}" for key, text in texts.items()]


def parse(overrides: Sequence[str], default: Mapping[str, Any]) -> dict[str, Any]:
    """Typed values of `key=value` strings."""
    values: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = (part.strip() for part in override.partition("="))
        if not equals:
            raise ConfigError(f"--set {override}: not of the form key=value")
        if key in values:
            raise ConfigError(f"--set {key} is given twice; keep one")
        value: Any = text
        if key in default and not (isinstance(default[key], str) or rules.OPTIONAL.get(key) is str):
            try:
                value = ast.literal_eval(_PYTHON_WORDS[text] if text in _PYTHON_WORDS else text)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                pass  # stays text, which `typed` refuses by name
        elif text in ("None", "none") and key in rules.OPTIONAL:
            value = None
        values[key] = typed(key, value, default, place="--set ")
    return values


_PYTHON_WORDS = {"true": "True", "false": "False", "none": "None", "null": "None"}


def typed(key: str, value: Any, default: Mapping[str, Any], *, place: str) -> Any:
    """The value in the type that configs/keys/ declares for the key; else ConfigError."""
    if key not in default:
        raise ConfigError(f"{place}{unknown(key, default)}")
    wanted, optional = default[key], key in rules.OPTIONAL
    if optional and value is None:
        return None
    any_length, named = key in rules.MANY, rules.NAMED.get(key, {})
    if isinstance(value, str) and value in named:
        return named[value]
    if key in rules.TABLES:
        rows = _rows(value, rules.TABLES[key])
        if rows is not None:
            return rows
        columns = ", ".join(KINDS[kind] for kind in rules.TABLES[key])
        expected = f"rows of ({columns})"
    elif isinstance(wanted, tuple):
        kinds = {rules.MANY[key]} if any_length else set(map(type, wanted))
        many = isinstance(value, (tuple, list))
        same = many and (len(value) == len(wanted) or any_length)
        elements = [_number(element, kind) for kind in kinds for element in value] if same else []
        if same and None not in elements:
            return tuple(elements)
        what = "texts" if kinds == {str} else "numbers"
        expected = f"{'' if any_length else f'{len(wanted)} '}{what}"
        expected += f", or one of {', '.join(named)}" if named else ""
    else:
        kind = rules.OPTIONAL[key] if optional else type(wanted)
        cast = _number(value, kind)
        if cast is not None:
            return cast
        expected = KINDS[kind] + (" or None" if optional else "")
    raise ConfigError(f"{place}{key}={shown(value)} has the wrong type: expected {expected}")


def _rows(value: Any, kinds: Sequence[type]) -> tuple | None:
    """A table as a tuple of tuples whose columns are of these kinds; else None."""
    if not isinstance(value, (tuple, list)):
        return None
    rows = []
    for row in value:
        if not isinstance(row, (tuple, list)) or len(row) != len(kinds):
            return None
        rows.append(tuple(_number(x, kind) for x, kind in zip(row, kinds, strict=True)))
    return None if any(None in row for row in rows) else tuple(rows)


def _number(value: Any, kind: type) -> Any:
    """The value if it is of that kind, whole numbers as floats where a float is due; else None."""
    if kind is float and type(value) in (int, float):
        try:
            number = float(value)
        except OverflowError:  # a whole number beyond all floats
            return None
        return number if math.isfinite(number) else None
    return value if type(value) is kind else None
