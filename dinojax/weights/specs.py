"""What a backbone is, told from the tensors of a file in the reference's names, and as JSON."""

import dataclasses
import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dinojax.models import rope as rope_lib
from dinojax.models.convnext import ConvNextSpec
from dinojax.models.rope import RopeSpec
from dinojax.models.vit import VitSpec
from dinojax.models.zoo import VITS, Spec, module
from dinojax.weights import convnext, meta
from dinojax.weights.tensors import Tensor, Tensors

# Fields of a spec that say how to run a backbone, not what it is.
RUNTIME = ("dtype", "attention", "remat", "drop_path")
AUGMENTS = ("shift", "jitter", "rescale")


def family(spec: Spec) -> str:
    """dinov3, dinov2 or convnext: what decides how other libraries keep a backbone."""
    if isinstance(spec, ConvNextSpec):
        return "convnext"
    return "dinov3" if spec.position == "rope" else "dinov2"


def to_json(spec: Spec) -> dict[str, Any]:
    """What a backbone is, as JSON values."""
    fields = {k: v for k, v in dataclasses.asdict(spec).items() if k not in RUNTIME}
    if isinstance(spec, ConvNextSpec):
        return {"family": "convnext", **fields}
    fields["rope"] = {k: v for k, v in fields["rope"].items() if k not in AUGMENTS}
    return {"family": "vit", **fields}


def from_json(fields: dict[str, Any]) -> Spec:
    """The inverse of `to_json`. Raises ValueError for fields that are not known."""
    fields = {**fields}
    kind = KINDS.get(name := fields.pop("family", "vit"))
    if kind is None:
        raise ValueError(f"family {name!r} is unknown to this version of dinojax.")
    known = {field.name for field in dataclasses.fields(kind)}
    if extra := sorted(set(fields) - known):
        raise ValueError(f"a backbone has no {', '.join(extra)}; its fields are {sorted(known)}.")
    if kind is ConvNextSpec:
        sizes = {key: tuple(fields[key]) for key in convnext.SIZES}
        return ConvNextSpec(**{**fields, **sizes})
    return VitSpec(**{**fields, "rope": RopeSpec(**fields["rope"])})


KINDS = {"vit": VitSpec, "convnext": ConvNextSpec}


