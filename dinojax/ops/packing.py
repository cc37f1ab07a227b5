"""Tokens of several sets of sequences as rows of one matrix, for all that a token does alone.

One product then serves all sets. Crops of DINOv3 (arXiv:2508.10104) have two lengths.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

# Many rows come in eights, as products of 16-bit numbers on GPUs want them: else they are copied.
MANY, EIGHTS = 1024, 8


def pack(sets: Sequence[jax.Array]) -> jax.Array:
    """[B, N, ...] of each set -> [T, ...], set after set; MANY with zeros to a multiple of 8."""
    rows = [x.reshape(-1, *x.shape[2:]) for x in sets]
    num_rows = sum(x.shape[0] for x in rows)
    # An exported program has a number of images that is not known yet: it gets no further rows.
    missing = -num_rows % EIGHTS if isinstance(num_rows, int) and num_rows >= MANY else 0
    if missing:
        rows.append(jnp.zeros((missing, *rows[0].shape[1:]), rows[0].dtype))
    return rows[0] if len(rows) == 1 else jnp.concatenate(rows, axis=0)


def unpack(rows_TX: jax.Array, shapes: Sequence[tuple[int, int]]) -> list[jax.Array]:
    """The inverse of `pack`. shapes: (B, N) of each set."""
    found, start = [], 0
    for shape in shapes:
        stop = start + math.prod(shape)
        found.append(rows_TX[start:stop].reshape(*shape, *rows_TX.shape[1:]))
        start = stop
    return found
