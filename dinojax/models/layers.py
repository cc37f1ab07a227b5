"""Layers shared by backbones and heads: linear maps, norms, feed-forward networks.

Parameters are float32 and carry the names of their axes (see mesh.py for where these live);
`dtype` is the dtype of computation. Norms are computed in float32 whatever it is, and so are the
gradients of parameters, which sum over all images and tokens: `spread` and `product` see to that.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from dinojax.ops.lean import elementwise, normalize, wide
from dinojax.sharding import gather

# name -> (subtract the mean, epsilon)
NORMS = {
    "layernorm": (True, 1e-6),
    "layernorm_1e5": (True, 1e-5),
    "rmsnorm": (False, 1e-5),
}

# name -> multiple to which the width of a gated network is rounded up; None = not gated
FFNS: dict[str, int | None] = {
    "mlp": None,
    "swiglu": 8,
    "swiglu32": 32,
    "swiglu64": 64,
    "swiglu128": 128,
    "swiglu_fused": 8,  # DINOv2: w1 and w2 as one matrix
}


class Named(struct.PyTreeNode, nn.meta.AxisMetadata):
    """A parameter with a name for each of its axes; mesh.py says where these live.

    Unlike flax's own boxes it leaves sharding to whoever reads the names.
    """

    value: Any
    names: tuple[str | None, ...] = struct.field(pytree_node=False)

    def unbox(self):
        return self.value

    def replace_boxed(self, value):
        return self.replace(value=value)

    def add_axis(self, index, params):
        names = list(self.names)
        names.insert(index, params[nn.PARTITION_NAME])
        return self.replace(names=tuple(names))

    def remove_axis(self, index, params):
        names = list(self.names)
        names.pop(index)
        return self.replace(names=tuple(names))


def named(init: Callable, names: Sequence[str | None]) -> Callable:
    """An initializer whose parameter carries the names of its axes."""
    return lambda *args: Named(init(*args), tuple(names))


def normal(std: float) -> Callable:
    """Normal init. The reference truncates at 100 standard deviations, so not at all."""
    return nn.initializers.normal(std)


def _wide(dtype) -> jnp.dtype:
    return jnp.promote_types(dtype, jnp.float32)


def spread(x: jax.Array, like: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
    """A parameter [...], rounded to the dtype of `like` [..., ...], over the leading axes of it.

    Its gradient is summed over these in float32 at least. With an implicit broadcast the sum
    would be one of `like`'s dtype: in bfloat16 a sum of ones ends at 256.
    """
    leading = like.shape[: like.ndim - x.ndim]
    return _spread(x.astype(_wide(like.dtype)), leading, jnp.dtype(like.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _spread(x, leading, dtype):
    return _spread_fwd(x, leading, dtype)[0]


def _spread_fwd(x, leading, dtype):
    return jax.lax.broadcast(x.astype(dtype), leading), None


def _spread_bwd(leading, dtype, _, grad):
    return (jnp.sum(grad, axis=tuple(range(len(leading))), dtype=_wide(dtype)),)


_spread.defvjp(_spread_fwd, _spread_bwd)


def product(x: jax.Array, kernel: jax.Array, num_in: int = 1) -> jax.Array:
    """The last `num_in` axes of x times the first ones of a kernel, in the dtype of x.

    The kernel may be wider than x: then it is rounded, and its gradient, a sum over all leading
    axes of x, stays as wide as it is on its way out of the product.
    """
    if kernel.dtype == x.dtype:
        return jnp.tensordot(x, kernel, axes=num_in)
    return _product(x, kernel, num_in)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x, kernel, num_in):
    return _product_fwd(x, kernel, num_in)[0]


def _product_fwd(x, kernel, num_in):
    return jnp.tensordot(x, kernel.astype(x.dtype), axes=num_in), (x, kernel)


def _product_bwd(num_in, kept, grad):
    x, kernel = kept
    rows = tuple(range(x.ndim - num_in))
    outputs = tuple(range(len(rows), grad.ndim)), tuple(range(num_in, kernel.ndim))
    grad_x = jnp.tensordot(grad, kernel.astype(x.dtype), axes=outputs)
    dot = functools.partial(jax.lax.dot_general, dimension_numbers=((rows, rows), ((), ())))
    return grad_x, gather.summed(dot, x, grad, dtype=kernel.dtype)


_product.defvjp(_product_fwd, _product_bwd)


def gelu(x: jax.Array) -> jax.Array:
    """The exact form with erf; JAX's default is the tanh approximation."""
    return elementwise(_gelu, x)


