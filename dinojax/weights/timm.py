"""DINOv3 ViT as timm keeps it (its Eva class): names, config.json, and what it cannot hold."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from dinojax.models.layers import ffn_width
from dinojax.models.vit import VitSpec
from dinojax.weights import timm_args, transforms
from dinojax.weights.facts import Claim
from dinojax.weights.hf import rope_refusals
from dinojax.weights.jsons import Fields
from dinojax.weights.preprocess import Preprocessing
from dinojax.weights.renames import Renamed
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
    found = Renamed()
    for name, tensor in tensors.items():
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        module, _, leaf = block[2].rpartition(".") if block else ("", "", "")
        if name == "reg_token":
            found.put(name, "storage_tokens", tensor)
        elif block and module in modules:
            found.put(name, f"blocks.{block[1]}.{modules[module]}.{leaf}", tensor)
        elif SAME.fullmatch(name):
            found.put(name, name, tensor)
        elif block and block[2] in ("gamma_1", "gamma_2"):
            found.put(name, f"blocks.{block[1]}.ls{block[2][-1]}.gamma", tensor)
        elif block and block[2] in ("attn.q_bias", "attn.v_bias"):
            other = f"blocks.{block[1]}.attn.{'v' if block[2][5] == 'q' else 'q'}_bias"
            if other not in tensors:
                found.unknown.append(name)
            elif block[2] == "attn.q_bias":
                for new, part in _bias(name, block[1], tensor, tensors[other]).items():
                    found.put(name, new, part)
        else:
            found.unknown.append(name)
    return found.result()


def _bias(name: str, block: str, q_bias: Tensor, v_bias: Tensor) -> Tensors:
    """The bias of q, k and v, and the mask that holds k's at 0."""
    shape, dtype = q_bias.shape, q_bias.dtype
    zeros = Tensor(shape, dtype, lambda: np.zeros(shape, dtype))
    try:
        whole = concatenate([q_bias, zeros, v_bias])
    except ValueError as error:
        raise ValueError(f"{name} and v_bias beside it: {error}") from None
    mask = np.concatenate([np.ones(shape), np.zeros(shape), np.ones(shape)]).astype(np.float32)
    return {
        f"blocks.{block}.attn.qkv.bias": whole,
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


# Arguments of timm's class, and the values with which it is DINOv3's network.
FIXED = {
    "norm_eps": (1e-5,),
    "rope_type": ("dinov3",),
    "rope_rotate_half": (True,),
    "use_rot_pos_emb": (True,),
    "use_abs_pos_emb": (False,),
    "rope_grid_offset": (0, 0.0),
    "rope_grid_indexing": ("ij",),
    "rope_mrope_section": (None,),
    "class_token": (True,),
    "qkv_fused": (True,),
    "qk_norm": (False,),
    "use_post_norm": (False,),
    "attn_only_layer_scale": (False,),
    "dynamic_img_pad": (False,),
    "norm_layer": (None,),
}
READ = {"embed_dim", "depth", "num_heads", "patch_size", "in_chans", "img_size", "mlp_ratio"}
READ |= {"swiglu_mlp", "swiglu_align_to", "init_values", "rope_temperature", "num_reg_tokens"}
READ |= {"qkv_bias", "scale_mlp", "scale_attn_inner"}  # the last two are seen in the tensors


def given(config: Fields) -> dict[str, Any]:
    """Fields of a spec that config.json tells; those of timm's own functions are in the tensors."""
    args, name = config.section("model_args"), config.text("architecture")
    if not any(word in name for word in ("dinov3", "lingbot")) and name not in NORM_OF:
        raise ValueError(
            f"config.json is of architecture {name!r}; of ViTs without learned positions "
            "vit_*_patch16_dinov3, vit_*_patch16_lingbot and what dinojax exports are read."
        )
    timm_args.check(args, READ, FIXED)
    told = {
        "norm": NORM_OF.get(name, "layernorm_1e5"),
        "position": "rope",
        "rope": {"base": args.real("rope_temperature", 100.0)},
        "depth": args.whole("depth"),
        "num_heads": args.whole("num_heads"),
    }
    return {name: value for name, value in told.items() if value is not None}


def claims(config: Fields, facts: dict[str, Any]) -> Iterator[Claim]:
    """What config.json says of the tensors."""
    args = config.section("model_args")
    yield from timm_args.sizes(args, "num_reg_tokens")
    yield "swiglu_mlp", "gated", args.flag("swiglu_mlp")
    ratio, align = args.real("mlp_ratio"), args.whole("swiglu_align_to", lowest=0)
    if ratio is not None and not (facts["gated"] and align is None):
        hidden = int(facts["width"] * ratio)
        hidden = -(-hidden // align) * align if facts["gated"] and align else hidden
        yield "mlp_ratio", "hidden", hidden


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
        "img_size": own.side,
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
            **transforms.write(own, spec.channels),
        },
    }
