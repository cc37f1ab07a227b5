"""A linear head on the last block's patches: batch norm and one matrix.

DINOv3, arXiv:2508.10104, D.1 and D.2. `eval` trains a sweep of these to judge a backbone
(eval/linear_head.py); this is one that is kept.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax

from dinojax.tasks.layers import BatchNorm, Conv


class LinearHead(nn.Module):
    """Patches [B, h, w, D] and cls [B, D] of blocks, the last of which counts -> [B, h, w, K]."""

    outputs: int
    dropout: float = 0.1  # rate of whole channels of an image

    @nn.compact
    def __call__(self, levels: Sequence[tuple[jax.Array, jax.Array]], *, train: bool) -> jax.Array:
        x = levels[-1][0]
        x = nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not train)(x)
        x = BatchNorm(name="batchnorm_layer")(x, train=train)
        return Conv(self.outputs, name="conv")(x)
