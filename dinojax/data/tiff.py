"""TIFF files: bands as they are stored, whatever Pillow would show of them.

Bands are the samples of one page, or one page each. Pages that the file marks as previews or masks
do not count. What Pillow has no mode for (bands of other numbers than 1 and 3, float, 32 bits) is
read with tifffile (the extra `tiff`), GeoTIFF included: coordinates are not read.
"""

import dataclasses
import importlib
import io
import logging

import numpy as np
from PIL import TiffImagePlugin

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MAX_PAGES = 1024  # of a file; beyond it the list of pages is taken for damaged

# Numbers of tags (TIFF 6.0, section 8)
SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 256, 257, 258, 259, 262
DESCRIPTION, SAMPLES, EXTRA, FORMAT = 270, 277, 338, 339
PLANAR, TILE_WIDTH, TILE_HEIGHT = 284, 322, 323
GREY, COLOUR = (0, 1), 2  # values of PHOTOMETRIC; 0 = the largest value is black
PREVIEW, MASK = 1, 4  # bits of SUBFILE
KINDS = {1: "uint", 2: "int", 3: "float"}  # FORMAT
BY_PILLOW = {*(("uint", bits) for bits in (1, 2, 4, 8, 16)), ("int", 16)}  # of one grey band


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the bands of a file are."""

    pages: tuple[int, ...]  # numbers of the pages that hold them
    width: int
    height: int
    bands: int  # of all pages together
    bits: int
    kind: str  # uint | int | float
    photometric: int
    compression: int
    alpha: bool  # the last band is transparency
    planar: bool  # band after band, not pixel after pixel
    tile: tuple[int, int] | None  # height and width of a tile

    @property
    def unpacked(self) -> tuple[int, int]:
        """(height, width) that is decoded: whole tiles."""
        if self.tile is None:
            return self.height, self.width
        high, wide = self.tile
        return -(-self.height // high) * high, -(-self.width // wide) * wide

    @property
    def by_pillow(self) -> bool:
        """Whether Pillow reads every band, and the values too unless they are 16 bit colour."""
        if len(self.pages) > 1:
            return False
        if self.photometric in GREY:
            return self.bands == 1 and (self.kind, self.bits) in BY_PILLOW
        colours = self.bands - self.alpha
        if self.photometric == COLOUR:
            depths = (8,) if self.planar else (8, 16)
            return colours == 3 and self.kind == "uint" and self.bits in depths
        return True  # palette, CMYK, YCbCr, Lab: Pillow's own conversions


def is_tiff(data: bytes) -> bool:
    return data[:4] in MAGIC


def read_layout(data: bytes) -> Layout:
    """The layout that the tags tell. Raises ValueError for pages that do not go together."""
    tags = _pages(data)
    chosen = [n for n, page in enumerate(tags) if not page.get(SUBFILE, 0) & (PREVIEW | MASK)]
    if not chosen:
        raise ValueError("every page of this TIFF is marked as a preview or a mask.")
    first = tags[chosen[0]]
    shapes = {_shape(tags[number]) for number in chosen}
    samples = int(first.get(SAMPLES, 1))
    if len(shapes) > 1 or (len(chosen) > 1 and samples > 1):
        told = ", ".join(f"{w}x{h} with {s} bands of {b} bit" for w, h, s, b, _ in sorted(shapes))
        raise ValueError(
            f"it has {len(chosen)} pages ({told}); bands are those of one page, or one page each. "
            "Give every page a file of its own."
        )
    _check_description(str(first.get(DESCRIPTION, "")), len(tags))
    width, height, _, bits, kind = shapes.pop()
    extra = first.get(EXTRA, ())
    extra = extra if isinstance(extra, tuple) else (extra,)
    tile = (int(first.get(TILE_HEIGHT, 0)), int(first.get(TILE_WIDTH, 0)))
    return Layout(
        pages=tuple(chosen),
        width=width,
        height=height,
        bands=samples * len(chosen),
        bits=bits,
        kind=kind,
        photometric=int(first.get(PHOTOMETRIC, 1)),
        compression=int(first.get(COMPRESSION, 1)),
        alpha=bool(extra) and extra[-1] in (1, 2) and len(chosen) == 1,
        planar=int(first.get(PLANAR, 1)) == 2,
        tile=tile if all(tile) else None,
    )


def _pages(data: bytes) -> list:
    """The tags of every page."""
    file = io.BytesIO(data)
    start = file.read(16 if data[2:3] == b"+" or data[3:4] == b"+" else 8)
    tags = TiffImagePlugin.ImageFileDirectory_v2(start)
    found: list = []
    seen: set[int] = set()
    place = tags.next
    while place:
        if place in seen or len(seen) >= MAX_PAGES:
            raise ValueError(f"its list of pages does not end after {len(seen)}.")
        seen.add(place)
        file.seek(place)
        tags = TiffImagePlugin.ImageFileDirectory_v2(start)
        tags.load(file)
        found.append(tags)
        place = tags.next
    if not found:
        raise ValueError("it has no pages.")
    return found


def _shape(page) -> tuple[int, int, int, int, str]:
    """(width, height, samples, bits, kind) of a page."""
    samples = int(page.get(SAMPLES, 1))
    bits, kinds = page.get(BITS, (1,)), page.get(FORMAT, (1,))
    bits = set(bits if isinstance(bits, tuple) else (bits,))
    kinds = set(kinds if isinstance(kinds, tuple) else (kinds,))
    if len(bits) > 1 or len(kinds) > 1 or (kind := kinds.pop()) not in KINDS:
        raise ValueError("its bands are of different types, or of none that can be read.")
    width, height = int(page[WIDTH]), int(page[HEIGHT])
    return width, height, samples, int(bits.pop()), KINDS[kind]


def _check_description(text: str, num_pages: int) -> None:
    """Refuse files that hold more images than they list: one page, and numbers in its text."""
    told = 0
    if text.startswith("ImageJ="):
        told = max((int(x[7:]) for x in text.split() if x.startswith("images=")), default=0)
    if told > num_pages or '"truncated": true' in text:
        raise ValueError(
            f"its text tells of {told or 'more'} images, of which {num_pages} stand in its list of "
            "pages; write it again with one page for each band."
        )


def read_values(data: bytes, layout: Layout) -> np.ndarray:
    """All bands [H, W, C] in the type that they are stored in.

    Raises ValueError without the packages that it takes, else what tifffile raises.
    """
    try:
        tifffile = importlib.import_module("tifffile")
        if layout.compression != 1 or layout.bits % 8:
            importlib.import_module("imagecodecs")  # which also bounds what a strip unpacks to
    except ModuleNotFoundError as error:
        raise ValueError(
            f"a TIFF with {layout.bands} band{'s' * (layout.bands > 1)} of {layout.kind} "
            f"{layout.bits} bit needs the package {error.name}; run: pip install 'dinojax[tiff]'"
        ) from None
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it tells of odd tags, per image
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        pages = [file.pages[number] for number in layout.pages]
        bands = [_bands_last(page) for page in pages]
    values_HWC = np.concatenate(bands, axis=2)
    if values_HWC.shape != (layout.height, layout.width, layout.bands):
        raise ValueError(f"its bands have the shape {values_HWC.shape}, not that of its tags.")
    return values_HWC


def _bands_last(page) -> np.ndarray:
    array = page.asarray(maxworkers=1)
    axes = page.axes
    if axes not in ("YX", "YXS", "SYX"):
        raise ValueError(f"a page with the axes {axes} is no image of rows, columns and bands.")
    if axes == "YX":
        return array[:, :, None]
    return array if axes == "YXS" else np.moveaxis(array, 0, 2)
