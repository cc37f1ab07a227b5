"""DINOv3 ViT as Hugging Face transformers keeps it: names, config.json, and what it cannot hold."""

import functools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from dinojax.models.layers import ffn_width
from dinojax.models.vit import VitSpec
from dinojax.weights.facts import Claim
from dinojax.weights.jsons import Fields
from dinojax.weights.preprocess import Preprocessing
from dinojax.weights.renames import Renamed
from dinojax.weights.tensors import Tensor, Tensors, concatenate, cut, held

MODEL_TYPE = "dinov3_vit"
NORMS = {1e-6: "layernorm", 1e-5: "layernorm_1e5"}
EPS = {name: eps for eps, name in NORMS.items()}

# Name of the reference <-> name on disk, for what differs in name alone.
TOP = {
    "cls_token": "embeddings.cls_token",
    "storage_tokens": "embeddings.register_tokens",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.bias",
    "norm.weight": "norm.weight",
    "norm.bias": "norm.bias",
}
BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.proj": "attention.o_proj",
}
MLPS = {
    "plain": {"mlp.fc1": "mlp.up_proj", "mlp.fc2": "mlp.down_proj"},
    "gated": {"mlp.w1": "mlp.gate_proj", "mlp.w2": "mlp.up_proj", "mlp.w3": "mlp.down_proj"},
}
QKV = ("q_proj", "k_proj", "v_proj")
LAYER = re.compile(r"(?:model\.)?layer\.(\d+)\.(.+)")  # transformers 5 adds `model.` in memory


def to_reference(tensors: Tensors) -> tuple[Tensors, list[str]]:
    """Tensors in the reference's names, and the names that are none of this format."""
    gated = any(".mlp.gate_proj." in name for name in tensors)
    modules = {**BLOCK, **MLPS["gated" if gated else "plain"]}
    simple = {theirs: ours for ours, theirs in modules.items()}
    top = {theirs: ours for ours, theirs in TOP.items()}
    found, split = Renamed(), Renamed()
    for name, tensor in tensors.items():
        if name in top:
            if 0 not in tensor.shape:  # no registers are kept as an empty parameter
                found.put(name, top[name], tensor)
        elif name == "embeddings.mask_token":
            found.put(name, "mask_token", tensor, lambda x: x[0])
        elif layer := LAYER.fullmatch(name):
            block, (module, _, leaf) = int(layer[1]), layer[2].rpartition(".")
            if module in simple:
                found.put(name, f"blocks.{block}.{simple[module]}.{leaf}", tensor)
            elif scale := re.fullmatch(r"layer_scale([12])\.lambda1", layer[2]):
                found.put(name, f"blocks.{block}.ls{scale[1]}.gamma", tensor)
            elif module.removeprefix("attention.") in QKV:
                split.put(name, f"{block}.{leaf}.{module.removeprefix('attention.')}", tensor)
            else:
                found.unknown.append(name)
        else:
            found.unknown.append(name)
    fuse(split, found)
    return found.result()


