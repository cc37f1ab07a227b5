"""The probe of a removed factor: what a line can tell it finds, and nothing where nothing is."""

import numpy as np
import pytest

from dinojax.eval.removal import linear_probe, worst_group


def features(shift: float, num: int = 400):
    """Noise of 8 channels, shifted along one of them by the class of three."""
    rng = np.random.default_rng(0)
    classes = np.arange(num) % 3
    x = rng.normal(size=(num, 8))
    x[:, 3] += shift * classes
    return x, classes


def test_a_factor_in_the_features_is_read_and_one_that_is_not_is_not():
    for shift, low, high in ((8.0, 0.6, 1.0), (0.0, 0.2, 0.45)):
        x, classes = features(shift)
        found = linear_probe(x[:200], classes[:200], x[200:], classes[200:])
        assert low < found.accuracy <= high, shift
        assert found.chance == pytest.approx(1 / 3, abs=0.01)
        assert found.worst_group <= found.accuracy


def test_images_without_a_value_are_left_out():
    x, classes = features(8.0)
    gaps = np.where(np.arange(len(x)) % 4 == 0, -1, classes)
    kept = gaps >= 0
    wanted = linear_probe(x[kept], classes[kept], x, classes)
    assert linear_probe(x, gaps, x, classes) == wanted
    with pytest.raises(ValueError, match="nothing to probe"):
        linear_probe(x, np.full(len(x), -1), x, classes)


def test_the_worst_group_is_the_smallest_share_of_those_with_images():
    assert worst_group([1, 1, 0, 1, 0], [0, 0, 2, 2, -1]) == 0.5
