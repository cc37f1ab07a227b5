"""AmsterTime in a miniature of its published layout."""

import numpy as np
import pytest
from PIL import Image

from dinojax.config import ConfigError
from dinojax.eval.amstertime import AmsterTime, open_pairs
from dinojax.eval.features import EvalTransform
from dinojax.eval.network import Network

TRANSFORM = EvalTransform(8, 8, "fixed", (0.0,) * 3, (1.0,) * 3)


def layout(root, new):
    for kind, colors, ending in (("old", range(4), "jpg"), ("new", new, "png")):
        (root / kind).mkdir()
        for number, color in enumerate(colors):
            pixels = np.zeros((10, 12, 3), np.uint8)
            pixels[..., 0], pixels[..., 1] = 60 * color, 200 - 60 * color
            Image.fromarray(pixels).save(root / kind / f"{number:04d}.{ending}")
    return root


def measured(root):
    def embed(params, images_BHWC):
        mean_BC = np.asarray(images_BHWC).mean(axis=(1, 2)).astype(np.float32)
        return mean_BC, mean_BC, None

    old, new = open_pairs(root, channels=3)
    return AmsterTime(old, new, TRANSFORM, batch_size=3).measure(Network(embed, {}))


def test_every_place_is_found_by_both_its_images(tmp_path):
    found = measured(layout(tmp_path, range(4)))
    assert found.values == {"amstertime/map": 100.0, "amstertime/first": 100.0}
    assert found.num == 8 and found.told == "4 pairs, both ways (published: 1231)"


def test_a_swapped_pair_is_found_second(tmp_path):
    found = measured(layout(tmp_path, (1, 0, 2, 3)))
    assert found.values["amstertime/first"] == 50.0
    assert found.values["amstertime/map"] == pytest.approx(75.0)
    assert np.mean(found.samples["amstertime/map"]) == pytest.approx(75.0)


def test_numbers_without_a_partner_are_named(tmp_path):
    layout(tmp_path, range(3))
    with pytest.raises(ConfigError, match=r"1 numbers are in one of old/ and new/ alone \(0003\)"):
        open_pairs(tmp_path, channels=3)
    with pytest.raises(ConfigError, match="has no folder old/"):
        open_pairs(tmp_path / "old", channels=3)
