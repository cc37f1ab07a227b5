"""The arguments of timm's functions in a config.json, of which none is passed over unread."""

from collections.abc import Iterator, Mapping
from typing import Any

from dinojax.weights.facts import Claim
from dinojax.weights.jsons import Fields

# What changes no feature of a backbone: heads, training, and sizes of images to come.
HARMLESS = {
    *("num_classes", "global_pool", "dynamic_img_size", "weight_init", "fix_init", "device"),
    *("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate"),
    *("drop_path_rate", "head_init_scale", "head_init_value", "dtype", "pool_include_prefix"),
    *("rope_shift_coords", "rope_jitter_coords", "rope_rescale_coords", "strict_img_size"),
    *("attn_pool_num_heads", "attn_pool_mlp_ratio", "output_stride", "pretrained", "cache_dir"),
    *("pretrained_strict", "pretrained_cfg", "pretrained_cfg_overlay", "scriptable", "exportable"),
    *("no_embed_class", "use_fc_norm", "fc_norm", "attn_type", "ref_feat_shape", "num_kv_heads"),
}


def check(args: Fields, read: set[str], fixed: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise ValueError for arguments that are not read, or that ask for another network.

    fixed: argument -> the values with which the network is the one that is read.
    """
    for key, value in args.content.items():
        if key in fixed:
            if not any(type(value) is type(good) and value == good for good in fixed[key]):
                raise args.refuse(key, f"read is {' or '.join(map(repr, fixed[key]))}")
        elif key not in read | HARMLESS and value is not None:
            raise args.refuse(key, "this argument is not read")


def sizes(args: Fields, registers: str) -> Iterator[Claim]:
    """What arguments that timm's two classes of ViTs share say of the tensors."""
    yield "embed_dim", "width", args.whole("embed_dim")
    yield "depth", "depth", args.whole("depth")
    yield "patch_size", "patch_size", args.square("patch_size")
    yield "in_chans", "channels", args.whole("in_chans")
    yield registers, "num_registers", args.whole(registers, lowest=0)
    yield "qkv_bias", "qkv_bias", args.flag("qkv_bias")
    if "init_values" in args.content:
        scale = None if args.content["init_values"] is None else args.real("init_values")
        yield f"init_values={scale}: LayerScale", "has_layer_scale", scale is not None
