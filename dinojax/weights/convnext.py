"""What a ConvNeXt is, told from its tensors in the reference's names; shared by both libraries."""

import re
from typing import Any

from dinojax.models.convnext import NUM_STAGES, ConvNextSpec
from dinojax.models.zoo import CONVNEXTS
from dinojax.weights.tensors import Tensors

STEM = "downsample_layers.0.0.weight"
SAME_NORM = ("norms.3.weight", "norms.3.bias")  # the reference's second name of `norm`
LAYER_SCALE = 1e-6  # initial value, which no file tells


def infer(tensors: Tensors, given: dict[str, Any], source: str) -> tuple[ConvNextSpec, list[str]]:
    """The spec of a ConvNeXt with these tensors, and what was assumed (nothing).

    Raises ValueError for missing stages, and for numbers of blocks that no DINOv3 model has and
    that `given` does not name.
    """
    given = {key: tuple(value) if key in SIZES else value for key, value in given.items()}
    stems = [f"downsample_layers.{stage}.{int(stage > 0)}.weight" for stage in range(NUM_STAGES)]
    if lacking := [name for name in stems if name not in tensors]:
        raise ValueError(f"{source} lacks {lacking[0]}, so it is no whole ConvNeXt.")
    fields: dict[str, Any] = {
        "depths": tuple(_depth(tensors, stage) for stage in range(NUM_STAGES)),
        "widths": tuple(tensors[name].shape[0] for name in stems),
        "channels": tensors[STEM].shape[1],
        "layer_scale": LAYER_SCALE if "stages.0.0.gamma" in tensors else None,
    }
    sizes = {(row["depths"], row["widths"]) for row in CONVNEXTS.values()}
    if "depths" not in given and (fields["depths"], fields["widths"]) not in sizes:
        told = ",".join(map(str, fields["depths"]))
        raise ValueError(
            f"{source}: {told} blocks of widths {fields['widths']} are no DINOv3 ConvNeXt: "
            f"truncated? If they are meant, say so with the override depths={told}."
        )
    return ConvNextSpec(**{**fields, **given}), []


SIZES = ("depths", "widths")


def _depth(tensors: Tensors, stage: int) -> int:
    found = [re.match(rf"stages\.{stage}\.(\d+)\.", name) for name in tensors]
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def with_same_norm(tensors: Tensors) -> Tensors:
    """With the final norm under both of its names in the reference."""
    return tensors | {
        name: tensors[name.replace("norms.3", "norm")]
        for name in SAME_NORM
        if name.replace("norms.3", "norm") in tensors
    }


def without_same_norm(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name not in SAME_NORM}
