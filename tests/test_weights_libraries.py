"""transformers, timm and PyTorch agree with us: library -> dinojax -> library.

Skipped, with the reason, where these are not installed; launch/test.sh installs them.
"""

import dataclasses
import json

import numpy as np
import pytest

from dinojax.weights import certificate, libraries
from dinojax.weights.certificate import certify, layer_outputs
from dinojax.weights.export import export, from_source
from dinojax.weights.load import load, open_source
from dinojax.weights.tensors import open_tensors
from tests.networks_small import RELEASED, TRAINED, WIDE, random_network

pytestmark = [
    pytest.mark.slow,
    # Warnings of other people's libraries are not ours to mend.
    pytest.mark.filterwarnings("default"),
]

# Every kind of size in the zoo, shrunk: S (mlp), S+ L+ H+ (gated), 7B (no qkv bias), so400m (an
# odd ratio), a network as this project trains it, and the true width of S at two blocks.
SPECS = {
    "vits": dataclasses.replace(RELEASED, width=384, depth=2, num_heads=6, patch_size=16),
    "vithplus": dataclasses.replace(
        RELEASED, width=80, depth=2, num_heads=5, ffn="swiglu", ffn_ratio=6.0, patch_size=16
    ),
    "vitso400m": dataclasses.replace(
        RELEASED, width=72, depth=2, num_heads=2, ffn_ratio=3.777777778, patch_size=16
    ),
    "vit7b": dataclasses.replace(WIDE, width=64, num_heads=2, depth=2, patch_size=16),
    "trained": dataclasses.replace(TRAINED, patch_size=16),
}
SIZES = [(224, 224), (512, 512), (224, 352)]


def needs(format):
    reason = libraries.missing(format)
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("format", ["hf", "timm", "meta"])
@pytest.mark.parametrize("name", SPECS)
def test_features_agree_at_three_sizes_and_tensors_bit_by_bit(tmp_path, name, format):
    needs(format)
    network = random_network(SPECS[name], seed=len(name))
    export(network, tmp_path / "first", format=format, certify=False)
    backbone = load(tmp_path / "first")
    proof = certify(backbone, tmp_path / "first", format=format, sizes=SIZES)
    assert proof["passed"] and len(proof["rows"]) >= 3 * (2 + backbone.spec.depth)
    assert min(row["min_cosine"] for row in proof["rows"]) > 1 - 1e-6
    again = from_source(open_source(tmp_path / "first"), overrides={})
    export(again, tmp_path / "second", format=format, certify=False)
    first, second = (
        open_tensors(next((tmp_path / part).glob("model.*"))) for part in ("first", "second")
    )
    assert first.keys() == second.keys()
    for tensor in first:
        np.testing.assert_array_equal(first[tensor].read(), second[tensor].read())


@pytest.mark.parametrize("format", ["hf", "timm"])
def test_a_model_saved_by_the_library_itself_loads(tmp_path, format):
    needs(format)
    import torch

    torch.manual_seed(0)
    if format == "hf":
        from transformers import DINOv3ViTConfig, DINOv3ViTModel

        config = DINOv3ViTConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_register_tokens=3, patch_size=16, layerscale_value=0.5,
        )  # fmt: skip
        DINOv3ViTModel(config).save_pretrained(tmp_path)
        backbone = load(tmp_path)
    else:
        import timm
        from safetensors.torch import save_file

        model = timm.create_model("vit_small_patch16_dinov3_qkvb", depth=2, init_values=0.5)
        torch.nn.init.normal_(model.blocks[0].attn.q_bias)
        save_file(model.state_dict(), tmp_path / "model.safetensors")
        args = {"depth": 2, "init_values": 0.5}
        config = {"architecture": "vit_small_patch16_dinov3_qkvb", "model_args": args}
        (tmp_path / "config.json").write_text(json.dumps({**config, "pretrained_cfg": {}}))
        backbone = load(tmp_path)
    assert certify(backbone, tmp_path, format=format, sizes=[(224, 224), (64, 96)])["passed"]


@pytest.mark.parametrize("format", ["hf", "timm", "meta"])
def test_a_swapped_q_and_k_fails_the_certificate(tmp_path, monkeypatch, format):
    needs(format)
    network = random_network(RELEASED)
    export(network, tmp_path / "out", format=format, certify=False)
    backbone = load(tmp_path / "out")
    qkv = backbone.params["blocks"]["attn"]["qkv"]
    swapped = {name: leaf[..., [1, 0, 2], :, :] for name, leaf in qkv.items()}
    attn = {**backbone.params["blocks"]["attn"], "qkv": swapped}
    params = {**backbone.params, "blocks": {**backbone.params["blocks"], "attn": attn}}
    with pytest.raises(ValueError, match="not the same network"):
        certify(dataclasses.replace(backbone, params=params), tmp_path / "out", format=format)


def test_scanned_and_unscanned_blocks_agree(tmp_path):
    export(random_network(RELEASED), tmp_path / "out", format="dinojax", certify=False)
    backbone = load(tmp_path / "out")
    images = np.random.default_rng(0).normal(size=(1, 12, 20, 3)).astype(np.float32)
    scanned = layer_outputs(backbone.spec, backbone.params, images)
    single = backbone.intermediate(images, list(range(RELEASED.depth)), norm=False)
    for own, other in zip(scanned, single, strict=True):
        np.testing.assert_allclose(own, other.prenorm, atol=2e-5)


def test_the_default_sizes_make_a_full_certificate(tmp_path):
    needs("meta")
    proof = export(random_network(RELEASED), tmp_path / "out", format="meta")
    assert proof["tolerance"] == certificate.TOLERANCE
    quantities = {row["quantity"] for row in proof["rows"]}
    assert quantities == {"cls", "registers", "patches", "block 0", "block 1", "block 2"}
