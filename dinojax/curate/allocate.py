"""How many images of which cluster: equal shares until a cluster is used up, exact totals.

Vo et al. (arXiv:2405.15613), section on balanced sampling: from the top of the hierarchy down, each
cluster hands its target to its children in equal parts; those that have less give all they have.
"""

from collections.abc import Callable, Sequence

import numpy as np

STRATEGIES = ("closest", "random")

Allocate = Callable[[np.ndarray, int, int], np.ndarray]  # (sizes, target, multiplier)


def cut_of(sizes: np.ndarray, target: int, multiplier: int = 1) -> int:
    """The largest whole x for which the sum of min(x, multiplier * size) is at most the target.

    Where all that there is does not exceed the target, the largest of multiplier * size.
    """
    most = np.sort(np.asarray(sizes, np.int64)) * multiplier
    if not len(most):
        return 0
    if most.sum() <= target:
        return int(most[-1])
    below = np.concatenate([[0], np.cumsum(most)])  # of the smallest i sizes together
    left = len(most) - np.arange(len(most))
    totals = below[:-1] + most * left  # of the sum, if x is the i-th smallest
    index = int(np.searchsorted(totals, target, side="right"))
    return int((target - below[index]) // (len(most) - index))


def allocate(
    sizes: np.ndarray, target: int, multiplier: int, rng: np.random.Generator
) -> np.ndarray:
    """int64 [K] that sums to min(target, multiplier * sum of sizes), no part above its size.

    Parts that could have more differ by one at most; which have the one more is drawn.
    """
    sizes = np.asarray(sizes, np.int64)
    if target < 0:
        raise ValueError(f"a target of {target} images; give 0 or more.")
    most = sizes * multiplier
    cut = cut_of(sizes, target, multiplier)
    parts = np.minimum(cut, most)
    left = min(target, int(most.sum())) - int(parts.sum())
    if left > 0:
        parts[rng.choice(np.flatnonzero(most > cut), left, replace=False)] += 1
    return parts


class Tree:
    """A hierarchy as lists of children: images at level 0, else clusters of the level below."""

    def __init__(
        self,
        assignments: Sequence[np.ndarray],
        counts: Sequence[int],
        distances: Sequence[np.ndarray],
    ):
        """For every level: the cluster of each member, clusters, members' distances to centres."""
        pairs = zip(distances, assignments, strict=True)
        self._orders = [np.lexsort(pair) for pair in pairs]
        self._ends = [
            np.concatenate([[0], np.cumsum(np.bincount(a, minlength=k))])
            for a, k in zip(assignments, counts, strict=True)
        ]
        self.sizes = [np.bincount(assignments[0], minlength=counts[0])]  # in images, by level
        for assignment, count in zip(assignments[1:], counts[1:], strict=True):
            self.sizes.append(np.bincount(assignment, self.sizes[-1], count).astype(np.int64))

    @property
    def top(self) -> int:
        """The number of the highest level, counted from 0."""
        return len(self.sizes) - 1

    def members(self, level: int, cluster: int) -> np.ndarray:
        """Members of a cluster, the closest to its centre first."""
        ends = self._ends[level]
        return self._orders[level][ends[cluster] : ends[cluster + 1]]


def sample(
    tree: Tree,
    target: int,
    *,
    strategy: str = "closest",
    multiplier: int = 1,
    rng: np.random.Generator,
    allocations: Allocate | None = None,
) -> np.ndarray:
    """Images int64, cluster by cluster: exactly min(target, multiplier * images) of them.

    strategy: `closest` to the centre of level 1, or `random` without replacement. multiplier: how
    often an image may be taken. allocations: in place of drawn ones, in the order of a walk from
    the top, depth first.
    """
    if strategy not in STRATEGIES:
        raise ValueError(
            f"sample.strategy={strategy!r} is unknown; choose of {', '.join(STRATEGIES)}."
        )
    share = allocations or (lambda sizes, target, times: allocate(sizes, target, times, rng))
    found: list[np.ndarray] = []

    def walk(level: int, clusters: np.ndarray, target: int) -> None:
        parts = share(tree.sizes[level][clusters], target, multiplier)
        for cluster, part in zip(clusters, parts, strict=True):
            members = tree.members(level, cluster)
            if level:
                walk(level - 1, members, int(part))
            elif part:
                found.append(_taken(members, int(part), strategy, rng))

    walk(tree.top, np.arange(len(tree.sizes[tree.top])), target)
    return np.concatenate(found).astype(np.int64) if found else np.zeros(0, np.int64)


def _taken(members, number, strategy, rng) -> np.ndarray:
    """So many of the members; all of them as often as that goes, then some once more."""
    times, rest = divmod(number, len(members))
    ordered = members if strategy == "closest" else rng.permutation(members)
    return np.concatenate([np.tile(ordered, times), ordered[:rest]])
