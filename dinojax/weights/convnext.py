"""What a ConvNeXt is, told from its tensors in the reference's names; shared by both libraries."""

from typing import Any

from dinojax.models.convnext import NUM_STAGES, ConvNextSpec
from dinojax.models.zoo import CONVNEXTS
from dinojax.weights import facts
from dinojax.weights.tensors import Tensors

STEM = "downsample_layers.0.0.weight"
SAME_NORM = ("norms.3.weight", "norms.3.bias")  # the reference's second name of `norm`
LAYER_SCALE = 1e-6  # initial value, which no file tells


def infer(
    tensors: Tensors, given: dict[str, Any], claims: facts.Claims = facts.none
) -> tuple[ConvNextSpec, list[str]]:
    """The spec of a ConvNeXt with these tensors, and what was assumed (nothing).

    claims: what files beside the weights say of sizes. Raises ValueError for missing stages, for
    sizes that are contradicted, and for numbers of blocks that no DINOv3 model has and that
    `given` does not name.
    """
    given = {key: tuple(value) if key in SIZES else value for key, value in given.items()}
    stems = [f"downsample_layers.{stage}.{int(stage > 0)}.weight" for stage in range(NUM_STAGES)]
    if lacking := [name for name in stems if name not in tensors]:
        raise ValueError(f"it lacks {lacking[0]}, so it is no whole ConvNeXt.")
    if wrong := [name for name in stems if len(tensors[name].shape) != 4]:
        raise ValueError(f"{wrong[0]} has shape {tensors[wrong[0]].shape}; it must have 4 axes.")
    told: dict[str, Any] = {
        "depths": tuple(
            facts.depth(tensors, rf"stages\.{stage}\.(\d+)\.") for stage in range(NUM_STAGES)
        ),
        "widths": tuple(tensors[name].shape[0] for name in stems),
        "channels": tensors[STEM].shape[1],
    }
    facts.compare(told, [*claims(told), *facts.of_fields(given, told)])
    sizes = {(row["depths"], row["widths"]) for row in CONVNEXTS.values()}
    if "depths" not in given and (told["depths"], told["widths"]) not in sizes:
        depths = ",".join(map(str, told["depths"]))
        raise ValueError(
            f"{depths} blocks of widths {told['widths']} are no DINOv3 ConvNeXt: truncated? If "
            f"they are meant, say so with the override depths={depths}."
        )
    told["layer_scale"] = LAYER_SCALE if "stages.0.0.gamma" in tensors else None
    return ConvNextSpec(**{**told, **given}), []


SIZES = ("depths", "widths")


def with_same_norm(tensors: Tensors) -> Tensors:
    """With the final norm under both of its names in the reference."""
    return tensors | {
        name: tensors[name.replace("norms.3", "norm")]
        for name in SAME_NORM
        if name.replace("norms.3", "norm") in tensors
    }


def without_same_norm(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name not in SAME_NORM}
