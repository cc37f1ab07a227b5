"""Few-shot accuracy in closed form: ridge regression onto +1 and -1, as big_vision reports it.

Seconds where a probe by gradients takes minutes, so it is for watching a training run.
"""

from collections.abc import Sequence

import numpy as np

BIAS = 100.0  # the constant feature, after standardisation
STD_FLOOR = 1e-5  # added to the standard deviation of every channel


class Ridge:
    """Standardised features of a few labelled images, decomposed once for any penalty.

    features_ND: float; labels_N: of 0..num_classes - 1. Everything is float64 on the host. With
    fewer images than channels the images' Gram matrix is decomposed, else the channels'.
    """

    def __init__(self, features_ND, labels_N, num_classes: int):
        features_ND = np.asarray(features_ND, np.float64)
        self.mean_D = features_ND.mean(axis=0)
        self.std_D = features_ND.std(axis=0) + STD_FLOOR
        self._x = x = self._prepared(features_ND)
        targets_NC = np.where(np.eye(num_classes, dtype=bool)[np.asarray(labels_N)], 1.0, -1.0)
        self._dual = len(x) < x.shape[1]
        self._values, self._vectors = np.linalg.eigh(x @ x.T if self._dual else x.T @ x)
        self._rotated = self._vectors.T @ (targets_NC if self._dual else x.T @ targets_NC)

    def weights(self, penalty: float) -> np.ndarray:
        """[D + 1, C]; the last row belongs to the constant."""
        solved = self._vectors @ (self._rotated / (self._values[:, None] + penalty))
        return self._x.T @ solved if self._dual else solved

    def scores(self, features_MD, penalty: float) -> np.ndarray:
        """[M, C]"""
        return self._prepared(np.asarray(features_MD, np.float64)) @ self.weights(penalty)

    def _prepared(self, features_ND: np.ndarray) -> np.ndarray:
        standard_ND = (features_ND - self.mean_D) / self.std_D
        return np.pad(standard_ND, ((0, 0), (0, 1)), constant_values=BIAS)


def accuracies(
    train: tuple, test: tuple, *, num_classes: int, penalties: Sequence[float]
) -> dict[float, float]:
    """{penalty: share of test images that are right}. train, test: (features, labels)."""
    features_ND, labels_N = train
    ridge = Ridge(features_ND, labels_N, num_classes)
    features_MD, labels_M = test
    return {
        penalty: float(np.mean(np.argmax(ridge.scores(features_MD, penalty), axis=1) == labels_M))
        for penalty in penalties
    }
