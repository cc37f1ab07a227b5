"""A curation's programs compiled for one target at the shapes of its pool.

    python -m dinojax.plan.curation '{"target": "cpu:8", "images": 100000, "width": 384,
        "overrides": ["kmeans.clusters=[1000]"]}'

Prints as plan/compile.py does. Every image is taken to stay, so that clustering has all of them.
"""

import math
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.curate import recipe as recipes
from dinojax.curate.embed import features_of
from dinojax.curate.hierarchy import Level, check_levels
from dinojax.curate.recipe import Recipe
from dinojax.curate.similar import QUERIES, TILE
from dinojax.curate.similar import program_of as similar_program
from dinojax.curate.steps import levels_of
from dinojax.plan import compile, compiler_output, curation_form, networks, targets, works
from dinojax.plan.clustering import LevelWorks, pass_works, platform_of
from dinojax.plan.works import Form, Work, num_hosts, shaped
from dinojax.sharding import mesh
from dinojax.sharding.mesh import Layout

STORED = {"float16": jnp.float16, "bfloat16": jnp.float32, "float32": jnp.float32}


def plan(
    *,
    target: str,
    images: int,
    width: int,
    overrides: list[str],
    model: str | None = None,
    size: int = 256,
) -> dict[str, Any]:
    """All that is known of a curation before it runs; {"rows": works.plan, ...}.

    overrides: of a recipe of `dinojax curate`. model: a recipe of `train` whose network embeds,
    None = the vision transformer of that width. size: pixels of its images.
    Raises ValueError for a target, recipe, network or levels that cannot be.
    """
    machine = targets.parse(target)
    asked = recipes.resolve({"weights": "-", "pool": "-"}, overrides, where="plan curate")
    levels = levels_of(asked)
    check_levels(levels, images)
    model = model or _named(width)
    layout = mesh.make("dp", targets.devices(machine))
    rows = works.plan([_embed(asked, layout, images, width, model, size)], machine)
    with jax.enable_x64(True):  # as curate.assign.working
        rows += works.plan(list(_dedup(asked, layout, images, width)), machine)
        below, dtype = images, STORED[asked.embed.dtype]
        for number, level in enumerate(levels, start=1):
            made = LevelWorks(asked, level, layout, number, below, width, np.dtype(dtype))
            rows += works.plan(list(made.works()), machine)
            below, dtype = level.clusters, np.float64
        rows += works.plan([_sampling(layout, images, levels)], machine)
    return {
        "target": target,
        "images": images,
        "width": width,
        "model": model,
        "levels": [level.clusters for level in levels],
        "splits": [level.split for level in levels],
        "devices": machine.num_devices,
        "hosts": num_hosts(layout),
        "usable": None if math.isinf(machine.chip.usable) else machine.chip.usable,
        "rows": rows,
        "note": works.NOTE,
        "versions": compiler_output.versions(),
    }


def _named(width: int) -> str:
    if width not in networks.BY_WIDTH:
        known = ", ".join(map(str, networks.BY_WIDTH))
        raise ValueError(
            f"--width {width}: no network is known by that width (those of {known} are); name the "
            "recipe of one with --model."
        )
    return networks.BY_WIDTH[width]


def _embed(asked: Recipe, layout: Layout, images: int, width: int, model: str, size: int) -> Work:
    """A host's batches on its own devices."""
    first = layout.mesh.devices.flat[0].process_index
    own = [d for d in layout.mesh.devices.flat if d.process_index == first]
    local = mesh.make("dp", own)
    spec: Any = networks.spec_of(model)
    if (found := networks.width_of(spec) * (1 + (asked.embed.features == "both"))) != width:
        raise ValueError(
            f"--width {width}: the embed.features={asked.embed.features} of {model} have {found}; "
            f"give --width {found}, or another --model."
        )
    each = -(-asked.embed.batch_size // len(own))
    params = networks.abstract_params(spec, local)
    shape = (each * len(own), size, size, spec.channels)
    pixels = shaped(local, shape, jnp.float32, "image")

    def features(params, images_BHWC):
        return features_of(spec, params, images_BHWC, asked.embed.features)

    num = sum(x.size for x in jax.tree.leaves(params))
    hosts = num_hosts(layout)
    shape_of = {"size": size, "images": each, "devices": len(own), "params": num}
    form = curation_form.forward(spec, **shape_of, platform=platform_of(layout))
    runs = math.ceil(math.ceil(images / hosts) / asked.embed.batch_size)
    what = f"{model}, {size} px, {each} images a device"
    return Work(
        *("embed", what, runs, local, jax.jit(features), (params, pixels), form),
        copied=runs * each * size**2 * spec.channels * 4,
    )


def _dedup(asked: Recipe, layout: Layout, images: int, width: int) -> Iterator[Work]:
    """The mean of all rows, then every block of queries with every tile of the pool."""
    stored, devices = np.dtype(STORED[asked.embed.dtype]), layout.mesh.size
    if asked.dedup.center:
        names = "dedup", "mean of all rows"
        share = 1 / num_hosts(layout)
        yield from pass_works(names, layout, images, width, 1, stored, passes=1, times_read=share)
    queries = min(QUERIES, max(8, 1 << max(images - 1, 1).bit_length()))
    tile = min(TILE, max(64, 1 << (images - 1).bit_length()))
    most = min(asked.dedup.neighbors + 8, images, tile)
    blocks, tiles = -(-images // (queries * devices)), -(-images // tile)
    args = (
        shaped(layout, (queries * devices, width), jnp.float32, "image"),
        shaped(layout, (queries * devices,), jnp.int64, "image"),
        shaped(layout, (tile, width), jnp.float32),
        shaped(layout, (), jnp.int64),
        shaped(layout, (), jnp.float32),
    )
    shape = {"queries": queries, "tile": tile, "width": width, "neighbors": most}
    platform = platform_of(layout)
    form = curation_form.similar(**shape, devices=devices, platform=platform)
    program: Any = similar_program(most, images)
    yield Work(
        "dedup",
        f"{blocks:,} blocks of queries, {tiles:,} tiles of the pool",
        *(blocks * tiles, layout, program.__wrapped__, args, form),
        highest=True,
        read=float(blocks) * images * width * stored.itemsize,
        copied=float(blocks) * tiles * tile * width * 4,
        host=8.0 * (queries * devices + tile) * width,
    )


def _sampling(layout: Layout, images: int, levels: list[Level]) -> Work:
    """On the host alone: members of every cluster in order, and their numbers and distances."""
    members = [images, *(level.clusters for level in levels)][: len(levels)]
    held = sum(4.0 * num + 8 * num + 3 * 8 * num for num in members)
    what = f"water filling over {sum(level.clusters for level in levels):,} clusters"
    return Work("sample", what, 1, layout, None, (), Form(0.0, 0.0), host=held)


if __name__ == "__main__":
    compile.main(sys.argv[1], plan)
