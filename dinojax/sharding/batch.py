"""Batches over the devices of a mesh: micro-batches, groups, and the rows each process has."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from dinojax.sharding import mesh
from dinojax.sharding.axes import (
    divisors,
    neighbours,
)
from dinojax.sharding.mesh import Layout, _check_leading, active
from dinojax.sharding.topology import process_rows


def split_batch(tree: Any, num_parts: int) -> Any:
    """[B, ...] -> [num_parts, B / num_parts, ...] micro-batches, moving nothing between devices.

    Part i holds the i-th slice of every device's rows, so its rows depend on the number of
    devices; split whatever belongs to the rows (ids, groups) with them. Arrays may lead with
    images or with groups. Raises ValueError if a leading axis does not divide.
    """
    layout = active()
    _check_leading(tree, num_parts * (layout.num_shards if layout else 1))

    def split(x):
        return x.reshape(num_parts, x.shape[0] // num_parts, *x.shape[1:])

    return _map_rows(split, tree, out_of="rows", into="parts")


def merge_batch(tree: Any) -> Any:
    """[parts, rows, ...] -> [parts * rows, ...], the inverse of split_batch."""

    def merge(x):
        return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])

    return _map_rows(merge, tree, out_of="parts", into="rows")


def global_batch(layout: Layout, host_batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """The arrays of all hosts as one batch on the devices; each gives its own rows."""
    place = layout.sharding("image")
    return {
        name: jax.make_array_from_process_local_data(place, np.asarray(rows))
        for name, rows in host_batch.items()
    }


def images_per_shard(layout: Layout, batch_size: int) -> int:
    """Images of a batch on one data shard. Raises ValueError if they do not divide."""
    if batch_size % layout.num_shards:
        raise ValueError(
            f"batch_size={batch_size} does not divide over {layout.num_shards} devices; use "
            f"{neighbours(batch_size, layout.num_shards)}, or mesh.devices in "
            f"{divisors(batch_size)}."
        )
    return batch_size // layout.num_shards


def check_groups(layout: Layout, *, batch_size: int, group_size: int, accumulate: int) -> None:
    """Groups never straddle devices or micro-batches: raises ValueError naming valid sizes."""
    images = images_per_shard(layout, batch_size)
    if images % accumulate:
        raise ValueError(
            f"accumulate={accumulate} does not divide the {images} images on one device "
            f"(batch_size={batch_size} over {layout.num_shards}); use one of {divisors(images)}."
        )
    images //= accumulate
    if images % group_size:
        raise ValueError(
            f"group_size={group_size} does not divide the {images} images that one device has in "
            f"one micro-batch (batch_size={batch_size} over {layout.num_shards} devices and "
            f"accumulate={accumulate}); use one of {divisors(images)}, or a batch_size that is a "
            f"multiple of {group_size * layout.num_shards * accumulate}."
        )


def _map_rows(fn: Callable, tree: Any, *, out_of: str, into: str) -> Any:
    if (layout := active()) is not None:
        specs = getattr(layout, out_of), getattr(layout, into)
        fn = jax.shard_map(fn, mesh=layout.mesh, in_specs=specs[0], out_specs=specs[1])
    return jax.tree.map(fn, tree)


def loaded_rows(layout: Layout, batch_size: int) -> np.ndarray:
    """Rows of a batch that this process loads, in order; all processes load equally many.

    Processes whose devices hold the same images, as where tensor parallelism spans them, load the
    same rows. Raises ValueError if a process has no device of the layout, or more than another.
    """
    parts = [_rows(layout, batch_size, process) for process in range(jax.process_count())]
    own = jax.process_index()
    if any(len(rows) != len(parts[0]) or not len(rows) for rows in parts):
        raise ValueError(
            f"mesh.devices={layout.mesh.size}: the devices of process {own} hold "
            f"{len(parts[own])} of the {batch_size} images of a batch, those of all processes "
            f"{[len(rows) for rows in parts]}, which is no equal part each; take all devices of "
            "every process (mesh.devices=None), the same number in each."
        )
    return parts[own]


def own_rows(batch_size: int) -> list[int]:
    """Rows of a batch, filled up to divide over the active layout, that this process has to read.

    All of them without a layout.
    """
    layout = mesh.active()
    if layout is None or not layout.mesh.is_multi_process:
        return list(range(batch_size))
    filled = batch_size + -batch_size % layout.num_shards
    return _rows(layout, filled, jax.process_index()).tolist()


def from_own_rows(layout: Layout, rows: np.ndarray) -> np.ndarray | jax.Array:
    """A batch on the devices of all processes, of which each has filled its own rows alone."""
    if not layout.mesh.is_multi_process:
        return rows
    place = layout.sharding("image")
    return jax.make_array_from_callback(rows.shape, place, lambda index: rows[index])


def _rows(layout: Layout, num_rows: int, process: int) -> np.ndarray:
    if process not in {device.process_index for device in layout.mesh.devices.flat}:
        return np.arange(0)
    return process_rows(layout.sharding("image"), num_rows, process)
