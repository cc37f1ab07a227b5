"""Metrics of classification against values worked out by hand and against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics as peer

from dinojax.eval import classification as own


def random_scores(seed=0, rows=80, classes=5):
    rng = np.random.default_rng(seed)
    return rng.random((rows, classes)).round(2), rng.integers(0, classes, rows)


def test_the_11_point_precision_of_four_images():
    found = own.voc_average_precision([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0])
    assert found == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)


def test_equal_scores_go_by_the_lowest_class():
    assert own.top_k(np.zeros((1, 4)), 2).tolist() == [[0, 1]]
    assert own.hits(np.zeros((2, 4)), [1, 2], 2).tolist() == [True, False]


def test_any_label_counts_and_rows_without_one_do_not():
    scores = np.eye(4)
    labels = [[1, 0], [2, 3], [2, -1], [-1, -1]]
    assert own.any_match(scores, labels) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="no row has a label"):
        own.any_match(scores, -np.ones((4, 2), int))


def test_a_class_that_no_row_has_counts_only_when_answered():
    labels = np.array([0, 0, 0, 1])
    answered = np.eye(3)[[0, 0, 2, 1]]
    assert own.mean_class_accuracy(answered, labels) == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert own.mean_class_accuracy(np.eye(3)[[0, 0, 0, 1]], labels) == 1.0
    assert np.isnan(own.class_accuracies(answered, labels)[2])


def test_scikit_learn_agrees_where_it_computes_the_same():
    scores, labels = random_scores()
    answers, hot = scores.argmax(axis=1), np.eye(5)[labels]
    for k in (1, 3):
        want = peer.top_k_accuracy_score(labels, scores + 1e-6 * np.arange(5)[::-1], k=k)
        assert own.accuracy(scores, labels, k) == pytest.approx(want)
    want = peer.balanced_accuracy_score(labels, answers)
    assert own.mean_class_accuracy(scores, labels) == pytest.approx(want)
    assert own.f1(scores, labels) == pytest.approx(peer.f1_score(labels, answers, average="macro"))
    assert own.auroc(scores, labels) == pytest.approx(peer.roc_auc_score(hot, scores))
    want = peer.average_precision_score(hot, scores)
    assert own.mean_over_classes(own.average_precision, scores, hot) == pytest.approx(want)


def test_ranks_count_all_that_score_as_much():
    scores = np.array([[0.5, 0.5, 0.1], [0.1, 0.2, 0.9]])
    assert own.mean_reciprocal_rank(scores, [0, 2]) == pytest.approx((1 / 2 + 0 + 1) / 3)


def test_a_group_hides_in_the_mean():
    scores = np.eye(2)[[0, 0, 1, 1]]
    found = own.by_group(
        own.accuracy, ["rich", "rich", "poor", "poor"], scores, np.array([0, 0, 1, 0])
    )
    assert found == {"poor": 0.5, "rich": 1.0}


def test_columns_are_taken_before_the_best_is():
    scores = np.array([[0.9, 0.5, 0.2]])
    assert own.accuracy(own.columns(scores, [1, 2]), [0]) == 1.0


@pytest.mark.parametrize(
    "scores, labels, words",
    [
        (np.zeros((2, 3)), [0, 3], "labels run from 0 to 3; the scores have 3 classes"),
        (np.zeros((2, 3)), [0], "2 rows of scores have labels"),
        ([[np.nan, 1.0]], [0], "scores of 1 rows are NaN"),
    ],
)
def test_what_cannot_be_judged_is_refused(scores, labels, words):
    with pytest.raises(ValueError, match=words):
        own.accuracy(scores, labels)
