"""The networks of a student or a teacher: a backbone and its heads."""

import dataclasses

from dinojax.models.convnext import ConvNext
from dinojax.models.heads import Head
from dinojax.models.vit import Vit


@dataclasses.dataclass(frozen=True)
class Networks:
    """A backbone and its two heads, or neither of them."""

    backbone: Vit | ConvNext
    dino_head: Head | None
    ibot_head: Head | None
