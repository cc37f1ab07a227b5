"""Cut a box out of an image and resize it: antialiased bicubic, as two small matrix products.

The filter is Keys' cubic with a = -0.5 (IEEE Trans. ASSP 29(6), 1981), widened when shrinking,
cut off at the border of the box and renormalised. This is Pillow's rule, so a crop equals
`image.crop(box).resize(size, BICUBIC)` to within rounding.
"""

import functools

import jax
import jax.numpy as jnp

A = -0.5  # Keys' parameter; 2.0 pixels is the reach of the filter before widening


def cubic(x: jax.Array) -> jax.Array:
    """Keys' cubic at distances x, in pixels."""
    x = jnp.abs(x)
    near = ((A + 2) * x - (A + 3)) * x * x + 1
    far = A * (((x - 5) * x + 8) * x - 4)
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0.0))


def resize_weights(
    start: jax.Array | int,
    length: jax.Array | int,
    out_size: int,
    in_size: int,
    *,
    flip: jax.Array | bool = False,
) -> jax.Array:
    """Weights float32 [out_size, in_size] that resize the pixels start .. start + length - 1.

    flip reverses the output, which makes a mirrored crop free. Distances are integers over
    2 max(length, out_size), so float32 loses nothing on large images.
    """
    out_O1 = jnp.arange(out_size, dtype=jnp.int32)[:, None]
    out_O1 = jnp.where(flip, out_size - 1 - out_O1, out_O1)
    in_1I = jnp.arange(in_size, dtype=jnp.int32)[None, :] - start
    distance_OI = (2 * in_1I + 1) * out_size - (2 * out_O1 + 1) * length
    unit = 2 * jnp.maximum(length, out_size)
    weights_OI = cubic(distance_OI.astype(jnp.float32) / jnp.asarray(unit, jnp.float32))
    weights_OI = jnp.where((in_1I >= 0) & (in_1I < length), weights_OI, 0.0)
    return weights_OI / jnp.sum(weights_OI, axis=1, keepdims=True)


def cut_crops(
    image_SSC: jax.Array, boxes_K4: jax.Array, flips_K: jax.Array, size: int
) -> jax.Array:
    """K crops float32 [K, C, size, size] with whole values 0..255 from one uint8 image.

    boxes_K4: (top, left, height, width), inside the image. The first product reads the image once
    for all crops; no crop is ever held at the size of the image.
    """
    in_size = image_SSC.shape[0]
    weights = jax.vmap(resize_weights, in_axes=(0, 0, None, None))
    rows_KOH = weights(boxes_K4[:, 0], boxes_K4[:, 2], size, in_size)
    flipped = jax.vmap(lambda s, n, f: resize_weights(s, n, size, in_size, flip=f))
    columns_KOW = flipped(boxes_K4[:, 1], boxes_K4[:, 3], flips_K)
    # Bytes are cheap to transpose; with rows innermost neither product needs a transposed copy.
    image_CHW = jnp.transpose(image_SSC, (2, 0, 1)).astype(jnp.float32)
    halfway = _to_bytes(_of_bytes("kxw,chw->kxch", columns_KOW, image_CHW, weights=0))
    return _to_bytes(_of_bytes("kxch,kyh->kcyx", halfway, rows_KOH, weights=1))


def resize(crop_CHW: jax.Array, size: int, *, whole: bool) -> jax.Array:
    """Resize a square crop [C, H, H] to [C, size, size] by the same rule; no-op if it has the size.

    whole: round to whole values in 0..255 after each axis, as for stored images.
    """
    if crop_CHW.shape[-1] == size:
        return crop_CHW
    weights_OI = resize_weights(0, crop_CHW.shape[-1], size, crop_CHW.shape[-1])
    finish = _to_bytes if whole else lambda x: x
    halfway = finish(_einsum("chw,xw->chx", crop_CHW, weights_OI))
    return finish(_einsum("chx,yh->cyx", halfway, weights_OI))


def _of_bytes(spec: str, *operands: jax.Array, weights: int) -> jax.Array:
    """The einsum of float32 weights with whole values 0..255, with all digits of float32.

    weights: the number of their operand. On accelerators a float32 product costs more than ten in
    bfloat16. The values are bfloat16 numbers as they are, and every weight is the sum of three, so
    a bfloat16 product three times as long loses nothing.
    """
    in_parts = functools.partial(_in_parts, spec, weights=weights)
    plain = functools.partial(_einsum, spec)
    return jax.lax.platform_dependent(*operands, cpu=plain, default=in_parts)


def _in_parts(spec: str, *operands: jax.Array, weights: int) -> jax.Array:
    """The axis that is summed over, the last of either operand, holds one part after another."""
    parts, left = [], operands[weights]
    for _ in range(3):  # 8 bits each, of the 24 of float32
        # Not astype and back, which compilers may take for nothing.
        parts.append(jax.lax.reduce_precision(left, exponent_bits=8, mantissa_bits=7))
        left = left - parts[-1]
    threes = [parts if i == weights else [x] * 3 for i, x in enumerate(operands)]
    small = [jnp.concatenate(three, axis=-1).astype(jnp.bfloat16) for three in threes]
    return jnp.einsum(spec, *small, preferred_element_type=jnp.float32)


def _einsum(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    # A TPU would otherwise multiply in bfloat16 and be off by a whole level.
    return jnp.einsum(spec, a, b, precision=jax.lax.Precision.HIGHEST)


def _to_bytes(x: jax.Array) -> jax.Array:
    """Round half up and clip, as a filter that stores bytes between its passes."""
    return jnp.clip(jnp.floor(x + 0.5), 0.0, 255.0)
