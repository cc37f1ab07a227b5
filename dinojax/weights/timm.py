"""DINOv3 ViT as timm keeps it (its Eva class): names, config.json, and what it cannot hold."""

import re
from typing import Any

import numpy as np

from dinojax.models.layers import ffn_width
from dinojax.models.vit import VitSpec
from dinojax.weights.hf import rope_refusals
from dinojax.weights.preprocess import Preprocessing, to_timm
from dinojax.weights.tensors import Tensor, Tensors, concatenate, cut

# (width, depth, gated) -> the name of timm's function, without `_qkvb`
ARCHITECTURES = {
    (384, 12, False): "vit_small_patch16_dinov3",
    (384, 12, True): "vit_small_plus_patch16_dinov3",
    (768, 12, False): "vit_base_patch16_dinov3",
    (1024, 24, False): "vit_large_patch16_dinov3",
    (1280, 32, True): "vit_huge_plus_patch16_dinov3",
    (4096, 40, True): "vit_7b_patch16_dinov3",
}
# Two functions whose arguments can all be replaced in config.json, but for the norm: the first
# fixes its epsilon to 1e-5, the second leaves it at 1e-6.
BY_NORM = {"layernorm_1e5": "vit_small_patch16_dinov3_qkvb", "layernorm": "eva02_tiny_patch14_224"}
NORM_OF = {name: norm for norm, name in BY_NORM.items()}

SAME = re.compile(
    r"cls_token|patch_embed\.proj\.(weight|bias)|norm\.(weight|bias)"
    r"|blocks\.\d+\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)"
)
GATED = {"mlp.w1": "mlp.fc1_g", "mlp.w2": "mlp.fc1_x", "mlp.w3": "mlp.fc2"}


def to_reference(tensors: Tensors) -> tuple[Tensors, list[str]]:
    """Tensors in the reference's names, and the names that are none of this format."""
    gated = any(".mlp.fc1_g." in name for name in tensors)
    modules = {theirs: ours for ours, theirs in GATED.items()} if gated else {}
    found: Tensors = {}
    unknown = []
    for name, tensor in tensors.items():
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        module, _, leaf = block[2].rpartition(".") if block else ("", "", "")
        if name == "reg_token":
            found["storage_tokens"] = tensor
        elif block and module in modules:
            found[f"blocks.{block[1]}.{modules[module]}.{leaf}"] = tensor
        elif SAME.fullmatch(name):
            found[name] = tensor
        elif block and block[2] in ("gamma_1", "gamma_2"):
            found[f"blocks.{block[1]}.ls{block[2][-1]}.gamma"] = tensor
        elif block and block[2] == "attn.q_bias" and f"blocks.{block[1]}.attn.v_bias" in tensors:
            found |= _bias(block[1], tensor, tensors[f"blocks.{block[1]}.attn.v_bias"])
        elif not (block and block[2] == "attn.v_bias"):
            unknown.append(name)
    return found, unknown


def _bias(block: str, q_bias: Tensor, v_bias: Tensor) -> Tensors:
    """The bias of q, k and v, and the mask that holds k's at 0."""
    shape, dtype = q_bias.shape, q_bias.dtype
    zeros = Tensor(shape, dtype, lambda: np.zeros(shape, dtype))
    mask = np.concatenate([np.ones(shape), np.zeros(shape), np.ones(shape)]).astype(np.float32)
    return {
        f"blocks.{block}.attn.qkv.bias": concatenate([q_bias, zeros, v_bias]),
        f"blocks.{block}.attn.qkv.bias_mask": Tensor(mask.shape, mask.dtype, lambda: mask),
    }


def from_reference(tensors: Tensors, spec: VitSpec) -> Tensors:
    """Tensors in this format's names, from the reference's. What is left out is in `left_out`."""
    modules = {} if spec.ffn == "mlp" else GATED
    found: Tensors = {}
    for name, tensor in tensors.items():
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(\w+)", name)
        if name == "storage_tokens":
            found["reg_token"] = tensor
        elif block and block[2] in modules:
            found[f"blocks.{block[1]}.{modules[block[2]]}.{block[3]}"] = tensor
        elif block and block[2] in ("ls1", "ls2"):
            found[f"blocks.{block[1]}.gamma_{block[2][-1]}"] = tensor
        elif name.endswith("attn.qkv.bias") and spec.mask_k_bias:
            assert block
            for number, part in ((0, "q_bias"), (2, "v_bias")):
                rows = slice(number * spec.width, (number + 1) * spec.width)
                found[f"blocks.{block[1]}.attn.{part}"] = cut(tensor, rows)
        elif SAME.fullmatch(name):
            found[name] = tensor
    return found


