"""Rasters that are written window by window, where the scene lies that they were made of."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from dinojax.data.scene import CACHE, Scene, rasterio
from dinojax.files.drafts import draft

Write = Callable[[tuple[int, int], np.ndarray], None]

BLOCK, BLOCK_OF_MANY = 256, 64  # pixels of a side of a tile: of one band, of each of many


@contextlib.contextmanager
def written(
    path: str | os.PathLike[str],
    scene: Scene,
    *,
    bands: int = 1,
    dtype: str,
    nodata: float,
    step: int = 1,
    tags: Mapping[str, Any] | None = None,
) -> Iterator[Write]:
    """A function of ((top, left), values [h, w] or [h, w, bands]) that writes a part of a GeoTIFF.

    step: pixels of the scene that one of the raster is wide and high; what does not fill one at the
    right and bottom is left out. tags: what the file says of how it was made. What is never written
    is nodata and takes no room on the disk. The file takes its name when all is written; a failure
    leaves nothing.
    """
    raster = rasterio(os.fspath(path))
    a, b, c, d, e, f = scene.transform
    block = BLOCK if bands == 1 else BLOCK_OF_MANY
    profile = {
        "driver": "GTiff",
        "width": scene.width // step,
        "height": scene.height // step,
        "count": bands,
        "dtype": dtype,
        "nodata": nodata,
        "crs": scene.crs or None,
        "transform": raster.Affine(a * step, b * step, c, d * step, e * step, f),
        "tiled": True,
        "blockxsize": block,
        "blockysize": block,
        # Pixel by pixel, GDAL 3.10 makes 0 of what is nodata in blocks that leave its cache early.
        "interleave": "band",
        "sparse_ok": True,
        "bigtiff": "if_safer",
    }
    if bands == 1:
        profile |= {"compress": "deflate", "predictor": 3 if "float" in dtype else 2}

    with draft(path) as made, raster.Env(GDAL_CACHEMAX=CACHE):
        with raster.open(made, "w", **profile) as file:
            file.update_tags(**{name: str(value) for name, value in (tags or {}).items()})

            def write(corner: tuple[int, int], values: np.ndarray) -> None:
                (top, left), (height, width) = corner, values.shape[:2]
                window = (top, top + height), (left, left + width)
                values_hwK = values.reshape(height, width, bands)
                file.write(np.moveaxis(values_hwK, 2, 0).astype(dtype), window=window)

            yield write
