"""Names of one library from those of another, by tables of patterns; no name is given twice."""

import re
from collections.abc import Callable, Iterable

import numpy as np

from dinojax.weights.tensors import Tensor, Tensors

# Pattern of a name, and what stands in its place; the first that fits the whole name counts.
Rules = Iterable[tuple[str, str]]


class Renamed:
    """Tensors under new names, and the old names that have none.

    Two old names for one new name are an error that names both: which of them is meant is not told.
    """

    def __init__(self) -> None:
        self.tensors: Tensors = {}
        self.unknown: list[str] = []
        self._old: dict[str, str] = {}

    def put(
        self,
        old: str,
        new: str,
        tensor: Tensor,
        layout: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        """Keep a tensor as `new`, in another layout where one is given. Raises ValueError."""
        if new in self.tensors:
            raise ValueError(
                f"{self._old[new]} and {old} are both {new}, of which a backbone has one: leave "
                "out the one that is not meant."
            )
        if layout is not None:
            try:
                tensor = tensor.map(layout)
            except (IndexError, ValueError):
                raise ValueError(
                    f"{old} has shape {tensor.shape}, which is none of {new}."
                ) from None
        self.tensors[new], self._old[new] = tensor, old

    def old(self, new: str) -> str:
        """The old name of a tensor."""
        return self._old[new]

    def result(self) -> tuple[Tensors, list[str]]:
        return self.tensors, self.unknown


def rename(tensors: Tensors, rules: Rules) -> tuple[Tensors, list[str]]:
    """Tensors under their new names, and the old names that no rule fits.

    Raises ValueError where two names become one.
    """
    found = Renamed()
    for name, tensor in tensors.items():
        if (other := renamed(name, rules)) is None:
            found.unknown.append(name)
        else:
            found.put(name, other, tensor)
    return found.result()


def renamed(name: str, rules: Rules) -> str | None:
    for pattern, other in rules:
        if match := re.fullmatch(pattern, name):
            return match.expand(other)
    return None
