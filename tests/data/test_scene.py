"""Scenes are read by windows, with what is nodata, and written where they lie."""

import subprocess
import sys

import numpy as np
import pytest

from dinojax.data import geotiff
from dinojax.data import scene as scenes
from dinojax.data.geotiff import written
from dinojax.data.scene import is_scene, open_scene, starts
from tests.support.scenes import CORNER, METRES, NODATA, scene, waves
from tests.support.stored_data import saved, tiff

rasterio = pytest.importorskip("rasterio")


def read(found, *window):
    with found.opened() as read_window:
        return read_window(window)


def test_windows_hold_the_values_of_the_whole_and_nothing_outside(tmp_path):
    values = waves(50, 70)
    found = open_scene(scene(tmp_path / "a.tif", values, nodata=None))
    assert (found.height, found.width, found.bands, found.dtype) == (50, 70, (1, 2, 3, 4), "uint16")
    assert "32633" in found.crs and found.transform == (METRES, 0, CORNER[0], 0, -METRES, CORNER[1])
    got, known = read(found, 40, 60, 20, 20)
    np.testing.assert_array_equal(got[:10, :10], values[40:, 60:])
    assert known[:10, :10].all() and known.sum() == 100
    assert not got[10:].any() and not got[:, 10:].any()


def test_a_pixel_is_nodata_where_any_band_is(tmp_path):
    values = waves(20, 20, 2)
    values[3, 4, 0], values[5, 6, 1] = NODATA, NODATA
    _, known = read(open_scene(scene(tmp_path / "a.tif", values)), 0, 0, 20, 20)
    assert sorted(map(tuple, np.argwhere(~known))) == [(3, 4), (5, 6)]
    one = open_scene(tmp_path / "a.tif", bands=[2])
    got, known = read(one, 0, 0, 20, 20)
    assert list(map(tuple, np.argwhere(~known))) == [(5, 6)]
    np.testing.assert_array_equal(got, values[:, :, 1:])


def test_floats_that_are_no_numbers_are_nodata_whatever_the_file_says(tmp_path):
    values = waves(8, 8, 2, dtype=np.float32)
    values[1, 2, 0], values[3, 3, 1], values[5, 5] = np.nan, np.inf, -9999
    _, known = read(open_scene(scene(tmp_path / "a.tif", values, nodata=-9999)), 0, 0, 8, 8)
    assert sorted(map(tuple, np.argwhere(~known))) == [(1, 2), (3, 3), (5, 5)]
    assert (
        read(open_scene(scene(tmp_path / "b.tif", values, nodata=None)), 0, 0, 8, 8)[1].sum() == 62
    )


def test_transparency_is_nodata_and_no_band_unless_it_is_asked_for(tmp_path):
    values = waves(8, 8, 4, largest=255, dtype=np.uint8)
    values[..., 3] = 255
    values[2, 2, 3] = 0
    path = scene(tmp_path / "a.tif", values, nodata=None, photometric="rgb", alpha="yes")
    found = open_scene(path)
    assert found.bands == (1, 2, 3)
    assert list(map(tuple, np.argwhere(~read(found, 0, 0, 8, 8)[1]))) == [(2, 2)]
    got, known = read(open_scene(path, bands=[1, 2, 3, 4]), 0, 0, 8, 8)
    assert known.all()
    np.testing.assert_array_equal(got, values)


def test_what_a_network_cannot_take_is_refused_by_name(tmp_path):
    whole = open_scene(scene(tmp_path / "a.tif", waves(8, 8)))
    whole.check(4, (), key="--value-range")
    with pytest.raises(ValueError, match=r"a\.tif has 4 bands for 5 channels; .*--channels 4"):
        whole.check(5, (), key="--value-range")
    with pytest.raises(ValueError, match="has 4 bands for 3 channels; name those .* --bands"):
        whole.check(3, (), key="--value-range")
    with pytest.raises(ValueError, match=r"--value-range has 2 pairs for 4 bands"):
        whole.check(4, (0, 1, 0, 1), key="--value-range")
    with pytest.raises(ValueError, match="9,9 is not ascending"):
        whole.check(4, (9, 9), key="--value-range")
    floats = open_scene(scene(tmp_path / "f.tif", waves(8, 8, dtype=np.float32)))
    with pytest.raises(
        ValueError, match=r"f\.tif: float32 values .*data\.value_range \(LOW, HIGH\)"
    ):
        floats.check(4, (), key="data.value_range")
    floats.check(4, (0, 1), key="data.value_range")
    with pytest.raises(ValueError, match="has no band 7, only 1 to 4"):
        open_scene(tmp_path / "a.tif", bands=[7])
    (tmp_path / "no.tif").write_bytes(b"no raster")
    with pytest.raises(OSError, match=r"no\.tif"):
        open_scene(tmp_path / "no.tif")


def test_values_become_bytes_as_those_of_images_do(tmp_path):
    values = np.array([[[0, 500], [1500, 3000]]], np.uint16)
    found = open_scene(scene(tmp_path / "a.tif", values, nodata=None))
    want = [[[0, 0], [128, 255]]]
    np.testing.assert_array_equal(found.to_bytes(values, (0, 3000, 500, 3000)), want)
    small = open_scene(
        scene(tmp_path / "b.tif", waves(4, 4, 2, largest=255, dtype=np.uint8), nodata=0)
    )
    assert small.to_bytes(np.full((1, 1, 2), 7, np.uint8), (0, 10)).tolist() == [[[7, 7]]]