def override(kind: type, given: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Fields of a spec with others in their place; `rope.base` means the base of its `rope`.

    kind: VitSpec or ConvNextSpec. Raises ValueError for a name that is no field.
    """
    known = {field.name for field in dataclasses.fields(kind)} - {"rope", "dtype"}
    given = {**given}
    if kind is VitSpec:
        given["rope"] = {**given.get("rope", {})}
        known |= {f"rope.{field.name}" for field in dataclasses.fields(RopeSpec)}
    for name, value in overrides.items():
        if name not in known:
            raise ValueError(f"{name!r} is no field of a backbone; choose of {sorted(known)}.")
        if name.startswith("rope."):
            given["rope"][name.removeprefix("rope.")] = value
        else:
            given[name] = value
    return given


def replaced(spec: Spec, overrides: dict[str, Any]) -> Spec:
    """A spec with some of its fields replaced."""
    kind = type(spec)
    fields = {field.name: getattr(spec, field.name) for field in dataclasses.fields(kind)}
    if isinstance(spec, ConvNextSpec):
        fields = override(kind, fields, overrides)
        return ConvNextSpec(**fields)
    fields = override(kind, {**fields, "rope": dataclasses.asdict(spec.rope)}, overrides)
    return VitSpec(**{**fields, "rope": RopeSpec(**fields["rope"])})


def kind_of(tensors: Tensors) -> type:
    """Which spec tensors in the reference's names have."""
    return ConvNextSpec if convnext.STEM in tensors else VitSpec


def infer(tensors: Tensors, given: dict[str, Any], source: str) -> tuple[Spec, list[str]]:
    """The spec of a backbone with these tensors (reference names), and what was assumed.

    given: fields that are known from elsewhere, `rope` among them as a dictionary. source: names
    the file in messages. Raises ValueError when the tensors fit no backbone, or leave it open
    which one they are.
    """
    if kind_of(tensors) is ConvNextSpec:
        return convnext.infer(tensors, given, source)
    if "patch_embed.proj.weight" not in tensors:
        raise ValueError(f"{source} has no patch embedding, so it holds no backbone.")
    if "pos_embed" in tensors and given.get("position") == "rope":
        raise ValueError(
            f"{source} has learned positions (pos_embed), so it is a DINOv2 backbone; a DINOv3 "
            "backbone has RoPE."
        )
    width, channels, patch_size = tensors["patch_embed.proj.weight"].shape[:3]
    fields: dict[str, Any] = {
        "width": width,
        "channels": channels,
        "patch_size": patch_size,
        "depth": depth(tensors),
        "num_registers": tensors["storage_tokens"].shape[1] if "storage_tokens" in tensors else 0,
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
        "proj_bias": "blocks.0.attn.proj.bias" in tensors,
        "mask_k_bias": "blocks.0.attn.qkv.bias_mask" in tensors,
        "layer_scale": 1e-5 if "blocks.0.ls1.gamma" in tensors else None,
        "untie_cls_norm": "cls_norm.weight" in tensors,
        "untie_local_cls_norm": "local_cls_norm.weight" in tensors,
        **_ffn(tensors, width, source),
        **_positions(tensors, patch_size),
    }
    notes: list[str] = []
    given = {**given}
    if "depth" not in given and not _in_zoo(fields):
        raise ValueError(
            f"{source}: {fields['depth']} blocks of width {width} are no DINO model: truncated? "
            f"If they are meant, say so with the override depth={fields['depth']}."
        )
    rope_fields = given.pop("rope", {})
    rope = RopeSpec(**rope_fields)
    if "num_heads" not in given:
        given["num_heads"] = _num_heads(tensors, width, source)
    if "norm" not in given:
        given["norm"] = _norm(tensors, source, notes)
    spec = VitSpec(**{**fields, **given, "rope": rope})
    if "rope_embed.periods" in tensors:
        periods = tensors["rope_embed.periods"].read().astype(np.float32)
        rope = _rope_of(periods, spec, source)
        if "periods_dtype" not in rope_fields:
            spec = dataclasses.replace(spec, rope=rope)
    return spec, notes


def depth(tensors: Tensors) -> int:
    """One more than the highest number of a block."""
    found = [re.match(r"blocks\.(\d+)\.", name) for name in tensors]
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def _positions(tensors: Tensors, patch_size: int) -> dict[str, Any]:
    """DINOv2's learned table, where there is one: its models with registers resize it otherwise."""
    if "pos_embed" not in tensors:
        return {"position": "rope"}
    side = math.isqrt(tensors["pos_embed"].shape[1] - 1)
    registers = "storage_tokens" in tensors
    return {
        "position": "learned",
        "position_size": side * patch_size,
        "position_offset": 0.0 if registers else 0.1,
        "position_antialias": registers,
    }


def _ffn(tensors: Tensors, width: int, source: str) -> dict[str, Any]:
    for first, kind in (("fc1", "mlp"), ("w1", "swiglu"), ("w12", "swiglu_fused")):
        name = f"blocks.0.mlp.{first}.weight"
        if name not in tensors:
            continue
        hidden = tensors[name].shape[0] // (2 if kind == "swiglu_fused" else 1)
        # Any ratio that ffn_width turns back into `hidden`; half a channel keeps off the edge.
        whole = hidden if kind == "mlp" else math.ceil(hidden * 3 / 2)
        ratio = whole / width if int(width * (whole / width)) == whole else (whole + 0.5) / width
        return {
            "ffn": kind,
            "ffn_ratio": ratio,
            "ffn_bias": f"blocks.0.mlp.{first}.bias" in tensors,
        }
    raise ValueError(f"{source}: block 0 has no feed-forward network (mlp.fc1, mlp.w1 or mlp.w12).")


def _in_zoo(fields: dict[str, Any]) -> bool:
    return any(
        (row["width"], row["depth"]) == (fields["width"], fields["depth"]) for row in VITS.values()
    )


def _num_heads(tensors: Tensors, width: int, source: str) -> int:
    if "rope_embed.periods" in tensors:
        return width // (4 * tensors["rope_embed.periods"].shape[0])
    heads = {row["num_heads"] for row in VITS.values() if row["width"] == width}
    if len(heads) != 1:
        raise ValueError(
            f"{source} does not tell the number of attention heads; give the override num_heads."
        )
    return heads.pop()


def _norm(tensors: Tensors, source: str, notes: list[str]) -> str:
    if "norm.bias" not in tensors:
        return "rmsnorm"
    if "pos_embed" in tensors:
        return "layernorm"  # all of DINOv2
    if "storage_tokens" not in tensors:
        raise ValueError(
            f"{source} does not tell the epsilon of its norms; give the override norm=layernorm "
            "(1e-6, the default of training) or norm=layernorm_1e5 (released DINOv3 models)."
        )
    notes.append("norm=layernorm_1e5 assumed, as in all released DINOv3 models")
    return "layernorm_1e5"


def _rope_of(periods: np.ndarray, spec: VitSpec, source: str) -> RopeSpec:
    """The RoPE of the spec if it gives these periods, in float32 or rounded to bfloat16."""
    for dtype in (spec.rope.periods_dtype, "float32", "bfloat16"):
        rope = dataclasses.replace(spec.rope, periods_dtype=dtype)
        ours = np.asarray(rope_lib.periods(spec.head_width, rope))
        if ours.shape == periods.shape and np.allclose(ours, periods, rtol=1e-6, atol=0):
            return rope
    base = periods[-1] ** (len(periods) / max(len(periods) - 1, 1))
    raise ValueError(
        f"{source}: its RoPE periods {periods[:3]}... (base {base:.6g}) are not those of "
        f"base {spec.rope.base}; if they are meant, give the override rope.base."
    )


@functools.lru_cache(maxsize=8)
def expected(spec: Spec) -> Tensors:
    """Shapes of all parameters of a backbone, in the reference's names and layouts."""

    def unread():
        raise AssertionError("only the shape of an expected tensor is known")

    tree = jax.eval_shape(lambda: _init(spec))
    return meta.lazily_from_ours(
        jax.tree.map(lambda leaf: Tensor(leaf.shape, np.dtype(leaf.dtype), unread), tree)
    )


def initial(spec: Spec, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Some parameters as they are before training, by their names in the reference."""
    tops = {meta.our_path(name)[0][0] for name in names}
    # Only what is asked for is returned, so that the compiler leaves out the rest.
    tree = jax.jit(lambda: {key: leaf for key, leaf in _init(spec).items() if key in tops})()
    tensors = meta.lazily_from_ours(jax.device_get(tree))
    return {name: tensors[name].read() for name in names}


def _init(spec: Spec) -> dict[str, Any]:
    pixels = jnp.zeros((1, spec.patch_size, spec.patch_size, spec.channels))
    return nn.meta.unbox(module(spec).init(jax.random.key(0), [pixels])["params"])
