"""What holds for every row of the table: devices, batches that do not divide, features of nothing.

A row that is not among MINIATURES fails the first test, so that none is forgotten.
"""

import csv
import functools
import importlib
import json
import pickle

import jax
import numpy as np
import pytest

from dinojax.distributed import process_group
from dinojax.eval import boxes
from dinojax.eval.baselines import raw_pixels
from dinojax.eval.network import Network
from dinojax.eval.suite import SUITE
from dinojax.sharding import batch, mesh
from tests.support.dense import PATCH, colour_folder, constant, save, section, setting
from tests.support.miniatures import (
    WNIDS,
    dots,
    imagenet,
    keypoints_in,
    photograph,
    videos_in,
    views_in,
)

pytestmark = pytest.mark.slow
TEXT = {"zeroshot", "pairs", "openvocab"}  # tests/text and tests/system/test_text.py
SMALL = {"size": 40, "num_steps": 2, "warmup": 1, "rates": (1e-3,), "decays": (1e-3,)}
MINIATURES = {
    "knn": {"neighbors": 2},
    "mosaics": {"mosaics": 2},
    "tokens": {"images": "photographs", "num": 3},
    "ridge": {"train": "maps", "val": "maps", "size": 40},
    "segmentation": {"train": "maps", "val": "maps", **SMALL},
    "depth": {"train": "depth", "val": "depth", "num_bins": 8, **SMALL},
    "warps": {"images": "photographs", "num": 2, "size": 32},
    "pan": {"images": "photographs", "num": 2, "size": 32, "frames": 4},
    "objects": {"data": "boxes", "thresholds": (0.2,)},
    "matches": {"images": "photographs", "size": 40},
    "linear": {"num_steps": 5, "batch_size": 8, "lrs": (0.1,), "hold_out": 0.3},
    "logreg": {"hold_out": 0.4},
    "fewshot": {"shots": (1,), "draws": 1},
    "retrieval": {},
    "revisited": {"path": "revisited", "size": 32},
    "amstertime": {"path": "amstertime"},
    "met": {"path": "met", "size": 48, "whiten": 2},
    "copies": {"path": "copies", "size": 32},
    "spair": {"path": "spair", "size": 40},
    "navi": {"path": "navi", "size": 48, "every_view": 1, "num": 40},
    "propagation": {"data": "videos", "size": 40},
    "clips": {
        **{"train": "clips/train.txt", "val": "clips/val.txt", "frames": 3, "size": 24},
        **{"width": 12, "depth": 2, "heads": 2, "epochs": 1.0, "rates": (1e-3,), "decays": (0.0,)},
    },
}
PATHS = ("images", "train", "val", "data", "path")


def test_every_row_is_tested_here_or_with_texts():
    assert MINIATURES.keys() | TEXT == SUITE.keys()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Data for all of them."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    imagenet(root / "in")
    for number in range(4):
        save(root / f"photographs/{number}.png", rng.integers(0, 256, (48, 56, 3), np.uint8))
    colour_folder(root / "maps")
    colour_folder(root / "depth")
    colour_folder(root / "boxes", num=3)
    with (root / "boxes/boxes.csv").open("w", newline="") as file:
        rows = ([f"{number}.png", 8, 8, 24, 24] for number in range(3))
        csv.writer(file).writerows([boxes.COLUMNS, *rows])
    for number in range(3):
        cells = rng.integers(1, 4, (40, 48)).astype(np.uint16) * 1000
        save(root / f"depth/maps/{number}.png", cells)
        photograph(root, f"amstertime/old/{number:04d}.jpg")
        photograph(root, f"amstertime/new/{number:04d}.png")
        photograph(root, f"copies/original/200{number}00.jpg")
        photograph(root, f"copies/strong/200{number}01.jpg")
        photograph(root, f"revisited/roxford5k/jpg/all_{number}.jpg")
    photograph(root, "revisited/roxford5k/jpg/query_0.jpg")
    truth = {"easy": [0], "hard": [1], "junk": [], "bbx": [0, 0, 8, 8]}
    listed = {"imlist": [f"all_{n}" for n in range(3)], "qimlist": ["query_0"], "gnd": [truth]}
    (root / "revisited/roxford5k/gnd_roxford5k.pkl").write_bytes(pickle.dumps(listed))
    (root / "met/ground_truth").mkdir(parents=True)
    for name in ("MET_database", "valset", "testset"):
        files = [f"{name}/{number}.jpg" for number in range(3)]
        for file in files:
            photograph(root / "met/images", file)
        rows = [{"path": file, "id": number} for number, file in enumerate(files)]
        (root / f"met/ground_truth/{name}.json").write_text(json.dumps(rows))
    keypoints_in(root / "spair")
    views_in(root / "navi")
    (root / "clips").mkdir()
    dots(root / "clips", "train", 6, 0)
    dots(root / "clips", "val", 3, 1)
    videos_in(root / "videos", "")
    return root


