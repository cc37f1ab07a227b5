"""Losses of depth heads. Maps [B, H, W], masks true where the truth is known."""

import jax
import jax.numpy as jnp

_EPS = 1e-3  # metres; keeps logarithms of depth finite
STRIDES = (1, 2, 4, 6)  # of the maps that the gradient losses look at


def sig_loss(depth_BHW, truth_BHW, valid_BHW, *, with_variance: bool) -> jax.Array:
    """Scale-invariant loss: sqrt(variance + 0.15 mean^2) of the logarithms' difference.

    The variance is the unbiased one; the released head leaves it out of its first 100 steps.
    Binsformer, arXiv:2204.00987. Its gradient is 0, not NaN, where the loss is 0.
    """
    depth_BHW, truth_BHW = _wide(depth_BHW, truth_BHW)
    # Holes hold 0 or NaN; ones keep their logarithms and gradients out of the sums.
    depth_BHW = jnp.where(valid_BHW, depth_BHW, 1.0)
    truth_BHW = jnp.where(valid_BHW, truth_BHW, 1.0)
    difference = jnp.log(depth_BHW + _EPS) - jnp.log(truth_BHW + _EPS)
    count = jnp.sum(valid_BHW, dtype=difference.dtype)
    mean = jnp.sum(jnp.where(valid_BHW, difference, 0)) / jnp.maximum(count, 1)
    total = 0.15 * mean**2
    squares = jnp.sum(jnp.where(valid_BHW, (difference - mean) ** 2, 0))
    total += jnp.where(with_variance, squares / jnp.maximum(count - 1, 1), 0)
    return jnp.sqrt(jnp.where(total > 0, total, 1.0)) * (total > 0)


def gradient_loss(depth_BHW, truth_BHW, valid_BHW=None, *, log: bool = False) -> jax.Array:
    """Differences of the error two pixels apart, on maps of several strides.

    log: of the logarithms. MegaDepth, arXiv:1804.00607, section 4.2.
    """
    depth_BHW, truth_BHW = _wide(depth_BHW, truth_BHW)
    valid_BHW = jnp.ones(truth_BHW.shape, bool) if valid_BHW is None else valid_BHW
    if log:
        depth_BHW, truth_BHW = (
            jnp.log(jnp.where(valid_BHW, x, 1.0) + _EPS) for x in (depth_BHW, truth_BHW)
        )
    error_BHW = jnp.where(valid_BHW, depth_BHW - truth_BHW, 0)
    total = jnp.zeros((), error_BHW.dtype)
    for stride in STRIDES:
        error, valid = (x[:, ::stride, ::stride] for x in (error_BHW, valid_BHW))
        count = jnp.maximum(jnp.sum(valid, dtype=error.dtype), 1)
        down = jnp.abs(error[:, :-2] - error[:, 2:]) * (valid[:, :-2] & valid[:, 2:])
        right = jnp.abs(error[:, :, :-2] - error[:, :, 2:]) * (valid[:, :, :-2] & valid[:, :, 2:])
        total += (jnp.sum(down) + jnp.sum(right)) / count
    return total


def l1_loss(depth_BHW, truth_BHW, valid_BHW) -> jax.Array:
    """Mean absolute error over the valid pixels."""
    depth_BHW, truth_BHW = _wide(depth_BHW, truth_BHW)
    error_BHW = jnp.abs(jnp.where(valid_BHW, depth_BHW - truth_BHW, 0))
    return jnp.sum(error_BHW) / (jnp.sum(valid_BHW, dtype=error_BHW.dtype) + 1e-7)


def _wide(*maps):
    return [jnp.asarray(x).astype(jnp.promote_types(x.dtype, jnp.float32)) for x in maps]
