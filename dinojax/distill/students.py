"""What students of one teacher must share."""

import functools
import math
from collections.abc import Mapping
from typing import Any

from dinojax.config import Config, ConfigError

# Keys and sections in which students of one teacher may not differ: they see the same crops of the
# same images, and the teacher sees them once.
SHARED = (
    *("seed", "stage", "num_steps", "batch_size", "group_size", "start.steps_before"),
    *("data.", "image.", "crops.", "augment.", "masks.", "mesh.devices"),
    *("precision.matmul", "distill.enabled", "distill.teacher", "distill.targets"),
    *("distill.compute", "distill.strategy", "distill.place"),
)


def check_shared(students: Mapping[str, Config]) -> None:
    """Raise ConfigError where students of one teacher differ in what they must share."""
    first, *others = students
    values = {name: config.values() for name, config in students.items()}
    also = _also_shared(values)
    differing = [
        (key, name)
        for name in others
        for key in values[first]
        if key.startswith((*SHARED, *also)) and values[name][key] != values[first][key]
    ]
    if differing:
        lines = [
            f"{key}: {values[first][key]!r} for {first}, {values[name][key]!r} for {name}"
            for key, name in differing
        ]
        hints = [how for key, how in also.items() if key in dict(differing)]
        raise ConfigError(
            "\n  ".join(["Students of one teacher must share these keys:", *lines])
            + "\nSet them in get_config or STAGES of the recipe, not in STUDENTS"
            + "; ".join(["", *hints])
            + "."
        )
    if not values[first]["distill.enabled"]:
        raise ConfigError("`dinojax distill` needs distill.enabled=True in the recipe.")
    for name, config in students.items():  # what is read of the first holds for all
        for key in values[first]:
            if key.startswith(SHARED) and (name != first or key.startswith("distill.")):
                functools.reduce(getattr, key.split("."), config)


def _also_shared(values: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Keys that are shared for want of another one, and how to set that."""
    one, found = next(iter(values.values())), {}
    if one["distill.compute"] is None:  # the teacher computes as its student does
        found["precision.compute"] = "distill.compute frees precision.compute"
    if one["crops.patch_size"] is None:  # the crops are of the student's patches
        patch = math.lcm(*(own["model.patch_size"] for own in values.values()))
        how = f"crops.patch_size={patch}, with sizes of crops that it divides,"
        found["model.patch_size"] = f"{how} frees model.patch_size"
    return found
