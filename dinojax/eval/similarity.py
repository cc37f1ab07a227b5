"""How alike one patch of an image is to all others. DINOv3, arXiv:2508.10104, figure 3."""

import jax
import jax.numpy as jnp
import numpy as np


def similarity_map(patches_hwD: jax.Array | np.ndarray, place: tuple[int, int]) -> np.ndarray:
    """Cosine [h, w] to the patch at (row, column). One row of numbers, whatever the resolution.

    Raises ValueError for a place outside the grid.
    """
    height, width, _ = patches_hwD.shape
    if not (0 <= place[0] < height and 0 <= place[1] < width):
        raise ValueError(f"patch {place} is not on a grid of {height} x {width}.")
    return np.asarray(_cosines(jnp.asarray(patches_hwD), *place))


@jax.jit
def _cosines(patches_hwD, row, column):
    wide = patches_hwD.astype(jnp.promote_types(patches_hwD.dtype, jnp.float32))
    lengths_hw = jnp.maximum(jnp.linalg.norm(wide, axis=-1), 1e-12)
    chosen_D = wide[row, column] / lengths_hw[row, column]
    return jnp.einsum("hwd,d->hw", wide, chosen_D, precision="highest") / lengths_hw
