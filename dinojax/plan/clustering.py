"""The clustering of a curation as programs that run many times: levels, and passes over rows."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from dinojax.curate.assign_program import device_rows, program_of, state_shapes, total_program
from dinojax.curate.hierarchy import Level
from dinojax.curate.kmeans import GREEDY_CENTERS, init_rows, nearer, num_candidates
from dinojax.curate.recipe import Recipe
from dinojax.plan import curation_form
from dinojax.plan.works import Form, Work, num_hosts, shaped
from dinojax.sharding import mesh
from dinojax.sharding.mesh import Layout


def platform_of(layout: Layout) -> str:
    """Of its devices: cpu, gpu or tpu."""
    name = layout.mesh.devices.flat[0].platform
    return {"cuda": "gpu"}.get(name, name)


def pass_works(
    names: tuple[str, str],
    layout: Layout,
    num_rows: int,
    width: int,
    centers: int,
    dtype: np.dtype,
    *,
    passes: float,
    sums: bool = True,
    times_read: float = 1.0,
) -> Iterator[Work]:
    """Every row to its nearest centre, and with sums the means of all devices.

    times_read: how often a pass reads all rows from storage, into one host.
    """
    devices, platform = layout.mesh.size, platform_of(layout)
    each = device_rows(num_rows, devices)
    runs = -(-num_rows // (each * devices))
    state = tuple(
        shaped(layout, shape, jnp.int64, "image")
        for shape in state_shapes(devices, centers, width if sums else None)
    )
    args = (
        shaped(layout, (each * devices, width), dtype, "image"),
        shaped(layout, (each * devices,), jnp.bool_, "image"),
        shaped(layout, (centers, width), jnp.float32),
        shaped(layout, (centers,), jnp.float32),
        shaped(layout, (2,), jnp.float32),
        state,
    )
    own: dict[str, Any] = {
        "width": width,
        "centers": centers,
        "devices": devices,
        "platform": platform,
    }
    form = curation_form.assign(rows=each, itemsize=dtype.itemsize, sums=sums, **own)
    shift = (24 if dtype == np.float16 else 40) if sums else None
    program: Any = program_of(shift, platform)
    one_pass = num_rows * width * dtype.itemsize
    # The centres in float64 and float32, and with sums these, their means and corrections.
    host = centers * width * (12.0 + 24.0 * sums) + 4.0 * num_rows
    yield Work(
        *(*names, passes * runs, layout, program.__wrapped__, args, form),
        highest=True,
        read=passes * times_read * one_pass,
        copied=passes * (one_pass / devices + 4.0 * centers * width),
        host=host,
    )
    if sums and devices > 1:
        program = total_program(layout)
        form = curation_form.total(**own)
        what = "sums of all devices"
        yield Work(names[0], what, passes, layout, program.__wrapped__, state, form, host=host)


@dataclasses.dataclass(frozen=True)
class LevelWorks:
    """A level of the hierarchy: its rows are those of the pool, or the centres of the one below."""

    asked: Recipe
    level: Level
    layout: Layout
    number: int
    num_rows: int
    width: int
    dtype: np.dtype

    def works(self) -> Iterator[Work]:
        level, kmeans = self.level, self.asked.kmeans
        share = (self.number == 1) / num_hosts(
            self.layout
        )  # of the rows, which others have on disk
        if level.split:
            yield from self._clustering("split", self.num_rows, level.split, 1, share)
            yield self._gathered()
            rows, clusters = (-(-num // level.split) for num in (self.num_rows, level.clusters))
            yield from self._clustering("parts", rows, clusters, level.split, 0)
        else:
            yield from self._clustering("", self.num_rows, level.clusters, 1, share)
        rounds = kmeans.rounds if level.size > 1 else 0
        some = min(self.num_rows, level.size * level.clusters)
        if rounds:
            yield from self._clustering("resampled", some, level.clusters, rounds, 0)
        # Distances to the centres are computed on the hosts, each of all rows.
        times, both = 1 + rounds, share + (self.number == 1)
        yield from self._passes("assign", self.num_rows, level.clusters, times, both, sums=False)

    def _gathered(self) -> Work:
        """The rows of every part, for which files are read whole."""
        split, row = self.level.split, self.width * self.dtype.itemsize
        read = float(split) * self.num_rows * row * (self.number == 1)
        what, form = f"rows of {split:,} parts gathered", Form(0.0, 0.0)
        held = self.num_rows / split * row
        return Work(self._step, what, 1, self.layout, None, (), form, read=read, host=held)

    def _clustering(
        self, name: str, rows: int, centers: int, times: int, share: float
    ) -> Iterator[Work]:
        """First centres, then one more pass than iterations, of so many clusterings."""
        words = f"{name}, " * bool(name)
        if centers <= GREEDY_CENTERS:
            among, candidates = min(rows, init_rows(centers)), num_candidates(centers)
            yield self._first(
                f"{words}k-means++ of {centers:,}", among, candidates, times * centers
            )
        else:
            form, what = Form(0.0, 0.0), f"{words}{centers:,} centres drawn"
            held = float(centers * self.width * (8 + self.dtype.itemsize))
            yield Work(self._step, what, times, self.layout, None, (), form, host=held)
        passes = times * (1 + self.asked.kmeans.iterations)
        yield from self._passes(f"{words}Lloyd", rows, centers, passes, share, sums=True)

    @property
    def _step(self) -> str:
        return f"k-means {self.number}"

    def _passes(
        self, what: str, rows: int, centers: int, passes: int, times_read: float, *, sums: bool
    ) -> Iterator[Work]:
        told = f"{what}: {rows:,} rows, {centers:,} centres"
        return pass_works(
            *((self._step, told), self.layout, rows, self.width, centers, self.dtype),
            passes=passes,
            sums=sums,
            times_read=times_read,
        )

    def _first(self, what: str, among: int, candidates: int, runs: int) -> Work:
        """On one device, whatever others there are."""
        one = mesh.make("dp", [self.layout.mesh.devices.flat[0]])
        filled = max(64, 1 << (among - 1).bit_length())
        args = (
            shaped(one, (filled, self.width), jnp.float32),
            shaped(one, (filled,), jnp.float32),
            shaped(one, (candidates,), jnp.int64),
            shaped(one, (filled,), jnp.float32),
        )
        form = curation_form.nearer(
            rows=filled, width=self.width, candidates=candidates, platform=platform_of(one)
        )
        back = 4.0 * filled * (candidates + 1)
        return Work(
            *(self._step, what, runs, one, nearer, args, form),
            highest=True,
            copied=runs * back,
            host=4.0 * filled * self.width,
        )
