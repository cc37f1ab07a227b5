"""Prototype cross-entropy between crops of one image. DINO, arXiv:2104.14294, eq. 3.

`dino_loss` is the definition; training takes the cross-entropies from blocks.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import logsumexp


def dino_loss(
    logits_BSK: jax.Array,
    targets_BTK: jax.Array,
    *,
    temperature: float,
    skip_same_crop: bool = False,
) -> jax.Array:
    """Mean over images and crop pairs (s, t) of -sum_k targets_t log softmax(logits_s / temp).

    skip_same_crop leaves out the pairs s == t, for when both sides are the same global crops.
    Scalar, float32 at least; gradient through the logits alone.

    Raises ValueError when no pair is left.
    """
    scores_BSK = logits_BSK.astype(jnp.promote_types(logits_BSK.dtype, jnp.float32))
    scores_BSK = scores_BSK / jnp.asarray(temperature, scores_BSK.dtype)
    targets_BTK = jax.lax.stop_gradient(targets_BTK).astype(scores_BSK.dtype)

    # sum_k t (s - logsumexp s), without writing log-probabilities to memory.
    cross_BST = jnp.einsum("bsk,btk->bst", scores_BSK, targets_BTK, precision="highest")
    norm_BST = logsumexp(scores_BSK, axis=-1)[:, :, None] * jnp.sum(targets_BTK, axis=-1)[:, None]
    return pair_mean(norm_BST - cross_BST, skip_same_crop=skip_same_crop)


def pair_mean(loss_BST: jax.Array, *, skip_same_crop: bool = False) -> jax.Array:
    """Mean over images and pairs of crops, without those s == t if they are skipped.

    Raises ValueError when no pair is left.
    """
    S, T = loss_BST.shape[1:]
    pairs_ST = 1.0 - np.eye(S, T) if skip_same_crop else np.ones((S, T))
    if not pairs_ST.sum():
        raise ValueError(
            f"losses.skip_same_crop=True leaves no pair of {S} student and {T} teacher crops;"
            " set it to False."
        )
    loss_ST = jnp.mean(loss_BST, axis=0)
    return jnp.sum(loss_ST * jnp.asarray(pairs_ST / pairs_ST.sum(), loss_ST.dtype))


def cosine_distances(rows_BSZ: jax.Array, targets_BTZ: jax.Array) -> jax.Array:
    """1 - cosine of unit vectors, every row with every target of the same b: [B, S, T].

    Float32 at least.
    """
    rows_BSZ, targets_BTZ = (
        x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (rows_BSZ, targets_BTZ)
    )
    return 1.0 - jnp.einsum("bsz,btz->bst", rows_BSZ, targets_BTZ, precision="highest")
