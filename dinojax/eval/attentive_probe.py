"""The attentive probe of videos: self-attention over all tokens of a clip, then one query.

The blocks are those of V-JEPA 2's public probe (arXiv:2506.09985); DINOv3, arXiv:2508.10104, D.6
puts a projection and places in time and space before them, and turns queries and keys by those
places. Parameters are nested dictionaries.
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


def coordinates(times_BT: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Time, row and column [B, T * h * w, 3] of every token, each -1..1. times: 0..1."""
    rows, columns = ((2 * jnp.arange(side) + 1.0) / side - 1 for side in grid)
    shape = (*times_BT.shape, *grid)
    axes = 2 * times_BT[:, :, None, None] - 1, rows[:, None], columns
    coords = jnp.stack([jnp.broadcast_to(values, shape) for values in axes], axis=-1)
    return coords.reshape(len(times_BT), -1, 3)


def rope_angles(coords_BN3: jax.Array, *, num_heads: int, head_width: int, block: int) -> jax.Array:
    """Angles [B, N, A, 3 * (E // 6)] by which pairs of channels turn: a third for each axis.

    Every head of every block sees rows and columns in a plane that is turned by an angle of its
    own, drawn once for all probes. D.6 states no periods: they are those of the ViTs of DINOv3, 1
    to 100.
    """
    turns_A = 2 * math.pi * jax.random.uniform(jax.random.key(block), (num_heads,))
    sin_A, cos_A, no_A = jnp.sin(turns_A), jnp.cos(turns_A), jnp.zeros(num_heads)
    frame_3A3 = jnp.stack(  # axes of each head: time, and the two of the turned plane
        [
            jnp.stack([no_A + 1, no_A, no_A], axis=-1),
            jnp.stack([no_A, cos_A, -sin_A], axis=-1),
            jnp.stack([no_A, sin_A, cos_A], axis=-1),
        ]
    )
    num = head_width // 6
    rates_F = 2 * math.pi / 100.0 ** (jnp.arange(num) / max(num, 1))
    seen_BNA3 = jnp.einsum("bnd,xad->bnax", coords_BN3, frame_3A3, precision="highest")
    angles = jnp.einsum("bnax,f->bnaxf", seen_BNA3, rates_F, precision="highest")
    return angles.reshape(*angles.shape[:3], -1)


def pooled(
    params: Params, tokens_BND: jax.Array, *, num_heads: int, places_BND=None, coords_BN3=None
) -> jax.Array:
    """What the query reads from the tokens of a clip: [B, width].

    coords: of the tokens, by which the blocks turn their queries and keys; None: they do not.
    """
    x = tokens_BND.astype(jnp.promote_types(tokens_BND.dtype, jnp.float32))
    x = _linear(params["project"], x) if "project" in params else x
    x = x if places_BND is None else x + places_BND
    for number, block in enumerate(params["blocks"]):
        q, k, v = jnp.split(_linear(block["qkv"], _norm(block["norm1"], x)), 3, axis=-1)
        shape = {"num_heads": num_heads, "head_width": x.shape[-1] // num_heads}
        angles = None if coords_BN3 is None else rope_angles(coords_BN3, **shape, block=number)
        x = x + _linear(block["out"], _attend(q, k, v, num_heads, angles))
        x = x + _mlp(block["mlp"], _norm(block["norm2"], x))
    cross = params["cross"]
    # As in the public probe: the context alone is normalised, and nothing follows the attention.
    k, v = jnp.split(_linear(cross["kv"], _norm(cross["norm1"], x)), 2, axis=-1)
    query = jnp.broadcast_to(params["query"][None], (len(x), *params["query"].shape))
    query = query + _attend(_linear(cross["q"], query), k, v, num_heads)
    return (query + _mlp(cross["mlp"], _norm(cross["norm2"], query)))[:, 0]


def class_logits(params: Params, tokens_BND, **options) -> jax.Array:
    """Logits [B, C] of each clip. options: of `pooled`."""
    return _linear(params["head"], pooled(params, tokens_BND, **options))


def probe_loss(params, tokens_BND, labels_B, **options) -> jax.Array:
    """Mean cross-entropy of the clips. options: of `pooled`."""
    logits = class_logits(params, tokens_BND, **options)
    log_BC = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(log_BC, labels_B[:, None], axis=1))


def clip_frames(num_frames: int, *, num: int = 16) -> list[int]:
    """Evenly spaced frames with the first and the last; short videos repeat some."""
    if num_frames < 1 or num < 1:
        raise ValueError(f"{num} frames cannot be taken of a video of {num_frames}.")
    if num == 1:
        return [0]
    return [round(place * (num_frames - 1) / (num - 1)) for place in range(num)]


def _attend(q_BMD, k_BND, v_BND, num_heads: int, angles_BNAF=None) -> jax.Array:
    batch, queries, width = q_BMD.shape
    q, k, v = (x.reshape(batch, -1, num_heads, width // num_heads) for x in (q_BMD, k_BND, v_BND))
    if angles_BNAF is not None:
        q, k = _turned(q, angles_BNAF), _turned(k, angles_BNAF)
    logits = jnp.einsum("bmae,bnae->bamn", q, k, precision="highest")
    weights = jax.nn.softmax(logits / math.sqrt(width // num_heads))
    read = jnp.einsum("bamn,bnae->bmae", weights, v, precision="highest")
    return read.reshape(batch, queries, width)


def _turned(x_BNAE: jax.Array, angles_BNAF: jax.Array) -> jax.Array:
    """Channels f and F + f turned by angle f; those after 2 F stay."""
    num, sin, cos = angles_BNAF.shape[-1], jnp.sin(angles_BNAF), jnp.cos(angles_BNAF)
    one, two, rest = jnp.split(x_BNAE, (num, 2 * num), axis=-1)
    return jnp.concatenate([one * cos - two * sin, two * cos + one * sin, rest], axis=-1)


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
