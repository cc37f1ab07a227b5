"""DINOv2 ViT as Hugging Face transformers keeps it: names, config.json, and what it cannot hold."""

import re
from collections.abc import Iterator
from typing import Any

from dinojax.models.block import VitSpec
from dinojax.models.layers import ffn_width
from dinojax.weights.facts import Claim
from dinojax.weights.hf import EPS, NORMS, fuse
from dinojax.weights.jsons import Fields
from dinojax.weights.preprocess import Preprocessing
from dinojax.weights.renames import Renamed, renamed
from dinojax.weights.tensors import Tensors, cut

# Name of model and type without and with registers.
CLASSES = {
    False: ("Dinov2Model", "dinov2"),
    True: ("Dinov2WithRegistersModel", "dinov2_with_registers"),
}
TOP = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "storage_tokens": "embeddings.register_tokens",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
MODULES = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.w12": "mlp.weights_in",
    "mlp.w3": "mlp.weights_out",
}
QKV = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
LAYER = r"encoder\.layer\.(\d+)\."
# On disk, and what transformers 5 has in memory, which torch.save(model.state_dict()) writes.
SPLIT = re.compile(
    LAYER + r"attention\.(?:attention\.(?=query|key|value)|(?=[qkv]_proj))"
    r"(query|key|value|[qkv]_proj)\.(weight|bias)"
)

