"""A linear map from patches to classes in closed form: a dense signal without training noise.

A number of this project, for checkpoints of one run; it is not the mIoU of a trained head and is
never set beside a published one.
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.eval.segmentation_metrics import IGNORE

STRENGTH = 1e-3  # of the penalty, in mean squares of a channel over all patches


class Sums(NamedTuple):
    """What a fit needs of all patches. float64 on the host, so that order does not matter."""

    inputs_DD: np.ndarray
    outputs_DC: np.ndarray


def patch_targets(labels_BHW: np.ndarray, grid: tuple[int, int], num_classes: int):
    """(most frequent class int64 [B, h, w], known bool [B, h, w]) of each patch's pixels.

    A patch of which more than half is ignored is not known; of equally frequent classes the lowest
    counts. Raises ValueError where pixels do not divide into the grid, and for labels out of range.
    """
    batch, height, width = labels_BHW.shape
    if height % grid[0] or width % grid[1]:
        raise ValueError(f"labels of {height} x {width} do not divide into {grid[0]} x {grid[1]}.")
    valid = labels_BHW[labels_BHW != IGNORE]
    if valid.size and not 0 <= valid.min() <= valid.max() < num_classes:
        raise ValueError(
            f"labels run from {valid.min()} to {valid.max()}; with {num_classes} classes they must"
            f" be in 0..{num_classes - 1}, or {IGNORE} = ignored."
        )
    down, right = height // grid[0], width // grid[1]
    cells = labels_BHW.reshape(batch, grid[0], down, grid[1], right).swapaxes(2, 3)
    cells_NQ = cells.reshape(-1, down * right).astype(np.int64)
    cells_NQ = np.where(cells_NQ == IGNORE, num_classes, cells_NQ)
    rows_N1 = np.arange(len(cells_NQ))[:, None] * (num_classes + 1)
    counts = np.bincount((cells_NQ + rows_N1).ravel(), minlength=len(cells_NQ) * (num_classes + 1))
    counts_NC = counts.reshape(len(cells_NQ), num_classes + 1)
    known_N = counts_NC[:, -1] * 2 <= cells_NQ.shape[1]
    classes_N = np.argmax(counts_NC[:, :-1], axis=1)
    shape = (batch, *grid)
    return classes_N.reshape(shape), known_N.reshape(shape)


@jax.jit
def _products(patches_ND, targets_NC, known_N):
    patches_ND = jnp.where(known_N[:, None], patches_ND, 0)
    targets_NC = jnp.where(known_N[:, None], targets_NC, 0)
    product = lambda y: jnp.einsum("nd,ne->de", patches_ND, y, precision="highest")  # noqa: E731
    return product(patches_ND), product(targets_NC)


def add(sums: Sums | None, patches_ND, targets_NC, known_N) -> Sums:
    """The sums with some more patches; those that are not known add nothing."""
    found = _products(jnp.asarray(patches_ND), jnp.asarray(targets_NC), jnp.asarray(known_N))
    inputs_DD, outputs_DC = (np.asarray(x, np.float64) for x in found)
    if sums is None:
        return Sums(inputs_DD, outputs_DC)
    return Sums(sums.inputs_DD + inputs_DD, sums.outputs_DC + outputs_DC)


def solve(sums: Sums, strength: float = STRENGTH) -> np.ndarray:
    """The map [D, C]: (X^T X + l I)^-1 X^T Y with l = strength tr(X^T X) / D.

    Features that are all 0 give a map of 0.
    """
    width = len(sums.inputs_DD)
    penalty = strength * np.trace(sums.inputs_DD) / width
    if penalty <= 0:
        return np.zeros_like(sums.outputs_DC)
    return np.linalg.solve(sums.inputs_DD + penalty * np.eye(width), sums.outputs_DC)


def fit_classes(
    batches: Iterable[tuple[np.ndarray, np.ndarray]], num_classes: int, strength: float = STRENGTH
) -> np.ndarray:
    """The map [D, C] of batches of (patches [B, h, w, D], labels [B, H, W])."""
    sums = None
    for patches_BhwD, labels_BHW in batches:
        classes, known = patch_targets(labels_BHW, patches_BhwD.shape[1:3], num_classes)
        targets_NC = np.eye(num_classes, dtype=np.float32)[classes.ravel()]
        flat_ND = patches_BhwD.reshape(-1, patches_BhwD.shape[-1])
        sums = add(sums, flat_ND, targets_NC, known.ravel())
    if sums is None:
        raise ValueError("a ridge probe needs at least one image.")
    return solve(sums, strength)
