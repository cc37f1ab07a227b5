"""A picture with boxes on it."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dinojax.viz.label_colors import as_rgb, label_colors

_LEAST = 320  # pixels of the longer side of a picture; a smaller one is enlarged
_LETTERS = 12  # pixels


class Boxes(NamedTuple):
    """Boxes of an image: corners (left, top, right, bottom) in its pixels."""

    corners_N4: np.ndarray
    class_N: np.ndarray  # int
    score_N: np.ndarray

    @property
    def sides_N4(self) -> np.ndarray:
        """(left, top, width, height), float64: in float32, left + width is not always the right
        edge and may lie beyond the image."""
        low, high = np.split(self.corners_N4.astype(np.float64), 2, axis=1)
        return np.concatenate([low, high - low], axis=1)

    def above(self, least: float) -> "Boxes":
        """Those with at least this score."""
        return Boxes(*(part[self.score_N >= least] for part in self))


def box_lines(
    pixels_HWC: np.ndarray, boxes: Boxes, names: Mapping[int, str] | None = None
) -> np.ndarray:
    """uint8 [H, W, 3]: each box in the colour of its class, the surest on top.

    names: of classes, written beside the box with its score.
    """
    height, width = pixels_HWC.shape[:2]
    scale = max(1, round(_LEAST / max(height, width)))
    picture = Image.fromarray(np.ascontiguousarray(as_rgb(pixels_HWC)))
    picture = picture.resize((width * scale, height * scale), Image.Resampling.NEAREST)
    draw, line = ImageDraw.Draw(picture), max(2, max(picture.size) // 250)
    font = ImageFont.load_default(size=_LETTERS)
    for number in np.argsort(boxes.score_N, kind="stable"):
        label = int(boxes.class_N[number])
        color = tuple(label_colors(np.array([[label % 255]]))[0, 0].tolist())
        left, top, right, bottom = (float(edge) * scale for edge in boxes.corners_N4[number])
        draw.rectangle((left, top, max(right - 1, left), max(bottom - 1, top)), None, color, line)
        if names is not None:
            told = f"{names[label]} {boxes.score_N[number]:.2f}"
            draw.text((left + line + 1, top + line), told, fill=color, font=font)
    return np.asarray(picture)
