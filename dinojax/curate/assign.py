"""The nearest centre of every row, and the sums of each cluster: exact, so that nothing but the
rows and the centres decides.

Devices compare in float32. Where the two nearest centres differ by less than float32 can tell, the
row is decided anew in float64 on the host. Values are summed as whole multiples of a power of two
(of float16 rows exactly), for whole numbers have the same sum in every order. So neither devices
nor processes nor the length of a stretch change one assignment or one bit of a mean.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.curate.pool import Rows
from dinojax.data.progress import Progress
from dinojax.distributed import process_group
from dinojax.sharding import batch, mesh
from dinojax.sharding.mesh import Layout

METRICS = ("l2", "cos")
DEVICE_ROWS = 8192  # of one device at a time
BLOCK = {"cpu": 2**19}  # entries of a block of scores: what a cache holds
BLOCK_ELSE = 2**26
HOST_BLOCK = 2**24  # entries of scores that are computed in float64 on the host


@dataclasses.dataclass(frozen=True)
class Assigned:
    """assignment int32 [N]; where sums were asked for, means float64 [K, D] and counts int64 [K].

    The mean of an empty cluster is 0; `decided` rows were too close for float32.
    """

    assignment: np.ndarray
    means_KD: np.ndarray | None
    counts_K: np.ndarray
    decided: int


@contextlib.contextmanager
def working(layout: Layout | None) -> Iterator[None]:
    """Integers of 64 bits, on the devices of a layout (None: one device)."""
    with jax.enable_x64(True), mesh.use(layout) if layout else contextlib.nullcontext():
        yield


def assign(
    rows: Rows,
    centers_KD: np.ndarray,
    *,
    layout: Layout | None = None,
    metric: str = "l2",
    sums: bool = True,
    progress: Progress | None = None,
) -> Assigned:
    """The nearest centre of every row; of equally near ones the lowest number.

    l2: Euclidean distance. cos: 2 - 2 x.c, for rows of unit length. Both as in float64 (Vo et al.,
    arXiv:2405.15613, compute in it). Raises ValueError for a width that does not fit.
    """
    if metric not in METRICS:
        raise ValueError(f"kmeans.metric={metric!r} is unknown; choose of {', '.join(METRICS)}.")
    centers_KD = np.asarray(centers_KD, np.float64)
    if centers_KD.ndim != 2 or centers_KD.shape[1] != rows.width or not len(centers_KD):
        raise ValueError(f"centres {centers_KD.shape} for rows of width {rows.width}.")
    with working(layout):
        return _assign(rows, centers_KD, layout, metric, sums, progress)


def _assign(rows, centers_KD, layout, metric, sums, progress) -> Assigned:
    shift = _shift(rows)
    num_shards = layout.num_shards if layout else 1
    place = (lambda x: jax.device_put(x, layout.sharding())) if layout else jnp.asarray
    doubled = place(-2 * centers_KD.astype(np.float32))
    norms_K = _norms(centers_KD, metric)
    fixed = (doubled, place(norms_K.astype(np.float32)), place(_slack(centers_KD, norms_K)))
    program = _program(shift if sums else None)
    state = _state(len(centers_KD), rows.width if sums else 0, num_shards, layout)
    assignment = np.empty(len(rows), np.int32)
    pending, corrections = [], _Corrections(rows, centers_KD, norms_K, shift if sums else None)

    def finish(first, num, stretch, found):
        low, high, within = (process_group.fetch(x)[:num] for x in found)
        assignment[first : first + num] = low
        corrections.add(first, stretch, low, high, within, assignment)
        if progress:
            progress.add(num)

    for first, num, stretch, real in _stretches(rows, num_shards, len(centers_KD), layout):
        found, state = program(stretch, real, *fixed, state)
        pending.append((first, num, stretch, found))
        if len(pending) > 1:
            finish(*pending.pop(0))
    for one in pending:
        finish(*one)
    total, counts_K = (_total(process_group.fetch(x)) for x in state)
    counts_K += corrections.counts_K
    means_KD = None
    if sums:
        total += corrections.sums_KD
        means_KD = np.ldexp(total.astype(np.float64), -shift) / np.maximum(counts_K, 1)[:, None]
    return Assigned(assignment, means_KD, counts_K, corrections.decided)


def _norms(centers_KD: np.ndarray, metric: str) -> np.ndarray:
    """What is added to -2 x.c: |c|^2, or nothing."""
    squares_K = np.einsum("KD,KD->K", centers_KD, centers_KD)
    return squares_K if metric == "l2" else np.zeros_like(squares_K)


def _slack(centers_KD: np.ndarray, norms_K: np.ndarray) -> np.ndarray:
    """(a, b): scores of a row x that differ by less than a |x| + b are the same to float32.

    A rounding error of a sum of D products grows like sqrt(D) units of the last place.
    """
    unit = 2.0**-23 * (4 + math.sqrt(centers_KD.shape[1]))
    longest = float(np.sqrt(np.max(np.einsum("KD,KD->K", centers_KD, centers_KD))))
    return np.array([2 * unit * longest, unit * float(np.max(norms_K))], np.float32)


def _shift(rows: Rows) -> int:
    """Values are summed as multiples of 2^-shift: as fine as a sum of all rows leaves room for.

    Of float16, whose values are multiples of 2^-24, no more is needed.
    """
    room = 62 - math.frexp(max(rows.max_abs, 2.0**-60))[1] - len(rows).bit_length()
    return min(room, 24 if rows.read(0, 1).dtype == np.float16 else 62)


def _stretches(rows: Rows, num_shards: int, num_centers: int, layout: Layout | None):
    """(first row, real rows, rows filled up to one length, which are real); read one ahead."""
    per_device = min(DEVICE_ROWS, max(64, 1 << (-(-len(rows) // num_shards) - 1).bit_length()))
    size = per_device * num_shards
    own = batch.own_rows(size)

    def read(first: int):
        num = min(size, len(rows) - first)
        real = np.arange(size) < num
        low, high = first + own[0], min(first + own[-1] + 1, len(rows))
        part = rows.read(low, high) if low < high else rows.read(0, 1)[:0]
        stretch = part
        if len(part) < size:
            stretch = np.zeros((size, rows.width), part.dtype)
            stretch[own[0] : own[0] + len(part)] = part
        if layout is None:
            return first, num, stretch, real
        with jax.enable_x64(True):
            placed = [batch.from_own_rows(layout, x) for x in (stretch, real)]
        if not layout.mesh.is_multi_process:
            with jax.enable_x64(True):  # of this thread, or rows of float64 would be cut
                placed = [jax.device_put(x, layout.sharding("image")) for x in placed]
        return first, num, *placed

    firsts = range(0, len(rows), size)
    with ThreadPoolExecutor(1) as pool:
        ahead = [pool.submit(read, first) for first in firsts[:1]]
        for first in firsts[1:]:
            ahead.append(pool.submit(read, first))
            yield ahead.pop(0).result()
        for future in ahead:
            yield future.result()


def _state(num_centers: int, width: int, num_shards: int, layout: Layout | None):
    """Zeros for the sums and counts of each device."""
    shapes = (num_shards, num_centers, width), (num_shards, num_centers)
    place: Any = layout.sharding("image") if layout else None
    make = jax.jit(lambda: [jnp.zeros(s, jnp.int64) for s in shapes], out_shardings=place)
    return make()


def _total(parts_SK: np.ndarray) -> np.ndarray:
    return np.asarray(parts_SK).sum(axis=0)


@functools.lru_cache(maxsize=16)
def _program(shift: int | None):
    """(rows, real, -2 c, norms, slack, state) -> ((lowest, highest, number near), state)."""

    def on_one_device(rows_CD, real_C, state_sums, state_counts, doubled_KD, norms_K, slack):
        found = _near(rows_CD, doubled_KD, norms_K, slack)
        num = len(norms_K)
        cluster_C = jnp.where(real_C, found[0], num)  # beyond the last: not summed
        if shift is not None:
            whole_CD = jnp.round(rows_CD.astype(jnp.float64) * 2.0**shift).astype(jnp.int64)
            state_sums += jax.ops.segment_sum(whole_CD, cluster_C, num)[None]
        ones_C = jnp.ones(len(rows_CD), jnp.int64)
        state_counts += jax.ops.segment_sum(ones_C, cluster_C, num)[None]
        return found, (state_sums, state_counts)

    def step(rows_CD, real_C, doubled_KD, norms_K, slack, state):
        together = (rows_CD, real_C, *state)
        return mesh.per_group(on_one_device, *together, replicated=(doubled_KD, norms_K, slack))

    return process_group.together(jax.jit(step, donate_argnums=5))


def _near(rows_CD, doubled_KD, norms_K, slack):
    """Of every row the lowest and highest number of the centres that are nearest to float32, and
    how many these are. In blocks of rows whose scores a cache holds, centres first: reductions
    over the leading axis are those that CPUs do many at a time.
    """
    num, most = len(norms_K), BLOCK.get(jax.default_backend(), BLOCK_ELSE)
    block = max(8, min(len(rows_CD), 1 << max(most // num, 1).bit_length() - 1))
    number_K1 = jnp.arange(num, dtype=jnp.float32)[:, None]

    def one(rows_bD):
        rows_bD = rows_bD.astype(jnp.float32)
        products_Kb = jnp.einsum(
            "KD,bD->Kb", doubled_KD, rows_bD, precision=jax.lax.Precision.HIGHEST
        )
        scores_Kb = norms_K[:, None] + products_Kb
        length_b = jnp.sqrt(jnp.sum(rows_bD * rows_bD, axis=1))
        limit_b = jnp.min(scores_Kb, axis=0) + slack[0] * length_b + slack[1]
        near_Kb = scores_Kb <= limit_b[None]
        low_b = jnp.min(jnp.where(near_Kb, number_K1, jnp.inf), axis=0)
        high_b = jnp.max(jnp.where(near_Kb, number_K1, -1.0), axis=0)
        within_b = jnp.sum(near_Kb, axis=0, dtype=jnp.float32)
        return [x.astype(jnp.int32) for x in (low_b, high_b, within_b)]

    found = jax.lax.map(one, rows_CD.reshape(-1, block, rows_CD.shape[1]))
    return tuple(x.reshape(-1) for x in found)


class _Corrections:
    """Rows that float32 cannot decide, decided in float64, and what that changes of the sums."""

    def __init__(self, rows: Rows, centers_KD, norms_K, shift: int | None):
        self._rows, self._centers_KD, self._norms_K = rows, centers_KD, norms_K
        self._shift = shift
        self._same = 2.0**-50 * (1 + float(np.max(np.einsum("KD,KD->K", centers_KD, centers_KD))))
        self.decided = 0
        self.counts_K = np.zeros(len(centers_KD), np.int64)
        self.sums_KD = np.zeros(centers_KD.shape if shift is not None else (0,), np.int64)

    def add(self, first: int, stretch, low, high, within, assignment) -> None:
        close = np.flatnonzero(within > 1)
        if not len(close):
            return
        self.decided += len(close)
        if isinstance(stretch, jax.Array) and not stretch.is_fully_addressable:
            rows_MD = self._rows.gather(first + close)
        else:
            rows_MD = np.asarray(stretch)[close]
        rows_MD = rows_MD.astype(np.float64)
        right = self._decide(rows_MD, low[close], high[close], within[close])
        moved = right != low[close]
        assignment[first + close] = right
        for cluster, sign in ((low[close][moved], -1), (right[moved], 1)):
            np.add.at(self.counts_K, cluster, sign)
            if self._shift is not None:
                whole = np.rint(np.ldexp(rows_MD[moved], self._shift)).astype(np.int64)
                np.add.at(self.sums_KD, cluster, sign * whole)

    def _decide(self, rows_MD, low, high, within) -> np.ndarray:
        """The nearest centre of each row in float64, the lowest of those that are equally near.

        Products of the same numbers differ in their last bits with the place they stand at.
        """
        same_M = self._same * (1 + np.sqrt(np.einsum("MD,MD->M", rows_MD, rows_MD)))
        scores = [
            self._norms_K[c] - 2 * np.einsum("MD,MD->M", rows_MD, self._centers_KD[c])
            for c in (low, high)
        ]
        right = np.where(scores[1] < scores[0] - same_M, high, low).astype(np.int32)
        many = np.flatnonzero(within > 2)
        size = max(1, HOST_BLOCK // len(self._centers_KD))
        for start in range(0, len(many), size):
            part = many[start : start + size]
            scores_mK = self._norms_K - 2 * (rows_MD[part] @ self._centers_KD.T)
            limit_m = scores_mK.min(axis=1) + same_M[part]
            right[part] = np.argmax(scores_mK <= limit_m[:, None], axis=1)
        return right


def squared_distances(rows: Rows, centers_KD: np.ndarray, assignment: np.ndarray) -> np.ndarray:
    """Squared distance of every row to its centre, float64 [N], on the host."""
    found = np.empty(len(rows), np.float64)
    size = max(1, HOST_BLOCK // 8 // rows.width)
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        differences = rows.read(start, start + size) - centers_KD[assignment[part]]
        found[part] = np.sum(differences * differences, axis=1)
    return found
