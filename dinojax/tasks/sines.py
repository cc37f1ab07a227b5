"""Positions as sines and cosines. Vaswani et al. 2017; of maps as in DETR, arXiv:2005.12872."""

import math

import jax
import jax.numpy as jnp
import numpy as np

_BASE = 10_000.0


def sines(x: jax.Array, width: int) -> jax.Array:
    """[...] -> [..., width]: sines (even) and cosines (odd) of 2 pi x at falling frequencies."""
    periods = _BASE ** (2 * (np.arange(width) // 2) / width)
    leading = tuple(range(x.ndim))
    angles = 2 * math.pi * x[..., None] / jnp.expand_dims(jnp.asarray(periods, x.dtype), leading)
    even = np.expand_dims(np.arange(width) % 2 == 0, leading)
    return jnp.where(even, jnp.sin(angles), jnp.cos(angles))


def of_map(size: tuple[int, int], width: int, dtype) -> jax.Array:
    """[h, w, width]: half of the channels tell the row, half the column, both up to 1."""
    y, x = (
        sines(jnp.asarray(np.arange(1, side + 1) / (side + 1e-6), dtype), width // 2)
        for side in size
    )
    y = jnp.broadcast_to(y[:, None], (*size, width // 2))
    return jnp.concatenate([y, jnp.broadcast_to(x[None], y.shape)], axis=-1)


def of_padded(hidden_Bhw: jax.Array, width: int, dtype) -> jax.Array:
    """The same [B, h, w, width] of images in larger arrays, by middles of the entries.

    hidden: true beyond the image.
    """
    seen = jnp.asarray(~hidden_Bhw, dtype)
    halves = []
    for axis in (1, 2):
        count = jnp.cumsum(seen, axis=axis)
        last = jax.lax.slice_in_dim(count, count.shape[axis] - 1, None, axis=axis)
        halves.append(sines((count - 0.5) / (last + 1e-6), width // 2))
    return jnp.concatenate(halves, axis=-1)


def of_boxes(boxes_BQ4: jax.Array, width: int) -> jax.Array:
    """[B, Q, 4 width] of boxes; values as they are, so pixels make large angles."""
    return sines(boxes_BQ4, width).reshape(*boxes_BQ4.shape[:2], -1)
