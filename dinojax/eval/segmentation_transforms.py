"""What happens to an image and its labels before a segmentation head sees them.

DINOv3's released transforms. Randomness is that of a numpy Generator, asked in a fixed order:
size, cut (row and column, again after each refusal), mirror, then the colours.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dinojax.eval.dense_pixels import nearest, normalized, pad_to, resized, short_side
from dinojax.eval.segmentation_metrics import IGNORE, reduce_zero

_TRIES = 10  # cuts that are drawn anew; the last is taken unseen
_MAX_SHARE = 0.75  # of the most frequent class in a cut
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = 32.0, (0.5, 1.5), (0.5, 1.5), (-0.5, 0.5)


def view_sizes(
    height: int, width: int, size: int, ratios: Sequence[float] = (1.0,)
) -> list[tuple[int, int]]:
    """(height, width) of each view of an image whose short side shall be `size` times its ratio.

    A ratio below 1 rounds the short side up to a multiple of 32.
    """
    sides = [
        math.ceil(int(size * ratio) / 32) * 32 if ratio < 1 else int(size * ratio)
        for ratio in ratios
    ]
    return [short_side(height, width, side) for side in sides]


def views(
    image_HWC: np.ndarray, size: int, *, mean, std, ratios=(1.0,), flip: bool = False
) -> list[np.ndarray]:
    """Normalised views [h, w, C] for evaluation: each ratio, then each mirrored if `flip`."""
    height, width, _ = image_HWC.shape
    sizes = view_sizes(height, width, size, ratios)
    upright = [normalized(resized(image_HWC, shape), mean, std) for shape in sizes]
    return upright + ([view[:, ::-1] for view in upright] if flip else [])


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """A random view of an image and its labels: (float32 [S, S, C], int64 [S, S])."""

    size: int  # pixels of the short side before its ratio is drawn
    crop: int  # pixels of the cut's sides
    normalize: Callable[[np.ndarray], np.ndarray]  # of values 0..1
    ratios: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5  # rate of mirroring
    zero_is_unlabelled: bool = False  # ADE20k: see `reduce_zero`

    def __call__(self, image_HWC: np.ndarray, labels_HW: np.ndarray, rng: Any):
        """rng: with `random()`, `integers(high)` and `uniform(low, high)`."""
        low, high = self.ratios
        side = int(self.size * (rng.random() * (high - low) + low))
        height, width = labels_HW.shape
        shape = short_side(height, width, side)
        image, labels = resized(image_HWC, shape), nearest(labels_HW, shape)
        labels = reduce_zero(labels) if self.zero_is_unlabelled else labels.astype(np.int64)
        top, left = self._cut(labels, rng)
        image, labels = (x[top : top + self.crop, left : left + self.crop] for x in (image, labels))
        if rng.random() < self.flip:
            image, labels = image[:, ::-1], labels[:, ::-1]
        image = self.normalize(distorted(image, rng).astype(np.float32) / 255)
        return pad_to(image, labels, (self.crop, self.crop))

    def _cut(self, labels_HW: np.ndarray, rng) -> tuple[int, int]:
        margins = [max(side - self.crop, 0) for side in labels_HW.shape]
        place = [int(rng.integers(margin + 1)) for margin in margins]
        for _ in range(_TRIES):
            seen = labels_HW[place[0] : place[0] + self.crop, place[1] : place[1] + self.crop]
            classes, counts = np.unique(seen, return_counts=True)
            counts = counts[classes != IGNORE]
            if len(counts) > 1 and counts.max() / counts.sum() < _MAX_SHARE:
                break
            place = [int(rng.integers(margin + 1)) for margin in margins]
        return place[0], place[1]


def distorted(image_HWC: np.ndarray, rng) -> np.ndarray:
    """uint8 with brightness, contrast, saturation and hue changed, each at rate 0.5.

    Contrast comes before the colours or after them. Images of other than three channels have
    neither saturation nor hue.
    """
    colours = image_HWC.shape[2] == 3
    if rng.integers(2):
        image_HWC = _scaled(image_HWC, 1.0, rng.uniform(-_BRIGHTNESS, _BRIGHTNESS))
    first = rng.integers(2) == 1
    if first:
        image_HWC = _contrast(image_HWC, rng)
    if colours and rng.integers(2):
        image_HWC = saturated(image_HWC, rng.uniform(*_SATURATION))
    if colours and rng.integers(2):
        image_HWC = turned_hue(image_HWC, rng.uniform(*_HUE))
    return image_HWC if first else _contrast(image_HWC, rng)


def _contrast(image_HWC, rng) -> np.ndarray:
    return _scaled(image_HWC, rng.uniform(*_CONTRAST), 0.0) if rng.integers(2) else image_HWC


def _scaled(image_HWC, factor: float, offset: float) -> np.ndarray:
    values = image_HWC.astype(np.float32) * np.float32(factor) + np.float32(offset)
    return np.clip(values, 0, 255).astype(np.uint8)


def saturated(image_HW3: np.ndarray, factor: float) -> np.ndarray:
    """uint8 between its grey (0) and itself (1), or beyond. Grey by ITU-R 601, rounded down."""
    values = image_HW3.astype(np.float32)
    grey_HW = 0.2989 * values[..., 0] + 0.587 * values[..., 1] + 0.114 * values[..., 2]
    grey_HW1 = np.floor(grey_HW)[..., None]
    mixed = np.float32(factor) * values + np.float32(1.0 - factor) * grey_HW1
    return np.clip(mixed, 0, 255).astype(np.uint8)


def turned_hue(image_HW3: np.ndarray, turn: float) -> np.ndarray:
    """uint8 with the hue moved by this share of the circle; value and saturation stay."""
    rgb = image_HW3.astype(np.float32) / 255
    greatest, least = rgb.max(axis=-1), rgb.min(axis=-1)
    span = greatest - least
    grey = span == 0
    saturation = span / np.where(grey, 1, greatest)
    red, green, blue = np.moveaxis(
        (greatest[..., None] - rgb) / np.where(grey, 1, span)[..., None], -1, 0
    )
    is_red = greatest == rgb[..., 0]
    is_green = (greatest == rgb[..., 1]) & ~is_red
    sixth = np.where(is_red, blue - green, np.where(is_green, 2 + red - blue, 4 + green - red))
    hue = np.mod(sixth / 6 + 1, 1).astype(np.float32)
    return _from_hsv(np.mod(hue + np.float32(turn), 1), saturation, greatest)


def _from_hsv(hue, saturation, value) -> np.ndarray:
    sector = np.floor(hue * 6)
    part = hue * 6 - sector
    low = np.clip(value * (1 - saturation), 0, 1)
    falling = np.clip(value * (1 - saturation * part), 0, 1)
    rising = np.clip(value * (1 - saturation * (1 - part)), 0, 1)
    red = (value, falling, low, low, rising, value)
    green = (rising, value, value, falling, low, low)
    blue = (low, low, rising, value, value, falling)
    index = np.mod(sector.astype(np.int64), 6)
    rgb = np.stack([np.choose(index, channel) for channel in (red, green, blue)], axis=-1)
    return (rgb * np.float32(255.999)).astype(np.uint8)  # whole range, as torchvision rounds it
