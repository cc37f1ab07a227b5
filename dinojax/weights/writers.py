"""What each format consists of: tensors, and JSON files beside them."""

import dataclasses
from typing import Any

import numpy as np

from dinojax.models import rope as rope_lib
from dinojax.models.block import VitSpec
from dinojax.models.convnext import ConvNextSpec
from dinojax.models.zoo import Spec
from dinojax.weights import processors, specs
from dinojax.weights.formats import LIBRARIES
from dinojax.weights.preprocess import Preprocessing
from dinojax.weights.snippets import snippet as snippet  # the lines that open what is written
from dinojax.weights.tensors import Tensors, held

# Names of the reference's norms and arguments, for the config that goes with its weights.
REFERENCE_NORMS = {
    "layernorm": "layernorm",
    "layernorm_1e5": "layernormbf16",
    "rmsnorm": "rmsnorm",
}


@dataclasses.dataclass(frozen=True)
class Network:
    """A backbone in the reference's names, no tensor read, and where it comes from."""

    spec: Spec
    tensors: Tensors
    heads: Tensors  # dino_head.* and ibot_head.*; empty where there are none
    preprocessing: Preprocessing
    origin: dict[str, Any]  # JSON values


def _hf(network: Network):
    library = LIBRARIES["hf", specs.family(network.spec)]
    files = {
        "config.json": library.config(network.spec, network.preprocessing),
        processors.FILE: processors.write(network.preprocessing, network.spec.channels),
    }
    return library.from_reference(network.tensors, network.spec), files, "model.safetensors"


def _timm(network: Network):
    library = LIBRARIES["timm", specs.family(network.spec)]
    config = library.config(network.spec, network.preprocessing)
    if network.preprocessing.normalize == "per_crop":
        config["normalize"] = "per_crop"  # for our own reader: timm has no word for it
    files = {"config.json": config}
    return library.from_reference(network.tensors, network.spec), files, "model.safetensors"


def _meta(network: Network):
    tensors = {**network.tensors, **reference_buffers(network.spec)}
    family = specs.family(network.spec)
    if family == "dinov2":
        words = {"storage_tokens": "register_tokens"}
        tensors = {words.get(name, name): tensor for name, tensor in tensors.items()}
    files = {"config.json": {**_own_config(network, "meta"), "arguments": arguments(network.spec)}}
    return tensors, files, "model.safetensors"


def _dinojax(network: Network):
    return network.tensors, {"config.json": _own_config(network, "dinojax")}, "backbone.safetensors"


# Format -> tensors to write, files of JSON, name of the file of weights. stablehlo is our own
# format with a program beside it.
WRITERS = {
    "meta": _meta,
    "hf": _hf,
    "timm": _timm,
    "dinojax": _dinojax,
    "stablehlo": _dinojax,
}


def _own_config(network: Network, format: str) -> dict[str, Any]:
    return {
        "format": format,
        "backbone": specs.to_json(network.spec),
        "preprocessing": network.preprocessing.to_json(),
    }


def reference_buffers(spec: Spec) -> Tensors:
    """What the reference keeps beside parameters: RoPE periods, and masks of biases."""
    buffers: Tensors = {}
    if isinstance(spec, ConvNextSpec):
        return buffers
    if spec.position == "rope":
        periods = np.asarray(rope_lib.periods(spec.head_width, spec.rope))
        buffers["rope_embed.periods"] = held(periods)
    if spec.qkv_bias and spec.mask_k_bias:
        mask = held(np.repeat(np.array([1, 0, 1], np.float32), spec.width))
        buffers |= {f"blocks.{i}.attn.qkv.bias_mask": mask for i in range(spec.depth)}
    return buffers


def arguments(spec: Spec) -> dict[str, Any]:
    """The arguments with which the reference builds this backbone."""
    if isinstance(spec, ConvNextSpec):
        return {
            "in_chans": spec.channels,
            "depths": list(spec.depths),
            "dims": list(spec.widths),
            "layer_scale_init_value": spec.layer_scale or 0.0,
        }
    return _dinov3(spec) if spec.position == "rope" else _dinov2(spec)


def _shared(spec: VitSpec) -> dict[str, Any]:
    return {
        "patch_size": spec.patch_size,
        "in_chans": spec.channels,
        "embed_dim": spec.width,
        "depth": spec.depth,
        "num_heads": spec.num_heads,
        "qkv_bias": spec.qkv_bias,
        "proj_bias": spec.proj_bias,
        "ffn_bias": spec.ffn_bias,
    }


def _dinov3(spec: VitSpec) -> dict[str, Any]:
    return {
        **_shared(spec),
        "ffn_layer": spec.ffn,
        "ffn_ratio": spec.ffn_ratio,
        "mask_k_bias": spec.mask_k_bias,
        "n_storage_tokens": spec.num_registers,
        "norm_layer": REFERENCE_NORMS[spec.norm],
        "layerscale_init": spec.layer_scale,
        "untie_cls_and_patch_norms": spec.untie_cls_norm,
        "untie_global_and_local_cls_norm": spec.untie_local_cls_norm,
        "pos_embed_rope_base": spec.rope.base,
        "pos_embed_rope_min_period": spec.rope.min_period,
        "pos_embed_rope_max_period": spec.rope.max_period,
        "pos_embed_rope_normalize_coords": spec.rope.coords,
        "pos_embed_rope_dtype": {"float32": "fp32", "bfloat16": "bf16"}[spec.rope.dtype],
    }


def _dinov2(spec: VitSpec) -> dict[str, Any]:
    return {
        **_shared(spec),
        "img_size": spec.position_size,
        "mlp_ratio": spec.ffn_ratio,
        "ffn_layer": {"swiglu_fused": "swiglufused"}.get(spec.ffn, spec.ffn),
        "init_values": spec.layer_scale,
        "block_chunks": 0,
        "num_register_tokens": spec.num_registers,
        "interpolate_offset": spec.position_offset,
        "interpolate_antialias": spec.position_antialias,
    }
