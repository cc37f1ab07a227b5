"""What enters the fingerprint of a protocol, and what changes no value and stays out."""

from types import SimpleNamespace

import pytest

from dinojax import config
from dinojax.config import ConfigError
from dinojax.eval import evaluate
from dinojax.eval.features import EvalTransform
from dinojax.eval.suite import SUITE
from dinojax.runs.records import fingerprint


def of(name, *overrides, data="data"):
    loaded = config.load("tiny", overrides)
    transform = EvalTransform.from_sections(image=loaded.image, knn=loaded.knn)
    target = SimpleNamespace(config=loaded, setting=SimpleNamespace(transform=transform))
    source = type("Source", (), {"fingerprint": data, "__len__": lambda self: 3})()
    made = SimpleNamespace(sources=(source,))
    return fingerprint(evaluate.protocol_of(target, name, made))


@pytest.mark.parametrize(
    ("name", "free", "bound"),
    [
        ("knn", "knn.batch_size=32", "knn.neighbors=5"),
        ("knn", "knn.bank=/elsewhere", "knn.resize_size=64"),
        ("ridge", "ridge.batch_size=2", "ridge.train=/maps/of/other/classes"),
        ("segmentation", "segmentation.every=9", "segmentation.batch_size=2"),
        ("depth", "depth.every=9", "depth.batch_size=2"),
        ("warps", "warps.images=/elsewhere", "precision.compute=bfloat16"),
    ],
)
def test_keys_that_change_no_value_stay_out_and_those_that_do_enter(name, free, bound):
    assert of(name, free) == of(name) != of(name, bound)
    assert of(name) != of(name, data="others")


def test_statistics_that_are_not_read_stay_out():
    """Of images that are each normalised by their own."""
    mean = "image.mean=(0.1, 0.2, 0.3)"
    assert of("knn", mean) == of("knn")
    fixed = "image.channels=3", "image.normalize=fixed"
    assert of("knn", mean, *fixed) != of("knn", *fixed)


def test_free_keys_are_keys():
    """A misspelt one would leave the key in."""
    for row in SUITE.values():
        section = getattr(config.load("tiny"), row.section).values()
        assert set(row.free) <= section.keys(), row.title


def test_a_protocol_gives_its_values_and_set_goes_before_them():
    given = evaluate.protocol_settings("knn", "paper", ["knn.crop_size=256"])
    assert "knn.resize_size=512" in given and not any("crop_size" in one for one in given)
    with pytest.raises(ConfigError, match="--protocol paper: warps has none"):
        evaluate.protocol_settings("warps", "paper", ())
    sections = {one.partition(".")[0] for one in evaluate.protocol_settings("all", "quick", ())}
    assert {"segmentation", "depth", "objects"} <= sections
