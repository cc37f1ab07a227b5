"""Learned positions: the table's resampling against PyTorch, and what the ViT does with it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.models import positions
from dinojax.models.vit import Vit, VitSpec, make_draws
from tests.support.vit_inputs import crops, init, run, wave

SIDE = 4
TABLE = wave((SIDE * SIDE, 2))
LEARNED = VitSpec(
    width=32, depth=2, num_heads=2, num_registers=2, position="learned", position_size=64
)
# (rows, columns, offset) -> the first two positions, the last one, the sum of magnitudes;
# torch 2.13.0 on the CPU.
STORED = {
    (2, 3, 0.1): (
        [0.112886, 0.080925, 0.005854, -0.044115],
        [0.498263, 0.393974],
        2.56945776,
    ),
    (2, 3, 0.0): (
        [0.057021, 0.103457, 0.144062, 0.146127],
        [-0.149780, -0.144240],
        1.18541345,
    ),
    (6, 5, 0.1): (
        [0.052322, 0.481038, 0.597958, 0.918519],
        [-1.103362, -0.935868],
        29.11263958,
    ),
    (6, 5, 0.0): (
        [0.069330, 0.477504, 0.607067, 0.898482],
        [-1.110010, -0.935056],
        27.06779059,
    ),
}


def fit(rows, columns, offset, square=False):
    grid, antialias = (rows, columns), offset == 0.0
    return positions.fit(
        jnp.asarray(TABLE), grid, square=square, offset=offset, antialias=antialias
    )


@pytest.mark.parametrize("case", STORED)
def test_a_table_is_resampled_as_recorded_in_pytorch(case):
    first, last, total = STORED[case]
    got = fit(*case)
    np.testing.assert_allclose(got[:2].ravel(), first, atol=2e-6)
    np.testing.assert_allclose(got[-1], last, atol=2e-6)
    np.testing.assert_allclose(np.abs(got).sum(), total, rtol=2e-6)


@pytest.mark.parametrize("offset", [0.1, 0.0])
@pytest.mark.parametrize("grid", [(1, 1), (2, 8), (4, 4), (7, 7), (3, 9)])
def test_a_table_is_resampled_as_pytorch_does(grid, offset):
    torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
    table = torch.tensor(TABLE).reshape(1, SIDE, SIDE, 2).permute(0, 3, 1, 2)
    options = {"size": grid, "antialias": True}
    if offset:
        options = {"scale_factor": tuple((n + offset) / SIDE for n in grid), "antialias": False}
    want = torch.nn.functional.interpolate(table, mode="bicubic", align_corners=False, **options)
    assert want.shape[2:] == grid
    want = want.permute(0, 2, 3, 1).reshape(-1, 2).numpy()
    np.testing.assert_allclose(fit(*grid, offset), want, atol=1e-5)


def test_only_a_square_image_with_as_many_patches_takes_the_table_as_it_is():
    np.testing.assert_array_equal(fit(4, 4, 0.1, square=True), TABLE)
    assert np.abs(fit(4, 4, 0.1, square=False) - TABLE).max() > 1e-3
    assert np.abs(fit(2, 8, 0.1)[:2] - TABLE[:2]).max() > 1e-3


def test_a_table_that_is_not_square_is_an_error():
    with pytest.raises(ValueError, match="15 learned positions are not a square grid"):
        positions.fit(jnp.asarray(TABLE[:15]), (2, 2), square=True, offset=0.1, antialias=False)


def embedded(params, images, mask=None):
    return Vit(LEARNED).apply(
        {"params": params}, images, mask, method=lambda net, x, m: net._embed(x, m)
    )


def test_cls_and_patches_get_positions_masked_ones_too_and_registers_none():
    params, images = init(LEARNED), crops((2, 3, 64, 64))
    mask = jnp.zeros((2, 16), bool).at[:, [1, 6]].set(True)
    without = params | {"positions": jnp.zeros_like(params["positions"])}
    got, plain = embedded(params, images, mask), embedded(without, images, mask)
    table = params["positions"]
    np.testing.assert_allclose(got[0, 0], params["cls_token"] + table[0], atol=1e-6)
    np.testing.assert_array_equal(got[0, 1:3], params["registers"])
    np.testing.assert_allclose(got[:, 3:] - plain[:, 3:], jnp.stack([table[1:]] * 2), atol=1e-5)
    np.testing.assert_allclose(got[0, 3 + 6], params["mask_token"] + table[1 + 6], atol=1e-6)


def test_without_rope_and_positions_patches_have_no_order():
    """Rotating nothing, blocks treat tokens as a set: a permutation of patches only permutes."""
    params = init(LEARNED)
    params |= {"positions": jnp.zeros_like(params["positions"])}
    images = crops((1, 3, 64, 64))
    swapped = jnp.concatenate([images[:, 32:], images[:, :32]], axis=1)
    got, want = run(LEARNED, params, [swapped])[0], run(LEARNED, params, [images])[0]
    np.testing.assert_allclose(got.cls, want.cls, atol=1e-5)
    np.testing.assert_allclose(got.patches[:, :8], want.patches[:, 8:], atol=1e-5)


def test_rope_changes_are_not_drawn():
    changing = dataclasses.replace(LEARNED.rope, rescale=2.0)
    spec = dataclasses.replace(LEARNED, rope=changing, drop_path=0.5)
    keys = jax.random.split(jax.random.key(0), 2)
    draws = make_draws(keys, keys, spec, num_sequences=4, tag=0)
    assert draws.rope is None and draws.subsets.shape == (2, 2, 2, 2)


def test_the_fused_gate_is_the_first_half():
    plain = VitSpec(width=32, depth=1, num_heads=2, ffn="swiglu")
    fused = dataclasses.replace(plain, ffn="swiglu_fused")
    params, images = init(plain), crops((2, 3, 32, 32))
    mlp = params["blocks"]["mlp"]
    both = {leaf: [mlp[name][leaf] for name in ("w1", "w2")] for leaf in ("kernel", "bias")}
    w12 = {leaf: jnp.stack(pair, axis=-2) for leaf, pair in both.items()}
    other = params | {"blocks": params["blocks"] | {"mlp": {"w12": w12, "w3": mlp["w3"]}}}
    shapes = jax.tree.map(jnp.shape, other)
    assert shapes == jax.tree.map(jnp.shape, init(fused))
    want, got = run(plain, params, [images])[0], run(fused, other, [images])[0]
    np.testing.assert_allclose(got.patches, want.patches, atol=1e-5)
