"""The ViT against vectors recorded in PyTorch, slow references, and properties."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.models import rope as rope_lib
from dinojax.models import zoo
from dinojax.models.vit import Block, Draws, Vit, VitSpec, make_draws, num_kept
from dinojax.ops.flops import count_flops
from dinojax.ops.packing import pack, unpack
from dinojax.weights import meta
from tests.support.vit_inputs import crops, init, make, run, wave

TINY = VitSpec(width=32, depth=2, num_heads=2, num_registers=4, norm="layernorm_1e5")
VARIANTS = {
    "mlp": (dict(ffn="mlp", ffn_ratio=4.0, mask_k_bias=True), 50_400),
    "swiglu64": (dict(ffn="swiglu64", ffn_ratio=3.0, mask_k_bias=True), 46_368),
    "swiglu": (dict(ffn="swiglu", ffn_ratio=6.0, mask_k_bias=True), 58_848),
}


def filled(spec: VitSpec):
    """Parameters filled by name, in the reference's names and layouts."""
    names = meta.from_ours(init(spec))
    tensors = {}
    for k, name in enumerate(sorted(names)):
        value = wave(names[name].shape, 0.05, 0.1 * k)
        value += 1.0 * ("norm" in name and name.endswith("weight")) + 0.5 * name.endswith("gamma")
        tensors[name] = value
    return meta.to_ours(tensors, num_heads=spec.num_heads)


MASKS = np.zeros((2, 6), bool)
MASKS[0, [1, 4]] = True


@pytest.mark.parametrize(
    ("name", "plain", "sums", "masked", "masked_sum"),
    [
        (
            "mlp",
            [1.348455, 0.671465, 0.802735, 0.782135],
            [51.0164, 329.5839, 205.2690],
            [1.294211, 0.594147, 0.776614, 0.787355],
            326.3254,
        ),
        (
            "swiglu64",
            [0.453250, 1.547387, 1.379944, -0.005456],
            [54.5167, 340.0913, 212.8545],
            [0.400205, 1.504161, 1.359968, 0.006133],
            335.8957,
        ),
        (
            "swiglu",
            [0.263925, 1.465348, -0.010700, 1.134251],
            [51.9935, 340.8539, 211.9960],
            [0.195563, 1.409764, -0.057631, 1.155654],
            335.9379,
        ),
    ],
)
def test_outputs_equal_the_recorded_vectors(name, plain, sums, masked, masked_sum):
    options, num_params = VARIANTS[name]
    spec = dataclasses.replace(TINY, untie_local_cls_norm=name == "swiglu64", **options)
    params = filled(spec)
    assert sum(x.size for x in jax.tree.leaves(params)) == num_params
    images = crops((2, 3, 32, 48))
    got = run(spec, params, [images], [jnp.zeros((2, 6), bool)])[0]
    np.testing.assert_allclose(got.cls[0, :4], plain, atol=3e-6)
    got_sums = [np.abs(x).sum() for x in (got.cls, got.patches, got.registers)]
    np.testing.assert_allclose(got_sums, sums, rtol=2e-6)
    got = run(spec, params, [images], [jnp.asarray(MASKS)])[0]
    np.testing.assert_allclose(got.cls[0, :4], masked, atol=3e-6)
    np.testing.assert_allclose(np.abs(got.patches).sum(), masked_sum, rtol=2e-6)


def test_local_crops_have_their_own_cls_norm_in_training_only():
    spec = dataclasses.replace(TINY, untie_local_cls_norm=True, **VARIANTS["swiglu64"][0])
    params = filled(spec)
    sets = [crops((2, 3, 32, 48)), crops((3, 3, 16, 32), 1.0, 0.4)]
    masks = [jnp.asarray(MASKS), None]
    local = run(spec, params, sets, masks, train=True)[1]
    want = [0.364096, 1.477550, 1.412739, 0.139212]
    np.testing.assert_allclose(local.cls[0, :4], want, atol=3e-6)
    plain = run(spec, params, sets, masks, train=False)[1]
    assert np.abs(plain.cls - local.cls).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("vits", {}, 21_601_152),
        ("vitsplus", {}, 28_697_472),
        ("vitb", {}, 85_669_632),
        ("vitl", {}, 303_154_176),
        ("vitl", {"untie_local_cls_norm": True}, 303_156_224),
        ("vitlplus", {}, 403_915_776),
        ("vitso400m", {}, 415_411_200),
        ("vith2", {}, 630_754_560),
        ("vithplus", {}, 840_633_600),
        ("vitg2", {}, 1_134_577_152),
        ("vitg2", {"ffn": "swiglu"}, 1_134_659_072),
        ("vit7b", {"untie_local_cls_norm": True}, 6_716_043_264),
        ("vit7b", {}, 6_716_035_072),
        ("vitl", {"num_registers": 0}, 303_150_080),
        ("dinov2_vits", {"num_registers": 0}, 22_056_576),
        ("dinov2_vits", {}, 22_058_112),
        ("dinov2_vitb", {"num_registers": 0}, 86_580_480),
        ("dinov2_vitb", {}, 86_583_552),
        ("dinov2_vitl", {"num_registers": 0}, 304_368_640),
        ("dinov2_vitl", {}, 304_372_736),
        ("dinov2_vitg", {"num_registers": 0}, 1_136_480_768),
        ("dinov2_vitg", {}, 1_136_486_912),
    ],
)
def test_parameter_counts_are_those_of_the_released_models(name, options, count):
    released = {"patch_size": 14, "position_size": 518} if name.startswith("dinov2") else {}
    spec = VitSpec(**({"num_registers": 4} | released | zoo.VITS[name] | options))
    pixels = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    abstract = jax.eval_shape(lambda x: Vit(spec).init(jax.random.key(0), [x]), pixels)
    assert sum(x.size for x in jax.tree.leaves(abstract)) == count


