"""Hierarchical k-means with resampling (Vo et al., arXiv:2405.15613): the levels and their files.

Level 1 clusters the rows, every further level the centres of the one below, each of which counts
once however many rows it has. Resampling takes a few rows of every cluster and clusters these
anew, so that centres spread over what there is rather than over how often it is there.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dinojax.curate import allocate
from dinojax.curate.assign import assign, squared_distances
from dinojax.curate.kmeans import Clustering, check_number, kmeans, load_shared, seed_of
from dinojax.curate.pool import ArrayRows, Rows
from dinojax.data import fields
from dinojax.distributed import process_group
from dinojax.files.drafts import open_new, write_json
from dinojax.sharding.mesh import Layout

LEVEL = "level.json"


@dataclasses.dataclass(frozen=True)
class Level:
    """What is asked of a level. sizes: rows of each cluster when it is resampled, 1 = not at all.

    split: of so many clusters, each is clustered by itself, in place of all rows at once; 0 = no.
    """

    clusters: int
    size: int = 1
    split: int = 0


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all levels share."""

    rounds: int = 10  # of resampling
    strategy: str = "closest"  # rows of a cluster that are resampled; or random
    iterations: int = 50
    metric: str = "l2"
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Found:
    """A level: centers float64 [K, D]; assignment int32 and distances float64 of its members."""

    centers_KD: np.ndarray
    assignment: np.ndarray
    distances: np.ndarray


Cluster = Callable[[Rows, int, str], Clustering]  # (rows, clusters, name of the run)


def check_levels(levels: Sequence[Level], num_rows: int) -> None:
    """Raise ValueError for levels that cannot be made of so many rows."""
    below = num_rows
    for number, level in enumerate(levels, start=1):
        if number > 1 and level.clusters >= below:
            raise ValueError(
                f"kmeans.clusters: level {number} has {level.clusters:,}, level {number - 1} "
                f"{below:,}; every level needs fewer than the one below."
            )
        check_number(level.clusters, below)
        if level.size < 1 or level.split < 0 or level.split >= level.clusters:
            raise ValueError(
                f"level {number}: resampled size {level.size} and split {level.split}; give a "
                "size of at least 1 and a split of 0 or fewer than its clusters."
            )
        below = level.clusters


def hierarchy(
    rows: Rows,
    levels: Sequence[Level],
    settings: Settings,
    *,
    layout: Layout | None = None,
    folder: Path | None = None,
    cluster: Cluster | None = None,
    quiet: bool = True,
) -> list[Found]:
    """All levels, the lowest first.

    folder: receives level1, level2 and so on, which are not computed again; a level that was left
    half done continues with its last round and iteration. cluster: in place of k-means from
    centres that are drawn. Raises ValueError as `check_levels` does, before any work.
    """
    check_levels(levels, len(rows))
    found: list[Found] = []
    for number, level in enumerate(levels, start=1):
        place = folder / f"level{number}" if folder else None
        if place and (place / LEVEL).exists():
            found.append(read_level(place))
        else:
            words = "" if quiet else f"level {number}"
            found.append(
                _level(rows, level, settings, _Work(number, layout, place, cluster, words))
            )
        rows = ArrayRows(found[-1].centers_KD)
    return found


@dataclasses.dataclass(frozen=True)
class _Work:
    number: int
    layout: Layout | None
    folder: Path | None
    cluster: Cluster | None
    words: str

    def file(self, name: str) -> Path | None:
        return self.folder / name if self.folder else None


def _level(rows: Rows, level: Level, settings: Settings, work: _Work) -> Found:
    if work.folder:
        work.folder.mkdir(parents=True, exist_ok=True)
    saved = load_shared(work.file("centers.npz"))
    if saved:
        done, centers_KD = int(saved["rounds"]), saved["centers_KD"]
    else:
        done, centers_KD = 0, _first(rows, level, settings, work)
        _save_round(work, done, centers_KD)
    assignment = _assigned(rows, centers_KD, settings, work)
    for number in range(done, settings.rounds if level.size > 1 else 0):
        name = f"round{number}"
        some = resampled(rows, centers_KD, assignment, level.size, settings, name=_name(work, name))
        if len(some) < level.clusters:
            break  # too many clusters are empty; the centres stand
        centers_KD = _clustered(ArrayRows(some), level.clusters, settings, work, name).centers_KD
        assignment = _assigned(rows, centers_KD, settings, work)
        _save_round(work, number + 1, centers_KD)
    found = Found(centers_KD, assignment, squared_distances(rows, centers_KD, assignment))
    if work.folder:
        _write_level(work.folder, found)
    return found


