"""Canopy height metrics over a set of maps. DINOv3, arXiv:2508.10104, 8.3; Tolan et al. 2024."""

import numpy as np


def block_means(maps_NHW: np.ndarray, *, border: int = 3, block: int = 50) -> np.ndarray:
    """Means [N, h, w] of squares of pixels, without the first rows and columns.

    A remainder below and at the right is left out. Raises ValueError if no block fits.
    """
    maps_NHW = np.asarray(maps_NHW, np.float64)[:, border:, border:]
    rows, columns = (side // block for side in maps_NHW.shape[1:])
    if not rows or not columns:
        raise ValueError(
            f"maps of {maps_NHW.shape[1]} x {maps_NHW.shape[2]} (without a border of {border}) "
            f"hold no block of {block} x {block} pixels."
        )
    cut = maps_NHW[:, : rows * block, : columns * block]
    return cut.reshape(-1, rows, block, columns, block).mean(axis=(2, 4))


def r2(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Share of the variance of all values that is explained; NaN where the truth has none."""
    total = np.sum((truth - truth.mean()) ** 2)
    return float(1 - np.sum((truth - predicted) ** 2) / total) if total > 0 else float("nan")


def canopy_metrics(
    predicted_NHW: np.ndarray, truth_NHW: np.ndarray, *, border: int = 3, block: int = 50
) -> dict[str, float]:
    """mae (m), r2 of all pixels, block_r2 of the means of blocks, and two of Open-Canopy.

    Heights below 0 in the truth are 0. R2 is of the whole set, not a mean over images. nmae: mean
    of |error| / (1 + height); cover_iou: of pixels above 2 m, with 1 added to the union.
    """
    predicted, truth = np.asarray(predicted_NHW, np.float64), np.asarray(truth_NHW, np.float64)
    if predicted.shape != truth.shape:
        raise ValueError(f"prediction of {predicted.shape} for a truth of {truth.shape}.")
    truth = np.maximum(truth, 0)
    error = np.abs(predicted - truth)
    high, predicted_high = truth > 2, predicted > 2
    blocks = [block_means(maps, border=border, block=block) for maps in (predicted, truth)]
    return {
        "mae": float(error.mean()),
        "r2": r2(predicted, truth),
        "block_r2": r2(*blocks),
        "nmae": float(np.mean(error / (1 + truth))),
        "cover_iou": float(np.sum(high & predicted_high) / (np.sum(high | predicted_high) + 1)),
    }
