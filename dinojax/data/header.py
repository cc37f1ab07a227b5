"""What an image file says about itself: size, bands, bits and their range; no pixel is decoded."""

import dataclasses

from PIL import ImageFile

from dinojax.data import tiff
from dinojax.data.formats import DecodeError, open_image

# 8192 x 8192, above every camera of full frame. Decoding takes some 10 bytes a pixel, per thread.
MAX_PIXELS = 2**26

# Bits of a channel in Pillow's modes, where they are not 8; and the formats of many frames.
BITS = {"1": 1, "I;16": 16, "I;16L": 16, "I;16B": 16, "I": 32, "F": 32}
ANIMATED = ("AVIF", "GIF", "PNG", "WEBP")
PLAIN_BYTES = 4  # of a pixel; data.max_pixels counts images with more as larger


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """How image files become bytes: keys of the section `data`, and what other libraries do."""

    value_range: tuple[float, ...] = ()  # stored values that become 0 and 255; () = of the type
    max_pixels: int = MAX_PIXELS
    transparency: str = "drop"  # or white, which then lies behind RGB images
    # Of scenes (scene_tiles.py)
    tile_size: int = 512  # pixels of a side
    max_nodata: float = 0.25  # share of a tile's pixels; tiles with more are left out
    bands: tuple[int, ...] = ()  # those that are read, from 1 on; () = all


PLAIN = ReadOptions()


@dataclasses.dataclass(slots=True)  # not frozen: one is made for every image
class Header:
    """An image file as its header tells it."""

    format: str  # Pillow's name
    mode: str  # Pillow's, or such as "4 bands" where Pillow has none
    width: int
    height: int
    bands: int  # values of a pixel as stored, with transparency
    bits: int  # of a value
    full: tuple[float, float] | None  # range of the type; None: any number may be stored
    alpha: bool = False  # the last band is transparency
    by_pillow: bool = True  # Pillow reads every band, if only the upper 8 bits of some
    kind: str = ""  # int or float where values are not unsigned whole numbers
    layout: tiff.Layout | None = None  # of a TIFF

    @property
    def is_wide(self) -> bool:
        """More than 8 bits: what becomes of the values is a choice, data.value_range."""
        return self.bits > 8

    def __str__(self) -> str:
        return f"{self.format} {self.mode} {self.kind and self.kind + ' '}{self.bits} bit"


def read_header(data: bytes) -> tuple[Header, ImageFile.ImageFile | None]:
    """The header, and Pillow's image at its start where Pillow can read the file.

    Raises what the readers raise on damaged files, which can be almost any exception.
    """
    layout = tiff.read_layout(data) if tiff.is_tiff(data) else None
    if layout is not None and not layout.by_pillow:
        return _of_layout(layout), None
    image = open_image(data)
    if layout is not None and layout.pages[0]:
        image.seek(layout.pages[0])  # a preview comes first
    return _of_pillow(image, data, layout), image


def check_size(header: Header, max_pixels: int) -> None:
    """Raises ValueError, without a name, for an image that is empty or larger than allowed."""
    if header.width < 1 or header.height < 1:
        raise ValueError(f"it has {header.width}x{header.height} pixels.")
    height, width = header.layout.unpacked if header.layout else (header.height, header.width)
    size = header.bands * max(8, header.bits) // 8
    pixels = height * width * max(1, size / PLAIN_BYTES)
    if pixels <= max_pixels:
        return
    counted = f", which count as {pixels:,.0f} for their {size} bytes each" * (size > PLAIN_BYTES)
    raise ValueError(
        f"it has {width}x{height} pixels{counted}; data.max_pixels={max_pixels:,}. "
        "Raise it, or cut the image into tiles (of rasters: data.source=scenes)."
    )


def _of_layout(layout: tiff.Layout) -> Header:
    return Header(
        format="TIFF",
        mode=f"{layout.bands} band{'s' * (layout.bands > 1)}",
        width=layout.width,
        height=layout.height,
        bands=layout.bands,
        bits=layout.bits,
        full=_whole(layout.bits) if layout.kind == "uint" else None,
        alpha=layout.alpha,
        by_pillow=False,
        kind="" if layout.kind == "uint" else layout.kind,
        layout=layout,
    )


def _of_pillow(image: ImageFile.ImageFile, data: bytes, layout: tiff.Layout | None) -> Header:
    mode = image.mode  # of the first frame; others may have another
    bits, kind = BITS.get(mode, 8), "float" if mode == "F" else ""
    full: tuple[float, float] | None = _whole(bits)
    if layout is not None:
        bits, full = layout.bits, _whole(layout.bits) if layout.kind == "uint" else None
        kind = "" if layout.kind == "uint" else layout.kind
    elif image.format == "PNG":
        bits = data[24]  # of the header: Pillow reads 16 bit colour as 8
        full = _whole(bits)
    elif image.format == "PPM" and (largest := _maxval(image)) > 255:
        bits, full = largest.bit_length(), (0, largest)
    bands = len(image.getbands())
    return Header(
        format=str(image.format),
        mode=mode,
        width=image.width,
        height=image.height,
        bands=bands,
        bits=bits,
        full=full,
        alpha=mode in ("RGBA", "LA", "PA", "RGBa", "La"),
        kind=kind,
        layout=layout,
    )


def _whole(bits: int) -> tuple[float, float]:
    return 0, 2**bits - 1


def _maxval(image: ImageFile.ImageFile) -> int:
    """The largest value that a PPM declares, from how Pillow is going to read it."""
    args = image.tile[0].args
    if isinstance(args, tuple):
        return int(args[-1]) if isinstance(args[-1], int) else 255
    return 65_535 if str(args).startswith("I;16") else 255


def describe(data: bytes) -> str:
    """How an image is stored, such as "PNG RGB 16 bit", from its header alone.

    Raises DecodeError, without a name, if there is no header to read.
    """
    try:
        header, image = read_header(data)
        animated = image is not None and header.format in ANIMATED and _has_second_frame(image)
    except Exception as error:  # as in decode.load_pixels
        raise DecodeError(str(error) or type(error).__name__) from error
    return f"{header}{', animated' if animated else ''}"


def _has_second_frame(image: ImageFile.ImageFile) -> bool:
    try:
        image.seek(1)
    except EOFError:
        return False
    except Exception:  # damaged, but there, and never needed
        return True
    return True
