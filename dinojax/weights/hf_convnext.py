"""DINOv3's ConvNeXt as Hugging Face transformers keeps it: names, config.json, its limits."""

from collections.abc import Iterator
from typing import Any

from dinojax.models.convnext import NUM_STAGES, ConvNextSpec
from dinojax.weights.convnext import with_same_norm, without_same_norm
from dinojax.weights.facts import Claim
from dinojax.weights.jsons import Fields
from dinojax.weights.preprocess import Preprocessing
from dinojax.weights.renames import rename
from dinojax.weights.tensors import Tensors

MODEL_TYPE = "dinov3_convnext"
EPS = 1e-6
MODULES = {
    "depthwise_conv": "dwconv",
    "layer_norm": "norm",
    "pointwise_conv1": "pwconv1",
    "pointwise_conv2": "pwconv2",
}
STAGE = r"(?:model\.)?stages\.([0-3])\."  # transformers 5 adds `model.` in memory

TO_REFERENCE = [
    (r"layer_norm\.(weight|bias)", r"norm.\1"),
    (STAGE + r"downsample_layers\.([01])\.(weight|bias)", r"downsample_layers.\1.\2.\3"),
    (STAGE + r"layers\.(\d+)\.gamma", r"stages.\1.\2.gamma"),
    *(
        (STAGE + rf"layers\.(\d+)\.{theirs}\.(weight|bias)", rf"stages.\1.\2.{ours}.\3")
        for theirs, ours in MODULES.items()
    ),
]
FROM_REFERENCE = [
    (r"norm\.(weight|bias)", r"layer_norm.\1"),
    (r"downsample_layers\.([0-3])\.([01])\.(weight|bias)", r"stages.\1.downsample_layers.\2.\3"),
    (r"stages\.([0-3])\.(\d+)\.gamma", r"stages.\1.layers.\2.gamma"),
    *(
        (rf"stages\.([0-3])\.(\d+)\.{ours}\.(weight|bias)", rf"stages.\1.layers.\2.{theirs}.\3")
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
    """Why this format cannot hold a backbone; empty if it can."""
    if spec.layer_scale is None:
        return ["transformers' ConvNeXt always has LayerScale, this backbone none"]
    return []


def given(config: Fields) -> dict[str, Any]:
    """Fields of a spec that config.json tells. Raises ValueError for what we do not have."""
    act, eps = config.text("hidden_act", "gelu"), config.real("layer_norm_eps", EPS)
    if act != "gelu" or eps != EPS:
        raise ValueError(
            f"config.json has hidden_act={act}, layer_norm_eps={eps}; DINOv3's ConvNeXt has gelu "
            f"and {EPS}."
        )
    keys = {"depths": "depths", "widths": "hidden_sizes"}
    told = {name: config.wholes(key, count=NUM_STAGES) for name, key in keys.items()}
    return {name: sizes for name, sizes in told.items() if sizes is not None}


def claims(config: Fields, facts: dict[str, Any]) -> Iterator[Claim]:
    """What config.json says of the tensors."""
    yield "depths", "depths", config.wholes("depths", count=NUM_STAGES)
    yield "hidden_sizes", "widths", config.wholes("hidden_sizes", count=NUM_STAGES)
    yield "num_channels", "channels", config.whole("num_channels")


def config(spec: ConvNextSpec, own: Preprocessing) -> dict[str, Any]:
    """config.json of DINOv3ConvNextModel."""
    return {
        "architectures": ["DINOv3ConvNextModel"],
        "model_type": MODEL_TYPE,
        "num_channels": spec.channels,
        "hidden_sizes": list(spec.widths),
        "depths": list(spec.depths),
        "hidden_act": "gelu",
        "layer_norm_eps": EPS,
        "layer_scale_init_value": spec.layer_scale,
        "drop_path_rate": 0.0,
        "image_size": own.side,
        "torch_dtype": "float32",
    }
