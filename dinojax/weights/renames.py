"""Names of one library from those of another, by tables of patterns."""

import re
from collections.abc import Iterable

from dinojax.weights.tensors import Tensors

# Pattern of a name, and what stands in its place; the first that fits the whole name counts.
Rules = Iterable[tuple[str, str]]


def rename(tensors: Tensors, rules: Rules) -> tuple[Tensors, list[str]]:
    """Tensors under their new names, and the old names that no rule fits."""
    found: Tensors = {}
    unknown = []
    for name, tensor in tensors.items():
        if (other := renamed(name, rules)) is None:
            unknown.append(name)
        else:
            found[other] = tensor
    return found, unknown


def renamed(name: str, rules: Rules) -> str | None:
    for pattern, other in rules:
        if match := re.fullmatch(pattern, name):
            return match.expand(other)
    return None
