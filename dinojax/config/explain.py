"""What the row of a key says."""

import re
from typing import Any, NamedTuple

from dinojax.config.recipe import ConfigError, unknown
from dinojax.configs.keys import KEYS


class Explanation(NamedTuple):
    """What configs/keys/ says about a key."""

    key: str
    default: Any
    meaning: str
    source: str  # [R], [P], [D2] or [ours], with what the row adds to it
    choices: tuple  # the only values, beside None where it is optional; empty = any
    limits: tuple[float, float] | None  # smallest and largest, of numbers


def explain(key: str) -> Explanation:
    """Default, meaning, source, choices and range of a key, from its row."""
    if key not in KEYS:
        raise ConfigError(unknown(key, KEYS))
    row = KEYS[key]
    meaning, _, source = row.says.rpartition(";")
    if not meaning:  # choices that each carry their own source
        meaning, source = row.says, " ".join(re.findall(r"\[\w+\]", row.says))
    return Explanation(key, row.default, meaning.strip(), source.strip(), row.choices, row.limits)
