"""Which rows of a batch the devices of a process hold, and batches made of every process's rows."""

import jax
import numpy as np

from dinojax import mesh
from dinojax.mesh import Layout
from dinojax.topology import process_rows


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
