"""Colours that mean something: planted directions come back, and the PNGs show them."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dinojax.viz.pictures import (
    before_after,
    crop_sheet,
    patch_sheet,
    pca_colors,
    pca_picture,
    similarities,
    similarity_picture,
)
from dinojax.viz.probe import Probe


def planted(seed=0, images=2, patches=12, width=5):
    """Features with three orthogonal directions of falling strength; returns the strengths too."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(images * patches, 3))
    scores -= scores.mean(axis=0)
    scores = np.linalg.qr(scores)[0]
    directions = np.linalg.qr(rng.normal(size=(width, 3)))[0].T
    features = scores @ np.diag([9.0, 4.0, 1.0]) @ directions + rng.normal(size=width)
    return features.reshape(images, patches, width), scores, directions


def whitened(colors):
    return np.log(colors / (1 - colors)) / 2


def test_pca_recovers_planted_directions_with_unit_variance_and_fixed_sign():
    features, scores, directions = planted()
    signs = [np.sign(d[np.argmax(np.abs(d))]) for d in directions]
    got = whitened(pca_colors(features)).reshape(-1, 3)
    np.testing.assert_allclose(got, scores * signs * np.sqrt(len(scores) - 1), atol=1e-8)
    np.testing.assert_allclose(got.var(axis=0, ddof=1), 1, atol=1e-8)


def test_pca_is_shared_by_the_images_shown():
    features, *_ = planted()
    together = pca_colors(features)
    alone = np.concatenate([pca_colors(features[i : i + 1]) for i in range(2)])
    assert np.abs(together - alone).max() > 0.1
    np.testing.assert_allclose(pca_colors(features[::-1]), together[::-1], atol=1e-8)


@pytest.mark.parametrize("features", [np.ones((2, 4, 5)), np.zeros((1, 1, 5)), np.ones((1, 4, 1))])
def test_features_without_variance_are_mid_grey(features):
    np.testing.assert_array_equal(pca_colors(features), 0.5)


def test_a_single_direction_leaves_the_other_colours_grey():
    features = np.arange(8.0)[None, :, None] * np.ones(5)
    colors = pca_colors(features)
    assert np.ptp(colors[0, :, 0]) > 0.5
    np.testing.assert_array_equal(colors[..., 1:], 0.5)


def test_similarity_is_the_cosine_to_the_chosen_patch():
    features = np.array([[[2.0, 0], [0, 3], [-1, 0], [1, 1], [0, 0]]])
    np.testing.assert_allclose(similarities(features, 0), [[1, 0, -1, np.sqrt(0.5), 0]])


def test_similarity_picture_runs_from_dark_to_bright_on_a_fixed_scale():
    features = np.array([[[1.0, 0], [1, 0.5], [0, 1], [-1, 0]]])
    picture = similarity_picture(features, (2, 2), 0)
    brightness = picture.astype(int).sum(axis=-1).reshape(-1)
    assert brightness[0] > brightness[1] > brightness[2] == brightness[3]


def test_patches_must_fill_the_grid():
    with pytest.raises(
        ValueError, match="do not fill a grid of 2 x 2; leave out cls and registers"
    ):
        pca_picture(np.zeros((1, 5, 3)), (2, 2))


def test_sheet_has_image_pca_and_similarity_in_place(tmp_path):
    features, *_ = planted(images=2, patches=4)
    images = np.zeros((2, 128, 128, 1), np.uint8)
    patch_sheet(tmp_path / "new" / "sheet.png", images, features, grid=(2, 2), patch=3)
    sheet = np.asarray(Image.open(tmp_path / "new" / "sheet.png"))
    assert sheet.shape == (16 + 4 + 2 * 132, 4 + 3 * 132, 3)
    top, left = 20 + 132, 4  # the second row
    assert sheet[top + 64, left + 64].tolist() == [255, 40, 40]  # frame of the chosen patch
    assert sheet[top + 10, left + 10].tolist() == [0, 0, 0]
    pca = pca_picture(features, (2, 2))[1]
    np.testing.assert_array_equal(sheet[top + 100, left + 132 + 20], pca[1, 0])
    cosine = similarity_picture(features, (2, 2), 3)[1]
    np.testing.assert_array_equal(sheet[top + 20, left + 264 + 100], cosine[0, 1])


def test_before_and_after_stand_side_by_side(tmp_path):
    before, after = planted(0)[0], planted(1)[0]
    images = np.random.default_rng(0).normal(size=(2, 48, 64, 3))
    before_after(tmp_path / "a.png", images, before, after, grid=(3, 4))
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    cell = (2 * 48 + 4, 2 * 64 + 4)  # enlarged until the text fits
    assert sheet.shape == (16 + 4 + 2 * cell[0], 4 + 5 * cell[1], 3)
    for column, features in ((1, before), (3, after)):
        want = pca_picture(features, (3, 4))[0, 0, 0]
        np.testing.assert_array_equal(sheet[24, 8 + column * cell[1]], want)
    assert sheet[:16].max() > 200  # text


def test_crop_sheet_shows_every_crop_between_its_extremes(tmp_path):
    rng = np.random.default_rng(0)
    global_crops, local_crops = (
        rng.normal(size=(3, 2, 32, 32, 1)),
        rng.normal(size=(3, 4, 16, 16, 1)),
    )
    crop_sheet(tmp_path / "c.png", global_crops, local_crops, max_images=2)
    sheet = np.asarray(Image.open(tmp_path / "c.png"))
    assert sheet.shape == (4 + 2 * 36, 4 + 2 * 36 + 4 * 20, 3)
    crop = local_crops[1, 0, :, :, 0]
    want = np.round(255 * (crop - crop.min()) / np.ptp(crop)).astype(np.uint8)
    np.testing.assert_array_equal(sheet[40:56, 76:92, 0], want)


def looks(folder, *steps, num_patches=4):
    """What a probe with weights that follow from the step says at each of them."""
    rng = np.random.default_rng(0)
    images = [SimpleNamespace(pixels=p) for p in rng.integers(0, 256, (8, 16, 16, 3), np.uint8)]

    class Source(list):
        def read(self, index, box_size):
            return self[index]

    def embed(images_BHWC, step):
        patches = np.random.default_rng(step).normal(size=(len(images_BHWC), num_patches, 5))
        return None, None, patches

    patch_size = 16 // round(num_patches**0.5)
    probe = Probe(Source(images), lambda pixels: pixels / 255.0, folder, patch_size=patch_size)
    return [probe.look(partial(embed, step=step), step) for step in steps]


def test_a_look_repeated_after_a_kill_compares_with_the_same_one_before(tmp_path):
    first, second, third = looks(tmp_path, 0, 4, 8)
    assert first == {} and second != third
    assert looks(tmp_path, 8) == [third]  # killed after the look, before the next checkpoint
    assert looks(tmp_path, 4, 8) == [second, third]  # continued from before both


def test_images_of_another_size_are_not_compared_with_those_before(tmp_path):
    """A later stage at a higher resolution has more patches."""
    looks(tmp_path, 0, 4)
    assert looks(tmp_path, 8, num_patches=16) == [{}]
    assert looks(tmp_path, 12, num_patches=16)[0]["probe/drift"] > 0
