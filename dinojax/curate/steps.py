"""The steps of a curation, each on what the ones before left in the folder of the curation."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dinojax.curate import retrieve
from dinojax.curate.allocate import sample
from dinojax.curate.dedup_step import check_weights, dedup_step
from dinojax.curate.embed import embed, ids_of
from dinojax.curate.hierarchy import Found, Level, Settings, check_levels, hierarchy
from dinojax.curate.kmeans import seed_of
from dinojax.curate.lists import SETTING, setting, write_list, write_recipe
from dinojax.curate.pool import Pool, Rows, SomeRows
from dinojax.curate.recipe import Recipe, Seeds
from dinojax.curate.report import write_report
from dinojax.curate.work import (
    Work,
    backbone_of,
    begin,
    digest,
    digest_of_file,
    embedded,
    finish,
    read_levels,
    result_of,
    save,
    source_at,
    tree_of,
)
from dinojax.data.mixture import Mixture, Part
from dinojax.data.sources import kind_of, open_at
from dinojax.distributed import process_group
from dinojax.files.drafts import write_text

RECIPE = "recipe.py"  # what `train` takes


def embed_step(work: Work) -> None:
    """Embeddings of the pool, of benchmarks and of seeds; only of images that have none yet."""
    backbone = backbone_of(work)
    recipe = work.recipe
    places = {"pool": (recipe.pool, work.embeddings)}
    for name, path in recipe.dedup.benchmarks.items():
        places[f"dedup.benchmarks.{name}"] = path, work.others("benchmark", name)
    for name, seeds in recipe.retrieve.items():
        places[f"retrieve.{name}.path"] = seeds.path, work.others("seeds", name)
    sources = {
        key: source_at(work, path, backbone.spec.channels, key) for key, (path, _) in places.items()
    }  # all of them, so that what is wrong is told before any work
    for key, source in sources.items():
        for note in source.notes:
            work.say(f"{key}: {note}")
        (work.out / "embed").mkdir(parents=True, exist_ok=True)
        path, folder = places[key]
        num = embed(backbone, source, folder, recipe.embed, origin=recipe.weights)
        work.say(f"embed: {num:,} of {len(source):,} images of {path} in {folder}")


def left(work: Work) -> tuple[Pool, Rows, np.ndarray, str]:
    """(pool, rows that deduplication left, their numbers in the pool, a digest of them)."""
    pool, own = embedded(work.embeddings)
    result_of(work.out / "dedup", "dedup")
    path = work.out / "dedup" / "kept.npy"
    kept = np.load(path)
    rows: Rows = pool if len(kept) == len(pool) else SomeRows(pool, kept)
    return pool, rows, kept, digest(own, digest_of_file(path))


def levels_of(recipe: Recipe) -> list[Level]:
    asked = recipe.kmeans
    sizes = asked.sizes or [1] * len(asked.clusters)
    splits = asked.splits or [0] * len(asked.clusters)
    return [Level(*level) for level in zip(asked.clusters, sizes, splits, strict=True)]


def kmeans_step(work: Work) -> None:
    """level1, level2 and so on: centres, and the cluster of every member."""
    asked, folder = work.recipe.kmeans, work.out / "kmeans"
    if not asked.clusters:
        return
    _, rows, _, own = left(work)
    levels = levels_of(work.recipe)
    check_levels(levels, len(rows))  # before what is there may be removed
    step = begin(folder, work.settings("kmeans"), {"deduplicated rows": own}, anew=work.anew)
    if step.result is None:
        names = ("rounds", "strategy", "iterations", "metric", "seed")
        settings = Settings(**{name: getattr(asked, name) for name in names})
        found = hierarchy(rows, levels, settings, layout=work.layout, folder=folder, quiet=False)
        finish(step, {"levels": [_level_told(level) for level in found]})
    for number, told in enumerate(result_of(folder, "kmeans")["levels"], start=1):
        work.say(f"kmeans: level {number}: {told['clusters']:,} clusters, {told['empty']:,} empty")


def _level_told(level: Found) -> dict[str, Any]:
    counts = np.bincount(level.assignment, minlength=len(level.centers_KD))
    return {
        "clusters": len(counts),
        "empty": int((counts == 0).sum()),
        "mean_squared_distance": float(np.mean(level.distances)),
    }


def _levels_digest(work: Work, own: str) -> str:
    folders = [
        work.out / "kmeans" / f"level{n + 1}" for n in range(len(work.recipe.kmeans.clusters))
    ]
    arrays = ("assignment.npy", "distances.npy", "centers.npy")
    return digest(own, [digest_of_file(f / name) for f in folders for name in arrays])


def sample_step(work: Work) -> None:
    """chosen.npy: rows of the pool that are balanced over the hierarchy."""
    asked, folder = work.recipe.sample, work.out / "sample"
    if not asked.target:
        return
    _, rows, kept, own = left(work)
    levels = read_levels(work)
    most = len(rows) * asked.multiplier
    if asked.target > most:
        raise ValueError(
            f"sample.target={asked.target:,} is more than the {len(rows):,} images that are left, "
            f"each taken at most sample.multiplier={asked.multiplier} times; give at most {most:,}."
        )
    inputs = {"levels": _levels_digest(work, own)}
    step = begin(folder, work.settings("sample"), inputs, anew=work.anew)
    if step.result is None:
        rng = np.random.default_rng(seed_of(asked.seed, "sample"))
        tree = tree_of(levels)
        found = sample(
            tree, asked.target, strategy=asked.strategy, multiplier=asked.multiplier, rng=rng
        )
        chosen = np.sort(kept[found])
        if process_group.current().is_main:
            save(folder / "chosen.npy", chosen)
        finish(step, {"images": len(chosen), "distinct": len(np.unique(chosen))})
    work.say(f"sample: {result_of(folder, 'sample')['images']:,} images")


def retrieve_step(work: Work) -> None:
    """NAME.npy for every seed set: rows of the pool that are like it."""
    folder = work.out / "retrieve"
    if not work.recipe.retrieve:
        return
    pool, rows, kept, own = left(work)
    check_weights(work, pool)
    seeds = {name: embedded(work.others("seeds", name)) for name in work.recipe.retrieve}
    inputs = {"deduplicated rows": own} | {f"seeds {n}": d for n, (_, d) in seeds.items()}
    if any(asked.by == "cluster" for asked in work.recipe.retrieve.values()):
        inputs["levels"] = _levels_digest(work, own)
    asked_of = {name: dataclasses.asdict(asked) for name, asked in work.recipe.retrieve.items()}
    step = begin(folder, asked_of, inputs, anew=work.anew)
    if step.result is None:
        told = {}
        for name, asked in work.recipe.retrieve.items():
            found = kept[_retrieved(work, asked, seeds[name][0], rows)]
            if process_group.current().is_main:
                save(folder / f"{name}.npy", found)
            told[name] = {"seeds": len(seeds[name][0]), "images": len(found)}
        finish(step, told)
    for name, told in result_of(folder, "retrieve").items():
        work.say(f"retrieve: {told['images']:,} images like the {told['seeds']:,} of {name}")


def _retrieved(work: Work, asked: Seeds, seeds: Rows, rows: Rows) -> np.ndarray:
    if asked.by == "sample":
        return retrieve.by_sample(seeds, rows, asked.neighbors, layout=work.layout)
    level = read_levels(work)[0]
    return retrieve.by_cluster(
        seeds,
        level.centers_KD,
        np.asarray(level.assignment),
        seed=asked.seed,
        more_than=asked.more_than,
        per_cluster=asked.per_cluster,
        most=asked.most,
        layout=work.layout,
    )


def mixture_step(work: Work) -> None:
    """Lists of the chosen images, and recipe.py, which `train` takes."""
    asked, folder = work.recipe.mixture, work.out / "mixture"
    lists = {"clustered": work.out / "sample" / "chosen.npy"} if work.recipe.sample.target else {}
    lists |= {name: work.out / "retrieve" / f"{name}.npy" for name in work.recipe.retrieve}
    if not lists:
        lists = {"clustered": work.out / "dedup" / "kept.npy"}
    inputs = {name: digest_of_file(path) for name, path in lists.items()}
    step = begin(folder, work.settings("mixture"), inputs, anew=work.anew)
    if step.result is None:
        channels = backbone_of(work).spec.channels
        source = source_at(work, work.recipe.pool, channels, "pool")
        index_of = {name: index for index, name in enumerate(ids_of(source))}
        pool, _ = embedded(work.embeddings)
        rows, parts = [], []
        for name, path in lists.items():
            weight, alone = asked.weights.get(name, 1.0), asked.alone.get(name, 0.0)
            chosen = np.load(path)
            indexes = np.array([index_of[i] for i in pool.ids(chosen)], np.int64)
            kind, written = write_list(source, indexes, folder / name)
            rows.append((name, kind, str(written.resolve()), float(weight), float(alone)))
        for name, given in asked.sources.items():
            there = str(Path(given.path).resolve())
            rows.append((name, kind_of(given.path), there, given.weight, given.alone))
        for name, _, at, weight, alone in rows:
            opened = open_at(at, channels=channels, key=f"mixture.{name}")
            parts.append(Part(name, opened, weight, alone))
        Mixture(tuple(parts)).check()  # what `train` would say
        if process_group.current().is_main:
            write_text(folder / SETTING, f'--set "{setting(rows)}"\n')
            if asked.recipe:
                write_recipe(folder / RECIPE, asked.recipe, rows)
        finish(step, {"rows": [list(row) for row in rows]})
    place = folder / RECIPE if asked.recipe else folder / SETTING
    work.say(f"mixture: {place}")
    if asked.recipe:
        work.say(f"next: dinojax train --config {place} --run RUN")


def report_step(work: Work) -> None:
    """report.html, of what there is."""
    if process_group.current().is_main:
        path = write_report(work)
        work.say(f"report: {path}")


STEPS: dict[str, Callable[[Work], None]] = {
    "embed": embed_step,
    "dedup": dedup_step,
    "kmeans": kmeans_step,
    "sample": sample_step,
    "retrieve": retrieve_step,
    "mixture": mixture_step,
    "report": report_step,
}
