"""Object discovery without training: TokenCut and CorLoc. Wang et al. 2022, arXiv:2202.11539.

DINOv3, arXiv:2508.10104, D.4: output patches, full resolution, the best of 9 thresholds.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
from scipy import ndimage
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(9))  # of cosine, swept by the paper
_WEAK = 1e-5  # weight of an edge between patches that are not alike; no node is alone
_BOX_EPS = 1e-7  # as the public code adds to heights and unions


class Found(NamedTuple):
    """The object of one image."""

    box: tuple[int, int, int, int]  # left, top, right, bottom in pixels, the last two excluded
    mask_hw: np.ndarray  # bool, patches of the object
    vector_hw: np.ndarray  # second eigenvector, v^T D v = 1, positive at the seed
    parts_hw: np.ndarray  # int, the connected parts of the foreground, numbered from 1
    seed: int  # patch of the largest entry of the vector


def tokencut(
    patches_hwD: np.ndarray, *, threshold: float, patch_size: int, image_size: tuple[int, int]
) -> Found:
    """Split an image's patches in two by the normalised cut of their graph, and box the object.

    image_size: height and width in pixels, to which the box is cut; only patches that lie in the
    image belong here, none of its padding. The graph joins patches whose cosine is above
    `threshold`. float64 throughout: eigenvalues may be 1e-5 apart. Patches that are all alike
    give some box. Raises ValueError for a grid of fewer than two patches and for NaN.
    """
    height, width, _ = patches_hwD.shape
    flat_ND = np.asarray(patches_hwD, np.float64).reshape(height * width, -1)
    if len(flat_ND) < 2 or not np.isfinite(flat_ND).all():
        raise ValueError(f"a grid of {height} x {width} patches is too small or holds NaN.")
    unit_ND = flat_ND / np.maximum(np.linalg.norm(flat_ND, axis=1, keepdims=True), 1e-12)
    alike_NN = unit_ND @ unit_ND.T > threshold
    vector_N = second_vector(np.where(alike_NN, 1.0, _WEAK))
    front_N = vector_N > vector_N.mean()
    sizes_N = np.abs(vector_N)
    # Patches that are alike have equal entries but for rounding: the first of them is the seed.
    seed = int(np.argmax(sizes_N >= sizes_N.max() * (1 - 1e-9)))
    if not front_N[seed]:
        vector_N, front_N = -vector_N, ~front_N
    parts_hw, _ = ndimage.label(front_N.reshape(height, width))
    mask_hw = parts_hw == parts_hw.flat[seed]
    rows, columns = np.nonzero(mask_hw)
    box = (
        int(columns.min()) * patch_size,
        int(rows.min()) * patch_size,
        min((int(columns.max()) + 1) * patch_size, image_size[1]),
        min((int(rows.max()) + 1) * patch_size, image_size[0]),
    )
    return Found(box, mask_hw, vector_N.reshape(height, width), parts_hw, seed)


def second_vector(weights_NN: np.ndarray) -> np.ndarray:
    """The eigenvector [N] of (D - A) v = l D v of the second smallest l, with v^T D v = 1.

    D holds A's row sums. It is the largest one of D^-1/2 A D^-1/2 once the known first one,
    D^1/2 1, is taken out: a few products with Lanczos, or a dense solve where that finds none.
    """
    sums_N = weights_NN.sum(axis=1)
    scale_N = 1 / np.sqrt(sums_N)
    first_N = np.sqrt(sums_N / sums_N.sum())
    num = len(sums_N)

    def product(x_N):
        x_N = np.ravel(x_N)
        return scale_N * (weights_NN @ (scale_N * x_N)) - first_N * (first_N @ x_N)

    if num >= 32:
        # A start that is the same in every run, so that equal images give equal boxes.
        start_N = np.cos(np.arange(num) * 2.39996)
        operator = LinearOperator((num, num), matvec=product, dtype=np.float64)
        try:
            value, vector_N1 = eigsh(operator, k=1, which="LA", v0=start_N, maxiter=300)
        except ArpackError:
            pass
        else:
            vector_N = vector_N1[:, 0]
            if np.linalg.norm(product(vector_N) - value[0] * vector_N) < 1e-10:
                return scale_N * vector_N
    scaled_NN = scale_N[:, None] * weights_NN * scale_N - np.outer(first_N, first_N)
    return scale_N * scipy.linalg.eigh(scaled_NN, subset_by_index=[num - 1, num - 1])[1][:, 0]


def box_iou(box: Sequence[float], boxes_N4: np.ndarray) -> np.ndarray:
    """IoU [N] of a box with others, (left, top, right, bottom) without a pixel added."""
    own_4, boxes_N4 = np.asarray(box, np.float64), np.asarray(boxes_N4, np.float64).reshape(-1, 4)
    corners = np.minimum(own_4[2:], boxes_N4[:, 2:]) - np.maximum(own_4[:2], boxes_N4[:, :2])
    shared_N = np.prod(np.maximum(corners, 0), axis=1)
    sizes = [b[..., 2:] - b[..., :2] + [0, _BOX_EPS] for b in (own_4, boxes_N4)]
    union_N = np.prod(sizes[0]) + np.prod(sizes[1], axis=1) - shared_N + _BOX_EPS
    return shared_N / union_N


def is_located(box: Sequence[float], boxes_N4: np.ndarray) -> bool:
    """CorLoc of one image: the box has an IoU of at least 0.5 with one of the true boxes."""
    return bool(np.any(box_iou(box, boxes_N4) >= 0.5))
