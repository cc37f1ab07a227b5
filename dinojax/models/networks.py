"""The networks of a student or a teacher: a backbone and its heads."""

import dataclasses
import logging
from typing import Protocol

from dinojax.models.convnext import ConvNext
from dinojax.models.heads import Head
from dinojax.models.vit import Vit, VitSpec
from dinojax.ops import attention

log = logging.getLogger(__name__)


class HasNetworks(Protocol):
    """What has a backbone and its two heads, or neither of them."""

    @property
    def backbone(self) -> Vit | ConvNext: ...

    @property
    def dino_head(self) -> Head | None: ...

    @property
    def ibot_head(self) -> Head | None: ...


@dataclasses.dataclass(frozen=True)
class Networks:
    """A backbone and its two heads, or neither of them."""

    backbone: Vit | ConvNext
    dino_head: Head | None
    ibot_head: Head | None


def with_attention(spec: VitSpec, name: str, shapes: list[tuple[int, int, int, int]]) -> VitSpec:
    """The attention `name` asks for that works on these shapes, with the reasons in the log.

    name: of `model.attention`; shapes: [sequences, N, A, E] of each kind of crops.
    """
    choice = attention.choose(name, shapes=shapes, dtype=spec.dtype)
    for reason in choice.reasons:
        log.info("%s", reason)
    return dataclasses.replace(spec, attention=choice.implementation)
