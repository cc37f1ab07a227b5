"""Revisited Oxford and Paris in a miniature of its authors' layout."""

import os
import pickle

import numpy as np
import pytest
from PIL import Image

from dinojax.config import ConfigError
from dinojax.eval import revisited
from dinojax.eval.network import Network
from dinojax.weights.preprocess import Preprocessing

TRANSFORM = Preprocessing(16, (16, 16), "fixed", (0.0,) * 3, (1.0,) * 3, rule="inside")
# Reds: like query 0; greens: like query 1. Blue 4 is junk, which is as red as the query.
COLORS = [(200, 20, 20), (150, 60, 20), (20, 200, 20), (60, 150, 20), (200, 20, 20)]
GND = [
    {"easy": [0], "hard": [1], "junk": [4], "bbx": [0, 0, 8, 8]},
    {"easy": [], "hard": [2, 3], "junk": [], "bbx": [0, 0, 8, 8]},
]


def layout(root, gnd=GND, name="roxford5k"):
    """roxford5k/ with five images and two queries, which are half of their colour."""
    folder = root / name / "jpg"
    folder.mkdir(parents=True)
    for number, color in enumerate(COLORS):
        save(folder / f"all_{number}.jpg", color)
    for number, color in enumerate([(200, 20, 20), (20, 200, 20)]):
        save(folder / f"query_{number}.jpg", color, right=(20, 20, 250))
    truth = {
        "imlist": [f"all_{number}" for number in range(5)],
        "qimlist": ["query_0", "query_1"],
        "gnd": gnd,
    }
    (root / name / f"gnd_{name}.pkl").write_bytes(pickle.dumps(truth))
    return root


def save(path, color, right=None):
    pixels = np.zeros((12, 16, 3), np.uint8) + np.array(color, np.uint8)
    if right is not None:
        pixels[:, 8:] = right
    Image.fromarray(pixels).save(path, quality=95, subsampling=0)


def network():
    def embed(params, images_BHWC):
        mean_BC = np.asarray(images_BHWC).mean(axis=(1, 2)).astype(np.float32)
        return mean_BC, mean_BC, None

    return Network(embed, {})


def measured(root, **options):
    options = {"channels": 3, "crop_queries": False, **options}
    places = revisited.open_places(root, "roxford5k", **options)
    return revisited.Revisited((places,), TRANSFORM, batch_size=3).measure(network())


def test_places_are_found_and_junk_does_not_count(tmp_path):
    found = measured(layout(tmp_path))
    assert found.values["revisited/roxford5k-medium"] == pytest.approx(100.0)
    assert found.values["revisited/hard"] == pytest.approx(100.0)
    assert found.told == "roxford5k: 2 queries in 5 images (published: 70 in 4993)"
    assert found.samples["revisited/roxford5k-medium"].shape == (2,)


def test_the_wrong_places_have_a_low_score(tmp_path):
    swapped = [{**GND[1], "bbx": [0, 0, 8, 8]}, GND[0]]
    values = measured(layout(tmp_path, swapped)).values
    assert values["revisited/roxford5k-medium"] < 50


def test_queries_are_cut_to_their_boxes_on_demand(tmp_path):
    layout(tmp_path)
    whole, cut = (
        revisited.open_places(tmp_path, "roxford5k", channels=3, crop_queries=crop).queries
        for crop in (False, True)
    )
    assert whole[0].pixels.shape == (12, 16, 3) and cut[0].pixels.shape == (8, 8, 3)
    assert np.all(cut[0].pixels[..., 2] < 60) and cut.fingerprint != whole.fingerprint
    assert measured(tmp_path, crop_queries=True).values["revisited/hard"] == pytest.approx(100.0)


class Code:
    def __reduce__(self):
        return os.system, ("exit 1",)


@pytest.mark.parametrize(
    "content, words",
    [
        (pickle.dumps(Code()), "is no ground truth of this benchmark.*asks for posix.system"),
        (b"damaged", "is no ground truth of this benchmark"),
        (
            pickle.dumps({"imlist": ["a"], "qimlist": ["q"], "gnd": []}),
            "1 queries, 0 rows of truth",
        ),
    ],
)
def test_a_file_that_is_no_plain_truth_is_refused(tmp_path, content, words):
    path = tmp_path / "gnd_roxford5k.pkl"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        revisited.read_truth(path)


def test_a_missing_image_and_a_missing_truth_are_named(tmp_path):
    layout(tmp_path)
    (tmp_path / "roxford5k" / "jpg" / "all_3.jpg").unlink()
    with pytest.raises(ConfigError, match="1 of 5 images are not there, the first: .*all_3.jpg"):
        measured(tmp_path)
    with pytest.raises(ConfigError, match="gnd_rparis6k.pkl cannot be read"):
        revisited.open_places(tmp_path, "rparis6k", channels=3, crop_queries=False)
