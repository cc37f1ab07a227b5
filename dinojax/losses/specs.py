"""What the losses are told by the config: its sections `losses` and `gram` as plain fields."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class LossSpec:
    """The keys of the `losses` section, but for `koleo_group`, which is resolved."""

    dino: float
    ibot: float
    koleo: float
    student_temperature: float
    skip_same_crop: bool
    koleo_neighbors: int
    centering: str
    sinkhorn_iterations: int
    center_momentum: float
    koleo_group: int
    # Keys of the section without a field above: a loss from outside needs no change of this file.
    others: tuple[tuple[str, Any], ...] = ()

    def other(self, name: str) -> Any:
        """The value of a key of `others`. Raises KeyError for one that is not there."""
        return dict(self.others)[name]


@dataclasses.dataclass(frozen=True)
class GramSpec:
    """The keys of the `gram` section."""

    teacher: str
    normalize: bool
    per_image: bool
    clip: str
    tokens: str
    resize: str
    antialias: bool
