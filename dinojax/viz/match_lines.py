"""Two pictures side by side with lines between what was matched."""

import numpy as np
from PIL import Image, ImageDraw

from dinojax.viz.label_colors import as_rgb

_MOST = 24  # lines
_RIGHT, _WRONG = (80, 220, 90), (235, 60, 50)


def match_lines(left_HWC, right_HWC, left_K2, found_K2, true_K2=None) -> np.ndarray:
    """uint8 [H, W, 3]; points are pixels (x, y). Lines end at what was found.

    true: where the points are; green is found within a twelfth of the picture, red is not.
    """
    height = max(left_HWC.shape[0], right_HWC.shape[0])
    width = left_HWC.shape[1] + right_HWC.shape[1]
    scale = max(1, round(320 / height))
    sheet = Image.new("RGB", (width * scale, height * scale), (24, 24, 24))
    for pixels, left in ((left_HWC, 0), (right_HWC, left_HWC.shape[1])):
        picture = Image.fromarray(np.ascontiguousarray(as_rgb(pixels)))
        size = picture.width * scale, picture.height * scale
        sheet.paste(picture.resize(size, Image.Resampling.NEAREST), (left * scale, 0))
    draw = ImageDraw.Draw(sheet)
    picked = np.unique(np.linspace(0, len(left_K2) - 1, min(_MOST, len(left_K2))).astype(int))
    for number in picked:
        color = _RIGHT
        if true_K2 is not None:
            off = np.max(np.abs(found_K2[number] - true_K2[number]))
            color = _RIGHT if off <= right_HWC.shape[1] / 12 else _WRONG
        start = (np.asarray(left_K2[number]) + 0.5) * scale
        end = (np.asarray(found_K2[number]) + 0.5 + [left_HWC.shape[1], 0]) * scale
        draw.line([*start, *end], fill=color, width=max(1, scale // 2))
    return np.asarray(sheet)