def test_a_file_that_lies_somewhere_is_a_scene_and_a_picture_is_not(tmp_path):
    assert is_scene(scene(tmp_path / "a.tif", waves(8, 8), nodata=None))
    assert is_scene(scene(tmp_path / "b.tif", waves(8, 8), crs=None))  # says what is nodata
    assert not is_scene(scene(tmp_path / "c.tif", waves(8, 8), nodata=None, crs=None))
    (tmp_path / "d.tif").write_bytes(tiff(waves(8, 8, 5)))
    assert not is_scene(tmp_path / "d.tif") and not is_scene(tmp_path / "nowhere.tif")
    assert is_scene("mosaic.vrt") and not is_scene("photo.jpg")


def test_a_plain_raster_is_a_scene_from_the_size_on_that_no_image_has(tmp_path, monkeypatch):
    path = scene(tmp_path / "a.tif", waves(8, 9), nodata=None, crs=None)
    monkeypatch.setattr(scenes, "MAX_PIXELS", 71)
    assert is_scene(path)


@pytest.mark.parametrize(
    "name, options",
    [
        ("a.vrt", {"driver": "VRT"}),
        ("a.jp2", {"driver": "JP2OpenJPEG", "quality": "100", "reversible": "yes"}),
    ],
)
def test_other_rasters_are_scenes_too(tmp_path, name, options):
    from rasterio import shutil

    values = waves(40, 50, 3)
    path = scene(tmp_path / "a.tif", values, nodata=None)
    shutil.copy(path, tmp_path / name, **options)
    assert is_scene(tmp_path / name)
    found = open_scene(tmp_path / name)
    np.testing.assert_array_equal(read(found, 0, 0, 40, 50)[0], values)
    assert "32633" in found.crs and found.transform == open_scene(path).transform


def test_windows_cover_an_axis_and_end_where_it_ends():
    assert starts(10, 4, 3) == [0, 3, 6] and starts(11, 4, 3) == [0, 3, 6, 7]
    assert starts(4, 4, 1) == [0] and starts(3, 4, 4) == [0]


def test_a_raster_lies_where_its_scene_does_and_what_is_not_written_is_nodata(tmp_path):
    found = open_scene(scene(tmp_path / "a.tif", waves(33, 50)))
    with written(tmp_path / "out.tif", found, dtype="uint8", nodata=255, step=8) as write:
        write((1, 2), np.full((2, 3), 7))
    with rasterio.open(tmp_path / "out.tif") as file:
        assert (file.height, file.width, file.nodata) == (4, 6, 255)
        assert file.crs.to_epsg() == 32633
        assert file.transform == rasterio.Affine(80, 0, CORNER[0], 0, -80, CORNER[1])
        want = np.full((4, 6), 255)
        want[1:3, 2:5] = 7
        np.testing.assert_array_equal(file.read(1), want)


def test_what_is_not_written_is_nodata_in_every_band_however_little_memory_there_is(
    tmp_path, monkeypatch
):
    found = open_scene(scene(tmp_path / "a.tif", waves(90, 90)))
    monkeypatch.setattr(geotiff, "CACHE", 64)  # bytes
    kind = {"bands": 3, "dtype": "float32", "nodata": np.nan}
    with written(tmp_path / "out.tif", found, **kind) as write:
        for corner in ((0, 0), (70, 60)):
            write(corner, np.ones((9, 9, 3)))
    with rasterio.open(tmp_path / "out.tif") as file:
        assert np.isnan(file.read()).sum(axis=(1, 2)).tolist() == [90 * 90 - 2 * 81] * 3


def test_a_raster_that_fails_leaves_nothing(tmp_path):
    found = open_scene(scene(tmp_path / "in" / "a.tif", waves(8, 8)))
    with pytest.raises(KeyboardInterrupt):
        with written(tmp_path / "out.tif", found, dtype="uint8", nodata=255) as write:
            write((0, 0), np.zeros((2, 2)))
            raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


FULL = """
import resource, signal, sys
import numpy as np
from dinojax.data.geotiff import written
from dinojax.data.scene import open_scene
from dinojax.files import full

found = open_scene(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, resource.RLIM_INFINITY))
try:
    with written(sys.argv[2], found, dtype="float32", nodata=np.nan) as write:
        write((0, 0), np.random.default_rng(0).normal(size=(50, 50)))
except OSError as error:
    print(full.told(full.cause(error), sys.argv[2]))
"""


def test_what_gdal_cannot_write_while_it_closes_a_file_is_told_and_leaves_nothing(tmp_path):
    path, out = scene(tmp_path / "in" / "a.tif", waves(60, 60)), tmp_path / "out.tif"
    words = [sys.executable, "-c", FULL, str(path), str(out)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert "cannot be written to (File too large)" in done.stdout, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_without_rasterio_the_extra_is_named(tmp_path, monkeypatch):
    path = scene(tmp_path / "a.tif", waves(8, 8))
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(ModuleNotFoundError, match=r"a\.tif .* pip install 'dinojax\[geo\]'"):
        open_scene(path)


def test_images_that_pillow_writes_are_no_scenes(tmp_path):
    from PIL import Image

    image = Image.fromarray(waves(8, 8, 3, largest=255, dtype=np.uint8))
    (tmp_path / "a.tif").write_bytes(saved(image, "TIFF"))
    assert not is_scene(tmp_path / "a.tif")
