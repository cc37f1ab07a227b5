"""Where a detector looks first: a box around every place of maps at four sizes.

Two-stage Deformable DETR, arXiv:2010.04159, A.4, on maps that Plain-DETR makes of one.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dinojax.models.layers import gelu
from dinojax.tasks.layers import Conv, LayerNorm, UpConv, size_of

_BORDER = 0.01  # of the image's sides: proposals that touch it do not count


class Norm2d(nn.Module):
    """Over the channels of each place; one name further down, as released heads have it."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return LayerNorm(name="ln")(x)


class Enlarge(nn.Module):
    """A map [B, h, w, D] -> maps at 2, 1, 1/2 and 1/4 of its size."""

    width: int

    @nn.compact
    def __call__(self, x_BhwD: jax.Array) -> list[jax.Array]:
        def halved(x, name):
            return Conv(self.width, 2, stride=2, pad=False, name=name)(x)

        larger = UpConv(self.width, 2, name="0_0")(x_BhwD)
        quarter = gelu(Norm2d(name="3_1")(halved(x_BhwD, "3_0")))
        return [larger, x_BhwD, halved(x_BhwD, "2_0"), halved(quarter, "3_3")]


def at_level(hidden_Bhw: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The mask at another size, by the nearest entry at or before each."""
    for axis, new in ((1, size[0]), (2, size[1])):
        old = hidden_Bhw.shape[axis]
        hidden_Bhw = jnp.take(hidden_Bhw, np.arange(new) * old // new, axis=axis)
    return hidden_Bhw


def propose(
    levels: Sequence[jax.Array], hidden_Bhw: jax.Array, patch_size: int, smallest: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(features [B, N, D], boxes [B, N, 4], (width, height) of the images in pixels [B, 2]).

    levels: maps at strides patch_size / 2, 1, 2 and 4 times it. Features of proposals beyond the
    image or at its border are 0, their boxes larger than any image.
    """
    dtype, memory, places = levels[0].dtype, [], []
    finest = at_level(hidden_Bhw, size_of(levels[0]))
    stride = patch_size // 2
    seen = ~finest
    width_B, height_B = jnp.sum(seen[:, 0], axis=1), jnp.sum(seen[:, :, 0], axis=1)
    sizes_B2 = (stride * jnp.stack([width_B, height_B], axis=-1)).astype(dtype)
    bounds = jnp.concatenate([sizes_B2, sizes_B2], axis=-1)[:, None]
    beyond = float(max(finest.shape[1:]) * stride)
    for number, x in enumerate(levels):
        size = size_of(x)
        centres = (np.indices(size)[::-1].reshape(2, -1).T + 0.5) * stride * 2**number
        side = np.full(centres.shape, smallest * 2**number)
        boxes_N4 = jnp.asarray(np.concatenate([centres, side], axis=1), dtype)[None]
        inside = (boxes_N4 > _BORDER * bounds) & (boxes_N4 < (1 - _BORDER) * bounds)
        hidden = at_level(hidden_Bhw, size).reshape(len(x), -1)
        valid = jnp.all(inside, axis=-1) & ~hidden
        places.append(jnp.where(valid[..., None], boxes_N4, beyond))
        memory.append(jnp.where(valid[..., None], x.reshape(len(x), -1, x.shape[-1]), 0))
    return jnp.concatenate(memory, axis=1), jnp.concatenate(places, axis=1), sizes_B2
