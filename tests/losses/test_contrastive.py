"""The contrastive loss in blocks against its definition, on one device and on eight."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import contrastive_memory
from dinojax.losses import contrastive
from dinojax.losses.contrastive import contrastive_loss, num_blocks
from dinojax.sharding import mesh

B, E, SCALE = 16, 12, 9.0
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


@pytest.fixture(scope="module")
def expected():
    with jax.enable_x64(True):
        pair = jnp.asarray(unit(0)), jnp.asarray(unit(1)), jnp.asarray(SCALE)
        return jax.value_and_grad(definition, (0, 1, 2))(*pair)


@pytest.mark.parametrize("limit", [2**24, 256], ids=["one block", "many blocks"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_value_and_all_gradients_are_those_of_the_definition(name, limit, expected, monkeypatch):
    monkeypatch.setattr(contrastive, "BLOCK_BYTES", limit)
    layout = LAYOUTS[name]
    place = contextlib.nullcontext()
    if layout is not None:
        place = mesh.use(mesh.make(*layout[:2], **layout[2]))
    with jax.enable_x64(True), place:
        loss = jax.value_and_grad(lambda *args: contrastive_loss(*args)[0], (0, 1, 2))
        value, grads = jax.jit(loss)(jnp.asarray(unit(0)), jnp.asarray(unit(1)), jnp.asarray(SCALE))
    assert float(value) == pytest.approx(float(expected[0]), rel=1e-12)
    for ours, theirs in zip(grads, expected[1], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_a_weighted_loss_has_weighted_gradients():
    """The gradient that comes in from above may differ from 1 / B."""
    with jax.enable_x64(True):
        pair = jnp.asarray(unit(0)), jnp.asarray(unit(1)), jnp.asarray(SCALE)
        ours = jax.grad(lambda *args: 3.0 * contrastive_loss(*args)[0] ** 2)(*pair)
        theirs = jax.grad(lambda *args: 3.0 * definition(*args) ** 2)(*pair)
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_the_share_of_images_that_find_their_text():
    eye = jnp.eye(4)
    assert contrastive_loss(eye, eye, 10.0)[1] == 1.0
    assert contrastive_loss(eye, jnp.roll(eye, 1, axis=0), 10.0)[1] == 0.0
    swapped = eye[jnp.array([1, 0, 2, 3])]
    assert contrastive_loss(eye, swapped, 10.0)[1] == 0.5


def test_blocks_fit_their_limit_and_divide_the_texts():
    # 4,096 texts on each of 8 devices, 2,048 channels: 8 MiB hold 64 texts of each device
    assert num_blocks(4096, 2048, 8) == 64
    assert num_blocks(12, 4, 1, limit=4 * 12 * 12) == 1
    assert num_blocks(7, 4, 1, limit=1) == 7  # a text of each device at least


def test_bfloat16_vectors_are_compared_in_float32():
    pair = jnp.asarray(unit(0), jnp.bfloat16), jnp.asarray(unit(1), jnp.bfloat16)
    value, _ = contrastive_loss(*pair, SCALE)
    assert value.dtype == jnp.float32
    wide = [x.astype(jnp.float32) for x in pair]
    assert float(value) == pytest.approx(float(definition(*wide, SCALE)), rel=1e-5)


@pytest.mark.slow
def test_memory_is_that_of_a_block_not_of_the_matrix():
    """32,768 pairs of 2,048 channels on 8 devices, compiled and not run."""
    assert contrastive_memory.peak("fsdp", 32_768, 2048).share <= 0.15
