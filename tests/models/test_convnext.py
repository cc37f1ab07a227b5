"""ConvNeXt against vectors recorded in PyTorch, and properties."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dinojax.models import zoo
from dinojax.models.convnext import Block, ConvNext, ConvNextSpec, make_draws
from dinojax.models.layers import Named
from dinojax.sharding import mesh
from dinojax.weights import meta
from tests.support.vit_inputs import crops, wave

TINY = ConvNextSpec(depths=(1, 1, 2, 1), widths=(8, 16, 24, 32))


def make(spec: ConvNextSpec):
    pixels = jnp.zeros((1, spec.patch_size, spec.patch_size, spec.channels))
    return nn.meta.unbox(ConvNext(spec).init(jax.random.key(0), [pixels])["params"])


@functools.cache
def filled(spec: ConvNextSpec):
    """Parameters filled by name, in the reference's names and layouts."""
    shapes = jax.eval_shape(lambda: make(spec))
    names = meta.from_ours(jax.tree.map(lambda x: np.zeros(x.shape), shapes))
    names = {name: zeros for name, zeros in names.items() if not name.startswith("norms.")}
    tensors = {}
    for k, name in enumerate(sorted(names)):
        value = wave(names[name].shape, 0.05, 0.1 * k)
        value += 1.0 * (name.endswith("weight") and value.ndim == 1) + 0.5 * name.endswith("gamma")
        tensors[name] = value
    assert len(tensors) == 63
    return meta.to_ours(tensors)


@functools.partial(jax.jit, static_argnames=("spec",))
def run(spec, params, sets, draws=None):
    return ConvNext(spec).apply({"params": params}, sets, draws=draws)


def test_outputs_equal_the_recorded_vectors():
    params = filled(TINY)
    assert sum(x.size for x in jax.tree.leaves(params)) == 31_760
    got = run(TINY, params, [crops((2, 3, 64, 96))])[0]
    assert got.patches.shape == (2, 6, 32) and got.registers.shape == (2, 0, 32)
    want = [-1.156877, 0.088111, 1.274729, -1.339095]
    np.testing.assert_allclose(got.cls[0, :4], want, atol=3e-6)
    sums = [np.abs(x).sum() for x in (got.cls, got.patches)]
    np.testing.assert_allclose(sums, [56.7941, 340.6574], rtol=2e-6)


def test_stages_equal_the_recorded_vectors_on_a_grid_of_16_pixels():
    net = ConvNext(TINY)
    stages = jax.jit(
        lambda p: net.apply(
            {"params": p},
            crops((2, 3, 64, 96)),
            [3, 2],
            patch_size=16,
            method=ConvNext.intermediate,
        )
    )(filled(TINY))
    assert [x.patches.shape for x in stages] == [(2, 24, 24), (2, 24, 32)]
    sums = [np.abs(x).sum() for stage in stages for x in (stage.patches, stage.cls)]
    np.testing.assert_allclose(sums, [1166.9954, 48.6171, 1362.8293, 56.7941], rtol=2e-6)


def test_a_stage_that_does_not_exist_is_an_error():
    for layers in ([4], 5, [-1]):
        with pytest.raises(ValueError, match="this backbone has stages 0 to 3"):
            ConvNext(TINY).apply(
                {"params": filled(TINY)}, crops((1, 3, 32, 32)), layers, method="intermediate"
            )


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("convnext_tiny", 27_820_128),
        ("convnext_small", 49_454_688),
        ("convnext_base", 87_566_464),
        ("convnext_large", 196_230_336),
    ],
)
def test_parameter_counts_are_those_of_the_released_models(name, count):
    abstract = jax.eval_shape(lambda: make(ConvNextSpec(**zoo.CONVNEXTS[name])))
    assert sum(x.size for x in jax.tree.leaves(abstract)) == count


@pytest.mark.slow
def test_init_has_the_spread_of_the_reference():
    params = jax.jit(lambda: make(TINY))()
    for kernel in (
        params["stages_2"]["pwconv1"]["kernel"],
        params["downsamples_3"]["conv"]["kernel"],
    ):
        assert np.std(kernel) == pytest.approx(0.02, rel=0.05)
    stage = params["stages_2"]
    assert np.std(stage["dwconv"]["kernel"][0] - stage["dwconv"]["kernel"][1]) > 0.02
    np.testing.assert_array_equal(stage["scale1"], np.float32(1e-6))
    np.testing.assert_array_equal(stage["pwconv2"]["bias"], 0.0)
    np.testing.assert_array_equal(params["norm"]["scale"], 1.0)


