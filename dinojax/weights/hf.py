"""DINOv3 ViT as Hugging Face transformers keeps it: names, config.json, and what it cannot hold."""

import re
from typing import Any

import numpy as np

from dinojax.models.layers import ffn_width
from dinojax.models.vit import VitSpec
from dinojax.weights.preprocess import Preprocessing
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
    found: Tensors = {}
    split: dict[tuple[int, str], dict[str, Tensor]] = {}
    unknown = []
    for name, tensor in tensors.items():
        if name in top:
            if 0 not in tensor.shape:  # no registers are kept as an empty parameter
                found[top[name]] = tensor
        elif name == "embeddings.mask_token":
            found["mask_token"] = tensor.map(lambda x: x[0])
        elif layer := LAYER.fullmatch(name):
            block, (module, _, leaf) = int(layer[1]), layer[2].rpartition(".")
            if module in simple:
                found[f"blocks.{block}.{simple[module]}.{leaf}"] = tensor
            elif scale := re.fullmatch(r"layer_scale([12])\.lambda1", layer[2]):
                found[f"blocks.{block}.ls{scale[1]}.gamma"] = tensor
            elif module.removeprefix("attention.") in QKV:
                split.setdefault((block, leaf), {})[module.removeprefix("attention.")] = tensor
            else:
                unknown.append(name)
        else:
            unknown.append(name)
    for (block, leaf), parts in split.items():
        found |= fused_qkv(block, leaf, parts)
    return found, unknown


def fused_qkv(block: int, leaf: str, parts: dict[str, Tensor]) -> Tensors:
    """q, k and v as one tensor; a bias that k lacks is held at 0."""
    fused = {}
    if leaf == "bias" and "k_proj" not in parts and "q_proj" in parts:
        like = parts["q_proj"]
        zeros = Tensor(like.shape, like.dtype, lambda: np.zeros(like.shape, like.dtype))
        parts = {**parts, "k_proj": zeros}
        ones = np.ones(like.shape, np.float32)
        mask = np.concatenate([ones, 0 * ones, ones])
        fused[f"blocks.{block}.attn.qkv.bias_mask"] = Tensor(mask.shape, mask.dtype, lambda: mask)
    ordered = [parts[name] for name in QKV if name in parts]
    if len(ordered) == len(QKV):
        fused[f"blocks.{block}.attn.qkv.{leaf}"] = concatenate(ordered)
    return fused


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


def given(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of a spec that config.json tells. Raises ValueError for what we do not have."""
    act = config.get("hidden_act", "gelu")
    if act != ("silu" if config.get("use_gated_mlp") else "gelu"):
        raise ValueError(
            f"config.json has hidden_act={act} with use_gated_mlp={config.get('use_gated_mlp')}; "
            "DINOv3 has gelu without and silu with gates."
        )
    eps = config.get("layer_norm_eps", 1e-5)
    if eps not in NORMS:
        raise ValueError(f"config.json has layer_norm_eps={eps}; known are {list(NORMS)}.")
    return {
        "depth": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "norm": NORMS[eps],
        "rope": {"base": float(config.get("rope_theta", 100.0))},
    }


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
        "image_size": own.crop_size,
        "rope_theta": spec.rope.base,
        "pos_embed_rescale": spec.rope.rescale,
        "pos_embed_shift": spec.rope.shift,
        "pos_embed_jitter": spec.rope.jitter,
        "attention_dropout": 0.0,
        "drop_path_rate": 0.0,
        "torch_dtype": "float32",
    }


SNIPPET = """\
import torch
from transformers import AutoImageProcessor, AutoModel
processor = AutoImageProcessor.from_pretrained("{out}")
model = AutoModel.from_pretrained("{out}").eval()
with torch.inference_mode():
    tokens = model(**processor(image, return_tensors="pt")).last_hidden_state
cls, registers, patches = tokens[:, 0], tokens[:, 1:{prefix}], tokens[:, {prefix}:]
"""
