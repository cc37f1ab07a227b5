"""Bootstrap intervals against what is known of means and medians."""

import numpy as np
import pytest

from dinojax.eval.bootstrap import interval


def test_the_interval_of_a_share_is_that_of_the_binomial():
    right = np.arange(400) % 4 == 0
    low, high = interval(100.0 * right, draws=10_000)
    spread = 1.96 * 100 * np.sqrt(0.25 * 0.75 / 400)
    np.testing.assert_allclose([low, high], [25 - spread, 25 + spread], atol=0.5)
    assert interval(right) == interval(right)  # the same draws every time


def test_rows_are_drawn_as_wholes():
    """Patches of one image go together: two kinds of images, all patches of one alike."""
    rows = np.repeat([[0.0], [1.0]], 50, axis=0) * np.ones((100, 30))
    low, high = interval(rows)
    assert high - low > 0.15  # of 3000 independent ones it would be 0.036


def test_another_statistic_is_asked_of_the_same_draws():
    values = np.random.default_rng(0).normal(size=200)
    low, high = interval(values, np.median)
    assert low < np.median(values) < high and (low, high) != interval(values)
    assert interval(np.full(10, 3.0), np.median) == (3.0, 3.0)
    with pytest.raises(ValueError, match="no samples"):
        interval(np.zeros(0))
