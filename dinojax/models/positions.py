"""Learned positions of DINOv2, arXiv:2304.07193: the table of a square grid, fitted to another."""

import math

import jax
import jax.numpy as jnp

from dinojax.ops import interpolate


def fit(
    table_ND: jax.Array, grid: tuple[int, int], *, square: bool, offset: float, antialias: bool
) -> jax.Array:
    """Positions [P, D] of a grid of (rows, columns) patches, from those of a square of N.

    Bicubic, float32 at least. offset 0 resamples to the size of the grid; the DINOv2 models with
    registers do so with antialias. With another offset, 0.1 in the other models, samples lie
    side / (rows + offset) of the table's patches apart, so that they end a little before its
    border. square: whether the image is; the table of a square image with N patches is used as
    it is.

    Raises ValueError if N is not a square number.
    """
    rows, columns = grid
    side = math.isqrt(table_ND.shape[0])
    if side * side != table_ND.shape[0]:
        raise ValueError(f"{table_ND.shape[0]} learned positions are not a square grid.")
    table_ND = table_ND.astype(jnp.promote_types(table_ND.dtype, jnp.float32))
    if square and rows * columns == table_ND.shape[0]:
        return table_ND
    found = interpolate.resize(
        table_ND.reshape(1, side, side, -1),
        grid,
        method="bicubic",
        antialias=antialias,
        steps=(side / (rows + offset), side / (columns + offset)),
    )
    return found.reshape(rows * columns, -1)
