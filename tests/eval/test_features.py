"""The transform of evaluation against slow references, and extraction that pads and drops."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dinojax.data.example import Example
from dinojax.eval.features import EvalTransform, extract, selected
from dinojax.weights.pixels import center_crop


def transform(**changes):
    settings = {"resize_size": 8, "crop_size": 6, "normalize": "fixed"}
    settings |= {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)} | changes
    return EvalTransform(**settings)


class RandomSource:
    """Images of different sizes from a numpy generator."""

    channels = 3
    class_names = ("a", "b")
    fingerprint = ""

    def __init__(self, size=7):
        rng = np.random.default_rng(0)
        shapes = rng.integers(4, 20, (size, 2))
        self.images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in shapes]
        self.labels = rng.integers(0, 2, size).astype(np.int32)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return Example(self.images[index], int(self.labels[index]), str(index))

    def read(self, index, box_size=None):
        raise AssertionError("evaluation reads images at full size")


@pytest.mark.parametrize("size", [(9, 13), (13, 9), (5, 5), (31, 8)])
def test_transform_equals_resize_cut_scale_normalise(size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    height, width = size
    short = min(size)
    new = (8, int(8 * width / short)) if height == short else (int(8 * height / short), 8)
    resized = Image.fromarray(pixels).resize(new[::-1], Image.Resampling.BICUBIC)
    top, left = round((new[0] - 6) / 2), round((new[1] - 6) / 2)
    cut = np.asarray(resized)[top : top + 6, left : left + 6]
    want = (cut / 255 - np.array([0.5, 0.4, 0.3])) / np.array([0.2, 0.3, 0.4])
    got = transform()(pixels)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_an_image_smaller_than_the_cut_is_centred_on_zeros():
    want = np.zeros((5, 5, 1), np.uint8)
    want[1:3, 1:4] = 9
    np.testing.assert_array_equal(center_crop(np.full((2, 3, 1), 9, np.uint8), 5), want)


def test_odd_offsets_round_to_the_even_neighbour_as_the_reference():
    ramp = np.arange(9, dtype=np.uint8)[:, None, None]
    assert center_crop(np.repeat(ramp, 9, 1), 6)[0, 0, 0] == 2  # round(1.5)
    assert center_crop(np.repeat(ramp[:7], 7, 1), 6)[0, 0, 0] == 0  # round(0.5)


def test_per_crop_gives_each_crop_mean_zero_and_deviation_one():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    pixels[..., 0] //= 4  # channels keep their differences
    got = transform(normalize="per_crop", mean=(), std=())(pixels)
    np.testing.assert_allclose([got.mean(), got.std()], [0, 1], atol=1e-5)
    assert got[..., 0].mean() < -0.5
    flat = transform(normalize="per_crop")(np.full((9, 9, 3), 77, np.uint8))
    np.testing.assert_allclose(flat, 0, atol=1e-5)


def test_wrong_normalisation_is_named():
    with pytest.raises(ValueError, match="image.normalize='none' is unknown; choose of fixed, per"):
        transform(normalize="none")
    with pytest.raises(ValueError, match="3 and 3 values for image.channels=1"):
        transform()(np.zeros((9, 9, 1), np.uint8))


def test_transform_is_built_from_the_sections():
    image = SimpleNamespace(normalize="fixed", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    knn = SimpleNamespace(resize_size=8, crop_size=6)
    assert EvalTransform.from_sections(image=image, knn=knn) == transform()


@pytest.mark.parametrize("batch_size, num_threads", [(1, 0), (3, 2), (7, 1), (100, 2)])
def test_rows_follow_the_source_whatever_the_batch_size(batch_size, num_threads):
    source, traces = RandomSource(), []

    @jax.jit
    def apply_fn(images_BHWC):
        traces.append(images_BHWC.shape)
        pixels_BNC = images_BHWC.reshape(len(images_BHWC), -1, 3)
        return pixels_BNC[:, 0], jnp.mean(pixels_BNC, axis=1)

    found = extract(
        apply_fn, source, transform=transform(), batch_size=batch_size, num_threads=num_threads
    )
    images = np.stack([transform()(pixels) for pixels in source.images])
    np.testing.assert_allclose(found["cls"], images[:, 0, 0], atol=1e-6)
    np.testing.assert_allclose(found["patches"], images.mean((1, 2)), atol=1e-5)
    np.testing.assert_array_equal(found["labels"], source.labels)
    assert traces == [(batch_size, 6, 6, 3)]


def test_both_gives_cls_and_patches_the_same_say():
    found = {"cls": np.array([[3.0, 4.0]]), "patches": np.array([[0.0, 200.0]])}
    np.testing.assert_allclose(selected(found, "both"), [[0.6, 0.8, 0, 1]])
    np.testing.assert_array_equal(selected(found, "patches"), [[0, 200]])
    with pytest.raises(ValueError, match="knn.features='mean' is unknown; choose of cls, patches"):
        selected(found, "mean")
