"""Statistics of bands are those of all known pixels, however scenes are cut into blocks."""

import numpy as np
import pytest

from dinojax import config
from dinojax.cli import main
from dinojax.data import scene_statistics
from dinojax.data.scene import open_scene
from tests.support.scenes import NODATA, scene, waves

pytest.importorskip("rasterio")


@pytest.fixture
def pair(tmp_path):
    """Two scenes and their known pixels [N, C]."""
    first, second = waves(70, 50, 3), waves(40, 90, 3)[::-1] // 2
    first[5:40, :, 1], second[:, -1] = NODATA, NODATA
    paths = [scene(tmp_path / "s" / f"{n}.tif", v) for n, v in enumerate((first, second))]
    known = [values[(values != NODATA).all(-1)] for values in (first, second)]
    return paths, np.concatenate(known)


def test_nodata_is_left_out_and_blocks_add_up(pair, monkeypatch):
    paths, known = pair
    monkeypatch.setattr(scene_statistics, "BLOCK", 32)
    found = scene_statistics.statistics([open_scene(path) for path in paths], (0, 2000))
    seen = np.floor(np.clip(known / 2000, 0, 1) * 255 + 0.5) / 255
    for name, want in (
        ("low", known.min(0)),
        ("high", known.max(0)),
        ("mean", known.mean(0)),
        ("std", known.std(0)),
        ("image_mean", seen.mean(0)),
        ("image_std", seen.std(0)),
        ("known", len(known) / (70 * 50 + 40 * 90)),
    ):
        np.testing.assert_allclose(found[name], want, rtol=1e-12)


def test_a_large_mean_costs_no_digits_of_a_small_deviation():
    rng = np.random.default_rng(0)
    values = 1e9 + rng.normal(size=(4000, 1))
    parts = [scene_statistics.Moments.of(part) for part in np.array_split(values, 7)]
    whole = sum(parts[1:], parts[0])
    np.testing.assert_allclose(whole.std_C, np.std(values - 1e9), rtol=1e-7)


def test_the_command_tells_what_the_config_reads(pair, capsys, tmp_path):
    folder = str(pair[0][0].parent)
    assert main.main(["data", "scenes", folder, "--value-range", "0,2000"]) == 0
    told = capsys.readouterr().out
    settings = [line.split("--set ")[1].strip("'") for line in told.splitlines() if "--set" in line]
    loaded = config.load("vitl16_in1k", settings)
    want = scene_statistics.statistics([open_scene(path) for path in pair[0]], (0, 2000))
    np.testing.assert_allclose(loaded.image.mean, want["image_mean"], atol=1e-4)
    np.testing.assert_allclose(loaded.image.std, want["image_std"], atol=1e-4)
    assert "0.tif: 50 x 70, 3 bands of uint16, georeferenced" in told and "band 3 " in told
    scene(tmp_path / "f.tif", waves(8, 8, dtype=np.float32), crs=None)
    assert main.main(["data", "scenes", str(tmp_path / "f.tif"), "--bands", "2"]) == 0
    told = capsys.readouterr().out
    assert "without a CRS" in told and "band 2 " in told and "give --value-range LOW,HIGH" in told
    scene(tmp_path / "e.tif", np.full((8, 8, 2), NODATA, np.uint16))
    assert main.main(["data", "scenes", str(tmp_path / "e.tif")]) == 2
    assert "every pixel of every scene is nodata" in capsys.readouterr().err


def test_published_normalisations_have_names():
    loaded = config.load("vitl16_in1k", ["image.mean=satellite", "image.std=satellite"])
    assert loaded.image.mean == (0.430, 0.411, 0.296) and loaded.image.std == (0.213, 0.156, 0.143)
    assert config.load("vitl16_in1k", ["image.mean=canopy"]).image.mean == (0.420, 0.411, 0.296)
    with pytest.raises(config.ConfigError, match="numbers, or one of web, satellite, canopy"):
        config.load("vitl16_in1k", ["image.mean=moon"])
