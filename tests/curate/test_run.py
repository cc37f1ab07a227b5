"""Whole curations of a small pool: what they leave, kills, growth, devices, and changed recipes."""

import os
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from dinojax import config as configs
from dinojax.curate.run import curate
from dinojax.data.sources import open_source
from dinojax.files import drafts
from dinojax.weights.export import export
from tests.support.networks_small import RELEASED, random_network

pytestmark = pytest.mark.slow

RECIPE = """\
weights: {weights}
pool: {pool}
embed: {{batch_size: 16, part_size: 16}}
dedup: {{threshold: 0.999, hash_radius: 0, benchmarks: {{val: {bench}}}}}
kmeans: {{clusters: [12, 4], sizes: [2, 2], rounds: 1, iterations: 4}}
sample: {{target: 20}}
retrieve: {{near: {{path: {bench}, neighbors: 3}}}}
mixture: {{recipe: tiny, weights: {{clustered: 3}}, alone: {{near: 0.1}}}}
"""
LISTS = (
    *("dedup/kept.npy", "dedup/survivor.npy", "dedup/dropped.csv", "sample/chosen.npy"),
    *(
        "kmeans/level1/centers.npy",
        "kmeans/level1/assignment.npy",
        "kmeans/level2/centers.npy",
        "kmeans/level2/assignment.npy",
    ),
    *("retrieve/near.npy",),
)


def picture(path, rng):
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = rng.integers(0, 256, (5, 5, 3), np.uint8)
    Image.fromarray(coarse).resize((40, 40), Image.Resampling.BICUBIC).save(path)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    root = tmp_path_factory.mktemp("curation")
    rng = np.random.default_rng(0)
    for number in range(48):
        picture(root / "pool" / "ab"[number % 2] / f"{number:02}.png", rng)
    for number in (3, 5):  # copies
        shutil.copy(
            root / "pool" / "b" / f"{number:02}.png", root / "pool" / "b" / f"x{number}.png"
        )
    for number in (2, 8):
        path = root / "bench" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        shutil.copy(root / "pool" / "a" / f"{number:02}.png", path)
    export(random_network(RELEASED), root / "weights", format="dinojax", certify=False)
    places = {name: root / name for name in ("weights", "pool", "bench")}
    (root / "recipe.yaml").write_text(RECIPE.format(**places))
    curate("run", root / "recipe.yaml", root / "out")
    return root / "recipe.yaml"


def differing(one, other):
    """The lists that are not the same in two curations."""
    return [name for name in LISTS if (one / name).read_bytes() != (other / name).read_bytes()]


def test_copies_and_what_benchmarks_hold_are_gone_and_train_reads_the_rest(recipe):
    out = recipe.parent / "out"
    table = (out / "dedup" / "dropped.csv").read_text().splitlines()
    assert sorted(table[1:]) == [
        "a/02.png,like a benchmark,",
        "a/08.png,like a benchmark,",
        "b/x3.png,copy,b/03.png",
        "b/x5.png,copy,b/05.png",
    ]
    config = configs.load(out / "mixture" / "recipe.py", ["image.channels=3"])
    source = open_source(config.data, channels=3)
    assert {name: len(ids) for name, ids in source.ids().items()}["clustered"] == 20
    assert [part.alone for part in source.parts] == [0, 0.1]
    page = (out / "report.html").read_text()
    assert all(word in page for word in ("copies dropped", "Level 2", "Balance", "data:image/jpeg"))


def test_devices_change_no_list(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    shutil.copytree(recipe.parent / "out" / "embed", tmp_path / "out" / "embed")
    for step in ("dedup", "kmeans", "sample", "retrieve"):
        curate(step, recipe, tmp_path / "out")
    assert not differing(tmp_path / "out", recipe.parent / "out")


def test_a_curation_that_is_stopped_between_files_goes_on_to_the_same(
    recipe, tmp_path, monkeypatch
):
    real, left = os.replace, [0]

    def stopping(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        real(*args, **kwargs)

    monkeypatch.setattr(drafts.os, "replace", stopping)
    stops = 0
    for attempt in range(100):
        left[0] = 1 + attempt % 7  # so many files more, then the end
        try:
            curate("run", recipe, tmp_path / "out")
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops >= 10
    assert not differing(tmp_path / "out", recipe.parent / "out")


def test_a_pool_that_has_grown_gets_new_parts_and_what_follows_is_refused_or_made_anew(
    recipe, tmp_path
):
    root = tmp_path / "all"
    shutil.copytree(recipe.parent, root)
    text = recipe.read_text().replace(str(recipe.parent), str(root))
    (root / "recipe.yaml").write_text(text)
    parts = {p.name: p.read_bytes() for p in (root / "out/embed/pool").glob("*.parquet")}
    picture(root / "pool" / "a" / "00-new.png", np.random.default_rng(9))
    with pytest.raises(
        ValueError, match="dedup was made otherwise .*other embeddings.*give --anew"
    ):
        curate("run", root / "recipe.yaml", root / "out")
    after = {p.name: p.read_bytes() for p in (root / "out/embed/pool").glob("*.parquet")}
    assert len(after) == len(parts) + 1 and parts.items() <= after.items()
    with pytest.raises(ValueError, match="strategy: 'closest' there, 'random' now"):
        settings = ["sample.strategy=random"]
        curate("sample", recipe, recipe.parent / "out", overrides=settings)
    curate("run", root / "recipe.yaml", root / "out", anew=True)
    assert len(np.load(root / "out/dedup/survivor.npy")) == 51
    (root / "pool" / "a" / "04.png").unlink()
    with pytest.raises(ValueError, match=r"1 images that the pool no longer has, such as a/04.png"):
        curate("embed", root / "recipe.yaml", root / "out")


def test_targets_above_the_pool_and_too_many_clusters_are_told_before_work(recipe):
    out = recipe.parent / "out"
    with pytest.raises(ValueError, match="sample.target=90 is more than the 46 images"):
        curate("sample", recipe, out, overrides=["sample.target=90"])
    with pytest.raises(ValueError, match="99 clusters of 46 rows"):
        curate("kmeans", recipe, out, overrides=["kmeans.clusters=[99, 4]"], anew=True)
    assert (out / "kmeans" / "level1" / "centers.npy").exists()
