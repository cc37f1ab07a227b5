"""Scores [N, K] a block of prototypes at a time, and sums over them."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import logsumexp

from dinojax.losses.sharded import Place

BLOCK_BYTES = 2**26  # of one block of scores in float32; a few are alive at a time


@dataclasses.dataclass(frozen=True)
class Block:
    """One of `parts` equal blocks of prototypes."""

    index: Any
    parts: int


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Prototypes that a device works on: those it stores, and those gathered from other devices.

    A block holds the same share of every device's part, so that only a block is ever gathered.
    """

    stored_ZK: jax.Array
    where: Place = Place()

    @property
    def num_devices(self) -> int:
        """That the prototypes are gathered from."""
        return self.where.num_gathered

    @property
    def num_columns(self) -> int:
        return self.stored_ZK.shape[1] * self.num_devices

    def block(self, at: Block) -> jax.Array:
        """[Z, columns of the block]."""
        start, size = self.stored(at)
        own_ZK = jax.lax.dynamic_slice_in_dim(self.stored_ZK, start, size, 1)
        return self.where.gather(own_ZK)

    def stored(self, at: Block) -> tuple[Any, int]:
        """(first column, number) of the block among those that this device stores."""
        size = self.stored_ZK.shape[1] // at.parts
        return at.index * size, size

    def columns(self, values_K: jax.Array, at: Block) -> jax.Array:
        """Of values for all prototypes, those of the block."""
        if self.num_devices == 1:
            return jax.lax.dynamic_slice_in_dim(values_K, *self.stored(at))
        return values_K.reshape(self.num_devices, at.parts, -1)[:, at.index].reshape(-1)

    def in_order(self, blocks: jax.Array) -> jax.Array:
        """Values [parts, columns of a block] for all prototypes."""
        parted = blocks.reshape(blocks.shape[0], self.num_devices, -1)
        return parted.swapaxes(0, 1).reshape(-1)

    def number(self, at: Block, column: jax.Array) -> jax.Array:
        """Which prototype a column of the block is."""
        start, size = self.stored(at)
        return column // size * self.stored_ZK.shape[1] + start + column % size


@dataclasses.dataclass(frozen=True)
class Scores:
    """Rows [..., Z] times columns of a kernel, over a temperature, in float32 at least."""

    rows: jax.Array
    kernel: Kernel
    temperature: Any

    @property
    def dtype(self):
        return wide(self.rows.dtype)

    def block(self, at: Block):
        logits = (self.rows @ self.kernel.block(at)).astype(self.dtype)
        return logits / jnp.asarray(self.temperature, self.dtype)


def num_blocks(
    num_rows: int, num_columns: int, limit: int | None = None, *, devices: int = 1
) -> int:
    """The smallest divisor of the prototypes that keeps a block of scores within the limit.

    limit: bytes, None = BLOCK_BYTES. Blocks stay at least 128 prototypes wide: a number without
    such divisors is worked on in one block, as are those that fit. devices: that prototypes are
    gathered from; a block has an equal share of each one's.
    """
    limit = BLOCK_BYTES if limit is None else limit
    stored = num_columns // devices
    fitting = [p for p in range(1, num_columns // 128 + 1) if stored % p == 0]
    small = (p for p in fitting if 4 * num_rows * num_columns // p <= limit)
    return next(small, max(fitting, default=1))


def over_blocks(function: Callable, carry, scores: Scores):
    """function(carry, block) -> (carry, out) over all blocks; outs are stacked.

    One block is no loop, so that the compiler computes its scores once for all who ask.
    """
    kernel = scores.kernel
    num_rows = math.prod(scores.rows.shape[:-1])
    parts = num_blocks(num_rows, kernel.num_columns, devices=kernel.num_devices)
    if parts == 1:
        carry, out = function(carry, Block(0, 1))
        return carry, jax.tree.map(lambda x: x[None], out)
    return jax.lax.scan(lambda c, i: function(c, Block(i, parts)), carry, jnp.arange(parts))


def column_sums(where: Place, scores: Scores, log_v_N):
    """log sum_n exp(score + log_v) [K], over the rows of all devices."""

    def add(_, at):
        return None, logsumexp(scores.block(at) + log_v_N[:, None], axis=0)

    _, sums = over_blocks(add, None, scores)
    return where.log_sum_rows(scores.kernel.in_order(sums))


def row_sums(where: Place, scores: Scores, log_u_K):
    """(log sum_k exp(score + log_u), entropy, largest, first) [N] of the softmax over K."""
    kernel = scores.kernel

    def add(sums, at):
        block = scores.block(at) + kernel.columns(log_u_K, at)[None]
        return add_block(sums, block, lambda column: kernel.number(at, column)), None

    sums, _ = over_blocks(add, no_sums(scores.rows.shape[:-1], scores.dtype), scores)
    return finish(where, sums, kernel.num_columns)


def no_sums(shape, dtype):
    """Sums over no prototype yet: (largest score, its place, sum of exp(x), sum of exp(x) x).

    x is a score relative to the largest one.
    """
    zeros = jnp.zeros(shape, dtype)
    return jnp.full(shape, -jnp.inf, dtype), jnp.zeros(shape, jnp.int32), zeros, zeros


def add_block(sums, block, number: Callable):
    """number: column of the block -> which prototype it is."""
    largest, first, total, weighted = sums
    block_largest = jnp.max(block, axis=-1)
    new = jnp.maximum(largest, block_largest)
    moved = jnp.where(jnp.isfinite(largest), largest - new, 0.0)  # the first block has no before
    block_first = number(jnp.argmax(block, axis=-1)).astype(jnp.int32)
    equal = jnp.where(block_largest == largest, jnp.minimum(first, block_first), first)
    first = jnp.where(block_largest > largest, block_first, equal)
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
