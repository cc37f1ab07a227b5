"""Segmentation metrics from one confusion matrix of a set. DINOv3, arXiv:2508.10104, D.1."""

import numpy as np

IGNORE = 255  # label of pixels that no metric and no loss sees


def reduce_zero(labels: np.ndarray) -> np.ndarray:
    """Labels of a set whose 0 means unlabelled (ADE20k): 0 -> IGNORE, k -> k - 1, IGNORE stays."""
    wide = np.asarray(labels).astype(np.int64)
    return np.where((wide == 0) | (wide == IGNORE), IGNORE, wide - 1)


def confusion(predicted, truth, num_classes: int) -> np.ndarray:
    """int64 [C, C]: pixels by true class (row) and predicted class (column), IGNORE left out.

    predicted, truth: integers of one shape. Raises ValueError for shapes that differ and for
    labels outside 0..C-1 (of the truth: other than IGNORE).
    """
    predicted, truth = np.asarray(predicted), np.asarray(truth)
    if predicted.shape != truth.shape:
        raise ValueError(f"prediction of {predicted.shape} for a truth of {truth.shape}.")
    valid = truth != IGNORE
    true_N, predicted_N = truth[valid], predicted[valid]
    for name, values_N in (("truth", true_N), ("prediction", predicted_N)):
        if values_N.size and not 0 <= values_N.min() <= values_N.max() < num_classes:
            raise ValueError(
                f"labels of the {name} run from {values_N.min()} to {values_N.max()}; with "
                f"{num_classes} classes they must be in 0..{num_classes - 1} or {IGNORE} (ignored)."
            )
    small = np.uint16 if num_classes <= 256 else np.int64  # a quarter of the memory traffic
    pairs_N = true_N.astype(small) * small(num_classes) + predicted_N.astype(small)
    return np.bincount(pairs_N, minlength=num_classes**2).reshape(num_classes, num_classes)


def areas(confusion_CC: np.ndarray) -> dict[str, np.ndarray]:
    """Pixels [C] of each class: intersection, union, predicted and labelled."""
    intersection_C = np.diagonal(confusion_CC)
    predicted_C, labelled_C = confusion_CC.sum(axis=0), confusion_CC.sum(axis=1)
    return {
        "intersection": intersection_C,
        "union": predicted_C + labelled_C - intersection_C,
        "predicted": predicted_C,
        "labelled": labelled_C,
    }


def per_class(confusion_CC: np.ndarray) -> dict[str, np.ndarray]:
    """IoU, Dice, precision, recall and F-score [C]; NaN where a ratio is 0 / 0."""
    area = {name: values.astype(np.float64) for name, values in areas(confusion_CC).items()}
    hit_C = area["intersection"]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision_C, recall_C = hit_C / area["predicted"], hit_C / area["labelled"]
        return {
            "iou": hit_C / area["union"],
            "dice": 2 * hit_C / (area["predicted"] + area["labelled"]),
            "precision": precision_C,
            "recall": recall_C,
            "fscore": 2 * precision_C * recall_C / (precision_C + recall_C),
        }


def segmentation_metrics(confusion_CC: np.ndarray) -> dict[str, float]:
    """Means over the classes that have a value, in 0..1, and the share of right pixels.

    A class that is in the truth or predicted counts for miou; one in neither does not. Every
    value is NaN where no pixel is labelled.
    """
    classes = per_class(confusion_CC)
    total = int(confusion_CC.sum())
    means = {
        f"m{name}" if name == "iou" else name: float(np.mean(values_C[~np.isnan(values_C)]))
        if not np.isnan(values_C).all()
        else float("nan")
        for name, values_C in classes.items()
    }
    correct = int(np.trace(confusion_CC))
    return {**means, "accuracy": correct / total if total else float("nan")}
