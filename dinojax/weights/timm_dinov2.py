"""DINOv2 ViT as timm keeps it (its VisionTransformer): names, config.json, its limits."""

import math
import re
from typing import Any

import numpy as np

from dinojax.models.block import VitSpec
from dinojax.models.layers import ffn_width
from dinojax.weights.hf_dinov2 import position_refusals
from dinojax.weights.preprocess import Preprocessing, to_timm
from dinojax.weights.tensors import Tensor, Tensors, concatenate, cut, held

# (width, depth) -> size in the names of timm's functions
SIZES = {(384, 12): "small", (768, 12): "base", (1024, 24): "large", (1536, 40): "giant"}
NAME = re.compile(r"vit_(small|base|large|giant)_patch14(_reg4)?_dinov2(\..*)?")
SAME = re.compile(
    r"cls_token|patch_embed\.proj\.(weight|bias)|norm\.(weight|bias)|blocks\.\d+\.ls[12]\.gamma"
    r"|blocks\.\d+\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)"
)


def to_reference(tensors: Tensors) -> tuple[Tensors, list[str]]:
    """Tensors in the reference's names, and the names that are none of this format."""
    gated = is_gated(tensors)
    found: Tensors = {}
    unknown = []
    for name, tensor in tensors.items():
        if name == "reg_token":
            found["storage_tokens"] = tensor
        elif name == "pos_embed":
            found[name] = _with_cls(tensor)
        elif SAME.fullmatch(name):
            found[_gated(name) if gated else name] = tensor
        else:
            unknown.append(name)
    return found, unknown


def is_gated(tensors: Tensors) -> bool:
    """Whether the MLP is gated; timm has the same names for both."""
    into, out = (tensors.get(f"blocks.0.mlp.{name}.weight") for name in ("fc1", "fc2"))
    return into is not None and out is not None and into.shape[0] == 2 * out.shape[1]


def _gated(name: str) -> str:
    return name.replace(".mlp.fc1.", ".mlp.w12.").replace(".mlp.fc2.", ".mlp.w3.")


def _with_cls(positions: Tensor) -> Tensor:
    """Positions with one of zeros for cls, where there is none; then cls holds it itself."""
    count, width = positions.shape[1:]
    if math.isqrt(count) ** 2 != count:
        return positions
    zero = held(np.zeros((1, width), positions.dtype))
    return concatenate([zero, positions.map(lambda x: x[0])]).map(lambda x: x[None])


def from_reference(tensors: Tensors, spec: VitSpec) -> Tensors:
    """Tensors in this format's names, from the reference's. What is left out is in `left_out`.

    With registers timm keeps no position of cls: it is added to cls, which is all it is used for.
    """
    found: Tensors = {}
    for name, tensor in tensors.items():
        if name == "storage_tokens":
            found["reg_token"] = tensor
        elif name == "pos_embed":
            patches = cut(tensor.map(lambda x: x[0]), slice(1, None)).map(lambda x: x[None])
            found[name] = patches if spec.num_registers else tensor
        elif name == "cls_token" and spec.num_registers:
            found[name] = _sum(tensor, tensors["pos_embed"])
        elif name != "mask_token":
            found[name.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2.")] = tensor
    return found


def _sum(cls: Tensor, positions: Tensor) -> Tensor:
    return Tensor(cls.shape, cls.dtype, lambda: cls.read() + positions.read()[:, :1])


def left_out(spec: VitSpec) -> dict[str, str]:
    """Parameters this format does not hold -> why that changes no feature."""
    return {"mask_token": "used in training only"}


def refusals(spec: VitSpec) -> list[str]:
    """Why this format cannot hold a backbone; empty if it can."""
    return [
        *position_refusals(spec, "timm", antialias=True),
        *(
            f"timm's DINOv2 {reason}; use --format meta"
            for broken, reason in (
                (spec.norm != "layernorm", f"has LayerNorm of 1e-6, this backbone {spec.norm}"),
                (spec.ffn not in ("mlp", "swiglu_fused"), f"has no {spec.ffn}"),
                (not spec.ffn_bias, "always has biases in the MLP, this backbone none"),
                (spec.mask_k_bias, "has no mask on the bias of k"),
                (spec.untie_cls_norm or spec.untie_local_cls_norm, "has one final norm"),
            )
            if broken
        ),
    ]


def given(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of a spec that config.json tells; those of timm's own functions are in the tensors."""
    args, name = config.get("model_args", {}), config.get("architecture", "")
    if not NAME.fullmatch(name):
        raise ValueError(
            f"config.json is of architecture {name!r}; of ViTs with learned positions "
            "vit_*_patch14_dinov2 and vit_*_patch14_reg4_dinov2 are read."
        )
    fields = {"norm": "layernorm", "position_offset": 0.0, "position_antialias": True}
    return fields | {key: args[key] for key in ("depth", "num_heads") if key in args}


def config(spec: VitSpec, own: Preprocessing) -> dict[str, Any]:
    """config.json of `timm.create_model("local-dir:FOLDER")`.

    The function is the one of this size, or one with the same kind of MLP; its sizes are replaced.
    """
    gated = spec.ffn != "mlp"
    size = SIZES.get((spec.width, spec.depth), "small")
    size = "giant" if gated else "small" if size == "giant" else size
    hidden = ffn_width(spec.ffn, spec.width, spec.ffn_ratio) * (2 if gated else 1)
    return {
        "architecture": f"vit_{size}_patch14{'_reg4' if spec.num_registers else ''}_dinov2",
        "num_classes": 0,
        "num_features": spec.width,
        "global_pool": "token",
        "model_args": {
            "img_size": spec.position_size,  # pixels of the table of positions
            "patch_size": spec.patch_size,
            "in_chans": spec.channels,
            "embed_dim": spec.width,
            "depth": spec.depth,
            "num_heads": spec.num_heads,
            "mlp_ratio": (hidden + 0.5) / spec.width,  # rounded down; half a channel is room
            "qkv_bias": spec.qkv_bias,
            "proj_bias": spec.proj_bias,
            "init_values": spec.layer_scale,
            "reg_tokens": spec.num_registers,
            "no_embed_class": spec.num_registers > 0,
            "dynamic_img_size": True,
            "global_pool": "token",
        },
        "pretrained_cfg": {
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            **to_timm(own, spec.channels),
        },
    }


SNIPPET = """\
import timm
import torch
model = timm.create_model("local-dir:{out}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
with torch.inference_mode():
    tokens = model.forward_features(transform(image)[None])
cls, registers, patches = tokens[:, 0], tokens[:, 1:{prefix}], tokens[:, {prefix}:]
"""
