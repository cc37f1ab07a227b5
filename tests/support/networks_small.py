"""Small backbones with random weights that differ in every entry, as files and networks."""

import dataclasses

import numpy as np

from dinojax.models.convnext import ConvNextSpec
from dinojax.models.vit import VitSpec
from dinojax.models.zoo import Spec
from dinojax.weights import convnext, specs
from dinojax.weights.preprocess import Preprocessing
from dinojax.weights.tensors import held
from dinojax.weights.writers import Network

RELEASED = VitSpec(
    width=16,
    depth=3,
    num_heads=2,
    num_registers=2,
    patch_size=4,
    norm="layernorm_1e5",
    mask_k_bias=True,
)
# As the tiny recipe makes them: epsilon 1e-6, a live bias of k, no registers, one channel.
TRAINED = dataclasses.replace(
    RELEASED, num_registers=0, mask_k_bias=False, norm="layernorm", channels=1
)
GATED = dataclasses.replace(RELEASED, ffn="swiglu", ffn_ratio=3.0)
# As ViT-7B: no bias of q, k and v, a norm for local crops.
WIDE = dataclasses.replace(
    GATED, ffn="swiglu64", mask_k_bias=False, qkv_bias=False, untie_local_cls_norm=True
)
# DINOv2 as released: learned positions of a square, more patches than the images of training here.
DINOV2 = VitSpec(
    width=16,
    depth=3,
    num_heads=2,
    patch_size=4,
    position="learned",
    position_size=16,
    norm="layernorm",
)
DINOV2_REGISTERS = dataclasses.replace(
    DINOV2, num_registers=2, position_offset=0.0, position_antialias=True
)
DINOV2_GATED = dataclasses.replace(DINOV2, ffn="swiglu_fused")
# The same as transformers and timm resize positions, which differ in antialias.
PLAIN = dataclasses.replace(DINOV2, position_offset=0.0)
SMOOTH = dataclasses.replace(PLAIN, position_antialias=True)
CONVNEXT = ConvNextSpec(depths=(1, 2, 2, 1), widths=(8, 12, 16, 24))


def random_network(spec: Spec, *, seed: int = 0, size: int = 16) -> Network:
    """A network whose features depend on every parameter. size: pixels at training."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, tensor in specs.expected(spec).items():
        matrix = name.endswith("weight") and len(tensor.shape) > 1
        std = float(np.prod(tensor.shape[1:])) ** -0.5 if matrix else 0.1
        values = rng.normal(size=tensor.shape).astype(np.float32) * np.float32(std)
        if "norm" in name and name.endswith("weight"):
            values += 1
        if "gamma" in name:
            values = 0.5 + values
        if name.endswith("qkv.bias") and isinstance(spec, VitSpec) and spec.mask_k_bias:
            values[spec.width : 2 * spec.width] = 0
        tensors[name] = held(values)
    if convnext.STEM in tensors:
        tensors = convnext.with_same_norm(tensors)
    channels = spec.channels
    own = Preprocessing(size, size, "fixed", (0.5,) * channels, (0.25,) * channels)
    return Network(spec, tensors, {}, own, {"from": "a test"})