def _gelu(x):
    return jax.nn.gelu(x, approximate=False)


def _gated(gate, value):
    return jax.nn.silu(gate) * value


def l2_normalize(x: jax.Array, eps: float = 1e-12) -> jax.Array:
    """x / max(|x|, eps) along the last axis, in float32 at least, with a finite gradient at 0."""
    x = wide(x)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, eps * eps))


class Norm(nn.Module):
    """LayerNorm or RMSNorm over the last axis; `kind` is a row of NORMS."""

    kind: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        centred, eps = NORMS[self.kind]
        shape = x.shape[-1:]
        scale = self.param("scale", named(nn.initializers.ones, [None]), shape)
        bias = self.param("bias", named(nn.initializers.zeros, [None]), shape) if centred else None
        return normalize(x, scale, bias, centred=centred, eps=eps, dtype=self.dtype)


class Linear(nn.Module):
    """Contracts the last `num_in` axes of x with the first ones of a kernel of any rank.

    axes: a name per kernel axis. bias_mask: constant factor on the bias, of the bias's shape.
    reduce: of a kernel as it is stored: the dtype in which its gradient crosses devices; None where
    the caller has gathered it (blocks of a scan).
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    dtype: jnp.dtype
    num_in: int = 1
    bias: bool = True
    bias_mask: Callable[[], jax.Array] | None = None
    init: Callable = normal(0.02)
    reduce: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", named(self.init, self.axes), self.shape)
        if self.reduce is not None:
            kernel = gather.gather(kernel, *self.axes, dtype=self.dtype, reduce=self.reduce)
        y = product(x.astype(self.dtype), kernel, self.num_in)
        if self.bias:
            shape = self.shape[self.num_in :]
            bias = self.param("bias", named(nn.initializers.zeros, [None] * len(shape)), shape)
            if self.bias_mask is not None:
                bias = bias * self.bias_mask()
            y = y + spread(bias, y)
        return y


def ffn_width(kind: str, width: int, ratio: float) -> int:
    """Channels F inside the feed-forward network of a block of `width` channels."""
    multiple, hidden = FFNS[kind], int(width * ratio)
    if multiple is None:
        return hidden
    return -(-int(hidden * 2 / 3) // multiple) * multiple


class Ffn(nn.Module):
    """fc2(gelu(fc1 x)), or w3(silu(w1 x) * w2 x) for the gated kinds of FFNS.

    The fused kind makes both halves with one kernel [D, 2, F], the gate first.
    """

    kind: str
    hidden: int
    bias: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]

        def linear(name, inputs, outputs, axes):
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            return Linear((inputs, *outputs), axes, self.dtype, bias=self.bias, name=name)

        into, out = ("width", "mlp"), ("mlp", "width")
        if FFNS[self.kind] is None:
            y = gelu(linear("fc1", width, self.hidden, into)(x))
            return linear("fc2", self.hidden, width, out)(y)
        if self.kind == "swiglu_fused":
            both = linear("w12", width, (2, self.hidden), ("width", None, "mlp"))(x)
            y = elementwise(_gated, both[..., 0, :], both[..., 1, :])
            return linear("w3", self.hidden, width, out)(y)
        gate = linear("w1", width, self.hidden, into)(x)
        value = linear("w2", width, self.hidden, into)(x)
        return linear("w3", self.hidden, width, out)(elementwise(_gated, gate, value))
