"""Values of more than 8 bits, as a file stores them, and how they become bytes.

The values that `data.value_range` names become 0 and 255, those between them evenly, those beyond
them the nearer end; NaN becomes the low end. Without the key the range is that of the type, which
signed and float values do not have.
"""

import dataclasses
import functools

import numpy as np
from PIL import ImageFile

from dinojax.data import tiff
from dinojax.data.formats import open_image
from dinojax.data.header import Header

LEVELS = 256  # of a byte

# Pillow reads the upper bytes of 16 bit colour (big-endian); taken for little-endian, the lower.
_LOWER_BYTES = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}


def stored_values(data: bytes, header: Header, image: ImageFile.ImageFile | None) -> np.ndarray:
    """All values [H, W, C] of a file of more than 8 bits, in a type that holds them.

    Raises ValueError, without a name, for what cannot be read whole.
    """
    if image is None or (header.format == "TIFF" and header.bands > 1):
        assert header.layout is not None  # only a TIFF has no image
        return tiff.read_values(data, header.layout)
    if header.format == "PNG" and header.bands > 1:
        return _png_colour(data, image)
    if header.format == "PPM":
        return _netpbm(data, header, image)
    values = np.asarray(image)
    return values[:, :, None] if values.ndim == 2 else values


def _png_colour(data: bytes, image: ImageFile.ImageFile) -> np.ndarray:
    lower = open_image(data)
    raw = str(lower.tile[0].args)
    if raw not in _LOWER_BYTES:
        raise ValueError(f"of its 16 bits ({raw}) only the upper 8 can be read; store RGB or grey.")
    lower.tile = [lower.tile[0]._replace(args=_LOWER_BYTES[raw])]
    return np.asarray(image).astype(np.uint16) * 256 + np.asarray(lower)


def _netpbm(data: bytes, header: Header, image: ImageFile.ImageFile) -> np.ndarray:
    if data[1:2] not in (b"5", b"6"):
        raise ValueError("PPM as text has no values of more than 8 bits here; store it binary.")
    shape = header.height, header.width, header.bands
    start = image.tile[0].offset
    values = np.frombuffer(data, ">u2", count=int(np.prod(shape)), offset=start)
    return values.reshape(shape)


def resolved_range(
    header: Header, value_range: tuple[float, ...], values_HWC: np.ndarray
) -> np.ndarray:
    """(low, high) float64 [2, 1 or C] that become 0 and 255; ValueError, unnamed, for none."""
    ends = value_range or header.full
    if ends is None:
        raise ValueError(
            f"{header.kind} values have no known range; say which become 0 and 255 with "
            f"data.value_range=(LOW, HIGH). Here they go from {np.nanmin(values_HWC):g} to "
            f"{np.nanmax(values_HWC):g}."
        )
    ends_2C = np.array(ends, np.float64).reshape(-1, 2).T
    if ends_2C.shape[1] not in (1, header.bands):
        raise ValueError(
            f"data.value_range has {ends_2C.shape[1]} pairs for {header.bands} bands; give one "
            "pair, or one for each band."
        )
    return ends_2C


def to_bytes(values_HWC: np.ndarray, header: Header, value_range: tuple[float, ...]) -> np.ndarray:
    """Stored values as uint8 [H, W, C]."""
    ends_2C = resolved_range(header, value_range, values_HWC)
    if values_HWC.dtype.kind == "u" and values_HWC.dtype.itemsize <= 2:
        bands = np.moveaxis(values_HWC, 2, 0)
        pairs = np.broadcast_to(ends_2C, (2, len(bands))).T.tolist()
        tables = [_table(low, high) for low, high in pairs]
        bytes_HWC = np.stack([t[b] for t, b in zip(tables, bands, strict=True)], axis=2)
    else:
        bytes_HWC = _mapped(values_HWC, ends_2C)
    # Pillow turns 8 bit values round where 0 is white, wider ones not
    white_is_zero = header.layout is not None and header.layout.photometric == 0
    return 255 - bytes_HWC if white_is_zero else bytes_HWC


def opacity(values_HW1: np.ndarray, header: Header) -> np.ndarray:
    """The band of transparency as uint8: by the range of its type, of floats 0 to 1."""
    plain = dataclasses.replace(header, bands=1, layout=None)
    return to_bytes(values_HW1, plain, header.full or (0.0, 1.0))


@functools.lru_cache(maxsize=64)
def _table(low: float, high: float) -> np.ndarray:
    """The byte of every 16 bit value: uint8 [65536]."""
    table = _mapped(np.arange(2**16), np.array([[low], [high]]))
    table.setflags(write=False)  # shared by all threads
    return table


def _mapped(values: np.ndarray, ends_2C: np.ndarray) -> np.ndarray:
    low, high = ends_2C
    shares = np.nan_to_num((values.astype(np.float64) - low) / (high - low), nan=0.0)
    return np.floor(np.clip(shares, 0, 1) * (LEVELS - 1) + 0.5).astype(np.uint8)