def fuse(split: Renamed, found: Renamed) -> None:
    """Put q, k and v into `found` as one tensor; a bias that k lacks is held at 0.

    split: tensors called BLOCK.LEAF.PART, with PART of QKV. Where one is missing, the others are
    unknown. Raises ValueError for shapes that do not go together.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in split.tensors.items():
        group, _, part = name.rpartition(".")
        groups.setdefault(group, {})[part] = tensor
    for group, parts in groups.items():
        (block, leaf), own = group.split("."), list(parts)
        first = split.old(f"{group}.{own[0]}")
        name = f"blocks.{block}.attn.qkv.{leaf}"
        if leaf == "bias" and set(own) == {"q_proj", "v_proj"}:
            like = parts["q_proj"]
            parts["k_proj"] = Tensor(like.shape, like.dtype, functools.partial(_zeros, like))
            ones = np.ones(like.shape, np.float32)
            mask = np.concatenate([ones, 0 * ones, ones])
            found.put(first, f"{name}_mask", held(mask))
        if set(parts) != set(QKV):
            found.unknown += [split.old(f"{group}.{part}") for part in own]
            continue
        try:
            found.put(first, name, concatenate([parts[part] for part in QKV]))
        except ValueError as error:
            raise ValueError(f"{first} and those beside it: {error}") from None


def _zeros(like: Tensor) -> np.ndarray:
    return np.zeros(like.shape, like.dtype)


def from_reference(tensors: Tensors, spec: VitSpec) -> Tensors:
    """Tensors in this format's names, from the reference's. What is left out is in `left_out`."""
    modules = {**BLOCK, **MLPS["plain" if spec.ffn == "mlp" else "gated"]}
    found: Tensors = {}
    for name, tensor in tensors.items():
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(\w+)", name)
        if name in TOP:
            found[TOP[name]] = tensor
        elif name == "mask_token":
            found["embeddings.mask_token"] = tensor.map(lambda x: x[None])
        elif block and block[2] in modules:
            found[f"layer.{block[1]}.{modules[block[2]]}.{block[3]}"] = tensor
        elif block and block[2] in ("ls1", "ls2"):
            found[f"layer.{block[1]}.layer_scale{block[2][-1]}.lambda1"] = tensor
        elif block and block[2] == "attn.qkv":
            for number, part in enumerate(QKV):
                if block[3] == "bias" and part == "k_proj" and spec.mask_k_bias:
                    continue
                rows = slice(number * spec.width, (number + 1) * spec.width)
                theirs = f"layer.{block[1]}.attention.{part}.{block[3]}"
                found[theirs] = cut(tensor, rows)
    if not spec.num_registers:  # transformers wants the parameter even so
        found["embeddings.register_tokens"] = held(np.zeros((1, 0, spec.width), np.float32))
    return found


def left_out(spec: VitSpec) -> dict[str, str]:
    """Parameters this format does not hold -> why that changes no feature."""
    if not spec.untie_local_cls_norm:
        return {}
    reason = "used for local crops in training only"
    return {"local_cls_norm.weight": reason, "local_cls_norm.bias": reason}


def refusals(spec: VitSpec) -> list[str]:
    """Why this format cannot hold a backbone; empty if it can."""
    return [
        *rope_refusals(spec, "Hugging Face"),
        *(
            reason
            for broken, reason in (
                (
                    spec.norm not in EPS,
                    f"transformers has LayerNorm only, this backbone {spec.norm}",
                ),
                (
                    spec.layer_scale is None,
                    "transformers always has LayerScale, this backbone none",
                ),
                (spec.untie_cls_norm, "transformers has one final norm, this backbone one for cls"),
            )
            if broken
        ),
    ]


def rope_refusals(spec: VitSpec, library: str) -> list[str]:
    """What both libraries fix: periods from a base, in float32, and separate coordinates."""
    rope, found = spec.rope, []
    if "bfloat16" in (rope.periods_dtype, rope.dtype):
        found.append(
            f"{library} computes RoPE periods in float32, this backbone has them rounded to "
            "bfloat16; features would differ. Give `--set rope.periods_dtype=float32 --set "
            "rope.dtype=float32` to accept that (published conversions do), or --format meta"
        )
    if rope.base is None or rope.coords != "separate":
        found.append(
            f"{library} has RoPE with a base and coordinates per side, this backbone "
            f"base={rope.base}, coords={rope.coords}; use --format meta"
        )
    return found


def given(config: Fields) -> dict[str, Any]:
    """Fields of a spec that config.json tells. Raises ValueError for what we do not have."""
    gated = config.flag("use_gated_mlp", False)
    act = config.text("hidden_act", "gelu")
    if act != ("silu" if gated else "gelu"):
        raise ValueError(
            f"config.json has hidden_act={act} with use_gated_mlp={gated}; DINOv3 has gelu "
            "without and silu with gates."
        )
    eps = config.real("layer_norm_eps", 1e-5)
    if eps not in NORMS:
        raise config.refuse("layer_norm_eps", f"known are {list(NORMS)}")
    told = {
        "depth": config.whole("num_hidden_layers"),
        "num_heads": config.whole("num_attention_heads"),
        "norm": NORMS[eps],
        "position": "rope",
        "rope": {"base": config.real("rope_theta", 100.0)},
    }
    return {name: value for name, value in told.items() if value is not None}


def claims(config: Fields, facts: dict[str, Any]) -> Iterator[Claim]:
    """What config.json says of the tensors."""
    yield "hidden_size", "width", config.whole("hidden_size")
    yield "num_hidden_layers", "depth", config.whole("num_hidden_layers")
    yield "patch_size", "patch_size", config.square("patch_size")
    yield "num_channels", "channels", config.whole("num_channels")
    yield "num_register_tokens", "num_registers", config.whole("num_register_tokens", lowest=0)
    yield "intermediate_size", "hidden", config.whole("intermediate_size")
    yield "use_gated_mlp", "gated", config.flag("use_gated_mlp")
    yield "query_bias", "qkv_bias", config.flag("query_bias")
    yield "value_bias", "qkv_bias", config.flag("value_bias")
    yield "key_bias", "key_bias", config.flag("key_bias")
    yield "proj_bias", "proj_bias", config.flag("proj_bias")
    yield "mlp_bias", "ffn_bias", config.flag("mlp_bias")


def config(spec: VitSpec, own: Preprocessing) -> dict[str, Any]:
    """config.json of DINOv3ViTModel."""
    gated = spec.ffn != "mlp"
    return {
        "architectures": ["DINOv3ViTModel"],
        "model_type": MODEL_TYPE,
        "hidden_size": spec.width,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.num_heads,
        "intermediate_size": ffn_width(spec.ffn, spec.width, spec.ffn_ratio),
        "use_gated_mlp": gated,
        "hidden_act": "silu" if gated else "gelu",
        "mlp_bias": spec.ffn_bias,
        "query_bias": spec.qkv_bias,
        "key_bias": spec.qkv_bias and not spec.mask_k_bias,
        "value_bias": spec.qkv_bias,
        "proj_bias": spec.proj_bias,
        "layer_norm_eps": EPS[spec.norm],
        "layerscale_value": spec.layer_scale,
        "num_channels": spec.channels,
        "num_register_tokens": spec.num_registers,
        "patch_size": spec.patch_size,
        "image_size": own.side,
        "rope_theta": spec.rope.base,
        "pos_embed_rescale": spec.rope.rescale,
        "pos_embed_shift": spec.rope.shift,
        "pos_embed_jitter": spec.rope.jitter,
        "attention_dropout": 0.0,
        "drop_path_rate": 0.0,
        "torch_dtype": "float32",
    }
