"""Draws bottlenecks towards a standard normal distribution: SIGReg, arXiv:2511.08544.

Along random directions the characteristic function of the rows is compared with that of a standard
normal, exp(-t^2/2), at a grid of points t. Means of cosines and sines over the batch are all that
is needed of the rows, so that the value does not depend on how these are spread over devices and
micro-batches. In the form of the guided DINOv3 (arXiv:2606.05107): the statistic is not multiplied
by the number of rows, and its floor for N standard normal rows is 1.0594 / N.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Grid(NamedTuple):
    """The half t >= 0 of a symmetric grid: points, and weights of the trapezoids times exp(-t^2/2).

    The cosine is even and the sine odd, so the other half adds the same once more.
    """

    points_T: tuple[float, ...]
    weights_T: tuple[float, ...]


@functools.cache
def grid(largest: float, num_points: int) -> Grid:
    """Of `num_points` on [-largest, largest]. Raises ValueError for fewer than 2."""
    if num_points < 2:
        raise ValueError(f"losses.sigreg_points={num_points} make no grid; use 17, as DINOv3.")
    points = np.linspace(-largest, largest, num_points)
    trapezoids = np.full(num_points, points[1] - points[0])
    trapezoids[[0, -1]] /= 2
    half = points > -1e-9 * largest
    points, trapezoids = points[half], trapezoids[half]
    twice = np.where(points > 1e-9 * largest, 2.0, 1.0)
    weights = trapezoids * twice * np.exp(-(points**2) / 2)
    return Grid(tuple(points.tolist()), tuple(weights.tolist()))


def directions(key: jax.Array, width: int, num: int) -> jax.Array:
    """Random unit vectors as columns: [Z, S]. key: of a step, so that they differ in each."""
    drawn_ZS = jax.random.normal(key, (width, num))
    return drawn_ZS / jnp.linalg.norm(drawn_ZS, axis=0, keepdims=True)


def waves(rows_BGZ: jax.Array, directions_ZS: jax.Array, points_T: tuple[float, ...]) -> jax.Array:
    """Means over images of cos and sin of t times the projections: [T, 2, G, S].

    rows: before they get unit length. One point at a time, forwards and backwards, so that no
    [B, G, S, T] is ever there. Float32 at least.
    """
    rows_BGZ = rows_BGZ.astype(jnp.promote_types(rows_BGZ.dtype, jnp.float32))
    directions_ZS = directions_ZS.astype(rows_BGZ.dtype)
    along_BGS = jnp.einsum("bgz,zs->bgs", rows_BGZ, directions_ZS, precision="highest")

    @jax.checkpoint
    def mean(point):
        turned_BGS = point * along_BGS
        return jnp.stack([jnp.mean(jnp.cos(turned_BGS), 0), jnp.mean(jnp.sin(turned_BGS), 0)])

    return jax.lax.map(mean, jnp.asarray(points_T, rows_BGZ.dtype))


def sigreg_loss(waves_T2GS: jax.Array, grid: Grid) -> jax.Array:
    """Mean over crop numbers and directions of the weighted squared difference. Scalar."""
    points_T11 = jnp.asarray(grid.points_T, waves_T2GS.dtype)[:, None, None]
    weights_T11 = jnp.asarray(grid.weights_T, waves_T2GS.dtype)[:, None, None]
    cosine_TGS, sine_TGS = waves_T2GS[:, 0], waves_T2GS[:, 1]
    square_TGS = (cosine_TGS - jnp.exp(-(points_T11**2) / 2)) ** 2 + sine_TGS**2
    return jnp.mean(jnp.sum(weights_T11 * square_TGS, axis=0))
