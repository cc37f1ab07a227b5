"""Boxes as middle and sides (cx, cy, w, h), their corners, differences and overlaps."""

import math

import jax
import jax.numpy as jnp

_MOST = math.log(1000 / 16)  # by which the logarithm of a side changes at once
_SIDE = 0.1  # added to sides that one divides by


def corners(boxes: jax.Array) -> jax.Array:
    """(cx, cy, w, h) [..., 4] -> (left, top, right, bottom)."""
    middle, half = boxes[..., :2], boxes[..., 2:] / 2
    return jnp.concatenate([middle - half, middle + half], axis=-1)


def middles(corners: jax.Array) -> jax.Array:
    """(left, top, right, bottom) [..., 4] -> (cx, cy, w, h)."""
    low, high = corners[..., :2], corners[..., 2:]
    return jnp.concatenate([(low + high) / 2, high - low], axis=-1)


def moved(boxes: jax.Array, deltas: jax.Array, size: jax.Array | None = None) -> jax.Array:
    """Boxes [..., 4] after a change (x and y in sides, logarithms of sides).

    size: (width, height) [..., 2] of the image, to which they are cut.
    """
    change = jnp.exp(jnp.clip(deltas[..., 2:], -_MOST, _MOST))
    middle = boxes[..., :2] + boxes[..., 2:] * deltas[..., :2]
    found = jnp.concatenate([middle, boxes[..., 2:] * change], axis=-1)
    if size is None:
        return found
    return middles(jnp.clip(corners(found), 0, jnp.concatenate([size, size], axis=-1)))


def deltas(boxes: jax.Array, targets: jax.Array) -> jax.Array:
    """The change from boxes to targets [..., 4]; of sides that are not zero, so not quite that of
    `moved`."""
    sides = boxes[..., 2:] + _SIDE
    shift = (targets[..., :2] - boxes[..., :2]) / sides
    return jnp.concatenate([shift, jnp.log(targets[..., 2:] / sides)], axis=-1)


def giou(first: jax.Array, second: jax.Array) -> jax.Array:
    """Generalised overlap [...] of boxes given by middles. Rezatofighi et al., arXiv:1902.09630."""
    first, second = corners(first), corners(second)
    low = jnp.maximum(first[..., :2], second[..., :2])
    high = jnp.minimum(first[..., 2:], second[..., 2:])
    shared = _area(low, high)
    union = _area(first[..., :2], first[..., 2:]) + _area(second[..., :2], second[..., 2:]) - shared
    low = jnp.minimum(first[..., :2], second[..., :2])
    high = jnp.maximum(first[..., 2:], second[..., 2:])
    hull = _area(low, high)
    return shared / union - (hull - union) / hull


def _area(low: jax.Array, high: jax.Array) -> jax.Array:
    sides = jnp.maximum(high - low, 0)
    return sides[..., 0] * sides[..., 1]
