"""Backbones by name. Sizes: DINOv3, arXiv:2508.10104, table of architectures; DINOv2's code."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dinojax.models import convnext, vit
from dinojax.models.convnext import ConvNext, ConvNextSpec
from dinojax.models.heads import HeadSpec
from dinojax.models.rope import RopeSpec
from dinojax.models.vit import Vit, VitSpec

# name -> width D, depth, heads A, feed-forward network and its ratio, bias of the qkv projection
VITS: dict[str, dict[str, Any]] = {
    "vits": dict(width=384, depth=12, num_heads=6, ffn="mlp", ffn_ratio=4.0),
    "vitsplus": dict(width=384, depth=12, num_heads=6, ffn="swiglu", ffn_ratio=6.0),
    "vitb": dict(width=768, depth=12, num_heads=12, ffn="mlp", ffn_ratio=4.0),
    "vitl": dict(width=1024, depth=24, num_heads=16, ffn="mlp", ffn_ratio=4.0),
    "vitlplus": dict(width=1024, depth=24, num_heads=16, ffn="swiglu", ffn_ratio=6.0),
    "vitso400m": dict(width=1152, depth=27, num_heads=18, ffn="mlp", ffn_ratio=3.777777778),
    "vith2": dict(width=1280, depth=32, num_heads=20, ffn="mlp", ffn_ratio=4.0),
    "vithplus": dict(width=1280, depth=32, num_heads=20, ffn="swiglu", ffn_ratio=6.0),
    "vitg2": dict(width=1536, depth=40, num_heads=24, ffn="mlp", ffn_ratio=4.0),
    "vit7b": dict(
        width=4096, depth=40, num_heads=32, ffn="swiglu64", ffn_ratio=3.0, qkv_bias=False
    ),
    # DINOv2, arXiv:2304.07193; its models have patches of 14 pixels.
    "dinov2_vits": dict(
        width=384, depth=12, num_heads=6, ffn="mlp", ffn_ratio=4.0, position="learned"
    ),
    "dinov2_vitb": dict(
        width=768, depth=12, num_heads=12, ffn="mlp", ffn_ratio=4.0, position="learned"
    ),
    "dinov2_vitl": dict(
        width=1024, depth=24, num_heads=16, ffn="mlp", ffn_ratio=4.0, position="learned"
    ),
    "dinov2_vitg": dict(
        width=1536, depth=40, num_heads=24, ffn="swiglu_fused", ffn_ratio=4.0, position="learned"
    ),
}

# name -> blocks and channels of the four stages
CONVNEXTS: dict[str, dict[str, Any]] = {
    "convnext_tiny": dict(depths=(3, 3, 9, 3), widths=(96, 192, 384, 768)),
    "convnext_small": dict(depths=(3, 3, 27, 3), widths=(96, 192, 384, 768)),
    "convnext_base": dict(depths=(3, 3, 27, 3), widths=(128, 256, 512, 1024)),
    "convnext_large": dict(depths=(3, 3, 27, 3), widths=(192, 384, 768, 1536)),
}


Spec = VitSpec | ConvNextSpec
FLOAT32 = jnp.dtype(jnp.float32)


def module(spec: Spec) -> Any:
    """The flax module of a spec: Vit or ConvNext, which are called alike."""
    return ConvNext(spec) if isinstance(spec, ConvNextSpec) else Vit(spec)


def make_draws(
    drop_keys_U: jax.Array, rope_keys_U: jax.Array, spec: Spec, *, num_sequences: int, tag: int
) -> Any:
    """What a backbone's `__call__` takes as the draws of one crop set of U groups."""
    if isinstance(spec, ConvNextSpec):
        return convnext.make_draws(drop_keys_U, spec, num_sequences=num_sequences, tag=tag)
    return vit.make_draws(drop_keys_U, rope_keys_U, spec, num_sequences=num_sequences, tag=tag)


def backbone(
    model, rope, *, channels: int, attention: str, dtype, reduce=FLOAT32
) -> Vit | ConvNext:
    """The backbone that `model.name` names, from config sections `model` and `rope`.

    Raises ValueError for a name that is in no table, and for what `vit_spec` refuses.
    """
    if model.name in CONVNEXTS:
        spec: Spec = convnext_spec(model, channels=channels, dtype=dtype)
    else:
        spec = vit_spec(model, rope, channels=channels, attention=attention, dtype=dtype)
    return module(dataclasses.replace(spec, reduce=reduce))


