"""Foreground of an image and the colours of its parts. DINOv3, arXiv:2508.10104, figure 13.

A logistic regression tells patches of objects from background; three principal components of the
foreground's patches are its colours.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.special import expit

C_GRID = tuple(10.0**power for power in range(-7, 1))  # of the released notebook; it takes 0.1


class Classifier(NamedTuple):
    """Foreground where weight . patch + offset > 0."""

    weight_D: np.ndarray
    offset: float

    def score(self, patches_ND: np.ndarray) -> np.ndarray:
        """Probability [N] of foreground."""
        return expit(np.asarray(patches_ND, np.float64) @ self.weight_D + self.offset)


def fit_classifier(patches_ND: np.ndarray, labels_N: np.ndarray, *, c: float) -> Classifier:
    """Logistic regression: C times the sum of losses, plus half of |weight|^2; Newton's method.

    labels: 0 and 1. Raises ValueError where one of them is missing.
    """
    x_ND = np.asarray(patches_ND, np.float64)
    y_N = np.asarray(labels_N, np.float64)
    if not (np.any(y_N == 0) and np.any(y_N == 1)):
        raise ValueError("a foreground classifier needs patches of foreground and of background.")
    # A constant column is the offset, which nothing holds back.
    x_NE = np.concatenate([x_ND, np.ones((len(x_ND), 1))], axis=1)
    held_E = np.append(np.ones(x_ND.shape[1]), 0.0)
    weight_E = np.zeros(x_NE.shape[1])

    def loss(weight_E):
        z_N = x_NE @ weight_E
        return c * np.sum(np.logaddexp(0, z_N) - y_N * z_N) + 0.5 * held_E @ weight_E**2

    for _ in range(100):
        p_N = expit(x_NE @ weight_E)
        gradient_E = c * x_NE.T @ (p_N - y_N) + held_E * weight_E
        hessian_EE = c * (x_NE * (p_N * (1 - p_N))[:, None]).T @ x_NE + np.diag(held_E + 1e-12)
        step_E = np.linalg.solve(hessian_EE, gradient_E)
        size, before = 1.0, loss(weight_E)
        while loss(weight_E - size * step_E) > before and size > 1e-6:
            size /= 2
        weight_E = weight_E - size * step_E
        if np.max(np.abs(step_E)) < 1e-10 * max(1.0, np.max(np.abs(weight_E))):
            break
    return Classifier(weight_E[:-1], float(weight_E[-1]))


def average_precision(scores_N: np.ndarray, labels_N: np.ndarray) -> float:
    """Area under the precision-recall steps; equal scores are one step. NaN without positives."""
    order = np.argsort(-np.asarray(scores_N), kind="stable")
    scores_N, labels_N = np.asarray(scores_N)[order], np.asarray(labels_N)[order].astype(np.int64)
    last_N = np.append(scores_N[1:] != scores_N[:-1], True)  # of its score
    hits_K, ranks_K = np.cumsum(labels_N)[last_N], np.flatnonzero(last_N) + 1
    if not labels_N.any():
        return float("nan")
    return float(np.sum(np.diff(hits_K, prepend=0) * hits_K / ranks_K) / labels_N.sum())


def leave_one_out(patches_ND, labels_N, images_N, c_grid=C_GRID) -> np.ndarray:
    """Average precision [images, C] of each image's patches by a classifier of all others."""
    rows = []
    for image in np.unique(images_N):
        own = images_N == image
        rows.append(
            [
                average_precision(
                    fit_classifier(patches_ND[~own], labels_N[~own], c=c).score(patches_ND[own]),
                    labels_N[own],
                )
                for c in c_grid
            ]
        )
    return np.array(rows)


def smoothed(scores_hw: np.ndarray) -> np.ndarray:
    """Median of 3 x 3 patches; beyond the border there is background."""
    return ndimage.median_filter(scores_hw, size=3, mode="constant", cval=0.0)


class Pca(NamedTuple):
    """Principal components of patches, whitened: variance 1 on what they were fitted on."""

    mean_D: np.ndarray
    components_KD: np.ndarray
    variance_K: np.ndarray

    def project(self, patches_ND: np.ndarray) -> np.ndarray:
        """Whitened components [N, K]; those without variance are 0."""
        values_NK = (np.asarray(patches_ND, np.float64) - self.mean_D) @ self.components_KD.T
        floor = 1e-12 * max(float(self.variance_K[0]), 1e-300)
        scale_K = np.where(
            self.variance_K > floor, np.sqrt(np.maximum(self.variance_K, floor)), np.inf
        )
        return values_NK / scale_K


def fit_pca(patches_ND: np.ndarray, *, num: int = 3) -> Pca:
    """The first components of a set of patches, by the covariance (N - 1) of their channels.

    The largest loading of each is positive, so that pictures of frames and of steps agree.
    Fewer patches than two, or channels than `num`, raise ValueError.
    """
    values_ND = np.asarray(patches_ND, np.float64)
    if len(values_ND) < 2 or values_ND.shape[1] < num:
        raise ValueError(f"patches of shape {values_ND.shape} have no {num} components.")
    mean_D = values_ND.mean(axis=0)
    centred_ND = values_ND - mean_D
    variance_D, vectors_DD = np.linalg.eigh(centred_ND.T @ centred_ND / (len(values_ND) - 1))
    components_KD = vectors_DD.T[::-1][:num]
    largest_K = np.argmax(np.abs(components_KD), axis=1)
    signs_K = np.sign(components_KD[np.arange(num), largest_K])
    return Pca(mean_D, components_KD * signs_K[:, None], np.maximum(variance_D[::-1][:num], 0))


def rainbow(pca: Pca, patches_hwD: np.ndarray, front_hw: np.ndarray | None = None) -> np.ndarray:
    """Colours [h, w, 3] in 0..1: sigmoid(2 x) of three components, black where not foreground."""
    height, width, _ = patches_hwD.shape
    colours = expit(2 * pca.project(patches_hwD.reshape(height * width, -1)))
    colours_hw3 = colours.reshape(height, width, -1)
    return colours_hw3 if front_hw is None else colours_hw3 * front_hw[..., None]