def test_init_has_the_spread_of_the_reference():
    spec = dataclasses.replace(TINY, width=192, num_heads=3, depth=3, layer_scale=1e-5)
    params = jax.jit(lambda: make(spec))()
    blocks = params["blocks"]
    for kernel in (blocks["attn"]["qkv"]["kernel"], blocks["mlp"]["fc1"]["kernel"]):
        assert abs(np.std(kernel) / 0.02 - 1) < 0.01
        assert np.abs(kernel).max() > 0.07  # a normal cut at two standard deviations stops at 0.046
    assert np.std(blocks["attn"]["qkv"]["kernel"][0] - blocks["attn"]["qkv"]["kernel"][1]) > 0.02
    bound = (3 * 16 * 16) ** -0.5
    kernel = np.abs(params["patch_embed"]["kernel"])
    assert kernel.max() <= bound and kernel.mean() == pytest.approx(bound / 2, rel=0.02)
    np.testing.assert_array_equal(blocks["scale1"], np.float32(1e-5))
    np.testing.assert_array_equal(params["mask_token"], 0.0)
    np.testing.assert_array_equal(blocks["attn"]["qkv"]["bias"], 0.0)
    assert np.std(params["cls_token"]) == pytest.approx(0.02, rel=0.2)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))


def test_crop_sets_do_not_influence_each_other():
    params, a, b = init(TINY), crops((2, 3, 32, 32)), crops((4, 3, 16, 32), 1.0, 0.7)
    together = run(TINY, params, [a, b])
    for got, alone in zip(together, (a, b), strict=True):
        want = run(TINY, params, [alone])[0]
        np.testing.assert_allclose(got.patches, want.patches, atol=1e-5)


def test_masked_patches_hide_their_pixels():
    params, images = init(TINY), crops((2, 3, 32, 32))
    masks = [jnp.zeros((2, 4), bool).at[:, 0].set(True)]
    cls = run(TINY, params, [images], masks)[0].cls
    hidden = run(TINY, params, [images.at[:, :16, :16].set(9.0)], masks)[0].cls
    seen = run(TINY, params, [images.at[:, 16:].set(9.0)], masks)[0].cls
    np.testing.assert_array_equal(cls, hidden)
    assert (np.asarray(cls) != np.asarray(seen)).any()


def test_pixels_beyond_the_last_whole_patch_are_ignored():
    params, images = init(TINY), crops((2, 3, 40, 35))
    whole = run(TINY, params, [images])[0]
    cut = run(TINY, params, [images[:, :32, :32]])[0]
    np.testing.assert_array_equal(whole.patches, cut.patches)


@pytest.mark.slow
def test_remat_changes_memory_not_results():
    params, images = init(TINY), crops((2, 3, 32, 32))

    def gradient(remat):
        spec = dataclasses.replace(TINY, remat=remat)

        def loss(params):
            return jnp.sum(Vit(spec).apply({"params": params}, [images])[0].cls ** 2)

        compiled = jax.jit(jax.grad(loss)).lower(params).compile()
        return compiled(params), compiled.memory_analysis().temp_size_in_bytes

    want, most = gradient("none")
    for remat in ("products", "dots", "full"):
        got, memory = gradient(remat)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, want)
        assert memory < most, remat


def test_intermediate_layers_come_in_ascending_order_and_match_the_scan():
    spec = dataclasses.replace(TINY, depth=3)
    params, images = init(spec), crops((2, 3, 32, 48))
    vit = Vit(spec)
    layers = functools.partial(vit.apply, {"params": params}, images, method=Vit.intermediate)
    found = jax.jit(lambda: layers([2, 0]))()
    whole = run(spec, params, [images])[0]
    np.testing.assert_allclose(found[1].patches, whole.patches, atol=1e-5)
    head = params | {"blocks": jax.tree.map(lambda x: x[:1], params["blocks"])}
    want = run(dataclasses.replace(spec, depth=1), head, [images])[0]
    np.testing.assert_allclose(found[0].cls, want.cls, atol=1e-5)
    raw = jax.jit(lambda: layers(1, norm=False))()[0]
    np.testing.assert_array_equal(raw.patches, raw.prenorm[:, 5:])
    with pytest.raises(ValueError, match="blocks 0 to 2"):
        layers([3])


