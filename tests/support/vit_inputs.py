"""Inputs and parameters that are no random numbers, for networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dinojax.models.vit import Vit, VitSpec


def wave(shape, scale=1.0, phase=0.1):
    """The generator of the recorded vectors: a sine over the row-major flat index."""
    index = np.arange(np.prod(shape), dtype=np.float64)
    return (scale * np.sin(0.37 * index + phase)).reshape(shape).astype(np.float32)


def make(spec: VitSpec):
    """Parameters by the spec's own init; compiling it takes seconds."""
    pixels = jnp.zeros((1, spec.patch_size, spec.patch_size, spec.channels))
    return nn.meta.unbox(Vit(spec).init(jax.random.key(0), [pixels])["params"])


@functools.cache
def init(spec: VitSpec):
    """Random parameters of the right shapes, from numpy: far from any special value."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        center = 1.0 if path[-1].key in ("scale", "scale1", "scale2") else 0.0
        return jnp.asarray(center + 0.1 * rng.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(lambda: make(spec)))


@functools.partial(jax.jit, static_argnames=("spec", "train"))
def run(spec, params, crops, masks=None, draws=None, train=False):
    return Vit(spec).apply({"params": params}, crops, masks, draws, train=train)


def crops(shape_BCHW, scale=1.0, phase=0.1):
    return jnp.asarray(wave(shape_BCHW, scale, phase).transpose(0, 2, 3, 1))
