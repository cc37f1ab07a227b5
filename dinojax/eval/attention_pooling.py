"""A probe that pools patch tokens by attention of one learned query (arXiv:2606.05107).

Features of the last blocks side by side, Linear, LayerNorm, attention of the query to them, Linear
to classes. Several learning rates are trained at once, as the sum of their losses; each has its
own parameters. The backbone stays as it is.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

EPS = 1e-5  # of the LayerNorm


@dataclasses.dataclass(frozen=True)
class PoolingSpec:
    """inputs: channels of all blocks together; width: of the attention."""

    inputs: int
    classes: int
    width: int = 512
    heads: int = 8


def new_params(key: jax.Array, spec: PoolingSpec) -> dict:
    """Normal with deviation 0.02, biases 0."""
    keys = jax.random.split(key, 4)

    def linear(key, inputs, outputs):
        return {
            "kernel": 0.02 * jax.random.normal(key, (inputs, outputs)),
            "bias": jnp.zeros(outputs),
        }

    width = spec.width
    return {
        "query": 0.02 * jax.random.normal(keys[0], (width,)),
        "input": linear(keys[1], spec.inputs, width),
        "norm": {"scale": jnp.ones(width), "bias": jnp.zeros(width)},
        "keys_values": linear(keys[2], width, 2 * width),
        "output": linear(keys[3], width, spec.classes),
    }


def tokens_of(patches: Sequence[jax.Array], cls: Sequence[jax.Array] = (), *, unit: bool = False):
    """[B, P, D] of each block -> [B, P, n D]; with cls [B, D] of each also one token of these.

    unit: cls tokens get unit length.
    """
    tokens_BPD = jnp.concatenate(patches, axis=-1)
    if not len(cls):
        return tokens_BPD
    parts = [c / jnp.maximum(jnp.linalg.norm(c, axis=-1, keepdims=True), 1e-12) for c in cls]
    first_BD = jnp.concatenate(parts if unit else list(cls), axis=-1)
    return jnp.concatenate([first_BD[:, None], tokens_BPD], axis=1)


def logits(params: dict, tokens_BND: jax.Array, *, heads: int) -> jax.Array:
    """[B, C]. tokens: of `tokens_of`. Float32 at least."""
    tokens_BND = tokens_BND.astype(jnp.promote_types(tokens_BND.dtype, jnp.float32))
    x_BNW = _linear(params["input"], tokens_BND)
    x_BNW -= jnp.mean(x_BNW, axis=-1, keepdims=True)
    x_BNW *= jax.lax.rsqrt(jnp.mean(x_BNW**2, axis=-1, keepdims=True) + EPS)
    scale_11W, bias_11W = (params["norm"][name][None, None] for name in ("scale", "bias"))
    x_BNW = x_BNW * scale_11W + bias_11W
    keys_BNW, values_BNW = jnp.split(_linear(params["keys_values"], x_BNW), 2, axis=-1)
    B, N, W = keys_BNW.shape
    shape = B, N, heads, W // heads
    query_AE = params["query"].reshape(heads, W // heads)
    scores_BAN = jnp.einsum("ae,bnae->ban", query_AE, keys_BNW.reshape(shape), precision="highest")
    shares_BAN = jax.nn.softmax(scores_BAN * (W // heads) ** -0.5, axis=-1)
    pooled_BAE = jnp.einsum(
        "ban,bnae->bae", shares_BAN, values_BNW.reshape(shape), precision="highest"
    )
    return _linear(params["output"], pooled_BAE.reshape(B, W))


def train(
    tokens_NPD: np.ndarray,
    labels_N: np.ndarray,
    spec: PoolingSpec,
    *,
    rates: Sequence[float],
    num_steps: int,
    batch_size: int = 32,
    seed: int = 0,
) -> Iterator[tuple[float, dict]]:
    """(learning rate, trained parameters) of each; rates are per 256 images.

    AdamW without decay, cosine to 0 over the steps; batches are drawn by the seed.
    Raises ValueError for labels that are no class of the spec, before the first step.
    """
    # optax would take -1 for the last class, and give NaN beyond it.
    if not 0 <= np.min(labels_N) <= np.max(labels_N) < spec.classes:
        raise ValueError(
            f"labels run from {np.min(labels_N)} to {np.max(labels_N)}; with {spec.classes} "
            f"classes they must be in 0..{spec.classes - 1}. Leave out images without a label."
        )
    key = jax.random.key(seed)
    params = [new_params(key, spec) for _ in rates]
    scale = batch_size / 256
    optimizers = [
        optax.adamw(optax.cosine_decay_schedule(rate * scale, num_steps), weight_decay=0.0)
        for rate in rates
    ]
    states = [o.init(p) for o, p in zip(optimizers, params, strict=True)]

    def loss(params, tokens, labels):
        scores = [logits(p, tokens, heads=spec.heads) for p in params]
        each = [optax.softmax_cross_entropy_with_integer_labels(s, labels).mean() for s in scores]
        return sum(each)

    @jax.jit
    def step(params, states, tokens, labels):
        grads = jax.grad(loss)(params, tokens, labels)
        pairs = [
            o.update(g, s, p) for o, g, s, p in zip(optimizers, grads, states, params, strict=True)
        ]
        moved = [optax.apply_updates(p, u) for p, (u, _) in zip(params, pairs, strict=True)]
        return moved, [state for _, state in pairs]

    rng = np.random.default_rng(seed)
    for _ in range(num_steps):
        rows = rng.choice(len(labels_N), min(batch_size, len(labels_N)), replace=False)
        params, states = step(params, states, tokens_NPD[rows], labels_N[rows])
    yield from zip(rates, params, strict=True)


def _linear(params: dict, x: jax.Array) -> jax.Array:
    bias = params["bias"].reshape((1,) * (x.ndim - 1) + (-1,))
    return jnp.matmul(x, params["kernel"], precision="highest") + bias
