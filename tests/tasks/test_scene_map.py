"""Scenes are mapped window by window into rasters that lie where they do."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from dinojax.cli import main
from dinojax.config import ConfigError
from dinojax.data.scene import open_scene
from dinojax.eval import embed_scene
from dinojax.eval.embed_scene import SceneJob
from dinojax.eval.patch_maps import as_seen
from dinojax.eval.scene_windows import places
from dinojax.models.convnext import ConvNextSpec
from dinojax.tasks import run as task_run
from dinojax.tasks import scene_map, settings
from dinojax.tasks.data import open_data
from dinojax.tasks.judge import map_of
from dinojax.weights import run
from tests.support import scene_backbone
from tests.support.scene_backbone import BANDS, PATCH, linear_head
from tests.support.scenes import CORNER, METRES, NODATA, scene, waves
from tests.support.stored_data import tiff

rasterio = pytest.importorskip("rasterio")

RANGE = (0.0, 3000.0)
SIZE, BORDER = 128, 16


@pytest.fixture(scope="module")
def body():
    return scene_backbone.backbone()


@pytest.fixture(scope="module")
def head(body):
    return linear_head("canopy", body)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """500 x 700 with a corner and one pixel of nodata."""
    values = waves(500, 700)
    values[:200, 600:] = NODATA
    values[333, 222, 2] = NODATA
    return scene(tmp_path_factory.mktemp("scene") / "large.tif", values), values


def as_bytes(values):
    return np.floor(values / 3000 * 255 + 0.5).clip(0, 255).astype(np.uint8)


def read(path):
    with rasterio.open(path) as file:
        assert file.crs.to_epsg() == 32633
        return file.read(), file.transform, file.nodata


def by_hand(values, of_windows, step=1):
    """The same from the whole scene in memory: windows cut out of it one at a time."""
    known = (values != NODATA).all(-1)
    seen = as_seen(scene_backbone.PREPROCESSING, as_bytes(values)) * known[..., None]
    whole = None
    for p in places(*(side // step * step for side in known.shape), size=SIZE, border=BORDER):
        window = seen[p.top : p.top + SIZE, p.left : p.left + SIZE]
        part = np.asarray(of_windows(window[None].astype(np.float32)))[0]
        if whole is None:
            whole = np.zeros(
                (known.shape[0] // step, known.shape[1] // step, *part.shape[2:]), part.dtype
            )
        place = (slice(p.rows[0] // step, p.rows[1] // step),
                 slice(p.columns[0] // step, p.columns[1] // step))  # fmt: skip
        whole[place] = p.inside(part, step)
    return whole, known


def test_a_map_is_that_of_windows_cut_out_of_the_whole_and_lies_where_the_scene_does(
    head, large, tmp_path
):
    network, variables = head
    path, values = large
    found = scene_map.map_scene(network, variables, open_scene(path), tmp_path / "m.tif", RANGE)
    (got,), transform, nodata = read(found.path)
    want, known = by_hand(values, lambda images: network.predict(variables, images))
    np.testing.assert_allclose(got[known], want[known], rtol=1e-4)
    assert np.ptp(want) > 1 and np.isnan(nodata)
    np.testing.assert_array_equal(np.isnan(got), ~known)
    assert transform == rasterio.Affine(METRES, 0, CORNER[0], 0, -METRES, CORNER[1])
    assert found.known == known.sum() and found.low == pytest.approx(np.nanmin(got))


def test_features_of_patches_are_those_of_windows_cut_out_of_the_whole(body, large, tmp_path):
    path, values = large
    job = SceneJob(window=SIZE, batch_size=8, value_range=RANGE)
    got, transform, _ = read(embed_scene.embed_scene(body, str(path), tmp_path, job))
    grid = SIZE // PATCH
    want, known = by_hand(values, lambda x: body(x).patches.reshape(1, grid, grid, -1), PATCH)
    whole = known[:496, :688].reshape(31, PATCH, 43, PATCH).all((1, 3))
    assert got.shape == (16, 31, 43)
    np.testing.assert_array_equal(np.isnan(got).all(0), ~whole)
    assert np.isfinite(got[:, whole]).all()
    np.testing.assert_allclose(np.moveaxis(got, 0, 2)[whole], want[whole], atol=1e-4)
    assert transform == rasterio.Affine(160, 0, CORNER[0], 0, -160, CORNER[1])
    with pytest.raises(ValueError, match=r"large\.tif exists"):
        embed_scene.embed_scene(body, str(path), tmp_path, job)


def test_a_convnext_gives_its_last_map(tmp_path):
    spec = ConvNextSpec(depths=(1, 1, 1, 1), widths=(8, 8, 8, 16), channels=BANDS)
    body = scene_backbone.backbone(spec)
    path = scene(tmp_path / "a.tif", waves(70, 100))
    with pytest.raises(ValueError, match="stages of a ConvNeXt have grids of their own"):
        embed_scene.embed_scene(body, str(path), tmp_path / "out", SceneJob("layer=0"))
    job = SceneJob(window=64, batch_size=2, value_range=RANGE)
    got, transform, _ = read(embed_scene.embed_scene(body, str(path), tmp_path / "out", job))
    assert got.shape == (16, 2, 3) and transform.a == 32 * METRES
    seen = as_seen(scene_backbone.PREPROCESSING, as_bytes(waves(70, 100)[:64, 32:96]))
    want = np.asarray(body(seen[None]).patches).reshape(2, 2, 16)
    np.testing.assert_allclose(np.moveaxis(got, 0, 2)[:, 2], want[:, 1], atol=1e-4)


@pytest.mark.parametrize("task", ["canopy", "segment"])
def test_a_scene_of_one_window_is_the_image(task, body, tmp_path):
    network, variables = linear_head(task, body)
    values = waves(SIZE, SIZE)
    path = scene(tmp_path / "a.tif", values)
    found = scene_map.map_scene(network, variables, open_scene(path), tmp_path / "m.tif", RANGE)
    want = map_of(network, variables, as_bytes(values))
    (got,), _, nodata = read(found.path)
    if task == "segment":
        np.testing.assert_array_equal(got, want)
        assert got.dtype == np.uint8 and nodata == 255 and sum(found.classes.values()) == SIZE**2
    else:
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_devices_and_batches_change_nothing(head, tmp_path, monkeypatch):
    network, variables = head
    found = open_scene(scene(tmp_path / "a.tif", waves(250, 130)))
    assert jax.local_device_count() > 1
    maps = [scene_map.map_scene(network, variables, found, tmp_path / "many.tif", RANGE)]
    monkeypatch.setattr(scene_map, "_over_devices", lambda *own: own)
    alone, others = linear_head("canopy", network.backbone, batch_size=3)
    maps.append(scene_map.map_scene(alone, others, found, tmp_path / "one.tif", RANGE))
    first, second = (read(one.path)[0] for one in maps)
    np.testing.assert_allclose(first, second, rtol=1e-5)


def test_the_command_maps_scenes_and_refuses_what_does_not_fit_before_it_writes(
    head, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(task_run, "load", lambda *args: head)
    out = tmp_path / "maps"
    values = waves(140, 150)
    values[:70] = NODATA
    scene(tmp_path / "a.tif", values)

    def command(name, *more):
        words = ["task", "run", "canopy", "--weights", "w", "--image", str(tmp_path / name)]
        return main.main([*words, "--out", str(out), *more]), capsys.readouterr()

    scene(tmp_path / "few.tif", waves(20, 20, 3))
    scene(tmp_path / "float.tif", waves(20, 20, dtype=np.float32))
    for words, told in (
        (["few.tif"], "few.tif has 3 bands for 4 channels"),
        (["float.tif"], "float32 values have no known range"),
        (["a.tif", "--bands", "1,2,3,9"], "has no band 9"),
        (["a.tif", "--value-range", "5,5"], "is not ascending"),
    ):
        code, output = command(*words)
        assert code == 2 and told in output.err and not out.exists()
    scene(tmp_path / "empty.tif", np.full_like(values, NODATA))
    code, output = command("empty.tif")
    assert code == 2 and "every pixel is nodata" in output.err
    assert list(out.iterdir()) == []
    code, output = command("a.tif", "--value-range", "0,3000")
    assert code == 0 and "50.0 % nodata" in output.out and " m" in output.out
    assert sorted(path.name for path in out.iterdir()) == ["a-picture.png", "a.tif"]
    code, output = command("maps/a.tif")
    assert code == 2 and "the map would replace" in output.err
    scene(tmp_path / "nowhere.tif", values, crs=None)
    code, output = command("nowhere.tif", "--bands", "4,3,2,1")
    assert code == 0 and "without a CRS" in output.out


def test_a_scene_that_cannot_be_read_to_its_end_is_named_and_leaves_nothing(head, tmp_path):
    network, variables = head
    path = scene(tmp_path / "in" / "a.tif", waves(300, 300))
    found = open_scene(path)
    path.write_bytes(path.read_bytes()[:300_000])
    with pytest.raises(OSError, match=r"a\.tif cannot be read: "):
        scene_map.map_scene(network, variables, found, tmp_path / "m.tif", RANGE)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_the_range_of_training_is_that_of_maps_unless_another_is_given(body, tmp_path, monkeypatch):
    network, variables = linear_head("canopy", body)
    own = dataclasses.replace(network.settings, value_range=RANGE)
    assert settings.of_json(json.loads(json.dumps(own.to_json())), "task.json") == own
    assert settings.parse("canopy", ["value_range=0,3000"]).value_range == RANGE
    trained = dataclasses.replace(network, settings=own), variables
    monkeypatch.setattr(task_run, "load", lambda *args: trained)
    path = scene(tmp_path / "a.tif", waves(130, 130))
    maps = {}
    for name, ends in (("own", ()), ("same", RANGE), ("other", (0.0, 5000.0))):
        how = {"weights": "w", "images": [str(path)], "out": str(tmp_path / name)}
        (made,) = task_run.run_task("canopy", **how, reading=task_run.Reading(ends))
        maps[name] = read(made)[0]
    np.testing.assert_array_equal(maps["own"], maps["same"])
    assert not np.array_equal(maps["own"], maps["other"])
    for pair in ("value_range=1", "value_range=5,5"):
        with pytest.raises(ConfigError, match=r"value_range=.*give LOW,HIGH"):
            settings.parse("canopy", [pair]).check("canopy", PATCH)


def test_heads_are_trained_on_values_of_their_range(tmp_path):
    values = waves(20, 20)
    (tmp_path / "images").mkdir()
    (tmp_path / "maps").mkdir()
    (tmp_path / "images" / "a.tif").write_bytes(tiff(values))
    np.save(tmp_path / "maps" / "a.npy", np.full((20, 20), 3, np.float32))
    own = settings.parse("canopy", ["size=16", "value_range=0,3000"])
    data = open_data("canopy", str(tmp_path), own, scene_backbone.PREPROCESSING, BANDS)
    np.testing.assert_array_equal(data.train.read(0)[0], as_bytes(values))


def test_the_command_embeds_a_scene_and_refuses_what_does_not_fit(
    body, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(run, "load", lambda *args, **options: body)
    monkeypatch.setattr(run, "read_options_of", lambda path: types.SimpleNamespace(
        value_range=(), max_pixels=100))  # fmt: skip
    path, out = scene(tmp_path / "a.tif", waves(70, 100)), tmp_path / "out"

    def command(*more):
        words = ["embed", "--weights", "w", "--data", str(path), "--out", str(out)]
        return main.main([*words, *more]), capsys.readouterr()

    for words, told in (
        (["--outputs", "cls"], "of a scene give patches, or one layer=N"),
        (["--outputs", "layer=5"], "has blocks 0 to 0"),
        (["--window", "50"], "a multiple of the patch of 16"),
        (["--format", "parquet"], "written as a GeoTIFF"),
        (["--bands", "1,2"], "has 2 bands for 4 channels"),
    ):
        code, output = command(*words)
        assert code == 2 and told in output.err and not out.exists()
    code, output = command("--window", "64", "--outputs", "layer=-1", "--value-range", "0,3000")
    assert code == 0 and "6 x 4 patches, 16 channels" in output.out
    assert np.isfinite(read(out / "a.tif")[0]).all() and BANDS == 4
