"""Views: shapes, order of operations, the same numbers on any batch and any device count."""

import functools
import re

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from PIL import Image

from dinojax.augment import boxes, masks, photometric, views
from dinojax.augment.spec import ViewSpec
from dinojax.augment.views import make_views
from dinojax.configs import base
from dinojax.ops import rng as keys

GROUP, PATCH, BOX = 2, 4, 24
QUICK = {"xla_backend_optimization_level": 0}  # a quarter of the compile time


def sections(channels=3, **changes):
    """Sections of a small recipe; changes are {"crops.local_size": 8, ...}."""
    c = base.get_config()
    c.crops.update(global_size=16, local_size=8, num_local=3)
    c.augment.blur_kernel = 5
    c.image.channels = channels
    if channels != 3:
        c.image.normalize = "per_crop"
        c.augment.update(saturation=0.0, hue=0.0, grayscale_rate=0.0)
    c.update_from_flattened_dict(changes)
    return dict(image=c.image, crops=c.crops, augment=c.augment, masks=c.masks)


def view_spec(group_size=GROUP, patch_size=PATCH, teacher_patch_size=None, **kwargs):
    return ViewSpec.from_sections(
        **sections(**kwargs),
        group_size=group_size,
        patch_size=patch_size,
        teacher_patch_size=teacher_patch_size,
    )


PLAIN = {  # geometry only
    "augment.jitter_rate": 0.0,
    "augment.grayscale_rate": 0.0,
    "augment.blur_rates": (0.0, 0.0, 0.0),
    "augment.solarize_rate": 0.0,
    "image.mean": (0.0, 0.0, 0.0),
    "image.std": (1.0, 1.0, 1.0),
}


@functools.cache
def jitted(spec, per_group=None):
    extra = {} if per_group is None else {"per_group": per_group}
    return jax.jit(functools.partial(make_views, spec=spec, **extra), compiler_options=QUICK)


choose_box = jax.jit(boxes.choose_box, static_argnames=("area", "aspect"))


