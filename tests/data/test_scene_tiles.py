"""Scenes as images to train on: tiles that are read when they are needed."""

import pickle

import numpy as np
import pytest

from dinojax import config
from dinojax.data.decode import ReadOptions, WrongChannels
from dinojax.data.loader import Loader
from dinojax.data.scene_tiles import filled, scenes
from dinojax.data.sources import kind_of
from tests.support.scenes import NODATA, scene, waves

pytest.importorskip("rasterio")

RANGE = (0.0, 3000.0)
OPTIONS = ReadOptions(value_range=RANGE, tile_size=32, max_nodata=0.25)


def as_bytes(values):
    return np.floor(values / 3000 * 255 + 0.5).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """a/0.tif of 3 x 3 tiles, of which one is nodata and one is to a quarter; b/1.tif of 1 x 2."""
    root = tmp_path_factory.mktemp("scenes")
    values = waves(80, 96)
    values[:32, 32:64] = NODATA
    values[32:40, :32] = NODATA
    scene(root / "a" / "0.tif", values)
    scene(root / "b" / "1.tif", waves(30, 64))
    (root / "a" / "notes.txt").touch()
    return root, values


def test_tiles_are_the_values_of_their_places_and_those_of_nodata_are_left_out(folder):
    root, values = folder
    source = scenes(path=str(root), channels=4, options=OPTIONS)
    assert len(source) == 10 and source.class_names == ("a", "b")
    assert source.labels.tolist() == [0] * 8 + [1] * 2
    assert "1 of 11 tiles left out for their nodata" in source.notes
    assert any(".txt 1" in note for note in source.notes)
    names = [source.encoded(index).name for index in range(10)]
    assert names[0] == "a/0.tif at row 0, column 0" and names[9] == "b/1.tif at row 0, column 32"
    last = names.index("a/0.tif at row 48, column 64")  # ends where the scene ends
    np.testing.assert_array_equal(source.read(last).pixels, as_bytes(values[48:, 64:]))
    assert source.read(9).pixels.shape == (30, 32, 4)


def test_nodata_becomes_the_mean_of_the_other_pixels(folder):
    root, values = folder
    source = scenes(path=str(root / "a"), channels=4, options=OPTIONS)
    (index,) = (n for n in range(8) if source.encoded(n).name == "0.tif at row 32, column 0")
    got = source.read(index).pixels
    means = np.rint(values[40:64, :32].reshape(-1, 4).mean(0))
    np.testing.assert_array_equal(got[:8], np.broadcast_to(as_bytes(means), (8, 32, 4)))
    np.testing.assert_array_equal(got[8:], as_bytes(values[40:64, :32]))
    floats = np.array([[[1.0, np.nan], [2.0, 5.0]]], np.float32)
    found = filled(floats, np.array([[False, True]]))
    np.testing.assert_array_equal(found, [[[2, 5], [2, 5]]])


def test_the_share_and_the_size_of_tiles_are_part_of_what_a_source_is(folder):
    root, _ = folder
    kinds = {
        (size, share): scenes(
            path=str(root),
            channels=4,
            options=ReadOptions(value_range=RANGE, tile_size=size, max_nodata=share),
        )
        for size in (32, 40)
        for share in (0.0, 0.25, 1.0)
    }
    assert kinds[32, 0.25].fingerprint == kinds[32, 1.0].fingerprint  # the same tiles
    assert len({source.fingerprint for source in kinds.values()}) == 5
    assert [len(kinds[32, share]) for share in (0.0, 0.25, 1.0)] == [9, 10, 10]
    copy = pickle.loads(pickle.dumps(kinds[32, 0.25]))
    np.testing.assert_array_equal(copy.read(3).pixels, kinds[32, 0.25].read(3).pixels)


def test_a_loader_continues_at_any_batch(folder):
    source = scenes(path=str(folder[0]), channels=4, options=OPTIONS)
    how = {"seed": 3, "batch_size": 4, "box_size": 32}

    def batches(position, count):
        with Loader(source, start=position, **how) as loader:
            return [next(loader)["images"] for _ in range(count)]

    whole = batches(0, 4)
    for first, second in zip(whole[2:], batches(8, 2), strict=True):
        np.testing.assert_array_equal(first, second)


def test_what_does_not_go_together_is_refused_by_name(folder, tmp_path):
    def opened(path, channels=4, **more):
        options = ReadOptions(**({"value_range": RANGE, "tile_size": 32} | more))
        return scenes(path=str(path), channels=channels, options=options)

    root, values = folder
    with pytest.raises(WrongChannels, match=r"has 4 channels .* set image\.channels=4"):
        opened(root, channels=5)
    assert opened(root, channels=3, bands=(4, 3, 2))[0].pixels.shape == (32, 32, 3)
    scene(tmp_path / "mixed" / "a.tif", values)
    scene(tmp_path / "mixed" / "b.tif", values[:, :, :3])
    with pytest.raises(ValueError, match=r"a\.tif has 4 bands, b\.tif 3 bands; .*data\.bands"):
        opened(tmp_path / "mixed")
    three, turned = (
        opened(tmp_path / "mixed", bands=bands, channels=3) for bands in ((1, 2, 3), (3, 2, 1))
    )
    assert len(three) == 18 - 2 and three.fingerprint != turned.fingerprint
    scene(tmp_path / "mixed" / "b.tif", values.astype(np.float32))
    with pytest.raises(ValueError, match=r"a\.tif has uint16 values, b\.tif float32 values"):
        opened(tmp_path / "mixed")
    scene(tmp_path / "float.tif", values.astype(np.float32))
    with pytest.raises(ValueError, match=r"float\.tif: float32 .*data\.value_range \(LOW, HIGH\)"):
        opened(tmp_path / "float.tif", value_range=())
    scene(tmp_path / "empty.tif", np.full_like(values, NODATA))
    with pytest.raises(ValueError, match=r"every tile of 32 pixels has more than data\.max_nodata"):
        opened(tmp_path / "empty.tif")
    scene(tmp_path / "nowhere.tif", values, crs=None)
    assert "1 of 1 scenes without a CRS" in opened(tmp_path / "nowhere.tif").notes
    assert kind_of(str(tmp_path / "float.tif")) == "scenes"
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"none holds no scene, such as \.tif"):
        opened(tmp_path / "none")


def test_keys_of_scenes_are_refused_where_nothing_reads_them():
    with pytest.raises(config.ConfigError, match=r"data\.tile_size=64 is read by scenes"):
        config.load("vitl16_in1k", ["data.tile_size=64"])
    assert config.load("vitl16_in1k", ["data.tile_size=64", "data.source=scenes"])
