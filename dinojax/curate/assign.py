"""The nearest centre of every row, and the sums of each cluster: exact, so that nothing but the
rows and the centres decides.

Devices compare in float32. Where the two nearest centres differ by less than float32 can tell, the
row is decided anew in float64 on the host. Values are summed as whole multiples of a power of two
(of float16 rows exactly), for whole numbers have the same sum in every order. So neither devices
nor processes nor the length of a stretch change one assignment or one bit of a mean.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.curate.assign_program import device_rows, program_of, state_shapes, total_program
from dinojax.curate.pool import Rows
from dinojax.data.progress import Progress
from dinojax.distributed import process_group
from dinojax.sharding import batch, mesh
from dinojax.sharding.mesh import Layout

METRICS = ("l2", "cos")
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
    program = program_of(shift if sums else None, _platform(layout))
    state = _state(num_shards, len(centers_KD), rows.width if sums else None, layout)
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
    found = (process_group.fetch(x) for x in total_program(layout)(*state))
    total, counts_K = (np.array(x[: len(centers_KD)]) for x in found)
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
    size = device_rows(len(rows), num_shards) * num_shards
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


def _state(num_shards: int, num_centers: int, width: int | None, layout: Layout | None):
    """Zeros for the sums and counts of each device."""
    place: Any = layout.sharding("image") if layout else None
    shapes = state_shapes(num_shards, num_centers, width)
    make = jax.jit(lambda: [jnp.zeros(s, jnp.int64) for s in shapes], out_shardings=place)
    return make()


def _platform(layout: Layout | None) -> str:
    return layout.mesh.devices.flat[0].platform if layout else jax.default_backend()


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
