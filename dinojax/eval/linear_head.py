"""Linear heads on frozen patches, a bank of them at once: batch norm, dropout, one matrix.

DINOv3, arXiv:2508.10104, D.1 and D.2: the same head for segmentation and depth, and a sweep of
learning rates and weight decays of which the best counts. The heads of a sweep see the same
features, so they are trained together (a leading axis J) and the backbone runs once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dinojax.eval.adamw import Moments, Settings, adamw, start

_EPS, _MOMENTUM = 1e-5, 0.1  # of batch norm, as in PyTorch
Params = dict[str, Any]


class Bank(NamedTuple):
    """Heads in training. Every leaf of params and moments has a leading axis J."""

    params: Params  # scale [J, D], bias [J, D], kernel [J, D, K], offset [J, K]
    mean_D: jax.Array  # running moments of the features, which all heads share
    var_D: jax.Array
    moments: Moments  # with step [J]


def new_bank(key: jax.Array, *, num_heads: int, width: int, outputs: int) -> Bank:
    """Heads that begin alike: kernel N(0, 0.01), offset 0, batch norm 1 and 0."""
    kernel_DK = 0.01 * jax.random.normal(key, (width, outputs))
    one = {
        "scale": jnp.ones(width),
        "bias": jnp.zeros(width),
        "kernel": kernel_DK,
        "offset": jnp.zeros(outputs),
    }
    params = jax.tree.map(lambda x: jnp.broadcast_to(x, (num_heads, *x.shape)), one)
    return bank_of(params, jnp.zeros(width), jnp.ones(width))


def bank_of(params: Params, mean_D: jax.Array, var_D: jax.Array) -> Bank:
    """A bank that begins with these parameters [J, ...] and running moments."""
    return Bank(params, mean_D, var_D, jax.vmap(start)(params))


def joined(levels: list[tuple[jax.Array, jax.Array]], *, cls: bool) -> jax.Array:
    """Features [B, h, w, sum D] of (patches [B, h, w, D], cls [B, D]) of each block.

    cls: every block's cls is put behind its patches, at each place.
    """
    parts = []
    for patches_BhwD, cls_BD in levels:
        parts.append(patches_BhwD)
        if cls:
            shape = (*patches_BhwD.shape[:3], cls_BD.shape[-1])
            parts.append(jnp.broadcast_to(cls_BD[:, None, None], shape))
    return jnp.concatenate(parts, axis=-1)


def head_logits(params: Params, normal_BhwD: jax.Array) -> jax.Array:
    """Logits [B, h, w, K] of one head on features that batch norm has centred and scaled."""
    scale, bias, offset = (params[name][None, None, None] for name in ("scale", "bias", "offset"))
    x_BhwD = normal_BhwD * scale + bias
    x_BhwK = jnp.einsum("bhwd,dk->bhwk", x_BhwD, params["kernel"], precision="highest")
    return x_BhwK + offset


def evaluated(bank: Bank, features_BhwD: jax.Array) -> jax.Array:
    """Logits [J, B, h, w, K] with the running moments."""
    normal_BhwD = _scaled(_wide(features_BhwD), bank.mean_D, bank.var_D)
    return jax.vmap(head_logits, in_axes=(0, None))(bank.params, normal_BhwD)


def batch_normal(features_BhwD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(centred and scaled features, their mean [D], their variance [D]) of a batch."""
    x_BhwD = _wide(features_BhwD)
    mean_D = jnp.mean(x_BhwD, axis=(0, 1, 2))
    var_D = jnp.mean((x_BhwD - mean_D[None, None, None]) ** 2, axis=(0, 1, 2))
    return _scaled(x_BhwD, mean_D, var_D), mean_D, var_D


def drop_channels(key: jax.Array, features_BhwD: jax.Array, rate: float) -> jax.Array:
    """Whole channels of an image set to 0 at this rate, the others made larger."""
    keep = jax.random.bernoulli(
        key, 1 - rate, (features_BhwD.shape[0], 1, 1, features_BhwD.shape[-1])
    )
    return jnp.where(keep, features_BhwD / (1 - rate), 0)


def update(
    bank: Bank,
    features_BhwD: jax.Array,
    loss_of: Callable[[jax.Array], jax.Array],
    settings: Settings,
    *,
    beta2: float = 0.999,
    max_norm: float | None = None,
) -> tuple[Bank, jax.Array]:
    """One step of AdamW for every head: (bank, loss [J] before it).

    loss_of: logits [B, h, w, K] -> scalar. Decay reaches every parameter, as in the released head.
    max_norm: of the gradient of one head, clipped to it.
    """
    normal_BhwD, mean_D, var_D = batch_normal(features_BhwD)
    count = normal_BhwD.size // normal_BhwD.shape[-1]

    def of_head(inputs):
        params, moments, own = inputs
        loss, grads = jax.value_and_grad(lambda p: loss_of(head_logits(p, normal_BhwD)))(params)
        return loss, adamw(params, grads, moments, own, beta2=beta2, max_norm=max_norm)

    # Head after head: the logits at full size are the memory that counts.
    loss_J, (params, moments) = jax.lax.map(of_head, (bank.params, bank.moments, settings))
    unbiased_D = var_D * (count / max(count - 1, 1))
    mean_D = (1 - _MOMENTUM) * bank.mean_D + _MOMENTUM * mean_D
    var_D = (1 - _MOMENTUM) * bank.var_D + _MOMENTUM * unbiased_D
    return Bank(params, mean_D, var_D, moments), loss_J


def _scaled(x_BhwD: jax.Array, mean_D: jax.Array, var_D: jax.Array) -> jax.Array:
    return (x_BhwD - mean_D[None, None, None]) * jax.lax.rsqrt(var_D + _EPS)[None, None, None]


def _wide(features: jax.Array) -> jax.Array:
    return features.astype(jnp.promote_types(features.dtype, jnp.float32))
