"""Losses that are no means over images: what they need of the whole batch.

SIGReg compares means of waves with known ones, and guides that are made equally strong are measured
by the norms of their gradients. Where a batch is taken in parts, a forward pass of its own collects
these; each part's loss then has the value of the whole batch and the gradient of its own images, so
that the mean over the parts is the gradient of the whole.
"""

import dataclasses
from typing import Any, cast

import jax

from dinojax.losses import sigreg
from dinojax.losses.specs import LossSpec
from dinojax.models.heads import Head
from dinojax.train.guidance import PART, Guidance


@dataclasses.dataclass(frozen=True)
class BatchStatistics:
    """Those of an objective."""

    losses: LossSpec
    dino_head: Head
    guidance: Guidance | None

    @property
    def are_needed(self) -> bool:
        return bool(self.losses.sigreg) or self.equalizes

    @property
    def equalizes(self) -> bool:
        return self.guidance is not None and self.guidance.equalize != "none"

    def shared(self, key: jax.Array, centers: dict) -> dict:
        """`Targets.whole` of a step; key: of the step and this purpose; centers: before it."""
        whole: dict = {}
        if self.losses.sigreg:
            width = self.dino_head.spec.bottleneck
            whole["directions"] = sigreg.directions(key, width, self.losses.sigreg_directions)
        if self.guidance is not None:
            whole["prototypes"] = {n: x for n, x in centers.items() if n.startswith(PART)}
        return whole

    def of_part(self, student: dict, cls_BGD, guides: dict, *, whole: dict, now: dict) -> dict:
        """Of one micro-batch; their means over all are those of the batch.

        cls: of the student's global crops; guides: rows of `Inputs`.
        """
        found: dict[str, Any] = {}
        if self.losses.sigreg:
            params = {"params": student["dino_head"]}
            rows_BGZ = self.dino_head.apply(params, cls_BGD, method=Head.raw_bottleneck)
            found["waves"] = sigreg.waves(
                cast(jax.Array, rows_BGZ), whole["directions"], self._grid.points_T
            )
        if self.equalizes:
            assert self.guidance is not None
            found["squares"] = self.guidance.squares(student, cls_BGD, guides, whole, now)
        return found

    def sigreg_loss(self, of_batch: dict) -> jax.Array:
        """The loss, from `over_batch`."""
        return sigreg.sigreg_loss(of_batch["waves"], self._grid)

    @property
    def _grid(self) -> sigreg.Grid:
        return sigreg.grid(self.losses.sigreg_range, self.losses.sigreg_points)


def over_batch(own: dict, whole: dict) -> dict:
    """Statistics with the value of the whole batch and the gradient of a micro-batch's own."""
    if "statistics" not in whole:
        return own
    return jax.tree.map(
        lambda own, of_all: of_all + (own - jax.lax.stop_gradient(own)), own, whole["statistics"]
    )
