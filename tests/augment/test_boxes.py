"""Crop boxes against a slow loop, at the edges, and in distribution."""

import functools
import math

import jax
import numpy as np
import pytest

from dinojax.augment import boxes

ASPECT = (3 / 4, 4 / 3)


def reference_box(draws, size, area, aspect):
    """The textbook loop: up to ten tries, then the centre."""
    height, width = size
    for i in range(boxes.NUM_TRIES):
        target = (area[0] + draws[2 * i] * (area[1] - area[0])) * height * width
        low, high = math.log(aspect[0]), math.log(aspect[1])
        ratio = math.exp(low + draws[2 * i + 1] * (high - low))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(draws[-2] * (height - h + 1)), int(draws[-1] * (width - w + 1)), h, w
    if width / height < aspect[0]:
        w, h = width, round(width / aspect[0])
    elif width / height > aspect[1]:
        w, h = round(height * aspect[1]), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@functools.cache
def jitted(area):
    one = functools.partial(boxes.choose_box, area=area, aspect=ASPECT)
    return jax.jit(jax.vmap(one))


def draw(num, area, size, seed=0):
    draws = np.random.default_rng(seed).random((num, boxes.NUM_DRAWS), dtype=np.float32)
    sizes = np.broadcast_to(np.asarray(size, np.int32), (num, 2))
    return draws, sizes, np.asarray(jitted(area)(draws, sizes))


def test_boxes_equal_the_textbook_loop():
    area, num = (0.32, 1.0), 2000
    rng = np.random.default_rng(1)
    draws = rng.random((num, boxes.NUM_DRAWS), dtype=np.float32)
    sizes = rng.integers(1, 300, (num, 2), dtype=np.int32)
    got = np.asarray(jitted(area)(draws, sizes))
    want = np.array(
        [reference_box(d.astype(float), s, area, ASPECT) for d, s in zip(draws, sizes, strict=True)]
    )
    differs = np.any(got != want, axis=1)
    assert differs.mean() < 0.002  # float32 and float64 round a few sizes differently
    assert np.abs(got - want)[differs].max(initial=0) <= 1


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 3), (512, 512)])
def test_boxes_lie_inside_the_true_size(size):
    _, _, got = draw(1000, (0.05, 0.32), size)
    top, left, height, width = got.T
    assert min(top.min(), left.min()) >= 0 and min(height.min(), width.min()) >= 1
    assert (top + height).max() <= size[0] and (left + width).max() <= size[1]


@pytest.mark.parametrize(
    ("size", "want"), [((40, 400), (0, 173, 40, 53)), ((400, 40), (173, 0, 53, 40))]
)
def test_long_images_fall_back_to_a_centred_box_in_the_aspect_range(size, want):
    _, _, got = draw(10, (0.9, 1.0), size)
    np.testing.assert_array_equal(got, np.broadcast_to(want, got.shape))


def test_area_is_uniform_and_aspect_log_uniform():
    num = 20_000
    _, _, got = draw(num, (0.05, 0.32), (480, 512), seed=2)
    share = got[:, 2] * got[:, 3] / (480 * 512)
    aspect = np.log(got[:, 3] / got[:, 2]) / math.log(4 / 3)
    for values, low, high in ((share, 0.05, 0.32), (aspect, -1.0, 1.0)):
        quantiles = np.quantile(values, np.linspace(0.1, 0.9, 9))
        error = (quantiles - low) / (high - low) - np.linspace(0.1, 0.9, 9)
        assert np.abs(error).max() < 4 * 0.5 / math.sqrt(num) + 0.003  # 0.003: whole pixels


def test_position_is_uniform_over_all_that_fit():
    _, _, got = draw(20_000, (0.05, 0.32), (480, 512), seed=3)
    place = got[:, :2] / np.maximum(np.array([480, 512]) - got[:, 2:], 1)
    assert np.abs(place.mean(0) - 0.5).max() < 0.01
    assert np.abs(place.var(0) - 1 / 12).max() < 0.004
    assert np.all(got[:, :2].min(0) == 0)
