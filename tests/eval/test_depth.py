"""Depth: metrics of known maps, losses that holes do not reach, bins, canopy heights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.eval import canopy, depth_bins, depth_losses, depth_metrics, depth_transforms


def test_metrics_of_three_pixels():
    found = depth_metrics.depth_metrics(np.array([1.1, 2, 5]), np.array([1.0, 2, 4]))
    assert found["rmse"] == pytest.approx(0.5802298)
    assert found["abs_rel"] == pytest.approx(0.1166667, rel=1e-5)
    assert found["log10"] == pytest.approx(0.0461009, rel=1e-5)
    assert found["silog"] == pytest.approx(9.141994)
    assert found["a1"] == pytest.approx(2 / 3)  # 5 / 4 is not below 1.25


def test_errors_are_averaged_over_images_and_not_over_pixels():
    images = [depth_metrics.depth_metrics(np.ones(4) + e, np.ones(4)) for e in (0.0, 1.0)]
    assert depth_metrics.mean_over_images(images)["rmse"] == pytest.approx(0.5)
    empty = depth_metrics.depth_metrics(np.ones(4), np.zeros(4))
    assert np.isnan(empty["rmse"]) and empty["silog"] == 0
    assert depth_metrics.mean_over_images([*images, empty])["rmse"] == pytest.approx(0.5)


def test_the_ends_of_the_range_are_not_valid():
    truth = np.array([0.0, 0.001, 5.0, 10.0])
    assert depth_metrics.valid_depth(truth, 0.001, 10).tolist() == [False, False, True, False]


def test_bins_and_their_even_mean():
    assert depth_bins.bins("linear", 256, 0.001, 10)[1] == pytest.approx(0.0402118, rel=1e-5)
    options = {"kind": "linear", "norm": "linear", "min_depth": 0.001, "max_depth": 10.0}
    even = depth_bins.depth_of(jnp.zeros((1, 1, 1, 256)), **options)
    assert float(even[0, 0, 0]) == pytest.approx(5.0005)
    with pytest.raises(ValueError, match="norm 'tanh' is unknown"):
        depth_bins.depth_of(jnp.zeros((1, 1, 1, 4)), **options | {"norm": "tanh"})


def test_the_scale_invariant_loss_of_three_pixels_and_of_a_perfect_map():
    depth, truth = jnp.array([[[1.0, 2, 4]]]), jnp.ones((1, 1, 3))
    valid = jnp.ones((1, 1, 3), bool)
    loss = jax.jit(depth_losses.sig_loss)
    late, warm = (loss(depth, truth, valid, with_variance=flag) for flag in (True, False))
    assert (float(late), float(warm)) == pytest.approx((0.7429098, 0.2682935))
    perfect = jax.jit(jax.grad(depth_losses.sig_loss))(truth, truth, valid, with_variance=True)
    assert np.array_equal(perfect, np.zeros((1, 1, 3)))


def test_holes_reach_neither_losses_nor_gradients():
    rng = np.random.default_rng(0)
    depth, truth = jnp.asarray(rng.uniform(1, 5, (2, 1, 12, 14)), jnp.float32)
    valid = jnp.asarray(rng.random((1, 12, 14)) < 0.6)
    holes = jnp.where(valid, truth, jnp.nan)

    def losses(d, t):
        sig = depth_losses.sig_loss(d, t, valid, with_variance=True)
        return jnp.stack(
            [
                sig,
                depth_losses.gradient_loss(d, t, valid, log=True),
                depth_losses.l1_loss(d, t, valid),
            ]
        )

    gradients = jax.jit(jax.jacobian(losses))
    clean, dirty = (gradients(depth, t) for t in (jnp.where(valid, truth, 0), holes))
    assert np.allclose(clean, dirty) and np.isfinite(dirty).all()
    assert np.asarray(dirty).any(axis=(1, 2, 3)).all()
    assert not np.asarray(dirty)[:, ~np.asarray(valid)].any()


def test_an_affine_map_is_undone_by_the_least_squares_fit():
    truth = np.random.default_rng(0).uniform(1, 9, (2, 5, 6))
    aligned, fit = depth_metrics.align((truth - 3) / 2, truth, truth > 2)
    assert np.allclose(aligned, truth) and np.allclose(fit, [[2, 3], [2, 3]])


def test_a_random_view_keeps_image_and_depth_together():
    transform = depth_transforms.DepthTrainTransform((24, 32), lambda x: x, angle=0.0)
    ramp = np.tile(np.arange(60, dtype=np.uint8)[:, None, None], (1, 80, 3))
    image, depth = transform(ramp, ramp[..., 0].astype(np.float32), np.random.default_rng(4))
    assert image.shape == (24, 32, 3) and depth.shape == (24, 32)
    assert np.all(np.diff(depth, axis=0) == 1)
    assert np.all(np.diff(image[..., 0], axis=0) > 0)
    with pytest.raises(ValueError, match="smaller than a crop"):
        transform(ramp[:10], ramp[:10, :, 0], np.random.default_rng(0))


def test_a_constant_error_of_canopy_heights():
    truth = np.random.default_rng(0).uniform(3, 30, (2, 103, 103))
    found = canopy.canopy_metrics(truth + 1.5, truth, block=20)
    variance = np.var(canopy.block_means(truth, block=20))
    assert found["mae"] == pytest.approx(1.5)
    assert found["block_r2"] == pytest.approx(1 - 1.5**2 / variance)
    assert found["cover_iou"] == pytest.approx(1, abs=1e-4)
    with pytest.raises(ValueError, match="hold no block"):
        canopy.block_means(truth, block=200)


def test_the_parts_of_frames_that_are_used():
    whole = np.arange(375 * 1242).reshape(375, 1242)
    part = whole[depth_transforms.frame("kitti", 375, 1242, learn=False)]
    assert part.shape == (352, 1216)
    assert part[0, 0] == whole[23, 13] and part[-1, -1] == whole[374, 1228]
    assert whole[depth_transforms.frame("nyu", 375, 1242, learn=False)].shape == whole.shape
    nyu = np.zeros((480, 640))[depth_transforms.frame("nyu", 480, 640, learn=True)]
    assert nyu.shape == (427, 565)
    with pytest.raises(ValueError, match="300 x 1242 pixels hold no part of 352 x 1216"):
        depth_transforms.frame("kitti", 300, 1242, learn=True)


def test_what_is_judged_of_a_frame_of_kitti():
    for mask, box in (
        (depth_metrics.garg_mask, (143, 349, 43, 1172)),
        (depth_metrics.eigen_kitti_mask, (117, 321, 43, 1172)),
    ):
        rows, columns = (np.flatnonzero(mask(352, 1216).any(axis)) for axis in (1, 0))
        assert (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1) == box
