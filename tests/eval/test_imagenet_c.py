"""The mean corruption error of AlexNet is 1, and no cell may be missing."""

import pytest

from dinojax.eval.imagenet_c import ALEXNET, EXTRA, LEVELS, mean_corruption_error


def cells(factor, table):
    return {(name, level): 1 - factor * error for name, error in table.items() for level in LEVELS}


def test_alexnet_has_100_percent_and_half_its_errors_50():
    assert mean_corruption_error(cells(1.0, ALEXNET)) == pytest.approx(1.0)
    assert mean_corruption_error(cells(0.5, ALEXNET)) == pytest.approx(0.5)


def test_the_four_extra_corruptions_do_not_count():
    both = cells(1.0, ALEXNET) | cells(0.0, EXTRA)
    assert mean_corruption_error(both) == pytest.approx(1.0)
    assert mean_corruption_error(both, extra=True) == pytest.approx(15 / 19)


def test_a_missing_cell_is_named():
    some = cells(1.0, ALEXNET)
    del some["fog", 3]
    with pytest.raises(ValueError, match="1 of 75 cells of ImageNet-C are missing: fog/3"):
        mean_corruption_error(some)
