"""Layers shared by backbones and heads: linear maps, norms, feed-forward networks.

Parameters are float32 and carry the names of their axes (see mesh.py for where these live);
`dtype` is the dtype of computation. Norms are computed in float32 whatever it is.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from dinojax.sharding import gather as gathering

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


def wide(x: jax.Array) -> jax.Array:
    """x in float32 at least; float64 stays."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def gelu(x: jax.Array) -> jax.Array:
    """The exact form with erf; JAX's default is the tanh approximation."""
    return jax.nn.gelu(x, approximate=False)


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
        y = wide(x)
        if centred:
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
        shape = x.shape[-1:]
        y = y * _trailing(self.param("scale", named(nn.initializers.ones, [None]), shape), y.ndim)
        if centred:
            bias = self.param("bias", named(nn.initializers.zeros, [None]), shape)
            y = y + _trailing(bias, y.ndim)
        return y.astype(self.dtype)


class Linear(nn.Module):
    """Contracts the last `num_in` axes of x with the first ones of a kernel of any rank.

    axes: a name per kernel axis. bias_mask: constant factor on the bias, of the bias's shape.
    gather: the kernel is as it is stored; off where the caller has gathered it (blocks of a scan).
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    dtype: jnp.dtype
    num_in: int = 1
    bias: bool = True
    bias_mask: Callable[[], jax.Array] | None = None
    init: Callable = normal(0.02)
    gather: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", named(self.init, self.axes), self.shape).astype(self.dtype)
        kernel = gathering.gather(kernel, *self.axes) if self.gather else kernel
        y = jnp.tensordot(x.astype(self.dtype), kernel, axes=self.num_in)
        if self.bias:
            shape = self.shape[self.num_in :]
            bias = self.param("bias", named(nn.initializers.zeros, [None] * len(shape)), shape)
            if self.bias_mask is not None:
                bias = bias * self.bias_mask()
            y = y + _trailing(bias.astype(self.dtype), y.ndim)
        return y


def _trailing(x: jax.Array, rank: int) -> jax.Array:
    """x with leading axes of size 1 up to `rank`: rank promotion is an error in our tests."""
    return x.reshape((1,) * (rank - x.ndim) + x.shape)


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
            y = jax.nn.silu(both[..., 0, :]) * both[..., 1, :]
            return linear("w3", self.hidden, width, out)(y)
        gate = jax.nn.silu(linear("w1", width, self.hidden, into)(x))
        value = linear("w2", width, self.hidden, into)(x)
        return linear("w3", self.hidden, width, out)(gate * value)
