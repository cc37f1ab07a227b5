"""Stored weights made whole: values, gradients, and how often anything is sent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.sharding import gather, mesh

NAMES = {"rows": ("width", None, None), "columns": ("mlp", "width"), "scale": (None,)}


def weights():
    rng = np.random.default_rng(0)
    shapes = {"rows": (8, 2, 6), "columns": (12, 8), "scale": (8,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def loss(weights, crops):
    """Every weight is used once for each of two sets of crops."""

    def layer(weights, crops):
        def once(x):
            y = jnp.tanh(jnp.einsum("bd,dij->bij", x, weights["rows"]).reshape(len(x), -1))
            return (y @ weights["columns"]) * weights["scale"][None]

        return [once(x) for x in crops]

    return sum(jnp.sum(x**2) for x in gather.with_weights(layer, weights, NAMES, crops))


@pytest.mark.parametrize("strategy", ["dp", "fsdp", "hsdp", "fsdp_tp"])
def test_a_weight_used_twice_is_gathered_once_and_its_gradient_scattered_once(strategy):
    rng = np.random.default_rng(1)
    crops = [rng.normal(size=(size, 8)).astype(np.float32) for size in (16, 32)]
    want = jax.grad(loss)(weights(), crops)
    layout = mesh.make(strategy)
    with mesh.use(layout):
        stored = {
            name: jax.device_put(x, layout.sharding(*NAMES[name])) for name, x in weights().items()
        }
        traced = jax.jit(jax.grad(loss)).trace(stored, crops)
        got = traced.lower().compile()(stored, crops)
        text = traced.lower().as_text()
    sharded = 0 if strategy == "dp" else 2
    assert text.count("stablehlo.all_gather") == text.count("stablehlo.reduce_scatter") == sharded
    for name, grad in got.items():
        assert grad.sharding.is_equivalent_to(stored[name].sharding, grad.ndim)
        np.testing.assert_allclose(grad, want[name], rtol=1e-5, atol=1e-5)
