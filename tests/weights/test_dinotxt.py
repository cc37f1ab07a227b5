"""Released names of dino.txt: what loads, what is refused, and the way back."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import linen as nn

from dinojax.models.text_networks import TextNetworks, init_params
from dinojax.models.text_tower import TextHead, TextSpec, TextTower
from dinojax.models.vision_head import VisionHead, VisionHeadSpec
from dinojax.models.vit import Vit, VitSpec
from dinojax.weights import dinotxt as released
from dinojax.weights.tensors import held

VISION = VisionHeadSpec(width=64, depth=2, num_heads=1)
TEXT = TextSpec(vocabulary=20, context=6, width=64, depth=3, num_heads=1, outputs=128)


@pytest.fixture(scope="module")
def params():
    backbone = Vit(VitSpec(width=64, depth=1, num_heads=1, patch_size=4))
    sides = VisionHead(VISION), TextTower(TEXT), TextHead(TEXT)
    made = init_params(TextNetworks(backbone, *sides), jax.random.key(0), 10.0)
    rng = np.random.default_rng(0)  # every value its own, so that no two can be exchanged
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), nn.meta.unbox(made))


@pytest.fixture(scope="module")
def tensors(params):
    return {name: held(array) for name, array in released.from_ours(params).items()}


def trained(tensors):
    return {n: t for n, t in tensors.items() if not n.startswith(released.BACKBONE)}


def test_the_released_sizes_have_every_tensor_and_element():
    vision = VisionHeadSpec(width=1024, depth=2, num_heads=16)
    text = TextSpec(49_408, 77, width=1280, depth=24, num_heads=20, outputs=2048)
    found = released.expected(vision, text)
    assert len(found) == 302
    assert sum(int(np.prod(t.shape)) for t in found.values()) == 563_457_537
    assert found["visual_model.head.blocks.1.mlp.w1.weight"].shape == (2752, 1024)
    assert found["text_model.backbone.blocks.23.feed_forward.fc1.weight"].shape == (5120, 1280)
    assert found["text_model.head.linear_projection.weight"].shape == (2048, 1280)
    assert found["logit_scale"].shape == (1,)
    shapes = {name: tensor.shape for name, tensor in found.items()}
    own = released.specs_of(shapes)
    assert own == (vision, text)


def test_weights_come_back_as_they_went(params, tensors):
    specs = released.specs_of({n: t.shape for n, t in trained(tensors).items()})
    again, report = released.read(trained(tensors), *specs, source="file")
    again["backbone"] = released.backbone_of(
        {n: t.read() for n, t in tensors.items()}, VitSpec(width=64, depth=1, num_heads=1)
    )
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert report.matched == len(trained(tensors)) and report.share == 1.0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop("text_model.backbone.blocks.1.attention.qkv.weight"), "1 missing"),
        (lambda t: t.update({"text_model.backbone.blocks.1.extra": t["logit_scale"]}), "1 unexpe"),
        (lambda t: t.update(logit_scale=held(np.zeros(2, np.float32))), "another shape"),
        (lambda t: t.update(logit_scale=held(np.full(1, np.nan, np.float32))), "NaN"),
    ],
)
def test_every_tensor_is_counted(tensors, change, told):
    changed = trained(tensors)
    change(changed)
    with pytest.raises(ValueError, match=told):
        released.read(changed, VISION, TEXT, source="file")


def test_other_weights_are_told_from_these(tensors):
    assert released.is_released(tensors)
    assert not released.is_released(["blocks.0.norm1.weight", "patch_embed.proj.weight"])
    with pytest.raises(ValueError, match=r"visual_model.head.ln_final.weight is missing"):
        released.specs_of({"blocks.0.norm1.weight": (4,)})


def test_head_blocks_and_projections_are_told_from_shapes():
    vision = dataclasses.replace(VISION, outputs=24)
    text = dataclasses.replace(TEXT, outputs=48, head_depth=1, layer_scale=1.0)
    shapes = {n: t.shape for n, t in released.expected(vision, text).items()}
    assert released.specs_of(shapes) == (vision, text)
