"""Symmetric contrastive loss over the global batch, without its matrix of logits.

CLIP, arXiv:2103.00020: of every image, which text is its own, and the reverse. A logit is
s <image, text> with unit vectors. What loss and gradients need of the matrix [B, B] are sums over
its rows and columns, so it is computed block after block of texts, forward and backward, and thrown
away (pair_blocks.py); a block's gradient is scattered to the devices that it was gathered from.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import logsumexp

from dinojax.losses import pair_blocks
from dinojax.losses.blockwise_logits import wide


def contrastive_loss(
    images_BE: jax.Array, texts_BE: jax.Array, scale: Any
) -> tuple[jax.Array, jax.Array]:
    """(mean over pairs of (CE of image to text + CE of text to image) / 2, share of images right).

    images, texts: unit vectors, row i of one belonging to row i of the other; scale: s, a scalar.
    Both results float32 at least, over the whole batch, equal on every device. An image is right
    whose own text has the largest logit of all texts. Gradients through all three arguments of
    the loss, none of the share.
    """
    images_BE, texts_BE = (x.astype(wide(x.dtype)) for x in (images_BE, texts_BE))
    scale = jnp.asarray(scale, images_BE.dtype).reshape(())
    loss_B, right_B = _pair_losses(images_BE, texts_BE, scale)
    return jnp.mean(loss_B), jax.lax.stop_gradient(jnp.mean(right_B))


@jax.custom_vjp
def _pair_losses(images_BE, texts_BE, scale):
    """(loss [B], 1 where the image is right, else 0 [B])."""
    return _pair_losses_fwd(images_BE, texts_BE, scale)[0]


def _pair_losses_fwd(images_BE, texts_BE, scale):
    def forward(axes, images_BE, texts_BE, scale):
        own_B = pair_blocks.own(images_BE, texts_BE) * scale
        parts = pair_blocks.num_blocks(len(images_BE), images_BE.shape[1], pair_blocks.size(axes))

        def add(rows, part):
            block_KE = pair_blocks.gathered(axes, _part(texts_BE, part, parts))
            logits_BK = _logits(images_BE, block_KE, scale)
            log_sum_B, most_B = rows
            log_sum_B = jnp.logaddexp(log_sum_B, logsumexp(logits_BK, axis=1))
            most_B = jnp.maximum(most_B, jnp.max(logits_BK, axis=1))
            return (log_sum_B, most_B), _log_sum_devices(axes, logsumexp(logits_BK, axis=0))

        start = (jnp.full_like(own_B, -jnp.inf), jnp.full_like(own_B, -jnp.inf))
        (rows_B, most_B), columns_PK = jax.lax.scan(add, start, jnp.arange(parts))
        columns_B = _own_columns(axes, columns_PK)
        right_B = (own_B >= most_B - pair_blocks.slack(most_B)).astype(own_B.dtype)
        return (rows_B + columns_B) / 2 - own_B, right_B, rows_B, columns_PK

    loss_B, right_B, rows_B, columns_PK = pair_blocks.on_devices(
        forward, (images_BE, texts_BE), scale, gives=("rows", "rows", "rows", "all")
    )
    return (loss_B, right_B), (images_BE, texts_BE, scale, rows_B, columns_PK)


def _pair_losses_bwd(kept, cotangents):
    images_BE, texts_BE, scale, rows_B, columns_PK = kept
    grad_B, _ = cotangents

    def backward(axes, images_BE, texts_BE, rows_B, grad_B, scale, columns_PK):
        parts = len(columns_PK)

        def add(carry, part):
            grad_images, grad_texts, grad_scale = carry
            block_KE = pair_blocks.gathered(axes, _part(texts_BE, part, parts))
            logits_BK = _logits(images_BE, block_KE, scale)
            grad_K = pair_blocks.gathered(axes, _part(grad_B, part, parts))
            pull_BK = grad_B[:, None] * jnp.exp(logits_BK - rows_B[:, None])
            columns_BK = jnp.exp(logits_BK - columns_PK[part][None])
            pull_BK = (pull_BK + grad_K[None] * columns_BK) / 2
            grad_scale += jnp.sum(pull_BK * (logits_BK / scale))
            grad_images += scale * pair_blocks.dot("bk,ke->be", pull_BK, block_KE)
            sums_KE = scale * pair_blocks.dot("bk,be->ke", pull_BK, images_BE)
            own_KE = pair_blocks.scattered(axes, sums_KE)
            own_KE += _part(grad_texts, part, parts)
            grad_texts = jax.lax.dynamic_update_slice_in_dim(
                grad_texts, own_KE, part * len(own_KE), 0
            )
            return (grad_images, grad_texts, grad_scale), None

        # Begun with what the pairs themselves add, so that the sums are the results.
        pull_B1 = -scale * grad_B[:, None]
        own = -jnp.sum(grad_B * pair_blocks.own(images_BE, texts_BE))
        start = pull_B1 * texts_BE, pull_B1 * images_BE, own
        grads, _ = jax.lax.scan(add, start, jnp.arange(parts))
        grad_images, grad_texts, grad_scale = grads
        return grad_images, grad_texts, jax.lax.psum(grad_scale, axes) if axes else grad_scale

    arrays = (images_BE, texts_BE, rows_B, grad_B)
    gives = ("rows", "rows", "all")
    return pair_blocks.on_devices(backward, arrays, scale, columns_PK, gives=gives)


_pair_losses.defvjp(_pair_losses_fwd, _pair_losses_bwd)


def _logits(images_BE, texts_KE, scale):
    return scale * pair_blocks.dot("be,ke->bk", images_BE, texts_KE)


def _part(x, part, parts: int):
    """One of `parts` equal parts of the rows of an array."""
    size = x.shape[0] // parts
    return jax.lax.dynamic_slice_in_dim(x, part * size, size, 0)


# -- of a device among those along `axes`, which may be none --------------------------------------


def _log_sum_devices(axes, x_K):
    if not axes:
        return x_K
    most_K = jax.lax.pmax(x_K, axes)
    return most_K + jnp.log(jax.lax.psum(jnp.exp(x_K - most_K), axes))


def _own_columns(axes, columns_PK):
    """Of values [parts, texts of a block], those of this device's texts, in their order."""
    if not axes:
        return columns_PK.reshape(-1)
    parted = columns_PK.reshape(len(columns_PK), pair_blocks.size(axes), -1)
    return jax.lax.dynamic_index_in_dim(
        parted, jax.lax.axis_index(axes), axis=1, keepdims=False
    ).reshape(-1)