def _first(rows: Rows, level: Level, settings: Settings, work: _Work) -> np.ndarray:
    """The centres before any resampling."""
    if level.split:
        return _split(rows, level, settings, work)
    return _clustered(rows, level.clusters, settings, work, "first").centers_KD


def _split(rows: Rows, level: Level, settings: Settings, work: _Work) -> np.ndarray:
    """Centres in two steps: few clusters, then the rows of each into its share of the centres.

    Shares are equal as far as a cluster has rows for its own (Vo et al. make 100 of every one).
    Cost: N (split + K / split) D in place of N K D.
    """
    coarse = _clustered(rows, level.split, settings, work, "split")
    sizes = np.bincount(coarse.assignment, minlength=level.split)
    rng = np.random.default_rng(seed_of(settings.seed, _name(work, "shares")))
    shares = allocate.allocate(sizes, level.clusters, 1, rng)
    order = np.argsort(coarse.assignment, kind="stable")
    ends = np.concatenate([[0], np.cumsum(sizes)])
    centers = []
    for number, share in enumerate(shares):
        members = order[ends[number] : ends[number + 1]]
        if share:
            some = ArrayRows(np.asarray(rows.gather(members)))
            name = f"split{number}"
            centers.append(_clustered(some, int(share), settings, work, name).centers_KD)
    return np.concatenate(centers)


def resampled(
    rows: Rows, centers_KD, assignment, size: int, settings: Settings, *, name: str
) -> np.ndarray:
    """Up to `size` rows of every cluster, cluster by cluster, the closest first or drawn."""
    if settings.strategy not in allocate.STRATEGIES:
        raise ValueError(
            f"kmeans.strategy={settings.strategy!r} is unknown; choose of "
            f"{', '.join(allocate.STRATEGIES)}."
        )
    if settings.strategy == "closest":
        keys = squared_distances(rows, centers_KD, assignment)
    else:
        rng = np.random.default_rng(seed_of(settings.seed, name, "drawn"))
        keys = rng.random(len(assignment))
    order = np.lexsort((keys, assignment))
    sizes = np.bincount(assignment, minlength=len(centers_KD))
    starts = np.cumsum(sizes) - sizes
    rank = np.arange(len(order)) - starts[assignment[order]]
    chosen = order[rank < size]
    rising = np.argsort(chosen, kind="stable")
    some = np.empty((len(chosen), rows.width), rows.read(0, 1).dtype)
    some[rising] = rows.gather(chosen[rising])
    return some


def _clustered(rows: Rows, num: int, settings: Settings, work: _Work, name: str) -> Clustering:
    """k-means of its own seed and its own file of the last iteration."""
    if work.cluster:
        return work.cluster(rows, num, name)
    return kmeans(
        rows,
        num,
        seed=seed_of(settings.seed, _name(work, name)),
        iterations=settings.iterations,
        metric=settings.metric,
        layout=work.layout,
        state=work.file(f"{name}.iteration.npz"),
        verb=work.words and f"{work.words}, {name}",
    )


def _name(work: _Work, name: str) -> str:
    return f"level{work.number}/{name}"


def _assigned(rows: Rows, centers_KD, settings: Settings, work: _Work) -> np.ndarray:
    found = assign(rows, centers_KD, layout=work.layout, metric=settings.metric, sums=False)
    return found.assignment


def _save_round(work: _Work, rounds: int, centers_KD: np.ndarray) -> None:
    path = work.file("centers.npz")
    if path is not None and process_group.current().is_main:
        with open_new(path) as file:
            np.savez(file, rounds=rounds, centers_KD=centers_KD)


def _write_level(folder: Path, found: Found) -> None:
    """The three arrays, then the file that says that all are there; what led to them goes."""
    if not process_group.current().is_main:
        return
    for name, array in vars(found).items():
        with open_new(folder / f"{name.removesuffix('_KD')}.npy") as file:
            np.save(file, array)
    told = {"clusters": len(found.centers_KD), "members": len(found.assignment)}
    write_json(folder / LEVEL, told)
    for path in folder.iterdir():
        if path.suffix == ".npz":
            path.unlink()


def read_level(folder: Path) -> Found:
    """A level that was finished; its longer arrays are mapped, not read."""
    told = fields.checked(fields.read(folder / LEVEL), dict, name="the whole", where=folder)
    arrays = [np.load(folder / f"{n}.npy", mmap_mode="r") for n in ("assignment", "distances")]
    centers_KD = np.load(folder / "centers.npy")
    if [told.get("clusters"), told.get("members")] != [len(centers_KD), len(arrays[0])]:
        raise ValueError(f"{folder}: its arrays are not those of {LEVEL}; remove the folder.")
    return Found(centers_KD, *arrays)
