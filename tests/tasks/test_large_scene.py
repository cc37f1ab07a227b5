"""A scene of 20,000 x 20,000 pixels, mapped and embedded in less memory than it takes itself."""

import time

import numpy as np
import pytest

from dinojax.data.scene import open_scene
from dinojax.eval.embed_scene import SceneJob, embed_scene
from dinojax.eval.patch_maps import as_seen
from dinojax.eval.scene_windows import places
from dinojax.tasks import scene_map
from tests.support import peak_memory, scene_backbone
from tests.support.scene_backbone import PATCH, linear_head
from tests.support.scenes import NODATA, scene, waves

rasterio = pytest.importorskip("rasterio")

SIDE, SIZE, BORDER = 20_000, 512, 80
ISLAND, ISLANDS = 1024, 40  # pixels of a side of what is known; 10 % of the scene
RANGE = (0.0, 3000.0)
LIMIT = 2e9  # bytes; the scene has 3.2e9


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A sparse file, and the corners of its islands."""
    path = tmp_path_factory.mktemp("large") / "large.tif"
    tiles = {"tiled": True, "blockxsize": 256, "blockysize": 256, "sparse_ok": True}
    scene(path, waves(8, 8), **tiles)  # its profile
    with rasterio.open(path) as small:
        profile = small.profile | {"width": SIDE, "height": SIDE, "bigtiff": "yes"} | tiles
    rng, island = np.random.default_rng(0), np.moveaxis(waves(ISLAND, ISLAND), 2, 0)
    corners = [tuple(map(int, c)) for c in rng.integers(0, SIDE - ISLAND, (ISLANDS - 1, 2))]
    corners.append((SIDE - ISLAND, SIDE - ISLAND))
    with rasterio.open(path, "w", **profile) as file:
        for top, left in corners:
            file.write(island, window=((top, top + ISLAND), (left, left + ISLAND)))
    return path, corners


def windows_of(corner, whole):
    """Windows that lie inside of an island."""
    for place in places(whole, whole, size=SIZE, border=BORDER):
        inside = [
            low <= at and at + SIZE <= low + ISLAND
            for low, at in zip(corner, (place.top, place.left), strict=True)
        ]
        if all(inside):
            yield place


@pytest.mark.exhaustive
def test_a_large_scene_takes_less_memory_than_it_has_and_windows_are_those_of_the_whole(
    large, tmp_path
):
    path, corners = large
    body = scene_backbone.backbone()
    network, variables = linear_head("canopy", body, size=SIZE, batch_size=8)
    resting = peak_memory.begin()
    began = time.monotonic()
    found = scene_map.map_scene(network, variables, open_scene(path), tmp_path / "m.tif", RANGE)
    mapped = time.monotonic()
    job = SceneJob(window=SIZE, batch_size=8, value_range=RANGE)
    features = embed_scene(body, str(path), tmp_path / "features", job)
    embedded = time.monotonic()
    peak = resting + peak_memory.grown(resting)
    sizes = [round(place.stat().st_size / 1e6) for place in (path, found.path, features)]
    print(f"map {mapped - began:.0f} s, features {embedded - mapped:.0f} s, ", end="")
    print(f"peak {peak / 1e9:.2f} GB resident, of them {resting / 1e9:.2f} before;")
    print(f"MB of scene, map, features: {sizes}; {found.known / SIDE**2:.1%} known")
    assert peak < LIMIT

    compared = 0
    with rasterio.open(path) as values, rasterio.open(found.path) as heights:
        with rasterio.open(features) as patches:
            assert values.transform == heights.transform and values.crs == heights.crs
            for place in (p for corner in corners[-3:] for p in windows_of(corner, SIDE)):
                window = (place.top, place.top + SIZE), (place.left, place.left + SIZE)
                stored = np.moveaxis(values.read(window=window), 0, 2)
                assert (stored != NODATA).all()
                pixels = np.floor(stored / 3000 * 255 + 0.5).clip(0, 255).astype(np.uint8)
                seen = as_seen(scene_backbone.PREPROCESSING, pixels)[None]
                want = np.asarray(network.predict(variables, seen))[0]
                got = heights.read(1, window=(place.rows, place.columns))
                np.testing.assert_allclose(got, place.inside(want), rtol=1e-4)
                cells = SIZE // PATCH
                want = np.asarray(body(seen).patches).reshape(cells, cells, -1)
                rows, columns = (
                    tuple(x // PATCH for x in ends) for ends in (place.rows, place.columns)
                )
                got = np.moveaxis(patches.read(window=(rows, columns)), 0, 2)
                np.testing.assert_allclose(got, place.inside(want, PATCH), atol=1e-4)
                compared += 1
            sampled = (slice(None, None, 7),) * 2
            known = (values.read(2)[sampled]) != NODATA
            np.testing.assert_array_equal(np.isfinite(heights.read(1)[sampled]), known)
    assert compared >= 3
