"""Which device takes which place in a mesh, and which rows of a batch a process then has."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import NamedSharding

log = logging.getLogger(__name__)


def arrange(devices: Sequence[Any], shape: Sequence[int]) -> np.ndarray:
    """Devices as an array of this shape.

    TPUs that are a whole torus: device axes go along its sides, so that a collective along one of
    them stays within rings of neighbours. All others: process after process.
    """
    if len(devices) > 1 and _is_torus(devices):
        try:
            return mesh_utils.create_device_mesh(
                tuple(shape), list(devices), allow_split_physical_axes=True
            )
        except NotImplementedError as error:
            log.info("device axes go by process, not along the torus: %s", error)
    ordered = sorted(devices, key=lambda device: device.process_index)
    return np.array(ordered, dtype=object).reshape(tuple(shape))


def _is_torus(devices: Sequence[Any]) -> bool:
    if any(device.platform != "tpu" for device in devices):
        return False
    coords = np.array([device.coords for device in devices])
    chips = np.unique(coords, axis=0)
    box = math.prod(chips.max(axis=0) - chips.min(axis=0) + 1)
    slices = {getattr(device, "slice_index", 0) for device in devices}
    whole = len(chips) == box and len(devices) % box == 0 and len(slices) == 1
    if not whole:
        log.info("%d TPUs that are no whole torus: device axes go by process", len(devices))
    return whole


def process_rows(sharding: NamedSharding, num_rows: int, process: int) -> np.ndarray:
    """Rows of an array sharded over its first axis that live on devices of a process, in order."""
    places: dict[Any, Any] = dict(sharding.devices_indices_map((num_rows,)))
    starts = {
        (place[0].start or 0, num_rows if place[0].stop is None else place[0].stop)
        for device, place in places.items()
        if device.process_index == process
    }
    return np.concatenate([np.arange(*bounds) for bounds in sorted(starts)])
