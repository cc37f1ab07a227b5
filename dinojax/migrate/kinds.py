"""Of which kind the values of their keys are, told before anything is computed of them."""

import math
from collections.abc import Mapping
from typing import Any

from dinojax.config.overrides import KINDS, typed
from dinojax.config.recipe import ConfigError, flat
from dinojax.configs import base
from dinojax.migrate import tables

NUMBER = (int, float)
LARGEST = 2**62  # of numbers; what stands for never in the reference is below
SIZE = "crops.{}_crops_size"


def wrong(key: str, value: Any) -> str | None:
    """What is wrong with the value of a key that is translated; None if nothing is."""
    if _is_list(key) and isinstance(value, tuple):
        bad = [reason for element in value if (reason := _told(key, element)) is not None]
        return "an empty list" if not value else bad[0] if bad else None
    return _told(key, value)


def _told(key: str, value: Any) -> str | None:
    if type(value) in NUMBER and not (abs(value) <= LARGEST and math.isfinite(value)):
        return f"{str(value)[:40]}: expected a finite number"
    if key in tables.SAME:
        try:
            typed(tables.SAME[key], value, flat(base.get_config()), place="")
        except ConfigError as error:
            return f"{value!r}{str(error).partition('has the wrong type')[2]}{_quotes(value)}"
    else:
        kind, optional = _kind(key)
        if kind is None or (value is None and optional):
            return None
        if type(value) not in (NUMBER if kind is float else (kind,)):
            return f"{value!r}: expected {KINDS[kind]}{_quotes(value)}"
    if key in tables.LEAST and value < tables.LEAST[key]:
        return f"{value!r}: expected {tables.LEAST[key]} or more"
    return None


def _quotes(value: Any) -> str:
    """What to say of a number that is text."""
    try:
        float(value)
    except (TypeError, ValueError):
        return ""
    return ", without quotes" if isinstance(value, str) else ""


def _is_list(key: str) -> bool:
    """Whether a key may give one value for each of several sizes."""
    return key in tables.SIZES.values() or key == tables.RATIOS


def _kind(key: str) -> tuple[type | None, bool]:
    """(kind or None = any, whether it may be null) of a key that is no key of SAME."""
    if key in tables.CURVES:
        return float, key.endswith(("cosine_epochs", "_iterations"))
    if key in tables.NULLABLE:
        return tables.NULLABLE[key], True
    every: Mapping[str, Any] = tables.DEFAULTS_2 | tables.DEFAULTS
    if key in tables.RENAMED or key not in every:
        return None, True  # compared with a list of choices, or not read
    kind = type(every[key])
    return (float if kind is int and key not in tables.WHOLE else kind), False
