"""Rasters that are written window by window, where the scene lies that they were made of."""

import contextlib
import errno
import functools
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from dinojax.data.scene import CACHE, Scene, rasterio
from dinojax.files.drafts import SUFFIX, draft

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
    is nodata and takes no room on the disk. Parts do not overlap.

    The file takes its name when all parts have been read back as they were written: GDAL says
    nothing of what it cannot write while it closes a file. A failure leaves nothing; OSError.
    """
    raster = rasterio(os.fspath(path))
    profile = _profile(raster, scene, bands=bands, dtype=dtype, nodata=nodata, step=step)
    parts: list[tuple[tuple, int]] = []  # windows and their checksums
    told = functools.partial(_told, raster, path)
    with draft(path) as made, raster.Env(GDAL_CACHEMAX=CACHE), contextlib.ExitStack() as open_files:
        with told():
            file = open_files.enter_context(raster.open(made, "w", **profile))
            file.update_tags(**{name: str(value) for name, value in (tags or {}).items()})

        def write(corner: tuple[int, int], values: np.ndarray) -> None:
            (top, left), (height, width) = corner, values.shape[:2]
            window = (top, top + height), (left, left + width)
            planes = np.moveaxis(values.reshape(height, width, bands), 2, 0).astype(dtype)
            with told():
                file.write(planes, window=window)
            parts.append((window, zlib.crc32(planes.tobytes())))

        yield write
        with told():
            file.close()
            _check(raster, made, parts)


def _profile(
    raster: Any, scene: Scene, *, bands: int, dtype: str, nodata: float, step: int
) -> dict[str, Any]:
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
    return profile


def _check(raster: Any, made: os.PathLike[str], parts: list[tuple[tuple, int]]) -> None:
    with raster.open(made) as file:
        for window, checksum in parts:
            if zlib.crc32(file.read(window=window).tobytes()) != checksum:
                raise raster.errors.RasterioIOError(f"rows {window[0]} are not as written")


@contextlib.contextmanager
def _told(raster: Any, path: str | os.PathLike[str]) -> Iterator[None]:
    """Failures to write as OSError, that of a full disk where it is one."""
    try:
        yield
    except raster.errors.RasterioError as error:
        _write_something(path)
        raise OSError(errno.EIO, f"not written: {error}", os.fspath(path)) from error


def _write_something(path: str | os.PathLike[str]) -> None:
    """Raise the error of a full disk, a quota or a limit, of which GDAL tells no more than that."""
    with tempfile.NamedTemporaryFile(dir=os.path.dirname(path) or ".", suffix=SUFFIX) as file:
        file.write(bytes(2**22))
