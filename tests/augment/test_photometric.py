"""Colour operations against slow references, Pillow and colorsys; realised rates of the draws."""

import colorsys
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from dinojax.augment import photometric as ph

STRENGTHS = ph.Strengths(
    jitter_rate=0.8,
    brightness=0.4,
    contrast=0.4,
    saturation=0.2,
    hue=0.1,
    grayscale_rate=0.2,
    blur_sigma=(0.1, 2.0),
    blur_kernel=9,
    solarize_threshold=128.0,
)
OPS = ph.JITTER_OPS


def colours(seed=0, side=12):
    """Noise, with a gray, a black, a white and a saturated pixel among it; [3, H, W]."""
    crop = np.random.default_rng(seed).integers(0, 256, (3, side, side)).astype(np.float32)
    crop[:, 0, :4] = np.array([[77, 0, 255, 255], [77, 0, 255, 0], [77, 0, 255, 0]])
    return crop


def pillow(crop):
    return Image.fromarray(np.moveaxis(crop, 0, -1).astype(np.uint8))


def planes(picture):
    return np.moveaxis(np.asarray(picture), -1, 0).astype(np.float32)


def reference_op(name, crop, factor):
    """One operation in float64, pixel by pixel where it is not obvious."""
    crop = crop.astype(np.float64)
    gray = 0.299 * crop[0] + 0.587 * crop[1] + 0.114 * crop[2]
    if name == "hue":
        out = np.empty_like(crop)
        for y, x in np.ndindex(crop.shape[1:]):
            h, s, v = colorsys.rgb_to_hsv(*(crop[:, y, x] / 255))
            out[:, y, x] = colorsys.hsv_to_rgb((h + factor) % 1.0, s, v)
        return np.clip(out * 255, 0, 255)
    other = {"brightness": 0.0, "contrast": gray.mean(), "saturation": gray}[name]
    return np.clip(factor * crop + (1 - factor) * other, 0, 255)


FUNCTIONS = {
    "brightness": jax.jit(ph.adjust_brightness),
    "contrast": jax.jit(ph.adjust_contrast),
    "saturation": jax.jit(ph.adjust_saturation),
    "hue": jax.jit(ph.adjust_hue),
}
blur = jax.jit(ph.gaussian_blur, static_argnames="kernel_size")


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("strength", [-0.4, 0.0, 0.33, 0.5])
def test_each_colour_operation_equals_its_slow_reference(name, strength):
    factor = strength if name == "hue" else 1 + strength
    got = FUNCTIONS[name](jnp.asarray(colours()), factor)
    np.testing.assert_allclose(got, reference_op(name, colours(), factor), atol=2e-3)


@pytest.mark.parametrize(
    ("name", "enhancer"),
    [
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("saturation", ImageEnhance.Color),
    ],
)
@pytest.mark.parametrize("factor", [0.6, 1.35])
def test_blends_equal_pillow_within_its_rounding(name, enhancer, factor):
    got = FUNCTIONS[name](jnp.asarray(colours()), factor)
    want = planes(enhancer(pillow(colours())).enhance(factor))
    # Pillow rounds its gray to whole levels and cuts the fraction off the blend.
    assert np.abs(np.asarray(got) - want).max() <= 1.001 + 0.5 * abs(1 - factor)


def test_grayscale_equals_pillow_within_rounding():
    got = np.asarray(ph.grayscale(jnp.asarray(colours())))
    want = np.asarray(pillow(colours()).convert("L"), np.float32)
    assert np.abs(got - want[None]).max() <= 0.51
    np.testing.assert_array_equal(got[0], got[2])


def test_solarize_equals_pillow():
    got = ph.solarize(jnp.asarray(colours()), 128.0)
    np.testing.assert_array_equal(got, planes(ImageOps.solarize(pillow(colours()), 128)))


@functools.cache
def jitted_jitter(ops):
    return jax.jit(jax.vmap(functools.partial(ph.color_jitter, ops=ops), in_axes=(None, 0, 0)))


@pytest.mark.parametrize("ops", [OPS, ("brightness", "contrast"), ("contrast", "hue"), ("hue",)])
def test_jitter_applies_its_operations_in_every_order(ops):
    crop = colours(side=8)
    table = {"brightness": 1.4, "contrast": 0.6, "saturation": 1.2, "hue": 0.09}
    orders = np.array(list(itertools.permutations(range(len(ops)))), np.int32)
    factors = np.array([table[name] for name in ops], np.float32)
    got = jitted_jitter(ops)(crop, np.broadcast_to(factors, orders.shape), orders)
    for result, order in zip(np.asarray(got), orders, strict=True):
        want = crop
        for i in order:
            want = reference_op(ops[i], want, factors[i])
        np.testing.assert_allclose(result, want, atol=5e-3)


def reference_blur(crop, sigma, size):
    half = size // 2
    taps = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
    kernel = np.outer(taps, taps) / taps.sum() ** 2
    padded = np.pad(crop.astype(np.float64), ((0, 0), (half, half), (half, half)), mode="reflect")
    out = np.empty(crop.shape)
    for c, y, x in np.ndindex(crop.shape):
        out[c, y, x] = np.sum(kernel * padded[c, y : y + size, x : x + size])
    return out


