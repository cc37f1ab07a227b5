"""Prototype cross-entropy at masked patches. iBOT, arXiv:2111.07832, eq. 2.

`ibot_loss` is the definition; training takes the cross-entropies from blocks.py.
"""

import math

import jax
import jax.numpy as jnp


def masked_patches(patches_NPD: jax.Array, masks_BGP: jax.Array, masked_UM: jax.Array) -> jax.Array:
    """Patches of all crops (B G) at the masked positions of each group: [U, M, D].

    Positions count through a group's flattened (V G P), so patches of another grid would be
    picked at wrong places: raises ValueError for them.
    """
    found, wanted = patches_NPD.shape[1], masks_BGP.shape[2]
    if found != wanted:
        raise ValueError(
            f"A network makes {_grid(found)} patches of a global crop, but the masks have "
            f"{_grid(wanted)}, those of the student: its targets would be patches of other places. "
            "Its crops need as many of its patches as the student's have of the student's "
            "(crops.global_size over model.patch_size)."
        )
    per_group_UPD = patches_NPD.reshape(masked_UM.shape[0], -1, patches_NPD.shape[-1])
    take = jax.vmap(lambda patches, masked: patches.at[masked].get(unique_indices=True))
    return take(per_group_UPD, masked_UM)


def _grid(num_patches: int) -> str:
    side = math.isqrt(num_patches)
    return f"{side} x {side}" if side**2 == num_patches else f"{num_patches}"


def ibot_loss(
    logits_MK: jax.Array,
    targets_MK: jax.Array,
    weights_M: jax.Array,
    *,
    num_crops: int,
    temperature: float,
) -> jax.Array:
    """Sum over masked patches of weight * cross-entropy, divided by num_crops.

    weights: 1 / number of masked patches of the same crop. num_crops counts the crops without
    masked patches as well, so the value is about (share of masked crops) * mean cross-entropy.
    Scalar, float32 at least; gradient through the logits alone.
    """
    logits_MK = logits_MK.astype(jnp.promote_types(logits_MK.dtype, jnp.float32))
    scores_MK = logits_MK / jnp.asarray(temperature, logits_MK.dtype)
    targets_MK = jax.lax.stop_gradient(targets_MK).astype(logits_MK.dtype)
    loss_M = -jnp.sum(targets_MK * jax.nn.log_softmax(scores_MK, axis=-1), axis=-1)
    return weighted_mean(loss_M, weights_M, num_crops=num_crops)


def weighted_mean(loss_M: jax.Array, weights_M: jax.Array, *, num_crops: int) -> jax.Array:
    """Sum of weight * loss, divided by num_crops."""
    return jnp.sum(loss_M * weights_M.astype(loss_M.dtype)) / num_crops
