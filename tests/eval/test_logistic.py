"""Logistic regressions are exact minima, whatever shape the data has."""

import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from dinojax.eval import logistic
from dinojax.eval.classification import accuracy


def data(seed=0, num=60, width=5, classes=3):
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % classes
    centers = rng.normal(size=(classes, width))
    return centers[labels] + rng.normal(size=(num, width)), labels


def one(features, labels, strength, num_classes):
    (model,) = logistic.fit(features, labels, num_classes=num_classes, strengths=[strength])
    return model


@pytest.mark.parametrize("strength, weight", [(0.01, 0.00995025), (1, 0.6748316), (100, 3.9139948)])
def test_two_points_have_the_known_weight(strength, weight):
    model = one([[-1.0], [1.0]], np.array([0, 1]), strength, 2)
    assert model.weights_DK[0, 0] == pytest.approx(weight, rel=1e-6)
    assert model.bias_K[0] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("num, width", [(60, 5), (12, 30)])
def test_scikit_learn_finds_the_same(num, width):
    features, labels = data(num=num, width=width)
    features += 3.0  # a mean that is far from 0
    for strength in (0.01, 10.0):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peer = LogisticRegression(C=strength, tol=1e-10, max_iter=5000).fit(features, labels)
        model = one(features, labels, strength, 3)
        np.testing.assert_allclose(model.weights_DK.T, peer.coef_, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(model.scores(features), peer.predict_proba(features), atol=1e-5)


@pytest.mark.parametrize("kind", ["softmax", "binary", "sigmoid"])
def test_factors_of_the_hessian_lead_where_conjugate_gradients_lead(kind, monkeypatch):
    num_classes = 2 if kind == "binary" else 3
    features, labels = data(classes=num_classes)
    labels = np.eye(3, dtype=int)[labels] if kind == "sigmoid" else labels
    for strength in (0.01, 1e4):
        monkeypatch.setattr(logistic, "MOST_STEPS", 1000)
        want = one(features, labels, strength, num_classes)
        monkeypatch.setattr(logistic, "MOST_STEPS", 0)
        found = one(features, labels, strength, num_classes)
        assert found.kind == kind and found.residual < 1e-8
        np.testing.assert_allclose(found.weights_DK, want.weights_DK, rtol=1e-4, atol=1e-4)


def test_features_that_hardly_differ_and_weak_penalties_take_few_products(monkeypatch):
    """Without factors of the Hessian these took three times as many."""
    rng, products = np.random.default_rng(0), 0
    drawn = rng.normal(size=(400, 24))
    labels = np.argmax(drawn @ rng.normal(size=(24, 6)), axis=1)
    features = 5 + drawn * np.logspace(0, -3, 24)
    hessian = logistic._Problem.hessian

    def counted(*args):
        product, diagonal = hessian(*args)

        def count(direction):
            nonlocal products
            products += 1
            return product(direction)

        return count, diagonal

    monkeypatch.setattr(logistic._Problem, "hessian", counted)
    models = list(logistic.fit(features, labels, num_classes=6, strengths=logistic.STRENGTHS))
    assert max(model.residual for model in models) < 1e-7
    assert products < 8000, products


def test_what_is_certain_is_nothing_in_the_hessian():
    """Numbers below 1e-38 take float32 ten times as long."""
    problem = logistic._Problem(np.ones((4, 2)), np.eye(4), softmax=True)
    probabilities = np.array([[1, 1e-25, 1e-39, 1e-42]] * 4)
    product, diagonal = problem.hessian(probabilities, 0.0)
    assert np.all(product(np.ones((3, 4), np.float32))[:, 1:] == 0)
    assert np.all(diagonal == np.float32(1e-7))


def test_columns_that_are_there_three_times_count_as_one():
    features, labels = data()
    once = one(features * np.sqrt(3), labels, 1.0, 3)
    model = one(np.concatenate([features] * 3, axis=1), labels, 1.0, 3)
    np.testing.assert_allclose(model.weights_DK[:5] * np.sqrt(3), once.weights_DK, atol=1e-6)
    centered = features - features.mean(axis=0)
    assert logistic._principal(np.concatenate([centered] * 3, axis=1))[0].shape == (60, 5)


def test_scaled_features_and_a_scaled_strength_predict_the_same():
    features, labels = data()
    plain = one(features, labels, 2.0, 3).scores(features)
    scaled = one(features * 10, labels, 0.02, 3).scores(features * 10)
    np.testing.assert_allclose(scaled, plain, atol=1e-7)


def test_a_tiny_strength_gives_the_shares_of_the_classes():
    features, labels = data(num=50)
    shares = np.bincount(labels) / 50
    np.testing.assert_allclose(
        one(features, labels, 1e-9, 3).scores(features)[0], shares, atol=1e-5
    )


def test_columns_of_targets_are_regressions_of_their_own():
    features, labels = data()
    columns = np.stack([labels == 0, labels > 0], axis=1)
    both = one(features, columns, 1.0, 2).scores(features)
    alone = one(features, (labels > 0).astype(int), 1.0, 2).scores(features)
    np.testing.assert_allclose(both[:, 1], alone[:, 1], atol=1e-6)
    np.testing.assert_allclose(both.sum(axis=1), 1.0, atol=1e-6)  # the columns are opposites


def test_the_first_of_equally_good_strengths_is_chosen():
    features, labels = data(num=40)
    far = features * 0 + np.eye(5)[labels] * 9
    chosen = logistic.choose(
        (far, labels), (far, labels), num_classes=3, metric=accuracy, strengths=(0.1, 1.0, 10.0)
    )
    assert chosen.strength == 0.1 and chosen.values == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("features", [np.ones((6, 4)), np.zeros((6, 1))])
def test_constant_features_give_the_shares_of_the_classes(features):
    labels = np.array([0, 0, 0, 1, 1, 2])
    np.testing.assert_allclose(
        one(features, labels, 1.0, 3).scores(features)[0], [3 / 6, 2 / 6, 1 / 6]
    )


def test_the_order_of_the_rows_changes_nothing():
    features, labels = data()
    order = np.random.default_rng(1).permutation(len(labels))
    there = one(features, labels, 1.0, 3).weights_DK
    np.testing.assert_allclose(
        one(features[order], labels[order], 1.0, 3).weights_DK, there, atol=1e-8
    )


def test_a_class_without_rows_is_improbable_and_one_class_is_certain():
    features, _ = data(num=20)
    absent = one(features, np.zeros(20, int), 1.0, 2).scores(features)
    assert np.all(absent[:, 1] < 1e-3) and np.all(np.isfinite(absent))
    np.testing.assert_array_equal(one(features, np.zeros(20, int), 1.0, 1).scores(features), 1.0)


def test_what_is_no_feature_or_no_class_is_refused():
    with pytest.raises(ValueError, match="finite"):
        one([[np.nan], [1.0]], np.array([0, 1]), 1.0, 2)
    with pytest.raises(ValueError, match="labels run from 0 to 2; there are 2 classes"):
        one([[0.0], [1.0]], np.array([0, 2]), 1.0, 2)
