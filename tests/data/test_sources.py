"""Which source a configuration ends up with."""

import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dinojax.data.decode import decode
from dinojax.data.sources import SOURCES, kind_of, open_knn_sources, open_source
from tests.support import stored_data


def section(source="tiles", path="", mixture=()):
    more = {"mixture_ranges": (), "value_range": (), "max_pixels": 1000}
    more |= {"tile_size": 64, "max_nodata": 0.5, "bands": ()}
    return SimpleNamespace(source=source, path=str(path), mixture=mixture, **more)


def knn(bank="", query=""):
    return SimpleNamespace(bank=str(bank), query=str(query))


@pytest.fixture
def images(tmp_path):
    for name in ("bank/cat/1.png", "bank/dog/2.png", "query/dog/3.png", "flat/4.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 5), (200, 10, 30)).save(tmp_path / name)
    return tmp_path


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Kind of source -> path of two images of the classes ant and cat, stored that way."""
    return Stored(stored_data.every_kind(tmp_path_factory.mktemp("stored")))


class Stored(dict):
    def __missing__(self, kind):
        pytest.skip(f"{kind} are read with a package that is not here")


def test_unknown_source_lists_the_choices():
    with pytest.raises(
        ValueError, match="data.source='imagenet' is unknown; choose of folder, man"
    ):
        open_source(section("imagenet"), channels=3)


def test_a_path_is_all_it_takes_to_leave_the_embedded_tiles(images):
    source = open_source(section("tiles", images / "flat"), channels=1)
    assert len(source) == 1 and source[0].pixels.shape == (5, 5, 1)


@pytest.mark.parametrize("kind", sorted(set(SOURCES) - {"coco"}))  # which has no classes
def test_every_source_answers_alike(kind, stored):
    source = SOURCES[kind](path=stored[kind], channels=1, split="train")
    found, image = source.encoded(1), source.read(1, 3)
    assert source.channels == 1 and len(source) > 1 and source.fingerprint
    assert found.name == image.name and found.label == image.label == source.labels[1]
    assert len(source.class_names) > image.label
    assert image.pixels.dtype == np.uint8 and image.pixels.shape[2] == 1
    whole = decode(found.data, name="a", channels=1)
    np.testing.assert_array_equal(whole, source[1].pixels)


@pytest.mark.parametrize("kind", sorted(SOURCES))
def test_every_source_travels_to_another_process(kind, stored):
    source = SOURCES[kind](path=stored[kind], channels=3, split="train")
    source.read(0)  # whatever is open now must not travel
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy.read(1).pixels, source.read(1).pixels)
    assert copy.fingerprint == source.fingerprint


@pytest.mark.parametrize("kind", sorted(SOURCES))
def test_only_the_splits_there_are_can_be_opened(kind, stored):
    with pytest.raises(ValueError, match="no split 'dev'"):
        SOURCES[kind](path=stored[kind], channels=3, split="dev")


# GeoTIFFs in a folder may be images as well, and are taken for them.
@pytest.mark.parametrize("kind", sorted(set(SOURCES) - {"tiles", "scenes"}))
def test_a_path_tells_its_kind(kind, stored):
    assert kind_of(stored[kind]) == kind
    data = section("tiles", stored[kind])
    assert len(open_source(data, channels=3)) == 2


@pytest.mark.parametrize("kind", sorted(set(SOURCES) - {"tiles"}))
def test_a_missing_path_is_named_with_its_key(kind, tmp_path):
    path = str(tmp_path / "nowhere.csv")
    with pytest.raises(FileNotFoundError, match="nowhere.csv"):
        SOURCES[kind](path=path, channels=3, key="knn.bank")
    with pytest.raises(ValueError, match="knn.bank is empty; set it to .* --set knn.bank="):
        SOURCES[kind](path="", channels=3, key="knn.bank")


def test_tiles_are_classified_by_their_own_splits():
    bank, query = open_knn_sources(section(), knn(), channels=1)
    assert (bank.split, query.split) == ("bank", "val")


def test_a_folder_without_queries_has_no_knn(images):
    assert open_knn_sources(section("tiles", images / "flat"), knn(), channels=1) is None


def test_bank_defaults_to_the_training_folder(images):
    data = section("folder", images / "bank")
    bank, query = open_knn_sources(data, knn(query=images / "query"), channels=3)
    assert bank.class_names == ("cat", "dog") and query.class_names == ("dog",)


def test_knn_folders_need_labels_and_each_other(images):
    with pytest.raises(ValueError, match="knn.query=.*flat has no labels"):
        open_knn_sources(section(), knn(images / "bank", images / "flat"), channels=3)
    with pytest.raises(ValueError, match="set knn.query=FOLDER"):
        open_knn_sources(section(), knn(bank=images / "bank"), channels=3)
    with pytest.raises(ValueError, match="knn.query=.*query needs .* set knn.bank=FOLDER"):
        open_knn_sources(section(), knn(query=images / "query"), channels=3)


def test_reading_images_never_imports_jax():
    code = (
        "import sys, dinojax.data.sources, dinojax.data.order; "
        "print({'jax', 'grain', 'skimage', 'sklearn'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_a_folder_of_shards_and_images_is_not_read_by_half(images):
    stored_data.tar_shard(images / "flat" / "a.tar", {"0.png": stored_data.png(0)})
    with pytest.raises(
        ValueError, match=r"holds tar files such as a\.tar and images such as 4\.png"
    ):
        kind_of(str(images / "flat"))


def test_a_table_of_paths_beside_folders_of_images_is_no_source(images):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"path": ["bank/cat/1.png"]}), images / "list.parquet")
    assert kind_of(str(images)) == "folder"
