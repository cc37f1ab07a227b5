"""Devices: their axes, and the one table from names of array axes to them.

Arrays name their axes; only this file knows where an axis goes. `use(layout)` makes a layout
active while a program is traced; without one, or on one device, everything here is a no-op.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DEVICE_AXES = ("replica", "fsdp", "tensor")
DATA = ("replica", "fsdp")  # images are spread over both

# Names of array axes. None in place of a name: never sharded (biases, norms, scales).
AXES = (
    # Data and activations. image: images, their crops or groups of them, always the first axis;
    # channel: the width of an activation.
    *("image", "token", "pixel", "channel"),
    # Backbone: depth is the axis of stacked blocks, width D, heads A, head_width E, mlp F.
    *("depth", "patch_pixel", "width", "qkv", "heads", "head_width", "mlp"),
    # Projection heads. A kernel hidden x hidden can shard one axis only, so its output side has
    # its own name.
    *("hidden", "hidden_out", "bottleneck", "prototype"),
)
ROWS, PARTS = PartitionSpec(DATA), PartitionSpec(None, DATA)  # rows lead; micro-batches lead
# One row set per strategy: the device axes of each array axis. Axes not listed are not sharded.
TABLE: dict[str, dict[str, tuple[str, ...]]] = {
    "dp": {"image": DATA},
    "fsdp": {"image": DATA, "width": ("fsdp",), "hidden": ("fsdp",), "prototype": ("fsdp",)},
}
# Which device axis a strategy puts all devices on.
SPREAD = {"dp": "replica", "fsdp": "fsdp"}


@dataclasses.dataclass(frozen=True)
class Layout:
    """Devices and the strategy that says what lives where on them."""

    mesh: Mesh
    strategy: str

    @property
    def num_shards(self) -> int:
        """Parts the images of a batch are split into."""
        return math.prod(self.mesh.shape[axis] for axis in DATA)

    def sharding(self, *names: str | None) -> NamedSharding:
        return NamedSharding(self.mesh, spec(self.strategy, *names))


_active: ContextVar[Layout | None] = ContextVar("layout", default=None)


def make(strategy: str, devices: int | Sequence[jax.Device] | None = None) -> Layout:
    """A layout over all devices (None), the first n (int) or the given ones.

    Raises ValueError for an unknown strategy or more devices than there are.
    """
    _check_strategy(strategy)
    # By host, so that a host's rows of the global batch are contiguous whatever the topology.
    present = sorted(jax.devices(), key=lambda device: device.process_index)
    if devices is None:
        devices = present
    elif isinstance(devices, int):
        if not 1 <= devices <= len(present):
            raise ValueError(
                f"mesh.devices={devices}, but jax sees {len(present)} devices "
                f"({present[0].platform}); use 1 to {len(present)}, or None for all."
            )
        devices = present[:devices]
    shape = [len(devices) if axis == SPREAD[strategy] else 1 for axis in DEVICE_AXES]
    grid = np.array(devices, dtype=object).reshape(shape)
    return Layout(Mesh(grid, DEVICE_AXES, axis_types=(AxisType.Auto,) * len(shape)), strategy)


@contextlib.contextmanager
def use(layout: Layout):
    """Make a layout active for what is traced inside. Not to be entered within jit."""
    token = _active.set(layout)
    try:
        with jax.set_mesh(layout.mesh):  # part of jit's cache key, so no trace is reused wrongly
            yield layout
    finally:
        _active.reset(token)


@contextlib.contextmanager
def off():
    """No layout is active inside: for shapes that are not those of a batch."""
    token = _active.set(None)
    try:
        yield
    finally:
        _active.reset(token)


def active() -> Layout | None:
    """The active layout; None without one and where it has one device only."""
    layout = _active.get()
    return None if layout is None or layout.mesh.size == 1 else layout


def spec(strategy: str, *names: str | None) -> PartitionSpec:
    """Where an array with these axes lives. Trailing axes without a name are not sharded.

    Raises ValueError for unknown names and for two axes that want the same device axis.
    """
    faults = _name_faults(strategy, names)
    if faults:
        raise ValueError(f"Axes {names}: {'; '.join(faults)}.")
    return PartitionSpec(*(_device_axes(strategy, name) or None for name in names))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """x, held where the active layout wants it. Raises ValueError if a size does not divide."""
    layout = active()
    if layout is None:
        return x
    faults = _size_faults(layout, x.shape, names)
    if faults:
        raise ValueError(f"Cannot shard an array {x.shape} with axes {names}: {'; '.join(faults)}.")
    return jax.lax.with_sharding_constraint(x, layout.sharding(*names))


def per_group(fn: Callable, *arrays: Any, replicated: tuple = ()) -> Any:
    """fn(*arrays, *replicated), with each device calling it on its own leading slice.

    arrays: trees of arrays that lead with images or groups, as does everything fn returns.
    replicated: trees every device sees whole. fn must treat leading rows independently: then
    the result does not depend on the number of devices, and nothing travels.
    """
    layout = active()
    if layout is None:
        return fn(*arrays, *replicated)
    _check_leading(arrays, layout.num_shards)

    def on_one_device(*args):
        with off():  # inside, there are no axes left to constrain over
            return fn(*args)

    in_specs = (ROWS,) * len(arrays) + (PartitionSpec(),) * len(replicated)
    # check_vma has to be off for kernels that do not say what they vary over.
    mapped = jax.shard_map(
        on_one_device, mesh=layout.mesh, in_specs=in_specs, out_specs=ROWS, check_vma=False
    )
    return mapped(*arrays, *replicated)


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

    return _map_rows(split, tree, out_of=ROWS, into=PARTS)


def merge_batch(tree: Any) -> Any:
    """[parts, rows, ...] -> [parts * rows, ...], the inverse of split_batch."""

    def merge(x):
        return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])

    return _map_rows(merge, tree, out_of=PARTS, into=ROWS)


def global_batch(layout: Layout, host_batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """The arrays of all hosts as one batch on the devices; each host gives its own rows."""
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
            f"{_neighbours(batch_size, layout.num_shards)}, or mesh.devices in "
            f"{_divisors(batch_size)}."
        )
    return batch_size // layout.num_shards


def check_groups(layout: Layout, *, batch_size: int, group_size: int, accumulate: int) -> None:
    """Groups never straddle devices or micro-batches: raises ValueError naming valid sizes."""
    images = images_per_shard(layout, batch_size)
    if images % accumulate:
        raise ValueError(
            f"accumulate={accumulate} does not divide the {images} images on one device "
            f"(batch_size={batch_size} over {layout.num_shards}); use one of {_divisors(images)}."
        )
    images //= accumulate
    if images % group_size:
        raise ValueError(
            f"group_size={group_size} does not divide the {images} images that one device has in "
            f"one micro-batch (batch_size={batch_size} over {layout.num_shards} devices and "
            f"accumulate={accumulate}); use one of {_divisors(images)}, or a batch_size that is a "
            f"multiple of {group_size * layout.num_shards * accumulate}."
        )


def check(layout: Layout, params: Mapping[str, tuple[Sequence[int], Sequence[str | None]]]) -> None:
    """Whether all parameters can be sharded. params: name -> (shape, names of its axes).

    Raises one ValueError that lists every parameter at fault and what would fit.
    """
    lines, sizes = [], []
    for param, (shape, names) in params.items():
        faults = _size_faults(layout, shape, names)
        if len(names) < len(shape):
            faults.append(f"{len(names)} axis names for the shape {tuple(shape)}")
        lines += [f"  {param} {fault}" for fault in faults]
        pairs = zip(shape, names, strict=False)
        sizes += [size for size, name in pairs if _device_axes(layout.strategy, name)]
    if lines:
        fits = _divisors(math.gcd(*sizes)) if sizes else "any number"
        raise ValueError(
            f"Cannot shard with mesh.strategy={layout.strategy}:\n" + "\n".join(lines) + "\n"
            f"Every sharded size here divides over {fits} devices: set mesh.devices to one of "
            "them, change the sizes, or use mesh.strategy=dp, which shards no parameter."
        )


def _device_axes(strategy: str, name: str | None) -> tuple[str, ...]:
    return TABLE[strategy].get(name, ()) if name else ()


def _name_faults(strategy: str, names: Sequence[str | None]) -> list[str]:
    _check_strategy(strategy)
    faults = []
    owner: dict[str, str | None] = {}
    for name in names:
        if name is not None and name not in AXES:
            faults.append(f"unknown axis {name!r}, not one of {', '.join(AXES)}")
        for axis in _device_axes(strategy, name):
            if axis in owner:
                faults.append(
                    f"axes {owner[axis]!r} and {name!r} both go to {axis} with strategy "
                    f"{strategy}; name one of them None"
                )
            owner[axis] = name
    return faults


def _size_faults(layout: Layout, shape: Sequence[int], names: Sequence[str | None]) -> list[str]:
    faults = _name_faults(layout.strategy, names)
    if len(names) > len(shape):
        faults.append(f"{len(names)} axis names for the shape {tuple(shape)}")
    for i, (size, name) in enumerate(zip(shape, names, strict=False)):
        axes = _device_axes(layout.strategy, name)
        parts = math.prod(layout.mesh.shape[axis] for axis in axes)
        if size % parts:
            over = " x ".join(f"{axis}={layout.mesh.shape[axis]}" for axis in axes)
            faults.append(
                f"axis {i} {name!r} = {size} over {over} does not divide; use "
                f"{_neighbours(size, parts)}, or {axes[-1]} in {_divisors(size)}"
            )
    return faults


def _map_rows(fn: Callable, tree: Any, *, out_of: PartitionSpec, into: PartitionSpec) -> Any:
    if (layout := active()) is not None:
        fn = jax.shard_map(fn, mesh=layout.mesh, in_specs=out_of, out_specs=into)
    return jax.tree.map(fn, tree)


def _check_leading(tree: Any, parts: int) -> None:
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        if x.shape[0] % parts:
            raise ValueError(
                f"The leading axis {x.shape[0]} of {jax.tree_util.keystr(path)} {x.shape} does "
                f"not divide into {parts} parts."
            )


def _check_strategy(strategy: str) -> None:
    if strategy not in TABLE:
        raise ValueError(f"mesh.strategy={strategy!r} is not one of {', '.join(TABLE)}.")


def _neighbours(size: int, parts: int) -> str:
    """The multiples of parts next to a size."""
    below = size // parts * parts
    return " or ".join(str(n) for n in (below, below + parts) if n)


def _divisors(number: int) -> str:
    """ "{1, 2, 4}", at most the sixteen smallest."""
    found = [n for n in range(1, number + 1) if number % n == 0] if number else []
    return "{" + ", ".join(map(str, found[:16])) + (", ...}" if len(found) > 16 else "}")
