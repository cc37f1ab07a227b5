"""The zoo: names to sizes, and what a config may change about them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from configs import base
from dinojax.models import zoo
from dinojax.models.vit import Vit

# Parameters of the released backbones with 4 registers, patch 16 (DINOv3 paper and model cards);
# the stored ones, whose key bias is a parameter too.
PARAMETERS = {"vits": 21.6e6, "vitb": 86e6, "vitl": 0.30e9, "vithplus": 0.84e9, "vit7b": 6.7e9}


def spec(**changes):
    c = base.get_config()
    c.model.update(**changes)
    return zoo.vit_spec(c.model, c.rope, channels=3, attention="plain", dtype=jnp.dtype("float32"))


@pytest.mark.parametrize("name", PARAMETERS)
def test_sizes_are_the_published_ones(name):
    vit = spec(name=name, num_registers=4)
    pixels = jnp.zeros((1, 16, 16, 3))
    params = jax.eval_shape(lambda: nn.meta.unbox(Vit(vit).init(jax.random.key(0), [pixels])))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    np.testing.assert_allclose(count, PARAMETERS[name], rtol=0.02)


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
