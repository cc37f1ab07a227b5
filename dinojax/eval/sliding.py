"""Inference over windows of an image, and the mean of several views of it. DINOv3 code, D.1."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.ops.interpolate import resize


def windows(height: int, width: int, *, crop: int, stride: int) -> list[tuple[int, int, int, int]]:
    """(top, left, height, width) of each window, row by row; all windows have one size.

    The last one of an axis ends where the image ends. A side shorter than the crop makes the
    window shorter; if both are, it is a square of the shorter side.
    """
    if crop < 1 or stride < 1:
        raise ValueError(f"crop={crop} and stride={stride} must be at least 1.")
    if height < crop and width < crop:
        crop = min(height, width)
    tops, lefts = (_starts(side, crop, stride) for side in (height, width))
    size = min(crop, height), min(crop, width)
    return [(top, left, *size) for top in tops for left in lefts]


def _starts(side: int, crop: int, stride: int) -> list[int]:
    count = max(side - crop + stride - 1, 0) // stride + 1
    return [max(min(number * stride + crop, side) - crop, 0) for number in range(count)]


def slide(
    logits_of: Callable[[np.ndarray], np.ndarray],
    image_HWC: np.ndarray,
    *,
    crop: int,
    stride: int,
    batch_size: int = 8,
) -> np.ndarray:
    """Logits [H, W, K] of an image: the mean over the windows that cover a pixel.

    logits_of: windows [B, h, w, C] -> logits [B, h, w, K]; it is called with `batch_size` windows
    each time, the last ones filled with zeros, so that one image size compiles once.
    """
    height, width, _ = image_HWC.shape
    places = windows(height, width, crop=crop, stride=stride)
    parts_NhwC = cut(image_HWC, places)
    batch_size = min(batch_size, len(places))
    found = []
    for first in range(0, len(places), batch_size):
        part = parts_NhwC[first : first + batch_size]
        fill = [(0, batch_size - len(part)), (0, 0), (0, 0), (0, 0)]
        found.append(np.asarray(logits_of(np.pad(part, fill)))[: len(part)])
    return stitched(np.concatenate(found), places, (height, width))


def cut(image_HWC: np.ndarray, places: list[tuple[int, int, int, int]]) -> np.ndarray:
    """The windows [N, h, w, C] of an image."""
    return np.stack([image_HWC[y : y + h, x : x + w] for y, x, h, w in places])


def stitched(
    logits_NhwK: np.ndarray, places: list[tuple[int, int, int, int]], size: tuple[int, int]
) -> np.ndarray:
    """Logits [*size, K] of an image: the mean over the windows that cover a pixel."""
    total_HWK = np.zeros((*size, logits_NhwK.shape[-1]), logits_NhwK.dtype)
    visits_HW1 = np.zeros((*size, 1), logits_NhwK.dtype)
    for (y, x, h, w), logits_hwK in zip(places, logits_NhwK, strict=True):
        total_HWK[y : y + h, x : x + w] += logits_hwK
        visits_HW1[y : y + h, x : x + w] += 1
    return total_HWK / visits_HW1


def probabilities(
    logits_HWK: np.ndarray, size: tuple[int, int], *, flipped: bool = False
) -> jax.Array:
    """Probabilities [*size, K] of the image that a view shows: resized, turned back, softmax."""
    resized_HWK = resize(jnp.asarray(logits_HWK)[None], size, method="bilinear", antialias=False)[0]
    return jax.nn.softmax(resized_HWK[:, ::-1] if flipped else resized_HWK)


def merged(views: Iterable[jax.Array]) -> np.ndarray:
    """The classes int64 [H, W] of the mean of several views' probabilities [H, W, K]."""
    views = list(views)
    return np.asarray(jnp.argmax(sum(views[1:], views[0]), axis=-1)).astype(np.int64)
