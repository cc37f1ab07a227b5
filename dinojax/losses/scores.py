"""Scores [N, K] a block of prototypes at a time, and sums over them."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import logsumexp

from dinojax.losses.places import Place

BLOCK_BYTES = 2**26  # of one block of scores in float32; a few are alive at a time


@dataclasses.dataclass(frozen=True)
class Scores:
    """Rows [..., Z] times columns of a kernel, over a temperature, in float32 at least."""

    rows: jax.Array
    kernel_ZK: jax.Array
    temperature: Any

    @property
    def dtype(self):
        return wide(self.rows.dtype)

    def block(self, start, size: int):
        block_ZK = jax.lax.dynamic_slice_in_dim(self.kernel_ZK, start, size, 1)
        logits = (self.rows @ block_ZK).astype(self.dtype)
        return logits / jnp.asarray(self.temperature, self.dtype)


def num_blocks(num_rows: int, num_columns: int, limit: int | None = None) -> int:
    """The smallest divisor of the prototypes that keeps a block of scores within the limit.

    limit: bytes, None = BLOCK_BYTES. Blocks stay at least 128 prototypes wide: a number without
    such divisors is worked on in one block, as are those that fit.
    """
    limit = BLOCK_BYTES if limit is None else limit
    for parts in range(1, num_columns // 128 + 1):
        if num_columns % parts == 0 and 4 * num_rows * num_columns // parts <= limit:
            return parts
    return max((p for p in range(1, num_columns // 128 + 1) if num_columns % p == 0), default=1)


def over_blocks(function: Callable, carry, scores: Scores):
    """function(carry, start, size) -> (carry, out) over all blocks; outs are stacked.

    One block is no loop, so that the compiler computes its scores once for all who ask.
    """
    num_columns = scores.kernel_ZK.shape[1]
    parts = num_blocks(math.prod(scores.rows.shape[:-1]), num_columns)
    size = num_columns // parts
    if parts == 1:
        carry, out = function(carry, 0, size)
        return carry, jax.tree.map(lambda x: x[None], out)
    return jax.lax.scan(lambda c, i: function(c, i * size, size), carry, jnp.arange(parts))


def column_sums(where: Place, scores: Scores, log_v_N):
    """log sum_n exp(score + log_v) [K], over the rows of all devices."""

    def add(_, start, size):
        return None, logsumexp(scores.block(start, size) + log_v_N[:, None], axis=0)

    _, sums = over_blocks(add, None, scores)
    return where.log_sum_rows(sums.reshape(-1))


def row_sums(where: Place, scores: Scores, log_u_K):
    """(log sum_k exp(score + log_u), entropy, largest, first) [N] of the softmax over K."""

    def add(sums, start, size):
        log_u = jax.lax.dynamic_slice_in_dim(log_u_K, start, size)
        return add_block(sums, scores.block(start, size) + log_u[None], start), None

    sums, _ = over_blocks(add, no_sums(scores.rows.shape[:-1], scores.dtype), scores)
    return finish(where, sums, scores.kernel_ZK.shape[1])


def no_sums(shape, dtype):
    """Sums over no prototype yet: (largest score, its place, sum of exp(x), sum of exp(x) x).

    x is a score relative to the largest one.
    """
    zeros = jnp.zeros(shape, dtype)
    return jnp.full(shape, -jnp.inf, dtype), jnp.zeros(shape, jnp.int32), zeros, zeros


def add_block(sums, block, start):
    largest, first, total, weighted = sums
    block_largest = jnp.max(block, axis=-1)
    new = jnp.maximum(largest, block_largest)
    moved = jnp.where(jnp.isfinite(largest), largest - new, 0.0)  # the first block has no before
    block_first = (jnp.argmax(block, axis=-1) + start).astype(jnp.int32)
    first = jnp.where(block_largest > largest, block_first, first)
    relative = block - new[..., None]
    exps, keep = jnp.exp(relative), jnp.exp(moved)
    weighted = keep * (weighted + moved * total) + jnp.sum(exps * relative, axis=-1)
    return new, first, keep * total + jnp.sum(exps, axis=-1), weighted


def finish(where: Place, sums, num_columns: int):
    """Sums over the prototypes of all devices -> (log sum, entropy, largest share, first)."""
    largest, first, total, weighted = sums
    most, first = where.largest_column(largest, first, num_columns)
    moved = largest - most
    keep = jnp.exp(moved)
    weighted = where.sum_columns(keep * (weighted + moved * total))
    total = where.sum_columns(keep * total)
    return most + jnp.log(total), jnp.log(total) - weighted / total, 1.0 / total, first


def wide(dtype):
    return jnp.promote_types(dtype, jnp.float32)
