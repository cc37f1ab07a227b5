"""The map of a scene by a head, window by window into a GeoTIFF that lies where the scene does."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.data.geotiff import written
from dinojax.data.scene import Scene, open_scene
from dinojax.eval.scene_windows import Seen, border_of, places, predictions
from dinojax.eval.segmentation_metrics import IGNORE
from dinojax.tasks.network import TaskNetwork
from dinojax.viz.label_colors import label_colors, side_by_side, value_colors

SIDE = 320  # pixels of the longer side of a scene in a picture


@dataclasses.dataclass(frozen=True)
class Mapped:
    """What was written: known pixels, their least and greatest metres, or pixels of each class."""

    path: Path
    known: int
    low: float
    high: float
    classes: dict[int, int]


def map_scene(
    network: TaskNetwork,
    variables: dict[str, Any],
    scene: Scene,
    path: Path,
    value_range: Sequence[float],
) -> Mapped:
    """Write depth and canopy as float32 metres, NaN = nodata; classes as uint8, 255 = nodata
    (uint16 and 65535 from 255 classes on).

    Windows are those of eval/scene_windows.py, of the size of training and not resized.
    """
    own, is_classes = network.settings, network.task == "segment"
    network, variables = _over_devices(network, variables)
    seen = Seen(scene, network.backbone.preprocessing, tuple(value_range))
    border = border_of(own.size, network.backbone.spec.patch_size)
    grid = places(scene.height, scene.width, size=own.size, border=border)
    predict = functools.partial(_predicted, network, variables)
    dtype, nodata = _type(network)
    counts = np.zeros(network.outputs if is_classes else 0, np.int64)
    known, low, high = 0, np.inf, -np.inf
    options = {"size": own.size, "batch_size": own.batch_size}
    with written(path, scene, dtype=dtype, nodata=nodata) as write:
        for place, known_SS, found_SS in predictions(seen, grid, predict, **options):
            inside_hw, found_hw = place.inside(known_SS), place.inside(found_SS)
            values = found_hw[inside_hw]
            if not len(values):
                continue
            known += len(values)
            if is_classes:
                counts += np.bincount(values, minlength=len(counts))
            else:
                low, high = min(low, float(values.min())), max(high, float(values.max()))
            corner = place.rows[0], place.columns[0]
            write(corner, np.where(inside_hw, found_hw, nodata))
    classes = {number: int(count) for number, count in enumerate(counts) if count}
    return Mapped(path, known, low, high, classes)


def _type(network: TaskNetwork) -> tuple[str, float]:
    """(dtype, nodata) of a map."""
    if network.task != "segment":
        return "float32", np.nan
    return ("uint8", 255) if network.outputs <= 255 else ("uint16", 65_535)


def _predicted(network: TaskNetwork, variables: dict[str, Any], images_BSSC: np.ndarray):
    """Metres or classes [B, S, S], on the device."""
    found = network.predict(variables, images_BSSC)
    return jnp.argmax(found, axis=-1) if found.ndim == 4 else found


def _over_devices(network: TaskNetwork, variables: dict[str, Any]):
    """The same on all devices of this process, windows spread over them."""
    if jax.local_device_count() == 1:
        return network, variables
    backbone = network.backbone.over(jax.local_devices())
    assert backbone.layout is not None
    variables = jax.device_put(variables, backbone.layout.sharding())
    return dataclasses.replace(network, backbone=backbone), variables


def scene_picture(mapped: Mapped, scene: Scene, value_range: Sequence[float]) -> np.ndarray:
    """uint8 [h, w, 3]: scene and map side by side, made small; nodata is black."""
    values_HWC, known_HW = scene.overview(SIDE)
    pixels = np.zeros(values_HWC.shape, np.uint8)
    if known_HW.any():
        found_N1C = scene.to_bytes(values_HWC[known_HW][:, None], value_range)
        pixels[known_HW] = found_N1C[:, 0]
    map_HW1, known_HW = open_scene(mapped.path).overview(SIDE)
    found = map_HW1[:, :, 0]
    if mapped.classes:
        return side_by_side([(pixels, label_colors(np.where(known_HW, found, IGNORE)))])
    found = np.where(known_HW, found, np.nan)
    low, high = np.nanpercentile(found, (2, 98)) if known_HW.any() else (0.0, 1.0)
    return side_by_side([(pixels, value_colors(found, low, high))])
