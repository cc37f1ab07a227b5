"""Losses of pairs in blocks against their definitions, on one device and on eight."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import contrastive_memory
from dinojax.losses import pair_blocks
from dinojax.losses.contrastive import contrastive_loss
from dinojax.losses.pair_blocks import num_blocks
from dinojax.losses.sigmoid import sigmoid_loss
from dinojax.sharding import mesh

B, E, SCALE, BIAS = 16, 12, 9.0, -3.0
LAYOUTS = {
    "one": None,
    "dp": ("dp", 8, {}),
    "fsdp": ("fsdp", 4, {}),
    "hsdp": ("hsdp", 8, {}),
    "tensor": ("fsdp_tp", 8, {"replicas": 2, "tensor": 2}),
}


def unit(seed):
    x = np.random.default_rng(seed).normal(size=(B, E))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def definition(images_BE, texts_BE, scale):
    """Mean of both cross-entropies, as CLIP states it."""
    logits_BB = scale * images_BE @ texts_BE.T
    own = jnp.arange(len(images_BE))
    to_text = jax.nn.log_softmax(logits_BB, axis=1)[own, own]
    to_image = jax.nn.log_softmax(logits_BB, axis=0)[own, own]
    return -jnp.mean(to_text + to_image) / 2


def sigmoid_definition(images_BE, texts_BE, scale, bias):
    """Every pair of the matrix by itself, as SigLIP states it."""
    logits_BB = scale * images_BE @ texts_BE.T + bias
    signs_BB = 2 * jnp.eye(len(images_BE)) - 1
    return jnp.sum(jnp.log1p(jnp.exp(-signs_BB * logits_BB))) / len(images_BE)


# Loss -> what it computes, its definition, the scalars that it takes beside features.
LOSSES = {
    "contrastive": (contrastive_loss, definition, (SCALE,)),
    "sigmoid": (sigmoid_loss, sigmoid_definition, (SCALE, BIAS)),
}


def given(scalars):
    """Arguments of a loss, float64."""
    return [jnp.asarray(x) for x in (unit(0), unit(1), *scalars)]


@functools.cache
def expected(loss):
    _, meant, scalars = LOSSES[loss]
    with jax.enable_x64(True):
        return jax.value_and_grad(meant, range(2 + len(scalars)))(*given(scalars))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("limit", [2**24, 256], ids=["one block", "many blocks"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_value_and_all_gradients_are_those_of_the_definition(name, limit, loss, monkeypatch):
    monkeypatch.setattr(pair_blocks, "BLOCK_BYTES", limit)
    known, known_grads = expected(loss)
    function, _, scalars = LOSSES[loss]
    layout = LAYOUTS[name]
    place = contextlib.nullcontext()
    if layout is not None:
        place = mesh.use(mesh.make(*layout[:2], **layout[2]))
    with jax.enable_x64(True), place:
        whole = jax.value_and_grad(lambda *args: function(*args)[0], range(2 + len(scalars)))
        value, grads = jax.jit(whole)(*given(scalars))
    assert float(value) == pytest.approx(float(known), rel=1e-12)
    for ours, theirs in zip(grads, known_grads, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_pairs_that_are_told_apart_surely_cost_nothing_and_others_what_they_must():
    """Logits far from 0, where a difference of large numbers would be left of small ones."""
    eye = jnp.eye(4)
    assert 0.0 < float(sigmoid_loss(eye, eye, 160.0, -80.0)[0]) < 1e-33
    wrong = float(sigmoid_loss(eye, jnp.roll(eye, 1, axis=0), 160.0, -80.0)[0])
    assert wrong == pytest.approx(160.0)  # of each image its own pair and one other, 80 each


@pytest.mark.parametrize("loss", LOSSES)
def test_a_weighted_loss_has_weighted_gradients(loss):
    """The gradient that comes in from above may differ from 1 / B."""
    function, meant, scalars = LOSSES[loss]
    with jax.enable_x64(True):
        pair = given(scalars)
        ours = jax.grad(lambda *args: 3.0 * function(*args)[0] ** 2)(*pair)
        theirs = jax.grad(lambda *args: 3.0 * meant(*args) ** 2)(*pair)
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_share_of_images_that_find_their_text(loss):
    eye, (function, _, scalars) = jnp.eye(4), LOSSES[loss]
    assert function(eye, eye, *scalars)[1] == 1.0
    assert function(eye, jnp.roll(eye, 1, axis=0), *scalars)[1] == 0.0
    swapped = eye[jnp.array([1, 0, 2, 3])]
    assert function(eye, swapped, *scalars)[1] == 0.5


def test_blocks_fit_their_limit_and_divide_the_texts():
    # 4,096 texts on each of 8 devices, 2,048 channels: 8 MiB hold 64 texts of each device
    assert num_blocks(4096, 2048, 8) == 64
    assert num_blocks(12, 4, 1, limit=4 * 12 * 12) == 1
    assert num_blocks(7, 4, 1, limit=1) == 7  # a text of each device at least


@pytest.mark.parametrize("loss", LOSSES)
def test_bfloat16_vectors_are_compared_in_float32(loss):
    function, meant, scalars = LOSSES[loss]
    pair = jnp.asarray(unit(0), jnp.bfloat16), jnp.asarray(unit(1), jnp.bfloat16)
    value, _ = function(*pair, *scalars)
    assert value.dtype == jnp.float32
    wide = [x.astype(jnp.float32) for x in pair]
    assert float(value) == pytest.approx(float(meant(*wide, *scalars)), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_memory_is_that_of_a_block_not_of_the_matrix(loss):
    """32,768 pairs of 2,048 channels on 8 devices, compiled and not run."""
    assert contrastive_memory.peak(loss, "fsdp", 32_768, 2048).share <= 0.15