def convnext_spec(model, *, channels: int, dtype) -> ConvNextSpec:
    """The spec of a ConvNeXt from config section `model`.

    Sizes and initial LayerScale are those of its name. Where set, `width` is that of the last
    stage, of which each stage before has half, and `depth` the blocks of every stage. `drop_path`
    is the rate of the last block. Raises ValueError for a name that is not in the table, and for
    a patch size or width that no ConvNeXt has.
    """
    if model.name not in CONVNEXTS:
        raise ValueError(f"model.name={model.name!r} is no ConvNeXt; choose from {[*CONVNEXTS]}.")
    row, num_stages = dict(CONVNEXTS[model.name]), convnext.NUM_STAGES
    if model.width is not None:
        first, rest = divmod(model.width, 2 ** (num_stages - 1))
        if rest or not first:
            raise ValueError(
                f"model.width={model.width} is not a multiple of {2 ** (num_stages - 1)}, but each "
                f"of the {num_stages} stages of a ConvNeXt is twice as wide as the one before."
            )
        row["widths"] = tuple(first * 2**stage for stage in range(num_stages))
    if model.depth is not None:
        row["depths"] = (model.depth,) * num_stages
    spec = ConvNextSpec(
        **row, channels=channels, drop_path=model.drop_path, remat=model.remat, dtype=dtype
    )
    if model.patch_size != spec.patch_size:
        raise ValueError(
            f"model.patch_size={model.patch_size}, but model.name={model.name!r} makes one patch "
            f"of {spec.patch_size} x {spec.patch_size} pixels; set it to {spec.patch_size}."
        )
    return spec


def vit_spec(model, rope, *, channels: int, attention: str, dtype) -> VitSpec:
    """The spec of a backbone from config sections `model` and `rope`.

    Keys of `model` that are None take the value of the zoo's row. Raises ValueError for a name
    that is not in the table, for heads that do not divide the width, and for a table of learned
    positions that is not a whole number of patches.
    """
    if model.name not in VITS:
        raise ValueError(
            f"model.name={model.name!r} is not in the zoo; choose from {[*VITS, *CONVNEXTS]}."
        )
    row: dict[str, Any] = {"qkv_bias": True, "position": "rope"} | VITS[model.name]
    own = {
        "width": model.width,
        "depth": model.depth,
        "num_heads": model.num_heads,
        "ffn": model.ffn,
        "ffn_ratio": model.ffn_ratio,
        "qkv_bias": model.qkv_bias,
        "position": model.position,
    }
    row |= {key: value for key, value in own.items() if value is not None}
    if row["width"] % row["num_heads"]:
        raise ValueError(
            f"model.width={row['width']} is not a multiple of model.num_heads={row['num_heads']}."
        )
    # Only what has an effect is read, so that setting the rest is an error.
    if row["position"] == "learned":
        if model.position_size % model.patch_size:
            raise ValueError(
                f"model.position_size={model.position_size} is not a multiple of "
                f"model.patch_size={model.patch_size}."
            )
        row |= {
            "position_size": model.position_size,
            "position_offset": model.position_offset,
            "position_antialias": model.position_offset == 0,
        }
    else:
        row["rope"] = fill(RopeSpec, rope)
    return VitSpec(
        **row,
        proj_bias=model.proj_bias,
        ffn_bias=model.ffn_bias,
        mask_k_bias=model.mask_k_bias,
        patch_size=model.patch_size,
        channels=channels,
        num_registers=model.num_registers,
        norm=model.norm,
        layer_scale=model.layer_scale,
        drop_path=model.drop_path,
        untie_cls_norm=model.untie_cls_norm,
        untie_local_cls_norm=model.untie_local_cls_norm,
        attention=attention,
        remat=model.remat,
        dtype=dtype,
    )


def head_spec(head, *, inputs: int, dtype, reduce=FLOAT32) -> HeadSpec:
    """The spec of a projection head from its config section.

    dtype: of its products; reduce: of gradients that cross devices.
    """
    return fill(HeadSpec, head, inputs=inputs, dtype=dtype, reduce=reduce)


def fill(cls, section, **rest):
    """A dataclass whose fields have the names of the section's keys, but for those in `rest`."""
    names = [field.name for field in dataclasses.fields(cls) if field.name not in rest]
    return cls(**{name: getattr(section, name) for name in names}, **rest)