def built(name, root, batch_size):
    row, values = SUITE[name], dict(MINIATURES[name])
    module = importlib.import_module(row.module)
    keys = importlib.import_module(SUITE[row.section].module)
    values |= {key: str(root / values[key]) for key in PATHS if key in values}
    if "batch_size" in keys.KEYS and "batch_size" in row.free:
        values["batch_size"] = batch_size
    bank = f"imagenet:{root / 'in'}"
    query = bank if name != "mosaics" else bank.replace(":", "/train:", 1)  # which takes 4 images
    own = setting(bank=bank, query=query, batch_size=batch_size, crop_size=32, resize_size=32)
    return module.build(section(keys, **values), own)


def pixels_on(layout):
    """The pixels of patches, computed on the devices of a layout as a backbone's features are."""
    plain = raw_pixels(PATCH)

    @functools.partial(jax.jit)
    def run(images_BHWC):
        images_BHWC = mesh.constrain(images_BHWC, "image", None, None, None)
        _, mean, patches = plain.embed({}, images_BHWC)
        return mean, mean, patches

    def embed(params, images_BHWC):
        num = len(images_BHWC)
        fill = [(0, -num % layout.num_shards), (0, 0), (0, 0), (0, 0)]
        found = run(batch.from_own_rows(layout, np.pad(images_BHWC, fill)))
        return tuple(process_group.fetch(x)[:num] for x in found)

    return Network(embed, {})


def measured(name, root, devices, batch_size):
    layout = mesh.make("dp", devices)
    with mesh.use(layout):
        return built(name, root, batch_size).measure(pixels_on(layout))


@pytest.mark.parametrize("name", MINIATURES)
def test_neither_devices_nor_batches_change_a_value(root, name):
    want = measured(name, root, 1, 4)
    assert SUITE[name].main_column({"knn.features": "cls"}) in want.values
    assert all(SUITE[name].owns(column) for column in want.values)
    assert np.isfinite(list(want.values.values())).all() and want.num > 0
    for column, rows in want.samples.items():
        assert want.statistic(rows) == pytest.approx(want.values[column]), column
    for devices, batch_size in ((2, 3), (8, 5)):
        found = measured(name, root, devices, batch_size)
        assert dict(found.values) == pytest.approx(dict(want.values), abs=1e-4)


@pytest.mark.parametrize("name", MINIATURES)
def test_features_that_are_all_the_same_have_a_value(root, name):
    evaluation = built(name, root, 4)
    if name == "met":
        with pytest.raises(ValueError, match="all descriptors are equal"):
            evaluation.measure(Network(same, {}))
        return
    found = evaluation.measure(Network(same, {})).values
    assert np.isfinite(list(found.values())).all(), found


def same(params, images_BHWC):
    patches = np.asarray(constant(params, images_BHWC)[2], np.float32)
    return patches.mean(axis=1), patches.mean(axis=1), patches


def test_the_miniature_has_the_classes_of_the_layout(root):
    assert {path.name for path in (root / "in/train").iterdir()} == set(WNIDS)