@pytest.mark.slow
def test_crop_sets_masks_and_train_do_not_change_an_output():
    params, a, b = filled(TINY), crops((2, 3, 64, 96)), crops((3, 3, 32, 64), 1.0, 0.7)
    masks = [jnp.ones((2, 6), bool), None]
    together = jax.jit(lambda p: ConvNext(TINY).apply({"params": p}, [a, b], masks, train=True))
    got, want = together(params), run(TINY, params, [a])[0]
    np.testing.assert_allclose(got[0].patches, want.patches, atol=1e-5)
    np.testing.assert_allclose(got[0].cls, want.cls, atol=1e-5)
    want = run(TINY, params, [b])[0]
    np.testing.assert_allclose(got[1].patches, want.patches, atol=1e-5)


def test_drop_rates_grow_linearly_and_survivors_make_up_for_it():
    spec = dataclasses.replace(TINY, depths=(1, 2, 1, 1), drop_path=0.4)
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    factors = np.asarray(make_draws(keys, spec, num_sequences=4000, tag=0))
    assert factors.shape == (5, 8000)
    for row, rate in zip(factors, [0.0, 0.1, 0.2, 0.3, 0.4], strict=True):
        np.testing.assert_allclose(np.unique(row), [0.0, 1 / (1 - rate)] if rate else [1.0])
        assert np.mean(row == 0) == pytest.approx(rate, abs=0.02)
    assert (factors[:, :4000] != factors[:, 4000:]).any()  # groups draw their own
    alone = make_draws(keys[1:], spec, num_sequences=4000, tag=0)
    np.testing.assert_array_equal(alone, factors[:, 4000:])
    other = make_draws(keys, spec, num_sequences=4000, tag=1)
    assert (np.asarray(other) != factors).any()
    assert make_draws(keys, TINY, num_sequences=4, tag=0) is None


def test_a_dropped_branch_is_left_out_for_its_image_alone():
    width, factors = 8, jnp.array([0.0, 1.0, 2.0])
    params = jax.tree.map(lambda leaf: leaf[0], filled(TINY)["stages_0"])
    x = jnp.asarray(wave((3, 4, 4, width)))
    block = jax.jit(lambda x, f: Block(TINY, width).apply({"params": params}, x, f))
    branch = block(x, jnp.ones(3)) - x
    assert np.abs(branch).max() > 0.01
    want = x + factors[:, None, None, None] * branch
    np.testing.assert_allclose(block(x, factors), want, atol=1e-5)


def test_each_block_takes_its_own_factors():
    """Dropping the blocks of a stage leaves what its downsampling made."""
    params, images = filled(TINY), crops((2, 3, 64, 96))
    factors = jnp.ones((5, 2)).at[2:4].set(0.0)
    got = run(TINY, params, [images], [factors])[0]
    silent = jax.tree.map(jnp.zeros_like, params["stages_2"])
    want = run(TINY, params | {"stages_2": silent}, [images])[0]
    np.testing.assert_allclose(got.patches, want.patches, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_compute_stays_close_and_remat_changes_nothing():
    params, images = filled(TINY), crops((2, 3, 64, 96))
    want = run(TINY, params, [images])[0]
    half = run(dataclasses.replace(TINY, dtype=jnp.dtype(jnp.bfloat16)), params, [images])[0]
    assert half.cls.dtype == half.patches.dtype == jnp.bfloat16
    assert 0 < np.abs(half.cls.astype(jnp.float32) - want.cls).max() < 0.1

    def gradient(spec):
        return jax.jit(jax.grad(lambda p: jnp.sum(run(spec, p, [images])[0].cls[:, 0])))(params)

    pair = [gradient(dataclasses.replace(TINY, remat=remat)) for remat in ("none", "full")]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), *pair)


@pytest.mark.slow
def test_eight_devices_with_sharded_parameters_make_the_same_features():
    layout = mesh.make("fsdp", 8)
    boxed = jax.eval_shape(
        lambda: ConvNext(TINY).init(jax.random.key(0), [jnp.zeros((1, 32, 32, 3))])
    )
    is_box = lambda leaf: isinstance(leaf, Named)  # noqa: E731
    shardings = jax.tree.map(lambda b: layout.sharding(*b.names), boxed["params"], is_leaf=is_box)
    params, images = filled(TINY), crops((8, 3, 32, 32))
    want = run(TINY, params, [images])[0]
    with mesh.use(layout):
        placed = jax.device_put(params, shardings)
        kernel = placed["stages_1"]["pwconv1"]["kernel"]
        assert kernel.addressable_shards[0].data.shape == (1, 2, 64)
        images = jax.device_put(images, layout.sharding("image"))
        got = jax.jit(lambda p, x: ConvNext(TINY).apply({"params": p}, [x])[0])(placed, images)
    assert got.patches.addressable_shards[0].data.shape == (1, 1, 32)
    np.testing.assert_allclose(got.cls, want.cls, atol=1e-5)
    np.testing.assert_allclose(got.patches, want.patches, atol=1e-5)
