"""Weights that devices store in parts, made whole where they are used."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dinojax.sharding import mesh


def gather(x: jax.Array, *names: str | None, dtype=None, reduce=None) -> jax.Array:
    """A stored weight, whole on every device; its gradient is held where the weight is stored.

    dtype: that of computation, which the weight is rounded to on its way; None = its own. reduce:
    that in which its gradient is summed over devices, and that of the result, so that what uses
    the weight gives its gradient in it; None = its own.

    Without a place for the gradient the partitioner adds up whole ones on every device: twice the
    bytes of the sum of the parts that each device needs. A weight used more than once may have the
    parts of its gradient sent apart; `with_weights` sends their sum.
    """
    dtype, reduce = _dtypes(x, dtype, reduce)
    x, layout = x.astype(reduce), mesh.active()
    if layout is None or not any(layout.sharding(*names).spec):
        return x
    return _gather(x, layout.sharding(), layout.sharding(*names), dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(x, used, stored, dtype):
    return _gather_fwd(x, used, stored, dtype)[0]


def _gather_fwd(x, used, stored, dtype):
    return jax.lax.with_sharding_constraint(x.astype(dtype), used).astype(x.dtype), None


def _gather_bwd(used, stored, dtype, _, grad):
    return (jax.lax.with_sharding_constraint(grad, stored),)


_gather.defvjp(_gather_fwd, _gather_bwd)


def with_weights(
    fn: Callable, weights: Any, names: Any, *arrays: Any, dtype=None, reduce=None
) -> Any:
    """fn(weights, *arrays), with each device calling it on its own leading slice of the arrays.

    weights: a tree as it is stored, names: of its axes, tuples in the same shape. Every weight is
    gathered once, however often fn uses it, and the sum of its gradients is scattered once.
    arrays and results lead with images or groups, as those of `mesh.per_group`.
    dtype, reduce: as of `gather`, for weights with a named axis; all others stay as they are.
    """

    def used(x, axes):
        return x.astype(_dtypes(x, dtype, reduce)[1]) if any(axes) else x

    weights, layout = jax.tree.map(used, weights, names), mesh.active()
    if layout is None:
        return fn(weights, *arrays)

    def whole(x, axes):
        for i, place in enumerate(layout.sharding(*axes).spec):
            if place is not None:
                # A matrix of the stored rows, and an axis of its own for the parts: with both in
                # one axis, compilers of TPUs sum the gradients of some kernels whole.
                first = jnp.moveaxis(x, i, 0)
                rows = _gather_rows(first.reshape(len(first), -1), place, _dtypes(x, dtype)[0])
                x = jnp.moveaxis(rows.reshape(-1, *first.shape[1:]), 0, i)
        return x

    def on_one_device(*args):
        *arrays, weights = args
        return fn(jax.tree.map(whole, weights, names), *arrays)

    return mesh.per_group(on_one_device, *arrays, stored=((weights, names),))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather_rows(x, place, dtype):
    """Of every device along `place`, [devices, *x.shape]; sent in `dtype`, gradients as x is."""
    return _gather_rows_fwd(x, place, dtype)[0]


def _gather_rows_fwd(x, place, dtype):
    return jax.lax.all_gather(x.astype(dtype), place).astype(x.dtype), None


def _gather_rows_bwd(place, dtype, _, grad):
    return (jax.lax.psum_scatter(grad, place),)


_gather_rows.defvjp(_gather_rows_fwd, _gather_rows_bwd)


def _dtypes(x, dtype, reduce=None) -> tuple[jnp.dtype, jnp.dtype]:
    """(of computation, of sums over devices), the latter no narrower than the former."""
    dtype = jnp.dtype(x.dtype if dtype is None else dtype)
    return dtype, jnp.promote_types(dtype, x.dtype if reduce is None else reduce)


def summed(dot: Callable, *operands: jax.Array, dtype) -> jax.Array:
    """dot(*operands, preferred_element_type=dtype) of arrays that may be narrower than `dtype`.

    For gradients of weights, whose sum over rows is then rounded no more. XLA's CPU backend has no
    such product for every order of axes (jax 0.10.2): there the operands are widened before.
    """
    direct = functools.partial(dot, preferred_element_type=dtype)
    if all(x.dtype == dtype for x in operands):
        return direct(*operands)

    def widened(*operands):
        return direct(*(x.astype(dtype) for x in operands))

    return jax.lax.platform_dependent(*operands, cpu=widened, default=direct)
