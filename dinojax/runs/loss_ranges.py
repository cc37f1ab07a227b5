"""Between which values each loss moves: what perfect and what empty predictions give."""

import dataclasses
import math
from typing import Any

from dinojax.augment.masks import mask_counts
from dinojax.config.stages import patch_of_crops

NUM_GLOBAL = 2  # global crops of an image


@dataclasses.dataclass(frozen=True)
class Range:
    """Between which values a loss moves: what perfect and what empty predictions give."""

    floor: float
    chance: float

    def position(self, loss: float) -> float:
        """0 at the floor, 1 at chance."""
        return (loss - self.floor) / max(self.chance - self.floor, 1e-6)


def loss_ranges(values: dict[str, Any]) -> dict[str, Range]:
    """Term -> Range, from config values.

    A student that says nothing has the cross-entropy log K. Sinkhorn gives every prototype the
    same share of the N rows of the batch, so no target exceeds about N / K and no cross-entropy
    falls below about log(K / N); with softmax centering it can reach 0. The iBOT term is a sum over
    masked crops divided by all crops, hence the share.
    """
    group, batch = values["group_size"], values["batch_size"]
    if values.get("text.enabled"):
        return {values["text.loss"]: Range(0.0, _chance_of_pairs(values["text.loss"], batch))}
    side = values["crops.global_size"] // patch_of_crops(values)[1]
    counts = mask_counts(
        group * NUM_GLOBAL, side**2, rate=values["masks.rate"], ratio=tuple(values["masks.ratio"])
    )
    share = sum(count > 0 for count in counts) / (group * NUM_GLOBAL)
    balanced = values["losses.centering"] == "sinkhorn"

    if values.get("distill.enabled") and values["distill.targets"] == "features":
        # 1 - cosine of unit vectors: 0 for equal ones, 1 for such as have nothing in common.
        return dict.fromkeys(("dino_local", "dino_global"), Range(0.0, 1.0)) | {
            "ibot": Range(0.0, share)
        }

    def make(prototypes: int, num_rows: int, share: float) -> Range:
        floor = max(0.0, math.log(prototypes / max(num_rows, 1))) if balanced else 0.0
        return Range(share * floor, share * math.log(prototypes))

    dino = make(values["dino_head.prototypes"], batch * NUM_GLOBAL, 1.0)
    num_masked = sum(counts) * batch // group
    ibot = make(values["ibot_head.prototypes"], num_masked, share)
    return {"dino_local": dino, "dino_global": dino, "ibot": ibot}


def _chance_of_pairs(loss: str, batch: int) -> float:
    """Of features that say nothing: contrastive, a guess among the batch's pairs; sigmoid, where
    every image is said to belong to each caption with probability 1 / B."""
    if loss == "contrastive":
        return math.log(batch)
    return math.log(batch) - (batch - 1) * math.log1p(-1 / batch) if batch > 1 else 0.0
