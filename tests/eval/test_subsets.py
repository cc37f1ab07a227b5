"""Few examples per class, and a share held out."""

import numpy as np
import pytest

from dinojax.eval.subsets import few_shot, hold_out

LABELS = np.repeat([0, 1, 3], [9, 4, 1])


@pytest.mark.parametrize("per_class, counts", [(2, [2, 2, 0, 1]), (0.5, [4, 2, 0, 1])])
def test_each_class_gives_its_number_or_share(per_class, counts):
    found = few_shot(LABELS, per_class, seed=0)
    assert np.bincount(LABELS[found]).tolist() == counts
    assert found.tolist() == sorted(set(found.tolist()))


def test_a_seed_is_a_draw_and_another_is_another():
    draws = [few_shot(LABELS, 2, seed).tolist() for seed in (0, 0, 1, 2, 3)]
    assert draws[0] == draws[1] and len({tuple(draw) for draw in draws}) > 2


def test_a_class_of_one_is_not_held_out():
    kept, held = hold_out(LABELS, 0.3, seed=0)
    assert np.bincount(LABELS[held]).tolist() == [2, 1]
    assert sorted([*kept, *held]) == list(range(len(LABELS)))


def test_an_example_of_two_classes_counts_once():
    both = np.array([[1, 1], [0, 1], [0, 0]])
    assert few_shot(both, 2, seed=0).tolist() == [0, 1]


@pytest.mark.parametrize("per_class", [0, 1.5, -1])
def test_a_number_that_is_no_count_is_refused(per_class):
    with pytest.raises(ValueError, match="give a share below 1 or a whole number"):
        few_shot(LABELS, per_class, seed=0)