def left_out(spec: VitSpec) -> dict[str, str]:
    """Parameters this format does not hold -> why that changes no feature."""
    found = {"mask_token": "used in training only"}
    if spec.untie_local_cls_norm:
        reason = "used for local crops in training only"
        found |= {"local_cls_norm.weight": reason, "local_cls_norm.bias": reason}
    return found


def refusals(spec: VitSpec) -> list[str]:
    """Why this format cannot hold a backbone; empty if it can."""
    return [
        *rope_refusals(spec, "timm"),
        *(
            f"timm {reason}; use --format meta"
            for broken, reason in (
                (spec.norm not in BY_NORM, f"has LayerNorm only, this backbone {spec.norm}"),
                (not spec.ffn_bias, "always has biases in the MLP, this backbone none"),
                (not spec.proj_bias, "always has a bias in the projection, this backbone none"),
                (spec.untie_cls_norm, "has one final norm, this backbone one for cls"),
            )
            if broken
        ),
    ]


def given(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of a spec that config.json tells; those of timm's own functions are in the tensors."""
    args = config.get("model_args", {})
    name = config.get("architecture", "")
    if "dinov3" not in name and name not in NORM_OF:
        raise ValueError(
            f"config.json is of architecture {name!r}; vit_*_patch16_dinov3 and what dinojax "
            "exports are read."
        )
    fields: dict[str, Any] = {
        "norm": NORM_OF.get(name, "layernorm_1e5"),
        "rope": {"base": float(args.get("rope_temperature", 100.0))},
    }
    if "depth" in args:
        fields["depth"] = args["depth"]
    if "num_heads" in args:
        fields["num_heads"] = args["num_heads"]
    return fields


def config(spec: VitSpec, own: Preprocessing) -> dict[str, Any]:
    """config.json of `timm.create_model("local-dir:FOLDER")`.

    The function is the one of timm's that has this size. Where none has, or where its norm or
    its bias would differ, it is one whose arguments can be replaced. A live bias of k needs
    timm's other attention class (attn_type), which has it.
    """
    gated = spec.ffn != "mlp"
    live = spec.qkv_bias and not spec.mask_k_bias
    function = ARCHITECTURES.get((spec.width, spec.depth, gated))
    name = BY_NORM[spec.norm]
    if function is not None and spec.norm == "layernorm_1e5":
        has_qkvb = function != "vit_7b_patch16_dinov3"
        name = function + ("_qkvb" if spec.qkv_bias and has_qkvb else "")
    hidden = ffn_width(spec.ffn, spec.width, spec.ffn_ratio)
    args = {
        "img_size": own.crop_size,
        "patch_size": spec.patch_size,
        "in_chans": spec.channels,
        "embed_dim": spec.width,
        "depth": spec.depth,
        "num_heads": spec.num_heads,
        "qkv_bias": spec.qkv_bias,
        "attn_type": "rope" if live else "eva",
        "mlp_ratio": (hidden + 0.5) / spec.width,  # timm rounds down; half a channel is room
        "swiglu_mlp": gated,
        "swiglu_align_to": 1 if gated else 0,  # 1 leaves the width and splits gate and value
        "init_values": spec.layer_scale,
        "use_rot_pos_emb": True,
        "use_abs_pos_emb": False,
        "rope_type": "dinov3",
        "rope_temperature": spec.rope.base,
        "rope_rotate_half": True,
        "ref_feat_shape": None,
        "num_reg_tokens": spec.num_registers,
        "use_fc_norm": False,
        "global_pool": "token",
        "dynamic_img_size": True,
    }
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": spec.width,
        "global_pool": "token",
        "model_args": args,
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
