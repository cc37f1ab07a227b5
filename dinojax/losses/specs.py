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
    sigreg: float = 0.0
    sigreg_directions: int = 1024
    sigreg_points: int = 17
    sigreg_range: float = 5.0
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


@dataclasses.dataclass(frozen=True)
class GuideSpec:
    """One guide: a row of `guides.rows`, with what its column and the other keys say."""

    name: str  # of the column
    kind: str  # classification | regression | prototypes
    reverse: bool  # its gradient is turned around on its way to the backbone
    weight: float
    outputs: int  # classes, or numbers predicted
    hidden: tuple[int, ...] = (512,)
    activation: str = "sigmoid"  # of regression
    temperature: float = 0.07  # prototypes, of a class not yet seen
    momentum: float = 0.999
    min_temperature: float = 0.01
    low: float = 0.0  # of regression: the smallest and largest value of the column
    high: float = 1.0