TO_REFERENCE = [
    *((re.escape(theirs), ours) for ours, theirs in TOP.items()),
    (LAYER + r"layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (LAYER + r"attention\.o_proj\.(weight|bias)", r"blocks.\1.attn.proj.\2"),
    *(
        (LAYER + re.escape(theirs) + r"\.(weight|bias)", rf"blocks.\1.{ours}.\2")
        for ours, theirs in MODULES.items()
    ),
]
FROM_REFERENCE = [
    *((re.escape(ours), theirs) for ours, theirs in TOP.items()),
    (r"blocks\.(\d+)\.ls([12])\.gamma", r"encoder.layer.\1.layer_scale\2.lambda1"),
    *(
        (rf"blocks\.(\d+)\.{re.escape(ours)}\.(weight|bias)", rf"encoder.layer.\1.{theirs}.\2")
        for ours, theirs in MODULES.items()
    ),
]


def to_reference(tensors: Tensors) -> tuple[Tensors, list[str]]:
    """Tensors in the reference's names, and the names that are none of this format."""
    found, split = Renamed(), Renamed()
    for name, tensor in tensors.items():
        if part := SPLIT.fullmatch(name):
            split.put(name, f"{int(part[1])}.{part[3]}.{QKV.get(part[2], part[2])}", tensor)
        elif (other := renamed(name, TO_REFERENCE)) is not None:
            found.put(name, other, tensor)
        else:
            found.unknown.append(name)
    fuse(split, found)
    return found.result()


def from_reference(tensors: Tensors, spec: VitSpec) -> Tensors:
    """Tensors in this format's names, from the reference's."""
    found: Tensors = {}
    for name, tensor in tensors.items():
        if fused := re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", name):
            for number, part in enumerate(QKV):
                rows = slice(number * spec.width, (number + 1) * spec.width)
                theirs = f"encoder.layer.{fused[1]}.attention.attention.{part}.{fused[2]}"
                found[theirs] = cut(tensor, rows)
        elif (other := renamed(name, FROM_REFERENCE)) is not None:
            found[other] = tensor
    return found


def left_out(spec: VitSpec) -> dict[str, str]:
    return {}


# What a file may lack, as with use_mask_token=false: it is used in training only.
OPTIONAL = ("mask_token",)


def refusals(spec: VitSpec) -> list[str]:
    """Why this format cannot hold a backbone; empty if it can."""
    model = CLASSES[spec.num_registers > 0][0]
    return [
        *position_refusals(spec, f"transformers' {model}", antialias=spec.num_registers > 0),
        *(
            f"transformers' {model} {reason}; use --format meta"
            for broken, reason in (
                (spec.norm not in EPS, f"has LayerNorm only, this backbone {spec.norm}"),
                (spec.layer_scale is None, "always has LayerScale, this backbone none"),
                (spec.mask_k_bias, "has no mask on the bias of k"),
                (spec.untie_cls_norm or spec.untie_local_cls_norm, "has one final norm"),
                (not (spec.proj_bias and spec.ffn_bias), "always has biases, this backbone not"),
                (_mlp_ratio(spec) is None, f"has no feed-forward network like {spec.ffn} with "
                 f"ratio {spec.ffn_ratio:g}"),
            )
            if broken
        ),
    ]  # fmt: skip


def position_refusals(spec: VitSpec, library: str, *, antialias: bool) -> list[str]:
    """How a library resizes learned positions: to the size of the grid, with antialias or not."""
    if (spec.position_offset, spec.position_antialias) == (0.0, antialias):
        return []
    told = str(antialias).lower()
    return [
        f"{library} resizes positions without an offset, antialias {told}, this backbone with "
        f"{spec.position_offset} and {str(spec.position_antialias).lower()}; features would differ "
        f"at other sizes than {spec.position_size}. Give `--set position_offset=0 --set "
        f"position_antialias={told}` to accept that (published conversions do), or --format meta"
    ]


def _mlp_ratio(spec: VitSpec) -> int | None:
    """The whole ratio that the config needs, if there is one that gives this width."""
    if spec.ffn not in ("mlp", "swiglu_fused"):
        return None
    hidden = ffn_width(spec.ffn, spec.width, spec.ffn_ratio)
    fitting = [r for r in range(1, 17) if ffn_width(spec.ffn, spec.width, r) == hidden]
    return fitting[0] if fitting else None


def given(config: Fields) -> dict[str, Any]:
    """Fields of a spec that config.json tells. Raises ValueError for what we do not have."""
    act, eps = config.text("hidden_act", "gelu"), config.real("layer_norm_eps", 1e-6)
    if act != "gelu" or eps not in NORMS:
        raise ValueError(
            f"config.json has hidden_act={act}, layer_norm_eps={eps}; known are gelu, {[*NORMS]}."
        )
    told = {
        "depth": config.whole("num_hidden_layers"),
        "num_heads": config.whole("num_attention_heads"),
        "norm": NORMS[eps],
        "position": "learned",
        "position_offset": 0.0,
        "position_antialias": config.text("model_type") == CLASSES[True][1],
    }
    return {name: value for name, value in told.items() if value is not None}


def claims(config: Fields, facts: dict[str, Any]) -> Iterator[Claim]:
    """What config.json says of the tensors."""
    yield "hidden_size", "width", config.whole("hidden_size")
    yield "num_hidden_layers", "depth", config.whole("num_hidden_layers")
    yield "patch_size", "patch_size", config.square("patch_size")
    yield "num_channels", "channels", config.whole("num_channels")
    yield "num_register_tokens", "num_registers", config.whole("num_register_tokens", lowest=0)
    if config.text("model_type") == CLASSES[False][1]:
        yield "model_type=dinov2: num_registers", "num_registers", 0
    yield "image_size", "position_size", config.square("image_size")
    yield "qkv_bias", "qkv_bias", config.flag("qkv_bias")
    yield "use_swiglu_ffn", "gated", config.flag("use_swiglu_ffn")
    if (ratio := config.real("mlp_ratio")) is not None:
        yield "mlp_ratio", "hidden", ffn_width(facts["ffn"], facts["width"], ratio)


def config(spec: VitSpec, own: Preprocessing) -> dict[str, Any]:
    """config.json of Dinov2Model or Dinov2WithRegistersModel."""
    model, model_type = CLASSES[spec.num_registers > 0]
    fields = {
        "architectures": [model],
        "model_type": model_type,
        "hidden_size": spec.width,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.num_heads,
        "mlp_ratio": _mlp_ratio(spec),
        "use_swiglu_ffn": spec.ffn != "mlp",
        "hidden_act": "gelu",
        "qkv_bias": spec.qkv_bias,
        "layer_norm_eps": EPS[spec.norm],
        "layerscale_value": spec.layer_scale,
        "num_channels": spec.channels,
        "patch_size": spec.patch_size,
        "image_size": spec.position_size,  # pixels of the table of positions
        "drop_path_rate": 0.0,
        "torch_dtype": "float32",
    }
    return fields | ({"num_register_tokens": spec.num_registers} if spec.num_registers else {})
