"""Rotary position embedding of patch centres in [-1, 1]. DINOv3, arXiv:2508.10104, section 3.2.

Angles are computed in float32 (float64 for float64 models). `dtype="bfloat16"` rounds after every
operation, which reproduces what the reference implementation computes when it runs in bfloat16.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import struct


@dataclasses.dataclass(frozen=True)
class RopeSpec:
    """Static choices; the fields are the keys of the `rope` section of the config.

    Raises ValueError unless exactly one of `base` and `min_period` with `max_period` is given.
    """

    base: float | None = 100.0
    min_period: float | None = None
    max_period: float | None = None
    coords: str = "separate"  # separate | max | min
    shift: float | None = None
    jitter: float | None = None
    rescale: float | None = None
    dtype: str = "float32"
    periods_dtype: str = "float32"

    def __post_init__(self):
        bounds = (self.min_period, self.max_period)
        if (self.base is None) == (None in bounds) or (None in bounds and bounds != (None, None)):
            raise ValueError(
                f"rope.base={self.base}, rope.min_period={self.min_period}, rope.max_period="
                f"{self.max_period}: give either rope.base or both periods, the rest None."
            )

    @property
    def augments(self) -> bool:
        return any(bound is not None for bound in (self.shift, self.jitter, self.rescale))


@struct.dataclass
class RopeDraw:
    """Random change of the coordinates, applied in this order; all leading axes are batch axes."""

    shift: jax.Array  # [..., 2] added to (row, column)
    jitter: jax.Array  # [..., 2] logarithm of a factor per axis
    rescale: jax.Array  # [..., 1] logarithm of a factor for both


def draw(key: jax.Array, spec: RopeSpec, count: int) -> RopeDraw:
    """`count` draws: shift in U(-s, s), log-factors in U(-ln j, ln j) and U(-ln r, ln r)."""
    log_jitter, log_rescale = (math.log(bound or 1.0) for bound in (spec.jitter, spec.rescale))
    unit = jax.random.uniform(key, (count, 5), minval=-1.0)
    return RopeDraw(
        shift=unit[:, :2] * (spec.shift or 0.0),
        jitter=unit[:, 2:4] * log_jitter,
        rescale=unit[:, 4:] * log_rescale,
    )


def _rounder(dtype: str):
    """Rounding to bfloat16 that no compiler may skip, or nothing."""
    if dtype == "bfloat16":
        return lambda x: jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    return lambda x: x


def _angle_dtype(spec: RopeSpec):
    return jnp.float64 if spec.dtype == "float64" else jnp.float32


def periods(head_width: int, spec: RopeSpec) -> jax.Array:
    """Periods [E/4], shortest first. Raises ValueError if E is not a multiple of 4."""
    if head_width % 4:
        raise ValueError(
            f"model.width / model.num_heads = {head_width} is not a multiple of 4, "
            "which rotary position embedding needs."
        )
    n, dtype, rounded = head_width // 4, _angle_dtype(spec), _rounder(spec.dtype)
    if spec.base is not None:
        period = jnp.asarray(spec.base, dtype) ** (jnp.arange(n, dtype=dtype) / n)
    else:
        assert spec.min_period is not None and spec.max_period is not None
        ratio = spec.max_period / spec.min_period
        step, i = rounded(jnp.asarray(1 / max(n - 1, 1), dtype)), jnp.arange(n, dtype=dtype)
        # From both ends to the middle: where step is rounded, this is what the reference gets.
        steps = rounded(jnp.where(i < n // 2, step * i, 1.0 - step * (n - 1 - i)))
        period = rounded(rounded(jnp.asarray(ratio, dtype) ** steps) / ratio) * spec.max_period
    return _rounder(spec.periods_dtype)(rounded(period))


def coordinates(rows: int, columns: int, spec: RopeSpec) -> jax.Array:
    """Patch centres [P, 2] as (row, column), row-major.

    `separate` divides rows and columns each by their own number; `max` and `min` both by the
    larger or the smaller, which leaves a grid that is not square anchored at the top left.
    """
    rounded, dtype = _rounder(spec.dtype), _angle_dtype(spec)
    sides = {
        "separate": (rows, columns),
        "max": (max(rows, columns),) * 2,
        "min": (min(rows, columns),) * 2,
    }[spec.coords]
    axes = [
        rounded(rounded(jnp.arange(count, dtype=dtype) + 0.5) / side)
        for count, side in zip((rows, columns), sides, strict=True)
    ]
    grid = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    return rounded(rounded(2.0 * grid) - 1.0)


def move(coords_P2: jax.Array, change: RopeDraw, spec: RopeSpec) -> jax.Array:
    """Coordinates [..., P, 2] after a draw with leading axes [...]."""
    rounded = _rounder(spec.dtype)
    coords = coords_P2.reshape((1,) * (change.shift.ndim - 1) + coords_P2.shape)
    coords = rounded(coords + rounded(change.shift)[..., None, :])
    coords = rounded(coords * rounded(jnp.exp(rounded(change.jitter)))[..., None, :])
    return rounded(coords * rounded(jnp.exp(rounded(change.rescale)))[..., None, :])


def table(coords_P2: jax.Array, periods_E4: jax.Array, spec: RopeSpec):
    """Sine and cosine [..., P, E]: the row's E/4 angles, the column's, and both once more."""
    rounded = _rounder(spec.dtype)
    turns = rounded(2 * math.pi * coords_P2)[..., None]
    angles = rounded(turns / periods_E4.reshape((1,) * coords_P2.ndim + (-1,)))  # [..., P, 2, E/4]
    angles = angles.reshape(*angles.shape[:-2], -1)
    angles = jnp.concatenate([angles, angles], axis=-1)
    return rounded(jnp.sin(angles)), rounded(jnp.cos(angles))


def rotate(x_BNAE: jax.Array, sin: jax.Array, cos: jax.Array, spec: RopeSpec) -> jax.Array:
    """Rotates the last P tokens; pairs are channels (j, j + E/2). Keeps the dtype of x.

    sin, cos: [P, E], or [B, P, E] when sequences differ.
    """
    rounded, num_patches = _rounder(spec.dtype), sin.shape[-2]
    x = rounded(x_BNAE.astype(jnp.promote_types(x_BNAE.dtype, jnp.float32)))
    prefix, patches = x[:, :-num_patches], x[:, -num_patches:]
    sin, cos = (t.reshape((-1, *t.shape[-2:]))[:, :, None] for t in (sin, cos))  # [1 or B, P, 1, E]
    first, second = jnp.split(patches, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    patches = rounded(rounded(patches * cos) + rounded(turned * sin))
    return jnp.concatenate([prefix, patches.astype(x.dtype)], axis=1).astype(x_BNAE.dtype)
