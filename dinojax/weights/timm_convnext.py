"""DINOv3's ConvNeXt as timm keeps it: names, config.json, and what it cannot hold."""

from collections.abc import Iterator
from typing import Any

from dinojax.models.convnext import NUM_STAGES, ConvNextSpec
from dinojax.models.zoo import CONVNEXTS
from dinojax.weights import timm_args, transforms
from dinojax.weights.convnext import with_same_norm, without_same_norm
from dinojax.weights.facts import Claim
from dinojax.weights.jsons import Fields
from dinojax.weights.preprocess import Preprocessing
from dinojax.weights.renames import rename
from dinojax.weights.tensors import Tensors

MODULES = {"conv_dw": "dwconv", "norm": "norm", "mlp.fc1": "pwconv1", "mlp.fc2": "pwconv2"}

TO_REFERENCE = [
    (r"head\.norm\.(weight|bias)", r"norm.\1"),
    (r"stem\.([01])\.(weight|bias)", r"downsample_layers.0.\1.\2"),
    (r"stages\.([1-3])\.downsample\.([01])\.(weight|bias)", r"downsample_layers.\1.\2.\3"),
    (r"stages\.([0-3])\.blocks\.(\d+)\.gamma", r"stages.\1.\2.gamma"),
    *(
        (rf"stages\.([0-3])\.blocks\.(\d+)\.{theirs}\.(weight|bias)", rf"stages.\1.\2.{ours}.\3")
        for theirs, ours in MODULES.items()
    ),
]
FROM_REFERENCE = [
    (r"norm\.(weight|bias)", r"head.norm.\1"),
    (r"downsample_layers\.0\.([01])\.(weight|bias)", r"stem.\1.\2"),
    (r"downsample_layers\.([1-3])\.([01])\.(weight|bias)", r"stages.\1.downsample.\2.\3"),
    (r"stages\.([0-3])\.(\d+)\.gamma", r"stages.\1.blocks.\2.gamma"),
    *(
        (rf"stages\.([0-3])\.(\d+)\.{ours}\.(weight|bias)", rf"stages.\1.blocks.\2.{theirs}.\3")
        for theirs, ours in MODULES.items()
    ),
]


def to_reference(tensors: Tensors) -> tuple[Tensors, list[str]]:
    """Tensors in the reference's names, and the names that are none of this format."""
    found, unknown = rename(tensors, TO_REFERENCE)
    return with_same_norm(found), unknown


def from_reference(tensors: Tensors, spec: ConvNextSpec) -> Tensors:
    """Tensors in this format's names, from the reference's."""
    return rename(without_same_norm(tensors), FROM_REFERENCE)[0]


def left_out(spec: ConvNextSpec) -> dict[str, str]:
    return {}


def refusals(spec: ConvNextSpec) -> list[str]:
    return []


# Arguments of timm's class, and the values with which it is DINOv3's network.
FIXED = {
    "kernel_sizes": (7,),
    "patch_size": (4,),
    "stem_type": ("patch",),
    "conv_mlp": (False,),
    "conv_bias": (True,),
    "use_grn": (False,),
    "act_layer": ("gelu", None),
    "norm_layer": (None,),
    "norm_eps": (None, 1e-6),
    "head_norm_first": (False,),
}
READ = {"in_chans", "depths", "dims", "ls_init_value", "head_hidden_size"}


def given(config: Fields) -> dict[str, Any]:
    """Fields of a spec that config.json tells; those of timm's own functions are in the tensors."""
    args, name = config.section("model_args"), config.text("architecture")
    if not name.startswith("convnext_") or "clip" in name:
        raise ValueError(
            f"config.json is of architecture {name!r}; of ConvNeXts are read: "
            f"{', '.join(CONVNEXTS)}."
        )
    timm_args.check(args, READ, FIXED)
    keys = {"depths": "depths", "widths": "dims"}
    told = {name: args.wholes(key, count=NUM_STAGES) for name, key in keys.items()}
    return {name: sizes for name, sizes in told.items() if sizes is not None}


def claims(config: Fields, facts: dict[str, Any]) -> Iterator[Claim]:
    """What config.json says of the tensors."""
    args = config.section("model_args")
    yield "depths", "depths", args.wholes("depths", count=NUM_STAGES)
    yield "dims", "widths", args.wholes("dims", count=NUM_STAGES)
    yield "in_chans", "channels", args.whole("in_chans")


def config(spec: ConvNextSpec, own: Preprocessing) -> dict[str, Any]:
    """config.json of `timm.create_model("local-dir:FOLDER")`: the function of this size, or tiny.

    Its sizes are replaced by ours.
    """
    sizes = {(row["depths"], row["widths"]): name for name, row in CONVNEXTS.items()}
    return {
        "architecture": sizes.get((spec.depths, spec.widths), "convnext_tiny"),
        "num_classes": 0,
        "num_features": spec.width,
        "global_pool": "avg",
        "model_args": {
            "in_chans": spec.channels,
            "depths": list(spec.depths),
            "dims": list(spec.widths),
            "ls_init_value": spec.layer_scale,
        },
        "pretrained_cfg": {
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "stem.0",
            "classifier": "head.fc",
            **transforms.write(own, spec.channels),
        },
    }
