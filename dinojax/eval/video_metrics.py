"""J and F of segmented videos as DAVIS counts them. Perazzi et al. 2016; Pont-Tuset 2017."""

import math

import numpy as np

TOLERANCE = 0.008  # of the frame's diagonal, rounded up to pixels


def region_j(predicted_HW: np.ndarray, truth_HW: np.ndarray, void_HW=None) -> float:
    """IoU of two masks; 1 where both are empty. void: pixels that are not counted."""
    predicted_HW, truth_HW = _without(void_HW, predicted_HW, truth_HW)
    union = np.count_nonzero(predicted_HW | truth_HW)
    return np.count_nonzero(predicted_HW & truth_HW) / union if union else 1.0


def boundary(mask_HW: np.ndarray) -> np.ndarray:
    """bool: pixels that differ from the next one at the right, below, or across."""
    mask_HW = np.asarray(mask_HW, bool)
    edges_HW = np.zeros_like(mask_HW)
    edges_HW[:, :-1] |= mask_HW[:, :-1] != mask_HW[:, 1:]
    edges_HW[:-1] |= mask_HW[:-1] != mask_HW[1:]
    edges_HW[:-1, :-1] |= mask_HW[:-1, :-1] != mask_HW[1:, 1:]
    return edges_HW


def contour_f(
    predicted_HW: np.ndarray, truth_HW: np.ndarray, void_HW=None, *, pixels: int | None = None
) -> float:
    """F-measure of the boundaries of two masks, matched within `pixels` of each other.

    pixels: None = TOLERANCE of the diagonal. Where one mask has no boundary and the other has, 0;
    where neither has, 1 (a mask of the whole frame has none).
    """
    if pixels is None:
        pixels = math.ceil(TOLERANCE * math.hypot(*np.shape(truth_HW)))
    predicted_HW, truth_HW = _without(void_HW, predicted_HW, truth_HW)
    ours_HW, true_HW = boundary(predicted_HW), boundary(truth_HW)
    num_ours, num_true = np.count_nonzero(ours_HW), np.count_nonzero(true_HW)
    if not num_ours or not num_true:
        return float(num_ours == num_true)
    precision = np.count_nonzero(ours_HW & grown(true_HW, pixels)) / num_ours
    recall = np.count_nonzero(true_HW & grown(ours_HW, pixels)) / num_true
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def grown(edges_HW: np.ndarray, radius: int) -> np.ndarray:
    """bool: pixels within a disk of some edge. A boundary is few pixels, so each draws its disk."""
    height, width = edges_HW.shape
    rows, columns = (index + radius for index in np.nonzero(edges_HW))
    padded = np.zeros((height + 2 * radius, width + 2 * radius), bool)
    for down in range(-radius, radius + 1):
        reach = math.isqrt(radius**2 - down**2)
        for right in range(-reach, reach + 1):
            padded[rows + down, columns + right] = True
    return padded[radius : radius + height, radius : radius + width]


def object_scores(
    predicted_OTHW: np.ndarray, truth_OTHW: np.ndarray, void_THW=None, *, pixels: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(J [O, T], F [O, T]) of each object and frame; objects that were not predicted are empty.

    Raises ValueError when more objects are predicted than there are.
    """
    objects, frames = truth_OTHW.shape[:2]
    if len(predicted_OTHW) > objects or predicted_OTHW.shape[1:] != truth_OTHW.shape[1:]:
        raise ValueError(f"prediction of {predicted_OTHW.shape} for a truth of {truth_OTHW.shape}.")
    missing = [(0, objects - len(predicted_OTHW)), (0, 0), (0, 0), (0, 0)]
    predicted_OTHW = np.pad(predicted_OTHW, missing)
    j_OT, f_OT = np.zeros((objects, frames)), np.zeros((objects, frames))
    for o, t in np.ndindex(objects, frames):
        void_HW = None if void_THW is None else void_THW[t]
        pair = predicted_OTHW[o, t], truth_OTHW[o, t]
        j_OT[o, t] = region_j(*pair, void_HW)
        f_OT[o, t] = contour_f(*pair, void_HW, pixels=pixels)
    return j_OT, f_OT


def statistics(values_T: np.ndarray) -> tuple[float, float, float]:
    """(mean, share above 0.5, decay) over frames; decay: first quarter's mean less the last's."""
    values_T = np.asarray(values_T, np.float64)
    ends = np.round(np.linspace(1, len(values_T), 5) + 1e-10).astype(int) - 1
    quarters = [values_T[ends[number] : ends[number + 1] + 1] for number in range(4)]
    decay = quarters[0].mean() - quarters[3].mean()
    return float(values_T.mean()), float(np.mean(values_T > 0.5)), float(decay)


def best_assignment(predicted_OTHW, truth_OTHW, void_THW=None) -> tuple[np.ndarray, np.ndarray]:
    """(J, F) [O, T] of the proposals matched to objects by their mean (J + F) / 2.

    The unsupervised task of DAVIS; rows are in the order of the proposals.
    """
    from scipy.optimize import linear_sum_assignment

    pairs = [
        object_scores(np.repeat(proposal[None], len(truth_OTHW), axis=0), truth_OTHW, void_THW)
        for proposal in predicted_OTHW
    ]
    j_POT, f_POT = (np.stack(values) for values in zip(*pairs, strict=True))
    rows, columns = linear_sum_assignment(-(j_POT.mean(axis=2) + f_POT.mean(axis=2)) / 2)
    return j_POT[rows, columns], f_POT[rows, columns]


def _without(void_HW, *masks):
    masks = tuple(np.asarray(mask, bool) for mask in masks)
    return masks if void_HW is None else tuple(mask & ~np.asarray(void_HW, bool) for mask in masks)
