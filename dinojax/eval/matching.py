"""Matches of two images that anyone can look at. DINOv3's released notebook; DINOv2 figure 10."""

from typing import NamedTuple

import numpy as np

from dinojax.eval.correspondence import nearest_two


class PatchMatches(NamedTuple):
    """Best first."""

    left: np.ndarray  # int [K], number of the patch, row by row
    right: np.ndarray
    cosine: np.ndarray  # [K]


def match_patches(
    left_hwD: np.ndarray,
    right_hwD: np.ndarray,
    *,
    left_front_hw: np.ndarray | None = None,
    right_front_hw: np.ndarray | None = None,
    mutual: bool = False,
) -> PatchMatches:
    """Each patch of the left image with the most similar one of the right.

    front: both ends lie on it. mutual: only pairs of which each is the other's most similar.
    """
    flat = [x.reshape(-1, x.shape[-1]) for x in (left_hwD, right_hwD)]
    to_right, distance = nearest_two(*flat)
    left = np.arange(len(to_right))
    keep = np.ones(len(left), bool)
    if mutual:
        keep &= nearest_two(*flat[::-1])[0][to_right] == left
    if left_front_hw is not None:
        keep &= left_front_hw.ravel()
    if right_front_hw is not None:
        keep &= right_front_hw.ravel()[to_right]
    cosine = 1 - distance[:, 0]
    order = np.flatnonzero(keep)[np.argsort(-cosine[keep], kind="stable")]
    return PatchMatches(left[order], to_right[order], cosine[order])


def spread_out(points_N2: np.ndarray, radius: float) -> np.ndarray:
    """Numbers of points of which no two are within `radius`.

    The point with most others around it is taken away until none has any (of equals the first).
    """
    points_N2 = np.asarray(points_N2, np.float64)
    gaps_NN2 = points_N2[:, None] - points_N2[None]
    near_NN = np.sum(gaps_NN2**2, axis=-1) < radius**2
    np.fill_diagonal(near_NN, False)
    counts_N, kept_N = near_NN.sum(axis=1), np.ones(len(points_N2), bool)
    while len(counts_N) and counts_N.max() > 0:
        worst = int(np.argmax(counts_N))
        kept_N[worst] = False
        counts_N -= near_NN[worst]
        counts_N[worst] = 0
        near_NN[:, worst] = near_NN[worst] = False
    return np.flatnonzero(kept_N)


def centres(numbers: np.ndarray, grid: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Pixels (x, y) [K, 2] of the middles of patches of an image of `size` (height, width)."""
    rows, columns = np.divmod(numbers, grid[1])
    scale = np.array([size[1] / grid[1], size[0] / grid[0]])
    return (np.stack([columns, rows], axis=1) + 0.5) * scale
