"""Blocks in a row: no choice of what is kept, or written out, changes a result."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.models.remat import REMAT, over_blocks
from dinojax.sharding import mesh
from dinojax.train.networks import SHALLOW, _unroll


def through(remat, unroll, x_BD, weights_LDD):
    def body(x_BD, weight_DD):
        return x_BD + jnp.sin(x_BD @ weight_DD), None

    return jnp.sum(jnp.square(over_blocks(body, x_BD, weights_LDD, remat=remat, unroll=unroll)))


def numbers():
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, 3)), rng.normal(size=(4, 3, 3))


@pytest.mark.parametrize("remat", REMAT)
@pytest.mark.parametrize("unroll", [3, 4, 9])  # with a rest, all, more than there are
def test_neither_what_is_kept_nor_written_out_changes_a_gradient(remat, unroll):
    with jax.enable_x64(True):
        args = [jnp.asarray(x) for x in numbers()]

        def gradient(*choice):
            found = jax.jit(jax.value_and_grad(lambda *x: through(*choice, *x), argnums=(0, 1)))
            return found(*args)

        got, want = gradient(remat, unroll), gradient("none", 1)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), got, want)


@pytest.mark.parametrize("unroll,loops", [(1, True), (4, False)])
def test_blocks_that_are_all_written_out_have_no_loop(unroll, loops):
    args = [jnp.asarray(x, jnp.float32) for x in numbers()]
    lowered = jax.jit(jax.grad(lambda *x: through("none", unroll, *x), argnums=1)).lower(*args)
    assert ("stablehlo.while" in lowered.as_text()) == loops


def layout(platform, is_whole=True):
    devices = np.array([SimpleNamespace(platform=platform)])
    place = SimpleNamespace(is_fully_replicated=is_whole)
    return SimpleNamespace(mesh=SimpleNamespace(devices=devices), sharding=lambda name: place)


def test_shallow_networks_with_whole_weights_are_written_out_on_gpus():
    assert _unroll(SHALLOW, layout("gpu")) == _unroll(SHALLOW, layout("cuda")) == SHALLOW
    assert _unroll(SHALLOW + 1, layout("gpu")) == 1
    assert _unroll(SHALLOW, layout("gpu", is_whole=False)) == 1
    assert _unroll(SHALLOW, layout("cpu")) == _unroll(SHALLOW, layout("tpu")) == 1
    assert _unroll(SHALLOW, None) == 1


def test_weights_are_whole_on_one_device_by_any_strategy():
    """As the recipes have it, which name fsdp."""
    assert mesh.make("fsdp", 1).sharding("width").is_fully_replicated
    assert not mesh.make("fsdp", 2).sharding("width").is_fully_replicated
