"""precision.reduce: sums over devices of gradients in bfloat16 compute."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax import config as configs
from dinojax.losses import blockwise
from dinojax.models.convnext import ConvNextSpec
from dinojax.models.heads import Head, HeadSpec
from dinojax.models.vit import VitSpec
from dinojax.models.zoo import module
from dinojax.sharding import mesh
from tests.support import small

HALF, FULL = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)
VIT = VitSpec(width=16, depth=2, num_heads=2, patch_size=4, num_registers=1, ffn="swiglu")
CONVNEXT = ConvNextSpec((1, 1, 1, 1), (8, 16, 32, 64), drop_path=0.0)
SIDES = {VIT: 8, CONVNEXT: 64}
NUM_IMAGES = 16
# Every rounding to bfloat16 is done, or activations would depend on what the compiler fuses.
EXACT = {"xla_allow_excess_precision": False}


def gradients(spec, reduce, layout, dtype=HALF):
    """Of a backbone and a head, computed in dtype, on the devices of a layout."""
    own = {"dtype": dtype, "reduce": reduce}
    net = module(dataclasses.replace(spec, **own))
    sizes = {"num_layers": 2, "hidden": 16, "bottleneck": 8, "prototypes": 32}
    head = Head(HeadSpec(spec.width, **sizes, **own))
    rng = np.random.default_rng(0)
    side = SIDES[spec]
    images = rng.normal(size=(NUM_IMAGES, side, side, 3)).astype(np.float32)
    rows, kernel = (rng.normal(size=s).astype(HALF) for s in ((NUM_IMAGES, 1, 8), (8, 32)))

    def loss(params, images, rows, kernel):
        found = net.apply({"params": params["net"]}, [images])[0]
        run = lambda *x, method: head.apply({"params": params["head"]}, *x, method=method)  # noqa: E731
        made = run(found.cls[:, None], method=Head.bottleneck), run(method=Head.kernel)
        targets = blockwise.softmax_factors(rows, kernel, 0.5, center_K=jnp.zeros(32))
        patches = jnp.mean(found.patches.astype(jnp.float32) ** 2)
        return jnp.mean(blockwise.cross_entropy(*made, targets, 0.1)[0]) + patches

    def init(key):
        tokens = jnp.zeros((8, spec.width), HALF)
        start = net.init(key, [jnp.zeros((8, side, side, 3))]), head.init(key, tokens)
        return {name: made["params"] for name, made in zip(("net", "head"), start, strict=True)}

    with mesh.off():
        boxes = jax.eval_shape(init, jax.random.key(0))
    is_box = lambda x: hasattr(x, "names")  # noqa: E731
    places = jax.tree.map(lambda box: layout.sharding(*box.names), boxes, is_leaf=is_box)
    params = jax.tree.map(fill(rng), nn.meta.unbox(boxes))
    with mesh.use(layout):
        params = jax.device_put(params, places)
        given = jax.device_put((images, rows), layout.sharding("image"))
        kernel = jax.device_put(kernel, layout.sharding(None, "prototype"))
        lowered = jax.jit(jax.grad(loss)).lower(params, *given, kernel)
        return jax.device_get(lowered.compile(EXACT)(params, *given, kernel))


def fill(rng):
    return lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32)


def largest_error(found, want):
    """Of all parameters, relative to the length of the gradient; the mask token has none here."""

    def error(a, b):
        return np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)

    return max(jax.tree.leaves(jax.tree.map(error, found, want)))


@pytest.fixture(scope="module")
def one():
    return gradients(VIT, FULL, mesh.make("dp", 1))


@pytest.mark.parametrize("strategy", ["dp", "fsdp", "hsdp", "fsdp_tp"])
def test_eight_devices_sum_gradients_in_float32_as_one_does(strategy, one):
    assert largest_error(gradients(VIT, FULL, mesh.make(strategy)), one) < 1e-5


@pytest.mark.parametrize("strategy", ["dp", "fsdp"])
def test_the_dtype_of_the_sum_is_what_makes_them_equal(strategy, one):
    assert 1e-4 < largest_error(gradients(VIT, HALF, mesh.make(strategy)), one) < 0.03


@pytest.mark.slow
def test_gradients_of_a_convnext_on_eight_devices_are_as_near_to_float32_as_on_one():
    """Its convolutions round differently by the number of images, so bits cannot be compared."""
    want = gradients(CONVNEXT, FULL, mesh.make("dp", 1), dtype=FULL)
    one, eight = (gradients(CONVNEXT, FULL, mesh.make("dp", number)) for number in (1, 8))
    assert largest_error(eight, want) < 1.2 * largest_error(one, want) < 0.2


def test_a_float32_gradient_is_not_rounded_on_its_way():
    with pytest.raises(configs.ConfigError, match="precision.reduce=float32, or bfloat16 for both"):
        small.config("precision.compute=float32", "precision.reduce=bfloat16")
