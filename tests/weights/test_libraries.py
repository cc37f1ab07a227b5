"""transformers, timm and PyTorch agree with us: library -> dinojax -> library.

Skipped, with the reason, where these are not installed; `DINOJAX_TEST_TORCH=1 bash launch/test.sh`
installs them and lets nothing be skipped.
"""

import dataclasses

import jax
import numpy as np
import pytest

from dinojax.weights import certificate
from dinojax.weights.certificate import certify, layer_outputs
from dinojax.weights.export import export, from_source
from dinojax.weights.load import load, open_source
from dinojax.weights.tensors import open_tensors
from tests.support import library_models
from tests.support.library_models import needs
from tests.support.networks_small import (
    CONVNEXT,
    DINOV2,
    DINOV2_GATED,
    DINOV2_REGISTERS,
    RELEASED,
    SMOOTH,
    TRAINED,
    WIDE,
    random_network,
)

pytestmark = [
    pytest.mark.slow,
    # Warnings of other people's libraries are not ours to mend.
    pytest.mark.filterwarnings("default"),
]

SAVED = [("hf", name) for name in library_models.HF] + [
    ("timm", name) for name in library_models.TIMM
]
# Training size, larger, and a rectangle, in whole patches of 16 and of DINOv2's 14 pixels; the
# table of positions is for 224, so that it is used as it is, stretched, and shrunk in one axis.
SIZES = {14: [(224, 224), (518, 518), (112, 280)]}
USUAL = [(224, 224), (512, 512), (224, 352)]


@pytest.mark.parametrize("format, name", SAVED)
def test_a_model_of_a_library_is_the_same_here_and_comes_back_bit_by_bit(tmp_path, format, name):
    needs(format)
    saved = library_models.save(format, name, tmp_path / "saved")
    backbone = load(saved)
    assert backbone.report.share == 1.0
    sizes = SIZES.get(backbone.spec.patch_size, USUAL)
    if backbone.spec.patch_size == 32 and backbone.spec.width < 100:
        sizes = [(64, 64), (128, 128), (64, 96)]  # convolutions of few channels are slow on CPUs
    proof = certify(backbone, saved, format=format, sizes=sizes)
    assert proof["passed"] and len(proof["rows"]) >= 3 * (2 + backbone.spec.depth)
    assert min(row["min_cosine"] for row in proof["rows"]) > 1 - 1e-6

    network = from_source(open_source(saved), overrides={})
    export(network, tmp_path / "again", format=format, certify=False)
    first, second = (
        open_tensors(tmp_path / folder / "model.safetensors") for folder in ("saved", "again")
    )
    assert first.keys() == second.keys()
    for tensor in first:
        np.testing.assert_array_equal(first[tensor].read(), second[tensor].read(), strict=True)
    # What we wrote is the same network in the library too.
    certify(backbone, tmp_path / "again", format=format, sizes=sizes[:1])


# What no library saves by itself, and all that goes to a module with the reference's names.
OWN = {
    "released": (RELEASED, ("meta", "timm")),
    "trained": (TRAINED, ("meta", "hf", "timm")),
    "7b": (WIDE, ("meta", "hf", "timm")),
    "other norms": (dataclasses.replace(RELEASED, norm="rmsnorm", untie_cls_norm=True), ("meta",)),
    "dinov2": (DINOV2, ("meta",)),
    "dinov2 smooth": (SMOOTH, ("meta", "timm")),
    "dinov2 gated": (DINOV2_GATED, ("meta",)),
    "dinov2 registers": (DINOV2_REGISTERS, ("meta", "hf", "timm")),
    "convnext": (CONVNEXT, ("meta", "hf", "timm")),
}


@pytest.mark.parametrize("name", OWN)
def test_a_network_of_ours_is_the_same_in_every_library_that_holds_it(tmp_path, name):
    spec, formats = OWN[name]
    network = random_network(spec, seed=len(name), size=64 if spec is CONVNEXT else 16)
    for format in formats:
        needs(format)
        proof = export(network, tmp_path / format, format=format)
        assert proof["tolerance"] == certificate.TOLERANCE and proof["passed"]
        quantities = {row["quantity"] for row in proof["rows"]}
        kind = "stage" if spec is CONVNEXT else "block"
        registers = {"registers"} if spec.num_registers else set()
        layers = {f"{kind} {number}" for number in range(spec.depth)}
        assert quantities == {"cls", "patches", *registers, *layers}
        assert {tuple(row["input"]) for row in proof["rows"]} == {
            tuple(size) for size in certificate.input_sizes(load(tmp_path / format))
        }


@pytest.mark.parametrize("format", ["hf", "timm", "meta"])
def test_a_swapped_q_and_k_fails_the_certificate(tmp_path, format):
    needs(format)
    network = random_network(RELEASED)
    export(network, tmp_path / "out", format=format, certify=False)
    backbone = load(tmp_path / "out")
    qkv = backbone.params["blocks"]["attn"]["qkv"]
    swapped = {name: leaf[..., [1, 0, 2], :, :] for name, leaf in qkv.items()}
    attn = {**backbone.params["blocks"]["attn"], "qkv": swapped}
    params = {**backbone.params, "blocks": {**backbone.params["blocks"], "attn": attn}}
    with pytest.raises(ValueError, match="not the same network"):
        certify(
            dataclasses.replace(backbone, params=params),
            tmp_path / "out",
            format=format,
            sizes=[(16, 16)],
        )


@pytest.mark.parametrize(
    "spec", [RELEASED, DINOV2_REGISTERS, CONVNEXT], ids=["dinov3", "dinov2", "convnext"]
)
def test_scanned_and_unscanned_blocks_agree(tmp_path, spec):
    """Blocks one after another in Python, which no scan has stacked, give the same outputs."""
    size = (64, 96) if spec is CONVNEXT else (56, 88)
    export(random_network(spec), tmp_path / "out", format="dinojax", certify=False)
    backbone = load(tmp_path / "out")
    images = np.random.default_rng(0).normal(size=(1, *size, 3)).astype(np.float32)
    scanned = layer_outputs(backbone.spec, backbone.params, images)
    with jax.disable_jit():  # lax.scan is then a loop
        single = backbone.intermediate(images, list(range(spec.depth)), norm=False)
    for own, other in zip(scanned, single, strict=True):
        np.testing.assert_allclose(own, other.prenorm, atol=2e-5)
