"""Losses of segmentation heads, in the dtype of the logits (float32 at least)."""

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.eval.segmentation_metrics import IGNORE


def cross_entropy(
    logits_BHWC: jax.Array, labels_BHW: jax.Array, *, over_valid: bool = False
) -> jax.Array:
    """Mean cross-entropy, over all pixels: ignored ones count 0 and are in the denominator.

    That is what the released head is trained with; it makes the gradient smaller on sets with much
    that is ignored. over_valid: divide by the labelled pixels instead.
    """
    logits_BHWC = logits_BHWC.astype(jnp.promote_types(logits_BHWC.dtype, jnp.float32))
    valid_BHW = labels_BHW != IGNORE
    index_BHW1 = jnp.where(valid_BHW, labels_BHW, 0)[..., None]
    log_BHWC = jax.nn.log_softmax(logits_BHWC)
    picked_BHW = jnp.take_along_axis(log_BHWC, index_BHW1, axis=-1)[..., 0]
    total = -jnp.sum(jnp.where(valid_BHW, picked_BHW, 0))
    if not over_valid:
        return total / labels_BHW.size
    return total / (jnp.sum(valid_BHW, dtype=total.dtype) + float(np.finfo(np.float32).eps))


def dice(probabilities_BHWC: jax.Array, targets_BHWC: jax.Array, *, smooth: float = 1.0):
    """Mean over images and classes of 1 - Dice with squared areas. Milletari et al. 2016, eq. 3.

    probabilities, targets: 0..1 of each class, the same shape.
    """
    dtype = jnp.promote_types(probabilities_BHWC.dtype, jnp.float32)
    p_BHWC, t_BHWC = probabilities_BHWC.astype(dtype), targets_BHWC.astype(dtype)
    shared_BC = jnp.sum(p_BHWC * t_BHWC, axis=(1, 2))
    areas_BC = jnp.sum(p_BHWC**2 + t_BHWC**2, axis=(1, 2))
    return jnp.mean(1 - (2 * shared_BC + smooth) / (areas_BC + smooth))
