"""Pairs of rows whose cosine is above a threshold, at most the k nearest of each row.

A block of queries meets the whole pool, a tile at a time; devices share the queries. Only what is
above the threshold leaves the devices. Cosines near the threshold are computed anew in float64.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.curate.assign import working
from dinojax.curate.pool import Rows
from dinojax.distributed import process_group
from dinojax.sharding import mesh
from dinojax.sharding.mesh import Layout

NEIGHBORS = 64  # Oquab et al. (arXiv:2304.07193), appendix A
QUERIES, TILE = 2048, 8192  # rows: of one device at a time, of the pool
UNSURE = 2e-5  # of a cosine in float32

Edges = np.ndarray  # of EDGE
EDGE = np.dtype([("row", np.int64), ("other", np.int64), ("cosine", np.float32)])


def num_blocks(queries: Rows) -> int:
    """Blocks of queries: those of one device, whatever the number of devices."""
    return -(-len(queries) // QUERIES)


def near_pairs(
    queries: Rows,
    pool: Rows,
    threshold: float,
    *,
    blocks: range,
    neighbors: int = NEIGHBORS,
    same: bool = False,
    layout: Layout | None = None,
) -> Iterator[tuple[int, Edges]]:
    """(number, edges) of each block of QUERIES queries: cosine strictly above the threshold.

    Edges are in the order of queries, then of falling cosine, then of rising number. same: queries
    and pool are the same rows, and no row is its own neighbour.
    """
    num_shards = layout.num_shards if layout else 1
    most = min(neighbors + 8, len(pool))  # a few more, as float32 may order near ones otherwise
    with working(layout):
        for at in range(blocks.start, blocks.stop, num_shards):
            first, stop = at * QUERIES, min((at + num_shards) * QUERIES, len(queries))
            stop = min(stop, blocks.stop * QUERIES)
            units_QD = unit(queries.read(first, stop))
            found = _edges(units_QD, first, pool, threshold, most, num_shards, same, layout)
            kept = _nearest(found, neighbors)
            for number in range(at, min(at + num_shards, blocks.stop)):
                own = (kept["row"] // QUERIES) == number
                yield number, kept[own]


def _edges(units_QD, first, pool, threshold, most, num_shards, same, layout) -> Edges:
    size = min(QUERIES, max(8, 1 << (max(len(units_QD) - 1, 1)).bit_length())) * num_shards
    queries_QD = _filled(units_QD.astype(np.float32), size)
    numbers_Q = np.arange(first, first + size)
    placed = [_placed(x, layout) for x in (queries_QD, numbers_Q if same else numbers_Q * 0 - 1)]
    program, found = program_of(min(most, TILE), len(pool)), []
    for start in range(0, len(pool), TILE):
        tile_TD = unit(pool.read(start, start + TILE))
        length = min(TILE, max(64, 1 << (len(pool) - 1).bit_length()))
        tile = _filled(tile_TD.astype(np.float32), length)
        limit = np.float32(threshold - UNSURE)
        cosines_Qk, others_Qk, counts_Q = program(*placed, tile, np.int64(start), limit)
        if not process_group.fetch(counts_Q)[: len(units_QD)].any():
            continue
        cosines_Qk, others_Qk = (
            process_group.fetch(x)[: len(units_QD)] for x in (cosines_Qk, others_Qk)
        )
        rows, places = np.nonzero(cosines_Qk > limit)
        others = others_Qk[rows, places].astype(np.int64)
        exact = np.einsum("ED,ED->E", units_QD[rows], tile_TD[others])
        above = exact > threshold
        edges = np.empty(int(above.sum()), EDGE)
        edges["row"], edges["other"] = rows[above] + first, others[above] + start
        edges["cosine"] = exact[above]
        found.append(edges)
    return np.concatenate(found) if found else np.empty(0, EDGE)


@functools.lru_cache(maxsize=8)
def program_of(most: int, num_pool: int):
    def on_one_device(queries_QD, own_Q, tile_TD, start, limit):
        cosines_QT = jnp.einsum(
            "QD,TD->QT", queries_QD, tile_TD, precision=jax.lax.Precision.HIGHEST
        )
        number_T = start + jnp.arange(len(tile_TD), dtype=jnp.int64)
        absent_QT = (number_T[None] == own_Q[:, None]) | (number_T >= num_pool)[None]
        cosines_QT = jnp.where(absent_QT, -2.0, cosines_QT)
        counts_Q = jnp.sum(cosines_QT > limit, axis=1, dtype=jnp.int32)

        def nearest():
            return tuple(jax.lax.top_k(cosines_QT, min(most, len(tile_TD))))

        def none():
            shape = (len(queries_QD), min(most, len(tile_TD)))
            return jnp.full(shape, -2.0, jnp.float32), jnp.zeros(shape, jnp.int32)

        return *jax.lax.cond(jnp.any(counts_Q > 0), nearest, none), counts_Q

    def step(queries_QD, own_Q, tile_TD, start, limit):
        rest = (tile_TD, start, limit)
        return mesh.per_group(on_one_device, queries_QD, own_Q, replicated=rest)

    return process_group.together(jax.jit(step))


def _nearest(edges: Edges, neighbors: int) -> Edges:
    """Of every row the nearest others, in order."""
    edges = edges[np.lexsort((edges["other"], -edges["cosine"], edges["row"]))]
    starts = np.searchsorted(edges["row"], edges["row"], side="left")
    return edges[np.arange(len(edges)) - starts < neighbors]


def unit(rows_ND: np.ndarray) -> np.ndarray:
    """Rows of length 1, float64; rows of zeros stay."""
    rows_ND = np.asarray(rows_ND, np.float64)
    return rows_ND / np.maximum(np.linalg.norm(rows_ND, axis=1, keepdims=True), 1e-12)


def _filled(rows: np.ndarray, size: int) -> np.ndarray:
    return np.pad(rows, ((0, size - len(rows)), (0, 0)))


def _placed(rows: np.ndarray, layout: Layout | None):
    if layout is None:
        return rows
    place = layout.sharding("image")
    return jax.make_array_from_callback(rows.shape, place, lambda index: rows[index])
