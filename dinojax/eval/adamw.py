"""AdamW of one head of a sweep, with its own rate, decay and beta1. Loshchilov and Hutter 2019."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Params = Any  # a tree of arrays


class Settings(NamedTuple):
    """Of one head at one step; of several along a leading axis J."""

    rate: jax.Array
    weight_decay: jax.Array
    beta1: jax.Array


class Moments(NamedTuple):
    """Of the gradients, and their number."""

    first: Params
    second: Params
    step: jax.Array  # int32


def start(params: Params) -> Moments:
    zeros = jax.tree.map(jnp.zeros_like, params)
    return Moments(zeros, zeros, jnp.zeros((), jnp.int32))


def adamw(
    params: Params,
    grads: Params,
    moments: Moments,
    own: Settings,
    *,
    beta2: float = 0.999,
    max_norm: float | None = None,
) -> tuple[Params, Moments]:
    """(parameters, moments) after a step, as PyTorch makes it: every parameter is decayed.

    beta1 may change from step to step; its correction is by the present one. max_norm: of the
    whole gradient, which is made smaller to have it.
    """
    if max_norm is not None:
        norm = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(grads)))
        grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, max_norm / (norm + 1e-6)), grads)
    step = moments.step + 1
    first = jax.tree.map(lambda m, g: own.beta1 * m + (1 - own.beta1) * g, moments.first, grads)
    second = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, moments.second, grads)
    count = step.astype(jax.tree.leaves(params)[0].dtype)
    left1, left2 = 1 - own.beta1**count, 1 - jnp.asarray(beta2, count.dtype) ** count

    def moved(p, m, v):
        return p * (1 - own.rate * own.weight_decay) - own.rate * m / left1 / (
            jnp.sqrt(v / left2) + 1e-8
        )

    return jax.tree.map(moved, params, first, second), Moments(first, second, step)
