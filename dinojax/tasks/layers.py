"""Layers of the heads. They compute in float32 at least; parameters are whole on every device.

A module is named as in the released files, a number joined to the word before it, so that
`layers.0.conv1.weight` there is `layers_0/conv1/kernel` here (tasks/names.py).
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from dinojax.models.layers import named, spread, wide

TORCH_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # of its linear layers
_BATCH_MOMENTUM, _EPS = 0.1, 1e-5


def size_of(map_BhwD: jax.Array) -> tuple[int, int]:
    """Rows and columns of maps."""
    return map_BhwD.shape[1], map_BhwD.shape[2]


def parameter(module: nn.Module, name: str, init: Callable, shape: Sequence[int]) -> jax.Array:
    """A parameter none of whose axes is sharded."""
    return module.param(name, named(init, [None] * len(shape)), tuple(shape))


class Linear(nn.Module):
    """x [..., C] -> [..., features]."""

    features: int
    bias: bool = True
    init: Callable = TORCH_INIT
    bias_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = wide(x)
        y = x @ parameter(self, "kernel", self.init, (x.shape[-1], self.features)).astype(x.dtype)
        if self.bias:
            y += spread(parameter(self, "bias", self.bias_init, (self.features,)), y)
        return y


class Conv(nn.Module):
    """x [B, H, W, C] -> [B, H', W', features]; zeros beyond the border.

    The border is half the kernel wide, none with `pad` off. depthwise: a kernel for each channel.
    """

    features: int
    size: int = 1
    stride: int = 1
    bias: bool = True
    depthwise: bool = False
    pad: bool = True
    groups: int = 0  # of a group norm after it, which has its own name below; 0 = none

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = wide(x)
        inputs = 1 if self.depthwise else x.shape[-1]
        shape = (self.size, self.size, inputs, self.features)
        border = self.size // 2 if self.pad else 0
        y = jax.lax.conv_general_dilated(
            x,
            parameter(self, "kernel", TORCH_INIT, shape).astype(x.dtype),
            window_strides=(self.stride,) * 2,
            padding=[(border, border)] * 2,
            feature_group_count=x.shape[-1] if self.depthwise else 1,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        if self.bias:
            y += spread(parameter(self, "bias", nn.initializers.zeros, (self.features,)), y)
        if self.groups:
            y = GroupNorm(self.groups, name="norm")(y)
        return y


class ConvModule(nn.Module):
    """A convolution one name further down, as released heads have it."""

    features: int
    size: int = 1
    bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return Conv(self.features, self.size, bias=self.bias, name="conv")(x)


class UpConv(nn.Module):
    """x [B, H, W, C] -> [B, factor H, factor W, features]: each entry becomes its own square."""

    features: int
    factor: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, factor = wide(x), self.factor
        shape = (factor, factor, x.shape[-1], self.features)
        kernel = parameter(self, "up_kernel", TORCH_INIT, shape).astype(x.dtype)
        y = jnp.einsum("bhwc,ijco->bhiwjo", x, kernel)
        y = y.reshape(len(x), factor * x.shape[1], factor * x.shape[2], self.features)
        bias = parameter(self, "bias", nn.initializers.zeros, (self.features,))
        return y + spread(bias, y)


class LayerNorm(nn.Module):
    """Over the last axis."""

    eps: float = _EPS

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = wide(x)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        return _affine(self, x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps))


class GroupNorm(nn.Module):
    """Over rows, columns and the channels of a group, of x [B, H, W, C]. Wu and He 2018."""

    groups: int = 32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = wide(x)
        y = x.reshape(*x.shape[:3], self.groups, -1)
        y = y - jnp.mean(y, axis=(1, 2, 4), keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=(1, 2, 4), keepdims=True) + _EPS)
        return _affine(self, y.reshape(x.shape))


class BatchNorm(nn.Module):
    """Over all but the last axis. Running moments are in the collection `batch_stats`.

    train: by the moments of the batch, which move the running ones by a tenth (the variance
    unbiased, as in PyTorch).
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = wide(x)
        shape = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        var = self.variable("batch_stats", "var", jnp.ones, shape)
        now_mean, now_var = mean.value.astype(x.dtype), var.value.astype(x.dtype)
        if train:
            axes = tuple(range(x.ndim - 1))
            now_mean = jnp.mean(x, axis=axes)
            now_var = jnp.mean((x - spread(now_mean, x)) ** 2, axis=axes)
            if not self.is_initializing():
                count = x.size // x.shape[-1]
                unbiased = now_var * (count / max(count - 1, 1))
                mean.value += _BATCH_MOMENTUM * (now_mean - mean.value)
                var.value += _BATCH_MOMENTUM * (unbiased - var.value)
        scale = jax.lax.rsqrt(now_var + _EPS)
        return _affine(self, (x - spread(now_mean, x)) * spread(scale, x))


def _affine(module: nn.Module, x: jax.Array) -> jax.Array:
    scale = parameter(module, "scale", nn.initializers.ones, x.shape[-1:])
    bias = parameter(module, "bias", nn.initializers.zeros, x.shape[-1:])
    return x * spread(scale, x) + spread(bias, x)


class Mlp(nn.Module):
    """Linear layers with relu between them."""

    widths: tuple[int, ...]  # of the outputs of each
    last_bias: Callable = nn.initializers.zeros
    last_init: Callable = TORCH_INIT

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        last = len(self.widths) - 1
        for number, width in enumerate(self.widths):
            init, bias_init = TORCH_INIT, nn.initializers.zeros
            if number == last:
                init, bias_init = self.last_init, self.last_bias
            x = Linear(width, init=init, bias_init=bias_init, name=f"layers_{number}")(x)
            x = jax.nn.relu(x) if number < last else x
        return x


class Attention(nn.Module):
    """Queries [B, Q, D] that look at keys [B, K, D] and take of values [B, K, D].

    blocked: true [B or 1, heads or 1, Q or 1, K] where a query does not look.
    """

    heads: int

    @nn.compact
    def __call__(self, query, key, value, blocked: jax.Array | None = None) -> jax.Array:
        width = query.shape[-1]
        kernel = parameter(self, "in_proj_kernel", TORCH_INIT, (width, 3 * width))
        bias = parameter(self, "in_proj_bias", nn.initializers.zeros, (3 * width,))
        inputs = map(wide, (query, key, value))
        parts = zip(inputs, jnp.split(kernel, 3, axis=1), jnp.split(bias, 3), strict=True)
        products = ((x @ w.astype(x.dtype), b) for x, w, b in parts)
        q, k, v = (self._split(y + spread(b, y)) for y, b in products)
        scores = jnp.einsum("bqae,bkae->baqk", q, k) * (width // self.heads) ** -0.5
        if blocked is not None:
            scores = jnp.where(blocked, -jnp.inf, scores)
        y = jnp.einsum("baqk,bkae->bqae", jax.nn.softmax(scores), v)
        return Linear(width, name="out_proj")(y.reshape(*y.shape[:2], width))

    def _split(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], self.heads, -1)


def feed_forward(x: jax.Array, hidden: int) -> jax.Array:
    """linear2(relu(linear1 x)), layers of the module that calls it within its compact method."""
    y = jax.nn.relu(Linear(hidden, name="linear1")(x))
    return Linear(x.shape[-1], name="linear2")(y)
