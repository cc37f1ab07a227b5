"""Projection heads: a recorded vector, and what the norms of prototypes mean."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dinojax.models.heads import Head, HeadSpec
from dinojax.weights import meta
from tests.support.vit_inputs import wave

SPEC = HeadSpec(
    inputs=32, num_layers=3, hidden=24, bottleneck=8, prototypes=10, dtype=jnp.dtype(jnp.float32)
)


def make(spec):
    token = jnp.zeros((1, spec.inputs))
    return nn.meta.unbox(Head(spec).init(jax.random.key(0), token)["params"])


def init(spec):
    """Random parameters of the right shapes, from numpy: far from any special value."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: make(spec))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), shapes)


def test_logits_equal_the_recorded_vector():
    names = meta.from_ours(init(SPEC))
    fill = {name: wave(names[name].shape, 0.5, 0.1 * k) for k, name in enumerate(sorted(names))}
    got = Head(SPEC).apply({"params": meta.to_ours(fill)}, jnp.asarray(wave((2, 32))))[0]
    want = [
        0.050968, -0.041640, 0.030942, -0.019226, 0.006879,
        0.005695, -0.018082, 0.029873, -0.040683, 0.050155,
    ]  # fmt: skip
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_the_two_halves_make_the_whole():
    params, x = init(SPEC), jnp.asarray(wave((3, 32)))
    half = Head(SPEC).apply({"params": params}, x, method=Head.bottleneck)
    np.testing.assert_allclose(np.linalg.norm(half, axis=-1), 1.0, rtol=1e-6)
    got = Head(SPEC).apply({"params": params}, half, method=Head.logits)
    np.testing.assert_array_equal(got, Head(SPEC).apply({"params": params}, x))


@pytest.mark.parametrize(
    ("name", "inputs", "hidden", "bottleneck", "prototypes", "count"),
    [
        ("7B, DINO", 4096, 8192, 512, 262_144, 239_092_224),
        ("7B, iBOT", 4096, 4096, 384, 98_304, 72_884_608),
        ("ViT-L", 1024, 2048, 256, 65_536, 23_597_312),
    ],
)
def test_parameter_counts_are_those_of_the_recipes(
    name, inputs, hidden, bottleneck, prototypes, count
):
    spec = HeadSpec(inputs, 3, hidden, bottleneck, prototypes)
    token = jax.ShapeDtypeStruct((1, inputs), jnp.float32)
    abstract = jax.eval_shape(lambda x: Head(spec).init(jax.random.key(0), x), token)
    assert sum(x.size for x in jax.tree.leaves(abstract)) == count


def test_unit_prototypes_make_logits_cosines():
    spec = dataclasses.replace(SPEC, prototype_norm="unit")
    params, x = init(spec), jnp.asarray(wave((3, 32)))
    params["prototypes"]["kernel"] *= 7.0  # the length of a prototype must not matter
    logits = Head(spec).apply({"params": params}, x)
    half = np.asarray(Head(spec).apply({"params": params}, x, method=Head.bottleneck))
    kernel = np.asarray(params["prototypes"]["kernel"])
    want = half @ (kernel / np.linalg.norm(kernel, axis=0))
    np.testing.assert_allclose(logits, want, atol=1e-6)


def test_weight_norm_learns_the_length_of_each_prototype():
    spec = dataclasses.replace(SPEC, prototype_norm="weight_norm")
    params, x = jax.jit(lambda: make(spec))(), jnp.asarray(wave((3, 32)))
    assert np.abs(params["prototypes"]["kernel"]).max() <= 8**-0.5
    np.testing.assert_array_equal(params["prototypes"]["scale"], 1.0)
    before = Head(spec).apply({"params": params}, x)
    params["prototypes"]["scale"] = params["prototypes"]["scale"].at[3].set(5.0)
    after = Head(spec).apply({"params": params}, x)
    np.testing.assert_allclose(after[:, 3], 5.0 * before[:, 3], rtol=1e-5)
    np.testing.assert_array_equal(after[:, :3], before[:, :3])
