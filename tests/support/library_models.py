"""Models of transformers and timm with random weights, saved as these libraries save them.

Every parameter is drawn for itself, so that no two layers are alike.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from dinojax.weights import libraries


def needs(format: str) -> None:
    """Skip where a library is missing, with the reason; fail where it was promised."""
    reason = libraries.missing(format)
    if reason is None:
        import torch

        torch.set_num_threads(1)  # one test per core runs at a time
        return
    if os.environ.get("DINOJAX_TEST_TORCH") == "1":
        pytest.fail(f"DINOJAX_TEST_TORCH=1, but {reason}")
    pytest.skip(reason)


VIT = {"num_register_tokens": 4, "layer_norm_eps": 1e-5, "key_bias": False}
GATED = {**VIT, "use_gated_mlp": True, "hidden_act": "silu"}


def _vit(width: int, heads: int, hidden: int, depth: int = 2) -> dict:
    return {
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": hidden,
        "num_hidden_layers": depth,
    }


def _dinov2(width: int, heads: int, depth: int = 2, **more) -> dict:
    sizes = {"hidden_size": width, "num_attention_heads": heads, "num_hidden_layers": depth}
    return {**sizes, "patch_size": 14, "image_size": 224, **more}


# name -> class of transformers and what its config changes. ViT-S and ConvNeXt-T are whole; S+, B
# and DINOv2-S have fewer blocks of their true width; of the others the width is smaller too.
HF = {
    "vits": ("DINOv3ViT", {**VIT, **_vit(384, 6, 1536, depth=12)}),
    "vitsplus": ("DINOv3ViT", {**GATED, **_vit(384, 6, 1536, depth=3)}),
    "vitb": ("DINOv3ViT", {**VIT, **_vit(768, 12, 3072)}),
    "vitl": ("DINOv3ViT", {**VIT, **_vit(64, 1, 256, depth=24)}),
    "vitlplus": ("DINOv3ViT", {**GATED, **_vit(64, 2, 256)}),
    "vitso400m": ("DINOv3ViT", {**VIT, **_vit(72, 2, 272)}),
    "vithplus": ("DINOv3ViT", {**GATED, **_vit(80, 5, 320)}),
    "vit7b": (
        "DINOv3ViT",
        {**GATED, **_vit(128, 1, 256, depth=3), "query_bias": False, "value_bias": False},
    ),
    "live k bias": ("DINOv3ViT", {**VIT, **_vit(48, 3, 192), "key_bias": True}),
    "dinov2_vits": ("Dinov2", _dinov2(384, 6, depth=3)),
    "dinov2_vitl": ("Dinov2", _dinov2(64, 1, depth=24)),
    "dinov2_vitg": ("Dinov2", _dinov2(96, 3, use_swiglu_ffn=True)),
    "dinov2_vitb_reg": ("Dinov2WithRegisters", _dinov2(48, 3)),
    "dinov2_vitg_reg": ("Dinov2WithRegisters", _dinov2(48, 3, use_swiglu_ffn=True)),
    "convnext_tiny": ("DINOv3ConvNext", {}),
    "convnext_base": ("DINOv3ConvNext", {"hidden_sizes": [16, 24, 32, 48], "depths": [3, 3, 5, 3]}),
}
# name -> function of timm and its arguments
SMALL = {"embed_dim": 48, "depth": 3, "num_heads": 3}
TIMM = {
    "vits": ("vit_small_patch16_dinov3_qkvb", {"depth": 3}),
    "vitl": ("vit_large_patch16_dinov3", SMALL),
    "vithplus": ("vit_huge_plus_patch16_dinov3_qkvb", {**SMALL, "depth": 2}),
    "vit7b": ("vit_7b_patch16_dinov3", {**SMALL, "num_heads": 1}),
    "dinov2_vits": ("vit_small_patch14_dinov2", {"depth": 2, "img_size": 224}),
    "dinov2_vits_reg": ("vit_small_patch14_reg4_dinov2", {"depth": 3, "img_size": 224}),
    "dinov2_vitg": ("vit_giant_patch14_dinov2", {**SMALL, "img_size": 224}),
    "dinov2_vitg_reg": ("vit_giant_patch14_reg4_dinov2", {**SMALL, "img_size": 224}),
    "convnext_small": ("convnext_small", {"dims": [16, 24, 32, 48], "depths": [2, 1, 3, 2]}),
}


def save(format: str, name: str, folder: Path) -> Path:
    """A model of HF or TIMM in a new folder, saved by its library."""
    import torch

    table = {"hf": HF, "timm": TIMM}[format]
    seed = sum(map(ord, format + name))
    model = {"hf": _transformers, "timm": _timm}[format](*table[name])
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(_random(key, parameter.shape, draw))
    if format == "hf":
        model.save_pretrained(folder)
    else:
        from timm.models import save_for_hf

        save_for_hf(model, str(folder), safe_serialization=True)
    return folder


def _random(name: str, shape, draw):
    import torch

    values = torch.randn(shape, generator=draw)
    if len(shape) > 1 and name.endswith("weight"):
        return values * float(np.prod(shape[1:])) ** -0.5
    offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
    offset = 0.5 if "gamma" in name or "lambda" in name else offset
    return offset + 0.1 * values


def _transformers(kind: str, changes: dict):
    import transformers

    config = getattr(transformers, f"{kind}Config")(**changes)
    return getattr(transformers, f"{kind}Model")(config)


def _timm(function: str, changes: dict):
    import timm

    dynamic = {} if function.startswith("convnext") else {"dynamic_img_size": True}
    return timm.create_model(function, num_classes=0, **dynamic, **changes)
