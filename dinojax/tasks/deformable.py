"""Multi-scale deformable attention: every query samples a few places of each map.

Zhu et al., Deformable DETR, arXiv:2010.04159, section 4.1.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dinojax.models.layers import wide
from dinojax.tasks.layers import Linear, parameter

Sizes = tuple[tuple[int, int], ...]  # rows and columns of each level


def sample(
    values_BSAE: jax.Array, sizes: Sizes, places_BQALP2: jax.Array, weights_BQALP: jax.Array
) -> jax.Array:
    """Weighted sums [B, Q, A E] of what lies at the places of each head A.

    values: of all levels L one after another, S entries. places: (x, y), 0 to 1 over a level's
    whole extent; bilinear between the middles of entries, zeros outside.
    """
    num_images, num_queries, num_heads = weights_BQALP.shape[:3]
    values_BASE = jnp.swapaxes(values_BSAE, 1, 2)
    starts = np.cumsum([0, *(rows * columns for rows, columns in sizes)])
    corners = [
        _corners(places_BQALP2[:, :, :, level], size, int(starts[level]))
        for level, size in enumerate(sizes)
    ]
    index_BQAPK, share_BQAPK = (jnp.concatenate(x, axis=3) for x in zip(*corners, strict=True))
    share_BQAPK = share_BQAPK * weights_BQALP.reshape(*weights_BQALP.shape[:3], -1, 1)

    # One place of every query at a time, and again in the backward pass: all of them at once are
    # as many copies of the values as there are places.
    @jax.checkpoint
    def add(total, place):
        index_BQAK, share_BQAK = place
        index = jnp.swapaxes(index_BQAK, 1, 2).reshape(num_images, num_heads, -1, 1)
        found = jnp.take_along_axis(values_BASE, index, axis=2)
        found = found.reshape(num_images, num_heads, num_queries, index_BQAK.shape[-1], -1)
        return total + jnp.einsum("baqke,bqak->bqae", found, share_BQAK), None

    width = values_BSAE.shape[-1]
    total = jnp.zeros((num_images, num_queries, num_heads, width), values_BSAE.dtype)
    places = jnp.moveaxis(index_BQAPK, 3, 0), jnp.moveaxis(share_BQAPK, 3, 0)
    total, _ = jax.lax.scan(add, total, places)
    return total.reshape(num_images, num_queries, -1)


def _corners(places_BQAP2: jax.Array, size: tuple[int, int], start: int):
    """Of the four entries around each place: number [..., 4] and share, 0 outside of the map."""
    rows, columns = size
    x = places_BQAP2[..., 0] * columns - 0.5
    y = places_BQAP2[..., 1] * rows - 0.5
    left, top = jnp.floor(x), jnp.floor(y)
    index, share = [], []
    for down in (0, 1):
        for right in (0, 1):
            row, column = top + down, left + right
            inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
            own = (1 - jnp.abs(x - column)) * (1 - jnp.abs(y - row))
            share.append(jnp.where(inside, own, 0))
            row = jnp.clip(row, 0, rows - 1).astype(jnp.int32)
            column = jnp.clip(column, 0, columns - 1).astype(jnp.int32)
            index.append(start + row * columns + column)
    return jnp.stack(index, axis=-1), jnp.stack(share, axis=-1)


def centres(sizes: Sizes) -> np.ndarray:
    """Middle (x, y) of every entry of every level, [S, 2] from 0 to 1, float64."""
    grids = []
    for rows, columns in sizes:
        y, x = (np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns
        grids.append(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2))
    return np.concatenate(grids)


def _directions(heads: int, levels: int, points: int):
    """First offsets: a ray for each head, a step further for each point."""

    def init(key, shape, dtype=jnp.float32):
        angles = np.arange(heads) * (2 * math.pi / heads)
        rays = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        rays /= np.abs(rays).max(axis=-1, keepdims=True)
        steps = rays[:, None, None] * np.arange(1, points + 1)[None, None, :, None]
        return jnp.asarray(np.broadcast_to(steps, (heads, levels, points, 2)).reshape(shape), dtype)

    return init


class DeformableAttention(nn.Module):
    """Queries [B, Q, D] sample maps [B, S, D'] around their references.

    references: [B or 1, Q, L, 2] middles (x, y), or [.., 4] with width and height, 0 to 1. share:
    of D that the heads have in all. hidden: true [B, S] where a map has nothing.
    """

    heads: int
    points: int
    share: float = 1.0

    @nn.compact
    def __call__(
        self,
        query_BQD: jax.Array,
        references: jax.Array,
        maps_BSD: jax.Array,
        sizes: Sizes,
        hidden: jax.Array | None = None,
    ) -> jax.Array:
        query_BQD = wide(query_BQD)
        width, levels = query_BQD.shape[-1], len(sizes)
        shape = (*query_BQD.shape[:2], self.heads, levels, self.points)
        values = Linear(int(width * self.share), name="value_proj")(maps_BSD)
        if hidden is not None:
            values = jnp.where(hidden[..., None], 0, values)
        values_BSAE = values.reshape(*values.shape[:2], self.heads, -1)
        num = self.heads * levels * self.points
        zeros, rays = nn.initializers.zeros, _directions(self.heads, levels, self.points)
        offsets = Linear(2 * num, init=zeros, bias_init=rays, name="sampling_offsets")(query_BQD)
        offsets = offsets.reshape(*shape, 2)
        weights = Linear(num, init=zeros, name="attention_weights")(query_BQD)
        weights = jax.nn.softmax(weights.reshape(*shape[:3], -1)).reshape(shape)
        references = jnp.asarray(references, query_BQD.dtype)[:, :, None, :, None]
        if references.shape[-1] == 2:
            scale = jnp.asarray([(columns, rows) for rows, columns in sizes], query_BQD.dtype)
            places = references + offsets / scale[None, None, None, :, None]
        else:
            places = references[..., :2] + offsets / self.points * references[..., 2:] * 0.5
        found = sample(values_BSAE, sizes, places, weights)
        return Linear(width, name="output_proj")(found)


def level_embedding(module: nn.Module, name: str, levels: int, width: int) -> jax.Array:
    """A vector per level [L, D]."""
    return parameter(module, name, nn.initializers.normal(1.0), (levels, width))


def spread_levels(embed_LD: jax.Array, sizes: Sequence[tuple[int, int]]) -> jax.Array:
    """The vector of its level for every entry, [S, D]."""
    counts = np.array([rows * columns for rows, columns in sizes])
    return jnp.repeat(embed_LD, counts, axis=0, total_repeat_length=int(counts.sum()))
