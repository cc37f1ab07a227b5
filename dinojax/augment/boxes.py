"""Boxes of random-resized crops, drawn on the device.

Area and aspect as in Inception (arXiv:1409.4842); ranges of DINOv2 (arXiv:2304.07193).
"""

import math

import jax
import jax.numpy as jnp

NUM_TRIES = 10  # candidates before the centre crop
NUM_DRAWS = 2 * NUM_TRIES + 2  # area and aspect of each try; position of the chosen one


def choose_box(draws: jax.Array, size_2: jax.Array, *, area: tuple, aspect: tuple) -> jax.Array:
    """One random box int32 [4] = (top, left, height, width) inside an image of (height, width).

    draws: NUM_DRAWS uniform numbers in [0, 1). area: range of the share of the image's area, drawn
    uniformly. aspect: range of width over height, drawn log-uniformly. The box is the first of
    NUM_TRIES shapes that fits, at a uniform position, else the centre. All tries are computed at
    once, because a loop that stops early cannot stop early for a batch.
    """
    tries_T2, position_2 = draws[:-2].reshape(NUM_TRIES, 2), draws[-2:]
    height, width = size_2[0].astype(jnp.int32), size_2[1].astype(jnp.int32)
    share_T = area[0] + tries_T2[:, 0] * (area[1] - area[0])
    low, high = math.log(aspect[0]), math.log(aspect[1])
    aspect_T = jnp.exp(low + tries_T2[:, 1] * (high - low))
    area_T = share_T * (height * width).astype(jnp.float32)
    widths_T = jnp.round(jnp.sqrt(area_T * aspect_T)).astype(jnp.int32)
    heights_T = jnp.round(jnp.sqrt(area_T / aspect_T)).astype(jnp.int32)
    fits_T = (widths_T > 0) & (widths_T <= width) & (heights_T > 0) & (heights_T <= height)
    first = jnp.argmax(fits_T)

    shape_2 = jnp.stack([heights_T[first], widths_T[first]])
    room_2 = jnp.stack([height, width]) - shape_2
    # float32 draws below 1 can still round up to room + 1 in the product.
    corner_2 = jnp.minimum(jnp.floor(position_2 * (room_2 + 1)).astype(jnp.int32), room_2)
    drawn_4 = jnp.concatenate([corner_2, shape_2])
    return jnp.where(jnp.any(fits_T), drawn_4, center_box(size_2, aspect=aspect))


def center_box(size_2: jax.Array, *, aspect: tuple) -> jax.Array:
    """The largest centred box [4] whose width over height lies in the range."""
    height, width = size_2[0].astype(jnp.int32), size_2[1].astype(jnp.int32)
    tallest = jnp.round(width / aspect[0]).astype(jnp.int32)
    widest = jnp.round(height * aspect[1]).astype(jnp.int32)
    box_height = jnp.maximum(jnp.minimum(height, tallest), 1)
    box_width = jnp.maximum(jnp.minimum(width, widest), 1)
    corner = ((height - box_height) // 2, (width - box_width) // 2)
    return jnp.stack([*corner, box_height, box_width])
