"""Which rows of a batch a process of a run of several has to give."""

import jax
import numpy as np

from dinojax import mesh
from dinojax.mesh import Layout


def host_share(layout: Layout, batch_size: int) -> tuple[int, int]:
    """(host_index, num_hosts): which of how many equal parts of a batch this process loads.

    Processes whose devices hold the same images, as where tensor parallelism spans them, load the
    same part. Raises ValueError if a process has no device of the layout, or its rows are no part.
    """
    if layout.mesh.is_multi_process or _is_foreign(layout):
        rows = _rows(layout, batch_size)
        if not rows or rows.start % len(rows) or batch_size % len(rows):
            raise ValueError(
                f"mesh.devices={layout.mesh.size}: the devices of process {jax.process_index()} "
                f"hold {f'images {rows.start} to {rows.stop - 1}' if rows else 'none'} of the "
                f"{batch_size} of a batch, which is no equal part; take all devices of every "
                "process (mesh.devices=None), the same number in each."
            )
        return rows.start // len(rows), batch_size // len(rows)
    return 0, 1


def own_rows(batch_size: int) -> range:
    """Rows of a batch, filled up to divide over the active layout, that this process has to read.

    All of them without a layout.
    """
    layout = mesh.active()
    if layout is None or not layout.mesh.is_multi_process:
        return range(batch_size)
    return _rows(layout, batch_size + -batch_size % layout.num_shards)


def from_own_rows(layout: Layout, rows: np.ndarray) -> np.ndarray | jax.Array:
    """A batch on the devices of all processes, of which each has filled its own rows alone."""
    if not layout.mesh.is_multi_process:
        return rows
    place = layout.sharding("image")
    return jax.make_array_from_callback(rows.shape, place, lambda index: rows[index])


def _is_foreign(layout: Layout) -> bool:
    """Whether this process has no device of the layout."""
    return jax.process_index() not in {d.process_index for d in layout.mesh.devices.flat}


def _rows(layout: Layout, batch_size: int) -> range:
    """Rows on the devices of this process; empty if they do not lie side by side."""
    held = layout.sharding("image").addressable_devices_indices_map((batch_size,)).values()
    parts = {index[0].indices(batch_size)[:2] for index in held if index is not None}
    if not parts:
        return range(0)
    first, last = min(parts)[0], max(stop for _, stop in parts)
    whole = sum(stop - start for start, stop in parts) == last - first
    return range(first, last) if whole else range(0)
