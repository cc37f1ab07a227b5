"""Depth metrics of one image, and their mean over images. DINOv3, arXiv:2508.10104, D.2."""

from collections.abc import Sequence

import numpy as np

NAMES = (
    "a1",
    "a2",
    "a3",
    "abs_rel",
    "rmse",
    "log10",
    "rmse_log",
    "silog",
    "sq_rel",
    "mae",
)
EIGEN = (45, 41, 471, 601)  # top, left, bottom, right of NYU's evaluated part of 480 x 640
# Rows and columns of KITTI's evaluated part, as shares of the frame. Garg et al. 2016.
GARG = (0.40810811, 0.03594771, 0.99189189, 0.96405229)
# The same of Eigen et al. 2014.
EIGEN_KITTI = (0.3324324, 0.0359477, 0.91351351, 0.96405229)


def eigen_mask(height: int, width: int) -> np.ndarray:
    """bool [H, W]: the part of an NYU frame that is evaluated, at any size. Eigen et al. 2014."""
    top, left, bottom, right = EIGEN
    mask_HW = np.zeros((height, width), bool)
    rows = slice(int(top / 480 * height), int(bottom / 480 * height))
    mask_HW[rows, int(left / 640 * width) : int(right / 640 * width)] = True
    return mask_HW


def garg_mask(height: int, width: int) -> np.ndarray:
    """bool [H, W]: the part of a KITTI frame that is evaluated. Garg et al. 2016."""
    return _share(GARG, height, width)


def eigen_kitti_mask(height: int, width: int) -> np.ndarray:
    """bool [H, W]: the part of a KITTI frame that is evaluated. Eigen et al. 2014."""
    return _share(EIGEN_KITTI, height, width)


def _share(part, height: int, width: int) -> np.ndarray:
    top, left, bottom, right = part
    mask_HW = np.zeros((height, width), bool)
    mask_HW[int(top * height) : int(bottom * height), int(left * width) : int(right * width)] = True
    return mask_HW


def valid_depth(truth_HW: np.ndarray, min_depth: float, max_depth: float) -> np.ndarray:
    """bool: pixels whose depth is above the least and below the greatest, both excluded."""
    return (truth_HW > min_depth) & (truth_HW < max_depth)


def depth_metrics(predicted, truth, valid=None) -> dict[str, float]:
    """The metrics NAMES of one image, over its valid pixels of depth above 0.

    Without such pixels all are NaN but silog, which the reference makes 0. a1..a3: share of pixels
    whose ratio to the truth is below 1.25, its square, its cube. silog is in percent.
    """
    predicted, truth = np.asarray(predicted), np.asarray(truth)
    if predicted.shape != truth.shape:
        raise ValueError(f"prediction of {predicted.shape} for a truth of {truth.shape}.")
    seen = truth > 0
    if valid is not None:
        seen &= np.asarray(valid)
    ours, true = predicted[seen].astype(np.float64), truth[seen].astype(np.float64)
    if not true.size:
        return {name: 0.0 if name == "silog" else float("nan") for name in NAMES}
    ratio, error = np.maximum(true / ours, ours / true), true - ours
    log_error = np.log(true) - np.log(ours)
    spread = np.mean(log_error**2) - np.mean(log_error) ** 2
    values = (
        *(np.mean(ratio < 1.25**power) for power in (1, 2, 3)),
        np.mean(np.abs(error) / true),
        np.sqrt(np.mean(error**2)),
        np.mean(np.abs(np.log10(true) - np.log10(ours))),
        np.sqrt(np.mean(log_error**2)),
        100 * np.sqrt(spread) if spread >= 0 else 0.0,  # a negative one is rounding
        np.mean(error**2 / true),
        np.mean(np.abs(error)),
    )
    return {name: float(value) for name, value in zip(NAMES, values, strict=True)}


def mean_over_images(images: Sequence[dict[str, float]]) -> dict[str, float]:
    """Each metric's mean over the images that have it (the reference's nan-mean)."""
    means = {}
    for name in NAMES:
        values = [image[name] for image in images if not np.isnan(image[name])]
        means[name] = float(np.mean(values)) if values else float("nan")
    return means


def align(predicted_BHW, truth_BHW, valid_BHW) -> tuple[np.ndarray, np.ndarray]:
    """(aligned [B, H, W], scale and shift [B, 2]): each image's least-squares fit to the truth.

    For depth that is known up to both alone. Ranftl et al. 2020, arXiv:1907.01341, eq. 2.
    """
    pairs = []
    for predicted, truth, valid in zip(predicted_BHW, truth_BHW, valid_BHW, strict=True):
        columns_N2 = np.stack([predicted[valid], np.ones(valid.sum())], axis=1)
        pairs.append(np.linalg.lstsq(columns_N2, truth[valid], rcond=None)[0])
    fit_B2 = np.stack(pairs)
    return predicted_BHW * fit_B2[:, :1, None] + fit_B2[:, 1:, None], fit_B2
