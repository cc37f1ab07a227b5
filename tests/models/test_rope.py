"""Rotary position embedding against recorded vectors and its own definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.models import rope
from dinojax.models.rope import RopeSpec

SPEC = RopeSpec()


def table(spec, rows, columns, head_width=16):
    coords = rope.coordinates(rows, columns, spec)
    return rope.table(coords, rope.periods(head_width, spec), spec)


@pytest.mark.parametrize(
    ("coords", "patch", "want"),
    [
        (
            "separate",
            0,
            [0, -0.837919, -0.309017, -0.099183, 0.866025, -0.969849, -0.406737, -0.132074],
        ),
        ("max", 0, [0.866025, -0.969849, -0.406737, -0.132074] * 2),
        ("min", 0, [0, -0.837919, -0.309017, -0.099183] * 2),
        ("max", 5, [0, 0, 0, 0, -0.866025, 0.969849, 0.406737, 0.132074]),
        ("min", 5, [0, 0.837919, 0.309017, 0.099183, 0, 0.160519, 0.809017, 0.293645]),
    ],
)  # fmt: skip
def test_sines_equal_the_recorded_vectors(coords, patch, want):
    sin, _ = table(RopeSpec(coords=coords), 2, 3)
    np.testing.assert_allclose(sin[patch], want * 2, atol=2e-6)


def test_periods_follow_the_base_or_both_ends():
    np.testing.assert_allclose(rope.periods(16, SPEC), [1, 3.162278, 10, 31.622776], rtol=1e-6)
    assert rope.periods(64, SPEC)[-1] == pytest.approx(74.989, rel=1e-5)
    ends = RopeSpec(base=None, min_period=0.5, max_period=8.0)
    np.testing.assert_allclose(rope.periods(16, ends), [0.5, 1.259921, 3.174802, 8], rtol=1e-6)
    rounded = rope.periods(64, RopeSpec(periods_dtype="bfloat16"))
    want = [1, 1.3359375, 1.78125, 2.375, 3.15625]
    np.testing.assert_array_equal(rounded[:5], np.float32(want))
    assert rounded[-1] == 75.0


def test_rotation_equals_the_recorded_vector():
    x = 0.1 * jnp.arange(1, 17, dtype=jnp.float32)
    sin, cos = table(SPEC, 2, 3)
    tokens = jnp.broadcast_to(x[None, None, None], (1, 7, 1, 16))
    got = rope.rotate(tokens, sin, cos, SPEC)
    np.testing.assert_array_equal(got[0, 0, 0], x)  # the prefix token is not rotated
    want = [
        -0.1, 0.947078, 0.625236, 0.517047, -1.375833, 1.504012, 1.249587, 1.00431,
        -0.9, 0.378211, 0.953457, 1.15441, -0.216988, -0.240722, 1.085603, 1.480324,
    ]  # fmt: skip
    np.testing.assert_allclose(got[0, 1, 0], want, atol=2e-6)


def test_dot_products_depend_on_the_distance_between_patches_only():
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 16)).astype(np.float32)
    sin, cos = table(SPEC, 4, 4)
    both = jnp.asarray(np.broadcast_to(np.stack([q, k])[:, None], (2, 16, 16)))[:, :, None]
    turned = rope.rotate(both, sin, cos, SPEC)[:, :, 0]
    scores = (turned[0] @ turned[1].T).reshape(4, 4, 4, 4)
    assert scores[0, 0, 1, 2] == pytest.approx(float(scores[2, 1, 3, 3]), abs=1e-5)
    assert abs(scores[0, 0, 1, 2] - scores[0, 0, 2, 1]) > 1e-3  # rows and columns differ


def test_changes_apply_shift_then_jitter_then_rescale():
    spec = RopeSpec(shift=0.5, jitter=2.0, rescale=3.0)
    change = jax.tree.map(lambda x: x[0], rope.draw(jax.random.key(0), spec, 1))
    coords = rope.coordinates(2, 3, spec)
    want = (
        (coords + change.shift[None]) * np.exp(change.jitter)[None] * np.exp(change.rescale)[None]
    )
    np.testing.assert_allclose(rope.move(coords, change, spec), want, rtol=1e-6)
    many = rope.draw(jax.random.key(1), spec, 4000)
    for values, bound in ((many.shift, 0.5), (many.jitter, np.log(2)), (many.rescale, np.log(3))):
        assert bound * 0.98 < values.max() <= bound and -bound <= values.min() < -bound * 0.98
        assert abs(np.mean(values)) < 4 * bound / np.sqrt(3 * values.size)
    off = jax.tree.map(lambda x: x[0], rope.draw(jax.random.key(0), SPEC, 1))
    np.testing.assert_array_equal(rope.move(coords, off, SPEC), coords)


def test_bfloat16_rounds_every_operation():
    sin, _ = table(RopeSpec(dtype="bfloat16"), 14, 14)
    exact, _ = table(SPEC, 14, 14)
    assert 5e-3 < np.abs(sin - exact).max() < 3e-2
    np.testing.assert_array_equal(sin, np.asarray(sin.astype(jnp.bfloat16), np.float32))


@pytest.mark.parametrize(
    "bad",
    [
        dict(base=None),
        dict(min_period=1.0, max_period=2.0),
        dict(base=None, min_period=1.0),
        dict(max_period=2.0),
    ],
)
def test_base_and_periods_exclude_each_other(bad):
    with pytest.raises(ValueError, match="rope.base"):
        RopeSpec(**bad)


def test_a_head_width_that_is_no_multiple_of_four_is_refused():
    with pytest.raises(ValueError, match="multiple of 4"):
        rope.periods(18, SPEC)
