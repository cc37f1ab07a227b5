"""DINOv2 ViT as timm keeps it (its VisionTransformer): names, config.json, its limits."""

import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from dinojax.models.block import VitSpec
from dinojax.models.layers import ffn_width
from dinojax.weights import timm_args, transforms
from dinojax.weights.facts import Claim
from dinojax.weights.hf_dinov2 import position_refusals
from dinojax.weights.jsons import Fields
from dinojax.weights.preprocess import Preprocessing
from dinojax.weights.renames import Renamed
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
    gated, tensors = is_gated(tensors), _without_register_positions(tensors)
    found = Renamed()
    for name, tensor in tensors.items():
        if name == "reg_token":
            found.put(name, "storage_tokens", tensor)
        elif name == "pos_embed":
            found.put(name, name, _with_cls(tensor))
        elif SAME.fullmatch(name):
            found.put(name, _gated(name) if gated else name, tensor)
        else:
            found.unknown.append(name)
    return found.result()


def _without_register_positions(tensors: Tensors) -> Tensors:
    """With positions of registers, which some functions have, added to the registers themselves."""
    registers, positions = tensors.get("reg_token"), tensors.get("pos_embed")
    if registers is None or positions is None:
        return tensors
    if not len(registers.shape) == len(positions.shape) == 3:
        return tensors
    last, count = 1 + registers.shape[1], positions.shape[1]
    if any(math.isqrt(max(0, n)) ** 2 == n for n in (count, count - 1)) or (
        count <= last or math.isqrt(count - last) ** 2 != count - last
    ):
        return tensors
    own = positions.map(lambda x: x[:, 1:last])
    summed = Tensor(registers.shape, registers.dtype, lambda: registers.read() + own.read())
    rest = positions.map(lambda x: np.concatenate([x[:, :1], x[:, last:]], axis=1))
    return {**tensors, "reg_token": summed, "pos_embed": rest}


def is_gated(tensors: Tensors) -> bool:
    """Whether the MLP is gated; timm has the same names for both."""
    into, out = (tensors.get(f"blocks.0.mlp.{name}.weight") for name in ("fc1", "fc2"))
    if into is None or out is None or not len(into.shape) == len(out.shape) == 2:
        return False
    return into.shape[0] == 2 * out.shape[1]


def _gated(name: str) -> str:
    return name.replace(".mlp.fc1.", ".mlp.w12.").replace(".mlp.fc2.", ".mlp.w3.")


def _with_cls(positions: Tensor) -> Tensor:
    """Positions with one of zeros for cls, where there is none; then cls holds it itself."""
    if len(positions.shape) != 3 or not positions.shape[0]:
        raise ValueError(f"pos_embed has shape {positions.shape}, not [1, positions, width].")
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


# Arguments of timm's class, and the values with which it is this network.
FIXED = {
    "class_token": (True,),
    "pos_embed": ("learn",),
    "pre_norm": (False,),
    "final_norm": (True,),
    "qk_norm": (False,),
    "scale_attn_norm": (False,),
    "scale_mlp_norm": (False,),
    "dynamic_img_pad": (False,),
    "embed_norm_layer": (None,),
    "norm_layer": (None, "layernorm"),
    "attn_layer": (None, "attn"),
}
READ = {"embed_dim", "depth", "num_heads", "patch_size", "in_chans", "img_size", "mlp_ratio"}
READ |= {"init_values", "reg_tokens", "qkv_bias", "proj_bias", "act_layer", "mlp_layer"}
# Word in the name of a function of timm -> its blocks and heads, unless arguments replace them
FUNCTIONS = {
    "tiny": (12, 3),
    "small": (12, 6),
    "base": (12, 12),
    "large": (24, 16),
    "huge": (32, 16),
    "giant": (40, 16),
    "gigantic": (48, 16),
}
# Words of functions with another norm, activation, order or table of positions.
OTHERS = re.compile(
    r"clip|siglip|quickgelu|rope|relpos|rpn|radio|_pe_|tips|sapiens|intern|_mci|\d+x\d|_r\d+_|resnet"
)
GATED_ACTS = ("silu", "swish")


def given(config: Fields) -> dict[str, Any]:
    """Fields of a spec that config.json tells.

    What the network is is seen in the tensors. The name of the function only tells how many blocks
    and heads it has by itself, and whether it computes something that no tensor shows.
    """
    args, name = config.section("model_args"), config.text("architecture")
    if not re.match(r"vit_|deit", name) or OTHERS.search(name):
        raise ValueError(
            f"config.json is of architecture {name!r}; of ViTs with learned positions timm's plain "
            "ones are read, such as vit_large_patch16_224, vit_base_patch14_reg4_dinov2."
        )
    timm_args.check(args, READ, FIXED)
    word = re.match(r"(?:vit|deit3?)_([a-z]+)_", name)
    depth, num_heads = FUNCTIONS.get(word[1] if word else "", (None, None))
    if NAME.fullmatch(name) and word and word[1] == "giant":
        num_heads = 24
    told = {
        "norm": "layernorm",
        "position": "learned",
        "position_offset": 0.0,
        "position_antialias": True,
        "depth": args.whole("depth", depth),
        "num_heads": args.whole("num_heads", num_heads),
    }
    return {name: value for name, value in told.items() if value is not None}


def claims(config: Fields, facts: dict[str, Any]) -> Iterator[Claim]:
    """What config.json says of the tensors. Raises ValueError for another activation."""
    args, gated = config.section("model_args"), facts["gated"]
    yield from timm_args.sizes(args, "reg_tokens")
    yield "img_size", "position_size", args.square("img_size")
    yield "proj_bias", "proj_bias", args.flag("proj_bias")
    if (ratio := args.real("mlp_ratio")) is not None:
        yield "mlp_ratio", "hidden", int(facts["width"] * ratio) // (2 if gated else 1)
    acts = (None, *(GATED_ACTS if gated else ("gelu",)))
    if args.content.get("act_layer") not in acts:
        raise args.refuse("act_layer", "read are gelu, and silu with a gated MLP")
    if not gated and args.content.get("mlp_layer") is not None:
        raise args.refuse("mlp_layer", "the tensors are those of a plain MLP")


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
            **transforms.write(own, spec.channels),
        },
    }
