"""Sigmoid loss over the global batch, without its matrix of logits. SigLIP, arXiv:2303.15343.

Every image with every text is a question of its own: do they belong together? A logit is
s <image, text> + b with unit vectors, and a pair's loss depends on its own logit alone, so that no
sum over rows or columns comes before it. Texts are taken in the blocks of pair_blocks.py, each
computed again for its gradients; the rows of a device stay where they are.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dinojax.losses import pair_blocks
from dinojax.losses.blockwise_logits import wide


def sigmoid_loss(
    images_BE: jax.Array, texts_BE: jax.Array, scale: Any, bias: Any
) -> tuple[jax.Array, jax.Array]:
    """(sum over all B x B pairs of -log sigmoid(z logit), over B; share of images right).

    z is 1 for row i of images with row i of texts, else -1. images, texts: unit vectors; scale,
    bias: s and b, scalars. Both results float32 at least, over the whole batch, equal on every
    device. An image is right whose own text has the largest logit of all texts. Gradients through
    all four arguments of the loss, none of the share.
    """
    images_BE, texts_BE = (x.astype(wide(x.dtype)) for x in (images_BE, texts_BE))
    scalars = (jnp.asarray(x, images_BE.dtype).reshape(()) for x in (scale, bias))
    rows = images_BE, texts_BE
    loss_B, right_B = pair_blocks.on_devices(_rows, rows, *scalars, gives=("rows", "rows"))
    return jnp.mean(loss_B), jax.lax.stop_gradient(jnp.mean(right_B))


def _rows(axes, images_BE, texts_BE, scale, bias):
    """(sum over all texts [B], 1 where the image is right, else 0 [B]) of a device's images."""
    B, E = images_BE.shape
    # Half a block, for its gradient by differentiation keeps more arrays of a block's size.
    limit = pair_blocks.BLOCK_BYTES // 2
    parts = pair_blocks.num_blocks(B, E, pair_blocks.size(axes), limit)
    first = jax.lax.axis_index(axes) * (B // parts) if axes else 0  # of its texts in a block

    @jax.checkpoint
    def of_block(part, own_KE):
        block_KE = pair_blocks.gathered(axes, own_KE)
        cosines_BK = pair_blocks.dot("be,ke->bk", images_BE, block_KE)
        logits_BK = scale * cosines_BK + bias
        # Where image i's own text stands: those of this device lie together in a block.
        places_B = jnp.arange(B) - part * len(own_KE)
        is_here_B = (places_B >= 0) & (places_B < len(own_KE))
        columns_K = jnp.arange(len(block_KE))
        is_own_BK = is_here_B[:, None] & (columns_K[None] == first + places_B[:, None])
        loss_B = -jnp.sum(jax.nn.log_sigmoid(jnp.where(is_own_BK, logits_BK, -logits_BK)), axis=1)
        return loss_B, jax.lax.stop_gradient(jnp.max(cosines_BK, axis=1))

    def step(_, block):
        return None, of_block(*block)

    blocks = jnp.arange(parts), texts_BE.reshape(parts, B // parts, E)
    _, (loss_PB, most_PB) = jax.lax.scan(step, None, blocks)
    most_B = jnp.max(most_PB, axis=0)
    own_B = jax.lax.stop_gradient(pair_blocks.own(images_BE, texts_BE))
    right_B = own_B >= most_B - pair_blocks.slack(most_B)
    return jnp.sum(loss_PB, axis=0), right_B.astype(loss_PB.dtype)
