"""The zoo: names to sizes, and what a config may change about them."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from dinojax.configs import base
from dinojax.models import zoo

# Parameters of the DINOv3 backbones with 4 registers, patch 16, as counted in the reference; those
# stored, so that a masked bias of k is counted too.
PARAMETERS = {
    "vits": 21_601_152,
    "vitsplus": 28_697_472,
    "vitb": 85_669_632,
    "vitl": 303_154_176,
    "vitlplus": 403_915_776,
    "vitso400m": 415_411_200,
    "vith2": 630_754_560,
    "vithplus": 840_633_600,
    "vitg2": 1_134_577_152,
    "vit7b": 6_716_035_072,
}
# Of the DINOv2 ones without registers, patch 14, a table for 518 pixels.
DINOV2 = {
    "dinov2_vits": 22_056_576,
    "dinov2_vitb": 86_580_480,
    "dinov2_vitl": 304_368_640,
    "dinov2_vitg": 1_136_480_768,
}
CONVNEXTS = {
    "convnext_tiny": 27_820_128,
    "convnext_small": 49_454_688,
    "convnext_base": 87_566_464,
    "convnext_large": 196_230_336,
}


def count(net) -> int:
    """Parameters of a network, of which none is allocated."""
    pixels = jnp.zeros((1, net.patch_size, net.patch_size, 3))
    params = jax.eval_shape(
        lambda: nn.meta.unbox(zoo.module(net).init(jax.random.key(0), [pixels])["params"])
    )
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def spec(**changes):
    c = base.get_config()
    c.model.update(**changes)
    return zoo.vit_spec(c.model, c.rope, channels=3, attention="plain", dtype=jnp.dtype("float32"))


@pytest.mark.parametrize("name", PARAMETERS)
def test_sizes_of_dinov3_are_the_reference_s(name):
    assert count(spec(name=name, num_registers=4)) == PARAMETERS[name]


@pytest.mark.parametrize("name", DINOV2)
def test_sizes_of_dinov2_are_the_reference_s(name):
    sizes = {"patch_size": 14, "position_size": 518, "layer_scale": 1.0}
    assert count(spec(name=name, **sizes)) == DINOV2[name]
    width = zoo.VITS[name]["width"]
    assert count(spec(name=name, num_registers=4, **sizes)) == DINOV2[name] + 4 * width


@pytest.mark.parametrize("name", CONVNEXTS)
def test_sizes_of_convnext_are_the_reference_s(name):
    model = base.get_config().model
    model.update(name=name, patch_size=32)
    assert (
        count(zoo.convnext_spec(model, channels=3, dtype=jnp.dtype("float32"))) == CONVNEXTS[name]
    )


def test_every_name_is_counted():
    assert {*PARAMETERS, *DINOV2, *CONVNEXTS} == {*zoo.VITS, *zoo.CONVNEXTS}


def test_the_7b_with_a_norm_for_local_crops_is_counted_too():
    assert count(spec(name="vit7b", num_registers=4, untie_local_cls_norm=True)) == 6_716_043_264


@pytest.mark.parametrize("name", zoo.VITS)
def test_every_row_is_a_spec_whose_heads_divide(name):
    vit = spec(name=name)
    row = zoo.VITS[name]
    assert (vit.width, vit.depth, vit.num_heads) == (row["width"], row["depth"], row["num_heads"])
    assert vit.head_width * vit.num_heads == vit.width
    assert vit.qkv_bias == (name != "vit7b")


def test_a_key_that_is_set_replaces_the_row_s():
    vit = spec(name="vitl", width=96, num_heads=3, depth=2, ffn="swiglu64", qkv_bias=False)
    assert (vit.width, vit.num_heads, vit.depth) == (96, 3, 2)
    assert (vit.ffn, vit.qkv_bias, vit.ffn_ratio) == ("swiglu64", False, 4.0)


def test_unknown_names_and_odd_heads_are_refused():
    with pytest.raises(ValueError, match="model.name='vitx' is not in the zoo; choose from"):
        spec(name="vitx")
    with pytest.raises(ValueError, match="model.width=100 is not a multiple of model.num_heads=6"):
        spec(name="vits", width=100)


def test_a_head_takes_its_section_and_the_width_of_the_tokens():
    head = zoo.head_spec(base.get_config().dino_head, inputs=384, dtype=jnp.dtype("bfloat16"))
    assert (head.inputs, head.hidden, head.bottleneck, head.prototypes) == (384, 2048, 256, 65_536)
    assert (head.num_layers, head.bias, head.prototype_norm) == (3, True, "none")
