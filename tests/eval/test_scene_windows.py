"""The grid of windows, what is promised of it, and nodata that no network sees."""

import numpy as np
import pytest
from scipy import ndimage

from dinojax.data.scene import open_scene
from dinojax.eval.scene_windows import Seen, border_of, places, predictions
from dinojax.weights.preprocess import Preprocessing
from tests.support.scenes import NODATA, scene, waves

pytest.importorskip("rasterio")

MEAN, STD = (0.4, 0.5), (0.2, 0.3)
FIXED = Preprocessing(32, 32, "fixed", MEAN, STD)
RANGE = (0.0, 3000.0)


@pytest.mark.parametrize("shape", [(100, 57), (32, 32), (10, 200), (33, 31)])
@pytest.mark.parametrize("border", [0, 5, 15])
def test_insides_tile_the_scene_and_keep_off_borders(shape, border):
    visits = np.zeros(shape, int)
    for place in places(*shape, size=32, border=border):
        visits[slice(*place.rows), slice(*place.columns)] += 1
        for at, (low, high), side in zip(
            (place.top, place.left), (place.rows, place.columns), shape, strict=True
        ):
            assert at >= 0 and at + 32 <= max(side, 32)
            assert low - at >= border or low == 0
            assert at + 32 - high >= border or high == side
    assert (visits == 1).all()


def test_windows_of_whole_patches_begin_at_patches():
    assert border_of(48, 16) == 0 and border_of(512, 16) == 80 and border_of(224, 14) == 28
    for place in places(96, 160, size=48, border=16):
        assert not [x % 16 for x in (place.top, place.left, *place.rows, *place.columns) if x % 16]


def mapped(path, local, *, border, batch_size=3, preprocessing=FIXED):
    """What a function of windows [B, S, S, C] -> [B, S, S] says of a scene, NaN where nodata is."""
    found = open_scene(path)
    seen, grid = (
        Seen(found, preprocessing, RANGE),
        places(found.height, found.width, size=32, border=border),
    )
    whole = np.full((found.height, found.width), np.nan)
    for place, known, part in predictions(seen, grid, local, size=32, batch_size=batch_size):
        inside = place.inside(np.where(known, part, np.nan))
        whole[slice(*place.rows), slice(*place.columns)] = inside
    return whole


def blurred(reach):
    """A box around every pixel, whose outside repeats the last one, of the sum of the bands."""

    def of_windows(images):
        return np.stack(
            [ndimage.uniform_filter(x.sum(-1), 2 * reach + 1, mode="nearest") for x in images]
        )

    return of_windows


def whole_image(values):
    bytes_HWC = np.floor(values / 3000 * 255 + 0.5).astype(np.float32)
    return ((bytes_HWC / 255 - np.float32(MEAN)) / np.float32(STD)).astype(np.float32)


def test_what_looks_no_further_than_the_border_finds_what_it_would_in_the_whole_scene(tmp_path):
    values = waves(101, 77, 2)
    path = scene(tmp_path / "a.tif", values)
    want = blurred(5)(whole_image(values)[None])[0]
    np.testing.assert_allclose(mapped(path, blurred(5), border=5), want, atol=1e-5)
    assert np.abs(mapped(path, blurred(5), border=2) - want).max() > 1e-3  # a border too narrow


def test_batches_change_nothing(tmp_path):
    path = scene(tmp_path / "a.tif", waves(101, 77, 2))
    one, many = (mapped(path, blurred(9), border=5, batch_size=n) for n in (1, 5))
    np.testing.assert_array_equal(one, many)


@pytest.mark.parametrize("normalize", ["fixed", "per_crop"])
def test_values_under_nodata_are_never_seen(tmp_path, normalize):
    """Two scenes that differ in nothing but what a band holds where another is nodata."""
    own = Preprocessing(32, 32, normalize, MEAN, STD)
    values = waves(64, 64, 2)
    values[10:20, 5:50, 0] = NODATA
    other = values.copy()
    other[10:20, 5:50, 1] = 2999 - other[10:20, 5:50, 1]
    first, second = (
        mapped(scene(tmp_path / name, v), blurred(3), border=3, preprocessing=own)
        for name, v in (("a.tif", values), ("b.tif", other))
    )
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(np.isnan(first), values[:, :, 0] == NODATA)


def test_nodata_is_the_mean_and_statistics_of_a_window_leave_it_out(tmp_path):
    values = waves(32, 32, 2)
    values[:16] = NODATA
    found = open_scene(scene(tmp_path / "a.tif", values))
    with found.opened() as read:
        window = read((0, 0, 32, 32))
    fixed = Seen(found, FIXED, RANGE)(*window)
    assert not fixed[:16].any()
    np.testing.assert_allclose(fixed[16:], whole_image(values[16:]), atol=1e-6)
    own = Seen(found, Preprocessing(32, 32, "per_crop", None, None), RANGE)(*window)[16:]
    assert abs(own.mean()) < 1e-5 and abs(own.std() - 1) < 1e-5


def test_windows_without_a_known_pixel_are_not_computed(tmp_path):
    values = np.full((96, 96, 2), NODATA, np.uint16)
    values[70, 70] = 1000
    seen = []

    def counted(images):
        seen.append(images.any((1, 2, 3)).sum())
        return images[..., 0]

    found = mapped(scene(tmp_path / "a.tif", values), counted, border=0)
    assert sum(seen) == 1 and np.isfinite(found).sum() == 1
    with pytest.raises(ValueError, match=r"b\.tif: every pixel is nodata"):
        mapped(scene(tmp_path / "b.tif", np.full_like(values, NODATA)), counted, border=0)
    assert sum(seen) == 1
