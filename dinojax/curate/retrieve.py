"""Images of a pool that are like those of a seed set (Oquab et al., arXiv:2304.07193, appendix A).

By sample, for large seed sets: the k nearest images of every seed. By cluster, for small ones:
clusters that hold more than 3 seeds give up to 10,000 images each, together at most a million.
"""

import numpy as np

from dinojax.curate.assign import assign
from dinojax.curate.kmeans import seed_of
from dinojax.curate.pool import Rows
from dinojax.curate.similar import near_pairs, num_blocks
from dinojax.data.progress import Progress
from dinojax.sharding.mesh import Layout

EVERY = -2.0  # a threshold that every cosine is above


def by_sample(
    seeds: Rows, pool: Rows, neighbors: int, *, layout: Layout | None = None
) -> np.ndarray:
    """Rising numbers of the pool's rows that are among the nearest of some seed, by cosine.

    Of equally near ones the lowest number goes first. Raises ValueError for neighbors < 1.
    """
    if neighbors < 1:
        raise ValueError(f"retrieve.neighbors={neighbors} must be at least 1.")
    blocks = range(num_blocks(seeds))
    progress = Progress("retrieved for seeds", len(seeds))
    found = np.zeros(0, np.int64)
    near = near_pairs(seeds, pool, EVERY, blocks=blocks, neighbors=neighbors, layout=layout)
    for _, edges in near:
        found = np.union1d(found, edges["other"])
        progress.add(len(np.unique(edges["row"])))
    return found


def by_cluster(
    seeds: Rows,
    centers_KD: np.ndarray,
    assignment: np.ndarray,
    *,
    seed: int,
    more_than: int = 3,
    per_cluster: int = 10_000,
    most: int = 1_000_000,
    layout: Layout | None = None,
) -> np.ndarray:
    """Rising numbers of the pool's rows from clusters with more than `more_than` seeds.

    Of a cluster with more than `per_cluster` rows these are drawn; where all are more than `most`,
    so many of them are drawn.
    """
    of_seed = assign(seeds, centers_KD, layout=layout, sums=False).assignment
    counts_K = np.bincount(of_seed, minlength=len(centers_KD))
    chosen = np.flatnonzero(counts_K > more_than)
    order = np.argsort(assignment, kind="stable")
    ends = np.cumsum(np.bincount(assignment, minlength=len(centers_KD)))
    found = []
    for cluster in chosen:
        members = order[ends[cluster - 1] if cluster else 0 : ends[cluster]]
        rng = np.random.default_rng(seed_of(seed, "retrieve", cluster))
        if len(members) > per_cluster:
            members = rng.choice(members, per_cluster, replace=False)
        found.append(members)
    rows = np.sort(np.concatenate(found)) if found else np.zeros(0, np.int64)
    if len(rows) > most:
        rng = np.random.default_rng(seed_of(seed, "retrieve"))
        rows = np.sort(rng.choice(rows, most, replace=False))
    return rows
