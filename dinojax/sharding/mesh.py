"""Devices: layouts of them, and where arrays that name their axes live on them.

Arrays name their axes; axes.py has the table that says where an axis goes. `use(layout)` makes a
layout active while a program is traced; without one, or on one device, all here is a no-op.
"""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dinojax.sharding import topology
from dinojax.sharding.axes import (
    DEVICE_AXES,
    check_strategy,
    device_axes,
    divisors,
    grid,
    name_faults,
    size_faults,
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Devices and the strategy that says what lives where on them."""

    mesh: Mesh
    strategy: str

    @property
    def data_axes(self) -> tuple[str, ...]:
        """The device axes that images are spread over."""
        return device_axes(self.strategy, "image")

    @property
    def rows(self) -> PartitionSpec:
        """Of arrays that lead with images or groups."""
        return PartitionSpec(self.data_axes)

    @property
    def parts(self) -> PartitionSpec:
        """Of arrays that lead with micro-batches, then images or groups."""
        return PartitionSpec(None, self.data_axes)

    @property
    def num_shards(self) -> int:
        """Parts the images of a batch are split into."""
        return math.prod(self.mesh.shape[axis] for axis in self.data_axes)

    def sharding(self, *names: str | None) -> NamedSharding:
        return NamedSharding(self.mesh, spec(self.strategy, *names))


log = logging.getLogger(__name__)

_active: ContextVar[Layout | None] = ContextVar("layout", default=None)


def make(
    strategy: str,
    devices: int | Sequence[jax.Device] | None = None,
    *,
    replicas: int | None = None,
    tensor: int | None = None,
    in_order: bool = False,
) -> Layout:
    """A layout over all devices (None), the first n (int) or the given ones.

    The devices may be those of a machine that is not there (plan/targets.py). replicas, tensor:
    devices along these axes, None = `axes.grid` says. in_order: the given devices keep their
    order, that of another layout, so that both have the same images on a device.
    Raises one ValueError for all of: an unknown strategy, more devices than there are, replicas or
    tensor that the strategy does not read or that do not divide the devices.
    """
    check_strategy(strategy)
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
    sizes = grid(strategy, len(devices), replicas=replicas, tensor=tensor)
    shape = [sizes[axis] for axis in DEVICE_AXES]
    if strategy == "hsdp" and replicas is None and sizes["fsdp"] == 1 < len(devices):
        log.warning(
            "mesh.strategy=hsdp: weights are whole on each of %d devices, an odd number; an even "
            "one would share them",
            len(devices),
        )
    if in_order:
        array = np.array(devices, dtype=object).reshape(shape)
    else:
        array = topology.arrange(devices, shape)
    return Layout(Mesh(array, DEVICE_AXES, axis_types=(AxisType.Auto,) * len(shape)), strategy)


def from_section(
    section, devices: Sequence[jax.Device] | None = None, *, in_order: bool = False
) -> Layout:
    """The layout of the `mesh` section of a config, over its devices or the given ones."""
    chosen = section.devices if devices is None else devices
    sizes = {"replicas": section.replicas, "tensor": section.tensor}
    return make(section.strategy, chosen, **sizes, in_order=in_order)


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
    faults = name_faults(strategy, names)
    if faults:
        raise ValueError(f"Axes {names}: {'; '.join(faults)}.")
    return PartitionSpec(*(device_axes(strategy, name) or None for name in names))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """x, held where the active layout wants it. Raises ValueError if a size does not divide."""
    layout = active()
    if layout is None:
        return x
    faults = size_faults(layout.strategy, layout.mesh.shape, x.shape, names)
    if faults:
        raise ValueError(f"Cannot shard an array {x.shape} with axes {names}: {'; '.join(faults)}.")
    return jax.lax.with_sharding_constraint(x, layout.sharding(*names))


def per_group(fn: Callable, *arrays: Any, replicated: tuple = (), stored: tuple = ()) -> Any:
    """fn(*arrays, *replicated, *stored), with each device calling it on its own leading slice.

    arrays: trees of arrays that lead with images or groups, as does everything fn returns.
    replicated: trees every device sees whole. stored: pairs of a tree, of which a device sees the
    part that it stores, and one of the names of its axes. fn must treat leading rows
    independently: then the result does not depend on the number of devices, and nothing travels.
    """
    layout = active()
    trees = tuple(tree for tree, _ in stored)
    if layout is None:
        return fn(*arrays, *replicated, *trees)
    _check_leading(arrays, layout.num_shards)
    parts = [
        jax.tree.map(lambda _, names: _filled(layout, layout.sharding(*names).spec), *pair)
        for pair in stored
    ]

    def on_one_device(*args):
        with off():  # inside, there are no axes left to constrain over
            return fn(*args)

    rows = _filled(layout, layout.rows)
    in_specs = (rows,) * len(arrays) + (PartitionSpec(),) * len(replicated) + tuple(parts)
    # check_vma has to be off for kernels that do not say what they vary over.
    mapped = jax.shard_map(
        on_one_device, mesh=layout.mesh, in_specs=in_specs, out_specs=rows, check_vma=False
    )
    return mapped(*arrays, *replicated, *trees)


def _filled(layout: Layout, spec: PartitionSpec) -> PartitionSpec:
    """The same place, with all device axes of one device named: gradients are summed over those
    that are not, and a sum over one device would still be computed.
    """
    places = [place if isinstance(place, tuple) else (place,) if place else () for place in spec]
    named = {axis for place in places for axis in place}
    idle = tuple(a for a, size in layout.mesh.shape.items() if size == 1 and a not in named)
    first = next((i for i, place in enumerate(places) if place), 0)
    places = places or [()]
    places[first] += idle
    return PartitionSpec(*(place or None for place in places))


def check(layout: Layout, params: Mapping[str, tuple[Sequence[int], Sequence[str | None]]]) -> None:
    """Whether all parameters can be sharded. params: name -> (shape, names of its axes).

    Raises one ValueError that lists every parameter at fault and what would fit.
    """
    lines, sizes = [], []
    for param, (shape, names) in params.items():
        faults = size_faults(layout.strategy, layout.mesh.shape, shape, names)
        if len(names) < len(shape):
            faults.append(f"{len(names)} axis names for the shape {tuple(shape)}")
        lines += [f"  {param} {fault}" for fault in faults]
        pairs = zip(shape, names, strict=False)
        sizes += [size for size, name in pairs if device_axes(layout.strategy, name)]
    if lines:
        fits = divisors(math.gcd(*sizes)) if sizes else "any number"
        raise ValueError(
            f"Cannot shard with mesh.strategy={layout.strategy}:\n" + "\n".join(lines) + "\n"
            f"Every sharded size here divides over {fits} devices: set mesh.devices to one of "
            "them, change the sizes, or use mesh.strategy=dp, which shards no parameter."
        )


def _check_leading(tree: Any, parts: int) -> None:
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        if x.shape[0] % parts:
            raise ValueError(
                f"The leading axis {x.shape[0]} of {jax.tree_util.keystr(path)} {x.shape} does "
                f"not divide into {parts} parts."
            )
