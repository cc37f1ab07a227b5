"""Near-duplicates: pairs on disk, components, one survivor of each; none of what a benchmark shows.

Oquab et al. (arXiv:2304.07193), appendix A: the 64 nearest neighbours of every image, pairs above a
threshold, connected components by union-find, one image kept of each; and every component that
holds an image like one of a benchmark is removed as a whole. Their thresholds, 0.6 and 0.45, are
of their descriptor; others need their own (calibrate.py).
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from dinojax.curate.pool import Rows
from dinojax.curate.similar import EDGE, NEIGHBORS, QUERIES, Edges, near_pairs, num_blocks
from dinojax.data.progress import Progress
from dinojax.distributed import process_group
from dinojax.files.drafts import open_new
from dinojax.sharding.mesh import Layout

KEEP = ("largest", "first")
MOST_ALIKE = 2_000  # images with one part of a hash, beyond which only equal hashes are compared

Blocks = Callable[[], Iterable[Edges]]


def write_edges(
    folder: Path,
    queries: Rows,
    pool: Rows,
    threshold: float,
    *,
    neighbors: int = NEIGHBORS,
    same: bool = False,
    layout: Layout | None = None,
    verb: str = "compared",
) -> None:
    """Pairs above the threshold as files block-00000.npy and so on; those that exist are kept."""
    group = process_group.current()
    total = num_blocks(queries)
    if group.is_main:
        folder.mkdir(parents=True, exist_ok=True)
    done = group.settle("edges", [n for n in range(total) if _block(folder, n).exists()])
    progress = Progress(verb, len(queries))
    for first, stop in _missing(total, set(done)):
        found = near_pairs(
            queries,
            pool,
            threshold,
            blocks=range(first, stop),
            neighbors=neighbors,
            same=same,
            layout=layout,
        )
        for number, edges in found:
            if group.is_main:
                with open_new(_block(folder, number)) as file:
                    np.save(file, edges)
            progress.add(min(QUERIES, len(queries) - number * QUERIES))


def _block(folder: Path, number: int) -> Path:
    return folder / f"block-{number:05d}.npy"


def _missing(total: int, done: set[int]) -> Iterator[tuple[int, int]]:
    """Stretches of blocks that are not there."""
    first = None
    for number in range(total + 1):
        absent = number < total and number not in done
        if absent and first is None:
            first = number
        elif not absent and first is not None:
            yield first, number
            first = None


def read_edges(folder: Path) -> Iterator[Edges]:
    """The files that `write_edges` wrote, in order; nothing of a folder that is not there."""
    for path in sorted(folder.glob("block-*.npy")) if folder.is_dir() else ():
        yield np.load(path)


def components(num: int, blocks: Blocks) -> np.ndarray:
    """int64 [N]: the lowest number in the component of each row, of edges in any order.

    Edges are read in several passes and never all held.
    """
    root_N = np.arange(num, dtype=np.int64)
    while True:
        joined = False
        for edges in blocks():
            ends = root_N[edges["row"]], root_N[edges["other"]]
            low, high = np.minimum(*ends), np.maximum(*ends)
            if (low < high).any():
                np.minimum.at(root_N, high, low)
                joined = True
        while not np.array_equal(root_N, above := root_N[root_N]):
            root_N = above
        if not joined:
            return root_N


@dataclasses.dataclass(frozen=True)
class Deduplicated:
    """kept: rising numbers of the rows that stay. survivor int64 [N]: who stands for a row, -1 =
    none, for its component is like a benchmark. root int64 [N]: the component.
    """

    kept: np.ndarray
    survivor: np.ndarray
    root: np.ndarray


def deduplicate(
    num: int,
    blocks: Blocks,
    *,
    hits: np.ndarray,
    keep: str = "first",
    pixels: np.ndarray | None = None,
) -> Deduplicated:
    """One of every component, none of those that hold a hit.

    hits: numbers of rows that are like an image of a benchmark. keep: the `first` of the pool, or
    the `largest` in pixels [N], of equally large ones the first.
    """
    if keep not in KEEP or (keep == "largest" and pixels is None):
        raise ValueError(f"dedup.keep={keep!r}: choose of {', '.join(KEEP)} (needs pixels).")
    root_N = components(num, blocks)
    survivor_of_root = root_N.copy()
    if keep == "largest":
        order = np.lexsort((np.arange(num), -np.asarray(pixels, np.int64), root_N))
        firsts = np.r_[True, root_N[order][1:] != root_N[order][:-1]] if num else []
        survivor_of_root[root_N[order][firsts]] = order[firsts]
    survivor_N = survivor_of_root[root_N]
    survivor_N[np.isin(root_N, np.unique(root_N[hits]))] = -1
    kept = np.flatnonzero(survivor_N == np.arange(num))
    return Deduplicated(kept, survivor_N, root_N)


def alike(hashes: np.ndarray, radius: int) -> tuple[Edges, int]:
    """(pairs of perceptual hashes uint64 [N] that differ in at most `radius` bits, groups cut).

    Of hashes that differ so little one of radius + 1 parts is equal, and only those are compared.
    Where more than MOST_ALIKE share a part, equal hashes alone are paired there: groups cut.
    """
    found, cut = [_equal(hashes)], 0
    bits = np.linspace(0, 64, radius + 2).astype(int)
    for low, high in zip(bits[:-1], bits[1:], strict=True) if radius else ():
        part = (hashes >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(part, kind="stable")
        ends = np.flatnonzero(np.r_[np.diff(part[order]) != 0, True]) + 1
        for start, end in zip(np.r_[0, ends[:-1]], ends, strict=True):
            if end - start < 2:
                continue
            if end - start > MOST_ALIKE:
                cut += 1
                continue
            some = order[start:end]
            differing = np.bitwise_count(hashes[some][:, None] ^ hashes[some][None])
            one, two = np.nonzero(np.triu(differing <= radius, 1))
            found.append(_pairs(some[one], some[two]))
    return np.unique(np.concatenate(found)), cut


def _equal(hashes: np.ndarray) -> Edges:
    order = np.argsort(hashes, kind="stable")
    equal = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    return _pairs(order[equal], order[equal + 1])


def _pairs(one: np.ndarray, two: np.ndarray) -> Edges:
    edges = np.empty(len(one), EDGE)
    edges["row"], edges["other"] = np.minimum(one, two), np.maximum(one, two)
    edges["cosine"] = np.nan  # it is the hashes that are alike
    return edges
