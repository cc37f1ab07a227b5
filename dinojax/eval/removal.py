"""How well a frozen network's features still tell a factor, and what its worst group gets.

A factor that guides were to remove (docs/own_data.md) is removed if a linear probe that is trained
anew on the final features does not read it; the guide's own head cannot say that, for the backbone
may have learned to mislead it alone.
"""

from typing import NamedTuple

import numpy as np

PENALTY = 1e-2  # of the probe's weights, relative to the mean variance of a channel


class Probe(NamedTuple):
    """A linear probe of a factor on held-out images."""

    accuracy: float
    chance: float  # share of the factor's most frequent value among them
    worst_group: float  # smallest accuracy over the factor's values


def linear_probe(bank_ND, bank_N, query_ND, query_N, *, penalty: float = PENALTY) -> Probe:
    """Least squares on one-hot classes, with a penalty: solved exactly, so nothing is tuned.

    bank, query: features [N, D] and classes [N], of which negative ones are left out.
    Raises ValueError where one of them has no image left.
    """
    bank_ND, bank_N = _present(bank_ND, bank_N)
    query_ND, query_N = _present(query_ND, query_N)
    num_classes = int(max(bank_N.max(), query_N.max())) + 1
    mean_D = bank_ND.mean(axis=0)
    x_ND = bank_ND - mean_D
    targets_NC = np.eye(num_classes)[bank_N]
    offset_C = targets_NC.mean(axis=0)
    gram_DD = x_ND.T @ x_ND
    gram_DD += penalty * np.trace(gram_DD) / len(gram_DD) * np.eye(len(gram_DD))
    weights_DC = np.linalg.solve(gram_DD, x_ND.T @ (targets_NC - offset_C))
    answers_N = np.argmax((query_ND - mean_D) @ weights_DC + offset_C, axis=1)
    right_N = answers_N == query_N
    counts = np.bincount(query_N)
    return Probe(float(right_N.mean()), counts.max() / len(query_N), worst_group(right_N, query_N))


def worst_group(right_N, groups_N) -> float:
    """Smallest share of right answers over groups with images; negative groups are left out."""
    right_N, groups_N = np.asarray(right_N), np.asarray(groups_N)
    return float(min(right_N[groups_N == group].mean() for group in set(groups_N[groups_N >= 0])))


def _present(features_ND, classes_N) -> tuple[np.ndarray, np.ndarray]:
    features_ND, classes_N = np.asarray(features_ND, np.float64), np.asarray(classes_N)
    kept_N = classes_N >= 0
    if not kept_N.any():
        raise ValueError("no image has a value of the factor, so that there is nothing to probe.")
    return features_ND[kept_N], classes_N[kept_N]
