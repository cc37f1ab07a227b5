"""Pictures and their maps of labels or depth, resized, cut and padded on the host."""

import numpy as np
from PIL import Image

from dinojax.eval.segmentation_metrics import IGNORE


def short_side(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) with the short side at `size`, the long one rounded to nearest."""
    if height > width:
        return int(size * height / width + 0.5), size
    return size, int(size * width / height + 0.5)


def resized(image_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [*size, C] by Pillow's bilinear filter, which is antialiased."""
    bilinear = Image.Resampling.BILINEAR
    if image_HWC.shape[2] == 3:
        picture = Image.fromarray(np.ascontiguousarray(image_HWC))
        return np.asarray(picture.resize(size[::-1], bilinear))
    bands = (Image.fromarray(np.ascontiguousarray(band)) for band in np.moveaxis(image_HWC, -1, 0))
    return np.stack([np.asarray(b.resize(size[::-1], bilinear)) for b in bands], axis=-1)


def nearest(map_HW: np.ndarray, size: tuple[int, int], *, exact: bool = False) -> np.ndarray:
    """A map [*size] of the entry at floor(i * step) of each axis, as PyTorch's `nearest`.

    exact: at floor((i + 0.5) * step), the middle of each new pixel, as its `nearest-exact`.
    """
    rows, columns = (
        _places(old, new, 0.5 if exact else 0.0)
        for old, new in zip(map_HW.shape[:2], size, strict=True)
    )
    return map_HW[rows][:, columns]


def _places(old: int, new: int, offset: float) -> np.ndarray:
    step = np.float32(old / new)  # single precision decides the ties, as it does there
    places = np.floor((np.arange(new, dtype=np.float32) + np.float32(offset)) * step)
    return np.minimum(places.astype(np.int64), old - 1)


def normalized(image_HWC: np.ndarray, mean, std) -> np.ndarray:
    """float32 from bytes or from values of 0..255; mean and std are of values in 0..1."""
    mean_C, std_C = (255 * np.asarray(values, np.float32) for values in (mean, std))
    return (np.asarray(image_HWC, np.float32) - mean_C) / std_C


def pad_to_multiple(images_BHWC: np.ndarray, multiple: int) -> np.ndarray:
    """Zeros around images up to a multiple; the odd row or column is below and at the right."""
    pads = [(0, 0)]
    for side in images_BHWC.shape[1:3]:
        missing = -side % multiple
        pads.append((missing // 2, missing - missing // 2))
    return np.pad(images_BHWC, [*pads, (0, 0)])


def pad_to(
    image_HWC: np.ndarray, labels_HW: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Filled up below and at the right, the image with 0 and the labels with IGNORE."""
    missing = [(0, max(new - old, 0)) for old, new in zip(labels_HW.shape, size, strict=True)]
    image_HWC = np.pad(image_HWC, [*missing, (0, 0)])
    return image_HWC, np.pad(labels_HW, missing, constant_values=IGNORE)
