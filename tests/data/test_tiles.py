"""The embedded task: fixed, balanced, and without a pixel shared between splits."""

import importlib.util

import numpy as np
import pytest
from PIL import Image

from dinojax.data.tiles import (
    PHOTOGRAPHS,
    SPLITS,
    photograph_path,
    split_region,
    tile_draws,
    tile_square,
    tiles,
)


@pytest.fixture(scope="module")
def val():
    return tiles(channels=1, split="val")


@pytest.fixture(scope="module")
def sizes():
    found = []
    for name in PHOTOGRAPHS:
        with Image.open(photograph_path(name)) as image:
            found.append(image.size)
    return found


def squares(split, number, size):
    """The squares that a split cuts from one photograph."""
    region = split_region(split, number, size)
    return [tile_square(draw, region) for draw in tile_draws(split)[number :: len(PHOTOGRAPHS)]]


def test_all_sixteen_photographs_are_installed():
    assert len({photograph_path(name) for name in PHOTOGRAPHS}) == 16


def test_no_pixel_is_shared_between_training_validation_and_test(sizes):
    for number, (width, height) in enumerate(sizes):
        seen = np.zeros((3, height, width), bool)
        for row, splits in enumerate((("train", "bank"), ("val",), ("test",))):
            for split in splits:
                for left, top, right, bottom in squares(split, number, (width, height)):
                    seen[row, top:bottom, left:right] = True
        assert seen.sum(axis=0).max() == 1
        assert seen.any(axis=(1, 2)).all()


def test_tiles_are_squares_of_48_to_110_pixels_inside_the_photograph(sizes):
    for split in SPLITS:
        sides = []
        for number, (width, height) in enumerate(sizes):
            for left, top, right, bottom in squares(split, number, (width, height)):
                assert right - left == bottom - top
                assert 0 <= left < right <= width and 0 <= top < bottom <= height
                sides.append(right - left)
        assert (min(sides), max(sides), len(sides)) == (48, 110, SPLITS[split])


def test_a_tile_is_its_square_resized(val):
    index = 35  # photograph 3, in colour, of a JPEG
    with Image.open(photograph_path("hubble_deep_field")) as image:
        square = tile_square(tile_draws("val")[index], split_region("val", 3, image.size))
        want = image.convert("L").crop(square).resize((48, 48), Image.Resampling.BICUBIC)
    example = val[index]
    np.testing.assert_array_equal(example.pixels[:, :, 0], np.asarray(want))
    assert example.label == 3 and "hubble" in example.name


def test_classes_are_balanced_and_tiles_differ(val):
    assert np.bincount(val.labels).tolist() == [60] * 16
    assert len(np.unique(val.pixels_NHWC.reshape(960, -1), axis=0)) > 950
    assert val.pixels_NHWC.dtype == np.uint8 and val.class_names == tuple(PHOTOGRAPHS)


def test_tiles_are_the_same_every_time(val):
    again = tiles(channels=1, split="val")
    np.testing.assert_array_equal(again.pixels_NHWC, val.pixels_NHWC)
    assert again.fingerprint == val.fingerprint
    # Pinned: another draw would make published numbers of the task incomparable.
    np.testing.assert_allclose(
        tile_draws("val")[0], [0.23745085, 0.53145935, 0.04384682], atol=1e-7
    )


def test_colour_tiles_cut_the_same_squares(val):
    colour = tiles(channels=3, split="val")
    grey_photographs = np.isin(val.labels, [list(PHOTOGRAPHS).index(n) for n in ("brick", "page")])
    np.testing.assert_array_equal(
        colour.pixels_NHWC[grey_photographs], np.repeat(val.pixels_NHWC[grey_photographs], 3, 3)
    )
    assert colour.fingerprint != val.fingerprint
    assert np.ptp(colour.pixels_NHWC[0].astype(int), axis=2).max() > 20


def test_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ModuleNotFoundError, match=r"package skimage.*pip install 'dinojax\[demo\]'"
    ):
        tiles(channels=1)


def test_wrong_arguments_name_the_choices():
    with pytest.raises(ValueError, match="no split 'dev'; choose of train, bank, val, test"):
        tiles(channels=1, split="dev")
    with pytest.raises(ValueError, match="image.channels=1 or 3, got 4"):
        tiles(channels=4)
    with pytest.raises(ValueError, match="data.path=x: the embedded tiles take no path"):
        tiles(channels=1, path="x")


def test_raw_pixels_know_little_of_the_task(val):
    """Were a region to leak into another, raw pixels would do far better than this."""
    bank = tiles(channels=1, split="bank")
    bank_ND, queries_MD = (standardised(source.pixels_NHWC) for source in (bank, val))
    nearest_M = np.argmax(queries_MD @ bank_ND.T, axis=1)
    accuracy = np.mean(bank.labels[nearest_M] == val.labels)
    assert 0.15 < accuracy < 0.30  # chance is 0.0625


def standardised(pixels_NHWC):
    values_ND = pixels_NHWC[:, ::2, ::2].reshape(len(pixels_NHWC), -1).astype(np.float32)
    values_ND -= values_ND.mean(axis=1, keepdims=True)
    return values_ND / np.maximum(np.linalg.norm(values_ND, axis=1, keepdims=True), 1e-6)
