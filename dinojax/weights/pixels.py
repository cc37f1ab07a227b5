"""Steps from uint8 pixels to what a network takes, each as the libraries that have it do it."""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from dinojax.data.decode import resize_pixels

MIN_STD = 1e-6  # of values in 0..1; a crop of one colour becomes zeros, not NaN

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def _short(height: int, width: int, size: tuple[int, ...]) -> tuple[int, int]:
    """The short side becomes size[0], the long one keeps the aspect, rounded down."""
    (short,) = size
    if height <= width:
        return short, short * width // height
    return short * height // width, short


def _bounded(height: int, width: int, size: tuple[int, ...]) -> tuple[int, int]:
    """Short side size[0], or less where the long one would exceed size[1]; as transformers.

    Floats and their order are those of transformers.image_transforms.get_size_with_aspect_ratio.
    """
    short, longest = size
    low, high = float(min(height, width)), float(max(height, width))
    raw: float = short
    if high / low * short > longest:
        raw = longest * low / high
        short = round(raw)
    if min(height, width) == short:
        return height, width
    if width < height:
        return int(raw * height / width), short
    return short, int(raw * width / height)


def _inside(height: int, width: int, size: tuple[int, ...]) -> tuple[int, int]:
    """The largest that fits into size = (height, width), rounded down; as transformers."""
    scale = min(size[0] / height, size[1] / width)
    return int(height * scale), int(width * scale)


def _exact(height: int, width: int, size: tuple[int, ...]) -> tuple[int, int]:
    return size[0], size[1]


def _by_ratio(pick: Callable) -> Callable[[int, int, tuple[int, ...]], tuple[int, int]]:
    """timm's: both sides divided by one ratio of the image to size = (height, width), rounded."""

    def sides(height: int, width: int, size: tuple[int, ...]) -> tuple[int, int]:
        ratio = pick(height / size[0], width / size[1])
        return round(height / ratio), round(width / ratio)

    return sides


# Name of a rule -> (height, width, resize_size) -> (height, width)
RULES: dict[str, Callable[[int, int, tuple[int, ...]], tuple[int, int]]] = {
    "short": _short,
    "bounded": _bounded,
    "inside": _inside,
    "exact": _exact,
    "cover": _by_ratio(min),
    "contain": _by_ratio(max),
}
NUM_SIZES = {"short": 1}  # of resize_size; two of every other rule


def resized(
    values_HWC: np.ndarray, rule: str, size: tuple[int, ...], filter: str, *, tensors: bool = False
) -> np.ndarray:
    """uint8 (rounded again) or float32 values, antialiased but for nearest.

    tensors: as torch does it with tensors of bytes, which differs from Pillow in two ways: the
    width goes first always (Pillow 13 takes the order that costs less, and what is rounded and
    clipped in between differs by several levels), and the nearest pixel is found in float32.
    """
    old_height, old_width = values_HWC.shape[:2]
    height, width = (max(1, side) for side in RULES[rule](old_height, old_width, size))
    if tensors and filter == "nearest":
        return values_HWC[_nearest(old_height, height)][:, _nearest(old_width, width)]
    if tensors:
        values_HWC = resize_pixels(values_HWC, old_height, width, FILTERS[filter])
    return resize_pixels(values_HWC, height, width, FILTERS[filter])


def _nearest(had: int, side: int) -> np.ndarray:
    """Index of the pixel under each centre, of float32 products."""
    scale = np.float32(had) / np.float32(side)
    indexes = np.floor((np.arange(side, dtype=np.float32) + np.float32(0.5)) * scale)
    return np.minimum(indexes.astype(int), had - 1)


def center_crop(
    values_HWC: np.ndarray,
    size: int | tuple[int, int],
    *,
    offset: str = "even",
    fill: tuple[float, ...] | None = None,
) -> np.ndarray:
    """The centre of `size` pixels (one side, or height and width); filled where it is larger.

    offset: what becomes of half a pixel, a key of OFFSETS. fill: per channel, None = zeros.
    """
    sides = (size, size) if isinstance(size, int) else size
    short = [max(0, side - had) for side, had in zip(sides, values_HWC.shape[:2], strict=True)]
    if any(short):
        pads = [(missing // 2, missing - missing // 2) for missing in short]
        bare_HWC, values_HWC = values_HWC, np.pad(values_HWC, [*pads, (0, 0)])
        if fill is not None:
            values_HWC[:] = np.asarray(fill, values_HWC.dtype)
            (top, _), (left, _) = pads
            height, width = bare_HWC.shape[:2]
            values_HWC[top : top + height, left : left + width] = bare_HWC
    top, left = (
        OFFSETS[offset](had - side) for had, side in zip(values_HWC.shape[:2], sides, strict=True)
    )
    return values_HWC[top : top + sides[0], left : left + sides[1]]


# torchvision and timm round half a pixel to even, transformers down.
OFFSETS: dict[str, Callable[[int], int]] = {
    "even": lambda rest: round(rest / 2),
    "down": lambda rest: math.floor(rest / 2),
}


def padded(values_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Zeros at the bottom and the right. Raises ValueError for an image that is larger."""
    rest = [side - had for side, had in zip(size, values_HWC.shape[:2], strict=True)]
    if min(rest) < 0:
        raise ValueError(
            f"an image of {values_HWC.shape[:2]} pixels is larger than pad_size {size}."
        )
    return np.pad(values_HWC, [(0, rest[0]), (0, rest[1]), (0, 0)])


def _fixed(values_HWC, mean, std):
    return (values_HWC - np.float32(mean)) / np.float32(std)


def _per_crop(values_HWC, mean, std):
    """Each crop to mean 0 and standard deviation 1 over all its pixels and channels."""
    del mean, std
    centered_HWC = values_HWC - values_HWC.mean(dtype=np.float64)
    return centered_HWC / max(np.sqrt(np.mean(centered_HWC**2)), MIN_STD)


def _none(values_HWC, mean, std):
    del mean, std
    return values_HWC


NORMALIZE = {"fixed": _fixed, "per_crop": _per_crop, "none": _none}
