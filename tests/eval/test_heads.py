"""A grid of linear heads is as many heads of their own."""

import functools

import jax
import numpy as np
import pytest

from dinojax.eval import heads
from dinojax.sharding import mesh

TRAINING = heads.Training(num_steps=12)
GRID = (heads.Head("a", 0.1), heads.Head("b", 0.5), heads.Head("a", 0.3, weight_decay=0.01))
WIDTHS = {"a": 6, "b": 4}


def batches(num=12, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(num):
        features = {name: rng.normal(size=(8, w)).astype(np.float32) for name, w in WIDTHS.items()}
        yield features, rng.integers(0, 8, 8).astype(np.int32)


def trained(params, grid, training=TRAINING):
    state = heads.spread(heads.start(params, training))
    step = jax.jit(functools.partial(heads.update, heads=grid, training=training))
    for features, labels in batches():
        state, _ = step(state, features, labels)
    return jax.device_get(state["params"])


@functools.cache
def together():
    return trained(heads.init(GRID, WIDTHS, 8, seed=0), GRID)


def test_a_grid_learns_what_each_head_learns_alone():
    params, found = heads.init(GRID, WIDTHS, 8, seed=0), together()
    for number, head in enumerate(GRID):
        place = heads.grouped(GRID)[head.features].index(number)
        own = {head.features: jax.tree.map(lambda x, p=place: x[p : p + 1], params[head.features])}
        alone = trained(own, (head,))[head.features]
        for part, value in alone.items():
            np.testing.assert_allclose(value[0], found[head.features][part][place], atol=1e-6)


def test_a_learning_rate_beyond_all_bounds_spoils_no_other_head():
    wild = (heads.Head("a", np.inf), *GRID[1:])
    found = trained(heads.init(wild, WIDTHS, 8, seed=0), wild)
    assert not np.all(np.isfinite(found["a"]["kernel"][0]))
    np.testing.assert_array_equal(found["a"]["kernel"][1], together()["a"]["kernel"][1])
    np.testing.assert_array_equal(found["b"]["kernel"], together()["b"]["kernel"])


def test_classes_over_eight_devices_change_nothing():
    with mesh.use(mesh.make("dp", 8)):
        params = heads.spread(heads.init(GRID, WIDTHS, 8, seed=0))
        assert params["a"]["kernel"].sharding.shard_shape((2, 6, 8)) == (2, 6, 1)
        found = trained(params, GRID)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), found, together())


def test_the_learning_rate_ends_at_zero():
    shares = [float(heads.share_of_lr(step, TRAINING)) for step in (0, 6, 12)]
    np.testing.assert_allclose(shares, [1.0, 0.5, 0.0], atol=1e-7)


def test_each_head_has_its_own_start():
    kernels = heads.init(GRID, WIDTHS, 8, seed=0)["a"]["kernel"]
    assert abs(float(np.std(kernels)) - heads.INIT_STD) < 0.002
    assert not np.allclose(kernels[0], kernels[1])


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="optimizer='lion' is unknown; choose of sgd, adamw"):
        heads.Training(num_steps=1, optimizer="lion")
