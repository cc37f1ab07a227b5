"""Where rows and prototypes are on the mesh, for code that works on the part of one device.

Rows lead with images; a kernel [Z, K] is stored over the device axes of "prototype". While it is
worked with, K stays sharded over the tensor axis and is whole along the others.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from dinojax.sharding import mesh
from dinojax.sharding.axes import device_axes
from dinojax.sharding.mesh import Layout


@dataclasses.dataclass(frozen=True)
class Place:
    """The active layout as blocks.py needs it; without one, everything is on one device."""

    layout: Layout | None = None

    @property
    def column_axes(self) -> tuple[str, ...]:
        """Device axes that prototypes stay sharded over."""
        return tuple(axis for axis in self._stored if axis == "tensor")

    @property
    def gathered_axes(self) -> tuple[str, ...]:
        """Device axes that prototypes are stored over and gathered from."""
        return tuple(axis for axis in self._stored if axis != "tensor")

    @property
    def row_axes(self) -> tuple[str, ...]:
        """Device axes along which devices have other rows, after `all_rows`."""
        axes = () if self.layout is None else self._used(self.layout.data_axes)
        return tuple(axis for axis in axes if axis not in self.column_axes)

    @property
    def _stored(self) -> tuple[str, ...]:
        if self.layout is None:
            return ()
        return self._used(device_axes(self.layout.strategy, "prototype"))

    def _used(self, axes: tuple[str, ...]) -> tuple[str, ...]:
        """Those with more than one device: sums over one device would still be sent."""
        assert self.layout is not None
        return tuple(axis for axis in axes if self.layout.mesh.shape[axis] > 1)

    def run(self, function: Callable, args: tuple, *, takes, gives) -> Any:
        """function(*args) on every device with its own part of each argument.

        takes, gives: rows | kernel | columns | scalar for each argument and result.
        """
        if self.layout is None:
            return function(*args)
        specs = {
            "rows": self.layout.rows,
            "kernel": self.layout.sharding(None, "prototype").spec,
            "columns": PartitionSpec(self.column_axes or None),
            "scalar": PartitionSpec(),
        }
        return jax.shard_map(
            function,
            mesh=self.layout.mesh,
            in_specs=tuple(specs[name] for name in takes),
            out_specs=tuple(specs[name] for name in gives),
            check_vma=False,
        )(*args)

    # -- the rest is called within `run` -----------------------------------------------------

    def all_rows(self, tree: Any) -> Any:
        """The rows of the devices that share these prototypes' other parts."""
        if not self.column_axes:
            return tree
        return jax.tree.map(
            lambda x: jax.lax.all_gather(x, self.column_axes, axis=0, tiled=True), tree
        )

    def own_rows(self, tree: Any) -> Any:
        """The inverse: of all those rows, this device's."""
        if not self.column_axes:
            return tree
        number, parts = jax.lax.axis_index(self.column_axes), jax.lax.axis_size(self.column_axes)

        def own(x):
            size = x.shape[0] // parts
            return jax.lax.dynamic_slice_in_dim(x, number * size, size, 0)

        return jax.tree.map(own, tree)

    def stored_rows(self, grad):
        """The sum over prototypes of all devices, of this device's rows."""
        if not self.column_axes:
            return grad
        return jax.lax.psum_scatter(grad, self.column_axes, scatter_dimension=0, tiled=True)

    @property
    def num_gathered(self) -> int:
        """Devices that prototypes are gathered from."""
        return (
            math.prod(self.layout.mesh.shape[axis] for axis in self.gathered_axes)
            if self.layout
            else 1
        )

    def gather(self, kernel_ZK):
        """All prototypes that this device works on, or the same columns of every device's part."""
        if not self.gathered_axes:
            return kernel_ZK
        return jax.lax.all_gather(kernel_ZK, self.gathered_axes, axis=1, tiled=True)

    def stored_kernel(self, grad_ZK):
        """The sum over rows of all devices, of the prototypes that this device stores."""
        if self.gathered_axes:
            grad_ZK = jax.lax.psum_scatter(
                grad_ZK, self.gathered_axes, scatter_dimension=1, tiled=True
            )
        others = tuple(axis for axis in self.row_axes if axis not in self.gathered_axes)
        return jax.lax.psum(grad_ZK, others) if others else grad_ZK

    def own_columns(self, values_K):
        """Of values for all prototypes, those this device works on."""
        if not self.column_axes:
            return values_K
        size = values_K.shape[0] // jax.lax.axis_size(self.column_axes)
        start = jax.lax.axis_index(self.column_axes) * size
        return jax.lax.dynamic_slice_in_dim(values_K, start, size, 0)

    def sum_columns(self, x):
        """The sum over prototypes of all devices."""
        return jax.lax.psum(x, self.column_axes) if self.column_axes else x

    def log_sum_rows(self, x_K):
        """log sum exp over the rows of all devices."""
        if not self.row_axes:
            return x_K
        most_K = jax.lax.pmax(x_K, self.row_axes)
        return most_K + jnp.log(jax.lax.psum(jnp.exp(x_K - most_K), self.row_axes))

    def largest_column(self, largest, first, num_columns: int):
        """(largest score, its prototype) over prototypes of all devices; of equals the first.

        num_columns: prototypes of one device, among which `first` counts.
        """
        if not self.column_axes:
            return largest, first
        first += jax.lax.axis_index(self.column_axes) * num_columns
        most = jax.lax.pmax(largest, self.column_axes)
        return most, jax.lax.pmin(
            jnp.where(largest == most, first, jnp.iinfo(jnp.int32).max), self.column_axes
        )


def place() -> Place:
    return Place(mesh.active())
