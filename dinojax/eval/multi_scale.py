"""One descriptor of an image at several sizes: the mean of those at 1, 1/sqrt(2) and 1/2.

As the released DINOv3 evaluation has it for retrieval; the papers' tables use one size.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from dinojax.ops import interpolate

SCALES = (1.0, 0.5**0.5, 0.5)


def rescaled(images_BHWC: jax.Array, scale: float) -> jax.Array:
    """Bilinear without antialias, sides rounded down, samples exactly 1 / scale pixels apart."""
    height, width = (int(side * scale) for side in images_BHWC.shape[1:3])
    return interpolate.resize(
        images_BHWC,
        (height, width),
        method="bilinear",
        antialias=False,
        steps=(1 / scale, 1 / scale),
    )


def multi_scale(
    features: Callable[[jax.Array], jax.Array],
    images_BHWC: jax.Array,
    *,
    scales: Sequence[float] = SCALES,
    normalize: bool = True,
) -> jax.Array:
    """The mean [B, D] of `features(images)` over the scales, of unit length if `normalize`.

    images_BHWC: normalised. The sides need not divide by a patch: `features` sees to that.
    """
    found = [features(images_BHWC if s == 1 else rescaled(images_BHWC, s)) for s in scales]
    mean_BD = sum(found[1:], found[0]) / len(found)
    return mean_BD / jnp.linalg.norm(mean_BD, axis=1, keepdims=True) if normalize else mean_BD
