"""A map of a large image from parts of the size that a backbone knows. DINOv3, D.9."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dinojax.ops.interpolate import resize
from dinojax.tasks.layers import size_of


def windowed(
    features_of: Callable[[jax.Array], jax.Array],
    images_BHWC: jax.Array,
    *,
    windows: int,
    patch_size: int,
) -> jax.Array:
    """[B, H / p, W / p, 2 C]: features of the whole at one window's size, then of each window.

    features_of: images -> [B, h, w, C]. windows: along each side; the last takes what is left.
    """

    def window(length: int) -> int:
        return -(-(length // windows) // patch_size) * patch_size

    rows, columns = size_of(images_BHWC)
    side = window(rows), window(columns)
    spans = [
        [(at * step, length if at == windows - 1 else (at + 1) * step) for at in range(windows)]
        for step, length in zip(side, (rows, columns), strict=True)
    ]
    parts = [
        jnp.concatenate(
            [features_of(images_BHWC[:, top:bottom, left:right]) for left, right in spans[1]],
            axis=2,
        )
        for top, bottom in spans[0]
    ]
    parts_BhwC = jnp.concatenate(parts, axis=1)
    small = resize(images_BHWC, side, method="bilinear", antialias=True)
    whole = features_of(small.astype(images_BHWC.dtype))
    whole = resize(whole, size_of(parts_BhwC), method="bilinear", antialias=True)
    return jnp.concatenate([whole.astype(parts_BhwC.dtype), parts_BhwC], axis=-1)
