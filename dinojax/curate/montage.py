"""Small pictures of images side by side, as text that a page holds."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from dinojax.data.decode import DecodeError
from dinojax.data.example import Source

SIDE = 72  # pixels of a picture


def thumbnail(source: Source, index: int, side: int = SIDE) -> Image.Image:
    """An image in a square; grey where it cannot be read. Of other than 3 bands their mean."""
    square = Image.new("RGB", (side, side), (128, 128, 128))
    try:
        pixels_HWC = source.read(index, side * 2).pixels
    except (DecodeError, OSError):
        return square
    if pixels_HWC.shape[2] != 3:
        mean_HW1 = np.rint(pixels_HWC.mean(axis=2, keepdims=True)).astype(np.uint8)
        pixels_HWC = np.repeat(mean_HW1, 3, axis=2)
    image = Image.fromarray(pixels_HWC)
    image.thumbnail((side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def montage(
    source: Source, indexes: Sequence[int], *, columns: int = 12, marked: Sequence[int] = ()
) -> str:
    """An <img> with the pictures in rows; "" for none. marked: which places have a frame."""
    if not len(indexes):
        return ""
    columns = min(columns, len(indexes))
    rows = -(-len(indexes) // columns)
    gap = 3
    sheet = Image.new("RGB", (columns * (SIDE + gap) + gap, rows * (SIDE + gap) + gap), "white")
    for place, index in enumerate(indexes):
        x, y = (gap + (place % columns) * (SIDE + gap), gap + (place // columns) * (SIDE + gap))
        if place in marked:
            sheet.paste((47, 125, 70), (x - gap, y - gap, x + SIDE + gap, y + SIDE + gap))
        sheet.paste(thumbnail(source, int(index)), (x, y))
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=80)
    text = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="" loading="lazy" src="data:image/jpeg;base64,{text}">'
