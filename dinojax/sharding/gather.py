"""Weights that devices store in parts, made whole where they are used."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dinojax.sharding import mesh


def gather(x: jax.Array, *names: str | None) -> jax.Array:
    """A stored weight, whole on every device; its gradient is held where the weight is stored.

    Without the latter the partitioner adds up whole gradients on every device: twice the bytes
    of the sum of the parts that each device needs. A weight used more than once may have the parts
    of its gradient sent apart; `with_weights` sends their sum.
    """
    layout = mesh.active()
    if layout is None or not any(layout.sharding(*names).spec):
        return x
    return _gather(x, layout.sharding(), layout.sharding(*names))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(x, used, stored):
    return jax.lax.with_sharding_constraint(x, used)


_gather.defvjp(
    lambda x, used, stored: (_gather(x, used, stored), None),
    lambda used, stored, _, grad: (jax.lax.with_sharding_constraint(grad, stored),),
)


def with_weights(fn: Callable, weights: Any, names: Any, *arrays: Any) -> Any:
    """fn(weights, *arrays), with each device calling it on its own leading slice of the arrays.

    weights: a tree as it is stored, names: of its axes, tuples in the same shape. Every weight is
    gathered once, however often fn uses it, and the sum of its gradients is scattered once.
    arrays and results lead with images or groups, as those of `mesh.per_group`.
    """
    layout = mesh.active()
    if layout is None:
        return fn(weights, *arrays)

    def whole(x, axes):
        for i, place in enumerate(layout.sharding(*axes).spec):
            if place is not None:
                # A matrix of the stored rows, and an axis of its own for the parts: with both in
                # one axis, compilers of TPUs sum the gradients of some kernels whole.
                first = jnp.moveaxis(x, i, 0)
                rows = jax.lax.all_gather(first.reshape(len(first), -1), place)
                x = jnp.moveaxis(rows.reshape(-1, *first.shape[1:]), 0, i)
        return x

    def on_one_device(*args):
        *arrays, weights = args
        return fn(jax.tree.map(whole, weights, names), *arrays)

    return mesh.per_group(on_one_device, *arrays, stored=((weights, names),))
