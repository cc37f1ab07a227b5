"""What the tensors of a backbone tell of it, and what files beside them say, compared."""

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

from dinojax.models.layers import ffn_width
from dinojax.weights.tensors import Tensors

PATCH_EMBED = "patch_embed.proj.weight"
FFNS = (("fc1", "mlp"), ("w1", "swiglu"), ("w12", "swiglu_fused"))  # first matrix, kind

# What somebody says: (the words for it, the fact it is about, its value)
Claim = tuple[str, str, Any]
Claims = Callable[[dict[str, Any]], Iterable[Claim]]  # some sizes are said in terms of others


def none(facts: dict[str, Any]) -> Iterable[Claim]:
    """Where nobody says anything."""
    return ()


def of(tensors: Tensors) -> dict[str, Any]:
    """Facts of a ViT from its tensors in the reference's names; no tensor is read.

    hidden: channels inside the feed-forward network. Raises ValueError for shapes that no ViT has
    and for blocks that are not numbered through.
    """
    width, channels, rows, columns = _shape(tensors, PATCH_EMBED, 4)
    if rows != columns:
        raise ValueError(f"{PATCH_EMBED} has patches of {rows} x {columns}; read are squares.")
    registers = "storage_tokens" in tensors
    found = {
        "width": width,
        "channels": channels,
        "patch_size": rows,
        "depth": depth(tensors),
        "num_registers": _shape(tensors, "storage_tokens", 3)[1] if registers else 0,
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
        "proj_bias": "blocks.0.attn.proj.bias" in tensors,
        "mask_k_bias": "blocks.0.attn.qkv.bias_mask" in tensors,
        "has_layer_scale": "blocks.0.ls1.gamma" in tensors,
        "position_size": None,
        **_ffn(tensors),
    }
    found["key_bias"] = found["qkv_bias"] and not found["mask_k_bias"]
    found["gated"] = found["ffn"] != "mlp"
    masks = sum(name.endswith(".attn.qkv.bias_mask") for name in tensors)
    if masks not in (0, found["depth"]):
        raise ValueError(f"{masks} of {found['depth']} blocks have a mask on the bias of k.")
    if "pos_embed" in tensors:
        count = _shape(tensors, "pos_embed", 3)[1]
        side = math.isqrt(max(count - 1, 0))
        if not side or side * side + 1 != count:
            raise ValueError(
                f"pos_embed has {count} positions, which are not those of cls and a square of "
                "patches."
            )
        found["position_size"] = side * rows
    return found


def depth(tensors: Tensors, pattern: str = r"blocks\.(\d+)\.") -> int:
    """One more than the highest number of a block. Raises ValueError where one is left out."""
    found = [re.match(pattern, name) for name in tensors]
    numbers = {int(match[1]) for match in found if match}
    gaps = (number for number in range(len(numbers)) if number not in numbers)
    if (gap := next(gaps, None)) is not None:
        above = min(number for number in numbers if number > gap)
        there = next(match[0] for match in found if match and int(match[1]) == above)
        raise ValueError(f"it has {there}* but no block {gap} before: blocks are missing.")
    return len(numbers)


def _ffn(tensors: Tensors) -> dict[str, Any]:
    for first, kind in FFNS:
        name = f"blocks.0.mlp.{first}.weight"
        if name in tensors:
            hidden = _shape(tensors, name, 2)[0] // (2 if kind == "swiglu_fused" else 1)
            bias = f"blocks.0.mlp.{first}.bias" in tensors
            return {"ffn": kind, "hidden": hidden, "ffn_bias": bias}
    raise ValueError("block 0 has no feed-forward network (mlp.fc1, mlp.w1 or mlp.w12).")


def _shape(tensors: Tensors, name: str, rank: int) -> tuple[int, ...]:
    shape = tensors[name].shape
    if len(shape) != rank or 0 in shape:
        raise ValueError(f"{name} has shape {shape}; it must have {rank} axes, none of them 0.")
    return shape


def compare(facts: dict[str, Any], claims: Iterable[Claim]) -> None:
    """Raise ValueError for the claims that the tensors contradict, all at once.

    Claims without a value, or of what the tensors do not tell, are passed over.
    """
    wrong = [
        f"{words}={value}, but the tensors have {name} {facts[name]}"
        for words, name, value in claims
        if value is not None and facts.get(name) is not None and facts[name] != value
    ]
    if wrong:
        raise ValueError("; ".join(wrong) + " (truncated, or files of two networks?).")


def of_fields(fields: dict[str, Any], facts: dict[str, Any]) -> Iterable[Claim]:
    """What fields of a spec say, our own config's or those that are given by hand."""
    for name in ("width", "depth", "channels", "patch_size", "num_registers", "depths", "widths"):
        if name in fields:
            yield name, name, fields[name]
    if fields.get("position") == "learned" and "position_size" in fields:
        yield "position_size", "position_size", fields["position_size"]
    if "ffn_ratio" in fields and "width" in facts:
        kind, ratio = fields.get("ffn", facts["ffn"]), fields["ffn_ratio"]
        words = f"ffn={kind}, ffn_ratio={ratio:g}: hidden"
        yield words, "hidden", ffn_width(kind, facts["width"], ratio)
