"""Sets of tokens as rows of one matrix and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.ops.packing import MANY, pack, unpack


@pytest.mark.parametrize("shapes", [[(2, 5), (3, 2)], [(4, 2)], [(100, 7), (11, 31)], [(128, 8)]])
def test_what_is_packed_comes_back_and_many_rows_are_a_multiple_of_eight(shapes):
    rng = np.random.default_rng(0)
    sets = [jnp.asarray(rng.normal(size=(*shape, 3)), jnp.float32) for shape in shapes]
    rows_TD = pack(sets)
    num = sum(a * b for a, b in shapes)
    assert len(rows_TD) == (num if num < MANY else -(-num // 8) * 8)
    assert not np.any(rows_TD[num:])
    for x, y in zip(sets, unpack(rows_TD, shapes), strict=True):
        np.testing.assert_array_equal(x, y)


def test_rows_of_zeros_take_no_part_in_a_gradient():
    with jax.enable_x64():  # sums of so many rows in float32 depend on their order
        x_BND = jnp.ones((1, MANY + 3, 2)) / MANY
        assert len(pack([x_BND])) == MANY + 8
        through = lambda x, w: jnp.sum(jnp.cos(unpack(pack([x]) @ w, [x.shape[:2]])[0]))  # noqa: E731
        alone = lambda x, w: jnp.sum(jnp.cos(x @ w))  # noqa: E731
        w = jnp.eye(2) + 0.3
        got, want = (jax.grad(f, argnums=(0, 1))(x_BND, w) for f in (through, alone))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), got, want)
