"""What configs/base.py says about a key."""

import re
from typing import Any, NamedTuple

from dinojax.config.recipe import ConfigError, comments, flat, unknown
from dinojax.configs import base


class Explanation(NamedTuple):
    """What configs/base.py says about a key."""

    key: str
    default: Any
    meaning: str
    source: str  # [R], [P], [D2] or [ours], with what base.py adds to it


def explain(key: str) -> Explanation:
    """Default, meaning and source of a key, from the comments of configs/base.py."""
    default = flat(base.get_config())
    if key not in default:
        raise ConfigError(unknown(key, default))
    said = comments()
    section, _, leaf = key.rpartition(".")
    comment = said[key] if key in said else said[leaf]  # leaf: in a helper function
    if section in said and key not in said:
        comment = f"{said[section].split(';')[0].strip()}: {comment}".removeprefix(": ")
    meaning, _, source = comment.rpartition(";")
    if not meaning:  # choices that each carry their own source
        meaning, source = comment, " ".join(re.findall(r"\[\w+\]", comment))
    return Explanation(key, default[key], meaning.strip(), source.strip())
