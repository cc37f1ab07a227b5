"""Resized crops against Pillow and against a slow reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageFilter

from dinojax.augment import resample

SIDE = 72


def image(rng, side=SIDE, channels=3):
    """Smooth shapes and noise, so that both flat and busy places occur."""
    noise = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2)), np.float32)
    pixels = np.clip((smooth - 128) * 4 + 128 + rng.normal(0, 12, smooth.shape), 0, 255)
    return pixels.astype(np.uint8)[..., :channels]


def pillow_crop(pixels, box, size):
    """Horizontal pass, then vertical: the order of Pillow up to 12; later ones may swap them."""
    top, left, height, width = (int(v) for v in box)
    crop = Image.fromarray(pixels).crop((left, top, left + width, top + height))
    halfway = crop.resize((size, height), Image.Resampling.BICUBIC)
    return np.asarray(halfway.resize((size, size), Image.Resampling.BICUBIC))


def some_boxes(rng, num):
    heights, widths = rng.integers(3, SIDE + 1, (2, num))
    return np.stack(
        [rng.integers(0, SIDE + 1 - heights), rng.integers(0, SIDE + 1 - widths), heights, widths],
        axis=1,
    ).astype(np.int32)


resize = jax.jit(resample.resize, static_argnums=1, static_argnames="whole")
resize_weights = jax.jit(resample.resize_weights, static_argnums=(2, 3))


@functools.cache
def jitted(size):
    return jax.jit(functools.partial(resample.cut_crops, size=size))


@pytest.mark.parametrize("size", [16, 37, 96])
def test_crops_equal_pillow_within_one_level(size):
    """Scales from 5 times smaller to 32 times larger; 1 level differs in under 0.1 % of values."""
    rng = np.random.default_rng(size)
    differences = []
    for _ in range(4):
        pixels, boxes = image(rng), some_boxes(rng, 24)
        got = np.asarray(jitted(size)(pixels, boxes, np.zeros(24, bool)))
        want = np.stack([pillow_crop(pixels, box, size) for box in boxes])
        differences.append(np.abs(got - np.moveaxis(want, -1, 1)))
    assert np.max(differences) <= 1
    assert np.mean(np.array(differences) > 0) < 1e-3


def test_a_crop_of_its_own_size_is_a_copy():
    pixels = image(np.random.default_rng(0))
    got = jitted(16)(pixels, np.array([[5, 9, 16, 16]], np.int32), np.zeros(1, bool))
    np.testing.assert_array_equal(got[0], np.moveaxis(pixels[5:21, 9:25], -1, 0))


def test_flip_mirrors_the_crop():
    pixels, boxes = image(np.random.default_rng(1)), np.array([[3, 8, 40, 50]] * 2, np.int32)
    plain, mirrored = np.asarray(jitted(16)(pixels, boxes, np.array([False, True])))
    np.testing.assert_array_equal(mirrored, plain[:, :, ::-1])
    assert np.any(mirrored != plain)


def test_pixels_outside_the_box_do_not_reach_the_crop():
    pixels = image(np.random.default_rng(2))
    other = 255 - pixels
    other[20:50, 10:60] = pixels[20:50, 10:60]
    boxes = np.array([[20, 10, 30, 50]], np.int32)
    a, b = (jitted(37)(p, boxes, np.zeros(1, bool)) for p in (pixels, other))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("channels", [1, 2])
def test_any_number_of_channels_resizes_each_alone(channels):
    pixels, boxes = image(np.random.default_rng(3)), np.array([[1, 2, 33, 44]], np.int32)
    rgb = jitted(16)(pixels, boxes, np.zeros(1, bool))
    some = jitted(16)(pixels[..., :channels], boxes, np.zeros(1, bool))
    np.testing.assert_array_equal(some, rgb[:, :channels])


@pytest.mark.parametrize(("size", "new_size"), [(24, 17), (17, 40)])
def test_resize_equals_pillow_and_a_float_reference(size, new_size):
    pixels = image(np.random.default_rng(4), side=size)
    crop = jnp.asarray(np.moveaxis(pixels, -1, 0), jnp.float32)
    whole = np.moveaxis(np.asarray(resize(crop, new_size, whole=True)), 0, -1)
    assert np.abs(whole - pillow_crop(pixels, (0, 0, size, size), new_size)).max() <= 1
    planes = [Image.fromarray(plane) for plane in np.asarray(crop) / 100 - 1]
    want = [p.resize((new_size, new_size), Image.Resampling.BICUBIC) for p in planes]
    got = resize(crop / 100 - 1, new_size, whole=False)
    np.testing.assert_allclose(got, np.stack([np.asarray(p) for p in want]), atol=1e-5)


def test_weights_of_every_output_pixel_sum_to_one():
    for start, length in ((0, 1), (5, 2), (0, 72), (30, 41)):
        weights = np.asarray(resize_weights(start, length, 16, SIDE))
        np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
        assert np.all(weights[:, :start] == 0) and np.all(weights[:, start + length :] == 0)


def test_three_bfloat16_products_have_the_digits_of_a_float32_one():
    """What accelerators compute, against float64: no further from it than float32 is, times two."""
    rng = np.random.default_rng(5)
    whole = rng.integers(0, 256, (3, 30, 40)).astype(np.float32)
    weights = np.asarray(resize_weights(4, 30, 20, 40)).astype(np.float32)
    spec = "xw,chw->xch"
    want = np.einsum(spec, weights.astype(np.float64), whole.astype(np.float64))
    single = np.einsum(spec, weights, whole)
    got = np.asarray(
        jax.jit(functools.partial(resample._in_parts, spec, weights=0))(weights, whole)
    )
    assert got.dtype == np.float32
    assert np.max(np.abs(got - want)) <= 2 * np.max(np.abs(single - want)) < 1e-3
    two = functools.partial(resample._in_parts, spec, weights=1)  # the wrong operand split
    assert np.max(np.abs(np.asarray(two(weights, whole)) - want)) > 0.01
