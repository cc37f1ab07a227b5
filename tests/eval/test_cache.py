"""Features on disk: equal to those without, and a killed job goes on where it was."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dinojax.data.decode import DecodeError
from dinojax.data.example import Example
from dinojax.data.sources import open_at
from dinojax.eval import features
from dinojax.eval.cache import FeatureCache
from dinojax.eval.features import EvalTransform

NAMES = ("cls", "patches@-2:raw")


class Pixels:
    """Images of one value each; some cannot be read."""

    channels, fingerprint = 1, "pixels"
    labels = np.arange(11, dtype=np.int32)

    def __init__(self, bad=()):
        self.bad = bad

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        if index in self.bad:
            raise DecodeError(f"image {index} is cut")
        return Example(np.full((4, 4, 1), 10 * index, np.uint8), None, str(index))


def transform():
    return EvalTransform(4, 4, "fixed", (0.0,), (1.0,))


def network(limit=None):
    """(function of images and names, what it was asked for); stops after so many batches."""
    asked = []

    def apply(images, names):
        if limit is not None and len(asked) >= limit:
            raise KeyboardInterrupt
        asked.append(tuple(names))
        values_B = np.asarray(images).mean(axis=(1, 2, 3))
        return {name: np.stack([values_B, values_B * len(name)], axis=1) for name in names}

    return SimpleNamespace(apply=apply, asked=asked)


def extracted(cache, net, names=NAMES, source=None, batch_size=2):
    source = Pixels() if source is None else source
    return cache.extract(net.apply, source, names, transform=transform(), batch_size=batch_size)


def same(found, wanted):
    assert found.keys() == wanted.keys() and found["bad"] == wanted["bad"]
    for name in found.keys() - {"bad"}:
        np.testing.assert_array_equal(found[name], wanted[name])


@pytest.mark.parametrize("bad", [(), (1, 4, 5, 6, 7)])  # the second part has none
def test_it_gives_what_is_computed_without_it(tmp_path, bad):
    source, net = Pixels(bad), network()
    wanted = features.extract_outputs(
        lambda images: net.apply(images, NAMES), source, transform=transform(), batch_size=3
    )
    cache = FeatureCache(tmp_path, {"checksum": "a"}, part_size=4)
    same(extracted(cache, net, source=source), wanted)
    before = len(net.asked)
    same(extracted(cache, net, source=source, batch_size=5), wanted)
    assert len(net.asked) == before  # all was there


def test_a_killed_job_goes_on_and_only_what_is_lacking_is_computed(tmp_path):
    cache = FeatureCache(tmp_path, {"checksum": "a"}, part_size=4)
    with pytest.raises(KeyboardInterrupt):
        extracted(cache, network(limit=3))  # in the second part of three
    rest = network()
    found = extracted(cache, rest)
    assert rest.asked == [NAMES] * 4
    same(found, extracted(FeatureCache(tmp_path / "other", {}, part_size=11), network()))
    more = network()
    extracted(cache, more, (*NAMES, "mean"))
    assert set(more.asked) == {("mean",)}


def test_other_weights_data_and_resolution_have_features_of_their_own(tmp_path):
    net = network()
    extracted(FeatureCache(tmp_path, {"checksum": "a"}), net)
    before = len(net.asked)
    extracted(FeatureCache(tmp_path, {"checksum": "b"}), net)
    larger = Pixels()
    larger.fingerprint = "others"
    cache = FeatureCache(tmp_path, {"checksum": "a"})
    extracted(cache, net, source=larger)
    resized = EvalTransform(8, 8, "fixed", (0.0,), (1.0,))
    cache.extract(net.apply, Pixels(), NAMES, transform=resized, batch_size=2)
    assert len(net.asked) == 4 * before and len(list(tmp_path.iterdir())) == 4


def test_nothing_readable_is_an_error(tmp_path):
    with pytest.raises(
        ValueError, match="none of 11 images can be read, the first: image 0 is cut"
    ):
        extracted(FeatureCache(tmp_path, {}), network(), source=Pixels(range(11)))


@pytest.mark.parametrize("kind", ["folder", "manifest"])
def test_a_file_that_was_replaced_by_one_of_equal_size_is_read_anew(tmp_path, kind):
    path = tmp_path / "images/a/0.bmp"
    path.parent.mkdir(parents=True)
    (tmp_path / "images.csv").write_text("path\nimages/a/0.bmp\n")
    data = {"folder": str(tmp_path / "images"), "manifest": str(tmp_path / "images.csv")}[kind]
    cache, found = FeatureCache(tmp_path / "cache", {}), []
    for grey in (10, 10, 200):
        if not found or grey == 200:
            Image.fromarray(np.full((4, 4), grey, np.uint8)).save(path)
            os.utime(path, ns=(grey, grey))
        source = open_at(data, channels=1, key="data")
        net = network()
        value = extracted(cache, net, source=source)["cls"][0, 0]
        found.append((round(255 * float(value)), len(net.asked), source.fingerprint))
    assert [row[:2] for row in found] == [(10, 1), (10, 0), (200, 1)]
    assert len({row[2] for row in found}) == 1
