"""Recipe, overrides and rules: what makes one checked, immutable config."""

from dinojax.config.config import (
    Config,
    Explanation,
    check,
    diff,
    explain,
    load,
    load_stages,
    load_students,
    of_values,
    pick,
    pick_students,
    read,
    save,
    saved_stages,
)
from dinojax.config.recipe import ConfigError
from dinojax.config.rules import valid_group_sizes

__all__ = [
    "Config",
    "ConfigError",
    "Explanation",
    "check",
    "diff",
    "explain",
    "load",
    "load_stages",
    "load_students",
    "of_values",
    "pick",
    "pick_students",
    "read",
    "save",
    "saved_stages",
    "valid_group_sizes",
]
