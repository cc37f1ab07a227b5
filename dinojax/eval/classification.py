"""Metrics of classification, from scores and labels in float64 on the host; shares in 0..1.

The classes of the released evaluation of DINOv3 (metrics of torchmetrics among them), by the
definitions that its numbers follow. Of equal scores the lowest class goes first.
"""

from collections.abc import Callable

import numpy as np

RECALLS_11 = np.linspace(0.0, 1.0, 11)


def top_k(scores_NC, k: int) -> np.ndarray:
    """The k best classes [N, k] of each row, best first; of equal scores the lowest class first.

    More than there are classes are clipped. Raises ValueError for k < 1.
    """
    if k < 1:
        raise ValueError(f"top-{k}: k must be at least 1.")
    scores_NC = _matrix(scores_NC)
    return np.argsort(-scores_NC, axis=1, kind="stable")[:, :k]


def accuracy(scores_NC, labels_N, k: int = 1) -> float:
    """Share of rows whose class is among the k best."""
    return float(np.mean(hits(scores_NC, labels_N, k)))


def hits(scores_NC, labels_N, k: int = 1) -> np.ndarray:
    """bool [N]: is the class of the row among the k best?"""
    labels_N = _classes(scores_NC, labels_N)
    return np.any(top_k(scores_NC, k) == labels_N[:, None], axis=1)


def any_match(scores_NC, labels_NM, k: int = 1) -> float:
    """Share of rows of which any label is among the k best (ReaL, arXiv:2006.07159).

    labels_NM: padded with -1. Rows without a label are left out. Raises ValueError if all are.
    """
    labels_NM = np.asarray(labels_NM)
    valid_N = np.any(labels_NM >= 0, axis=1)
    if not np.any(valid_N):
        raise ValueError("no row has a label: all targets are -1.")
    best_Nk = top_k(np.asarray(scores_NC)[valid_N], k)
    found = best_Nk[:, :, None] == labels_NM[valid_N][:, None, :]
    return float(np.mean(np.any(found, axis=(1, 2))))


def class_accuracies(scores_NC, labels_N, k: int = 1) -> np.ndarray:
    """Share [C] of the rows of each class that are right; NaN for a class without rows."""
    right, _, missed = _counts(scores_NC, labels_N, k)
    return _divided(right, right + missed, np.nan)


def mean_class_accuracy(scores_NC, labels_N, k: int = 1) -> float:
    """Mean of the classes' accuracies.

    A class without rows is left out; for k = 1 it counts as 0 if it was ever answered. So do the
    released evaluation's numbers.
    """
    right, wrong, missed = _counts(scores_NC, labels_N, k)
    seen = right + missed + (wrong if k == 1 else 0) > 0
    return float(np.mean(_divided(right, right + missed, 0.0)[seen]))


def f1(scores_NC, labels_N) -> float:
    """Mean of the classes' F1, over those that have rows or were answered."""
    right, wrong, missed = _counts(scores_NC, labels_N, 1)
    return _mean_f1(right, wrong, missed)


def multilabel_f1(scores_NC, targets_NC, *, threshold: float = 0.5, mean: str = "class") -> float:
    """F1 of the answers `score > threshold`. mean: class, or all (the counts of all classes)."""
    answers, targets = _matrix(scores_NC) > threshold, _targets(scores_NC, targets_NC)
    counts = [
        np.sum(answers & targets, axis=0, dtype=np.float64),
        np.sum(answers & ~targets, axis=0, dtype=np.float64),
        np.sum(~answers & targets, axis=0, dtype=np.float64),
    ]
    if mean == "all":
        counts = [np.sum(count, keepdims=True) for count in counts]
    elif mean != "class":
        raise ValueError(f"mean={mean!r} is unknown; choose of class, all.")
    return _mean_f1(*counts)


def mean_reciprocal_rank(scores_NC, labels_N) -> float:
    """Mean over all classes of the mean of 1 / rank of the right class.

    The rank counts all scores that are not below that of the right class. A class without rows
    counts as 0, as in the released evaluation.
    """
    scores_NC, labels_N = _matrix(scores_NC), _classes(scores_NC, labels_N)
    own_N1 = np.take_along_axis(scores_NC, labels_N[:, None], axis=1)
    reciprocal_N = 1.0 / np.sum(scores_NC >= own_N1, axis=1)
    num_classes = scores_NC.shape[1]
    totals_C = np.bincount(labels_N, reciprocal_N, minlength=num_classes)
    rows_C = np.bincount(labels_N, minlength=num_classes)
    return float(np.mean(_divided(totals_C, rows_C, 0.0)))


def auroc(scores_NC, labels_N) -> float:
    """Area under the ROC curve of each class against the rest, averaged over the classes.

    Scores that are not all in 0..1 become a softmax over the classes first. A class that has no
    rows, or all, has an area of 0, as in the released evaluation.
    """
    scores_NC, labels_N = _matrix(scores_NC), _classes(scores_NC, labels_N)
    if scores_NC.min() < 0 or scores_NC.max() > 1:
        scores_NC = np.exp(scores_NC - scores_NC.max(axis=1, keepdims=True))
        scores_NC /= scores_NC.sum(axis=1, keepdims=True)
    columns = range(scores_NC.shape[1])
    return float(np.mean([binary_auroc(scores_NC[:, c], labels_N == c) for c in columns]))


