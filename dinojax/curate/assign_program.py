"""What the devices compute of an assignment: the nearest centres to float32, and exact sums."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from dinojax.distributed import process_group
from dinojax.sharding import mesh
from dinojax.sharding.mesh import Layout

DEVICE_ROWS = 8192  # of one device at a time
# Entries of a block of scores, what a cache holds; rows of a block at least, which share a reading
# of the centres.
BLOCK = {"cpu": (2**19, 8)}
BLOCK_ELSE = (2**26, 64)
EXACT = 2**24  # whole numbers up to it are float32, which CPUs compare faster


def device_rows(num_rows: int, num_shards: int) -> int:
    """Rows of one device at a time."""
    return min(DEVICE_ROWS, max(64, 1 << (-(-num_rows // num_shards) - 1).bit_length()))


def block_rows(num_rows: int, num_centers: int, platform: str) -> int:
    """Rows of one device whose scores are computed together."""
    most, least = BLOCK.get(platform, BLOCK_ELSE)
    return max(least, min(num_rows, 1 << max(most // num_centers, 1).bit_length() - 1))


def state_shapes(num_shards: int, num_centers: int, width: int | None) -> tuple:
    """Of the sums and counts of each device. width: None without sums, which then are of no centre:
    as many rows of nothing would be written out one by one into a program's text.
    """
    sums = (num_centers, width) if width is not None else (0, 0)
    return (num_shards, *sums), (num_shards, num_centers)


@functools.lru_cache(maxsize=16)
def total_program(layout: Layout | None):
    """[devices, K, ...] -> [K, filled up to what devices divide, ...]: sums of all devices' parts.

    Every device adds up a share of the centres: compilers for TPUs know no sum of 64-bit numbers
    over devices, and would put the parts of all on each of them.
    """

    def total(parts):
        if layout is None:
            return jnp.sum(parts, axis=0)
        fill = [(0, 0)] * parts.ndim
        fill[1] = (0, -parts.shape[1] % layout.num_shards)
        shares = NamedSharding(layout.mesh, layout.parts)
        return jnp.sum(jax.lax.with_sharding_constraint(jnp.pad(parts, fill), shares), axis=0)

    place: Any = layout.sharding("image") if layout else None
    add = jax.jit(lambda *state: [total(parts) for parts in state], out_shardings=place)
    return process_group.together(add)


@functools.lru_cache(maxsize=16)
def program_of(shift: int | None, platform: str):
    """(rows, real, -2 c, norms, slack, state) -> ((lowest, highest, number near), state)."""

    def on_one_device(rows_CD, real_C, state_sums, state_counts, doubled_KD, norms_K, slack):
        block = block_rows(len(rows_CD), len(norms_K), platform)
        found = _near(rows_CD, doubled_KD, norms_K, slack, block)
        num = len(norms_K)
        cluster_C = jnp.where(real_C, found[0], num)  # beyond the last: not summed
        if shift is not None:
            whole_CD = jnp.round(rows_CD.astype(jnp.float64) * 2.0**shift).astype(jnp.int64)
            # In place: sums of one stretch alone would be as large again.
            state_sums = state_sums.at[0, cluster_C].add(whole_CD, mode="drop")
        state_counts = state_counts.at[0, cluster_C].add(jnp.int64(1), mode="drop")
        return found, (state_sums, state_counts)

    def step(rows_CD, real_C, doubled_KD, norms_K, slack, state):
        together = (rows_CD, real_C, *state)
        return mesh.per_group(on_one_device, *together, replicated=(doubled_KD, norms_K, slack))

    return process_group.together(jax.jit(step, donate_argnums=5))


def _near(rows_CD, doubled_KD, norms_K, slack, block: int):
    """Of every row the lowest and highest number of the centres that are nearest to float32, and
    how many these are. In blocks of rows, centres first: reductions
    over the leading axis are those that CPUs do many at a time.
    """
    num = len(norms_K)
    whole = jnp.float32 if num <= EXACT else jnp.int32
    number_K1 = jnp.arange(num, dtype=whole)[:, None]

    def one(rows_bD):
        rows_bD = rows_bD.astype(jnp.float32)
        products_Kb = jnp.einsum(
            "KD,bD->Kb", doubled_KD, rows_bD, precision=jax.lax.Precision.HIGHEST
        )
        scores_Kb = norms_K[:, None] + products_Kb
        length_b = jnp.sqrt(jnp.sum(rows_bD * rows_bD, axis=1))
        limit_b = jnp.min(scores_Kb, axis=0) + slack[0] * length_b + slack[1]
        near_Kb = scores_Kb <= limit_b[None]
        low_b = jnp.min(jnp.where(near_Kb, number_K1, num), axis=0)
        high_b = jnp.max(jnp.where(near_Kb, number_K1, -1), axis=0)
        within_b = jnp.sum(near_Kb, axis=0, dtype=whole)
        return [x.astype(jnp.int32) for x in (low_b, high_b, within_b)]

    found = jax.lax.map(one, rows_CD.reshape(-1, block, rows_CD.shape[1]))
    return tuple(x.reshape(-1) for x in found)