def test_drop_path_computes_an_exact_subset_per_group():
    """Sequences outside a branch's subset pass by unchanged, the others get b / k times it."""
    spec = dataclasses.replace(TINY, depth=1, drop_path=0.5, layer_scale=1.0)
    params, images = init(spec), crops((8, 3, 32, 32))
    none = jnp.zeros((1, 2, 2, 2), jnp.int32)
    kept = none.at[0, 0].set(jnp.array([[0, 3], [0, 1]])).at[0, 1].set(jnp.array([[1, 2], [2, 3]]))
    vit = Vit(spec)
    got = run(spec, params, [images], None, [Draws(kept, None)])[0].prenorm

    x = np.asarray(
        vit.apply({"params": params}, [images], method=lambda m, c: m._embed(c[0], None))
    )
    block = jax.tree.map(lambda leaf: leaf[0], params["blocks"])
    table = rope_lib.table(
        rope_lib.coordinates(2, 2, spec.rope), rope_lib.periods(16, spec.rope), spec.rope
    )

    def branch(method, x):
        rows, shapes = pack([jnp.asarray(x)]), [x.shape[:2]]
        found = Block(spec).apply({"params": block}, rows, shapes, [table], method=method)
        return np.asarray(unpack(found, shapes)[0])

    want = x.copy()
    for rows, method in (([0, 3, 5, 6], Block._attend), ([0, 1, 6, 7], Block._feed)):
        want[rows] += 2.0 * branch(method, want)[rows]
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_drop_path_keeps_the_reference_number_of_sequences():
    assert [num_kept(128, 0.3), num_kept(32, 0.4), num_kept(128, 0.4)] == [89, 19, 76]
    assert num_kept(2, 0.9) == 1


def test_drop_path_saves_its_share_of_the_compute():
    spec = dataclasses.replace(TINY, depth=4)
    params, images = init(spec), crops((8, 3, 32, 32))
    keys = jax.random.split(jax.random.key(0), 2)

    def flops(rate):
        some = dataclasses.replace(spec, drop_path=rate)
        draws = [make_draws(keys, keys, some, num_sequences=4, tag=0)]
        apply = Vit(some).apply
        return count_flops(lambda p: apply({"params": p}, [images], None, draws)[0].cls, params)

    embed = 2 * 8 * 4 * 3 * 16 * 16 * 32
    assert (flops(0.5) - embed) / (flops(0.0) - embed) == pytest.approx(0.5)


def test_draws_differ_by_group_block_branch_and_crop_set_only():
    spec = dataclasses.replace(TINY, depth=3, drop_path=0.5, rope=rope_lib.RopeSpec(rescale=2.0))
    keys = jax.vmap(jax.random.key)(jnp.arange(4))
    draws = make_draws(keys, keys, spec, num_sequences=16, tag=0)
    assert draws.subsets.shape == (3, 4, 2, 8) and draws.rope.rescale.shape == (3, 4, 1)
    subsets = np.sort(draws.subsets.reshape(-1, 8))
    assert len({tuple(row) for row in subsets}) == 24 and (np.diff(subsets) > 0).all()
    assert len(np.unique(draws.rope.rescale)) == 12
    assert np.abs(draws.rope.rescale).max() <= np.log(2)
    fewer = make_draws(keys[1:3], keys[1:3], spec, num_sequences=16, tag=0)
    np.testing.assert_array_equal(fewer.subsets, draws.subsets[:, 1:3])
    other = make_draws(keys, keys, spec, num_sequences=16, tag=1)
    assert (np.asarray(other.subsets) != np.asarray(draws.subsets)).any()


def test_rope_rescale_moves_a_group_together():
    """A group's rescale by f equals a model whose periods are divided by f."""
    spec = dataclasses.replace(TINY, depth=1, rope=rope_lib.RopeSpec(rescale=2.0), layer_scale=1.0)
    params, images = init(spec), crops((4, 3, 32, 32))
    change = rope_lib.RopeDraw(
        shift=jnp.zeros((1, 2, 2)),
        jitter=jnp.zeros((1, 2, 2)),
        rescale=jnp.log(jnp.array([[[1.0], [1.5]]])),
    )
    got = run(spec, params, [images], None, [Draws(None, change)])[0].patches
    plain = run(spec, params, [images])[0].patches
    np.testing.assert_allclose(got[:2], plain[:2], atol=1e-6)
    assert np.abs(got[2:] - plain[2:]).max() > 1e-4


def test_bfloat16_compute_stays_close_and_keeps_float32_parameters():
    spec = dataclasses.replace(TINY, dtype=jnp.dtype(jnp.bfloat16))
    params, images = init(spec), crops((2, 3, 32, 32))
    got = run(spec, params, [images])[0]
    want = run(TINY, params, [images])[0]
    assert got.patches.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    error = np.abs(got.patches.astype(jnp.float32) - want.patches)
    assert 0 < error.max() < 0.1


def test_one_channel_and_five_channel_images_are_accepted():
    for channels in (1, 5):
        spec = dataclasses.replace(TINY, channels=channels)
        images = jnp.ones((1, 32, 32, channels))
        assert run(spec, init(spec), [images])[0].patches.shape == (1, 4, 32)
