"""Average precisions of known lists, junk that changes nothing, and exhibits told by confidence."""

import numpy as np
import pytest

from dinojax.eval import met, retrieval


@pytest.mark.parametrize(
    "places, value", [([0, 2], 0.7916667), ([1], 0.25), ([9], 0.05), ([0, 1, 2], 1.0)]
)
def test_trapezoid_precisions_of_known_lists(places, value):
    assert retrieval.average_precision(np.array(places)) == pytest.approx(value)


def test_junk_near_the_query_changes_nothing_and_hard_is_junk_of_easy():
    roles = np.array([[retrieval.EASY, retrieval.JUNK, 0, retrieval.HARD]])
    for ranks in ([0, 2, 3, 1], [1, 0, 2, 3], [0, 1, 2, 3]):
        assert retrieval.evaluate([ranks], roles, "medium").mean == pytest.approx(0.7916667)
    assert retrieval.evaluate([[3, 1, 0, 2]], roles, "easy").mean == 1.0
    assert retrieval.evaluate([[0, 1, 2, 3]], roles, "hard").mean == pytest.approx(0.25)


def test_queries_without_positives_are_left_out():
    roles = np.array([[retrieval.EASY, 0], [0, 0]])
    found = retrieval.evaluate([[0, 1], [0, 1]], roles, "easy")
    assert found.mean == 1.0 and np.isnan(found.average_precisions[1])
    assert np.isnan(retrieval.evaluate([[0, 1]], roles[1:], "easy").mean)


def test_a_single_relevant_image_counts_by_its_rank():
    mean, top = retrieval.reciprocal_ranks([[0, 1, 0], [1, 0, 0], [0, 0, 0]])
    assert mean == pytest.approx(0.5) and top == pytest.approx([1 / 3, 2 / 3])


def test_copies_find_each_other():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(6, 16))
    copies = np.concatenate([base, base + 0.01 * rng.normal(size=base.shape)])
    labels = np.tile(np.arange(6), 2)
    unit = met.unit(copies)
    assert retrieval.leave_one_out(unit @ unit.T, labels) == 1.0
    assert retrieval.leave_one_out(-(unit @ unit.T), labels) == pytest.approx(1 / 11)
    assert np.isnan(retrieval.leave_one_out(unit @ unit.T, np.arange(12)))


def test_equal_similarities_go_by_the_lowest_index():
    assert retrieval.ranking(np.zeros((1, 3))).tolist() == [[0, 1, 2]]


def test_gap_of_four_answers():
    found = met.global_average_precision([1, 0, 3, 9], [0.9, 0.8, 0.7, 0.6], [1, 2, 3, -1])
    assert found == pytest.approx((1 + 2 / 3) / 3)


def test_whitened_descriptors_have_the_identity_as_covariance():
    features = np.random.default_rng(0).normal(size=(300, 6)) @ np.diag([5, 3, 2, 1, 1, 0.0])
    whitening = met.fit_whitening(features, 6)
    moved = (features - whitening.mean_D) @ whitening.axes_DK
    np.testing.assert_allclose(moved.T @ moved / 300, np.eye(5), atol=1e-9)  # one axis is empty
    with pytest.raises(ValueError, match="all descriptors are equal"):
        met.fit_whitening(np.ones((4, 3)), 2)


def test_confidence_is_shared_with_all_classes_that_are_not_seen():
    classes, confidences = met.classify(
        [[0.5, -0.2, 0.5]], [[4, 7, 2]], temperature=2.0, num_classes=9
    )
    weights = np.exp(2.0 * np.array([0.5, 0.0, 0.5]))
    assert classes.tolist() == [2]  # of equal classes the lowest
    assert confidences[0] == pytest.approx(weights[0] / (weights.sum() + 6))
