"""Scenes: rasters that are read by windows, never whole, with what is nodata and where they lie.

Read with rasterio (the extra `geo`). A pixel is nodata where any of the bands is: by the file's
nodata value, its mask or its band of transparency; of floats also NaN and infinities.
"""

import contextlib
import dataclasses
import importlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import TiffImagePlugin

from dinojax.data import tiff
from dinojax.data.header import MAX_PIXELS, Header
from dinojax.data.stored import to_bytes

EXTENSIONS = ("tif", "tiff", "jp2", "img")  # of files that a folder of scenes is searched for
ALWAYS = ("jp2", "img", "vrt")  # which are no images
# Tags of a TIFF that lies somewhere: scale, tie points, matrix, keys of the CRS; GDAL's nodata.
PLACED = {33550, 33922, 34264, 34735, 42113}
CACHE = 2**26  # bytes of blocks that GDAL keeps in memory, of all open files

Window = tuple[int, int, int, int]  # top, left, height, width in pixels; it may leave the scene
Read = Callable[[Window], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Scene:
    """A raster by its header. `bands` are those that are read, numbered from 1."""

    path: str
    width: int
    height: int
    bands: tuple[int, ...]
    dtype: str
    crs: str  # as WKT, "" = none
    transform: tuple[float, ...]  # a, b, c, d, e, f: x = a column + b row + c, y = d ... + f
    has_nodata: bool  # some pixel may be nodata

    @property
    def header(self) -> Header:
        """As of an image file, for the range of its values."""
        kind = np.dtype(self.dtype)
        bits = 8 * kind.itemsize
        full = (0, 2**bits - 1) if kind.kind == "u" else None
        name = {"u": "", "i": "int", "f": "float"}[kind.kind]
        return Header(
            "scene",
            f"{len(self.bands)} bands",
            width=self.width,
            height=self.height,
            bands=len(self.bands),
            bits=bits,
            full=full,
            kind=name,
        )

    def __str__(self) -> str:
        kind = f"{self.width} x {self.height}, {len(self.bands)} bands of {self.dtype}"
        return f"{self.path}: {kind}, {'georeferenced' if self.crs else 'without a CRS'}"

    def check(self, channels: int, value_range: Sequence[float], *, key: str) -> None:
        """Raise ValueError for bands, or values, that cannot become the input of a network.

        key: what messages call the range of values.
        """
        if len(self.bands) != channels:
            few = len(self.bands) < channels
            move = "use weights for so many channels" if few else "name those to read with --bands"
            raise ValueError(
                f"{self.path} has {len(self.bands)} bands for {channels} channels; {move}, or make "
                f"weights for it: dinojax import --channels {len(self.bands)} --inflate repeat."
            )
        self.check_range(value_range, key=key)
        self.check_pairs(value_range, key=key)

    def check_pairs(self, value_range: Sequence[float], *, key: str) -> None:
        """Raise ValueError for what is no LOW, HIGH, or one for each band."""
        if len(value_range) not in (0, 2, 2 * len(self.bands)):
            raise ValueError(
                f"{key} has {len(value_range) / 2:g} pairs for {len(self.bands)} bands; give one "
                "pair, or one for each band."
            )
        for low, high in zip(value_range[::2], value_range[1::2], strict=True):
            if not low < high:
                raise ValueError(f"{key} {low:g},{high:g} is not ascending; use LOW below HIGH.")

    def check_range(self, value_range: Sequence[float], *, key: str) -> None:
        """Raise ValueError for values of which nobody says which become 0 and 255."""
        if self.header.full is None and not value_range:
            raise ValueError(
                f"{self.path}: {self.dtype} values have no known range; say which become 0 and 255 "
                f"with {key} (LOW, HIGH), of which `dinojax data scenes` tells."
            )

    def to_bytes(self, values_HWC: np.ndarray, value_range: Sequence[float]) -> np.ndarray:
        """uint8 [H, W, C] of stored values, as of an image file; 8 bits stay as they are."""
        ends = () if self.dtype == "uint8" else tuple(value_range)
        return to_bytes(values_HWC, self.header, ends)

    @contextlib.contextmanager
    def opened(self) -> Iterator[Read]:
        """A function of a window: (values [h, w, C] as stored, known bool [h, w]).

        What lies outside of the scene is 0 and not known. For one thread.
        """
        with _open(self.path) as file:
            yield lambda window: self._read(file, window)

    def overview(self, side: int) -> tuple[np.ndarray, np.ndarray]:
        """As `opened` reads, every so-manieth pixel of the whole: the longer side at most `side`.

        Reads the scene once, block by block.
        """
        step = max(-(-max(self.width, self.height) // side), 1)
        size = -(-self.height // step), -(-self.width // step)
        with _open(self.path) as file:
            return self._values(file, size, None)

    def _read(self, file: Any, window: Window) -> tuple[np.ndarray, np.ndarray]:
        top, left, height, width = window
        values_HWC = np.zeros((height, width, len(self.bands)), self.dtype)
        known_HW = np.zeros((height, width), bool)
        rows = max(top, 0), min(top + height, self.height)
        columns = max(left, 0), min(left + width, self.width)
        if rows[0] < rows[1] and columns[0] < columns[1]:
            inside = (
                slice(rows[0] - top, rows[1] - top),
                slice(columns[0] - left, columns[1] - left),
            )
            size = rows[1] - rows[0], columns[1] - columns[0]
            values_HWC[inside], known_HW[inside] = self._values(file, size, (rows, columns))
        return values_HWC, known_HW

    def _values(self, file: Any, size: tuple[int, int], window) -> tuple[np.ndarray, np.ndarray]:
        """(values [*size, C], known [*size]) of a window, None = of the whole, made so small.

        Raises OSError that names the file for one that is damaged.
        """
        shape, known_HW = (len(self.bands), *size), np.ones(size, bool)
        try:
            values_CHW = file.read(list(self.bands), window=window, out_shape=shape)
            for band in self.bands if self.has_nodata else ():
                known_HW &= file.read_masks(band, window=window, out_shape=size) > 0
        except importlib.import_module("rasterio.errors").RasterioError as error:
            raise OSError(f"{self.path} cannot be read: {error.__cause__ or error}") from error
        if values_CHW.dtype.kind == "f":
            known_HW &= np.isfinite(values_CHW).all(axis=0)
        return np.moveaxis(values_CHW, 0, 2), known_HW


def open_scene(path: str | os.PathLike[str], bands: Sequence[int] = ()) -> Scene:
    """A scene by its header. bands: those to read, from 1 on; () = all but transparency.

    Raises OSError for a file that is no raster, ValueError for bands that it lacks or that differ
    in type, ModuleNotFoundError without rasterio.
    """
    path = os.fspath(path)
    with _open(path) as file:
        enums = importlib.import_module("rasterio.enums")
        clear = [kind == enums.ColorInterp.alpha for kind in file.colorinterp]
        chosen = tuple(bands or [n for n in file.indexes if not clear[n - 1]])
        if missing := [band for band in chosen if band not in file.indexes]:
            raise ValueError(f"{path} has no band {missing[0]}, only 1 to {file.count}.")
        kinds = sorted({file.dtypes[band - 1] for band in chosen})
        if len(kinds) != 1 or np.dtype(kinds[0]).kind not in "uif":
            raise ValueError(f"{path}: bands of {', '.join(kinds)} cannot be read together.")
        whole = {enums.MaskFlags.all_valid}
        if any(clear[band - 1] for band in chosen):  # whoever asks for it means a band
            whole.add(enums.MaskFlags.alpha)
        masks = [file.mask_flag_enums[band - 1] for band in chosen]
        return Scene(
            path=path,
            width=file.width,
            height=file.height,
            bands=chosen,
            dtype=kinds[0],
            crs=file.crs.to_wkt() if file.crs else "",
            transform=tuple(file.transform)[:6],
            has_nodata=not all(whole & set(flags) for flags in masks),
        )


@contextlib.contextmanager
def _open(path: str) -> Iterator[Any]:
    raster = rasterio(path)
    # A raster that lies nowhere is allowed, and told by those who read it.
    unplaced = importlib.import_module("rasterio.errors").NotGeoreferencedWarning
    warnings.filterwarnings("ignore", category=unplaced)
    with raster.Env(GDAL_CACHEMAX=CACHE), raster.open(path) as file:
        yield file


def rasterio(path: str) -> Any:
    """The package. Raises ModuleNotFoundError that says what needs it."""
    try:
        return importlib.import_module("rasterio")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{path} is read by windows with rasterio; run: pip install 'dinojax[geo]'"
        ) from None


def is_scene(path: str | os.PathLike[str]) -> bool:
    """Whether a file is mapped window by window: a TIFF that says where it lies or what is nodata,
    or that is larger than images may be; and the formats that no image has. Nothing is decoded."""
    extension = os.path.splitext(os.fspath(path))[1].lower().removeprefix(".")
    if extension in ALWAYS:
        return True
    if extension not in EXTENSIONS or not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            start = file.read(16)
            if not tiff.is_tiff(start):
                return False
            start = start if b"+" in start[2:4] else start[:8]
            tags = TiffImagePlugin.ImageFileDirectory_v2(start)
            file.seek(tags.next)
            tags.load(file)
            size = int(tags.get(tiff.WIDTH, 0)) * int(tags.get(tiff.HEIGHT, 0))
    except Exception:  # damaged: decoding it as an image will tell
        return False
    return bool(PLACED & set(tags)) or size > MAX_PIXELS


def starts(side: int, size: int, stride: int) -> list[int]:
    """First pixels of windows over an axis, `stride` apart; the last one ends where the axis ends.

    An axis that is shorter than a window has one, from 0 on.
    """
    count = max(-(-(side - size) // stride), 0) + 1
    return [min(number * stride, max(side - size, 0)) for number in range(count)]