def binary_auroc(scores_N, positive_N) -> float:
    """Probability that a positive scores above a negative, ties half; 0 where one side is empty."""
    positive_N = np.asarray(positive_N, bool)
    num_positive, num_negative = np.sum(positive_N), np.sum(~positive_N)
    if not num_positive or not num_negative:
        return 0.0
    values, inverse, counts = np.unique(scores_N, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # mean rank of the rows that tie
    total = np.sum(ranks[inverse][positive_N])
    return float((total - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def average_precision(scores_N, positive_N) -> float:
    """Sum of precision times the step of recall, at each distinct score; NaN without positives."""
    precision, recall = _precision_recall(scores_N, positive_N)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def voc_average_precision(scores_N, positive_N) -> float:
    """The 11-point average precision of VOC2007; rows of equal scores enter together.

    Mean over recalls 0, 0.1, ..., 1 of the best precision at that recall or above. As in the
    released evaluation the curve begins with precision 1 at recall 0, so that the first of the
    eleven is always 1, and a class without positives has 1/11. The devkit's has no such point.
    """
    precision, recall = _precision_recall(scores_N, positive_N)
    precision, recall = np.append(precision, 1.0), np.append(np.nan_to_num(recall), 0.0)
    best = [np.max(precision[recall >= level - 1e-9], initial=0.0) for level in RECALLS_11]
    return float(np.mean(best))


def mean_over_classes(metric: Callable, scores_NC, targets_NC) -> float:
    """Mean over the columns of `metric(scores_N, positive_N)` where it is not NaN."""
    targets = _targets(scores_NC, targets_NC)
    columns = zip(_matrix(scores_NC).T, targets.T, strict=True)
    return float(np.nanmean([metric(scores, positive) for scores, positive in columns]))


def by_group(metric: Callable, groups_N, *arrays) -> dict:
    """{group: metric(rows of the arrays in that group)}, in the order of the groups' names.

    For what a mean hides: DollarStreet's incomes and regions, or any column of one's own.
    """
    groups_N = np.asarray(groups_N)
    rows = {str(name): groups_N == name for name in np.unique(groups_N)}
    return {
        name: metric(*(np.asarray(array)[own] for array in arrays)) for name, own in rows.items()
    }


def columns(scores_NC, classes) -> np.ndarray:
    """The scores of some classes alone, in their order: ImageNet-R and -A know 200 of 1000."""
    return _matrix(scores_NC)[:, np.asarray(classes)]


def _counts(scores_NC, labels_N, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(right, wrongly answered, missed), each float64 [C].

    A row answers its own class if that is among the k best, and else its best.
    """
    labels_N = _classes(scores_NC, labels_N)
    best_Nk = top_k(scores_NC, k)
    right_N = np.any(best_Nk == labels_N[:, None], axis=1)
    answers_N = np.where(right_N, labels_N, best_Nk[:, 0])
    num = np.asarray(scores_NC).shape[1]

    def count(classes):
        return np.bincount(classes, minlength=num).astype(np.float64)

    return count(labels_N[right_N]), count(answers_N[~right_N]), count(labels_N[~right_N])


def _mean_f1(right, wrong, missed) -> float:
    seen = right + wrong + missed > 0
    return float(np.mean(_divided(2 * right, 2 * right + wrong + missed, 0.0)[seen]))


def _precision_recall(scores_N, positive_N) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall when all rows that score at least a value are answered, falling."""
    scores_N, positive_N = np.asarray(scores_N, np.float64), np.asarray(positive_N, bool)
    order = np.argsort(-scores_N, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores_N[order]) != 0, True))
    right = np.cumsum(positive_N[order])[last].astype(np.float64)
    total = float(np.sum(positive_N))
    return right / (last + 1), right / total if total else np.full(len(last), np.nan)


def _divided(numerator, denominator, without: float) -> np.ndarray:
    out = np.full(np.shape(numerator), without)
    return np.divide(numerator, denominator, out=out, where=np.asarray(denominator) > 0)


def _matrix(scores_NC) -> np.ndarray:
    scores_NC = np.asarray(scores_NC, np.float64)
    if scores_NC.ndim != 2 or not scores_NC.size:
        raise ValueError(f"scores must be a filled [N, C], got {scores_NC.shape}.")
    if np.any(np.isnan(scores_NC)):
        raise ValueError(f"scores of {np.sum(np.isnan(scores_NC).any(axis=1))} rows are NaN.")
    return scores_NC


def _classes(scores_NC, labels_N) -> np.ndarray:
    labels_N, (rows, num) = np.asarray(labels_N), np.shape(scores_NC)
    if labels_N.shape != (rows,):
        raise ValueError(f"{rows} rows of scores have labels of shape {labels_N.shape}.")
    if not 0 <= labels_N.min() <= labels_N.max() < num:
        raise ValueError(
            f"labels run from {labels_N.min()} to {labels_N.max()}; the scores have {num} classes."
        )
    return labels_N


def _targets(scores_NC, targets_NC) -> np.ndarray:
    targets_NC = np.asarray(targets_NC)
    if targets_NC.shape != np.shape(scores_NC):
        raise ValueError(
            f"targets {targets_NC.shape} are not of the shape of scores {np.shape(scores_NC)}."
        )
    return targets_NC.astype(bool)
