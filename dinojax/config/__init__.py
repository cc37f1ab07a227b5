"""Recipe, overrides and rules: what makes one checked, immutable config."""

from dinojax.config.config import Config, check, diff, save
from dinojax.config.explain import Explanation, explain
from dinojax.config.loading import (
    load,
    load_stages,
    load_students,
    of_run,
    of_values,
    pick,
    pick_students,
    read,
    saved_stages,
    stage_names,
    student_names,
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
    "of_run",
    "of_values",
    "pick",
    "pick_students",
    "read",
    "save",
    "saved_stages",
    "stage_names",
    "student_names",
    "valid_group_sizes",
]