@pytest.mark.parametrize(
    ("sigma", "size", "side"), [(0.1, 9, 12), (0.7, 9, 12), (2.0, 9, 5), (1.0, 3, 8)]
)
def test_blur_equals_a_mirrored_convolution(sigma, size, side):
    crop = colours(side=side)
    got = blur(crop, sigma, kernel_size=size)
    np.testing.assert_allclose(got, reference_blur(crop, sigma, size), atol=2e-3)


def test_one_channel_keeps_brightness_and_contrast():
    crop = colours()[:1]
    got = ph.adjust_contrast(jnp.asarray(crop), 0.7)
    np.testing.assert_allclose(got, 0.7 * crop + 0.3 * crop.mean(), atol=1e-3)
    np.testing.assert_allclose(ph.adjust_brightness(jnp.asarray(crop), 0.5), crop / 2, atol=1e-4)


def test_fixed_normalisation_is_per_channel():
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    got = ph.normalize_fixed(jnp.asarray(colours()), mean, std)
    want = (colours() / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_per_crop_normalisation_has_zero_mean_and_unit_deviation_over_all_channels():
    got = np.asarray(ph.normalize_per_crop(jnp.asarray(colours() * 0.1)))
    assert abs(got.mean()) < 1e-5 and abs(got.std() - 1) < 1e-4
    assert np.abs(got.mean((1, 2))).max() > 1e-3  # not channel by channel


def test_per_crop_normalisation_of_a_flat_crop_is_zero():
    got = ph.normalize_per_crop(jnp.full((1, 4, 4), 200.0))
    assert np.abs(np.asarray(got)).max() < 1e-2


@functools.cache
def jitted_choose(strengths):
    return jax.jit(
        jax.vmap(
            lambda draws, blur, solarize: ph.choose(
                draws, strengths, blur_rate=blur, solarize_rate=solarize
            )
        )
    )


def many_choices(num, blur, sol, strengths=STRENGTHS):
    draws = np.random.default_rng(0).random((num, ph.NUM_DRAWS), dtype=np.float32)
    full = functools.partial(np.full, num, dtype=np.float32)
    return jax.tree.map(np.asarray, jitted_choose(strengths)(draws, full(blur), full(sol)))


def test_realised_rates_are_those_asked_for():
    num = 20_000
    for blur in (0.0, 0.9, 0.5):
        got = many_choices(num, blur, 0.2)
        for flags, p in (
            (got.jitter, 0.8),
            (got.grayscale, 0.2),
            (got.blur, blur),
            (got.solarize, 0.2),
        ):
            assert abs(flags.mean() - p) <= 4 * np.sqrt(p * (1 - p) / num)
    assert not many_choices(num, 0.0, 0.0).blur.any()
    assert many_choices(num, 1.0, 1.0).solarize.all()


def test_factors_are_uniform_in_their_ranges_and_orders_equally_likely():
    num = 20_000
    got = many_choices(num, 0.5, 0.2)
    centre, reach = np.array([1, 1, 1, 0]), np.array([0.4, 0.4, 0.2, 0.1])
    scaled = (got.factors - centre) / reach
    assert np.abs(scaled).max() <= 1.0001
    assert np.abs(scaled.mean(0)).max() < 0.02 and np.abs(scaled.var(0) - 1 / 3).max() < 0.01
    assert abs(got.sigma.mean() - 1.05) < 0.02 and got.sigma.min() >= 0.1 and got.sigma.max() <= 2
    _, often = np.unique(got.order, axis=0, return_counts=True)
    assert len(often) == 24
    assert np.abs(often / num - 1 / 24).max() < 4.5 * np.sqrt(1 / 24 / num)
    drawn = np.stack([got.jitter, got.grayscale, got.blur, got.solarize, got.sigma], 1)
    everything = np.corrcoef(np.concatenate([drawn, scaled], axis=1).T) - np.eye(9)
    assert np.abs(everything).max() < 4.5 / np.sqrt(num)  # all draws are independent


def test_choices_off_leave_the_crop_untouched_and_on_match_the_operations():
    crop = jnp.asarray(colours())
    off = ph.Choices(
        jitter=jnp.bool_(False),
        factors=jnp.array([1.3, 0.7, 1.1, 0.05]),
        order=jnp.array([2, 0, 3, 1]),
        grayscale=jnp.bool_(False),
        blur=jnp.bool_(False),
        sigma=jnp.float32(1.5),
        solarize=jnp.bool_(False),
    )
    run = jax.jit(
        functools.partial(ph.distort, strengths=STRENGTHS, can_blur=True, can_solarize=True)
    )
    np.testing.assert_array_equal(run(crop, off), crop)
    flags = dict.fromkeys(("jitter", "grayscale", "blur", "solarize"), jnp.bool_(True))
    on = dataclasses.replace(off, **flags)
    want = ph.color_jitter(crop, on.factors, on.order, ops=OPS)
    want = ph.gaussian_blur(ph.grayscale(want), on.sigma, kernel_size=9)
    np.testing.assert_allclose(run(crop, on), ph.solarize(want, 128.0), atol=1e-2)
