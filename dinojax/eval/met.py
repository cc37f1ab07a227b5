"""The Met's benchmark of instance recognition (Ypsilantis et al., arXiv:2202.01747).

Descriptors are whitened by the exhibits, a query's nearest exhibits vote by their best similarity,
and answers are ranked by confidence, so that a query that shows no exhibit should be unsure.
"""

import dataclasses
import itertools

import numpy as np

DISTRACTOR = -1  # the label of a query that shows no exhibit
NEIGHBORS = (1, 2, 3, 5, 7, 10, 15, 20, 50)
TEMPERATURES = (0.01, 0.1, 1.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 50.0, 100.0, 500.0)


@dataclasses.dataclass(frozen=True)
class Whitening:
    """Descriptors on the leading axes of a covariance, each to variance 1."""

    mean_D: np.ndarray
    axes_DK: np.ndarray

    def __call__(self, features_ND) -> np.ndarray:
        """Whitened descriptors float64 [N, K] of unit length."""
        moved = (np.asarray(features_ND, np.float64) - self.mean_D) @ self.axes_DK
        return unit(moved)


def fit_whitening(features_ND, num_axes: int) -> Whitening:
    """Of the num_axes largest eigenvalues of the covariance (divided by N), in float64.

    Directions without variance, below 1e-12 of the largest, are left out.
    Raises ValueError for more axes than there are channels, or without any variance.
    """
    features_ND = np.asarray(features_ND, np.float64)
    if not 1 <= num_axes <= features_ND.shape[1]:
        raise ValueError(f"{num_axes} axes of whitening for {features_ND.shape[1]} channels.")
    mean_D = features_ND.mean(axis=0)
    centered = features_ND - mean_D
    values, vectors = np.linalg.eigh(centered.T @ centered / len(centered))
    values, vectors = values[::-1][:num_axes], vectors[:, ::-1][:, :num_axes]
    kept = values > 1e-12 * values[0]
    if values[0] <= 0 or not np.any(kept):
        raise ValueError("all descriptors are equal: there is nothing to whiten.")
    return Whitening(mean_D, vectors[:, kept] / np.sqrt(values[kept]))


def unit(features_ND) -> np.ndarray:
    norms = np.linalg.norm(features_ND, axis=1, keepdims=True)
    return features_ND / np.maximum(norms, 1e-12)


def classify(
    similarities_Qk, labels_Qk, *, temperature: float, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """(class int64 [Q], confidence [Q]) by the nearest exhibits of each query.

    A class has the best similarity of its exhibits among them, 0 at least; all other classes have
    0. Confidence is the softmax of that at inverse temperature `temperature`. Of equal classes the
    lowest wins. labels_Qk: of the neighbours, which are in any order.
    """
    similarities_Qk = np.maximum(np.asarray(similarities_Qk, np.float64), 0.0)
    classes, confidences = [], []
    for similarities_k, labels_k in zip(similarities_Qk, np.asarray(labels_Qk), strict=True):
        seen, inverse = np.unique(labels_k, return_inverse=True)
        scores = np.zeros(len(seen))
        np.maximum.at(scores, inverse, similarities_k)
        best = int(np.argmax(scores))
        weights = np.exp(temperature * (scores - scores[best]))
        unseen = (num_classes - len(seen)) * np.exp(-temperature * scores[best])
        classes.append(seen[best])
        confidences.append(1.0 / (np.sum(weights) + unseen))
    return np.array(classes), np.array(confidences)


def global_average_precision(classes_Q, confidences_Q, labels_Q) -> float:
    """GAP: mean over the queries that show an exhibit of the precision where they are right.

    Queries are ranked by confidence, of equal ones in their order; distractors (label -1) are
    always wrong and stay in the list. NaN if all are.
    """
    labels_Q = np.asarray(labels_Q)
    order = np.argsort(-np.asarray(confidences_Q), kind="stable")
    right = (np.asarray(classes_Q) == labels_Q)[order] & (labels_Q[order] != DISTRACTOR)
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    num = np.sum(labels_Q != DISTRACTOR)
    return float(np.sum(precision * right) / num) if num else float("nan")


def scores(classes_Q, confidences_Q, labels_Q) -> dict[str, float]:
    """{"gap", "gap_minus" (without distractors), "accuracy" (of queries that show an exhibit)}."""
    shown = np.asarray(labels_Q) != DISTRACTOR
    classes_Q, confidences_Q, labels_Q = map(np.asarray, (classes_Q, confidences_Q, labels_Q))
    return {
        "gap": global_average_precision(classes_Q, confidences_Q, labels_Q),
        "gap_minus": global_average_precision(
            classes_Q[shown], confidences_Q[shown], labels_Q[shown]
        ),
        "accuracy": float(np.mean(classes_Q[shown] == labels_Q[shown])),
    }


def tune(
    similarities_Qk,
    labels_Qk,
    query_labels_Q,
    *,
    num_classes: int,
    neighbors=NEIGHBORS,
    temperatures=TEMPERATURES,
) -> tuple[int, float, float]:
    """(neighbours, temperature, GAP) of the first strict best, neighbours varying slowest.

    similarities_Qk: nearest first, at least as many as the most neighbours.
    """
    best: tuple[int, float, float] | None = None
    for k, temperature in itertools.product(neighbors, temperatures):
        found = classify(
            np.asarray(similarities_Qk)[:, :k],
            np.asarray(labels_Qk)[:, :k],
            temperature=temperature,
            num_classes=num_classes,
        )
        gap = global_average_precision(*found, query_labels_Q)
        if best is None or gap > best[2]:
            best = (k, temperature, gap)
    assert best is not None, "a grid has at least one pair"
    return best
