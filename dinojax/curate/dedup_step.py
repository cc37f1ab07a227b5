"""The step dedup: thresholds, pairs, who stays, and why the others go."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dinojax.curate import duplicates
from dinojax.curate.assign import assign
from dinojax.curate.calibrate import calibrate
from dinojax.curate.embed import embedder, ids_of
from dinojax.curate.hashes import numbers
from dinojax.curate.pool import INDEX, CenteredRows, Pool
from dinojax.curate.recipe import CALIBRATE
from dinojax.curate.work import (
    Work,
    backbone_of,
    begin,
    embedded,
    finish,
    result_of,
    save,
    source_at,
)
from dinojax.data import fields
from dinojax.distributed import process_group
from dinojax.files.drafts import write_json, write_text


def dedup_step(work: Work) -> None:
    """kept.npy and survivor.npy of the pool's rows; dropped.csv for people."""
    asked, folder = work.recipe.dedup, work.out / "dedup"
    pool, own = embedded(work.embeddings)
    check_weights(work, pool)
    benchmarks = {name: embedded(work.others("benchmark", name)) for name in asked.benchmarks}
    inputs = {"embeddings": own} | {f"benchmark {n}": d for n, (_, d) in benchmarks.items()}
    step = begin(folder, work.settings("dedup"), inputs, anew=work.anew)
    if step.result is None:
        threshold, radius = _thresholds(work, pool, folder)
        result = _deduplicate(
            work, pool, {name: rows for name, (rows, _) in benchmarks.items()}, threshold, radius
        )
        finish(step, {"threshold": threshold, "hash_radius": radius, **result})
    told = result_of(folder, "dedup")
    work.say(
        f"dedup: {told['kept']:,} of {told['images']:,} images stay; {told['duplicates']:,} are "
        f"copies (cosine above {told['threshold']}, hashes within {told['hash_radius']} bits), "
        f"{told['like_benchmarks']:,} are like images of benchmarks"
    )


def check_weights(work: Work, pool: Pool) -> None:
    """Refuse benchmarks and seeds that other weights have embedded."""
    names = [work.others("benchmark", name) for name in work.recipe.dedup.benchmarks]
    names += [work.others("seeds", name) for name in work.recipe.retrieve]
    for folder in names:
        index = fields.read(folder / INDEX) if (folder / INDEX).exists() else {}
        if index and index.get("digest") != pool.index["digest"]:
            raise ValueError(
                f"{folder} holds embeddings of other weights or settings than {pool.folder}; "
                "remove it and run dinojax curate embed again."
            )


def _thresholds(work: Work, pool: Pool, folder: Path) -> tuple[float | None, int | None]:
    """(cosine, bits): as the recipe says, measured on copies where it leaves that open."""
    asked = work.recipe.dedup
    if CALIBRATE not in (asked.threshold, asked.hash_radius):
        return asked.threshold, asked.hash_radius  # type: ignore[return-value]
    path, group = folder / "calibration.json", process_group.current()
    if not group.settle("calibrated", path.exists()):
        backbone = backbone_of(work).over()
        source = source_at(work, work.recipe.pool, backbone.spec.channels, "pool")
        found = calibrate(
            embedder(backbone, work.recipe.embed.features),
            backbone,
            source,
            pool,
            num=asked.num_calibrated,
            center_D=_center(work, pool),
            index_of={name: index for index, name in enumerate(ids_of(source))},
            layout=work.layout,
        )
        if group.is_main:
            write_json(path, found.told())
        group.settle("calibration written")
    told = fields.read(path)
    threshold: Any = told["threshold"] if asked.threshold == CALIBRATE else asked.threshold
    radius: Any = told["hash_radius"] if asked.hash_radius == CALIBRATE else asked.hash_radius
    at = next(m for m in told["cosine"] if m["value"] == told["threshold"])
    work.say(
        f"calibration on altered copies: cosine above {told['threshold']} finds "
        f"{at['recall']:.1%} of them with precision of at least {at['precision']:.1%}"
    )
    return threshold, radius


def _center(work: Work, pool: Pool) -> np.ndarray:
    """The mean of the pool's rows, exact; zeros where the recipe wants none."""
    zeros_1D = np.zeros((1, pool.width))
    if not work.recipe.dedup.center:
        return zeros_1D[0]
    means_1D = assign(pool, zeros_1D, layout=work.layout).means_KD
    assert means_1D is not None
    return means_1D[0]


def _deduplicate(work, pool: Pool, benchmarks: dict[str, Pool], threshold, radius) -> dict:
    asked, folder = work.recipe.dedup, work.out / "dedup"
    center_D = _center(work, pool)
    centered = CenteredRows(pool, center_D)
    common = {"neighbors": asked.neighbors, "layout": work.layout}
    if threshold is not None:
        place = folder / "edges"
        duplicates.write_edges(place, centered, centered, threshold, same=True, **common)
    limit = asked.benchmark_threshold or threshold
    hits: dict[str, np.ndarray] = {}
    for name, rows in benchmarks.items():
        place = folder / f"hits-{name}"
        verb = f"compared with {name}"
        others = CenteredRows(rows, center_D)
        duplicates.write_edges(place, centered, others, limit, verb=verb, **common)
        like = [np.unique(edges["row"]) for edges in duplicates.read_edges(place)]
        hits[name] = np.unique(np.concatenate([*like, np.zeros(0, np.int64)]))
    hashed, cut = np.zeros(0, duplicates.EDGE), 0
    if radius is not None:
        hashes = numbers([text for texts in pool.column("phash") for text in texts])
        hashed, cut = duplicates.alike(hashes, radius)

    def blocks() -> Iterator[np.ndarray]:
        yield hashed
        if threshold is not None:
            yield from duplicates.read_edges(folder / "edges")

    pixels = np.array([n for part in pool.column("pixels") for n in part], np.int64)
    all_hits = np.unique(np.concatenate([*hits.values(), np.zeros(0, np.int64)]))
    found = duplicates.deduplicate(len(pool), blocks, hits=all_hits, keep=asked.keep, pixels=pixels)
    if process_group.current().is_main:
        save(folder / "kept.npy", found.kept)
        save(folder / "survivor.npy", found.survivor)
        _write_dropped(folder / "dropped.csv", pool, found)
    gone = int((found.survivor < 0).sum())
    return {
        "images": len(pool),
        "kept": len(found.kept),
        "duplicates": len(pool) - len(found.kept) - gone,
        "like_benchmarks": gone,
        "hits": {name: len(rows) for name, rows in hits.items()},
        "hash_pairs": len(hashed),
        "hash_groups_cut": cut,
    }


def _write_dropped(path: Path, pool: Pool, found: duplicates.Deduplicated) -> None:
    """A table of the images that go: the id, why, and the id of the one that stays."""
    rows = np.flatnonzero(found.survivor != np.arange(len(pool)))
    stays = found.survivor[rows]
    wanted = np.unique(stays[stays >= 0])
    names = dict(zip(wanted.tolist(), pool.ids(wanted), strict=True))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["id", "why", "stays"])
    for name, other in zip(pool.ids(rows), stays.tolist(), strict=True):
        why = "copy" if other >= 0 else "like a benchmark"
        table.writerow([name, why, names.get(other, "")])
    write_text(path, text.getvalue())
