"""Elementwise functions and norms that keep only their input for the backward pass.

Derivatives that a library finds keep what each operation of a function gave: four arrays of a GELU,
two float32 ones of a LayerNorm. Here the backward pass makes these again from the input, which is
cheaper than fetching them: what lies between two products is bound by memory. All is computed in
float32 at least and rounded once; `normalize_plain` and the function itself are the definitions.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp


def wide(x: jax.Array) -> jax.Array:
    """x in float32 at least; float64 stays."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def elementwise(function: Callable, *operands: jax.Array) -> jax.Array:
    """function(*operands), of arrays of one shape and dtype, which the result has too.

    In bfloat16 every step of a function would be rounded; here only its result is. function must
    compute entry by entry. For the backward pass the operands are kept.
    """
    return _elementwise_fwd(function, *operands)[0]


def _elementwise_fwd(function, *operands):
    return function(*map(wide, operands)).astype(operands[0].dtype), operands


def _elementwise_bwd(function, operands, grad):
    _, pull = jax.vjp(function, *map(wide, operands))
    return tuple(x.astype(y.dtype) for x, y in zip(pull(wide(grad)), operands, strict=True))


elementwise.defvjp(_elementwise_fwd, _elementwise_bwd)


def normalize_plain(x, scale, bias, *, centred: bool, eps: float, dtype) -> jax.Array:
    """x [..., D] less its mean (if centred) over its root mean square, times scale [D], plus bias.

    LayerNorm (arXiv:1607.06450) if centred, else RMSNorm (arXiv:1910.07467), whose bias is None.
    Float32 at least, rounded to `dtype` at the end.
    """
    moments = _moments(wide(x), centred, eps)
    return _scaled(_standardized(wide(x), *moments), scale, bias).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _normalize(x, scale, bias, centred, eps, dtype):
    return _normalize_fwd(x, scale, bias, centred, eps, dtype)[0]


def normalize(x, scale, bias, *, centred: bool, eps: float, dtype) -> jax.Array:
    """`normalize_plain`, keeping x and two numbers a row for the backward pass.

    Gradients of scale and bias are sums over all rows in float32 at least.
    """
    return _normalize(x, scale, bias, centred, eps, jnp.dtype(dtype))


def _normalize_fwd(x, scale, bias, centred, eps, dtype):
    moments = _moments(wide(x), centred, eps)
    y = _scaled(_standardized(wide(x), *moments), scale, bias).astype(dtype)
    return y, (x, scale, bias, moments)


def _normalize_bwd(centred, eps, dtype, kept, grad):
    x, scale, bias, moments = kept
    y, inverse = _standardized(wide(x), *moments), moments[1]
    grad, rows = wide(grad).astype(y.dtype), tuple(range(x.ndim - 1))
    pull = grad * _along(scale, grad)
    # A change of a row's length or of its mean is none of the result.
    inner = pull - y * jnp.mean(pull * y, axis=-1, keepdims=True)
    if centred:
        inner = inner - jnp.mean(pull, axis=-1, keepdims=True)
    of_scale = jnp.sum(grad * y, axis=rows).astype(scale.dtype)
    of_bias = None if bias is None else jnp.sum(grad, axis=rows).astype(bias.dtype)
    return (inverse * inner).astype(x.dtype), of_scale, of_bias


_normalize.defvjp(_normalize_fwd, _normalize_bwd)


def _moments(x, centred: bool, eps: float) -> tuple[jax.Array, jax.Array]:
    """(Mean or 0, inverse of the root mean square of what is left) of rows, [..., 1]."""
    mean = jnp.mean(x, axis=-1, keepdims=True)
    mean = mean if centred else jnp.zeros_like(mean)
    square = jnp.mean(jnp.square(x - mean if centred else x), axis=-1, keepdims=True)
    return mean, jax.lax.rsqrt(square + eps)


def _standardized(x, mean, inverse):
    return (x - mean) * inverse


def _scaled(y, scale, bias):
    y = y * _along(scale, y)
    return y if bias is None else y + _along(bias, y)


def _along(vector, like):
    return jnp.broadcast_to(vector.astype(like.dtype), like.shape)
