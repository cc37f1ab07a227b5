"""Resampling of feature maps: sample positions and border rules of PyTorch's `interpolate`.

align_corners is off, but for `resize_corners`. The cubic coefficient is -0.75 and the border is
repeated without antialias; it is -0.5 and the border is cut and renormalised with it.
(`jax.image.resize` renormalises in both cases.) Each axis is one product with a small constant
matrix.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np


def resize(
    map_BHWD: jax.Array,
    size: tuple[int, int],
    *,
    method: str,
    antialias: bool,
    steps: tuple[float, float] | None = None,
) -> jax.Array:
    """A map at `size` rows and columns, [B, *size, D], in float32 at least.

    method: bilinear | bicubic. steps: distance of two samples in entries of the map, per axis;
    None spreads the samples over the whole map.
    """
    map_BHWD = map_BHWD.astype(jnp.promote_types(map_BHWD.dtype, jnp.float32))
    make = _antialiased if antialias else _interpolating
    old = map_BHWD.shape[1:3]
    steps = (old[0] / size[0], old[1] / size[1]) if steps is None else steps
    weights_yh, weights_xw = (
        jnp.asarray(make(size_in, size_out, method, step), map_BHWD.dtype)
        for size_in, size_out, step in zip(old, size, steps, strict=True)
    )
    map_ByWD = jnp.einsum("yh,bhwd->bywd", weights_yh, map_BHWD, precision="highest")
    return jnp.einsum("xw,bywd->byxd", weights_xw, map_ByWD, precision="highest")


def resize_corners(map_BHWD: jax.Array, size: tuple[int, int]) -> jax.Array:
    """A map at `size`, bilinear, whose corner entries stay in the corners (align_corners on)."""
    map_BHWD = map_BHWD.astype(jnp.promote_types(map_BHWD.dtype, jnp.float32))
    weights_yh, weights_xw = (
        jnp.asarray(_between_corners(size_in, size_out), map_BHWD.dtype)
        for size_in, size_out in zip(map_BHWD.shape[1:3], size, strict=True)
    )
    map_ByWD = jnp.einsum("yh,bhwd->bywd", weights_yh, map_BHWD, precision="highest")
    return jnp.einsum("xw,bywd->byxd", weights_xw, map_ByWD, precision="highest")


def _between_corners(size_in: int, size_out: int) -> np.ndarray:
    """Weights [out, in]: samples from the first entry to the last, both included."""
    places = np.arange(size_out) * ((size_in - 1) / max(size_out - 1, 1))
    return _linear(np.arange(size_in)[None] - places[:, None], 0.0)


def _linear(distance: np.ndarray | float, a: float) -> np.ndarray:
    return np.maximum(1.0 - np.abs(distance), 0.0)


def _cubic(distance: np.ndarray | float, a: float) -> np.ndarray:
    """Cubic convolution kernel. Keys 1981, eq. 15, with its free coefficient a."""
    x = np.abs(distance)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = a * (((x - 5.0) * x + 8.0) * x - 4.0)
    return np.where(x <= 1.0, near, np.where(x < 2.0, far, 0.0))


KERNELS = {"bilinear": (_linear, 1), "bicubic": (_cubic, 2)}  # kernel, half its width


def _interpolating(size_in: int, size_out: int, method: str, step: float) -> np.ndarray:
    """Weights [out, in] of the entries around each sample; beyond the border, the border's."""
    kernel, reach = KERNELS[method]
    weights = np.zeros((size_out, size_in))
    for row in range(size_out):
        position = (row + 0.5) * step - 0.5
        for tap in range(math.floor(position) - reach + 1, math.floor(position) + reach + 1):
            weights[row, min(max(tap, 0), size_in - 1)] += kernel(position - tap, -0.75)
    return weights


def _antialiased(size_in: int, size_out: int, method: str, step: float) -> np.ndarray:
    """Weights [out, in] of a kernel as wide as the reduction; those inside the map sum to 1."""
    kernel, reach = KERNELS[method]
    stretch = max(step, 1.0)
    centers = (np.arange(size_out) + 0.5) * step
    distance = np.arange(size_in)[None, :] + 0.5 - centers[:, None]
    weights = kernel(distance / stretch, -0.5)
    weights[np.abs(distance) >= reach * stretch] = 0.0
    return weights / weights.sum(axis=1, keepdims=True)
