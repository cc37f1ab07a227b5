"""k-means: greedy k-means++ and Lloyd's iterations, on rows that need not fit into memory.

As the public implementation of Vo et al. (arXiv:2405.15613) computes them: 2 + ln k candidates for
every further centre, a fixed number of iterations, an empty cluster keeps its centre. Iterations
that change no assignment would change nothing ever after, and are left out.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.curate.assign import assign, squared_distances, working
from dinojax.curate.pool import ArrayRows, Rows
from dinojax.data.progress import Progress
from dinojax.distributed import process_group
from dinojax.files.drafts import open_new
from dinojax.sharding.mesh import Layout

INIT_ROWS = 2**17  # at most, among which k-means++ chooses; all rows where there are no more
ROWS_PER_CENTER = 16  # of these at least, up to MOST_INIT_ROWS
MOST_INIT_ROWS = 2**20
TOLD_ROWS = 100_000  # of a pass that has a progress line
GREEDY_CENTERS = 20_000  # beyond, the cost of k-means++ is that of many iterations: split first

After = Callable[[int, np.ndarray], None]  # (iterations done, centres)


@dataclasses.dataclass(frozen=True)
class Clustering:
    """centers float64 [K, D], assignment int32 [N], iterations that were computed."""

    centers_KD: np.ndarray
    assignment: np.ndarray
    iterations: int


def seed_of(*names) -> int:
    """A seed of its own for everything that is drawn, whatever else is."""
    text = "/".join(str(name) for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def lloyd(
    rows: Rows,
    centers_KD: np.ndarray,
    *,
    iterations: int = 50,
    metric: str = "l2",
    layout: Layout | None = None,
    done: int = 0,
    after: After | None = None,
    verb: str = "",
) -> Clustering:
    """Assign, then `iterations` times: means, assign. done: iterations that gave these centres.

    verb: of a progress line for each pass over the rows; "" = none.
    """
    centers_KD = np.asarray(centers_KD, np.float64)
    number = done
    found = _assigned(rows, centers_KD, metric, layout, _words(verb, number, iterations))
    while number < iterations:
        centers_KD = np.where(found.counts_K[:, None] > 0, found.means_KD, centers_KD)
        number += 1
        if after:
            after(number, centers_KD)
        before = found.assignment
        found = _assigned(rows, centers_KD, metric, layout, _words(verb, number, iterations))
        if np.array_equal(found.assignment, before):
            break
    return Clustering(centers_KD, found.assignment, number - done)


def _words(verb: str, number: int, iterations: int) -> str:
    return verb and f"{verb}, iteration {number}/{iterations}: rows"


def _assigned(rows, centers_KD, metric, layout, words):
    progress = Progress(words, len(rows)) if words and len(rows) >= TOLD_ROWS else None
    return assign(rows, centers_KD, layout=layout, metric=metric, progress=progress)


def kmeans(
    rows: Rows,
    num_clusters: int,
    *,
    seed: int,
    iterations: int = 50,
    metric: str = "l2",
    layout: Layout | None = None,
    state: Path | None = None,
    verb: str = "",
) -> Clustering:
    """k-means++ and Lloyd's iterations.

    state: a file that holds the centres of the last iteration, so that the same call continues.
    Raises ValueError for more clusters than rows.
    """
    check_number(num_clusters, len(rows))
    saved = load_shared(state)
    if saved:
        done, centers_KD = int(saved["iterations"]), saved["centers_KD"]
    else:
        done, centers_KD = 0, first_centers(rows, num_clusters, seed=seed, metric=metric)

    def after(number: int, centers_KD: np.ndarray) -> None:
        if state is not None and process_group.current().is_main:
            with open_new(state) as file:
                np.savez(file, iterations=number, centers_KD=centers_KD)

    return lloyd(
        rows,
        centers_KD,
        iterations=iterations,
        metric=metric,
        layout=layout,
        done=done,
        after=after,
        verb=verb,
    )


def load_shared(path: Path | None) -> dict[str, np.ndarray] | None:
    """The arrays of an .npz that process 0 writes, None if it is not there: the same in all
    processes, for none goes on to write before all have read.
    """
    if path is None or not process_group.current().settle(f"{path.name} is there", path.exists()):
        return None
    with np.load(path) as saved:
        found = dict(saved)
    process_group.current().settle(f"{path.name} is read")
    return found


def check_number(num_clusters: int, num_rows: int) -> None:
    """Raise ValueError for a number of clusters that the rows cannot make."""
    if not 1 <= num_clusters <= num_rows:
        raise ValueError(
            f"{num_clusters:,} clusters of {num_rows:,} rows: give kmeans.clusters between 1 and "
            "the number of images that are left after deduplication."
        )


def first_centers(rows: Rows, num_clusters: int, *, seed: int, metric: str = "l2") -> np.ndarray:
    """Centres [K, D] that greedy k-means++ chooses among all rows, or a drawn part of many."""
    rng = np.random.default_rng(seed_of(seed, "k-means++"))
    most = init_rows(num_clusters)
    if len(rows) > most:
        chosen = np.sort(rng.choice(len(rows), most, replace=False))
        among = rows.gather(chosen)
    else:
        among = rows.read(0, len(rows))
    if num_clusters > GREEDY_CENTERS:
        picked = np.sort(rng.choice(len(among), num_clusters, replace=False))
        return among[picked].astype(np.float64)
    uniforms = rng.random((num_clusters - 1, num_candidates(num_clusters)))
    first = int(rng.integers(len(among)))
    picked = plus_plus(among, uniforms, first=first, metric=metric)
    return among[picked].astype(np.float64)


def init_rows(num_clusters: int) -> int:
    """Rows at most among which the first centres are chosen."""
    return min(max(INIT_ROWS, ROWS_PER_CENTER * num_clusters), max(MOST_INIT_ROWS, num_clusters))


def num_candidates(num_clusters: int) -> int:
    return 2 + int(math.log(num_clusters))


def plus_plus(
    rows_ND: np.ndarray, uniforms: np.ndarray, *, first: int, metric: str = "l2"
) -> np.ndarray:
    """Indexes int64 [K] that greedy k-means++ chooses (Arthur and Vassilvitskii, 2007).

    uniforms: in 0..1, [K - 1, candidates]; each draws a candidate with a chance that is
    proportional to its squared distance from the nearest centre so far, and the candidate that
    leaves the least sum of these distances becomes a centre. Computed on one device, whatever
    others there are, in float64 for rows of float64 and else in float32.
    """
    dtype = np.float64 if np.dtype(rows_ND.dtype) == np.float64 else np.float32
    num = len(rows_ND)
    filled = np.zeros((max(64, 1 << (num - 1).bit_length()), rows_ND.shape[1]), dtype)
    filled[:num] = rows_ND  # to a length that other calls have too: one compile for many
    least_N = np.where(np.arange(len(filled)) < num, np.inf, 0).astype(dtype)
    picked, times = [first], uniforms.shape[1]
    with working(None):
        rows = jax.device_put(filled, jax.local_devices()[0])
        squares_N = jnp.sum(rows * rows, axis=1) if metric == "l2" else None
        least_N = np.asarray(nearer(rows, squares_N, np.full(times, first), least_N)[0][0])
        for drawn in uniforms:
            summed_N = np.cumsum(least_N[:num], dtype=np.float64)
            candidates = np.searchsorted(summed_N, drawn * summed_N[-1])
            candidates = np.minimum(candidates, num - 1)
            least_TN, potentials_T = nearer(rows, squares_N, candidates, least_N)
            best = int(np.argmin(np.asarray(potentials_T)))
            picked.append(int(candidates[best]))
            least_N = np.asarray(least_TN[best])
    return np.array(picked, np.int64)


@jax.jit
def nearer(rows_ND, squares_N, candidates_T, least_N):
    """Squared distances [T, N] to the nearest centre if each candidate were one, and their sums."""
    products_TN = jnp.einsum(
        "TD,ND->TN", rows_ND[candidates_T], rows_ND, precision=jax.lax.Precision.HIGHEST
    )
    if squares_N is None:
        found_TN = jnp.maximum(2 - 2 * products_TN, 0)
    else:
        found_TN = squares_N[candidates_T][:, None] - 2 * products_TN + squares_N[None]
        found_TN = jnp.maximum(found_TN, 0)
    found_TN = jnp.minimum(found_TN, least_N[None])
    return found_TN, jnp.sum(found_TN, axis=1, dtype=jnp.float64)


def potential(rows: Rows, assignment: np.ndarray, num_clusters: int) -> float:
    """Sum of squared distances to the means of the clusters, in float64, for rows in memory."""
    rows_ND = rows.read(0, len(rows)).astype(np.float64)
    sums_KD = np.zeros((num_clusters, rows.width))
    np.add.at(sums_KD, assignment, rows_ND)
    counts_K = np.bincount(assignment, minlength=num_clusters)
    means_KD = sums_KD / np.maximum(counts_K, 1)[:, None]
    return float(squared_distances(ArrayRows(rows_ND), means_KD, assignment).sum())
