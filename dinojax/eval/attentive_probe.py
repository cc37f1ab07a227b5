"""The attentive probe of videos: self-attention over all tokens of a clip, then one query.

The blocks are those of V-JEPA 2's public probe (arXiv:2506.09985); DINOv3, arXiv:2508.10104, D.6
puts a projection and places in time and space before them. Parameters are nested dictionaries.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

Params = dict[str, Any]
_EPS = 1e-5


def new_probe(
    key: jax.Array,
    *,
    width: int,
    num_classes: int,
    depth: int = 4,
    mlp_ratio: float = 4.0,
    inputs: int | None = None,
) -> Params:
    """A probe of `depth` blocks, the last of which is the query's.

    inputs: width of the tokens, where a projection to `width` comes first.
    Matrices are cut normal of std 0.02, those that end a branch of block i divided by sqrt(2 i).
    """
    keys = iter(jax.random.split(key, 8 * depth + 8))

    def linear(rows, columns, shrink=1.0):
        kernel = 0.02 * jax.random.truncated_normal(next(keys), -2, 2, (rows, columns)) / shrink
        return {"kernel": kernel, "bias": jnp.zeros(columns)}

    def norm():
        return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}

    def mlp(number):
        hidden = int(width * mlp_ratio)
        return {
            "up": linear(width, hidden),
            "down": linear(hidden, width, math.sqrt(2 * max(number, 1))),
        }

    blocks = [
        {
            "norm1": norm(),
            "qkv": linear(width, 3 * width),
            "out": linear(width, width, math.sqrt(2 * number)),
            "norm2": norm(),
            "mlp": mlp(number),
        }
        for number in range(1, depth)
    ]
    params = {
        "blocks": blocks,
        "query": 0.02 * jax.random.truncated_normal(next(keys), -2, 2, (1, width)),
        "cross": {
            "norm1": norm(),
            "q": linear(width, width),
            "kv": linear(width, 2 * width),
            "norm2": norm(),
            "mlp": mlp(depth - 1),
        },
        "head": linear(width, num_classes),
    }
    return params | ({} if inputs is None else {"project": linear(inputs, width)})


def places(times_BT: jax.Array, grid: tuple[int, int], width: int) -> jax.Array:
    """Sines and cosines [B, T * h * w, width] of time, row and column of every token.

    times: 0..1 of the video's length. Rows and columns are centres in 0..1. Each of the three has
    a third of the width (what is left over is 0), at wavelengths from 2 pi down, as in ViTs.
    """
    rows, columns = ((jnp.arange(side) + 0.5) / side for side in grid)
    half = width // 6
    rates_F = jnp.exp(jnp.linspace(0.0, math.log(100.0), half)) if half > 1 else jnp.ones(half)
    batch, frames = times_BT.shape
    shape = (batch, frames, *grid)
    parts = []
    axes = times_BT[:, :, None, None], rows[None, None, :, None], columns[None, None, None]
    for values in axes:
        angles = jnp.einsum("bthw,f->bthwf", jnp.broadcast_to(values, shape), 2 * math.pi * rates_F)
        parts += [jnp.sin(angles), jnp.cos(angles)]
    table = jnp.concatenate(parts, axis=-1).reshape(batch, -1, 6 * half)
    return jnp.pad(table, ((0, 0), (0, 0), (0, width - 6 * half)))


def pooled(params: Params, tokens_BND: jax.Array, *, num_heads: int, places_BND=None) -> jax.Array:
    """What the query reads from the tokens of a clip: [B, width]."""
    x = tokens_BND.astype(jnp.promote_types(tokens_BND.dtype, jnp.float32))
    x = _linear(params["project"], x) if "project" in params else x
    x = x if places_BND is None else x + places_BND
    for block in params["blocks"]:
        q, k, v = jnp.split(_linear(block["qkv"], _norm(block["norm1"], x)), 3, axis=-1)
        x = x + _linear(block["out"], _attend(q, k, v, num_heads))
        x = x + _mlp(block["mlp"], _norm(block["norm2"], x))
    cross = params["cross"]
    # As in the public probe: the context alone is normalised, and nothing follows the attention.
    k, v = jnp.split(_linear(cross["kv"], _norm(cross["norm1"], x)), 2, axis=-1)
    query = jnp.broadcast_to(params["query"][None], (len(x), *params["query"].shape))
    query = query + _attend(_linear(cross["q"], query), k, v, num_heads)
    return (query + _mlp(cross["mlp"], _norm(cross["norm2"], query)))[:, 0]


def class_logits(params: Params, tokens_BND, *, num_heads: int, places_BND=None) -> jax.Array:
    """Logits [B, C] of each clip."""
    found = pooled(params, tokens_BND, num_heads=num_heads, places_BND=places_BND)
    return _linear(params["head"], found)


def probe_loss(params, tokens_BND, labels_B, *, num_heads: int, places_BND=None) -> jax.Array:
    """Mean cross-entropy of the clips."""
    logits = class_logits(params, tokens_BND, num_heads=num_heads, places_BND=places_BND)
    log_BC = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(log_BC, labels_B[:, None], axis=1))


def clip_frames(num_frames: int, *, num: int = 16) -> list[int]:
    """Evenly spaced frames with the first and the last; short videos repeat some."""
    if num_frames < 1 or num < 1:
        raise ValueError(f"{num} frames cannot be taken of a video of {num_frames}.")
    if num == 1:
        return [0]
    return [round(place * (num_frames - 1) / (num - 1)) for place in range(num)]


def _attend(q_BMD, k_BND, v_BND, num_heads: int) -> jax.Array:
    batch, queries, width = q_BMD.shape
    q, k, v = (x.reshape(batch, -1, num_heads, width // num_heads) for x in (q_BMD, k_BND, v_BND))
    logits = jnp.einsum("bmae,bnae->bamn", q, k, precision="highest")
    weights = jax.nn.softmax(logits / math.sqrt(width // num_heads))
    read = jnp.einsum("bamn,bnae->bmae", weights, v, precision="highest")
    return read.reshape(batch, queries, width)


def _linear(params: Params, x: jax.Array) -> jax.Array:
    product = jnp.einsum("...d,de->...e", x, params["kernel"], precision="highest")
    return product + _as_last(params["bias"], x)


def _norm(params: Params, x: jax.Array) -> jax.Array:
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    var = jnp.mean(centred**2, axis=-1, keepdims=True)
    unit = centred * jax.lax.rsqrt(var + _EPS)
    return unit * _as_last(params["scale"], x) + _as_last(params["bias"], x)


def _as_last(vector: jax.Array, x: jax.Array) -> jax.Array:
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))


def _mlp(params: Params, x: jax.Array) -> jax.Array:
    return _linear(params["down"], jax.nn.gelu(_linear(params["up"], x), approximate=False))
