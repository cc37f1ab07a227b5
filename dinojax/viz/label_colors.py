"""Maps of labels and of numbers as colours, and rows of pictures on one sheet."""

import colorsys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_SIDE = 160  # pixels of the longer side of a picture on a sheet
_GAP = 4
_LINE = 22  # pixels of a name


def label_colors(labels_HW: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: a colour per class, the same in every picture; 255 (ignored) is black."""
    hues = [colorsys.hsv_to_rgb(n * 0.61803 % 1, 0.55 + 0.4 * (n % 2), 0.95) for n in range(255)]
    table = np.round(255 * np.array([*hues, (0.0, 0.0, 0.0)])).astype(np.uint8)
    return table[np.where(labels_HW >= 255, 255, labels_HW % 255)]


def value_colors(values_HW: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8 [H, W, 3]: dark blue at `low` over green to yellow at `high`; NaN is black."""
    ramp = np.array([(10, 12, 45), (45, 45, 130), (30, 130, 145), (110, 195, 90), (250, 235, 60)])
    share = np.clip((values_HW - low) / max(high - low, 1e-12), 0, 1)
    places = np.linspace(0, 1, len(ramp))
    known = np.nan_to_num(share)
    colors = np.stack([np.interp(known, places, ramp[:, c]) for c in range(3)], axis=-1)
    return np.round(np.where(np.isnan(values_HW)[..., None], 0, colors)).astype(np.uint8)


def as_rgb(pixels_HWC: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] of an image of any channels: grey repeated, more than three cut."""
    if pixels_HWC.shape[2] < 3:
        return np.repeat(pixels_HWC[:, :, :1], 3, axis=2)
    return pixels_HWC[:, :, :3]


def side_by_side(rows, side: int = _SIDE) -> np.ndarray:
    """uint8 [H, W, 3] of rows of pictures of equal size within a row, each made small (`side`)."""
    drawn = []
    for row in rows:
        height, width = row[0].shape[:2]
        scale = side / max(height, width)
        size = max(round(width * scale), 1), max(round(height * scale), 1)
        nearest = Image.Resampling.NEAREST
        drawn.append([np.asarray(Image.fromarray(as_rgb(p)).resize(size, nearest)) for p in row])
    columns = max(len(row) for row in drawn)
    sheet = np.full((len(drawn) * (side + _GAP), columns * (side + _GAP), 3), 24, np.uint8)
    for y, row in enumerate(drawn):
        for x, picture in enumerate(row):
            top, left = y * (side + _GAP), x * (side + _GAP)
            sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return sheet


def with_names(sheet_HWC: np.ndarray, names: dict[int, str]) -> np.ndarray:
    """The sheet with the names of labels below it, each beside its colour of `label_colors`."""
    columns = max(1, sheet_HWC.shape[1] // _SIDE)
    rows = -(-len(names) // columns)
    below_HWC = np.full((rows * _LINE + _GAP, *sheet_HWC.shape[1:]), 24, np.uint8)
    below = Image.fromarray(below_HWC)
    draw, font = ImageDraw.Draw(below), ImageFont.load_default(size=13)
    for place, (label, name) in enumerate(names.items()):
        left, top = (place % columns) * (_SIDE + _GAP), (place // columns) * _LINE + _GAP
        color = tuple(label_colors(np.array([[label]]))[0, 0].tolist())
        draw.rectangle((left + 2, top + 2, left + 14, top + 14), fill=color)
        draw.text((left + 20, top), name, fill="white", font=font)
    return np.concatenate([sheet_HWC, np.asarray(below)])
