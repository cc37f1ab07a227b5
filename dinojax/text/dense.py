"""Words for every patch of an image: open-vocabulary segmentation, whole or by sliding windows.

DINOv3, arXiv:2508.10104, and the protocol of its notebook: cosines of patches with the second half
of the classes' vectors. The patches are the vision head's; the notebook, as released, takes the
frozen backbone's (docs/text.md).
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.models.text_networks import cosines
from dinojax.ops import interpolate

# Normalised images [B, H, W, C] -> patches [B, rows, columns, E].
Patches = Callable[[jax.Array], jax.Array]


def stretch(images_BHWC: jax.Array, patch_size: int) -> jax.Array:
    """Images whose sides are the next multiples of the patch, bicubic; as they are if they are."""
    height, width = (-(-side // patch_size) * patch_size for side in images_BHWC.shape[1:3])
    size = height, width
    if size == images_BHWC.shape[1:3]:
        return images_BHWC
    return interpolate.resize(images_BHWC, size, method="bicubic", antialias=False)


def whole(encode: Patches, image_HWC: Any, classes_CE: jax.Array, patch_size: int) -> jax.Array:
    """Cosines of every patch of an image with every class: [rows, columns, C]."""
    return cosines(encode(stretch(jnp.asarray(image_HWC)[None], patch_size))[0], classes_CE)


def sliding(
    encode: Patches,
    image_HWC: Any,
    classes_CE: jax.Array,
    *,
    patch_size: int,
    side: int,
    stride: int,
) -> jax.Array:
    """Mean over all windows of the classes' softmax at every pixel: [H, W, C].

    A window's cosines are resized to its pixels, bilinear, and go through a softmax without a
    scale. The last window of a row or column is moved back to end with the image.
    """
    height, width = image_HWC.shape[:2]
    total_HWC = np.zeros((height, width, len(classes_CE)), classes_CE.dtype)
    count_HW1 = np.zeros((height, width, 1), classes_CE.dtype)
    for top, left in windows(height, width, side=side, stride=stride):
        rows, columns = slice(top, top + side), slice(left, left + side)
        part_HWC = image_HWC[rows, columns]
        found = whole(encode, part_HWC, classes_CE, patch_size)
        size = part_HWC.shape[0], part_HWC.shape[1]
        total_HWC[rows, columns] += np.asarray(_probabilities(found, size))
        count_HW1[rows, columns] += 1
    return jnp.asarray(total_HWC / count_HW1)


def windows(height: int, width: int, *, side: int, stride: int) -> Iterator[tuple[int, int]]:
    """(top, left) of every window, row by row; an image smaller than one has one there."""
    for top in _starts(height, side, stride):
        for left in _starts(width, side, stride):
            yield top, left


def labels(scores_HWC: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The class of every pixel at another size, int32 [*size]: the largest of resized scores."""
    scores = interpolate.resize(scores_HWC[None], size, method="bilinear", antialias=False)[0]
    return jnp.argmax(scores, axis=-1).astype(jnp.int32)


def _probabilities(cosines_HWC, size: tuple[int, int]):
    resized = interpolate.resize(cosines_HWC[None], size, method="bilinear", antialias=False)[0]
    return jax.nn.softmax(resized, axis=-1)


def _starts(length: int, side: int, stride: int) -> list[int]:
    last = max(length - side, 0)
    return sorted({*range(0, last, stride), last})