def batch(num, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (num, BOX, BOX, channels), dtype=np.uint8)
    return images, rng.integers(BOX // 2, BOX + 1, (num, 2), dtype=np.int32)


def test_shapes_dtypes_and_mask_bookkeeping():
    spec = view_spec()
    got = jitted(spec)(jax.random.key(0), *batch(16))
    assert got.global_BGHWC.shape == (16, 2, 16, 16, 3) and got.global_BGHWC.dtype == np.float32
    assert got.local_BLHWC.shape == (16, 3, 8, 8, 3) and got.gram_BGHWC is None
    assert got.masks_BGP.shape == (16, 2, 16) and got.masks_BGP.dtype == bool
    M = spec.masks.num_masked
    assert got.masked_UM.shape == got.mask_weights_UM.shape == (8, M)
    rows_URP = np.asarray(got.masks_BGP).reshape(8, GROUP * 2, 16)
    for rows, indices, weights in zip(rows_URP, got.masked_UM, got.mask_weights_UM, strict=True):
        np.testing.assert_array_equal(indices, np.flatnonzero(rows))
        np.testing.assert_allclose(weights, 1 / rows.sum(1)[np.asarray(indices) // 16], rtol=1e-6)


def test_crops_are_the_drawn_boxes_resized_by_pillow():
    spec, key = view_spec(**PLAIN), jax.random.key(5)
    images, sizes = batch(4)
    got = jitted(spec)(key, images, sizes)
    group_key = keys.group_keys(key, "crop", 2)[1]
    for place, image, size in ((0, images[2], sizes[2]), (1, images[3], sizes[3])):
        for k in range(5):
            crop_key = jax.random.fold_in(group_key, place * views.MAX_CROPS + k)
            draws = jax.random.uniform(crop_key, (views.NUM_CROP_DRAWS,))
            area = spec.global_area if k < 2 else spec.local_area
            top, left, height, width = np.asarray(
                choose_box(draws[:-1], size, area=area, aspect=spec.aspect)
            )
            crop = Image.fromarray(image[top : top + height, left : left + width])
            side = 16 if k < 2 else 8
            for new in ((side, height), (side, side)):
                crop = crop.resize(new, Image.Resampling.BICUBIC)
            want = np.asarray(crop)[:, ::-1] if draws[-1] < 0.5 else np.asarray(crop)
            view = got.global_BGHWC[2 + place, k] if k < 2 else got.local_BLHWC[2 + place, k - 2]
            assert np.abs(np.asarray(view) * 255 - want).max() < 1.01


def test_views_do_not_depend_on_the_number_of_groups():
    spec, key = view_spec(), jax.random.key(1)
    images, sizes = batch(16)
    many = jitted(spec)(key, images, sizes)
    one = jitted(spec)(key, images[:GROUP], sizes[:GROUP])
    for name in ("global_BGHWC", "local_BLHWC", "masks_BGP"):
        a, b = getattr(one, name), getattr(many, name)[:GROUP]
        np.testing.assert_allclose(a, b, atol=1e-4, err_msg=name)
    np.testing.assert_array_equal(one.masked_UM[0], many.masked_UM[0])


def test_every_image_crop_and_step_has_its_own_draws():
    spec = view_spec(**PLAIN)
    images = np.broadcast_to(batch(1)[0], (4, BOX, BOX, 3))
    sizes = np.full((4, 2), BOX, np.int32)
    seen = [jitted(spec)(jax.random.key(i), images, sizes) for i in range(2)]
    crops = np.concatenate([np.asarray(v.global_BGHWC).reshape(8, -1) for v in seen])
    assert len(np.unique(crops, axis=0)) == 16


def test_eight_devices_make_the_same_views_without_a_collective():
    spec, key = view_spec(teacher_patch_size=2), jax.random.key(2)
    images, sizes = batch(16)
    want = jitted(spec)(key, images, sizes)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    place = NamedSharding(mesh, PartitionSpec("data"))

    def per_group(fn):
        spec = PartitionSpec("data")
        return jax.shard_map(fn, mesh=mesh, in_specs=spec, out_specs=spec)

    compiled = jitted(spec, per_group).lower(key, *jax.device_put((images, sizes), place)).compile()
    text = compiled.as_text()
    found = re.findall(r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter", text)
    assert not found and "while" in text
    got = compiled(key, *jax.device_put((images, sizes), place))
    assert all(leaf.sharding.spec == PartitionSpec("data") for leaf in jax.tree.leaves(got))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    # Those of a frozen teacher with patches half as large are the student's, reduced by two.
    assert got.teacher_BGHWC.shape == (16, 2, 8, 8, 3)
    crops_KHWC = np.asarray(got.global_BGHWC).reshape(-1, 16, 16, 3)
    small = np.asarray(got.teacher_BGHWC).reshape(-1, 8, 8, 3)
    np.testing.assert_allclose(small, views.reduced(crops_KHWC, 2), atol=1e-6)
    plain = jitted(view_spec())(key, images, sizes)
    assert plain.teacher_BGHWC is None and plain.of_teacher_BGHWC is plain.global_BGHWC
    np.testing.assert_allclose(want.global_BGHWC, plain.global_BGHWC, atol=1e-5)


def test_whoever_has_smaller_patches_sees_the_same_crops_reduced():
    """Crops are cut at 4 pixels a patch; the student has patches of 2, its teacher of 1."""
    key, images = jax.random.key(2), batch(16)
    cut = jitted(view_spec())(key, *images)
    sizes = {"crops.patch_size": PATCH}
    seen = jitted(view_spec(patch_size=2, teacher_patch_size=1, **sizes))(key, *images)

    def small(crops_BKHWC, factor):
        flat = views.reduced(crops_BKHWC.reshape(-1, *crops_BKHWC.shape[2:]), factor)
        return flat.reshape(*crops_BKHWC.shape[:2], *flat.shape[1:])

    assert seen.global_BGHWC.shape == (16, 2, 8, 8, 3) and seen.local_BLHWC.shape[2:4] == (4, 4)
    np.testing.assert_allclose(seen.global_BGHWC, small(cut.global_BGHWC, 2), atol=1e-5)
    np.testing.assert_allclose(seen.local_BLHWC, small(cut.local_BLHWC, 2), atol=1e-5)
    np.testing.assert_allclose(seen.of_teacher_BGHWC, small(cut.global_BGHWC, 4), atol=1e-5)
    for name in ("masks_BGP", "masked_UM", "mask_weights_UM"):
        np.testing.assert_array_equal(getattr(seen, name), getattr(cut, name))
    alike = view_spec(patch_size=2, **sizes)
    assert (alike.reduction, alike.teacher_reduction, alike.masks.side) == (2, 2, 4)


def test_undistorted_gram_crops_share_the_box_and_the_global_crop_is_resized_twice():
    changes = {**PLAIN, "crops.gram_size": 24}
    got = jitted(view_spec(**changes))(jax.random.key(3), *batch(2))
    assert got.gram_BGHWC.shape == (2, 2, 24, 24, 3)
    for i, k in np.ndindex(2, 2):
        crop = Image.fromarray(np.round(np.asarray(got.gram_BGHWC[i, k]) * 255).astype(np.uint8))
        for new in ((16, 24), (16, 16)):
            crop = crop.resize(new, Image.Resampling.BICUBIC)
        difference = np.asarray(got.global_BGHWC[i, k]) * 255 - np.asarray(crop)
        assert np.abs(difference).max() < 1.01


@pytest.mark.slow
def test_undistorted_gram_crops_keep_their_colours():
    """Blurring everything changes the global crops, not the gram crops."""
    changes = {**PLAIN, "crops.gram_size": 24, "augment.blur_rates": (1.0, 1.0, 0.0)}
    plain = jitted(view_spec(**{**PLAIN, "crops.gram_size": 24}))(jax.random.key(3), *batch(2))
    blurred = jitted(view_spec(**changes))(jax.random.key(3), *batch(2))
    np.testing.assert_array_equal(plain.gram_BGHWC, blurred.gram_BGHWC)
    assert np.abs(np.asarray(plain.global_BGHWC - blurred.global_BGHWC)).max() > 0.01


@pytest.mark.slow
def test_distorted_gram_crops_are_the_distorted_base_crop():
    changes = {"crops.gram_size": 24, "crops.gram_distortions": True, "augment.jitter_rate": 1.0}
    got = jitted(view_spec(**changes))(jax.random.key(4), *batch(2))
    for i, k in np.ndindex(2, 2):
        for c in range(3):
            plane = Image.fromarray(np.asarray(got.gram_BGHWC[i, k, :, :, c]))
            want = plane.resize((16, 16), Image.Resampling.BICUBIC)
            view = got.global_BGHWC[i, k, :, :, c]
            np.testing.assert_allclose(view, np.asarray(want), atol=1e-4)


def test_each_crop_is_blurred_and_solarised_at_its_own_rate():
    """First global, second global, local: a draw of 0.3 is below some of the rates."""
    draws = np.full((5, photometric.NUM_DRAWS), 0.3, np.float32)
    for rates in ((1.0, 0.1, 0.5), (0.1, 1.0, 0.1)):
        spec = view_spec(**{"augment.blur_rates": rates, "augment.solarize_rate": 0.5})
        choices = views._choose(draws, spec)
        wanted = [rate > 0.3 for rate in (*rates[:2], *[rates[2]] * 3)]
        assert choices.blur.tolist() == wanted
        assert choices.solarize.tolist() == [False, True, False, False, False]


@pytest.mark.slow
def test_only_the_released_rates_of_blur_and_solarise_reach_each_crop():
    """A crop of noise at its own size: blur flattens it, solarise folds it, nothing else acts."""
    rates = {"augment.blur_rates": (0.0, 0.9, 0.5), "augment.solarize_rate": 0.2}
    fixed = {"crops.global_area": (1.0, 1.0), "crops.aspect": (1.0, 1.0), "augment.flip_rate": 0.0}
    sigma = {"augment.blur_sigma": (2.0, 2.0), "crops.global_size": BOX}
    spec = view_spec(group_size=50, **{**PLAIN, **rates, **fixed, **sigma})
    images = np.broadcast_to(batch(1)[0], (200, BOX, BOX, 3))
    got = jitted(spec)(jax.random.key(6), images, np.full((200, 2), BOX, np.int32))
    crops = np.asarray(got.global_BGHWC) * 255
    blurred = crops.std((2, 3, 4)) < 40  # uniform noise has 74
    assert not blurred[:, 0].any() and abs(blurred[:, 1].mean() - 0.9) < 4 * 0.3 / np.sqrt(200)
    assert np.abs(crops[:, 0] - images).max() < 0.01  # never blurred, never solarised
    sharp = crops[:, 1][~blurred[:, 1]]
    solarized = sharp.reshape(len(sharp), -1).max(1) < 128
    everything = crops[:, 1].reshape(200, -1).max(1) <= 128
    assert abs(everything.mean() - 0.2) < 4 * 0.4 / np.sqrt(200) and solarized.mean() < 0.7
    local = np.asarray(got.local_BLHWC).std((2, 3, 4)) * 255
    assert abs((local < 30).mean() - 0.5) < 0.1


@pytest.mark.slow
def test_one_channel_with_per_crop_normalisation():
    got = jitted(view_spec(channels=1))(jax.random.key(0), *batch(2, channels=1))
    crops = np.asarray(got.local_BLHWC)
    assert crops.shape == (2, 3, 8, 8, 1)
    np.testing.assert_allclose(crops.mean((2, 3, 4)), 0, atol=1e-4)
    np.testing.assert_allclose(crops.std((2, 3, 4)), 1, atol=1e-3)


def test_masks_come_from_the_mask_stream_of_the_group():
    spec, key = view_spec(), jax.random.key(7)
    got = jitted(spec)(key, *batch(16))
    alone = jax.jit(masks.group_masks, static_argnums=1, compiler_options=QUICK)
    want = alone(keys.group_keys(key, "mask", 8)[1], spec.masks)
    np.testing.assert_array_equal(got.masks_BGP[2:4].reshape(4, 16), want)


def test_a_batch_of_part_groups_is_refused():
    with pytest.raises(ValueError, match="batch of 3 images is not a multiple of group_size=2"):
        images, sizes = batch(3)
        make_views(jax.random.key(0), images, sizes, view_spec())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"crops.local_size": 10},
            "crops.local_size=10 is not a multiple of model.patch_size=4; use 8 or 12.",
        ),
        (
            {"crops.global_size": 3},
            "crops.global_size=3 is not a multiple of model.patch_size=4; use 4.",
        ),
        (
            {"crops.gram_size": 30},
            "crops.gram_size=30 is not a multiple of model.patch_size=4; use 28 or 32.",
        ),
        (
            {"crops.patch_size": 6},
            "crops.patch_size=6 is not a multiple of model.patch_size=4; use 12.",
        ),
        (
            {"crops.patch_size": 8, "crops.local_size": 12},
            "crops.local_size=12 is not a multiple of crops.patch_size=8; use 8 or 16.",
        ),
        ({"crops.num_local": 0}, "crops.num_local=0 must be at least 1."),
        (
            {"masks.ratio": (0.5, 0.5)},
            "masks.ratio=(0.5, 0.5) must be ascending shares from 0 to 1.",
        ),
        ({"masks.rate": 1.5}, "masks.rate=1.5 is a probability; use a value from 0 to 1."),
        ({"augment.flip_rate": -0.1}, "augment.flip_rate=-0.1 is a probability"),
        ({"augment.hue": 0.6}, "augment.hue=0.6; use 0 to 0.5."),
        ({"augment.blur_kernel": 4}, "augment.blur_kernel=4 must be odd."),
        (
            {"augment.blur_kernel": 17},
            "reaches past the border of crops of 8 pixels; use at most 15.",
        ),
        ({"crops.local_area": (0.3, 0.1)}, "crops.local_area=(0.3, 0.1) must be ascending shares"),
        ({"image.normalize": "none"}, "image.normalize='none'; use 'fixed' or 'per_crop'."),
        ({"image.mean": (0.5,)}, "image.mean has 1 values, but image.channels=3. give 3 values"),
    ],
)
def test_wrong_settings_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        view_spec(**changes)


