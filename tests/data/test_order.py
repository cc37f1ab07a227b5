"""The order of images is a pure function, a permutation per epoch, and different every epoch."""

import numpy as np
import pytest

from dinojax.data.order import image_index


@pytest.mark.parametrize("num_images", [1, 2, 3, 31, 64, 65, 1000, 4097])
def test_every_epoch_visits_every_image_once(num_images):
    for epoch in (0, 1, 7):
        positions = epoch * num_images + np.arange(num_images)
        order = image_index(3, positions, num_images)
        np.testing.assert_array_equal(np.sort(order), np.arange(num_images))


def test_an_element_depends_on_nothing_but_its_position():
    positions = np.array([[5, 999], [1000, 1000], [2**40, 0]])
    together = image_index(1, positions, 1000)
    alone = [[int(image_index(1, np.array(p), 1000)) for p in row] for row in positions]
    np.testing.assert_array_equal(together, alone)
    assert together.dtype == np.int64


def test_the_order_of_a_seed_never_changes():
    """Pinned: another order would make killed runs continue with other images."""
    assert image_index(0, np.arange(8), 10).tolist() == [9, 5, 4, 0, 6, 3, 7, 2]
    assert image_index(12345, np.arange(4) + 10**7, 1_281_167).tolist() == [
        764385,
        875393,
        610243,
        272225,
    ]


@pytest.mark.parametrize("other", [(1, 0), (0, 1), (2**64 - 1, 0)])
def test_seeds_and_epochs_are_unlike_each_other(other):
    """Also seed 1 epoch 0 and seed 0 epoch 1, which a sum of the two would make equal."""
    num_images = 1000
    orders = {
        key: image_index(key[0], key[1] * num_images + np.arange(num_images), num_images)
        for key in {(0, 0), (1, 0), (0, 1), other}
    }
    for key, order in orders.items():
        same = [np.mean(order == orders[o]) for o in orders if o != key]
        assert max(same) < 0.01
        neighbours = np.mean(np.abs(np.diff(order)) == 1)
        assert neighbours < 0.01  # about 2 / 1000 by chance


def test_places_are_spread_evenly():
    """Chi-square over (place, image) in 4,000 epochs of 6 images: 25 degrees of freedom."""
    orders = image_index(0, np.arange(6 * 4000), 6).reshape(4000, 6)
    counts = np.stack([np.bincount(orders[:, place], minlength=6) for place in range(6)])
    expected = 4000 / 6
    assert np.sum((counts - expected) ** 2 / expected) < 53  # p = 0.001
    assert len(np.unique(orders, axis=0)) > 700  # of 720; 717 expected of 4,000 draws


def test_an_order_needs_images_and_starts_at_zero():
    with pytest.raises(ValueError, match="at least one image, got num_images=0"):
        image_index(0, np.arange(3), 0)
    with pytest.raises(ValueError, match="starts at 0, got -1"):
        image_index(0, np.array([4, -1]), 10)
