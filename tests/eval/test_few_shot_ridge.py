"""The closed form is a minimum, and both ways to it agree."""

import numpy as np
import pytest

from dinojax.eval.few_shot_ridge import BIAS, STD_FLOOR, Ridge, accuracies


def blobs(num, width, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % 3
    return np.eye(3, width)[labels] * 6 + rng.normal(size=(num, width)), labels


@pytest.mark.parametrize("num, width", [(9, 20), (60, 5)])
def test_weights_solve_the_ridge_equations(num, width):
    features, labels = blobs(num, width)
    x = (features - features.mean(axis=0)) / (features.std(axis=0) + STD_FLOOR)
    x = np.concatenate([x, np.full((num, 1), BIAS)], axis=1)
    want = np.linalg.solve(x.T @ x + 2.0 * np.eye(width + 1), x.T @ (2 * np.eye(3)[labels] - 1))
    np.testing.assert_allclose(Ridge(features, labels, 3).weights(2.0), want, atol=1e-8)


def test_fewer_images_than_channels_are_learned_by_heart():
    features, labels = blobs(9, 20)
    shuffled = np.random.default_rng(1).permutation(labels)
    found = accuracies((features, shuffled), (features, shuffled), num_classes=3, penalties=[1e-9])
    assert found == {1e-9: 1.0}


def test_apart_is_right_noise_is_chance_and_constant_is_defined():
    train, test = blobs(30, 8), blobs(300, 8, seed=1)
    told = accuracies(train, test, num_classes=3, penalties=[1.0, 1024.0])
    assert told[1.0] == 1.0 and told[1024.0] > 0.98
    noise = np.random.default_rng(2).normal(size=(300, 8))
    assert (
        abs(accuracies(train, (noise, test[1]), num_classes=3, penalties=[1.0])[1.0] - 1 / 3) < 0.1
    )
    flat = np.ones((30, 8))
    assert accuracies((flat, train[1]), (flat, train[1]), num_classes=3, penalties=[1.0])[1.0] == (
        pytest.approx(1 / 3)
    )