@pytest.mark.parametrize(
    ("patch", "teacher", "grids", "students", "teachers"),
    [
        (32, 14, "16 x 16 patches.*36 x 36 patches of 14", "28 or 42", "1, 2, 4, 8, 16, 32"),
        (8, 16, "64 x 64 patches.*32 x 32 patches of 16", "16", "1, 2, 4, 8"),
    ],
)
def test_grids_that_no_reduction_makes_one_are_refused(patch, teacher, grids, students, teachers):
    sizes = {"crops.global_size": 512, "crops.local_size": 224}
    message = (
        rf"size=512 is {grids}.*patch_size {students}, or a teacher of patch_size {teachers}\."
    )
    with pytest.raises(ValueError, match=message):
        view_spec(patch_size=patch, teacher_patch_size=teacher, **sizes)
    assert view_spec(patch_size=32, teacher_patch_size=16, **sizes).teacher_reduction == 2


def test_group_size_below_one_is_refused():
    with pytest.raises(ValueError, match="group_size=0 must be at least 1"):
        view_spec(group_size=0)


def test_colour_operations_and_imagenet_statistics_are_refused_for_other_channels():
    changes = {"image.channels": 5}
    with pytest.raises(ValueError) as error:
        view_spec(**changes)
    text = str(error.value)
    for name in ("saturation=0.2", "hue=0.1", "grayscale_rate=0.2"):
        assert f"augment.{name} needs three colour channels, but image.channels=5" in text
    assert "image.mean has 3 values, but image.channels=5" in text
    assert "ImageNet statistics are not applied to non-RGB data" in text


def test_small_boxes_are_only_noted():
    spec = ViewSpec.from_sections(
        **sections(**{"crops.global_size": 256, "crops.local_size": 112}),
        patch_size=16,
        group_size=2,
    )
    assert spec.notes(512) == []
    assert "smallest local crop has a side of about 57 pixels" in spec.notes(256)[1]
